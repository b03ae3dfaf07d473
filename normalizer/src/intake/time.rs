//! Times: RFC 3339 text and epoch numbers, into whole seconds and nanoseconds.
//!
//! Decisions: the offset must be there (`Z` or `±hh:mm`, `-00:00` included); `T`, `t` or a space
//! stands between date and time; digits past the ninth are read and dropped; second 60 is the first
//! second of the next minute, as in POSIX. Digits finer than the column are cut off, never rounded,
//! so that an event never moves into the future.

use jiff::Timestamp;
use jiff::tz::{AmbiguousOffset, TimeZone};
use sluice_common::config::EpochUnit;

/// A point in time: whole seconds since 1970 in UTC, and nanoseconds onwards from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment {
    pub seconds: i64,
    pub nanos: u32,
}

const NANOS: u32 = 1_000_000_000;

impl Moment {
    /// Reads RFC 3339.
    ///
    /// # Errors
    /// What is wrong, as the end of a sentence that begins with the text.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.as_bytes();
        if text.len() < 20 {
            return Err("is too short for date, time and offset");
        }
        let days = date(text)?;
        if !matches!(text[10], b'T' | b't' | b' ') {
            return Err("has no T between date and time");
        }
        let of_day = time_of_day(text)?;
        let (nanos, offset_at) = fraction(text)?;
        let offset = offset(&text[offset_at..])?;
        Ok(Self {
            seconds: days * 86_400 + of_day - offset,
            nanos,
        })
    }

    /// Reads RFC 3339, or the same without an offset as local time of `zone`. Of a local time that the
    /// zone's clock showed twice, the first is taken; one that it skipped is refused.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_local(text: &str, zone: &TimeZone) -> Result<Self, &'static str> {
        let bytes = text.as_bytes();
        let has_offset =
            bytes.len() > 19 && bytes[19..].iter().any(|c| matches!(c, b'Z' | b'z' | b'+' | b'-'));
        if has_offset || bytes.len() < 19 {
            return Self::parse(text);
        }
        // As if it were UTC; the zone's own offset is taken off then.
        let mut with_offset = [b'Z'; 64];
        let room = with_offset.get_mut(..=bytes.len()).ok_or("has too many digits")?;
        room[..bytes.len()].copy_from_slice(bytes);
        let as_utc = std::str::from_utf8(room).map_err(|_| "is no time")?;
        let wall = Self::parse(as_utc)?;
        Ok(Self {
            seconds: wall.seconds - offset_at(wall.seconds, zone)?,
            nanos: wall.nanos,
        })
    }

    /// A whole number of `unit`s since 1970.
    #[must_use]
    pub fn from_epoch(value: i64, unit: EpochUnit) -> Self {
        let per_second = per_second(unit);
        let rest = value.rem_euclid(per_second);
        Self {
            seconds: value.div_euclid(per_second),
            nanos: u32::try_from(rest * (i64::from(NANOS) / per_second)).unwrap_or(0),
        }
    }

    /// Seconds since 1970 with a fraction, to the microsecond: a double holds no more of a time of
    /// our days, and cutting it off finer would turn `.123` into `.122`.
    #[must_use]
    pub fn from_fractional_seconds(value: f64) -> Option<Self> {
        let micros = (value * 1e6).round();
        (micros.abs() < 9e18).then(|| Self::from_epoch(micros as i64, EpochUnit::Us))
    }

    /// Without the digits past `digits` after the point.
    #[must_use]
    pub fn cut_to(self, digits: u8) -> Self {
        let step = 10u32.pow(9 - u32::from(digits.min(9)));
        Self {
            seconds: self.seconds,
            nanos: self.nanos - self.nanos % step,
        }
    }

    /// In ticks of which a second has `per_second`, a power of ten up to 10^9. The caller has
    /// checked the range.
    #[must_use]
    pub fn ticks(self, per_second: i64) -> i64 {
        let fraction = i64::from(self.nanos) / (i64::from(NANOS) / per_second);
        self.seconds.saturating_mul(per_second).saturating_add(fraction)
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn unix_ms(self) -> i64 {
        self.ticks(1_000)
    }
}

fn per_second(unit: EpochUnit) -> i64 {
    match unit {
        EpochUnit::S => 1,
        EpochUnit::Ms => 1_000,
        EpochUnit::Us => 1_000_000,
        EpochUnit::Ns => 1_000_000_000,
    }
}

