//! A histogram of durations in fixed memory: buckets of 1/32 of a power of two, so within 3 %.

use std::time::Duration;

const STEPS: u64 = 32;
const BUCKETS: usize = 40 * STEPS as usize;

/// How often something took how long.
#[derive(Debug, Clone)]
pub struct Latency(Vec<u64>);

impl Default for Latency {
    fn default() -> Self {
        Self(vec![0; BUCKETS])
    }
}

impl Latency {
    /// Counts one.
    pub fn record(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.0[bucket(micros)] += 1;
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, n)| *sum += n);
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The value that `percent` of all do not exceed, in ms; none of none.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub fn percentile_ms(&self, percent: u64) -> Option<f64> {
        let rank = (self.count() * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let at = self.0.iter().position(|n| {
            seen += n;
            seen >= rank
        })?;
        Some(upper_bound(at as u64) as f64 / 1_000.0)
    }
}

fn bucket(micros: u64) -> usize {
    let micros = micros.max(STEPS);
    let power = u64::from(micros.ilog2());
    let step = (micros >> (power - u64::from(STEPS.ilog2()))) - STEPS;
    let at = (power - u64::from(STEPS.ilog2())) * STEPS + step;
    usize::try_from(at).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

fn upper_bound(bucket: u64) -> u64 {
    (STEPS + bucket % STEPS + 1) << (bucket / STEPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_few_percent() {
        let mut latency = Latency::default();
        (1..=10_000).for_each(|n| latency.record(Duration::from_micros(n * 10)));
        let p50 = latency.percentile_ms(50).unwrap();
        let p99 = latency.percentile_ms(99).unwrap();
        assert!(
            (48.5..52.0).contains(&p50) && (96.0..103.0).contains(&p99),
            "{p50} {p99}"
        );
        assert_eq!(Latency::default().percentile_ms(50), None);
    }

    #[test]
    fn the_longest_time_has_a_bucket() {
        let mut latency = Latency::default();
        latency.record(Duration::MAX);
        latency.record(Duration::ZERO);
        assert_eq!(latency.count(), 2);
    }
}
