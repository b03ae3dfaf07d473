//! What the log is told when it is opened.

use super::errors::OpenError;
use super::files::Volume;
use super::segment::SEGMENT_HEADER_BYTES;
use sluice_common::disk::Disk;
use sluice_common::ids::Offset;
use sluice_common::limits::{
    LOG_QUEUE_BYTES, LOG_RESERVE_MAX, LOG_RESERVE_MIN, SEGMENT_BYTES, TAIL_CACHE_BYTES,
};
use sluice_common::record::MAX_FRAME_BYTES;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A log has at least about this many segments' worth of `max_bytes`, so that deletion has a fine grain.
const SEGMENTS_PER_LOG: u64 = 8;
const SMALLEST_DEFAULT_SEGMENT: u64 = (MAX_FRAME_BYTES + SEGMENT_HEADER_BYTES) as u64;

/// Where the log lies and what it may use.
#[derive(Debug, Clone)]
pub struct LogOptions {
    pub dir: PathBuf,
    /// Bytes of frames at or above the committed offset at which the log stops taking more; over it,
    /// stored records are deleted first. Files may exceed it by two segments and one batch, and by the stored
    /// records that dedup has not sealed: half of it, and what comes until they are.
    pub max_bytes: u64,
    /// How long stored records are kept for replay, where space allows.
    pub retain_ms: u64,
    /// Bytes of the volume left to others; `None`: 5 % of it, within the limits of `common::limits`.
    pub reserve_bytes: Option<u64>,
    /// Bytes of a segment file; an eighth of `max_bytes` (but room for one record) where that is less.
    pub segment_bytes: u64,
    /// Newest records kept in memory for the reader that follows the tail.
    pub tail_cache_bytes: usize,
    /// Bytes of frames that may wait for the writer or be in its hands.
    pub queue_bytes: usize,
    /// Every offset below it is known, from the progress store, to have been durable.
    pub known_durable: Offset,
}

impl LogOptions {
    /// Options with every size at its limit's default.
    #[must_use]
    pub fn new(dir: PathBuf, max_bytes: u64, retain_ms: u64) -> Self {
        Self {
            dir,
            max_bytes,
            retain_ms,
            reserve_bytes: None,
            segment_bytes: SEGMENT_BYTES as u64,
            tail_cache_bytes: TAIL_CACHE_BYTES,
            queue_bytes: LOG_QUEUE_BYTES,
            known_durable: 0,
        }
    }

    pub(super) fn checked(mut self) -> Result<Self, OpenError> {
        if self.max_bytes == 0 {
            return Err(OpenError::Options("log.max_bytes is 0"));
        }
        let fine_grain = (self.max_bytes / SEGMENTS_PER_LOG).max(SMALLEST_DEFAULT_SEGMENT);
        self.segment_bytes = self.segment_bytes.min(fine_grain).next_multiple_of(8);
        if self.segment_bytes < 2 * SEGMENT_HEADER_BYTES as u64 {
            return Err(OpenError::Options("a segment must hold more than its header"));
        }
        Ok(self)
    }

    /// The reserve in bytes on `volume`.
    pub(super) fn reserve(&self, volume: Volume) -> u64 {
        self.reserve_bytes
            .unwrap_or((volume.total / 20).clamp(LOG_RESERVE_MIN, LOG_RESERVE_MAX))
    }
}

/// What happens when a sync has failed; it should not return (R5).
pub type FailStop = Arc<dyn Fn(&io::Error) + Send + Sync>;

/// Seams for tests; [`Default`] is what production uses.
#[derive(Clone)]
pub struct Hooks {
    /// Tests watch every operation that changes the disk, and refuse some.
    pub disk: Disk,
    /// Called once a sync has failed. Should it return, the log stays closed until it is opened anew.
    pub on_fsync_failure: FailStop,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            disk: Disk::default(),
            on_fsync_failure: Arc::new(abort_after),
        }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

/// After a failed sync the kernel may have dropped the dirty pages and call the next sync clean, so
/// nothing this process believes of the log is certain. A new process reads what the disk has.
fn abort_after(error: &io::Error) {
    tracing::error!(%error, "a sync of the log failed: ending the process, nothing of that group is acknowledged");
    eprintln!(
        "sluice: a sync of the log failed ({error}): ending the process, nothing of that group is acknowledged"
    );
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_log_has_small_segments_and_a_large_one_the_default() {
        let segment = |max_bytes| {
            LogOptions::new("x".into(), max_bytes, 0)
                .checked()
                .unwrap()
                .segment_bytes
        };
        assert_eq!(segment(8 << 30), SEGMENT_BYTES as u64);
        assert_eq!(segment(64 << 20), 8 << 20);
        assert_eq!(segment(1), SMALLEST_DEFAULT_SEGMENT.next_multiple_of(8));
    }

    #[test]
    fn the_default_reserve_is_five_percent_within_its_bounds() {
        let options = LogOptions::new("x".into(), 1, 0);
        let reserve = |total| options.reserve(Volume { total, free: 0 });
        assert_eq!(reserve(1 << 30), LOG_RESERVE_MIN);
        assert_eq!(reserve(40 << 30), 2 << 30);
        assert_eq!(reserve(1 << 42), LOG_RESERVE_MAX);
    }
}
