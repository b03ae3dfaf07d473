//! Sizes, counts and times as people write them: `8GiB`, `1G`, `500ms`.

use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::fmt;

/// A number of bytes: a whole number, or one with B, KiB, MiB, GiB, TiB, kB, MB, GB, TB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A number of things: a whole number, or one with k, M, G (powers of 1000).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count(pub u64);

/// A time span: a whole number with ms, s, m, h or d.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(u64);

impl ByteSize {
    /// So many MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// So many GiB.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The bytes, as far as this machine can count them.
    #[must_use]
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Period {
    /// So many milliseconds.
    #[must_use]
    pub const fn millis(n: u64) -> Self {
        Self(n)
    }

    /// So many hours.
    #[must_use]
    pub const fn hours(n: u64) -> Self {
        Self(n * 3_600_000)
    }

    /// In milliseconds.
    #[must_use]
    pub const fn ms(self) -> u64 {
        self.0
    }
}

pub(super) const SIZES: &[(&str, u64)] = &[
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];
const COUNTS: &[(&str, u64)] = &[("", 1), ("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000)];
pub(super) const PERIODS: &[(&str, u64)] = &[
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// As a person would write it: with the largest unit that divides it.
pub(super) fn written(value: u64, units: &[(&str, u64)]) -> String {
    let named = units.iter().filter(|(name, _)| !name.is_empty());
    let whole = named.filter(|(_, factor)| value.is_multiple_of(*factor) && *factor <= value.max(1));
    match whole.max_by_key(|(_, factor)| *factor) {
        Some((name, factor)) => format!("{}{name}", value / factor),
        None => value.to_string(),
    }
}

fn read<'de, D: Deserializer<'de>>(
    deserializer: D,
    units: &[(&str, u64)],
    like: &str,
) -> Result<u64, D::Error> {
    deserializer.deserialize_any(Quantity { units, like })
}

/// A text with a unit, or a bare number, as JSON has it.
struct Quantity<'a> {
    units: &'a [(&'a str, u64)],
    like: &'a str,
}

impl Visitor<'_> for Quantity<'_> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a quantity like {}", self.like)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        parse(text.trim(), self.units)
            .ok_or_else(|| E::custom(format!("{text:?} is not understood: write it like {}", self.like)))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
        self.visit_str(&number.to_string())
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, SIZES, "64MiB or 8GiB").map(Self)
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, COUNTS, "100000 or 1G").map(Self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, PERIODS, "500ms, 10s, 15m, 24h or 7d").map(Self)
    }
}

macro_rules! from_text {
    ($($type:ident, $units:ident, $like:literal;)*) => {$(
        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let value = parse(text.trim(), $units);
                value
                    .map(Self)
                    .ok_or_else(|| format!("{text:?} is not understood: write it like {}", $like))
            }
        }
    )*};
}

from_text! {
    ByteSize, SIZES, "64MiB or 8GiB";
    Count, COUNTS, "100000 or 1G";
    Period, PERIODS, "500ms, 10s, 15m, 24h or 7d";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_people_write_them() {
        assert_eq!(parse("8GiB", SIZES), Some(8 << 30));
        assert_eq!(parse("12", SIZES), Some(12));
        assert_eq!(parse("1G", COUNTS), Some(1_000_000_000));
        assert_eq!(parse("500ms", PERIODS), Some(500));
        assert_eq!(parse("7d", PERIODS), Some(7 * 86_400_000));
        for bad in ["", "x", "1 parsec", "-1s", "99999999999999999999s"] {
            assert_eq!(parse(bad, PERIODS), None, "{bad}");
        }
    }
}
