//! Every file operation of the embedded log, so that order and durability can be watched in one place.
//!
//! A [`FileWatch`] sees each operation that changes the disk before it happens, with its bytes, and may
//! refuse it: that is how tests inject faults, and how a power-loss replay can record what was written
//! and what was synced.

use rustix::fs::{FlockOperation, flock, statvfs};
use sluice_common::failpoint::{self, Safety};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An operation that changes the disk, about to happen. Names are relative to the log's directory.
#[derive(Debug, Clone, Copy)]
pub enum FileOp<'a> {
    /// A new, empty file (an old one of that name is emptied).
    Create { name: &'a str },
    /// Bytes at a position.
    Write { name: &'a str, at: u64, bytes: &'a [u8] },
    /// `fdatasync` of one file.
    Sync { name: &'a str },
    /// `rename` within the directory.
    Rename { from: &'a str, to: &'a str },
    /// `unlink`.
    Remove { name: &'a str },
    /// `fsync` of the directory.
    SyncDir,
}

/// Sees operations before they happen.
pub trait FileWatch: Send + Sync {
    /// Called before `op`; an error is returned to the log instead of doing it.
    ///
    /// # Errors
    /// Whatever fault is to be injected.
    fn before(&self, op: &FileOp<'_>) -> io::Result<()>;

    /// The free bytes that the log is to believe in, given the real ones.
    fn free_bytes(&self, real: u64) -> u64 {
        real
    }
}

/// The log's directory.
#[derive(Clone)]
pub struct Files {
    dir: PathBuf,
    watch: Option<Arc<dyn FileWatch>>,
    syncs: Arc<AtomicU64>,
}

/// A file of the log opened for writing.
pub struct LogFile {
    name: String,
    file: File,
    files: Files,
}

/// The volume's size and what is free on it for this process, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Volume {
    pub total: u64,
    pub free: u64,
}

impl Files {
    /// Makes the directory (only its owner may enter) where it is missing.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn open(dir: &Path, watch: Option<Arc<dyn FileWatch>>) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        Ok(Self {
            dir: dir.to_path_buf(),
            watch,
            syncs: Arc::default(),
        })
    }

    /// How many times a file or the directory was synced since the log was opened.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    fn before(&self, op: &FileOp<'_>) -> io::Result<()> {
        self.watch.as_ref().map_or(Ok(()), |watch| watch.before(op))
    }

    /// Takes the directory's lock until the file is dropped. `Err(Some(holder))` where another holds it.
    ///
    /// # Errors
    /// The outer one is the file system's, the inner one names the process that holds the lock.
    pub fn lock(&self, name: &str) -> io::Result<Result<File, String>> {
        let path = self.dir.join(name);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) if failpoint::is_on(Safety::Lock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)?;
                return Ok(Err(holder.trim().to_owned()));
            }
            Err(error) if failpoint::is_on(Safety::Lock) => return Err(error.into()),
            Err(_) => {}
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Ok(file))
    }

    /// The names and lengths of all files of the directory.
    ///
    /// # Errors
    /// Any error of the file system; a name that is not UTF-8 is one.
    pub fn list(&self) -> io::Result<Vec<(String, u64)>> {
        std::fs::read_dir(&self.dir)?
            .map(|entry| {
                let entry = entry?;
                let name = entry.file_name().into_string().map_err(|name| {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("{} is not a name of ours", name.display()),
                    )
                })?;
                Ok((name, entry.metadata()?.len()))
            })
            .collect()
    }

    /// A new, empty file, readable by its owner only.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn create(&self, name: &str) -> io::Result<LogFile> {
        self.before(&FileOp::Create { name })?;
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600);
        let file = options.open(self.dir.join(name))?;
        Ok(LogFile {
            name: name.to_owned(),
            file,
            files: self.clone(),
        })
    }

    /// An existing file, to be written on.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn open_write(&self, name: &str) -> io::Result<LogFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.dir.join(name))?;
        Ok(LogFile {
            name: name.to_owned(),
            file,
            files: self.clone(),
        })
    }

    /// An existing file, to be read only.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn open_read(&self, name: &str) -> io::Result<File> {
        File::open(self.dir.join(name))
    }

    /// Renames within the directory; durable only after [`Self::sync_dir`].
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.before(&FileOp::Rename { from, to })?;
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    /// Unlinks a file; durable only after [`Self::sync_dir`].
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.before(&FileOp::Remove { name })?;
        std::fs::remove_file(self.dir.join(name))
    }

    /// Makes creations, renames and removals durable.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn sync_dir(&self) -> io::Result<()> {
        self.before(&FileOp::SyncDir)?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        File::open(&self.dir)?.sync_all()
    }

    /// The volume under the directory.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn volume(&self) -> io::Result<Volume> {
        let stat = statvfs(&self.dir)?;
        let real = stat.f_bavail.saturating_mul(stat.f_frsize);
        let free = self.watch.as_ref().map_or(real, |watch| watch.free_bytes(real));
        Ok(Volume {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free,
        })
    }
}

impl LogFile {
    /// Writes all of `bytes` at `at`. After an error any part of them may be in the file.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.files.before(&FileOp::Write {
            name: &self.name,
            at,
            bytes,
        })?;
        self.file.write_all_at(bytes, at)
    }

    /// Writes zeros over `from..to`, in pieces.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn zero(&self, from: u64, to: u64) -> io::Result<()> {
        const PIECE: u64 = 1 << 20;
        let zeros = vec![0; usize::try_from(PIECE.min(to.saturating_sub(from))).unwrap_or(0)];
        let mut at = from;
        while at < to {
            let piece = usize::try_from(PIECE.min(to - at)).unwrap_or(0);
            self.write_at(&zeros[..piece], at)?;
            at += PIECE;
        }
        Ok(())
    }

    /// The same file under the name it was given since.
    pub fn renamed(mut self, name: String) -> Self {
        self.name = name;
        self
    }

    /// Makes what was written durable, with the file's length.
    ///
    /// # Errors
    /// Any error of the file system. What was written may then be lost though a later call succeeds.
    pub fn sync(&self) -> io::Result<()> {
        self.files.before(&FileOp::Sync { name: &self.name })?;
        self.files.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync_data()
    }

    /// The whole content.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn read_all(&self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.file.metadata()?.len()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}
