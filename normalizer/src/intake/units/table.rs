//! The units that we know, each by what it measures and its exact size in base units.

use super::ratio::Ratio;

/// Base quantities of a [`Dimension`], in order.
pub(super) const QUANTITIES: usize = 8;
/// Their base units: metre, gram, second, ampere, kelvin, mole, candela, bit.
const BASE_UNITS: [&str; QUANTITIES] = ["m", "g", "s", "A", "K", "mol", "cd", "bit"];

/// What a unit measures: the power of each base quantity. Data is a quantity of its own, where UCUM
/// has it as a plain number: bytes do not convert into percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dimension(pub [i8; QUANTITIES]);

const NONE: Dimension = Dimension([0; QUANTITIES]);
const LENGTH: Dimension = Dimension([1, 0, 0, 0, 0, 0, 0, 0]);
const MASS: Dimension = Dimension([0, 1, 0, 0, 0, 0, 0, 0]);
const TIME: Dimension = Dimension([0, 0, 1, 0, 0, 0, 0, 0]);
const CURRENT: Dimension = Dimension([0, 0, 0, 1, 0, 0, 0, 0]);
const TEMPERATURE: Dimension = Dimension([0, 0, 0, 0, 1, 0, 0, 0]);
const AMOUNT: Dimension = Dimension([0, 0, 0, 0, 0, 1, 0, 0]);
const LIGHT: Dimension = Dimension([0, 0, 0, 0, 0, 0, 1, 0]);
const DATA: Dimension = Dimension([0, 0, 0, 0, 0, 0, 0, 1]);
const PER_TIME: Dimension = Dimension([0, 0, -1, 0, 0, 0, 0, 0]);
const VOLUME: Dimension = Dimension([3, 0, 0, 0, 0, 0, 0, 0]);
const SPEED: Dimension = Dimension([1, 0, -1, 0, 0, 0, 0, 0]);
const FORCE: Dimension = Dimension([1, 1, -2, 0, 0, 0, 0, 0]);
const PRESSURE: Dimension = Dimension([-1, 1, -2, 0, 0, 0, 0, 0]);
const ENERGY: Dimension = Dimension([2, 1, -2, 0, 0, 0, 0, 0]);
const POWER: Dimension = Dimension([2, 1, -3, 0, 0, 0, 0, 0]);
const CHARGE: Dimension = Dimension([0, 0, 1, 1, 0, 0, 0, 0]);
const VOLTAGE: Dimension = Dimension([2, 1, -3, -1, 0, 0, 0, 0]);
const RESISTANCE: Dimension = Dimension([2, 1, -3, -2, 0, 0, 0, 0]);
const CAPACITY: Dimension = Dimension([-2, -1, 4, 2, 0, 0, 0, 0]);
const DATA_RATE: Dimension = Dimension([0, 0, -1, 0, 0, 0, 0, 1]);

/// Dimensions that have a name of their own.
const NAMED: &[(Dimension, &str)] = &[
    (NONE, "a ratio or count"),
    (LENGTH, "a length"),
    (MASS, "a mass"),
    (TIME, "a time"),
    (CURRENT, "an electric current"),
    (TEMPERATURE, "a temperature"),
    (AMOUNT, "an amount of substance"),
    (LIGHT, "a luminous intensity"),
    (DATA, "an amount of data"),
    (PER_TIME, "a frequency or rate of events"),
    (VOLUME, "a volume"),
    (SPEED, "a speed"),
    (FORCE, "a force"),
    (PRESSURE, "a pressure"),
    (ENERGY, "an energy"),
    (POWER, "a power"),
    (CHARGE, "an electric charge"),
    (VOLTAGE, "a voltage"),
    (RESISTANCE, "an electric resistance"),
    (CAPACITY, "an electric capacity"),
    (DATA_RATE, "a data rate"),
];

impl Dimension {
    pub const NONE: Self = NONE;

    /// In words, with an article.
    pub fn name(self) -> String {
        let named = NAMED.iter().find(|(dimension, _)| *dimension == self);
        if let Some((_, name)) = named {
            return (*name).to_owned();
        }
        let parts = BASE_UNITS.iter().zip(self.0).filter(|(_, power)| *power != 0);
        let parts = parts.map(|(unit, power)| {
            if power == 1 {
                (*unit).to_owned()
            } else {
                format!("{unit}{power}")
            }
        });
        format!("a quantity in {}", parts.collect::<Vec<_>>().join("."))
    }

    /// `self` times `other` to the power of `by`; `None` past 127.
    pub fn and(self, other: Self, by: i8) -> Option<Self> {
        let mut powers = self.0;
        for (power, more) in powers.iter_mut().zip(other.0) {
            *power = power.checked_add(more.checked_mul(by)?)?;
        }
        Some(Self(powers))
    }
}

/// Which prefixes a unit takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefixes {
    No,
    Decimal,
    DecimalAndBinary,
}

/// One unit without a prefix.
#[derive(Debug)]
pub(super) struct Atom {
    pub name: &'static str,
    pub prefixes: Prefixes,
    pub dimension: Dimension,
    /// Size in base units.
    pub size: Ratio,
    /// Where its zero is, in base units.
    pub zero: Ratio,
}

