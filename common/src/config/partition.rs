//! How a table is partitioned. We compute the partition of each row ourselves, so that one insert
//! never spans two (R12); the ids are those of ClickHouse's `_partition_id`, in UTC.

use crate::ids::Name;
use jiff::civil::Weekday;
use serde::de::{Deserialize, Deserializer, Error};
use std::fmt;

/// `partition_by`: none, or one function of one time column.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PartitionBy {
    #[default]
    None,
    Date(Name),
    Monday(Name),
    Month(Name),
    Hour(Name),
}

impl PartitionBy {
    /// Reads `toDate(timestamp)` and the like.
    ///
    /// # Errors
    /// A sentence naming what is known.
    pub fn parse(text: &str) -> Result<Self, String> {
        let compact: String = text.chars().filter(|c| !c.is_whitespace() && *c != '`').collect();
        if ["", "none", "tuple()"].contains(&compact.as_str()) {
            return Ok(Self::None);
        }
        let wrong = || {
            format!(
                "partition_by {text:?} is not known: use none, or toDate, toMonday, toYYYYMM or \
                 toStartOfHour of one column"
            )
        };
        let (function, rest) = compact.split_once('(').ok_or_else(wrong)?;
        let column =
            Name::new(rest.strip_suffix(')').ok_or_else(wrong)?).map_err(|error| error.to_string())?;
        match function {
            "toDate" => Ok(Self::Date(column)),
            "toMonday" => Ok(Self::Monday(column)),
            "toYYYYMM" => Ok(Self::Month(column)),
            "toStartOfHour" => Ok(Self::Hour(column)),
            _ => Err(wrong()),
        }
    }

    /// The column that decides, if any.
    #[must_use]
    pub fn column(&self) -> Option<&Name> {
        match self {
            Self::None => None,
            Self::Date(column) | Self::Monday(column) | Self::Month(column) | Self::Hour(column) => {
                Some(column)
            }
        }
    }

    /// The number of the partition that a time falls into: equal numbers, same partition. Cheaper
    /// than [`Self::id`], for grouping rows.
    #[must_use]
    pub fn slot(&self, unix_seconds: i64) -> i64 {
        let day = unix_seconds.div_euclid(86_400);
        match self {
            Self::None => 0,
            Self::Date(_) => day,
            // 1970-01-01 was a Thursday.
            Self::Monday(_) => (day + 3).div_euclid(7),
            Self::Month(_) => month_of(unix_seconds),
            Self::Hour(_) => unix_seconds.div_euclid(3_600),
        }
    }

    /// ClickHouse's `_partition_id` of a time.
    #[must_use]
    pub fn id(&self, unix_seconds: i64) -> String {
        let date = date_of(unix_seconds);
        match self {
            Self::None => "all".into(),
            Self::Date(_) => date.strftime("%Y%m%d").to_string(),
            Self::Monday(_) => monday_of(date).strftime("%Y%m%d").to_string(),
            Self::Month(_) => date.strftime("%Y%m").to_string(),
            Self::Hour(_) => (unix_seconds.div_euclid(3_600) * 3_600).to_string(),
        }
    }
}

fn date_of(unix_seconds: i64) -> jiff::civil::Date {
    let time = jiff::Timestamp::from_second(unix_seconds).unwrap_or_default();
    time.to_zoned(jiff::tz::TimeZone::UTC).date()
}

fn monday_of(date: jiff::civil::Date) -> jiff::civil::Date {
    let back = i64::from(date.weekday().since(Weekday::Monday));
    date.checked_sub(jiff::Span::new().days(back)).unwrap_or(date)
}

fn month_of(unix_seconds: i64) -> i64 {
    let date = date_of(unix_seconds);
    i64::from(date.year()) * 12 + i64::from(date.month())
}

impl fmt::Display for PartitionBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("tuple()"),
            Self::Date(column) => write!(f, "toDate({column})"),
            Self::Monday(column) => write!(f, "toMonday({column})"),
            Self::Month(column) => write!(f, "toYYYYMM({column})"),
            Self::Hour(column) => write!(f, "toStartOfHour({column})"),
        }
    }
}

impl<'de> Deserialize<'de> for PartitionBy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> PartitionBy {
        PartitionBy::parse(text).expect("known")
    }

    #[test]
    fn ids_are_those_of_clickhouse() {
        let at = 1_795_231_830; // 2026-11-21 03:30:30 UTC, a Saturday
        assert_eq!(parse("toDate(ts)").id(at), "20261121");
        assert_eq!(parse("toMonday(ts)").id(at), "20261116");
        assert_eq!(parse("toYYYYMM( ts )").id(at), "202611");
        assert_eq!(parse("none").id(at), "all");
        assert!(PartitionBy::parse("cityHash64(id)").is_err());
    }

    #[test]
    fn a_slot_tells_partitions_apart_as_the_id_does() {
        for text in [
            "toDate(ts)",
            "toMonday(ts)",
            "toYYYYMM(ts)",
            "toStartOfHour(ts)",
            "none",
        ] {
            let by = parse(text);
            let times: Vec<i64> = (0..400).map(|n| n * 40_000 - 3_000_000).collect();
            for pair in times.windows(2) {
                let same_id = by.id(pair[0]) == by.id(pair[1]);
                assert_eq!(same_id, by.slot(pair[0]) == by.slot(pair[1]), "{text} {pair:?}");
            }
        }
    }
}
