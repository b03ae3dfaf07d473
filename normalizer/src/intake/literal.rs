//! Values that JSON has no form for: decimals, dates, UUIDs and addresses, written as text.
//!
//! - A decimal is a string of digits with at most a minus and a point, or a number. A JSON number
//!   reaches us as a double, which keeps 15 significant digits of whatever was written: one that shows
//!   more is refused, because what was sent is no longer known. Whole numbers of 64 bits are exact.
//! - A date is `2026-11-21`, and nothing else.
//! - A UUID is 32 hex digits, in any case, with all of its hyphens or none.
//! - An IPv4 field takes `::ffff:1.2.3.4` too, and an IPv6 field takes `1.2.3.4` as that.

use super::fault::Fault;
use super::time;
use arrow_buffer::i256;
use simd_json::{Node, StaticNode};
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Significant digits that a double keeps of any decimal number.
const DOUBLE_DIGITS: usize = 15;
/// First and last day of ClickHouse's `Date`, in days since 1970: 1970-01-01 to 2149-06-06.
pub const DATE_DAYS: (i32, i32) = (0, 65_535);
/// First and last day of `Date32`: 1900-01-01 to 2299-12-31.
pub const DATE32_DAYS: (i32, i32) = (-25_567, 120_529);

/// A decimal of `precision` digits, as a whole number of units of its last one.
///
/// # Errors
/// [`Fault`]: no number, too many digits behind the point, or too many before it.
pub fn decimal(node: &Node<'_>, precision: u8, scale: u8) -> Result<i256, Fault> {
    match node {
        Node::String(text) => {
            let magnitude = text.strip_prefix('-');
            let (whole, fraction) = split_point(magnitude.unwrap_or(text))?;
            let parts = Parts {
                negative: magnitude.is_some(),
                whole,
                fraction,
                exponent: 0,
            };
            parts.scaled(precision, scale)
        }
        Node::Static(StaticNode::I64(value)) => whole(*value < 0, value.unsigned_abs(), precision, scale),
        Node::Static(StaticNode::U64(value)) => whole(false, *value, precision, scale),
        Node::Static(StaticNode::F64(value)) => of_double(*value, precision, scale),
        Node::Static(StaticNode::Bool(_) | StaticNode::Null) => Err(Fault::WrongType),
        Node::Object { .. } | Node::Array { .. } => Err(Fault::WrongType),
    }
}

fn split_point(text: &str) -> Result<(&str, &str), Fault> {
    let (whole, fraction) = match text.split_once('.') {
        Some((_, "")) => return Err(Fault::BadDecimal),
        Some(parts) => parts,
        None => (text, ""),
    };
    let digits = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return Err(Fault::BadDecimal);
    }
    Ok((whole, fraction))
}

fn whole(negative: bool, magnitude: u64, precision: u8, scale: u8) -> Result<i256, Fault> {
    let mut text = [0; 20];
    let written = write_into(&mut text, format_args!("{magnitude}"));
    let parts = Parts {
        negative,
        whole: written,
        fraction: "",
        exponent: 0,
    };
    parts.scaled(precision, scale)
}

