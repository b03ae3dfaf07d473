//! What intake and the pump see of a log, whichever it is.

use super::{AppendError, FullReason, ReadError};
use crate::intake::Spread;
use futures_util::future::BoxFuture;
use sluice_common::clock::UnixMs;
use sluice_common::ids::{LogId, Name, Offset, TenantId};
use sluice_common::record::{Record, RecordContent};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A log as intake sees it: what is appended, where it goes, and how much of it is not stored yet.
pub trait Log: Send + Sync {
    /// The log's id (R1).
    fn id(&self) -> LogId;

    /// The secret of the key hashes (R3).
    fn hash_secret(&self) -> [u8; 32];

    /// Which partition takes which events (R4).
    fn spread(&self) -> Spread;

    /// Appends records, each to its partition; resolves once it is known of each whether it is durable. Once this
    /// future was polled, that goes on even if it is dropped.
    fn append(&self, records: Vec<(u16, RecordContent)>) -> BoxFuture<'_, Vec<Result<(), AppendError>>>;

    /// How long a group of records keeps the next one back, which grows meanwhile.
    fn group_patience(&self) -> Duration;

    /// How much waits, of all partitions together; and whether what a tenant sends is taken, or, for nobody in particular,
    /// what anybody does.
    fn standing(&self, tenant: Option<&TenantId>) -> Standing;

    /// Whether others say that no more of a dataset's rows may be set aside.
    fn is_full(&self, dataset: &str) -> bool;

    /// Whether others say that rows of a table are set aside for a promotion.
    fn is_held(&self, _: &Name) -> bool {
        false
    }

    /// The backlog of each partition, as far as it is known.
    fn backlogs(&self) -> Vec<Backlog>;

    /// Bytes of this machine's disk.
    fn disk_bytes(&self) -> u64;

    /// Has stored records be kept from these offsets on, by partition: somebody will read them again. A log that keeps
    /// what it keeps by its age alone has nothing to do.
    fn pin(&self, _: &BTreeMap<u16, Offset>) {}

    /// Takes no more, and finishes what waits. Blocks.
    fn close(&self);
}

/// How a log stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Bytes of frames that are not stored yet.
    pub backlog_bytes: u64,
    /// Bytes of frames that wait to be appended.
    pub queued_bytes: u64,
    /// Append time of the oldest record that is not stored yet.
    pub oldest_backlog_append_ms: Option<UnixMs>,
    /// Why nothing is taken now.
    pub closed: Option<Closed>,
}

/// Why a log takes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    #[error("the log is full: {0}")]
    Full(FullReason),
    #[error("what the log has not stored yet has waited for half of the time that its topic keeps it")]
    Age,
    #[error("the brokers that hold the log do not say how much of it is not yet stored")]
    Unknown,
    #[error("the log's topic is not what it has to be: a line of the normalizer's log says why")]
    Unfit,
}

/// What of one partition is not stored yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    pub partition: u16,
    pub bytes: u64,
    /// Records; none where the log does not count them.
    pub records: Option<u64>,
    pub oldest_append_ms: Option<UnixMs>,
}

/// One partition of a log, as those see it that work behind it.
pub trait Partition: Send + Sync {
    /// The log's id (R1).
    fn log(&self) -> LogId;

    /// Which of the log's partitions it is.
    fn number(&self) -> u16;

    /// The end of what is durable and at hand: every offset below can be read.
    fn durable_end(&self) -> watch::Receiver<Offset>;

    /// The end of the partition, as far as it is known: more may be durable than is at hand. Where it begins is known
    /// anew, too. Blocks.
    ///
    /// # Errors
    /// [`ReadError`].
    fn end(&self) -> Result<Offset, ReadError> {
        Ok(*self.durable_end().borrow())
    }

    /// The oldest offset that can be read.
    fn first_offset(&self) -> Offset;

    /// Records from `from` on, at least one where there is one; `max_bytes` of frames at most but for the first. Blocks.
    ///
    /// # Errors
    /// [`ReadError`]; nothing is ever passed over.
    fn read(&self, from: Offset, max_bytes: usize) -> Result<Vec<Record>, ReadError>;

    /// Whether what comes next can be read.
    ///
    /// # Errors
    /// [`ReadError`]: nothing more will be at hand until it is seen to.
    fn usable(&self) -> Result<(), ReadError> {
        Ok(())
    }

    /// An offset at or below the first record appended at `ms` or later. Blocks.
    ///
    /// # Errors
    /// [`ReadError`].
    fn appended_since(&self, ms: UnixMs) -> Result<Offset, ReadError>;

    /// Says that all below `committed` is stored and all below `sealed` is in sealed buckets.
    fn set_progress(&self, committed: Offset, sealed: Offset);

    /// Whether what is stored should be sealed now, so that it can be deleted.
    fn wants_seal(&self) -> bool;

    /// The same partition for another reader, whose place is its own.
    fn beside(&self) -> Arc<dyn Partition>;
}
