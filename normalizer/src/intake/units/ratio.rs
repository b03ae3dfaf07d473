//! Exact fractions, as far as 128 bits carry them.

/// A fraction in lowest terms; the denominator is over 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ratio {
    pub numerator: i128,
    pub denominator: i128,
}

impl Ratio {
    pub const ONE: Self = Self::whole(1);
    pub const ZERO: Self = Self::whole(0);

    pub const fn whole(number: i128) -> Self {
        Self {
            numerator: number,
            denominator: 1,
        }
    }

    /// `None` where the denominator is 0.
    pub fn new(numerator: i128, denominator: i128) -> Option<Self> {
        let common = gcd(numerator.unsigned_abs(), denominator.unsigned_abs());
        let common = i128::try_from(common).ok()?;
        if denominator == 0 {
            return None;
        }
        Some(Self {
            numerator: (numerator / common).checked_mul(denominator.signum())?,
            denominator: (denominator / common).checked_abs()?,
        })
    }

    /// `None` where 128 bits do not hold it, as in all that follows.
    pub fn times(self, other: Self) -> Option<Self> {
        // Reduced crosswise first, so that only what cannot be held overflows.
        let (a, b) = (
            Self::new(self.numerator, other.denominator)?,
            Self::new(other.numerator, self.denominator)?,
        );
        Self::new(
            a.numerator.checked_mul(b.numerator)?,
            a.denominator.checked_mul(b.denominator)?,
        )
    }

    pub fn over(self, other: Self) -> Option<Self> {
        self.times(Self::new(other.denominator, other.numerator)?)
    }

    pub fn minus(self, other: Self) -> Option<Self> {
        let left = self.numerator.checked_mul(other.denominator)?;
        let right = other.numerator.checked_mul(self.denominator)?;
        Self::new(
            left.checked_sub(right)?,
            self.denominator.checked_mul(other.denominator)?,
        )
    }

    pub fn power(self, exponent: i8) -> Option<Self> {
        let mut power = Self::ONE;
        for _ in 0..exponent.unsigned_abs() {
            power = power.times(self)?;
        }
        if exponent < 0 {
            Self::ONE.over(power)
        } else {
            Some(power)
        }
    }
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a.max(1) } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_stay_in_lowest_terms_and_say_when_they_cannot_be_held() {
        let half = Ratio::new(-2, -4).expect("a fraction");
        assert_eq!((half.numerator, half.denominator), (1, 2));
        assert_eq!(half.times(Ratio::whole(2)), Some(Ratio::ONE));
        assert_eq!(half.minus(half), Some(Ratio::ZERO));
        assert_eq!(half.power(-3), Some(Ratio::whole(8)));
        assert_eq!(Ratio::ONE.over(Ratio::ZERO), None);
        assert_eq!(Ratio::new(1, 0), None);
        assert_eq!(Ratio::whole(i128::MAX).times(Ratio::whole(2)), None);
        let big = Ratio::new(i128::MAX, 2).expect("a fraction");
        assert_eq!(big.times(Ratio::whole(2)), Some(Ratio::whole(i128::MAX)));
        assert_eq!(Ratio::whole(i128::MIN).power(2), None);
    }
}
