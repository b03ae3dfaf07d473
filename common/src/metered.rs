//! Budgets in bytes: a permit is taken before anything is queued, and given back by dropping it.

use crate::metrics::{Gauge, Metrics};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// A bound on the bytes that some part of the process may hold.
#[derive(Debug, Clone)]
pub struct ByteBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    held: AtomicUsize,
    released: Notify,
}

/// Bytes taken from a budget; dropping it gives them back.
#[derive(Debug)]
pub struct BytePermit {
    budget: ByteBudget,
    bytes: usize,
}

impl ByteBudget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner {
            limit,
            held: AtomicUsize::new(0),
            released: Notify::new(),
        }))
    }

    /// Shows the budget as `sluice_queue_bytes` and `sluice_queue_limit_bytes`.
    #[must_use]
    pub fn shown(self, metrics: &Metrics, queue: &str) -> Self {
        let held = self.clone();
        #[expect(clippy::cast_precision_loss, reason = "a gauge of bytes")]
        metrics.watch(Gauge::QueueBytes, &[("queue", queue)], move || held.held() as f64);
        #[expect(clippy::cast_precision_loss, reason = "a gauge of bytes")]
        let limit = self.0.limit as f64;
        metrics.watch(Gauge::QueueLimitBytes, &[("queue", queue)], move || limit);
        self
    }

    /// Takes `bytes` now, or says that there is no room. Zero bytes always fit.
    #[must_use]
    pub fn try_take(&self, bytes: usize) -> Option<BytePermit> {
        let take = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= self.0.limit);
        let taken = self
            .0
            .held
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .is_ok();
        taken.then(|| BytePermit {
            budget: self.clone(),
            bytes,
        })
    }

    /// Waits until `bytes` fit. The caller sets the deadline. More than the limit waits for ever, so
    /// callers bound what they ask for.
    pub async fn take(&self, bytes: usize) -> BytePermit {
        loop {
            let released = self.0.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            if let Some(permit) = self.try_take(bytes) {
                return permit;
            }
            released.await;
        }
    }

    /// Bytes held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Acquire)
    }

    /// The bound.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.limit
    }
}

impl BytePermit {
    /// The bytes of this permit.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes `more` bytes into this permit, or leaves it as it was.
    #[must_use]
    pub fn try_grow(&mut self, more: usize) -> bool {
        let Some(mut taken) = self.budget.try_take(more) else {
            return false;
        };
        self.bytes += std::mem::take(&mut taken.bytes);
        true
    }
}

impl Drop for BytePermit {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.0.held.fetch_sub(self.bytes, Ordering::AcqRel);
            self.budget.0.released.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_never_over_committed_and_gets_everything_back() {
        let budget = ByteBudget::new(10);
        let mut first = budget.try_take(6).expect("room");
        assert!(budget.try_take(5).is_none());
        assert!(first.try_grow(4) && !first.try_grow(1));
        assert_eq!((budget.held(), first.bytes()), (10, 10));
        drop(first);
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test]
    async fn a_waiter_goes_on_when_room_is_given_back() {
        let budget = ByteBudget::new(10);
        let held = budget.try_take(10).expect("room");
        let waiter = tokio::spawn({
            let budget = budget.clone();
            async move { budget.take(3).await.bytes() }
        });
        tokio::task::yield_now().await;
        drop(held);
        assert_eq!(waiter.await.expect("no panic"), 3);
    }
}
