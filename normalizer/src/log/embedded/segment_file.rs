//! Making a segment's file: zeros ahead of time, header and name when it is needed.

use super::files::{Files, LogFile};
use super::segment::{SegmentHeader, segment_name};
use sluice_common::failpoint::{self, Point};
use std::io;

/// The file of a segment that has no name yet; one found at open is a leftover.
pub const SPARE: &str = "spare";
/// Zeros are synced in pieces of this size, so that no commit's sync has to wait behind all of them.
const ZERO_PIECE: u64 = 4 << 20;

/// At which step giving a segment its name failed.
#[derive(Debug)]
pub enum CommissionError {
    /// Nothing was made durable: the file can be thrown away.
    Write(io::Error),
    /// What the disk holds is unknown.
    Sync(io::Error),
}

/// A file of `bytes` written zeros, synced: a later sync of what is written over them is as quick as the
/// disk, because no block has to be found or marked as written.
///
/// # Errors
/// Any error of the file system; the file is removed, if that can be done.
pub fn prepare(files: &Files, bytes: u64) -> io::Result<LogFile> {
    failpoint::hit(Point::SpareWrite)?;
    let file = files.create(SPARE)?;
    match fill(&file, bytes) {
        Ok(()) => Ok(file),
        Err(error) => {
            discard(files);
            Err(error)
        }
    }
}

fn fill(file: &LogFile, bytes: u64) -> io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let to = bytes.min(at + ZERO_PIECE);
        file.zero(at, to)?;
        file.sync()?;
        at = to;
    }
    Ok(())
}

/// Removes the spare; it holds nothing, so a failure is only said.
pub fn discard(files: &Files) {
    match files.remove(SPARE) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, "failed to remove a segment that was not needed"),
    }
}

/// Writes the header into the spare, syncs it, and only then gives it its name, durably.
///
/// # Errors
/// [`CommissionError`] by what may be on the disk.
pub fn commission(files: &Files, spare: LogFile, header: &SegmentHeader) -> Result<LogFile, CommissionError> {
    spare
        .write_at(&header.encode(), 0)
        .map_err(CommissionError::Write)?;
    spare.sync().map_err(CommissionError::Sync)?;
    let name = segment_name(header.base);
    failpoint::hit(Point::SegmentRename)
        .and_then(|()| files.rename(SPARE, &name))
        .map_err(CommissionError::Write)?;
    failpoint::hit(Point::SegmentRenamed)
        .and_then(|()| files.sync_dir())
        .map_err(CommissionError::Sync)?;
    Ok(spare.renamed(&name))
}
