//! The configs that were in force, kept in `DIR/config-history/`, so that an operator can see what was
//! applied when, and go back.
//!
//! # Constraints
//! Several processes on one data directory may note the same config at the same moment; it is kept once.
//! A config may hold secrets: files are 0600, the directory 0700. At most [`KEPT`] are kept.
//!
//! # Bytes
//! One file a config, `NNNNNN-MILLISECONDS-SHA256.yaml`: its number from 1, when it came into force (Unix),
//! the whole hash of its text, and as content the text itself, byte for byte.
//!
//! # Write
//! Under the flock of `lock`, so that two writers never take one number: where the newest one has the same
//! hash, nothing is written; else to `new`, synced, renamed to its name, and the directory is synced.
//!
//! # Read
//! A file whose text does not have the hash of its name is damaged, and is told to be.
//!
//! # Delete
//! The oldest ones beyond [`KEPT`], after a new one is there.
//!
//! # Recovery
//! None is needed: what a crash left in `new` is overwritten by the next write, and was never listed.

use crate::clock::UnixMs;
use crate::disk::Disk;
use crate::limits::MAX_CONFIG_BYTES;
use crate::replace::{OWNER_ONLY, replace};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Configs that are kept.
pub const KEPT: usize = 50;

/// The history of one data directory.
#[derive(Debug, Clone)]
pub struct History {
    dir: PathBuf,
}

/// One config that was in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// From 1, growing.
    pub number: u64,
    pub applied_ms: UnixMs,
    /// Of its text, in hex.
    pub sha256: String,
}

/// Why the history cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("{path}: {error}: check that this user may read and write there")]
    Io { path: PathBuf, error: std::io::Error },
    #[error("there is no config {number} in {dir}: `ingestctl config history` lists those that are kept")]
    Missing { number: u64, dir: PathBuf },
    #[error("{path} is damaged: its text is not the one that was kept; take another number")]
    Damaged { path: PathBuf },
}

impl History {
    /// The history below a data directory, which need not be there.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        Self {
            dir: data_dir.join("config-history"),
        }
    }

    /// All kept configs, the oldest first.
    ///
    /// # Errors
    /// [`HistoryError::Io`].
    pub fn list(&self) -> Result<Vec<Kept>, HistoryError> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| self.failed(&self.dir, error))?,
        };
        let mut kept = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| self.failed(&self.dir, error))?;
            kept.extend(entry.file_name().to_str().and_then(Kept::from_name));
        }
        kept.sort_by_key(|one| one.number);
        Ok(kept)
    }

    /// The text of config `number`.
    ///
    /// # Errors
    /// [`HistoryError`]: not kept, not readable, damaged.
    pub fn text(&self, number: u64) -> Result<String, HistoryError> {
        let found = self.list()?.into_iter().find(|one| one.number == number);
        let kept = found.ok_or_else(|| HistoryError::Missing {
            number,
            dir: self.dir.clone(),
        })?;
        let path = self.dir.join(kept.name());
        let mut text = String::new();
        let file = File::open(&path).map_err(|error| self.failed(&path, error))?;
        let read = file.take(MAX_CONFIG_BYTES as u64).read_to_string(&mut text);
        read.map_err(|error| self.failed(&path, error))?;
        if hash(&text) != kept.sha256 {
            return Err(HistoryError::Damaged { path });
        }
        Ok(text)
    }

    /// Keeps `text` as in force since `now`; what is the newest already is not kept twice.
    ///
    /// # Errors
    /// [`HistoryError::Io`]; nothing is listed of it then.
    pub fn keep(&self, text: &str, now: UnixMs) -> Result<Kept, HistoryError> {
        let made = Disk::default().make_dir(&self.dir, 0o700);
        made.map_err(|error| self.failed(&self.dir, error))?;
        let path = self.dir.join("lock");
        let lock = private(&path).map_err(|error| self.failed(&path, error))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| self.failed(&path, error.into()))?;
        let all = self.list()?;
        let sha256 = hash(text);
        if let Some(newest) = all.last().filter(|newest| newest.sha256 == sha256) {
            return Ok(newest.clone());
        }
        let kept = Kept {
            number: all.last().map_or(1, |newest| newest.number + 1),
            applied_ms: now,
            sha256,
        };
        let path = self.dir.join(kept.name());
        self.write(&path, text)
            .map_err(|error| self.failed(&path, error))?;
        let surplus = (all.len() + 1).saturating_sub(KEPT);
        for old in &all[..surplus] {
            let path = self.dir.join(old.name());
            std::fs::remove_file(&path).map_err(|error| self.failed(&path, error))?;
        }
        Ok(kept)
    }

    fn write(&self, path: &Path, text: &str) -> std::io::Result<()> {
        let owner_only = Permissions::from_mode(OWNER_ONLY);
        replace(&self.dir.join("new"), path, text.as_bytes(), owner_only)
    }

    fn failed(&self, path: &Path, error: std::io::Error) -> HistoryError {
        HistoryError::Io {
            path: path.to_owned(),
            error,
        }
    }
}