const fn ratio(numerator: i128, denominator: i128) -> Ratio {
    Ratio {
        numerator,
        denominator,
    }
}

const fn atom(name: &'static str, prefixes: Prefixes, dimension: Dimension, size: Ratio) -> Atom {
    Atom {
        name,
        prefixes,
        dimension,
        size,
        zero: Ratio::ZERO,
    }
}

const fn si(name: &'static str, dimension: Dimension, size: i128) -> Atom {
    atom(name, Prefixes::Decimal, dimension, Ratio::whole(size))
}

const fn plain(name: &'static str, dimension: Dimension, numerator: i128, denominator: i128) -> Atom {
    atom(name, Prefixes::No, dimension, ratio(numerator, denominator))
}

const fn data(name: &'static str, bits: i128) -> Atom {
    atom(name, Prefixes::DecimalAndBinary, DATA, Ratio::whole(bits))
}

const fn scale(name: &'static str, size: Ratio, zero: Ratio) -> Atom {
    Atom {
        name,
        prefixes: Prefixes::No,
        dimension: TEMPERATURE,
        size,
        zero,
    }
}

/// Fractions are in lowest terms: a test says so.
pub(super) const ATOMS: &[Atom] = &[
    data("bit", 1),
    data("By", 8),
    si("s", TIME, 1),
    plain("min", TIME, 60, 1),
    plain("h", TIME, 3_600, 1),
    plain("d", TIME, 86_400, 1),
    plain("wk", TIME, 604_800, 1),
    // UCUM's mean Julian month and year.
    plain("mo", TIME, 2_629_800, 1),
    plain("a", TIME, 31_557_600, 1),
    si("Hz", PER_TIME, 1),
    plain("%", NONE, 1, 100),
    plain("[ppth]", NONE, 1, 1_000),
    plain("[ppm]", NONE, 1, 1_000_000),
    plain("[ppb]", NONE, 1, 1_000_000_000),
    plain("10*", NONE, 10, 1),
    plain("10^", NONE, 10, 1),
    si("K", TEMPERATURE, 1),
    scale("Cel", Ratio::ONE, ratio(5_463, 20)),
    scale("[degF]", ratio(5, 9), ratio(45_967, 180)),
    plain("[degR]", TEMPERATURE, 5, 9),
    si("m", LENGTH, 1),
    plain("[in_i]", LENGTH, 127, 5_000),
    plain("[ft_i]", LENGTH, 381, 1_250),
    plain("[yd_i]", LENGTH, 1_143, 1_250),
    plain("[mi_i]", LENGTH, 201_168, 125),
    plain("[nmi_i]", LENGTH, 1_852, 1),
    plain("[kn_i]", SPEED, 463, 900),
    si("g", MASS, 1),
    plain("t", MASS, 1_000_000, 1),
    plain("[lb_av]", MASS, 45_359_237, 100_000),
    plain("[oz_av]", MASS, 45_359_237, 1_600_000),
    atom("L", Prefixes::Decimal, VOLUME, ratio(1, 1_000)),
    atom("l", Prefixes::Decimal, VOLUME, ratio(1, 1_000)),
    plain("[gal_us]", VOLUME, 473_176_473, 125_000_000_000),
    si("N", FORCE, 1_000),
    si("Pa", PRESSURE, 1_000),
    si("bar", PRESSURE, 100_000_000),
    plain("atm", PRESSURE, 101_325_000, 1),
    si("J", ENERGY, 1_000),
    si("cal", ENERGY, 4_184),
    si("W", POWER, 1_000),
    si("A", CURRENT, 1),
    si("C", CHARGE, 1),
    si("V", VOLTAGE, 1_000),
    si("Ohm", RESISTANCE, 1_000),
    atom("F", Prefixes::Decimal, CAPACITY, ratio(1, 1_000)),
    si("mol", AMOUNT, 1),
    si("cd", LIGHT, 1),
];

/// Powers of ten that a prefix stands for.
pub(super) const DECIMAL: &[(&str, i8)] = &[
    ("da", 1),
    ("h", 2),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
    ("Z", 21),
    ("Y", 24),
    ("d", -1),
    ("c", -2),
    ("m", -3),
    ("u", -6),
    ("n", -9),
    ("p", -12),
    ("f", -15),
    ("a", -18),
    ("z", -21),
    ("y", -24),
];

/// Powers of two that a prefix stands for.
pub(super) const BINARY: &[(&str, i8)] = &[
    ("Ki", 10),
    ("Mi", 20),
    ("Gi", 30),
    ("Ti", 40),
    ("Pi", 50),
    ("Ei", 60),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_in_lowest_terms_and_every_name_is_told_once() {
        for (at, one) in ATOMS.iter().enumerate() {
            for fraction in [one.size, one.zero] {
                let reduced = Ratio::new(fraction.numerator, fraction.denominator);
                assert_eq!(reduced, Some(fraction), "{}", one.name);
            }
            assert!(one.size.numerator > 0, "{}", one.name);
            assert!(
                !ATOMS[..at].iter().any(|other| other.name == one.name),
                "{}",
                one.name
            );
        }
        assert_eq!(
            Dimension([0, 0, -2, 0, 0, 0, 0, 1]).name(),
            "a quantity in s-2.bit"
        );
    }
}
