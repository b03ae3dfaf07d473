//! Every operation that changes what is kept on disk, so that order and durability can be watched in one
//! place.
//!
//! A [`DiskWatch`] sees each operation before it happens, with its bytes, and may refuse it: that is how
//! tests inject faults, and how a replay of power loss records what was written and what was synced. Without
//! one these are the plain calls. Reading is not watched.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An operation that changes the disk, about to happen.
#[derive(Debug, Clone, Copy)]
pub enum DiskOp<'a> {
    /// A new directory.
    MakeDir { path: &'a Path },
    /// A new, empty file (an old one of that name is emptied).
    Create { path: &'a Path },
    /// Bytes at a position.
    Write {
        path: &'a Path,
        at: u64,
        bytes: &'a [u8],
    },
    /// A library makes the file and writes its bytes past us: they are unknown until its next sync.
    Fill { path: &'a Path },
    /// `fdatasync` or `fsync` of one file.
    Sync { path: &'a Path },
    /// `rename`.
    Rename { from: &'a Path, to: &'a Path },
    /// `unlink`.
    Remove { path: &'a Path },
    /// `fsync` of a directory.
    SyncDir { path: &'a Path },
}

/// Sees operations before they happen.
pub trait DiskWatch: Send + Sync {
    /// Called before `op`; an error is returned instead of doing it.
    ///
    /// # Errors
    /// Whatever fault is to be injected.
    fn before(&self, op: &DiskOp<'_>) -> io::Result<()>;

    /// The free bytes that are to be believed in, given the real ones.
    fn free_bytes(&self, real: u64) -> u64 {
        real
    }
}

/// The way to the disk. Cloning shares the watch; [`Default`] is what production uses.
#[derive(Clone, Default)]
pub struct Disk(Option<Arc<dyn DiskWatch>>);

/// A directory of ours, and the way to it.
#[derive(Debug, Clone)]
pub struct Dir {
    pub disk: Disk,
    pub path: PathBuf,
}

/// A file opened for writing. [`Write`] and [`Seek`] are for one writer from the beginning on.
#[derive(Debug)]
pub struct DiskFile {
    path: PathBuf,
    file: File,
    disk: Disk,
    at: u64,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("watched", &self.0.is_some())
            .finish()
    }
}

impl Disk {
    /// A disk whose operations `watch` sees.
    #[must_use]
    pub fn watched(watch: Arc<dyn DiskWatch>) -> Self {
        Self(Some(watch))
    }

    fn before(&self, op: &DiskOp<'_>) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |watch| watch.before(op))
    }

    /// The free bytes to believe in, given the real ones.
    #[must_use]
    pub fn free_bytes(&self, real: u64) -> u64 {
        self.0.as_ref().map_or(real, |watch| watch.free_bytes(real))
    }

    /// Makes a directory and all above it that are missing, so that what is made durable in it is not lost
    /// with it: the entry of each is synced. That of one which is there is too: a process may have been killed
    /// between making and syncing it.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        let missing: Vec<&Path> = path
            .ancestors()
            .take_while(|dir| !dir.as_os_str().is_empty() && !dir.is_dir())
            .collect();
        self.sync_entry_if_allowed(missing.last().map_or(path, |top| parent_of(top)))?;
        for dir in missing.iter().rev() {
            self.before(&DiskOp::MakeDir { path: dir })?;
            match DirBuilder::new().mode(mode).create(dir) {
                // Another process was quicker.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
            self.sync_dir(parent_of(dir))?;
        }
        Ok(())
    }

    /// Syncs the entry of a directory that was there. Who may not read what is above it did not make it.
    fn sync_entry_if_allowed(&self, dir: &Path) -> io::Result<()> {
        match self.sync_dir(parent_of(dir)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            synced => synced,
        }
    }

    /// A new, empty file of these permissions.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn create(&self, path: &Path, mode: u32) -> io::Result<DiskFile> {
        self.before(&DiskOp::Create { path })?;
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode);
        Ok(self.file(path, options.open(path)?))
    }

    /// A file that was not there: nobody else holds it open.
    ///
    /// # Errors
    /// Any error of the file system; that it is there is one.
    pub fn create_new(&self, path: &Path, mode: u32) -> io::Result<DiskFile> {
        self.before(&DiskOp::Create { path })?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(mode);
        Ok(self.file(path, options.open(path)?))
    }

    /// An existing file, to be written on.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn open_write(&self, path: &Path) -> io::Result<DiskFile> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(self.file(path, file))
    }

    fn file(&self, path: &Path, file: File) -> DiskFile {
        DiskFile {
            path: path.to_owned(),
            file,
            disk: self.clone(),
            at: 0,
        }
    }

    /// A library is about to make this file and to write it: what it holds is unknown until [`Self::sync`].
    ///
    /// # Errors
    /// Only what a watch injects.
    pub fn fill(&self, path: &Path) -> io::Result<()> {
        self.before(&DiskOp::Fill { path })
    }

    /// Makes the content of a file durable, whoever wrote it. Returns its bytes.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn sync(&self, path: &Path) -> io::Result<u64> {
        self.before(&DiskOp::Sync { path })?;
        let file = File::open(path)?;
        file.sync_all()?;
        Ok(file.metadata()?.len())
    }

    /// Renames; durable only after [`Self::sync_dir`].
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(&DiskOp::Rename { from, to })?;
        std::fs::rename(from, to)
    }

    /// Unlinks a file; durable only after [`Self::sync_dir`].
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        self.before(&DiskOp::Remove { path })?;
        std::fs::remove_file(path)
    }

    /// Makes creations, renames and removals in a directory durable.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.before(&DiskOp::SyncDir { path })?;
        File::open(path)?.sync_all()
    }
}