fn of_double(value: f64, precision: u8, scale: u8) -> Result<i256, Fault> {
    // The shortest digits that read back as this double: those that were sent, where they were few.
    let mut text = [0; 40];
    let written = write_into(&mut text, format_args!("{:e}", value.abs()));
    let (mantissa, exponent) = written.split_once('e').unwrap_or((written, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.len() + fraction.len() > DOUBLE_DIGITS {
        return Err(Fault::DigitsLost);
    }
    let parts = Parts {
        negative: value < 0.0,
        whole,
        fraction,
        exponent: exponent.parse().unwrap_or(0),
    };
    parts.scaled(precision, scale)
}

fn write_into<'b>(buffer: &'b mut [u8], text: std::fmt::Arguments<'_>) -> &'b str {
    let room = buffer.len();
    let mut rest = &mut buffer[..];
    rest.write_fmt(text).expect("the buffer has room for any number");
    let written = room - rest.len();
    std::str::from_utf8(&buffer[..written]).expect("numbers are ASCII")
}

/// The number `whole.fraction * 10^exponent`.
struct Parts<'t> {
    negative: bool,
    whole: &'t str,
    fraction: &'t str,
    exponent: i32,
}

impl Parts<'_> {
    fn scaled(&self, precision: u8, scale: u8) -> Result<i256, Fault> {
        let whole = self.whole.trim_start_matches('0');
        let fraction = self.fraction.trim_end_matches('0');
        let (whole, dropped) = if fraction.is_empty() {
            let cut = whole.trim_end_matches('0');
            (cut, whole.len() - cut.len())
        } else {
            (whole, 0)
        };
        if whole.is_empty() && fraction.is_empty() {
            return Ok(i256::ZERO);
        }
        let zeros = i64::from(self.exponent) + as_i64(dropped) - as_i64(fraction.len()) + i64::from(scale);
        if zeros < 0 {
            return Err(Fault::TooManyDigits);
        }
        let digits = || whole.bytes().chain(fraction.bytes()).skip_while(|c| *c == b'0');
        let length = as_i64(digits().count()) + zeros;
        if length > i64::from(precision) {
            return Err(Fault::OutOfRange);
        }
        let zeros = std::iter::repeat_n(b'0', usize::try_from(zeros).unwrap_or(0));
        Ok(number(self.negative, digits().chain(zeros), length))
    }
}

/// The number of at most [`sluice_common::config::field_type::MAX_DECIMAL_DIGITS`] digits.
fn number(negative: bool, digits: impl Iterator<Item = u8>, length: i64) -> i256 {
    // Both halves have at most 38 digits, as i128 does.
    let low_digits = length.min(38);
    let (mut high, mut low) = (0i128, 0i128);
    for (at, digit) in (0i64..).zip(digits) {
        let half = if at < length - low_digits {
            &mut high
        } else {
            &mut low
        };
        *half = *half * 10 + i128::from(digit - b'0');
    }
    let base = i256::from_i128(10i128.pow(38));
    let value = i256::from_i128(high)
        .wrapping_mul(base)
        .wrapping_add(i256::from_i128(low));
    if negative { value.wrapping_neg() } else { value }
}

fn as_i64(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX / 4)
}

/// Days since 1970, within `first..=last`.
///
/// # Errors
/// [`Fault`]: no date, or outside.
pub fn date(text: &str, (first, last): (i32, i32)) -> Result<i32, Fault> {
    let days = time::parse_date(text).map_err(Fault::BadDate)?;
    let days = i32::try_from(days).map_err(|_| Fault::OutOfRange)?;
    if (first..=last).contains(&days) {
        Ok(days)
    } else {
        Err(Fault::OutOfRange)
    }
}

/// The bytes of a UUID, as they are written.
///
/// # Errors
/// [`Fault`], where it is none.
pub fn uuid(text: &str) -> Result<[u8; 16], Fault> {
    let text = text.as_bytes();
    let is_hyphen = |at: usize| matches!(at, 8 | 13 | 18 | 23);
    if text.len() == 36 && (0..36).any(|at| (text[at] == b'-') != is_hyphen(at)) {
        return Err(Fault::BadUuid);
    }
    if text.len() != 36 && text.len() != 32 {
        return Err(Fault::BadUuid);
    }
    let mut bytes = [0; 16];
    let digits = text
        .iter()
        .enumerate()
        .filter(|(at, _)| text.len() == 32 || !is_hyphen(*at));
    for (place, (_, digit)) in digits.enumerate() {
        let value = char::from(*digit).to_digit(16).ok_or(Fault::BadUuid)?;
        bytes[place / 2] = bytes[place / 2] << 4 | u8::try_from(value).unwrap_or(0);
    }
    Ok(bytes)
}

