//! What can go wrong in the dedup state, one enum an operation.

use sluice_common::ids::{LogId, Offset};
use std::io;
use std::path::{Path, PathBuf};

/// Why the state in a directory cannot be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum DedupOpenError {
    #[error("another process holds the dedup state in {}: stop it, or give this one a directory of its own", .0.display())]
    Locked(PathBuf),
    #[error(
        "the dedup state in {} belongs to log {found}, not to log {expected}: restore the two together, or move \
         the directory away so that the state is rebuilt from the log", .dir.display()
    )]
    OtherLog {
        dir: PathBuf,
        expected: LogId,
        found: LogId,
    },
    #[error(
        "the dedup state in {} was made with another hash secret: start with the secret that was made with the \
         log; another one would let every repeat through", .0.display()
    )]
    OtherSecret(PathBuf),
    #[error(
        "the dedup state cannot be read ({0}): repair the volume, or move the dedup directory away so that the \
         state is rebuilt from the log"
    )]
    Storage(#[from] StorageError),
}

/// Why a record was not decided, or progress not taken.
///
/// [`DedupError::Stalled`] changed nothing and passes; after any other the partition must stop and
/// the state be opened anew, because a record may be half applied.
#[derive(Debug, thiserror::Error)]
pub enum DedupError {
    #[error(
        "dedup waits: {frozen} frozen buckets are not sealed yet ({why}); call committed() until one is, then \
         decide the record again"
    )]
    Stalled { frozen: usize, why: String },
    #[error("record {found} came where {expected} was due: records must come in offset order, without gaps")]
    Gap { expected: Offset, found: Offset },
    #[error("a record of log {found} came to the dedup state of log {expected}")]
    OtherLog { expected: LogId, found: LogId },
    #[error("the dedup state failed ({0}): stop the partition; a restart repeats from the log")]
    Storage(#[from] StorageError),
}

impl DedupError {
    /// Whether the same call can succeed later, nothing having been changed.
    #[must_use]
    pub fn is_stall(&self) -> bool {
        matches!(self, Self::Stalled { .. })
    }
}

/// Why a file of the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("could not {doing} {}: {source}", .path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("could not {doing} {}: {source}", .path.display())]
    Lmdb {
        doing: &'static str,
        path: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{} is damaged: {what}", .path.display())]
    Damaged { path: PathBuf, what: String },
    /// The owner shuts down; the unfinished files are orphans.
    #[error("the work was cancelled")]
    Cancelled,
    /// The background thread could not be started or died.
    #[error("the background thread failed: {0}")]
    Thread(String),
    /// The manifest was replaced, but whether that survives a power loss is unknown.
    #[error("could not sync the directory {} after the manifest was replaced: {source}", .path.display())]
    UnknownSwap { path: PathBuf, source: io::Error },
}

impl StorageError {
    /// An I/O error with what was being done to which path.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            doing,
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            what: what.into(),
        }
    }
}
