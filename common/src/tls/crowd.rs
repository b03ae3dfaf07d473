//! Handshakes under way, bounded. A full crowd does not turn the newcomer away: it lets the oldest go,
//! for an honest handshake takes milliseconds, and one that has lasted seconds is idle.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The handshakes of one listener. Cloning shares them.
#[derive(Debug, Clone)]
pub(super) struct Crowd {
    inner: Arc<Mutex<Inner>>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    under_way: BTreeMap<u64, CancellationToken>,
}

/// One handshake's place; dropped, it is free.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Crowd,
    number: u64,
    gone: CancellationToken,
}

impl Crowd {
    pub(super) fn of(limit: usize) -> Self {
        Self {
            inner: Arc::default(),
            limit,
        }
    }

    /// Takes a place, if need be the oldest one's.
    pub(super) fn enter(&self) -> Place {
        let mut inner = self.inner.lock();
        if inner.under_way.len() >= self.limit
            && let Some((_, oldest)) = inner.under_way.pop_first()
        {
            oldest.cancel();
        }
        let (number, gone) = (inner.next, CancellationToken::new());
        inner.next += 1;
        inner.under_way.insert(number, gone.clone());
        drop(inner);
        Place {
            crowd: self.clone(),
            number,
            gone,
        }
    }
}

impl Place {
    /// Ends when another needed this place.
    pub(super) async fn taken(&self) {
        self.gone.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.inner.lock().under_way.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_crowd_lets_its_oldest_go_and_an_ended_handshake_frees_its_place() {
        let crowd = Crowd::of(2);
        let (first, second) = (crowd.enter(), crowd.enter());
        assert!(!first.gone.is_cancelled());
        let third = crowd.enter();
        assert!(first.gone.is_cancelled() && !second.gone.is_cancelled() && !third.gone.is_cancelled());
        drop(first);
        drop(second);
        let fourth = crowd.enter();
        assert!(!third.gone.is_cancelled() && !fourth.gone.is_cancelled());
        assert_eq!(crowd.inner.lock().under_way.len(), 2);
    }
}
