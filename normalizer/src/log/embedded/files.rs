//! The log's directory: files by name, each change of the disk by way of [`Disk`].

use rustix::fs::{FlockOperation, flock, statvfs};
use sluice_common::disk::{Disk, DiskFile};
use sluice_common::failpoint::{self, Safety};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The log's directory.
#[derive(Clone)]
pub struct Files {
    dir: PathBuf,
    disk: Disk,
    syncs: Arc<AtomicU64>,
}

/// A file of the log opened for writing.
pub struct LogFile {
    file: DiskFile,
    files: Files,
}

/// The volume's size and what is free on it for this process, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Volume {
    pub total: u64,
    pub free: u64,
}

impl Files {
    /// Makes the directory where it is missing.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn open(dir: &Path, disk: Disk) -> io::Result<Self> {
        disk.make_dir(dir, 0o777)?;
        Ok(Self {
            dir: dir.to_path_buf(),
            disk,
            syncs: Arc::default(),
        })
    }

    /// How many times a file or the directory was synced since the log was opened.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
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
        let file = self.disk.create(&self.dir.join(name), 0o600)?;
        Ok(self.file(file))
    }

    fn file(&self, file: DiskFile) -> LogFile {
        LogFile {
            file,
            files: self.clone(),
        }
    }

    /// An existing file, to be written on.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn open_write(&self, name: &str) -> io::Result<LogFile> {
        Ok(self.file(self.disk.open_write(&self.dir.join(name))?))
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
        self.disk.rename(&self.dir.join(from), &self.dir.join(to))
    }

    /// Unlinks a file; durable only after [`Self::sync_dir`].
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(&self.dir.join(name))
    }

    /// Makes creations, renames and removals durable.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn sync_dir(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.disk.sync_dir(&self.dir)
    }

    /// The volume under the directory.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn volume(&self) -> io::Result<Volume> {
        let stat = statvfs(&self.dir)?;
        let real = stat.f_bavail.saturating_mul(stat.f_frsize);
        Ok(Volume {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: self.disk.free_bytes(real),
        })
    }
}

impl LogFile {
    /// Writes all of `bytes` at `at`. After an error any part of them may be in the file.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_at(bytes, at)
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
    pub fn renamed(mut self, name: &str) -> Self {
        self.file = self.file.renamed(self.files.dir.join(name));
        self
    }

    /// Makes what was written durable, with the file's length.
    ///
    /// # Errors
    /// Any error of the file system. What was written may then be lost though a later call succeeds.
    pub fn sync(&self) -> io::Result<()> {
        self.files.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync()
    }

    /// The whole content.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn read_all(&self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.file.inner().metadata()?.len()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        self.file.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}
