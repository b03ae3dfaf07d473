//! How much may be under way to somebody who does not say how much he can take: additive increase,
//! multiplicative decrease.
//!
//! It is lowered at most once in the time that an answer takes: what was sent before the last decrease was
//! sent under the old number, and its bad news is old. Pure: time is passed in.

use tokio::time::Instant;

/// A number between 1 and a bound that follows what was seen.
#[derive(Debug, Clone)]
pub struct Aimd {
    limit: f64,
    most: f64,
    lowered_at: Option<Instant>,
}

impl Aimd {
    /// Begins at `first`, never above `most`; both at least 1.
    #[must_use]
    pub fn new(first: f64, most: f64) -> Self {
        Self {
            limit: first,
            most,
            lowered_at: None,
        }
    }

    /// What may be under way.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 1 to the bound that the caller gave"
    )]
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// The same, with the part of the next one that has been earned.
    #[must_use]
    pub fn exact(&self) -> f64 {
        self.limit
    }

    /// One more.
    pub fn raise(&mut self) {
        self.raise_by(1.0);
    }

    /// One answer's part of one more for each round of answers.
    pub fn raise_by_round(&mut self) {
        self.raise_by(1.0 / self.limit);
    }

    fn raise_by(&mut self, step: f64) {
        self.limit = (self.limit + step).min(self.most);
    }

    /// To `factor` of what it is, never below `floor`, because of something that was sent at `sent`.
    pub fn lower(&mut self, factor: f64, floor: f64, sent: Instant, now: Instant) {
        if self.lowered_at.is_some_and(|at| sent < at) {
            return;
        }
        self.lowered_at = Some(now);
        self.limit = (self.limit * factor).max(floor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn it_opens_by_one_a_round_up_to_its_bound() {
        let mut aimd = Aimd::new(4.0, 5.5);
        for _ in 0..4 {
            aimd.raise_by_round();
        }
        assert_eq!(
            aimd.limit(),
            4,
            "a little less than one: the round grows as it opens"
        );
        aimd.raise_by_round();
        assert_eq!(aimd.limit(), 5);
        aimd.raise();
        assert!((aimd.exact() - 5.5).abs() < 1e-9, "{}", aimd.exact());
    }

    #[test]
    fn what_was_sent_before_a_decrease_does_not_lower_it_again() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut aimd = Aimd::new(16.0, 64.0);
        aimd.lower(0.5, 1.0, at(0), at(10));
        aimd.lower(0.5, 1.0, at(9), at(11));
        assert_eq!(aimd.limit(), 8, "both were under way under the old number");
        aimd.lower(0.5, 6.0, at(10), at(20));
        assert_eq!(aimd.limit(), 6, "the floor");
    }
}
