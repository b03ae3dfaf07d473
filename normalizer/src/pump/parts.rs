//! What a pump stands on, and how it ends.

use super::batching::SharedSettings;
use super::drive::DriveError;
use super::pacing::Pace;
use super::recover::RecoverError;
use super::retries::Dice;
use crate::dedup::{Dedup, DedupError};
use crate::grant::Grant;
use crate::log::{Partition, ReadError};
use crate::parked::file::FileError;
use crate::parked::shelf::Shelf;
use crate::progress::store::{Store, StoreError};
use crate::publish::Outbox;
use sluice_common::clock::SharedClock;
use sluice_common::metrics::Metrics;
use sluice_common::shutdown::Stop;
use sluice_common::wire::sink::SinkRequest;
use sluice_common::wire::transport::Seam;
use std::sync::Arc;
use std::time::Duration;

/// What a pump does that is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// It settles everything that is durable: nobody appends any more.
    Drained,
    /// It settles the range under way, if that does not take long: others go on with its partition.
    Soon,
}

/// What the pump stands on.
pub struct Parts {
    pub log: Arc<dyn Partition>,
    pub dedup: Dedup,
    pub store: Store,
    pub shelf: Shelf,
    pub outbox: Outbox,
    pub grant: Grant,
    pub sink: Seam<SinkRequest>,
    pub metrics: Metrics,
    pub clock: SharedClock,
    pub stop: Stop,
    pub leave: Leave,
    pub accept_window_loss: bool,
    pub settings: SharedSettings,
    /// Of all partitions that are worked on here.
    pub pace: Pace,
    /// `clickhouse.park_after`.
    pub park_after: Duration,
    /// For waits.
    pub dice: Dice,
}

/// Why a partition stops. The process ends; nothing was lost, and nothing goes on in doubt.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    #[error("reading the log: {0}")]
    Log(#[from] ReadError),
    #[error("deciding duplicates: {0}")]
    Dedup(#[from] DedupError),
    #[error("keeping progress: {0}")]
    Store(#[from] StoreError),
    #[error("settling: {0}")]
    Drive(#[from] DriveError),
    #[error("rows that were set aside: {0}")]
    Parked(#[from] FileError),
    #[error("the settling task failed: {0}")]
    Settling(#[from] tokio::task::JoinError),
    #[error("told to stop while recovering")]
    Stopped,
    #[error(
        "the group will not have this normalizer any more: {0}; has another one the same `log.instance`?"
    )]
    Lost(String),
    #[error("the task that builds records failed: {0}")]
    Builder(tokio::task::JoinError),
    #[error("{0}")]
    Recover(#[from] RecoverError),
}
