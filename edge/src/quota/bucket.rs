//! One bucket of tokens: governor's GCRA, over a store of our own, so that a charge can be taken back.
//!
//! **Units.** governor counts time in nanoseconds. Here its clock counts tokens instead: one tick is what the
//! rate gives for one token, so a rate of 64 MiB a second is as exact as one of 5 events, and what is left is a
//! whole number.
//!
//! **Taking back.** A charge moves the time at which the bucket is full again (GCRA's TAT) by its size; it has
//! the piece of that axis between the old TAT and the new one, and while that piece lies ahead of now, taking
//! the charge back gives all of it. What lies behind now would have been refilled by then without the charge
//! too, the bucket would have been full, and giving it would let more through than `burst + rate × t`. Whatever
//! was taken back since lowers the piece by as much: that is never too much, and too little only where the
//! charges of requests that are under way together come to half of the burst.

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use std::num::NonZeroU32;
use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A charge, for taking it back.
#[derive(Debug)]
pub struct Receipt {
    amount: u64,
    /// The TAT right after it.
    until: u64,
    /// What had been taken back of the bucket by then.
    returned: u64,
}

/// There is not as much in the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lacking;

/// A bucket that `rate` tokens a second fill up to `burst`.
#[derive(Debug)]
pub struct Bucket {
    rate: u64,
    burst: u32,
    /// The uptime at which it was made.
    origin: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    limiter: RateLimiter<NotKeyed, Tat, Now, NoOpMiddleware<Tokens>>,
    tat: Tat,
    now: Now,
    /// All that was ever taken back.
    returned: u64,
    used: Used,
}

impl Bucket {
    /// A full one. Both are at least 1.
    #[must_use]
    pub fn full(rate: u64, burst: u32, now: Duration) -> Self {
        let (tat, clock) = (Tat::default(), Now::default());
        let size = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let tick = Quota::with_period(Duration::from_nanos(1)).expect("a nanosecond is not nothing");
        let limiter = RateLimiter::new(tick.allow_burst(size), tat.clone(), clock.clone());
        let inner = Inner {
            limiter,
            tat,
            now: clock,
            returned: 0,
            used: Used::default(),
        };
        Self {
            rate: rate.max(1),
            burst: size.get(),
            origin: now,
            inner: Mutex::new(inner),
        }
    }

    /// The same with another size: a half full one stays half full.
    #[must_use]
    pub fn resized(&self, rate: u64, burst: u32, now: Duration) -> Self {
        let lacks = u128::from(u64::from(self.burst) - self.left(now));
        let lacks = (lacks * u128::from(burst)).div_ceil(u128::from(self.burst));
        let new = Self::full(rate, burst, now);
        let inner = new.inner.lock();
        inner.tat.set(u64::try_from(lacks).unwrap_or(u64::MAX));
        drop(inner);
        new
    }

    /// Takes `amount`.
    ///
    /// # Errors
    /// [`Lacking`]: nothing was taken.
    pub fn charge(&self, amount: u64, now: Duration) -> Result<Receipt, Lacking> {
        let cells = u32::try_from(amount).map_err(|_| Lacking)?;
        let mut inner = self.inner.lock();
        if let Some(cells) = NonZeroU32::new(cells) {
            inner.now.set(self.tokens(now));
            let checked = inner.limiter.check_n(cells);
            checked.map_err(|_| Lacking)?.map_err(|_| Lacking)?;
        }
        inner.used.add(amount, now);
        Ok(Receipt {
            amount,
            until: inner.tat.get(),
            returned: inner.returned,
        })
    }

    /// Takes a charge back, as far as that is not more than would be there without it.
    pub fn give_back(&self, receipt: &Receipt, now: Duration) {
        let mut inner = self.inner.lock();
        let since = inner.returned - receipt.returned;
        let ahead = receipt
            .until
            .saturating_sub(since)
            .saturating_sub(self.tokens(now));
        let amount = receipt.amount.min(ahead);
        inner.tat.set(inner.tat.get().saturating_sub(amount));
        inner.returned += amount;
        inner.used.take(receipt.amount);
    }

    /// What is in it.
    #[must_use]
    pub fn left(&self, now: Duration) -> u64 {
        let lacks = self.inner.lock().tat.get().saturating_sub(self.tokens(now));
        u64::from(self.burst).saturating_sub(lacks)
    }

    /// How long until `amount` is in it, if nothing is taken; as if `amount` were all of it where it is more.
    #[must_use]
    pub fn wait(&self, amount: u64, now: Duration) -> Duration {
        let burst = u64::from(self.burst);
        let tat = self.inner.lock().tat.get();
        let tick = (tat + amount.min(burst)).saturating_sub(burst);
        let nanos = (u128::from(tick) * NANOS).div_ceil(u128::from(self.rate));
        let at = self.origin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        at.saturating_sub(now)
    }

