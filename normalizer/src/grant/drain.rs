//! How fast the log is drained: what was committed, over the time in which there was something to commit.
//!
//! Commits come in lumps, one a range, so a mean over the last seconds is kept; the time since the last lump
//! counts too, so that the rate falls while nothing comes.

use super::Load;
use sluice_common::clock::UnixMs;

/// Over how much time the mean goes.
const MEMORY_S: f64 = 5.0;
/// Nothing committed for so long, with something there, is an outage and no slowness.
const STALL_MIN_S: f64 = 3.0;
/// Where ranges usually take longer, so many of them.
const STALL_GAPS: f64 = 3.0;
/// The longest time between two ranges that is taken to be usual.
const MAX_GAP_S: f64 = 20.0;

/// What ranges told that nothing but ClickHouse was waited for is the rate for so long.
const BUSY_MS: u64 = 30_000;

/// What was committed over which time; both fade.
#[derive(Debug, Default)]
struct Rate {
    load: Load,
    seconds: f64,
}

impl Rate {
    fn add(&mut self, load: Load, gap: f64) {
        let kept = (-gap / MEMORY_S).exp();
        self.load = self.load * kept + load;
        self.seconds = self.seconds * kept + gap;
    }
}

/// The meter of one log. Time goes in.
#[derive(Debug, Default)]
pub struct Drain {
    all: Rate,
    /// Of ranges that tell what can be drained, and not what was sent: see [`Drain::committed`].
    busy: Rate,
    busy_ms: Option<UnixMs>,
    /// Mean time from one range to the next.
    gap_s: f64,
    last_ms: Option<UnixMs>,
}

impl Drain {
    /// A range was committed, whose oldest record was appended at `oldest_ms`; `busy`: it, or one of another partition at
    /// that time, was full and waited, so that more would not have been drained had more been sent.
    pub fn committed(&mut self, load: Load, oldest_ms: UnixMs, busy: bool, now: UnixMs) {
        let gap = self.waiting(Some(oldest_ms), now).min(MAX_GAP_S);
        self.all.add(load, gap);
        if busy {
            if !self.is_busy(now) {
                self.busy = Rate::default();
            }
            self.busy.add(load, gap);
            self.busy_ms = Some(now);
        }
        self.gap_s += (gap - self.gap_s) / 4.0;
        self.last_ms = Some(now);
    }

    fn is_busy(&self, now: UnixMs) -> bool {
        self.busy_ms.is_some_and(|at| now.saturating_sub(at) < BUSY_MS)
    }

    /// Seconds since which there is something to commit and nothing was.
    fn waiting(&self, oldest_ms: Option<UnixMs>, now: UnixMs) -> f64 {
        let since = oldest_ms.map(|oldest| self.last_ms.unwrap_or(0).max(oldest));
        since.map_or(0.0, |since| seconds(now.saturating_sub(since)))
    }

    /// What ranges usually take.
    #[must_use]
    pub fn gap_s(&self) -> f64 {
        self.gap_s
    }

    /// What is drained a second.
    #[must_use]
    pub fn per_second(&self, oldest_ms: Option<UnixMs>, now: UnixMs) -> Load {
        // Up to the usual time the next lump is on its way.
        let late = (self.waiting(oldest_ms, now) - self.gap_s).max(0.0);
        let rate = if self.is_busy(now) { &self.busy } else { &self.all };
        rate.load * (1.0 / (rate.seconds + late).max(0.05))
    }

    /// Whether nothing is drained at all.
    #[must_use]
    pub fn is_stalled(&self, oldest_ms: Option<UnixMs>, now: UnixMs) -> bool {
        let never = self.last_ms.is_none();
        never || self.waiting(oldest_ms, now) > (self.gap_s * STALL_GAPS).max(STALL_MIN_S)
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
pub(super) fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(bytes: f64) -> Load {
        Load { bytes, rows: 1.0 }
    }

    #[test]
    fn the_rate_is_what_was_committed_while_there_was_something_to_commit() {
        let mut drain = Drain::default();
        assert!(drain.is_stalled(Some(0), 1), "nothing is known yet");
        for n in 1..=20 {
            drain.committed(load(1_000.0), 0, false, n * 500);
        }
        let rate = drain.per_second(Some(10_000), 10_000).bytes;
        assert!((rate - 2_000.0).abs() < 20.0, "{rate}");
        // Idle for an hour: no evidence of slowness.
        drain.committed(load(1_000.0), 3_609_500, false, 3_610_000);
        let rate = drain.per_second(None, 3_700_000).bytes;
        assert!((rate - 2_000.0).abs() < 100.0, "{rate}");
    }

    #[test]
    fn what_can_be_drained_is_told_by_ranges_that_waited_until_they_are_long_past() {
        let mut drain = Drain::default();
        let mut run = |from: u64, bytes, busy| {
            (1..=20).for_each(|n| drain.committed(load(bytes), 0, busy, from + n * 500));
            drain.per_second(None, from + 10_000).bytes
        };
        assert!((run(0, 100.0, false) - 200.0).abs() < 5.0, "what was sent");
        assert!((run(10_000, 4_000.0, true) - 8_000.0).abs() < 50.0);
        let light = run(20_000, 100.0, false);
        assert!((light - 8_000.0).abs() < 50.0, "it was sent less: {light}");
        run(30_000, 100.0, false);
        assert!((run(40_000, 100.0, false) - 200.0).abs() < 40.0);
        assert!(
            (run(50_000, 500.0, true) - 1_000.0).abs() < 10.0,
            "it is slower now"
        );
    }

    #[test]
    fn a_lump_that_does_not_come_lowers_the_rate_and_then_is_an_outage() {
        let mut drain = Drain::default();
        for n in 1..=20 {
            drain.committed(load(1_000.0), 0, false, n * 500);
        }
        let rate = |now| drain.per_second(Some(9_000), now).bytes;
        assert!(rate(12_000) < 0.8 * rate(10_000));
        assert!(!drain.is_stalled(Some(9_000), 12_900));
        assert!(drain.is_stalled(Some(9_000), 13_100));
        assert!(!drain.is_stalled(None, 99_000), "there is nothing to commit");
    }

    #[test]
    fn ranges_that_take_long_are_no_outage() {
        let mut drain = Drain::default();
        for n in 1..=20 {
            drain.committed(load(9.0), 0, false, n * 4_000);
        }
        assert!(!drain.is_stalled(Some(0), 80_000 + 9_000));
        assert!(drain.is_stalled(Some(0), 80_000 + 13_000));
    }
}
