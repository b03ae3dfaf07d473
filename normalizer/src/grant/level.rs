//! Max-min fairness by weight: nobody gets more than it asks for, and what it leaves goes to those who ask
//! for more.

/// What one tenant asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Claim {
    pub weight: f64,
    /// Infinite for one that would take whatever it is given.
    pub demand: f64,
}

/// What each unit of weight gets of `capacity`, so that the sum of `min(demand, weight * level)` is all of
/// it. Where less is asked for than there is, everybody may have all: it is not short.
#[must_use]
pub fn level(capacity: f64, claims: &[Claim]) -> f64 {
    let mut claims = claims.to_vec();
    claims.sort_by(|a, b| (a.demand / a.weight).total_cmp(&(b.demand / b.weight)));
    let mut left = capacity.max(0.0);
    let mut weights: f64 = claims.iter().map(|claim| claim.weight).sum();
    for claim in claims {
        // The most modest of those that are left does not get what it asks for: nor does any other.
        if claim.demand * weights >= left * claim.weight {
            return left / weights;
        }
        left -= claim.demand;
        weights -= claim.weight;
    }
    capacity.max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim() -> impl Strategy<Value = Claim> {
        let demand = prop_oneof![Just(f64::INFINITY), 0.0..1e9, 0.0..1e3];
        (1u32..=1_000, demand).prop_map(|(weight, demand)| Claim {
            weight: f64::from(weight),
            demand,
        })
    }

    proptest! {
        #[test]
        fn all_is_given_and_no_more_and_the_modest_get_what_they_ask(
            capacity in 0.0..1e9,
            claims in prop::collection::vec(claim(), 1..40),
        ) {
            let level = level(capacity, &claims);
            let given: f64 = claims.iter().map(|one| one.demand.min(one.weight * level)).sum();
            let asked: f64 = claims.iter().map(|one| one.demand).sum();
            prop_assert!((given - capacity.min(asked)).abs() <= 1e-6 * capacity + 1e-6, "{given} of {capacity}");
            let weights: f64 = claims.iter().map(|one| one.weight).sum();
            for one in &claims {
                let fair = capacity / weights * one.weight;
                prop_assert!(one.weight * level >= one.demand.min(fair) * 0.999_999, "{one:?} at {level}");
            }
        }
    }

    #[test]
    fn what_one_leaves_goes_to_those_who_ask_for_more() {
        let claim = |weight, demand| Claim { weight, demand };
        let claims = [
            claim(1.0, 10.0),
            claim(1.0, f64::INFINITY),
            claim(2.0, f64::INFINITY),
        ];
        assert!((level(100.0, &claims) - 30.0).abs() < 1e-9);
        assert!(
            (level(100.0, &claims[..1]) - 100.0).abs() < 1e-9,
            "nothing is short"
        );
        assert!(level(0.0, &claims) < 1e-9);
    }
}
