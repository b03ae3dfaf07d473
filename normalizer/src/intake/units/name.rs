//! UCUM's grammar: `By`, `KiBy/s`, `kW.h`, `m/s2`, `{requests}/min`, `10*6.1/s`.
//!
//! `.` and `/` are read from left to right and bind alike; a leading `/` is one over what follows; an
//! exponent follows its unit. Braces hold a remark that means 1. Total: any text is a unit or an
//! error, in time that its length bounds.

use super::ratio::Ratio;
use super::table::{ATOMS, Atom, BINARY, DECIMAL, Dimension, Prefixes};
use sluice_common::limits::MAX_UNIT_BYTES;

/// Deepest parentheses.
const MAX_DEPTH: usize = 8;

/// A unit, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unit {
    pub dimension: Dimension,
    /// Size in base units.
    pub size: Ratio,
    /// Where its zero is, in base units: temperatures only.
    pub zero: Ratio,
}

/// Why a text is no unit, as the end of a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum UnitError {
    #[error("is empty")]
    Empty,
    #[error("is longer than {MAX_UNIT_BYTES} bytes")]
    TooLong,
    #[error("is not a UCUM unit (from byte {0} on)")]
    Syntax(usize),
    #[error("is not known (`{0}`); known are {names}, with their prefixes and their compounds", names = known())]
    Unknown(String),
    #[error("is nested deeper than {MAX_DEPTH}")]
    TooDeep,
    #[error("has a temperature's scale in a compound; differences are in K")]
    ScaleInCompound,
    #[error("is too large or too small")]
    TooLarge,
}

impl Unit {
    const ONE: Self = Self {
        dimension: Dimension::NONE,
        size: Ratio::ONE,
        zero: Ratio::ZERO,
    };

    /// Reads a unit's name.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        if text.is_empty() {
            return Err(UnitError::Empty);
        }
        if text.len() > MAX_UNIT_BYTES {
            return Err(UnitError::TooLong);
        }
        let mut reader = Reader {
            text,
            at: 0,
            depth: 0,
        };
        let unit = reader.term()?;
        if reader.at < text.len() {
            return Err(UnitError::Syntax(reader.at));
        }
        Ok(unit)
    }

    /// `self` times `other` to the power of `by`.
    fn and(self, other: Self, by: i8) -> Result<Self, UnitError> {
        if self.zero != Ratio::ZERO || other.zero != Ratio::ZERO {
            return Err(UnitError::ScaleInCompound);
        }
        let size = other.size.power(by).and_then(|other| self.size.times(other));
        let dimension = self.dimension.and(other.dimension, by);
        let (Some(size), Some(dimension)) = (size, dimension) else {
            return Err(UnitError::TooLarge);
        };
        Ok(Self {
            dimension,
            size,
            zero: Ratio::ZERO,
        })
    }
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, wanted: u8) -> bool {
        let is = self.peek() == Some(wanted);
        self.at += usize::from(is);
        is
    }

    /// Components up to a closing parenthesis or the end.
    fn term(&mut self) -> Result<Unit, UnitError> {
        let mut unit = if self.take(b'/') {
            Unit::ONE.and(self.component()?, -1)?
        } else {
            self.component()?
        };
        loop {
            let by = if self.take(b'.') {
                1
            } else if self.take(b'/') {
                -1
            } else {
                return Ok(unit);
            };
            unit = unit.and(self.component()?, by)?;
        }
    }

    fn component(&mut self) -> Result<Unit, UnitError> {
        let unit = match self.peek() {
            Some(b'(') => self.group()?,
            Some(b'{') => Unit::ONE,
            _ => simple(self.word()?)?,
        };
        self.remark()?;
        Ok(unit)
    }

    fn group(&mut self) -> Result<Unit, UnitError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(UnitError::TooDeep);
        }
        self.at += 1;
        let unit = self.term()?;
        if !self.take(b')') {
            return Err(UnitError::Syntax(self.at));
        }
        self.depth -= 1;
        Ok(unit)
    }

    /// A unit with prefix and exponent; what is in brackets belongs to it.
    fn word(&mut self) -> Result<&str, UnitError> {
        let rest = &self.text[self.at..];
        let mut is_inside = false;
        let end = rest.bytes().position(|byte| {
            match byte {
                b'[' => is_inside = true,
                b']' => is_inside = false,
                _ => {}
            }
            !is_inside && matches!(byte, b'.' | b'/' | b'(' | b')' | b'{' | b'}')
        });
        let word = &rest[..end.unwrap_or(rest.len())];
        if word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(UnitError::Syntax(self.at));
        }
        self.at += word.len();
        Ok(word)
    }

    fn remark(&mut self) -> Result<(), UnitError> {
        if !self.take(b'{') {
            return Ok(());
        }
        let rest = &self.text[self.at..];
        let is_end = |byte: u8| byte == b'}' || byte == b'{' || !byte.is_ascii_graphic();
        let length = rest.bytes().position(is_end).unwrap_or(rest.len());
        self.at += length;
        if self.take(b'}') {
            Ok(())
        } else {
            Err(UnitError::Syntax(self.at))
        }
    }
}

