//! What the log's callers, its writer and its keeper share.

use super::catalogue::Catalogue;
use super::files::Files;
use super::options::{FailStop, LogOptions};
use super::queue::Queue;
use super::spare::SpareSlot;
use parking_lot::Mutex;
use sluice_common::clock::SharedClock;
use sluice_common::ids::{LogId, Offset};
use std::io;
use tokio::sync::watch;

/// The shared parts.
pub struct Shared {
    pub log: LogId,
    pub options: LogOptions,
    pub files: Files,
    pub clock: SharedClock,
    pub catalogue: Mutex<Catalogue>,
    pub queue: Queue,
    pub spare: SpareSlot,
    pub durable: watch::Sender<Offset>,
    pub on_fsync_failure: FailStop,
}

/// The log has stopped for good: a sync failed, and the hook that should end the process returned.
#[derive(Debug, Clone, Copy)]
pub struct Stopped;

impl Shared {
    /// A sync failed: ends the process (R5). Where a test's hook returns, the log takes nothing more.
    pub fn fail_stop(&self, error: &io::Error) -> Stopped {
        (self.on_fsync_failure)(error);
        self.queue.close();
        Stopped
    }
}
