//! Unit conversions by UCUM (and so OpenTelemetry) names, compiled once into whole numbers.
//!
//! A conversion is `(value * times + plus) / over` with whole numbers of at most 62 bits. A whole
//! number is converted in 128 bits, without floating point; a result that is not whole is rounded half
//! away from zero, so `1 bit` in bytes is 0 and `4 bit` is 1. A number with a fraction, and any number
//! of a float field, is converted in double precision: three roundings, each within half a unit of the
//! last place.
//!
//! [`ratio`] is the arithmetic, [`table`] what is known, [`name`] the grammar, [`seen`] units that
//! events name themselves.

mod name;
mod ratio;
pub(super) mod seen;
mod table;

use name::Unit;
use ratio::Ratio;

/// A conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Factor {
    times: i64,
    plus: i64,
    over: i64,
}

/// Numbers of a factor are below this, so that 64 bits times one of them never overflow.
const MAX_PART: i128 = 1 << 62;

impl Factor {
    /// The conversion of one unit into another.
    ///
    /// # Errors
    /// A sentence: a unit that is not known, or two that measure different things.
    pub fn between(from: &str, to: &str) -> Result<Self, String> {
        let (of, into) = (read(from)?, read(to)?);
        if of.dimension != into.dimension {
            return Err(format!(
                "{from} is {} and {to} is {}: one cannot be converted into the other",
                of.dimension.name(),
                into.dimension.name()
            ));
        }
        Self::compile(&of, &into).ok_or_else(|| {
            format!("the factor between {from} and {to} takes more than 62 bits; take units that are nearer")
        })
    }

    fn compile(from: &Unit, to: &Unit) -> Option<Self> {
        let factor = from.size.over(to.size)?;
        let shift = from.zero.minus(to.zero)?.over(to.size)?;
        // One denominator for both.
        let common = Ratio::new(factor.denominator, shift.denominator)?;
        let over = factor.denominator.checked_mul(common.denominator)?;
        let times = factor.times(Ratio::whole(over))?;
        let plus = shift.times(Ratio::whole(over))?;
        let part = |ratio: Ratio| {
            let whole = Some(ratio.numerator).filter(|number| number.abs() < MAX_PART)?;
            i64::try_from(whole).ok()
        };
        Some(Self {
            times: part(times)?,
            plus: part(plus)?,
            over: part(Ratio::whole(over))?,
        })
    }

    /// A whole number in the new unit, rounded half away from zero; `None` where it overflows, which
    /// no value of 64 bits does.
    #[must_use]
    pub fn of_whole(self, value: i128) -> Option<i128> {
        let product = value.checked_mul(i128::from(self.times))?;
        let product = product.checked_add(i128::from(self.plus))?;
        let over = i128::from(self.over);
        if over == 1 {
            return Some(product);
        }
        let (whole, rest) = (product / over, product % over);
        let up = if rest.abs() * 2 >= over {
            product.signum()
        } else {
            0
        };
        Some(whole + up)
    }

    /// A number in the new unit.
    #[must_use]
    pub fn of_float(self, value: f64) -> f64 {
        let product = value * self.times as f64;
        // Zero is not added: it would turn -0 into 0.
        let sum = if self.plus == 0 {
            product
        } else {
            product + self.plus as f64
        };
        sum / self.over as f64
    }
}

