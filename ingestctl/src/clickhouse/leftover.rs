//! At most one ClickHouse on a folder: the lock it holds, and the end of one that was left behind.
//!
//! The running process holds an exclusive `flock` on `clickhouse.pid` until it is gone, however it
//! goes, and its pid stands inside. A pid is signalled only while the lock is held and only if its
//! command line names the folder, so a number that the system gave to somebody else is left alone.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::layout::Layout;

/// How long a leftover may take to end after SIGTERM; ClickHouse needs about 1 s *(measured)*.
const TERM_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How often the lock is tried.
const POLL: Duration = Duration::from_millis(20);

/// Why a folder could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    /// The lock is held by a process that is not ours to stop, or that does not end.
    #[error("{folder} is in use by another process{}: stop it, then start again", holder(*.pid))]
    Held {
        /// The folder.
        folder: String,
        /// The process that is named in it.
        pid: Option<i32>,
    },
    /// The lock file cannot be used.
    #[error("cannot use {folder}/clickhouse.pid: {source}")]
    Io {
        /// The folder.
        folder: String,
        /// What the system said.
        source: io::Error,
    },
}

fn holder(pid: Option<i32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

/// Takes the lock for this process and writes its pid. The lock lasts as long as the file is open.
pub(super) fn take(layout: &Layout) -> Result<File, LeftoverError> {
    let mut file = open(layout).map_err(|source| io_error(layout, source))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(held(layout, read_pid(layout))),
        Err(TryLockError::Error(source)) => return Err(io_error(layout, source)),
    }
    let written = file
        .set_len(0)
        .and_then(|()| write!(file, "{}", std::process::id()));
    written.map_err(|source| io_error(layout, source))?;
    Ok(file)
}

/// Stops what still runs on the folder. Returns its pid, if there was one. Takes up to 20 s.
pub(super) fn stop(layout: &Layout) -> Result<Option<i32>, LeftoverError> {
    let file = open(layout).map_err(|source| io_error(layout, source))?;
    let begun = Instant::now();
    let mut signalled = None;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(signalled.map(|(pid, _)| pid)),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(source)) => return Err(io_error(layout, source)),
        }
        let elapsed = begun.elapsed();
        if elapsed > TERM_PATIENCE + KILL_PATIENCE {
            return Err(held(layout, read_pid(layout)));
        }
        let signal = if elapsed < TERM_PATIENCE {
            Signal::TERM
        } else {
            Signal::KILL
        };
        if let Some(pid) = read_pid(layout).filter(|pid| runs_on(*pid, layout.root()))
            && signalled != Some((pid, signal))
        {
            end(pid, signal);
            signalled = Some((pid, signal));
        }
        std::thread::sleep(POLL);
    }
}

fn open(layout: &Layout) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(layout.pid_file())
}

fn read_pid(layout: &Layout) -> Option<i32> {
    let mut text = String::new();
    File::open(layout.pid_file())
        .ok()?
        .take(32)
        .read_to_string(&mut text)
        .ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 1)
}

fn runs_on(pid: i32, folder: &Path) -> bool {
    let folder = folder.as_os_str().as_bytes();
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.windows(folder.len()).any(|window| window == folder))
}

fn end(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid)
        && let Err(error) = kill_process(pid, signal)
    {
        // It may have ended by itself; the lock says whether it did.
        tracing::debug!(pid = pid.as_raw_nonzero().get(), %error, "could not signal a leftover ClickHouse");
    }
}

fn held(layout: &Layout, pid: Option<i32>) -> LeftoverError {
    LeftoverError::Held {
        folder: layout.root().display().to_string(),
        pid,
    }
}

fn io_error(layout: &Layout, source: io::Error) -> LeftoverError {
    LeftoverError::Io {
        folder: layout.root().display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_had_once_and_names_its_holder() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::create(root.path()).unwrap();
        let lock = take(&layout).unwrap();
        let refused = take(&layout).unwrap_err();
        assert!(
            matches!(refused, LeftoverError::Held { pid: Some(pid), .. } if pid.unsigned_abs() == std::process::id())
        );
        drop(lock);
        take(&layout).unwrap();
    }

    #[test]
    fn a_stale_pid_without_a_lock_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::create(root.path()).unwrap();
        let mut bystander = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(layout.pid_file(), bystander.id().to_string()).unwrap();
        assert_eq!(stop(&layout).unwrap(), None);
        assert!(bystander.try_wait().unwrap().is_none(), "it still runs");
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }
}