/// Seconds that `zone` is ahead of UTC when its clock shows `wall` seconds since 1970.
fn offset_at(wall: i64, zone: &TimeZone) -> Result<i64, &'static str> {
    let wall = Timestamp::from_second(wall).map_err(|_| "is too far away for its time zone")?;
    let wall = TimeZone::UTC.to_datetime(wall);
    let offset = match zone.to_ambiguous_timestamp(wall).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset,
        AmbiguousOffset::Fold { before, .. } => before,
        AmbiguousOffset::Gap { .. } => return Err("names a local time that its zone's clock skipped"),
    };
    Ok(i64::from(offset.seconds()))
}

/// Days from 1970-01-01 to the date that is the whole `text`.
///
/// # Errors
/// What is wrong, as the end of a sentence that begins with the text.
pub fn parse_date(text: &str) -> Result<i64, &'static str> {
    if text.len() != 10 {
        return Err("is no date like 2026-11-21");
    }
    date(text.as_bytes())
}

/// Days from 1970-01-01 to the date at the start of `text`.
fn date(text: &[u8]) -> Result<i64, &'static str> {
    let wrong = "does not begin with a date like 2026-11-21";
    if text[4] != b'-' || text[7] != b'-' {
        return Err(wrong);
    }
    let year = two(text, 0).zip(two(text, 2)).map(|(high, low)| high * 100 + low);
    let (year, month, day) = (
        year.ok_or(wrong)?,
        two(text, 5).ok_or(wrong)?,
        two(text, 8).ok_or(wrong)?,
    );
    if !(1..=12).contains(&month) || day < 1 || day > days_in(year, month) {
        return Err("names a day that does not exist");
    }
    Ok(days_from_civil(year, month, day))
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Howard Hinnant's algorithm: years begin in March, so that the leap day is the last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn time_of_day(text: &[u8]) -> Result<i64, &'static str> {
    let wrong = "has no time like 03:30:30 behind the date";
    if text[13] != b':' || text[16] != b':' {
        return Err(wrong);
    }
    let (hour, minute) = (two(text, 11).ok_or(wrong)?, two(text, 14).ok_or(wrong)?);
    let second = two(text, 17).ok_or(wrong)?;
    if hour > 23 || minute > 59 || second > 60 {
        return Err("names a time of day that does not exist");
    }
    Ok(hour * 3_600 + minute * 60 + second)
}

/// Nanoseconds of the fraction, and where the offset begins.
fn fraction(text: &[u8]) -> Result<(u32, usize), &'static str> {
    if text[19] != b'.' {
        return Ok((0, 19));
    }
    let digits = text[20..].iter().take_while(|c| c.is_ascii_digit()).count();
    if digits == 0 {
        return Err("has a point but no digits behind it");
    }
    let value = |at: usize| text[20..20 + digits].get(at).map_or(0, |c| u32::from(c - b'0'));
    let nanos = (0..9).fold(0, |sum, at| sum * 10 + value(at));
    Ok((nanos, 20 + digits))
}

/// Seconds that local time is ahead of UTC.
fn offset(text: &[u8]) -> Result<i64, &'static str> {
    let wrong = "has no offset: end it with Z or one like +01:00";
    let sign = match text {
        [b'Z' | b'z'] => return Ok(0),
        [b'+', _, _, b':', _, _] => 1,
        [b'-', _, _, b':', _, _] => -1,
        _ => return Err(wrong),
    };
    let (hours, minutes) = (two(text, 1).ok_or(wrong)?, two(text, 4).ok_or(wrong)?);
    if hours > 23 || minutes > 59 {
        return Err("has an offset that does not exist");
    }
    Ok(sign * (hours * 3_600 + minutes * 60))
}

