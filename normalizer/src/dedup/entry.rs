//! What the state remembers of a key.

use sluice_common::clock::UnixMs;

/// One key with its latest copy, as buckets are written and merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: u128,
    /// Append time of the latest copy, kept or dropped.
    pub(super) at_ms: UnixMs,
    /// Content of the first copy; 0 where the identity has no fingerprint.
    pub(super) fingerprint: u32,
}

/// The latest copy of a key that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) at_ms: UnixMs,
    pub(super) fingerprint: u32,
}
