//! Putting a whole file in the place of another: a reader, and a crash, see the old one or the new one.
//!
//! # Write
//! The bytes go to a fresh file beside it, which is made anew with its permissions, synced, and renamed;
//! then the directory is synced. Until then nobody can say which of the two a power loss leaves.
//!
//! # Recovery
//! What a crash left of the fresh file is removed by the next write to the same place.

use crate::disk::{Disk, parent_of};
use std::fs::Permissions;
use std::io::{self, Write as _};
use std::path::Path;

/// For files that hold secrets.
pub const OWNER_ONLY: u32 = 0o600;

/// Replaces `path` by a file of these bytes and permissions, by way of `fresh`, which is in the same directory.
///
/// # Errors
/// The old file is there still, unless it was the directory that could not be synced.
pub fn replace(fresh: &Path, path: &Path, bytes: &[u8], permissions: Permissions) -> io::Result<()> {
    replace_on(&Disk::default(), (fresh, path), bytes, permissions)
}

/// The same on a disk that may be watched.
///
/// # Errors
/// As [`replace`].
pub fn replace_on(
    disk: &Disk,
    (fresh, path): (&Path, &Path),
    bytes: &[u8],
    permissions: Permissions,
) -> io::Result<()> {
    rename(disk, (fresh, path), bytes, permissions)?;
    disk.sync_dir(parent_of(path))
}

/// The same without the directory's sync: for who must tell the two failures apart.
///
/// # Errors
/// The old file is there still; the fresh one is gone, so that a full volume gets its room back.
pub fn rename(
    disk: &Disk,
    (fresh, path): (&Path, &Path),
    bytes: &[u8],
    permissions: Permissions,
) -> io::Result<()> {
    let renamed = write(disk, fresh, bytes, permissions).and_then(|()| disk.rename(fresh, path));
    if renamed.is_err() {
        // It may never have been made.
        disk.remove(fresh).ok();
    }
    renamed
}

fn write(disk: &Disk, fresh: &Path, bytes: &[u8], permissions: Permissions) -> io::Result<()> {
    // Anew, so that nobody holds it open and its permissions are ours from the first byte on.
    match disk.remove(fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = disk.create_new(fresh, OWNER_ONLY)?;
    file.write_all(bytes)?;
    file.set_permissions(permissions)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_replaced_whole_with_its_permissions_whatever_a_crash_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let (fresh, path) = (dir.path().join("a.new"), dir.path().join("a"));
        std::fs::write(&fresh, "left by a crash, and longer than what comes").expect("written");
        for text in ["first", "second"] {
            replace(&fresh, &path, text.as_bytes(), Permissions::from_mode(OWNER_ONLY)).expect("replaced");
            assert_eq!(std::fs::read_to_string(&path).expect("read"), text);
        }
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, OWNER_ONLY);
        assert!(!fresh.exists());
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_no_other() {
        let dir = tempfile::tempdir().expect("a directory");
        let (fresh, path) = (dir.path().join("a.new"), dir.path().join("a"));
        std::fs::create_dir(&path).expect("made");
        std::fs::write(path.join("inside"), "old").expect("written");
        let replaced = replace(&fresh, &path, b"new", Permissions::from_mode(OWNER_ONLY));
        assert!(replaced.is_err() && path.join("inside").exists() && !fresh.exists());
    }
}