/// An IPv4 address.
///
/// # Errors
/// [`Fault`], where it is none.
pub fn ipv4(text: &str) -> Result<Ipv4Addr, Fault> {
    let mapped = || text.parse::<Ipv6Addr>().ok()?.to_ipv4_mapped();
    text.parse().ok().or_else(mapped).ok_or(Fault::BadAddress)
}

/// An IPv6 address.
///
/// # Errors
/// [`Fault`], where it is none.
pub fn ipv6(text: &str) -> Result<Ipv6Addr, Fault> {
    let mapped = || Some(text.parse::<Ipv4Addr>().ok()?.to_ipv6_mapped());
    text.parse().ok().or_else(mapped).ok_or(Fault::BadAddress)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(text: &str, precision: u8, scale: u8) -> Result<String, &'static str> {
        let found = decimal(&Node::String(text), precision, scale);
        found.map(|value| value.to_string()).map_err(Fault::code)
    }

    fn double(value: f64, precision: u8, scale: u8) -> Result<String, &'static str> {
        let found = decimal(&Node::Static(StaticNode::F64(value)), precision, scale);
        found.map(|value| value.to_string()).map_err(Fault::code)
    }

    #[test]
    fn decimals_keep_every_digit_or_are_refused() {
        let nines = "9".repeat(76);
        for (sent, precision, scale, stored) in [
            ("1.5", 10, 2, Ok("150")),
            ("-0.01", 10, 2, Ok("-1")),
            ("1.500000", 10, 2, Ok("150")),
            ("0001.50", 3, 1, Ok("15")),
            ("-0", 1, 0, Ok("0")),
            ("0.00000", 1, 1, Ok("0")),
            ("99.99", 4, 2, Ok("9999")),
            ("100", 4, 2, Err("out_of_range")),
            ("1.005", 10, 2, Err("too_many_digits")),
            (&nines, 76, 0, Ok(nines.as_str())),
            (
                "12345678901234567890123456789012345678901",
                41,
                0,
                Ok("12345678901234567890123456789012345678901"),
            ),
            ("1e3", 10, 2, Err("bad_decimal")),
            (".5", 10, 2, Err("bad_decimal")),
            ("5.", 10, 2, Err("bad_decimal")),
            ("+5", 10, 2, Err("bad_decimal")),
            ("--5", 10, 2, Err("bad_decimal")),
            ("", 10, 2, Err("bad_decimal")),
            ("1.2.3", 10, 2, Err("bad_decimal")),
            (" 1", 10, 2, Err("bad_decimal")),
        ] {
            assert_eq!(text(sent, precision, scale), stored.map(str::to_owned), "{sent}");
        }
    }

    #[test]
    fn a_json_number_keeps_15_digits_and_more_are_refused() {
        assert_eq!(double(0.1, 38, 20), Ok("10000000000000000000".into()));
        assert_eq!(double(-1234567890.12345, 38, 5), Ok("-123456789012345".into()));
        assert_eq!(double(1e20, 38, 2), Ok(format!("1{}", "0".repeat(22))));
        assert_eq!(double(0.1 + 0.2, 38, 20), Err("too_many_digits"));
        assert_eq!(double(1e-3, 38, 2), Err("too_many_digits"));
        assert_eq!(double(5e-324, 38, 38), Err("too_many_digits"));
        assert_eq!(double(f64::MAX, 76, 0), Err("too_many_digits"));
        assert_eq!(double(1e300, 76, 0), Err("out_of_range"));
        assert_eq!(double(-0.0, 1, 0), Ok("0".into()));
        let most = decimal(&Node::Static(StaticNode::U64(u64::MAX)), 22, 2).map(|value| value.to_string());
        assert_eq!(most, Ok("1844674407370955161500".into()));
        let least = decimal(&Node::Static(StaticNode::I64(i64::MIN)), 19, 0).map(|value| value.to_string());
        assert_eq!(least, Ok(i64::MIN.to_string()));
        let wide = decimal(&Node::Static(StaticNode::I64(100)), 2, 0).map(|value| value.to_string());
        assert_eq!(wide, Err(Fault::OutOfRange));
    }

    #[test]
    fn dates_are_those_of_their_type() {
        assert_eq!(date("1970-01-01", DATE_DAYS), Ok(0));
        assert_eq!(date("2149-06-06", DATE_DAYS), Ok(65_535));
        assert_eq!(date("2149-06-07", DATE_DAYS), Err(Fault::OutOfRange));
        assert_eq!(date("1969-12-31", DATE_DAYS), Err(Fault::OutOfRange));
        assert_eq!(date("1900-01-01", DATE32_DAYS), Ok(DATE32_DAYS.0));
        assert_eq!(date("2299-12-31", DATE32_DAYS), Ok(DATE32_DAYS.1));
        assert_eq!(date("1899-12-31", DATE32_DAYS), Err(Fault::OutOfRange));
        assert_eq!(date("2300-01-01", DATE32_DAYS), Err(Fault::OutOfRange));
        for wrong in [
            "2026-02-29",
            "2026-2-9",
            "2026-11-21T00:00:00Z",
            "",
            "20261121",
            "2026-00-10",
        ] {
            assert_eq!(
                date(wrong, DATE_DAYS).map_err(Fault::code),
                Err("bad_date"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn uuids_and_addresses_have_few_forms() {
        let bytes = [
            0xf4, 0x7a, 0xc1, 0x0b, 0x58, 0xcc, 0x43, 0x72, 0xa5, 0x67, 0x0e, 0x02, 0xb2, 0xc3, 0xd4, 0x79,
        ];
        for form in [
            "f47ac10b-58cc-4372-a567-0e02b2c3d479",
            "F47AC10B58CC4372A5670E02B2C3D479",
        ] {
            assert_eq!(uuid(form), Ok(bytes));
        }
        for wrong in [
            "",
            "{f47ac10b-58cc-4372-a567-0e02b2c3d479}",
            "f47ac10b58cc-4372-a567-0e02b2c3d4790",
            "f47ac10b-58cc-4372-a567-0e02b2c3d47g",
            "é47ac10b58cc4372a5670e02b2c3d47",
        ] {
            assert_eq!(uuid(wrong), Err(Fault::BadUuid), "{wrong}");
        }
        assert_eq!(ipv4("::ffff:1.2.3.4"), Ok(Ipv4Addr::new(1, 2, 3, 4)));
        assert_eq!(ipv4("::1"), Err(Fault::BadAddress));
        assert_eq!(ipv4("1.2.3.04"), Err(Fault::BadAddress));
        assert_eq!(ipv6("1.2.3.4"), Ok(Ipv4Addr::new(1, 2, 3, 4).to_ipv6_mapped()));
        assert_eq!(ipv6("fe80::1%eth0"), Err(Fault::BadAddress));
    }

    proptest! {
        #[test]
        fn a_decimal_written_as_text_is_read_back(value in any::<i128>(), scale in 0u8..38) {
            let digits = format!("{:0>40}", value.unsigned_abs());
            let (whole, fraction) = digits.split_at(40 - usize::from(scale));
            let point = if fraction.is_empty() { "" } else { "." };
            let sign = if value < 0 { "-" } else { "" };
            let written = format!("{sign}{whole}{point}{fraction}");
            prop_assert_eq!(text(&written, 76, scale), Ok(value.to_string()));
        }

        #[test]
        fn a_double_of_few_digits_is_what_was_sent(value in -999_999_999_999_999i64..=999_999_999_999_999, scale in 0u8..=20) {
            let sent: f64 = format!("{value}e-{scale}").parse().expect("a number");
            prop_assert_eq!(double(sent, 76, scale), Ok(value.to_string()));
        }

        #[test]
        fn no_text_makes_it_panic(sent in "[-0-9.e:a-f]{0,60}", any in "\\PC{0,40}") {
            for sent in [sent, any] {
                let _ = (text(&sent, 76, 10), uuid(&sent), ipv4(&sent), ipv6(&sent), date(&sent, DATE_DAYS));
            }
        }
    }
}