    /// Most that it holds.
    #[must_use]
    pub fn burst(&self) -> u64 {
        self.burst.into()
    }

    /// What it is given a second.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// What was taken lately, as a part of what the rate gives: may pass 1 in a burst.
    #[must_use]
    pub fn used_ratio(&self, now: Duration) -> f64 {
        let used = self.inner.lock().used.at(now);
        used / (self.rate as f64 * USED_OVER.as_secs_f64())
    }

    /// Tokens that it was given since it was made.
    fn tokens(&self, now: Duration) -> u64 {
        let nanos = now.saturating_sub(self.origin).as_nanos();
        u64::try_from(nanos * u128::from(self.rate) / NANOS).unwrap_or(u64::MAX)
    }
}

const NANOS: u128 = 1_000_000_000;

/// The TAT, in tokens.
#[derive(Debug, Clone, Default)]
struct Tat(Arc<AtomicU64>);

/// What time governor thinks it is, in tokens; set before each question. Starts at 0, as governor's own start.
#[derive(Debug, Clone, Default)]
struct Now(Arc<AtomicU64>);

// Both are used under the bucket's lock, which orders them.
impl Tat {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, tat: u64) {
        self.0.store(tat, Ordering::Relaxed);
    }
}

impl Now {
    fn set(&self, tokens: u64) {
        self.0.store(tokens, Ordering::Relaxed);
    }
}

impl StateStore for Tat {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (done, tat) = f(Some(Nanos::from(self.get())))?;
        self.set(tat.as_u64());
        Ok(done)
    }
}

/// A moment as the number of tokens given until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Tokens(u64);

impl Add<Nanos> for Tokens {
    type Output = Self;

    fn add(self, more: Nanos) -> Self {
        Self(self.0.saturating_add(more.as_u64()))
    }
}

impl Reference for Tokens {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.saturating_sub(earlier.0).into()
    }

    fn saturating_sub(&self, less: Nanos) -> Self {
        Self(self.0.saturating_sub(less.as_u64()))
    }
}

impl Clock for Now {
    type Instant = Tokens;

    fn now(&self) -> Tokens {
        Tokens(self.0.load(Ordering::Relaxed))
    }
}

/// Over which time what was taken is evened out.
const USED_OVER: Duration = Duration::from_secs(10);

/// What was taken lately: a sum that loses about two thirds in [`USED_OVER`].
#[derive(Debug, Default)]
struct Used {
    sum: f64,
    at: Duration,
}

impl Used {
    fn at(&self, now: Duration) -> f64 {
        let age = now.saturating_sub(self.at).as_secs_f64();
        self.sum * (-age / USED_OVER.as_secs_f64()).exp()
    }

    fn add(&mut self, amount: u64, now: Duration) {
        self.sum = self.at(now) + amount as f64;
        self.at = self.at.max(now);
    }