fn two(text: &[u8], at: usize) -> Option<i64> {
    let (high, low) = (text[at].wrapping_sub(b'0'), text[at + 1].wrapping_sub(b'0'));
    (high < 10 && low < 10).then(|| i64::from(high) * 10 + i64::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Moment {
        Moment::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn the_forms_of_rfc_3339_are_read() {
        let expected = Moment {
            seconds: 1_795_231_830,
            nanos: 0,
        };
        for text in [
            "2026-11-21T03:30:30Z",
            "2026-11-21t03:30:30z",
            "2026-11-21 04:30:30+01:00",
            "2026-11-20T22:00:30-05:30",
            "2026-11-21T03:30:30.0-00:00",
            "2026-11-21T03:30:30.000000000000Z",
        ] {
            assert_eq!(at(text), expected, "{text}");
        }
        assert_eq!(at("2026-11-21T03:29:60Z"), at("2026-11-21T03:30:00Z"));
        assert_eq!(at("2026-11-21T03:30:30.1234567899Z").nanos, 123_456_789);
        assert_eq!(at("2026-11-21T03:30:30.5Z").nanos, 500_000_000);
        assert_eq!(
            at("1969-12-31T23:59:59.25Z"),
            Moment {
                seconds: -1,
                nanos: 250_000_000
            }
        );
        assert_eq!(at("2000-02-29T00:00:00Z").seconds, 951_782_400);
    }

    #[test]
    fn what_is_not_rfc_3339_says_what_is_missing() {
        for (text, part) in [
            ("2026-11-21", "too short"),
            ("2026-11-21T03:30:30.1", "offset"),
            ("2026-02-29T03:30:30Z", "day that does not exist"),
            ("2026-13-01T03:30:30Z", "day that does not exist"),
            ("2026-11-21T24:30:30Z", "time of day"),
            ("2026-11-21T03:30:61Z", "time of day"),
            ("2026-11-21T03:30:30.Z", "digits"),
            ("2026-11-21X03:30:30Z", "no T"),
            ("2026/11/21T03:30:30Z", "date"),
            ("2026-11-21T03-30-30Z", "time like"),
            ("2026-11-21T03:30:30+24:00", "offset that does not exist"),
            ("2026-11-21T03:30:30+0100", "offset"),
            ("\u{661}2026-11-21T03:30:30Z", "date"),
        ] {
            let error = Moment::parse(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    fn zone_named(name: &str) -> TimeZone {
        TimeZone::get(name).expect("a zone")
    }

    #[test]
    fn local_times_follow_the_zone_s_clock() {
        let berlin = zone_named("Europe/Berlin");
        for (local, utc) in [
            ("2026-11-21T04:30:30", "2026-11-21T03:30:30Z"),
            ("2026-07-01 05:30:30.125", "2026-07-01T03:30:30.125Z"),
            ("2026-11-21T03:30:30Z", "2026-11-21T03:30:30Z"),
            ("2026-11-21T03:30:30-02:00", "2026-11-21T05:30:30Z"),
            // 02:30 comes twice: the first one is summer time.
            ("2026-10-25T02:30:00", "2026-10-25T00:30:00Z"),
            ("2026-10-25T03:00:00", "2026-10-25T02:00:00Z"),
            ("2026-03-29T01:59:59", "2026-03-29T00:59:59Z"),
            ("2026-03-29T03:00:00", "2026-03-29T01:00:00Z"),
        ] {
            assert_eq!(Moment::parse_local(local, &berlin), Ok(at(utc)), "{local}");
        }
        for (local, why) in [
            ("2026-03-29T02:30:00", "skipped"),
            ("2026-11-21", "too short"),
            ("2026-11-21T03:30:3", "too short"),
            ("2026-11-21T03:30:30 ", "offset"),
        ] {
            assert!(
                Moment::parse_local(local, &berlin).is_err_and(|e| e.contains(why)),
                "{local}"
            );
        }
        let long = format!("2026-11-21T03:30:30.{}", "1".repeat(44));
        assert_eq!(Moment::parse_local(&long, &berlin), Err("has too many digits"));
    }

    #[test]
    fn epoch_numbers_are_read_in_their_unit_and_cut_not_rounded() {
        let moment = Moment::from_epoch(1_700_000_000_999, EpochUnit::Ms);
        assert_eq!(
            moment,
            Moment {
                seconds: 1_700_000_000,
                nanos: 999_000_000
            }
        );
        assert_eq!(Moment::from_epoch(-1, EpochUnit::Ns).seconds, -1);
        assert_eq!(moment.cut_to(0).nanos, 0);
        assert_eq!(moment.cut_to(1).ticks(1_000), 1_700_000_000_900);
        let fractional = Moment::from_fractional_seconds(1_700_000_000.123).expect("in range");
        assert_eq!(fractional.unix_ms(), 1_700_000_000_123);
        assert_eq!(Moment::from_fractional_seconds(1e300), None);
    }

    proptest! {
        #[test]
        fn it_agrees_with_jiff(seconds in -2_208_988_800i64..10_413_791_999, nanos in 0u32..1_000_000_000) {
            let time = jiff::Timestamp::new(seconds, 0).expect("in range");
            let text = format!("{}.{nanos:09}Z", time.strftime("%Y-%m-%dT%H:%M:%S"));
            prop_assert_eq!(at(&text), Moment { seconds, nanos });
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC*", tail in "[0-9TZtz:.+ -]{0,40}") {
            let _ = Moment::parse(&text);
            let _ = Moment::parse(&tail);
            for zone in ["Europe/Berlin", "UTC"] {
                let _ = Moment::parse_local(&text, &zone_named(zone));
                let _ = Moment::parse_local(&format!("2026-11-21T03:30:30{tail}"), &zone_named(zone));
            }
        }
    }
}
