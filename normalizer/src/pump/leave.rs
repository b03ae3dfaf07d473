//! A partition that others share: what they are told of it, and how its pump leaves it.

use super::range::ClosedRange;
use super::{Leave, Pump};
use crate::progress::Progress;
use crate::progress::store::Store;
use crate::runtime::timeout;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long a task that was told to end is waited for: it may be writing.
const ABORTED_DEADLINE: Duration = Duration::from_secs(8);

impl Pump {
    /// Whether others go on with its partition.
    pub(super) fn leaves(&self) -> bool {
        self.leave == Leave::Soon && self.stop.is_cancelled()
    }

    /// The progress as it stands, with what those want to know who share the log.
    pub(super) fn for_others(&self, store: &Store, closed: &ClosedRange) -> Progress {
        let state = store.state().clone();
        if !store.is_shared() {
            return state;
        }
        let last = closed.records.last().map(|one| one.record.place.append_ms);
        let outbox = &self.publisher.outbox;
        let shelves = [&self.driver.shelf, &outbox.events, &outbox.letters];
        Progress {
            committed_ms: last.or(state.committed_ms),
            window_ms: state.window_ms.max(Some(self.taken.max_window_ms)),
            full: shelves.iter().flat_map(|shelf| shelf.full()).collect(),
            ..state
        }
    }
}

/// Waits for an aborted task, as long as what it does may take.
pub(super) async fn end<T>(task: JoinHandle<T>) {
    if !task.is_finished() {
        // Whatever it came to, it is not asked any more.
        timeout(ABORTED_DEADLINE, task).await.ok();
    }
}