impl Dir {
    /// The path of a name in it.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Makes creations, renames and removals in it durable.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn sync(&self) -> io::Result<()> {
        self.disk.sync_dir(&self.path)
    }
}

/// A directory that nobody watches.
impl From<&Path> for Dir {
    fn from(path: &Path) -> Self {
        Self {
            disk: Disk::default(),
            path: path.to_owned(),
        }
    }
}

impl DiskFile {
    /// Writes all of `bytes` at `at`. After an error any part of them may be in the file.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let path = &self.path;
        self.disk.before(&DiskOp::Write { path, at, bytes })?;
        self.file.write_all_at(bytes, at)
    }

    /// Makes what was written durable, with the file's length.
    ///
    /// # Errors
    /// Any error of the file system. What was written may then be lost though a later call succeeds.
    pub fn sync(&self) -> io::Result<()> {
        self.disk.before(&DiskOp::Sync { path: &self.path })?;
        self.file.sync_data()
    }

    /// The same, with its permissions and times.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn sync_all(&self) -> io::Result<()> {
        self.disk.before(&DiskOp::Sync { path: &self.path })?;
        self.file.sync_all()
    }

    /// Fills exactly `bytes` from `at` on.
    ///
    /// # Errors
    /// Any error of the file system; a file that ends before is one.
    pub fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    /// The file itself, for what changes no bytes.
    #[must_use]
    pub fn inner(&self) -> &File {
        &self.file
    }

    /// Sets its permissions.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn set_permissions(&self, permissions: Permissions) -> io::Result<()> {
        self.file.set_permissions(permissions)
    }

    /// The same file under the name it was given since.
    #[must_use]
    pub fn renamed(mut self, path: PathBuf) -> Self {
        self.path = path;
        self
    }
}

impl Write for DiskFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for DiskFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = self.file.seek(to)?;
        Ok(self.at)
    }
}

/// The directory that holds `path`.
#[must_use]
pub fn parent_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>);

    impl DiskWatch for Seen {
        fn before(&self, op: &DiskOp<'_>) -> io::Result<()> {
            let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
            let said = match op {
                DiskOp::MakeDir { path } => format!("make {:?}", name(path)),
                DiskOp::SyncDir { path } => format!("sync {:?}", name(path)),
                DiskOp::Create { .. }
                | DiskOp::Write { .. }
                | DiskOp::Fill { .. }
                | DiskOp::Sync { .. }
                | DiskOp::Rename { .. }
                | DiskOp::Remove { .. } => "a file".to_owned(),
            };
            self.0.lock().expect("not poisoned").push(said);
            Ok(())
        }
    }

    #[test]
    fn every_directory_is_made_durable_above_what_is_made_in_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        std::fs::create_dir(&root).expect("made");
        let seen = Arc::new(Seen::default());
        let disk = Disk::watched(Arc::clone(&seen) as Arc<dyn DiskWatch>);
        disk.make_dir(&root.join("a/b"), 0o700).expect("made");
        let above = format!(
            "sync {:?}",
            dir.path()
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
        );
        let said = std::mem::take(&mut *seen.0.lock().expect("not poisoned"));
        let expected = [
            &above[..],
            "make Some(\"a\")",
            "sync Some(\"root\")",
            "make Some(\"b\")",
            "sync Some(\"a\")",
        ];
        assert_eq!(said, expected);
        // One that a killed process made may not be durable yet.
        disk.make_dir(&root.join("a/b"), 0o700).expect("there");
        assert_eq!(*seen.0.lock().expect("not poisoned"), ["sync Some(\"a\")"]);
    }
}
