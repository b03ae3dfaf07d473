//! One real process of ours: started, watched, killed.

use ingestctl::clickhouse::{ClickHouse, Engine, LIBRARY_VARIABLE, Options, Places};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

const READY_DEADLINE: Duration = Duration::from_secs(60);
const EXIT_DEADLINE: Duration = Duration::from_secs(40);

/// A running process that has said that it is ready.
#[derive(Debug)]
pub struct Service {
    process: Started,
    /// Its first line on stdout.
    pub ready: Value,
}

/// The executable `name`, beside the test's own.
///
/// # Panics
/// Where it was not built: `make test` builds it.
#[must_use]
pub fn executable(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a path");
    let path = own
        .ancestors()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    path.unwrap_or_else(|| {
        panic!("{name} is not built: run `make test`, or `cargo build --profile ci --workspace --bins`")
    })
}

/// Where a ClickHouse may be: above the executable, above this crate.
#[must_use]
pub fn places() -> Places {
    Places::of_this_process().and_above(env!("CARGO_MANIFEST_DIR"))
}

/// A ClickHouse with its data in `dir`, at `port`, or at any where that is 0.
///
/// # Panics
/// Where it does not start.
pub async fn clickhouse(dir: &Path, port: u16) -> ClickHouse {
    let options = Options {
        data_dir: dir.to_owned(),
        port,
        engine: places().locate().expect("a ClickHouse: run `make setup`"),
        launcher: Some(executable("ingestctl")),
    };
    ClickHouse::start(options).await.expect("ClickHouse starts")
}

/// A process that was started and may not be ready yet; killed when it is dropped.
#[derive(Debug)]
pub struct Started(Child);

impl Started {
    /// Starts `name` with `--json`. Its log lines are added to `log`.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn new(name: &str, args: &[String], log: &Path) -> Result<Self, String> {
        let lines = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(|error| error.to_string())?;
        let mut command = Command::new(executable(name));
        if let Ok(Engine::Library(library)) = places().locate() {
            // The executable may lie outside the clone, where it would not find the library by itself.
            command.env(LIBRARY_VARIABLE, library);
        }
        // Heeded only by builds with failpoints, and only where the directory is there.
        command.env("SLUICE_FAILPOINTS", log.with_file_name("failpoints"));
        // As many run services: what is done for a backtrace must not be in the way of anything.
        command.env("RUST_BACKTRACE", "1");
        let child = command
            .args(args)
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(lines)
            .spawn()
            .map_err(|error| format!("{name}: {error}"))?;
        Ok(Self(child))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Service {
    /// Starts `name` with `--json` and waits for its ready line. Its log lines are added to `log`.
    ///
    /// # Errors
    /// Its last words, where it ended or said nothing in time.
    pub fn start(name: &str, args: &[String], log: &Path) -> Result<Self, String> {
        let mut process = Started::new(name, args, log)?;
        let stdout = process.0.stdout.take().ok_or("no stdout")?;
        let (send, first) = sync_channel(1);
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(stdout).read_line(&mut line);
            // Nobody listens any more where the deadline has passed.
            send.send(read.map(|_| line)).ok();
        });
        let line = first
            .recv_timeout(READY_DEADLINE)
            .ok()
            .and_then(Result::ok)
            .unwrap_or_default();
        match serde_json::from_str(&line) {
            Ok(ready) => Ok(Self { process, ready }),
            // Whatever it is doing, it is not ready: it is killed.
            Err(_) => Err(format!("{name} did not get ready: {}", tail(log))),
        }
    }

    /// Its process id.
    ///
    /// # Panics
    /// Never for a process that was started.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.process.0)
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(self) {
        drop(self.process);
    }

    /// How it ended, if it did.
    ///
    /// # Panics
    /// Where the system does not know it.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.0.try_wait().expect("a status")
    }

    /// SIGTERM; its exit status.
    ///
    /// # Panics
    /// Where it does not end within its deadline.
    pub fn terminate(mut self) -> ExitStatus {
        kill_process(self.pid(), Signal::TERM).expect("it runs");
        let until = Instant::now() + EXIT_DEADLINE;
        loop {
            if let Some(status) = self.process.0.try_wait().expect("a status") {
                return status;
            }
            assert!(
                Instant::now() < until,
                "SIGTERM did not end it within {EXIT_DEADLINE:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Resident memory now, and its peak, in bytes.
    #[must_use]
    pub fn memory(&self) -> (u64, u64) {
        (self.status("VmRSS:"), self.status("VmHWM:"))
    }

    /// What it may write to and shares with nobody, touched or not, in bytes: what [`Self::cap`] counts.
    #[must_use]
    pub fn writable(&self) -> u64 {
        self.status("VmData:")
    }

    /// Has the system refuse it more than so many bytes of writable memory of its own, from now on (`RLIMIT_DATA`). A
    /// process of ours whose allocation is refused aborts. Children that it has already are not capped.
    ///
    /// # Panics
    /// Where it has ended.
    pub fn cap(&self, bytes: u64) {
        let limit = Rlimit {
            current: Some(bytes),
            maximum: Some(bytes),
        };
        prlimit(Some(self.pid()), Resource::Data, limit).expect("it runs");
    }

    fn status(&self, field: &str) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with(field));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }
}

/// The last lines of a log file, without the frames of a panic.
#[must_use]
pub fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let is_frame = |line: &&str| {
        let line = line.trim_start();
        let behind_number = line.trim_start_matches(|c: char| c.is_ascii_digit());
        line.starts_with("at ") || behind_number.len() < line.len() && behind_number.starts_with(": ")
    };
    let lines = text.lines().rev().filter(|line| !is_frame(line));
    let lines: Vec<&str> = lines.take(15).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
