//! How fast the normalizers take bytes: what a true `Retry-After` is made of.

use std::time::Duration;
use tokio::time::Instant;

/// Over how long it is measured.
const SPAN: Duration = Duration::from_millis(500);
/// What is not known is told as this.
const UNKNOWN: Duration = Duration::from_secs(1);
/// The longest time that is told.
const MOST: Duration = Duration::from_secs(60);

/// Bytes taken lately. Pure: time is passed in.
#[derive(Debug, Default)]
pub(super) struct Pace {
    since: Option<Instant>,
    bytes: u64,
    /// Bytes a second, smoothed over some four spans.
    rate: Option<f64>,
}

impl Pace {
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(super) fn add(&mut self, bytes: u64, now: Instant) {
        let since = *self.since.get_or_insert(now);
        self.bytes += bytes;
        let span = now.saturating_duration_since(since);
        if span < SPAN {
            return;
        }
        let rate = self.bytes as f64 / span.as_secs_f64();
        self.rate = Some(self.rate.map_or(rate, |before| before * 0.75 + rate * 0.25));
        (self.since, self.bytes) = (Some(now), 0);
    }

    /// How long `bytes` take at this pace.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(super) fn time_for(&self, bytes: u64) -> Duration {
        let Some(rate) = self.rate else { return UNKNOWN };
        let seconds = bytes as f64 / rate.max(1.0);
        Duration::from_secs_f64(seconds.min(MOST.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_before_a_request_is_told_in_time_and_never_as_more_than_a_minute() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert_eq!(pace.time_for(1), UNKNOWN);
        for ms in 0..=1_000 {
            pace.add(1_000, start + Duration::from_millis(ms));
        }
        let time = pace.time_for(5_000_000).as_secs_f64();
        assert!((4.5..5.5).contains(&time), "{time}");
        assert_eq!(pace.time_for(u64::MAX), MOST);
    }
}
