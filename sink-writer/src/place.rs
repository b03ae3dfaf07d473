//! Which ClickHouse partition a row falls into: computed here, exactly as the server would, because
//! one insert must not span two (R12) and verification asks by `_partition_id` (R14).
//!
//! Facts (ClickHouse 26.7, measured): `_partition_id` is `all` without a key, `20261121` for `toDate`,
//! `20261116` for `toMonday` (the Monday), `202611` for `toYYYYMM` and the epoch second for
//! `toStartOfHour`. Outside 1970..2106 the functions wrap or saturate, each in its own way (`toDate` of
//! one second before 1970 is 2149-06-06), so rows out there are not placed at all: they are dead letters.

use sluice_common::config::PartitionBy;

/// The first Monday: before it `toMonday` saturates.
const FIRST_SECOND: i64 = 4 * 86_400;
/// The last second of `DateTime`.
const LAST_SECOND: i64 = u32::MAX as i64;
/// The id of the only partition of a table without a key.
pub const ALL: &str = "all";

/// How rows of a table are placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    by: PartitionBy,
}

/// A row that cannot be placed: its time is outside what partition functions can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfRange;

impl Placement {
    /// Reads `system.tables.partition_key`; `column_type` gives the ClickHouse type of a column.
    ///
    /// # Errors
    /// A sentence that says why rows of this table cannot be placed.
    pub fn read(
        partition_key: &str,
        server_zone: &str,
        column_type: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let by = PartitionBy::parse(partition_key).map_err(|_| {
            format!(
                "its partition key {partition_key:?} cannot be computed here: use none, or toDate, toMonday, \
                 toYYYYMM or toStartOfHour of one DateTime or DateTime64 column"
            )
        })?;
        if let Some(column) = by.column() {
            let text = column_type(column.as_str())
                .ok_or_else(|| format!("its partition column {column} is not in system.columns"))?;
            check_zone(column.as_str(), &text, server_zone)?;
        }
        Ok(Self { by })
    }

    /// The placement that a dataset's config asks for.
    #[must_use]
    pub fn configured(by: &PartitionBy) -> Self {
        Self { by: by.clone() }
    }

    /// The column that decides, if any.
    #[must_use]
    pub fn column(&self) -> Option<&str> {
        self.by.column().map(sluice_common::ids::Name::as_str)
    }

    /// A number that is the same for rows of the same partition.
    ///
    /// # Errors
    /// [`OutOfRange`].
    pub fn slot(&self, unix_seconds: i64) -> Result<i64, OutOfRange> {
        if (FIRST_SECOND..=LAST_SECOND).contains(&unix_seconds) {
            Ok(self.by.slot(unix_seconds))
        } else {
            Err(OutOfRange)
        }
    }

    /// `_partition_id` of a time for which [`Self::slot`] gave a number.
    #[must_use]
    pub fn id(&self, unix_seconds: i64) -> String {
        self.by.id(unix_seconds)
    }
}

fn check_zone(column: &str, type_text: &str, server_zone: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("its partition column {column} is {type_text}: {what}"));
    let Some(arguments) = type_text.strip_prefix("DateTime") else {
        return wrong("only DateTime and DateTime64 can be computed here");
    };
    let zone = arguments.split('\'').nth(1).unwrap_or(server_zone);
    if matches!(
        zone,
        "UTC" | "Etc/UTC" | "GMT" | "Etc/GMT" | "Zulu" | "Etc/Zulu" | "UCT" | "Etc/UCT"
    ) {
        return Ok(());
    }
    wrong("its partitions follow another time zone than UTC, which cannot be computed here")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(key: &str, column: &'static str, zone: &str) -> Result<Placement, String> {
        Placement::read(key, zone, |name| (name == "ts").then(|| column.to_owned()))
    }

    #[test]
    fn keys_of_one_utc_time_are_placed_and_others_say_why_not() {
        assert!(read("", "DateTime", "UTC").is_ok_and(|place| place.column().is_none()));
        assert!(read("toDate(ts)", "DateTime64(3, 'UTC')", "Europe/Berlin").is_ok());
        assert!(read("toDate(ts)", "DateTime", "Etc/UTC").is_ok());
        assert!(read("toDate(ts)", "DateTime64(3)", "Europe/Berlin").is_err_and(|e| e.contains("time zone")));
        assert!(read("toDate(ts)", "DateTime('Asia/Tokyo')", "UTC").is_err());
        assert!(read("toDate(ts)", "Date32", "UTC").is_err());
        assert!(read("toDate(other)", "DateTime", "UTC").is_err());
        assert!(read("(tenant, toDate(ts))", "DateTime", "UTC").is_err());
    }

    #[test]
    fn times_that_clickhouse_would_wrap_are_not_placed() {
        let place = read("toMonday(ts)", "DateTime64(3, 'UTC')", "UTC").expect("known");
        for second in [i64::MIN, -1, 0, FIRST_SECOND - 1, LAST_SECOND + 1, i64::MAX] {
            assert_eq!(place.slot(second), Err(OutOfRange), "{second}");
        }
        assert!(place.slot(FIRST_SECOND).is_ok());
        assert_eq!(place.id(FIRST_SECOND), "19700105");
    }
}