impl Kept {
    fn name(&self) -> String {
        format!("{:06}-{}-{}.yaml", self.number, self.applied_ms, self.sha256)
    }

    fn from_name(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(".yaml")?.split('-');
        let (number, ms, sha256) = (parts.next()?, parts.next()?, parts.next()?);
        let whole = sha256.len() == 64 && parts.next().is_none();
        whole.then_some(Self {
            number: number.parse().ok()?,
            applied_ms: ms.parse().ok()?,
            sha256: sha256.to_owned(),
        })
    }
}

/// Puts `text` in the place of the file at `path` at once, with the same permissions. A link is followed,
/// so that what it points to is replaced and not the link.
///
/// # Errors
/// [`HistoryError::Io`]; the old file stays then.
pub fn replace_file(path: &Path, text: &str) -> Result<(), HistoryError> {
    let failed = |error| HistoryError::Io {
        path: path.to_owned(),
        error,
    };
    let real = path.canonicalize().map_err(failed)?;
    let dir = real.parent().unwrap_or(Path::new("/")).to_owned();
    let name = real.file_name().unwrap_or_default().to_string_lossy();
    let new = dir.join(format!(".{name}.new"));
    let permissions = std::fs::metadata(&real).map_err(failed)?.permissions();
    replace(&new, &real, text.as_bytes(), permissions).map_err(failed)
}

/// A file for this user only; made where it is missing, kept as it is where it is there.
fn private(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn hash(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(history: &History) -> Vec<String> {
        let kept = history.list().expect("listed");
        kept.iter()
            .map(|one| history.text(one.number).expect("whole"))
            .collect()
    }

    #[test]
    fn what_was_in_force_is_listed_once_and_read_back_byte_for_byte() {
        let dir = tempfile::tempdir().expect("a directory");
        let history = History::of(dir.path());
        assert_eq!(history.list().expect("listed"), []);
        assert_eq!(history.keep("a: 1\n", 1_000).expect("kept").number, 1);
        assert_eq!(
            history.keep("a: 1\n", 2_000).expect("kept").number,
            1,
            "the newest already"
        );
        assert_eq!(history.keep("b", 3_000).expect("kept").number, 2);
        assert_eq!(
            history.keep("a: 1\n", 4_000).expect("kept").number,
            3,
            "in force again"
        );
        assert_eq!(texts(&history), ["a: 1\n", "b", "a: 1\n"]);
        let listed = history.list().expect("listed");
        assert_eq!(listed[1].applied_ms, 3_000);
        let file = dir.path().join("config-history").join(listed[1].name());
        let mode = std::fs::metadata(&file).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(file, "c").expect("written");
        assert!(matches!(history.text(2), Err(HistoryError::Damaged { .. })));
        assert!(matches!(
            history.text(9),
            Err(HistoryError::Missing { number: 9, .. })
        ));
    }

    #[test]
    fn the_oldest_go_and_writers_at_once_take_no_number_twice() {
        let dir = tempfile::tempdir().expect("a directory");
        let history = History::of(dir.path());
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let history = &history;
                scope.spawn(move || {
                    for n in 0..20 {
                        history.keep(&format!("{writer} {n}"), n).expect("kept");
                    }
                });
            }
        });
        let numbers: Vec<u64> = history
            .list()
            .expect("listed")
            .iter()
            .map(|one| one.number)
            .collect();
        assert_eq!(numbers, (31..=80).collect::<Vec<u64>>());
    }

    #[test]
    fn a_file_is_replaced_with_its_permissions_and_behind_its_link() {
        let dir = tempfile::tempdir().expect("a directory");
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::write(&real, "old").expect("written");
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o640)).expect("set");
        std::os::unix::fs::symlink("real", &link).expect("linked");
        replace_file(&link, "new").expect("replaced");
        assert_eq!(std::fs::read_to_string(&real).expect("there"), "new");
        assert_eq!(
            std::fs::metadata(&real).expect("there").permissions().mode() & 0o777,
            0o640
        );
        assert!(std::fs::symlink_metadata(&link).expect("there").is_symlink());
        assert!(replace_file(&dir.path().join("nothing"), "x").is_err());
    }
}
