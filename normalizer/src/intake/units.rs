//! Unit conversions as exact fractions of whole numbers, by their UCUM (and so OpenTelemetry) names.
//!
//! A whole number times a factor is computed without floating point; a result that is not whole is
//! rounded half away from zero, so `1 bit` in bytes is 0 and `4 bit` is 1. A number with a fraction,
//! and any number of a float field, is multiplied in double precision.

/// What a unit measures. Units of one dimension convert into each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dimension {
    Data,
    Time,
}

impl Dimension {
    fn name(self) -> &'static str {
        match self {
            Self::Data => "an amount of data",
            Self::Time => "a time",
        }
    }
}

struct Known {
    name: &'static str,
    dimension: Dimension,
    /// In bits, or in nanoseconds.
    size: u64,
}

const fn data(name: &'static str, bits: u64) -> Known {
    Known {
        name,
        dimension: Dimension::Data,
        size: bits,
    }
}

const fn time(name: &'static str, nanoseconds: u64) -> Known {
    Known {
        name,
        dimension: Dimension::Time,
        size: nanoseconds,
    }
}

const UNITS: &[Known] = &[
    data("bit", 1),
    data("kbit", 1_000),
    data("Mbit", 1_000_000),
    data("Gbit", 1_000_000_000),
    data("By", 8),
    data("kBy", 8_000),
    data("MBy", 8_000_000),
    data("GBy", 8_000_000_000),
    data("TBy", 8_000_000_000_000),
    data("KiBy", 8 << 10),
    data("MiBy", 8 << 20),
    data("GiBy", 8 << 30),
    data("TiBy", 8 << 40),
    time("ns", 1),
    time("us", 1_000),
    time("ms", 1_000_000),
    time("s", 1_000_000_000),
    time("min", 60_000_000_000),
    time("h", 3_600_000_000_000),
    time("d", 86_400_000_000_000),
];

/// A conversion: multiply by `numerator / denominator`, in lowest terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Factor {
    numerator: u64,
    denominator: u64,
}

impl Factor {
    /// The conversion of one unit into another.
    ///
    /// # Errors
    /// A sentence: a unit that is not known, or two that measure different things.
    pub fn between(from: &str, to: &str) -> Result<Self, String> {
        let (from, to) = (known(from)?, known(to)?);
        if from.dimension != to.dimension {
            return Err(format!(
                "{} is {} and {} is {}: one cannot be converted into the other",
                from.name,
                from.dimension.name(),
                to.name,
                to.dimension.name()
            ));
        }
        let common = gcd(from.size, to.size);
        Ok(Self {
            numerator: from.size / common,
            denominator: to.size / common,
        })
    }

    /// A whole number in the new unit, rounded half away from zero. `value` is at most 64 bits wide,
    /// and no factor is wider than 50, so nothing overflows.
    #[must_use]
    pub fn of_whole(self, value: i128) -> i128 {
        let product = value * i128::from(self.numerator);
        let denominator = i128::from(self.denominator);
        if denominator == 1 {
            return product;
        }
        let (whole, rest) = (product / denominator, product % denominator);
        whole
            + if rest.abs() * 2 >= denominator {
                product.signum()
            } else {
                0
            }
    }

    /// A number in the new unit.
    #[must_use]
    pub fn of_float(self, value: f64) -> f64 {
        value * self.numerator as f64 / self.denominator as f64
    }
}

fn known(name: &str) -> Result<&'static Known, String> {
    UNITS.iter().find(|unit| unit.name == name).ok_or_else(|| {
        let names: Vec<_> = UNITS.iter().map(|unit| unit.name).collect();
        format!("unit {name:?} is not known; known are {}", names.join(", "))
    })
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(from: &str, to: &str, value: i128) -> i128 {
        Factor::between(from, to).expect("convertible").of_whole(value)
    }

    #[test]
    fn whole_numbers_convert_exactly_and_round_half_away_from_zero() {
        assert_eq!(convert("KiBy", "By", 3), 3072);
        assert_eq!(
            convert("TiBy", "By", i128::from(u64::MAX)),
            i128::from(u64::MAX) << 40
        );
        assert_eq!(convert("By", "KiBy", 511), 0);
        assert_eq!(convert("By", "KiBy", 512), 1);
        assert_eq!(convert("By", "KiBy", -512), -1);
        assert_eq!(convert("ms", "s", 1_499), 1);
        assert_eq!(convert("ms", "s", -1_500), -2);
        assert_eq!(convert("d", "h", 2), 48);
        assert_eq!(convert("kBy", "KiBy", 1_024), 1_000);
        assert_eq!(convert("bit", "By", 4), 1);
    }

    #[test]
    fn fractions_convert_in_double_precision() {
        let factor = Factor::between("us", "ms").expect("convertible");
        assert!((factor.of_float(1_500.0) - 1.5).abs() < 1e-12);
    }

    #[test]
    fn every_unit_converts_into_its_own_kind_and_no_other() {
        for from in UNITS {
            for to in UNITS {
                let factor = Factor::between(from.name, to.name);
                assert_eq!(
                    factor.is_ok(),
                    from.dimension == to.dimension,
                    "{} {}",
                    from.name,
                    to.name
                );
            }
        }
        let text = Factor::between("KiBy", "ms").expect_err("impossible");
        assert!(
            text.contains("an amount of data") && text.contains("a time"),
            "{text}"
        );
        assert!(
            Factor::between("KB", "By")
                .expect_err("unknown")
                .contains("known are bit")
        );
    }
}