    fn take(&mut self, amount: u64) {
        self.sum = (self.sum - amount as f64).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate_exactly() {
        for rate in [1, 3, 7, 1_000, 67_108_864, 1_000_000_007] {
            let burst = u32::try_from(2 * rate).unwrap();
            let bucket = Bucket::full(rate, burst, SECOND);
            bucket.charge(2 * rate, SECOND).unwrap();
            assert_eq!(bucket.charge(1, SECOND).unwrap_err(), Lacking);
            assert_eq!(bucket.left(SECOND * 2), rate);
            bucket.charge(rate, SECOND * 2).unwrap();
            // Nothing is lost to rounding in a year.
            let later = SECOND * 2 + SECOND * 31_536_000;
            assert_eq!(bucket.left(later), 2 * rate);
        }
    }

    #[test]
    fn what_is_taken_back_at_once_was_never_taken() {
        let bucket = Bucket::full(10, 20, Duration::ZERO);
        bucket.charge(15, Duration::ZERO).unwrap();
        let receipt = bucket.charge(5, Duration::ZERO).unwrap();
        bucket.charge(1, Duration::ZERO).unwrap_err();
        bucket.give_back(&receipt, SECOND / 2);
        assert_eq!(bucket.left(SECOND / 2), 10);
        assert_eq!(bucket.left(SECOND), 15);
    }

    #[test]
    fn what_was_refilled_anyway_is_not_given_a_second_time() {
        let bucket = Bucket::full(10, 20, Duration::ZERO);
        let receipt = bucket.charge(20, Duration::ZERO).unwrap();
        bucket.charge(20, SECOND * 2).unwrap();
        bucket.give_back(&receipt, SECOND * 2);
        assert_eq!(bucket.left(SECOND * 2), 0);
    }

    #[test]
    fn another_size_keeps_the_part_that_is_left() {
        let bucket = Bucket::full(10, 20, Duration::ZERO);
        bucket.charge(15, Duration::ZERO).unwrap();
        for (rate, burst, left) in [(1_000, 2_000, 500), (1, 2, 0), (10, 20, 5)] {
            let resized = bucket.resized(rate, burst, Duration::ZERO);
            assert_eq!(resized.left(Duration::ZERO), left);
        }
    }

    #[test]
    fn the_used_ratio_is_that_of_the_last_seconds() {
        let bucket = Bucket::full(10, 20, Duration::ZERO);
        for second in 0..60 {
            bucket.charge(5, SECOND * second).unwrap();
        }
        let ratio = bucket.used_ratio(SECOND * 60);
        assert!((ratio - 0.5).abs() < 0.05, "{ratio}");
        assert!(bucket.used_ratio(SECOND * 120) < 0.01);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Charge(u64),
        GiveBack(usize),
        Keep(usize),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..30u64).prop_map(Step::Charge),
            2 => any::<usize>().prop_map(Step::GiveBack),
            1 => any::<usize>().prop_map(Step::Keep),
            2 => (1..3_000u64).prop_map(Step::Wait),
        ]
    }

    /// What was taken and kept, each with its moment.
    fn run(steps: &[Step], rate: u64, burst: u32) -> Vec<(Duration, u64)> {
        let bucket = Bucket::full(rate, burst, Duration::ZERO);
        let (mut now, mut open, mut kept) = (Duration::ZERO, Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Charge(amount) => {
                    let wait = bucket.wait(*amount, now);
                    let charged = bucket.charge(*amount, now);
                    assert_eq!(charged.is_ok(), wait.is_zero() && *amount <= u64::from(burst));
                    open.extend(charged.map(|receipt| (now, receipt)));
                }
                Step::GiveBack(at) if !open.is_empty() => {
                    let (_, receipt) = open.swap_remove(at % open.len());
                    bucket.give_back(&receipt, now);
                }
                Step::Keep(at) if !open.is_empty() => {
                    let (at, receipt) = open.swap_remove(at % open.len());
                    kept.push((at, receipt.amount));
                }
                Step::Wait(ms) => now += Duration::from_millis(*ms),
                Step::GiveBack(_) | Step::Keep(_) => {}
            }
            assert!(bucket.left(now) <= u64::from(burst));
        }
        kept.extend(open.iter().map(|(at, receipt)| (*at, receipt.amount)));
        kept.sort_unstable();
        kept
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn never_more_is_admitted_than_burst_and_rate_times_time_whatever_is_taken_back(
            steps in prop::collection::vec(step(), 1..60), rate in 1..20u64, burst in 1..60u32,
        ) {
            let kept = run(&steps, rate, burst);
            for (first, (from, _)) in kept.iter().enumerate() {
                let mut sum = 0;
                for (to, amount) in &kept[first..] {
                    sum += amount;
                    let most = u128::from(burst) + (u128::from(rate) * (*to - *from).as_nanos()).div_ceil(NANOS);
                    prop_assert!(u128::from(sum) <= most, "{sum} of {most} between {from:?} and {to:?}");
                }
            }
        }

        #[test]
        fn a_charge_that_is_taken_back_before_the_bucket_could_refill_leaves_no_trace(
            before in 0..40u64, charged in 1..40u64, after in 0..40u64, ms in 0..2_000u64,
        ) {
            let burst = u32::try_from(before + charged + after + 1).unwrap();
            let (with, without) = (Bucket::full(5, burst, Duration::ZERO), Bucket::full(5, burst, Duration::ZERO));
            let now = Duration::from_millis(ms);
            with.charge(before, Duration::ZERO).unwrap();
            without.charge(before, Duration::ZERO).unwrap();
            let receipt = with.charge(charged, Duration::ZERO).unwrap();
            with.charge(after, Duration::ZERO).unwrap();
            without.charge(after, Duration::ZERO).unwrap();
            with.give_back(&receipt, now);
            if 5 * ms <= 1_000 * before {
                prop_assert_eq!(with.left(now), without.left(now));
            }
            prop_assert!(with.left(now) <= without.left(now));
        }

        #[test]
        fn who_waits_as_long_as_it_is_told_is_admitted_and_not_a_moment_before(
            rate in 1..5_000_000_000u64, seconds in 1..5u64, taken in 0.0..1.0f64, wanted in 0.0..1.0f64, at in 0..10_000_000_000u64,
        ) {
            let burst = u32::try_from((rate * seconds).min(u64::from(u32::MAX))).unwrap();
            let start = Duration::from_nanos(at);
            let bucket = Bucket::full(rate, burst, start);
            let part = |part: f64| ((f64::from(burst) * part) as u64).clamp(1, u64::from(burst));
            bucket.charge(part(taken), start).unwrap();
            let wanted = part(wanted);
            let wait = bucket.wait(wanted, start);
            if !wait.is_zero() {
                let early = start + wait - Duration::from_nanos(1);
                prop_assert!(bucket.charge(wanted, early).is_err());
            }
            prop_assert!(bucket.charge(wanted, start + wait).is_ok());
        }
    }
}
