//! When a call that failed may be made again: after its back-off with full jitter, and within a budget that
//! the range in hand and all tables that were set aside share.
//!
//! A retry costs a token. Calls that went well give a tenth of one each, and time gives some too, so that a
//! server that comes back is found; so a server in trouble meets few retries, however much waits for it.

use crate::runtime::sleep;
use parking_lot::Mutex;
use sluice_common::clock::{SharedClock, UnixMs};
use sluice_common::ids::RequestId;
use sluice_common::limits::{RETRIES_AT_ONCE, RETRY_FLOOR, RETRY_PER_SUCCESS};
use sluice_common::metrics::{Counter, Metrics};
use std::sync::Arc;
use std::time::Duration;

/// The budget, as a pure function of time.
#[derive(Debug)]
struct Budget {
    tokens: f64,
    at_ms: UnixMs,
}

impl Budget {
    fn refill(&mut self, now: UnixMs) {
        let passed = Duration::from_millis(now.saturating_sub(self.at_ms));
        self.at_ms = now;
        self.tokens = (self.tokens + passed.div_duration_f64(RETRY_FLOOR)).min(RETRIES_AT_ONCE);
    }

    fn succeeded(&mut self) {
        self.tokens = (self.tokens + RETRY_PER_SUCCESS).min(RETRIES_AT_ONCE);
    }

    /// Takes a token, in advance where there is none: how long until it is there.
    fn take(&mut self, now: UnixMs) -> Duration {
        self.refill(now);
        self.tokens -= 1.0;
        RETRY_FLOOR.mul_f64((-self.tokens).max(0.0))
    }
}

/// The budget of one partition. Cloning shares it.
#[derive(Clone)]
pub struct Retries {
    budget: Arc<Mutex<Budget>>,
    clock: SharedClock,
    metrics: Metrics,
    dice: Dice,
}

/// Random numbers of 32 bits; a simulation has loaded ones.
pub type Dice = Arc<dyn Fn() -> u32 + Send + Sync>;

/// Fair dice.
#[must_use]
pub fn dice() -> Dice {
    Arc::new(|| u32::try_from(RequestId::random().0 >> 96).unwrap_or(u32::MAX))
}

impl Retries {
    /// A full budget.
    #[must_use]
    pub fn new(clock: SharedClock, metrics: Metrics, dice: Dice) -> Self {
        metrics.add(Counter::Retries, 0, &[]);
        Self {
            budget: Arc::new(Mutex::new(Budget {
                tokens: RETRIES_AT_ONCE,
                at_ms: clock.now_ms(),
            })),
            clock,
            metrics,
            dice,
        }
    }

    /// A call went well.
    pub fn succeeded(&self) {
        self.budget.lock().succeeded();
    }

    /// A random part of `delay`, so that those who failed together do not come again together.
    #[must_use]
    pub fn jittered(&self, delay: Duration) -> Duration {
        delay.mul_f64(f64::from((self.dice)()) / f64::from(u32::MAX))
    }

    /// Waits until a call may be made again, which was to wait for up to `delay`.
    pub async fn wait(&self, delay: Duration) {
        self.metrics.add(Counter::Retries, 1, &[]);
        let budget = self.budget.lock().take(self.clock.now_ms());
        sleep(self.jittered(delay).max(budget)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_bounded_by_successes_and_by_time() {
        let mut budget = Budget {
            tokens: RETRIES_AT_ONCE,
            at_ms: 0,
        };
        let mut now = 0;
        let mut retries = 0;
        while now < 60_000 {
            now += u64::try_from(budget.take(now).as_millis()).expect("short").max(1);
            retries += 1;
        }
        let most = RETRIES_AT_ONCE + 60.0 / RETRY_FLOOR.as_secs_f64() + 2.0;
        assert!(f64::from(retries) <= most, "{retries} of {most}");
        assert!(f64::from(retries) > most / 2.0, "{retries}");
        // The debt of the last one is paid first; then ten successes are a retry.
        budget.refill(now);
        budget.tokens = 0.0;
        (0..30).for_each(|_| budget.succeeded());
        assert!((0..2).all(|_| budget.take(now).is_zero()));
        budget.take(now);
        assert!(!budget.take(now).is_zero());
    }

    #[test]
    fn a_jittered_wait_is_never_longer_than_it_was() {
        let whole = Duration::from_secs(10);
        let clock = Arc::new(sluice_common::clock::ManualClock::at(0));
        let retries = Retries::new(clock, Metrics::detached(), dice());
        let waits: Vec<Duration> = (0..1_000).map(|_| retries.jittered(whole)).collect();
        assert!(waits.iter().all(|wait| *wait <= whole));
        let mean = waits.iter().sum::<Duration>() / 1_000;
        assert!(mean > whole * 4 / 10 && mean < whole * 6 / 10, "{mean:?}");
    }
}
