//! When the noisy tenant is beside the others, and when it is away.

use std::time::Duration;
use tokio::time::Instant;

/// Where the noisy tenant's load goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// To a listener that answers and does nothing: the quiet ones have the product for themselves.
    Alone,
    /// To the product.
    Together,
}

/// A moment of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub round: usize,
    pub side: Side,
    /// What is sent now is counted: each phase begins with a while that is not.
    pub counts: bool,
}

/// Rounds of two phases each. Every other round has them the other way about, so that what changes steadily (a table
/// that grows) is no advantage of either.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    pub begun: Instant,
    /// Of each phase, what is not counted: the noisy tenant's bucket runs empty, connections are made.
    pub settle: Duration,
    /// Of each phase, what is.
    pub counted: Duration,
    pub rounds: usize,
}

impl Schedule {
    /// Where `now` is; none where all is over.
    #[must_use]
    pub fn at(&self, now: Instant) -> Option<Moment> {
        let phase = self.settle + self.counted;
        let since = now.saturating_duration_since(self.begun);
        let number = usize::try_from(since.as_nanos() / phase.as_nanos()).ok()?;
        let round = number / 2;
        let side = if number % 2 == round % 2 {
            Side::Alone
        } else {
            Side::Together
        };
        let within = since - phase.mul_f64(number as f64).min(since);
        (round < self.rounds).then_some(Moment {
            round,
            side,
            counts: within >= self.settle,
        })
    }

    /// The begin and the end of what is counted, of each phase in turn.
    pub fn windows(&self) -> impl Iterator<Item = (Instant, Instant)> {
        let (begun, settle, phase) = (self.begun, self.settle, self.settle + self.counted);
        (0..self.rounds * 2).map(move |number| {
            let from = begun + phase.mul_f64(number as f64);
            (from + settle, from + phase)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_alternate_begin_uncounted_and_change_their_order_with_each_round() {
        let begun = Instant::now();
        let schedule = Schedule {
            begun,
            settle: Duration::from_secs(1),
            counted: Duration::from_secs(4),
            rounds: 2,
        };
        let at = |ms: u64| schedule.at(begun + Duration::from_millis(ms));
        let sides = [2_000, 7_000, 12_000, 17_000].map(|ms| at(ms).unwrap().side);
        assert_eq!(sides, [Side::Alone, Side::Together, Side::Together, Side::Alone]);
        assert!(!at(5_500).unwrap().counts && at(6_500).unwrap().counts);
        assert_eq!(at(12_000).unwrap().round, 1);
        assert_eq!(at(20_000), None);
        for (number, (from, to)) in schedule.windows().enumerate() {
            assert_eq!(to - from, schedule.counted);
            let middle = schedule.at(from + (to - from) / 2).unwrap();
            assert!(middle.counts && middle.round == number / 2);
        }
    }
}
