//! Which Arrow types land in which ClickHouse types without loss.
//!
//! ClickHouse casts whatever it is sent, and silently: an Int64 of 300 into UInt8 is 44, a negative
//! one into UInt64 wraps, a Float64 into Int64 is cut, a time beyond 2106 saturates, a day goes to the
//! nearest of `Date`, a text that is no UUID or address, or too long, is NULL where the column is nullable
//! and an error elsewhere (measured). So a column is sent only where its type fits; otherwise the table is refused here, with nothing sent.

use arrow_schema::{DataType, Field, Fields, TimeUnit};
use sluice_common::config::{FieldType, Kind};
use sluice_common::record::TYPE_MARK;
use std::sync::Arc;

/// Whether every value of a record's column has its place in the ClickHouse type `to`. Nulls become the
/// column's default where it takes none (`input_format_null_as_default`).
#[must_use]
pub fn fits_field(from: &Field, to: &str) -> bool {
    let mark = from.metadata().get(TYPE_MARK);
    match mark.map(|text| FieldType::parse(text)) {
        Some(Ok(typed)) => marked_fits(&typed.kind, from.data_type(), to),
        // Of another release: what it is cannot be known.
        Some(Err(_)) => false,
        None => fits(from.data_type(), to),
    }
}

/// The same of a column whose Arrow type does not say all of `kind`. What intake has checked never
/// becomes NULL, so a nullable column takes it too.
fn marked_fits(kind: &Kind, from: &DataType, to: &str) -> bool {
    let plain = bare(to);
    match (kind, from) {
        (Kind::FixedString(bytes), _) => {
            let theirs = arguments(plain, "FixedString").and_then(|text| text.parse::<u16>().ok());
            plain == "String" || theirs.is_some_and(|theirs| *bytes <= theirs)
        }
        (Kind::Ipv4, _) => matches!(plain, "IPv4" | "IPv6" | "String"),
        (Kind::Ipv6, _) => matches!(plain, "IPv6" | "String"),
        (Kind::Json, _) => plain == "String" || plain == "JSON" || plain.starts_with("JSON("),
        (Kind::Date, _) => matches!(plain, "Date" | "Date32"),
        (Kind::Date32, _) => plain == "Date32",
        (Kind::Array(inner), DataType::List(item)) => arguments(plain, "Array").is_some_and(|theirs| {
            takes_null_of(item, theirs) && marked_fits(&inner.kind, item.data_type(), theirs)
        }),
        (Kind::Map(inner), DataType::Map(entries, _)) => {
            let DataType::Struct(fields) = entries.data_type() else {
                return false;
            };
            let Some((key, value)) = arguments(plain, "Map").and_then(split_top) else {
                return false;
            };
            fields.len() == 2
                && fits(fields[0].data_type(), key)
                && takes_null_of(&fields[1], value)
                && marked_fits(&inner.kind, fields[1].data_type(), value)
        }
        _ => fits(from, to),
    }
}

/// The same of a column whose Arrow type says all: ours, those of dead letters, and most of records.
#[must_use]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "Arrow has 40 types; what is not known does not fit"
)]
pub fn fits(from: &DataType, to: &str) -> bool {
    let plain = bare(to);
    match from {
        DataType::Dictionary(_, values) => fits(values, to),
        DataType::Map(entries, _) => map_fits(entries.data_type(), plain),
        DataType::List(item) | DataType::LargeList(item) => {
            arguments(plain, "Array").is_some_and(|inner| inner_fits(item, inner))
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => takes_text(to),
        DataType::Timestamp(unit, _) => time_fits(*unit, plain),
        DataType::Boolean => matches!(plain, "Bool" | "UInt8"),
        DataType::Float64 => plain == "Float64",
        DataType::Float32 => matches!(plain, "Float64" | "Float32"),
        DataType::Binary | DataType::LargeBinary => plain == "String",
        DataType::Date32 => plain == "Date32",
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            decimal_fits(*precision, *scale, plain)
        }
        // Only UUIDs are sent so; into anything else their bytes would go as they are.
        DataType::FixedSizeBinary(16) => plain == "UUID",
        number => integer(number).is_some_and(|(signed, bits)| integer_fits(signed, bits, plain)),
    }
}