/// A number, or a unit with its exponent.
fn simple(word: &str) -> Result<Unit, UnitError> {
    let (name, exponent) = split_exponent(word);
    if name.is_empty() {
        let number = word.parse().ok().filter(|number| *number > 0);
        let number: i128 = number.ok_or_else(|| UnitError::Unknown(word.to_owned()))?;
        return Ok(Unit {
            size: Ratio::whole(number),
            ..Unit::ONE
        });
    }
    let unit = prefixed(name).ok_or_else(|| UnitError::Unknown(name.to_owned()))?;
    if exponent.is_empty() {
        return unit;
    }
    let exponent = exponent.parse().map_err(|_| UnitError::TooLarge)?;
    Unit::ONE.and(unit?, exponent)
}

/// Digits at the end, with their sign, are the exponent.
fn split_exponent(word: &str) -> (&str, &str) {
    let name = word.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = word.len() - name.len();
    let signed = digits > 0 && !name.is_empty() && name.ends_with(['+', '-']);
    word.split_at(name.len() - usize::from(signed))
}

/// The whole name goes before a prefix: `min` is a minute, `cd` a candela.
fn prefixed(name: &str) -> Option<Result<Unit, UnitError>> {
    let find = |name: &str| ATOMS.iter().find(|atom| atom.name == name);
    if let Some(atom) = find(name) {
        return Some(Ok(unit(atom)));
    }
    let split = |(prefix, power): &(&str, i8), ten_or_two: i128| {
        let atom = find(name.strip_prefix(prefix)?)?;
        let factor = Ratio::whole(ten_or_two).power(*power)?;
        Some((atom, factor))
    };
    let decimal = DECIMAL.iter().filter_map(|one| split(one, 10));
    let decimal = decimal.filter(|(atom, _)| atom.prefixes != Prefixes::No);
    let binary = BINARY.iter().filter_map(|one| split(one, 2));
    let binary = binary.filter(|(atom, _)| atom.prefixes == Prefixes::DecimalAndBinary);
    let (atom, factor) = decimal.chain(binary).next()?;
    let size = atom.size.times(factor).ok_or(UnitError::TooLarge);
    Some(size.map(|size| Unit { size, ..unit(atom) }))
}

fn unit(atom: &Atom) -> Unit {
    Unit {
        dimension: atom.dimension,
        size: atom.size,
        zero: atom.zero,
    }
}

fn known() -> String {
    let names: Vec<_> = ATOMS.iter().map(|atom| atom.name).collect();
    names.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size(text: &str) -> Ratio {
        Unit::parse(text)
            .unwrap_or_else(|error| panic!("{text} {error}"))
            .size
    }

    #[test]
    fn compounds_are_read_from_left_to_right() {
        for (text, numerator, denominator) in [
            ("1", 1, 1),
            ("%", 1, 100),
            ("{requests}", 1, 1),
            ("{requests}/s", 1, 1),
            ("By{received}/s", 8, 1),
            ("KiBy/s", 8_192, 1),
            ("MBy/min", 400_000, 3),
            ("/ms", 1_000, 1),
            ("kHz", 1_000, 1),
            ("m/s2", 1, 1),
            ("km.h-1", 5, 18),
            ("m/(s.s)", 1, 1),
            ("s/ms/ms", 1_000_000, 1),
            ("10*3", 1_000, 1),
            ("10*-2", 1, 100),
            ("60.s", 60, 1),
            ("kW.h", 3_600_000_000, 1),
            ("dal", 1, 100),
        ] {
            let expected = Ratio::new(numerator, denominator).expect("a fraction");
            assert_eq!(size(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_unit_says_why() {
        let deep = format!("{}s{}", "(".repeat(9), ")".repeat(9));
        for (text, part) in [
            ("", "empty"),
            ("KB", "not known (`KB`)"),
            ("kmin", "not known"),
            ("Kis", "not known"),
            ("B", "not known"),
            ("0", "not known"),
            ("-1", "not known"),
            ("µs", "not a UCUM unit"),
            ("s s", "not a UCUM unit"),
            ("s}", "not a UCUM unit"),
            ("{a{b}}", "not a UCUM unit"),
            ("{a", "not a UCUM unit"),
            ("(s", "not a UCUM unit"),
            ("s)", "not a UCUM unit"),
            ("s..s", "not a UCUM unit"),
            ("s.", "not a UCUM unit"),
            ("s128", "too large"),
            ("s99.s99", "too large"),
            ("Ym9.Ym9", "too large"),
            ("m-129", "too large"),
            ("Cel/s", "in a compound"),
            ("Cel2", "in a compound"),
            ("1.[degF]", "in a compound"),
            (&deep, "deeper"),
            (&"s.".repeat(40), "longer"),
        ] {
            let error = Unit::parse(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_unit_or_an_error(text in "\\PC{0,80}", like in "[a-zKM0-9.*/(){}\\[\\]%+-]{0,64}") {
            let _ = (Unit::parse(&text), Unit::parse(&like));
        }
    }
}
