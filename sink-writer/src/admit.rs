//! The byte budget of all calls at once: over it a call is refused before anything is begun.

use sluice_common::limits::SINK_CALL_BYTES;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a refused caller is told to wait.
pub const RETRY_AFTER_MS: u64 = 250;

/// Byte permits; cloning shares them.
#[derive(Debug, Clone)]
pub struct Budget {
    bytes: Arc<Semaphore>,
    limit: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(SINK_CALL_BYTES)
    }
}

impl Budget {
    /// A budget of `limit` bytes, at most 4 GiB.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(limit)),
            limit,
        }
    }

    /// Takes `bytes` until the permit is dropped; `None` where they are not free now. A call larger
    /// than the whole budget takes all of it.
    #[must_use]
    pub fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes.clamp(1, self.limit)).ok()?;
        self.bytes.clone().try_acquire_many_owned(bytes).ok()
    }

    /// Bytes that calls hold now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.limit.saturating_sub(self.bytes.available_permits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back_and_no_more_is_given_than_there_is() {
        let budget = Budget::new(100);
        let first = budget.take(60).expect("free");
        assert!(budget.take(60).is_none());
        assert_eq!(budget.held(), 60);
        drop(first);
        assert!(
            budget.take(1_000).is_some(),
            "a call over the whole budget runs alone"
        );
        assert_eq!(budget.held(), 0);
    }
}
