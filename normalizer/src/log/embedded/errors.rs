//! How the log's operations fail, one enum an operation.

use super::manifest::BadManifest;
use super::segment::BadHeader;
use sluice_common::ids::{LogId, Offset};
use sluice_common::record::BadRecord;
use std::io;
use std::path::PathBuf;

/// Why the log cannot be opened. Nothing was changed, but where a torn tail was already removed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "{} is in use by process {holder}: one process owns a log; stop that one, or give this one a log.dir of its own",
        dir.display()
    )]
    Locked { dir: PathBuf, holder: String },
    #[error(
        "{} holds segments but no manifest: its identity is lost, and reading it under a new one would double events; \
         restore the file `manifest` from where the segments came from, or move the directory away to begin a new log",
        dir.display()
    )]
    NoManifest { dir: PathBuf },
    #[error("the manifest in {} cannot be used: {reason}; restore it from a copy", dir.display())]
    Manifest { dir: PathBuf, reason: BadManifest },
    #[error("the log in {} has {found} partitions, and an embedded log has one: it is of another kind", dir.display())]
    Partitions { dir: PathBuf, found: u16 },
    #[error("the log is damaged: {0}")]
    Corrupt(#[from] Damage),
    #[error(
        "the log ends at offset {end}, but progress says that all below {known_durable} was durable: \
         acknowledged records are missing; restore the log's directory and the progress store together"
    )]
    Behind { end: Offset, known_durable: Offset },
    #[error("{} has {free} bytes free and a new log needs {needed}, log.reserve included: free space or lower log.reserve", dir.display())]
    NoSpace { dir: PathBuf, free: u64, needed: u64 },
    #[error("the options of the log contradict themselves: {0}")]
    Options(&'static str),
    #[error("failed to {doing} in {}: {source}", dir.display())]
    Io {
        doing: &'static str,
        dir: PathBuf,
        source: io::Error,
    },
}

/// Where a log is damaged, and how. It is never skipped: what follows may depend on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "segment {segment}, byte {position}, offset {offset}: {kind}; do not delete it: restore this file from a copy"
)]
pub struct Damage {
    /// The segment's file name.
    pub segment: String,
    /// Byte of the file at which the damage was met.
    pub position: u64,
    /// Offset of the record that should be there.
    pub offset: Offset,
    pub kind: DamageKind,
}

/// The kinds of damage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DamageKind {
    #[error("a record that was durable cannot be read: {0}")]
    Record(BadRecord),
    #[error("offset {found} of log {log} lies here")]
    OtherRecord { log: LogId, found: Offset },
    #[error("{0}")]
    Header(BadHeader),
    #[error("the segment's header names log {log}, base {base}")]
    OtherSegment { log: LogId, base: Offset },
    #[error("the segment before it, which begins at offset {base}, is missing")]
    MissingSegment { base: Offset },
    #[error("no segment is there, though the log has a manifest")]
    NoSegments,
    #[error("the segment ends here though the next one begins later")]
    Short,
}

/// Why a batch was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    #[error("the log is full: {0}")]
    Full(FullReason),
    #[error("too much is waiting for the log's writer: try again shortly")]
    Busy,
    #[error("the log is closed")]
    Closed,
    #[error("a record of the batch breaks the limits of a record: {0}")]
    Invalid(&'static str),
    #[error("the batch has {bytes} bytes and the log's queue holds {limit}: cut it")]
    TooLarge { bytes: usize, limit: usize },
    #[error("writing failed, and nothing of the batch stayed in the log: {0}")]
    WriteFailed(String),
    #[error("the log stopped before it could say whether the batch is durable")]
    Unknown,
}

/// Why a log takes nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FullReason {
    #[error("what is not yet stored has reached log.max_bytes")]
    Watermark,
    #[error("the volume has no more than log.reserve left for others")]
    VolumeReserve,
}

impl AppendError {
    /// Whether nothing of the batch is in the log or will be: all but [`Self::Unknown`].
    #[must_use]
    pub fn is_definite(&self) -> bool {
        match self {
            Self::Full(_)
            | Self::Busy
            | Self::Closed
            | Self::Invalid(_)
            | Self::TooLarge { .. }
            | Self::WriteFailed(_) => true,
            Self::Unknown => false,
        }
    }
}

/// Why records cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the log now begins at offset {first}: what was before it has been deleted")]
    OutOfReach { first: Offset },
    #[error("the log is damaged: {0}")]
    Corrupt(#[from] Damage),
    #[error("failed to read segment {segment}: {source}")]
    Io { segment: String, source: io::Error },
    #[error("the brokers give nothing now: {0}")]
    Unavailable(String),
    #[error(
        "record {offset} of partition {partition} is none of this log's: {reason}; whatever wrote it must not write there"
    )]
    Foreign {
        partition: u16,
        offset: Offset,
        reason: String,
    },
}
