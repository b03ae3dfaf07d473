//! Opening: lock, manifest, orphans, buckets.

use super::DedupOptions;
use super::error::{DedupOpenError, StorageError};
use super::manifest::{self, Manifest};
use super::sealed::{self, Sealed};
use rustix::fs::{FlockOperation, flock};
use sluice_common::disk::Dir;
use sluice_common::failpoint::{self, Safety};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

const LOCK_NAME: &str = "lock";

/// What a directory held.
pub(super) struct Recovered {
    /// Held for as long as the state is open.
    pub(super) lock: File,
    /// None where there is no state at all.
    pub(super) manifest: Option<Manifest>,
    pub(super) sealed: Vec<Sealed>,
}

/// Opens the state in `options.dir`, which is created where it is missing.
///
/// # Errors
/// [`DedupOpenError`]; nothing was changed but for orphans removed and filters rebuilt.
pub(super) fn recover(options: &DedupOptions) -> Result<Recovered, DedupOpenError> {
    let dir = &options.dir;
    let made = dir.disk.make_dir(&dir.path, 0o777);
    made.map_err(StorageError::io("create", &dir.path))?;
    let lock = lock(&dir.path)?;
    let manifest = Manifest::load(&dir.path)?;
    if let Some(manifest) = &manifest {
        check(options, manifest)?;
    }
    // R5: before anything relies on it, or is unlinked for its sake. A process that was killed may have renamed
    // it without having synced that.
    dir.sync().map_err(StorageError::io("sync", &dir.path))?;
    let buckets = manifest
        .as_ref()
        .map_or(&[][..], |manifest| manifest.buckets.as_slice());
    remove_orphans(dir, &buckets.iter().map(|bucket| bucket.id).collect())?;
    let opened: Result<Vec<Sealed>, StorageError> = buckets
        .iter()
        .map(|bucket| Sealed::check_and_open(dir, bucket.clone()))
        .collect();
    Ok(Recovered {
        lock,
        sealed: opened?,
        manifest,
    })
}

fn lock(dir: &Path) -> Result<File, DedupOpenError> {
    let path = dir.join(LOCK_NAME);
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&path);
    let file = file.map_err(StorageError::io("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) if !failpoint::is_on(Safety::Lock) => Ok(file),
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => Err(DedupOpenError::Locked(dir.to_owned())),
        Err(error) => Err(StorageError::io("lock", &path)(error.into()).into()),
    }
}

fn check(options: &DedupOptions, manifest: &Manifest) -> Result<(), DedupOpenError> {
    if manifest.log != options.log {
        return Err(DedupOpenError::OtherLog {
            dir: options.dir.path.clone(),
            expected: options.log,
            found: manifest.log,
        });
    }
    if manifest.secret_check != options.secret_check {
        return Err(DedupOpenError::OtherSecret(options.dir.path.clone()));
    }
    Ok(())
}

/// Unlinks bucket files that the manifest does not name, and unfinished ones. Other names are not ours.
fn remove_orphans(dir: &Dir, named: &HashSet<u64>) -> Result<(), StorageError> {
    let list = || -> io::Result<()> {
        for entry in fs::read_dir(&dir.path)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let orphan = match sealed::id_of(name) {
                Some(id) => !named.contains(&id) || name.ends_with(".new"),
                None => name == manifest::NEW_NAME,
            };
            if orphan {
                dir.disk.remove(&dir.join(name))?;
            }
        }
        Ok(())
    };
    list().map_err(StorageError::io("remove orphans in", &dir.path))
}