/// The Arrow type in which two record versions of one column meet, by the table's type.
#[must_use]
pub fn meeting_type(to: &str) -> Option<DataType> {
    let to = bare(to);
    if let Some(digits) = arguments(to, "DateTime64") {
        let unit = match digits.split(',').next()?.trim().parse::<u8>().ok()? {
            0 => TimeUnit::Second,
            1..=3 => TimeUnit::Millisecond,
            4..=6 => TimeUnit::Microsecond,
            _ => TimeUnit::Nanosecond,
        };
        return Some(DataType::Timestamp(unit, Some(Arc::from("UTC"))));
    }
    if let Some(inner) = arguments(to, "Array") {
        return Some(DataType::List(Arc::new(inner_meeting("item", inner)?)));
    }
    if let Some((_, value)) = arguments(to, "Map").and_then(split_top) {
        let entries = Fields::from(vec![
            Field::new("keys", DataType::Utf8, false),
            inner_meeting("values", value)?,
        ]);
        let entries = Field::new("entries", DataType::Struct(entries), false);
        return Some(DataType::Map(Arc::new(entries), false));
    }
    if let Some((precision, scale)) = decimal_of(to) {
        return Some(if precision <= 38 {
            DataType::Decimal128(precision, scale)
        } else {
            DataType::Decimal256(precision, scale)
        });
    }
    if to.starts_with("DateTime") {
        return Some(DataType::Timestamp(TimeUnit::Second, Some(Arc::from("UTC"))));
    }
    Some(match to {
        "UInt8" => DataType::UInt8,
        "UInt16" => DataType::UInt16,
        "UInt32" => DataType::UInt32,
        "UInt64" => DataType::UInt64,
        "Int8" => DataType::Int8,
        "Int16" => DataType::Int16,
        "Int32" => DataType::Int32,
        "Int64" => DataType::Int64,
        "Float32" => DataType::Float32,
        "Float64" => DataType::Float64,
        "Bool" => DataType::Boolean,
        "Date" | "Date32" => DataType::Date32,
        text if is_text(text) => DataType::Utf8,
        _ => return None,
    })
}

/// A value within an array or map.
fn inner_fits(from: &Field, to: &str) -> bool {
    takes_null_of(from, to) && fits(from.data_type(), to)
}

/// Within arrays and maps a null never becomes a default.
fn takes_null_of(from: &Field, to: &str) -> bool {
    !from.is_nullable() || is_nullable(to)
}

fn is_nullable(to: &str) -> bool {
    arguments(to, "LowCardinality")
        .map_or(to, |inner| inner)
        .starts_with("Nullable(")
}

/// The type without `Nullable` and `LowCardinality`, in any order.
fn bare(mut to: &str) -> &str {
    while let Some(inner) = arguments(to, "LowCardinality").or_else(|| arguments(to, "Nullable")) {
        to = inner;
    }
    to
}

fn arguments<'a>(text: &'a str, outer: &str) -> Option<&'a str> {
    text.strip_prefix(outer)?
        .strip_prefix('(')?
        .strip_suffix(')')
        .map(str::trim)
}

/// Whether text is taken, and refused by the server where it cannot be parsed.
fn takes_text(to: &str) -> bool {
    let plain = bare(to);
    let is_checked = plain == "String"
        || ["Enum8(", "Enum16(", "JSON"]
            .iter()
            .any(|name| plain.starts_with(name));
    is_text(plain) && (is_checked || !is_nullable(to))
}

fn is_text(plain: &str) -> bool {
    let parsed = ["FixedString(", "Enum8(", "Enum16(", "JSON("];
    matches!(plain, "String" | "UUID" | "IPv4" | "IPv6" | "JSON")
        || parsed.iter().any(|name| plain.starts_with(name))
}

fn map_fits(entries: &DataType, to: &str) -> bool {
    if to == "JSON" {
        return true;
    }
    let (DataType::Struct(fields), Some(inner)) = (entries, arguments(to, "Map")) else {
        return false;
    };
    let Some((key, value)) = split_top(inner) else {
        return false;
    };
    fields.len() == 2 && fits(fields[0].data_type(), key) && inner_fits(&fields[1], value)
}

/// Splits `K, V` at the comma that is inside no brackets.
fn split_top(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => return Some((text[..at].trim(), text[at + 1..].trim())),
            _ => {}
        }
    }
    None
}

