//! Whether a lane's queue is a burst or stands: a controlled delay, after CoDel (RFC 8289).
//!
//! A burst is worth waiting for, a queue that never empties only makes every answer late. While the oldest
//! request has waited less than [`QUEUE_TARGET`], or more for less than [`QUEUE_INTERVAL`], nobody is refused.
//! From then on, until the lane runs empty, whoever has waited for the target is refused: oldest first, since its
//! client is the nearest to giving up, and in order, since the target bounds what a place at the end costs.

use sluice_common::limits::{QUEUE_INTERVAL, QUEUE_TARGET};
use tokio::time::Instant;

/// What one lane remembers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Since when the oldest has waited for longer than the target.
    above_since: Option<Instant>,
    stands: bool,
}

impl Standing {
    /// Whether the oldest request, which came at `since`, is to be refused at `now`.
    pub(super) fn refuses(&mut self, since: Instant, now: Instant) -> bool {
        let late = now.saturating_duration_since(since) >= QUEUE_TARGET;
        if self.stands {
            return late;
        }
        if !late {
            self.above_since = None;
            return false;
        }
        let above_since = *self.above_since.get_or_insert(now);
        self.stands = now.saturating_duration_since(above_since) >= QUEUE_INTERVAL;
        self.stands
    }

    /// The lane ran empty.
    pub(super) fn emptied(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_is_waited_for_and_a_standing_queue_is_cut_to_the_target_until_it_empties() {
        let (mut lane, start) = (Standing::default(), Instant::now());
        assert!(
            !lane.refuses(start, start + QUEUE_TARGET),
            "late for the first time"
        );
        let just_before = start + QUEUE_TARGET + QUEUE_INTERVAL - Duration::from_millis(1);
        assert!(!lane.refuses(start, just_before), "still a burst");
        let after = start + QUEUE_TARGET + QUEUE_INTERVAL;
        assert!(lane.refuses(start, after));
        assert!(!lane.refuses(after, after), "a young one is served");
        assert!(
            lane.refuses(after, after + QUEUE_TARGET),
            "no second interval is given"
        );
        lane.emptied();
        assert!(!lane.refuses(after, after + QUEUE_TARGET));
    }

    #[test]
    fn one_moment_under_the_target_starts_the_interval_anew() {
        let (mut lane, start) = (Standing::default(), Instant::now());
        lane.refuses(start, start + QUEUE_TARGET);
        let later = start + QUEUE_INTERVAL;
        assert!(!lane.refuses(later, later));
        assert!(!lane.refuses(start, start + 2 * QUEUE_INTERVAL));
    }
}