fn read(text: &str) -> Result<Unit, String> {
    Unit::parse(text).map_err(|error| format!("unit {text:?} {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(from: &str, to: &str, value: i128) -> i128 {
        let factor = Factor::between(from, to).unwrap_or_else(|error| panic!("{error}"));
        factor.of_whole(value).expect("within 128 bits")
    }

    #[test]
    fn whole_numbers_convert_exactly_and_round_half_away_from_zero() {
        let (most, least) = (i128::from(u64::MAX), i128::from(i64::MIN));
        for (from, to, value, expected) in [
            ("KiBy", "By", 3, 3_072),
            ("TiBy", "By", most, most << 40),
            ("EiBy", "By", most, most << 60),
            ("TiBy", "By", least, least << 40),
            ("By", "KiBy", 511, 0),
            ("By", "KiBy", 512, 1),
            ("By", "KiBy", -512, -1),
            ("By", "KiBy", -511, 0),
            ("kBy", "KiBy", 1_024, 1_000),
            ("MBy", "kBy", 7, 7_000),
            ("bit", "By", 4, 1),
            ("bit", "By", 3, 0),
            ("By", "bit", most, most * 8),
            ("Gibit", "MiBy", 1, 128),
            ("ms", "s", 1_499, 1),
            ("ms", "s", -1_500, -2),
            ("ns", "d", 86_400_000_000_000, 1),
            ("d", "h", 2, 48),
            ("wk", "d", 1, 7),
            ("a", "s", 1, 31_557_600),
            ("mo", "h", 1, 731),
            ("1", "%", 1, 100),
            ("%", "1", 49, 0),
            ("%", "1", 50, 1),
            ("[ppm]", "%", 10_000, 1),
            ("Cel", "K", 0, 273),
            ("K", "Cel", 0, -273),
            ("[degF]", "Cel", 212, 100),
            ("[degF]", "Cel", -40, -40),
            ("Cel", "[degF]", 100, 212),
            ("[degF]", "K", -459, 0),
            ("[degR]", "K", 9, 5),
            ("MHz", "Hz", 3, 3_000_000),
            ("{cycles}/s", "Hz", 50, 50),
            ("kHz", "1/s", 50, 50_000),
            ("{requests}/s", "{requests}/min", 2, 120),
            ("By/s", "KiBy/s", 2_048, 2),
            ("KiBy/s", "By/s", 1, 1_024),
            ("MBy/min", "By/s", 6, 100_000),
            ("Mbit/s", "By/s", 8, 1_000_000),
            ("kW.h", "J", 1, 3_600_000),
            ("W.s", "J", 7, 7),
            ("J/s", "mW", 1, 1_000),
            ("km", "m", 1, 1_000),
            ("[in_i]", "mm", 10, 254),
            ("[mi_i]", "[ft_i]", 1, 5_280),
            ("[lb_av]", "[oz_av]", 1, 16),
            ("kg", "g", 1, 1_000),
            ("km/h", "m/s", 36, 10),
            ("N/m2", "Pa", 1, 1),
            ("bar", "kPa", 1, 100),
            ("V.A", "W", 1, 1),
            ("V/A", "Ohm", 1, 1),
            ("A.s", "C", 1, 1),
            ("C/V", "F", 1, 1),
            ("m3", "L", 1, 1_000),
            ("L", "cm3", 1, 1_000),
            ("kcal", "J", 1, 4_184),
            ("s", "s", -7, -7),
        ] {
            assert_eq!(convert(from, to, value), expected, "{value} {from} in {to}");
        }
    }

    #[test]
    fn there_and_back_is_the_same_where_the_way_back_is_whole() {
        for (from, to) in [
            ("KiBy", "By"),
            ("d", "ns"),
            ("1", "[ppm]"),
            ("km/h", "mm/h"),
            ("K", "mK"),
        ] {
            for value in [0, 1, -1, i128::from(u64::MAX), i128::from(i64::MIN)] {
                assert_eq!(convert(to, from, convert(from, to, value)), value, "{from} {to}");
            }
        }
    }

    #[test]
    fn fractions_convert_in_double_precision() {
        for (from, to, value, expected) in [
            ("us", "ms", 1_500.0, 1.5),
            ("Cel", "K", 0.0, 273.15),
            ("[degF]", "Cel", 98.6, 37.0),
            ("%", "1", 12.5, 0.125),
            ("m/s", "km/h", 1.0, 3.6),
            ("By/s", "Mbit/s", 125_000.0, 1.0),
        ] {
            let got = Factor::between(from, to).expect("convertible").of_float(value);
            assert!(
                (got - expected).abs() <= expected * 4.0 * f64::EPSILON,
                "{from} {to} {got}"
            );
        }
        let same = Factor::between("By", "By").expect("convertible");
        assert_eq!(same.of_float(0.1), 0.1);
        assert!(same.of_float(-0.0).is_sign_negative());
    }

    #[test]
    fn every_unit_converts_into_its_own_kind_and_no_other() {
        for from in table::ATOMS {
            for to in table::ATOMS {
                let factor = Factor::between(from.name, to.name);
                let is_same = from.dimension == to.dimension;
                assert_eq!(factor.is_ok(), is_same, "{} {}: {factor:?}", from.name, to.name);
            }
        }
    }

    #[test]
    fn an_impossible_pair_names_both_dimensions() {
        for (from, to, parts) in [
            ("KiBy", "ms", ["an amount of data", "a time"]),
            ("By", "%", ["an amount of data", "a ratio or count"]),
            ("By/s", "Hz", ["a data rate", "a frequency"]),
            ("Cel", "J", ["a temperature", "an energy"]),
            ("By/s2", "By/s", ["a quantity in s-2.bit", "a data rate"]),
            ("KB", "By", ["\"KB\"", "known are bit By s"]),
            ("Ym", "ym", ["62 bits", "nearer"]),
        ] {
            let error = Factor::between(from, to).expect_err(from);
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