fn time_fits(unit: TimeUnit, to: &str) -> bool {
    if let Some(inner) = arguments(to, "DateTime64") {
        let digits = inner
            .split(',')
            .next()
            .and_then(|text| text.trim().parse::<u8>().ok());
        let least = match unit {
            TimeUnit::Second => 0,
            TimeUnit::Millisecond => 1,
            TimeUnit::Microsecond => 4,
            TimeUnit::Nanosecond => 7,
        };
        return digits.is_some_and(|digits| digits >= least);
    }
    unit == TimeUnit::Second && (to == "DateTime" || to.starts_with("DateTime("))
}

fn inner_meeting(name: &str, to: &str) -> Option<Field> {
    Some(Field::new(name, meeting_type(to)?, is_nullable(to)))
}

fn decimal_of(to: &str) -> Option<(u8, i8)> {
    let (precision, scale) = arguments(to, "Decimal").and_then(split_top)?;
    Some((precision.parse().ok()?, scale.parse().ok()?))
}

fn decimal_fits(precision: u8, scale: i8, to: &str) -> bool {
    let Some((p, s)) = decimal_of(to) else {
        return false;
    };
    let (p, s) = (i16::from(p), i16::from(s));
    i16::from(scale) <= s && i16::from(precision) - i16::from(scale) <= p - s
}

fn integer(from: &DataType) -> Option<(bool, u16)> {
    let named = [
        (DataType::UInt8, false, 8),
        (DataType::UInt16, false, 16),
        (DataType::UInt32, false, 32),
        (DataType::UInt64, false, 64),
        (DataType::Int8, true, 8),
        (DataType::Int16, true, 16),
        (DataType::Int32, true, 32),
        (DataType::Int64, true, 64),
    ];
    named
        .into_iter()
        .find(|(number, ..)| number == from)
        .map(|(_, signed, bits)| (signed, bits))
}

fn integer_fits(signed: bool, bits: u16, to: &str) -> bool {
    if let Some(theirs) = to.strip_prefix("UInt").and_then(|text| text.parse::<u16>().ok()) {
        return !signed && bits <= theirs;
    }
    if let Some(theirs) = to.strip_prefix("Int").and_then(|text| text.parse::<u16>().ok()) {
        return if signed { bits <= theirs } else { bits < theirs };
    }
    (to == "Float64" && bits <= 32) || (to == "Float32" && bits <= 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: DataType) -> DataType {
        let pair = Fields::from(vec![
            Field::new("keys", DataType::Utf8, false),
            Field::new("values", value, true),
        ]);
        DataType::Map(
            Arc::new(Field::new("entries", DataType::Struct(pair), false)),
            false,
        )
    }

    fn list(item: DataType, is_nullable: bool) -> DataType {
        DataType::List(Arc::new(Field::new("item", item, is_nullable)))
    }

    fn marked(data_type: DataType, mark: &str) -> Field {
        let mark = (TYPE_MARK.to_owned(), mark.to_owned());
        Field::new("x", data_type, true).with_metadata([mark].into())
    }

    #[test]
    fn a_column_s_mark_says_what_its_arrow_type_does_not() {
        let texts = list(DataType::Utf8, true);
        for (from, to, does_fit) in [
            (marked(DataType::Utf8, "ipv6"), "Nullable(IPv6)", true),
            (marked(DataType::Utf8, "ipv6"), "IPv4", false),
            (marked(DataType::Utf8, "ipv4"), "Nullable(IPv6)", true),
            (marked(DataType::Utf8, "ipv4"), "UUID", false),
            (
                marked(DataType::Utf8, "fixed_string(3)"),
                "Nullable(FixedString(4))",
                true,
            ),
            (marked(DataType::Utf8, "fixed_string(3)"), "FixedString(2)", false),
            (marked(DataType::Utf8, "json"), "JSON", true),
            (marked(DataType::Utf8, "json"), "UUID", false),
            (marked(DataType::Date32, "date"), "Date", true),
            (marked(DataType::Date32, "date"), "Date32", true),
            (marked(DataType::Date32, "date32"), "Date", false),
            (
                marked(texts.clone(), "array(nullable(ipv6))"),
                "Array(Nullable(IPv6))",
                true,
            ),
            (
                marked(texts.clone(), "array(nullable(ipv6))"),
                "Array(IPv6)",
                false,
            ),
            (
                marked(texts, "array(nullable(ipv4))"),
                "Array(Nullable(UUID))",
                false,
            ),
            (
                marked(map(DataType::Date32), "map(string,nullable(date32))"),
                "Map(String, Nullable(Date))",
                false,
            ),
            (
                marked(map(DataType::Date32), "map(string,nullable(date32))"),
                "Map(String, Nullable(Date32))",
                true,
            ),
            (marked(DataType::Utf8, "of a later release"), "String", false),
        ] {
            assert_eq!(fits_field(&from, to), does_fit, "{:?} into {to}", from.metadata());
        }
    }

    #[test]
    fn versions_of_one_column_meet_in_the_table_s_type() {
        for (to, meeting) in [
            ("Decimal(9, 2)", DataType::Decimal128(9, 2)),
            ("Nullable(Decimal(76, 10))", DataType::Decimal256(76, 10)),
            ("Date", DataType::Date32),
            ("UUID", DataType::Utf8),
            ("Array(Nullable(UInt16))", list(DataType::UInt16, true)),
            ("Map(LowCardinality(String), Nullable(Int8))", map(DataType::Int8)),
        ] {
            assert_eq!(meeting_type(to), Some(meeting), "{to}");
        }
    }

    #[test]
    fn what_keeps_every_value_fits() {
        let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let ms = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
        for (from, to) in [
            (dictionary, "LowCardinality(Nullable(String))"),
            (DataType::UInt16, "Nullable(UInt16)"),
            (DataType::UInt16, "Int32"),
            (DataType::Int32, "Float64"),
            (ms.clone(), "DateTime64(3, 'UTC')"),
            (ms, "DateTime64(9)"),
            (DataType::Timestamp(TimeUnit::Second, None), "DateTime('UTC')"),
            (
                map(DataType::Utf8),
                "Map(LowCardinality(String), Nullable(String))",
            ),
            (map(DataType::Utf8), "JSON"),
            (DataType::Utf8, "Enum8('a' = 1, 'b' = 2)"),
            (DataType::Boolean, "Bool"),
            (DataType::Decimal128(18, 3), "Decimal(20, 4)"),
            (DataType::Decimal256(60, 3), "Decimal(76, 19)"),
            (DataType::FixedSizeBinary(16), "Nullable(UUID)"),
            (DataType::Date32, "Date32"),
            (list(DataType::UInt8, false), "Array(UInt64)"),
            (list(DataType::UInt8, true), "Array(Nullable(Int16))"),
            (
                list(DataType::Utf8, true),
                "Array(LowCardinality(Nullable(String)))",
            ),
            (
                list(map(DataType::Utf8), false),
                "Array(Map(String, LowCardinality(Nullable(String))))",
            ),
            (DataType::Utf8, "IPv6"),
            (DataType::Utf8, "Nullable(Enum8('a' = 1))"),
        ] {
            assert!(fits(&from, to), "{from:?} into {to}");
        }
    }

    #[test]
    fn what_clickhouse_would_silently_change_does_not_fit() {
        for (from, to) in [
            (DataType::Int64, "UInt8"),
            (DataType::Int64, "UInt64"),
            (DataType::UInt64, "Int64"),
            (DataType::Float64, "Float32"),
            (DataType::Float64, "Int64"),
            (DataType::Int64, "Float64"),
            (DataType::UInt16, "String"),
            (DataType::Utf8, "UInt16"),
            (DataType::Utf8, "DateTime64(3)"),
            (DataType::Timestamp(TimeUnit::Millisecond, None), "DateTime"),
            (DataType::Timestamp(TimeUnit::Nanosecond, None), "DateTime64(3)"),
            (map(DataType::Utf8), "Map(String, UInt8)"),
            (DataType::Decimal128(18, 3), "Decimal(18, 2)"),
            (DataType::Decimal256(76, 3), "Decimal(38, 3)"),
            (DataType::Decimal128(9, 2), "Float64"),
            (DataType::FixedSizeBinary(16), "String"),
            (DataType::FixedSizeBinary(16), "IPv6"),
            (DataType::FixedSizeBinary(16), "FixedString(16)"),
            (DataType::Date32, "DateTime"),
            (DataType::Date32, "Date"),
            (DataType::Utf8, "Nullable(UUID)"),
            (DataType::Utf8, "Nullable(IPv4)"),
            (DataType::Utf8, "LowCardinality(Nullable(FixedString(3)))"),
            (list(DataType::Utf8, true), "Array(Nullable(IPv6))"),
            (list(DataType::UInt8, true), "Array(UInt8)"),
            (list(DataType::Int64, false), "Array(Int32)"),
            (list(DataType::Utf8, false), "String"),
            (map(DataType::Utf8), "Map(String, String)"),
        ] {
            assert!(!fits(&from, to), "{from:?} into {to}");
        }
    }
}
