//! Which Arrow type holds a field's values, in records and on their way to ClickHouse.
//!
//! Decisions, each of which ClickHouse takes without loss *(measured, 26.7)*: enums are their names, as
//! a dictionary; fixed strings are strings without their zeros; UUIDs are 16 bytes as written; addresses
//! and JSON are text. What an Arrow type does not tell apart has the field's type beside it, because
//! ClickHouse makes NULL of a text that it cannot parse into a nullable column, and moves a day into the
//! range of `Date`, both without a word. Within arrays and maps nothing is a dictionary, because joining records could put
//! a value into one twice, which ClickHouse refuses.

use super::schema::FieldPlan;
use arrow_array::{
    ArrayRef, ArrowPrimitiveType, PrimitiveArray, TimestampMicrosecondArray, TimestampMillisecondArray,
    TimestampNanosecondArray, TimestampSecondArray,
};
use arrow_buffer::{NullBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field as ArrowField, Fields, TimeUnit};
use sluice_common::config::{FieldType, Kind};
use sluice_common::record::TYPE_MARK;
use std::collections::HashMap;
use std::sync::Arc;

/// The column of a field.
#[must_use]
pub fn arrow_field(field: &FieldPlan) -> ArrowField {
    let column = ArrowField::new(field.name.as_str(), arrow_type(&field.kind), field.nullable);
    if !is_marked(&field.kind) {
        return column;
    }
    let mark = (TYPE_MARK.to_owned(), field.kind.to_string());
    column.with_metadata(HashMap::from([mark]))
}

/// Whether other fields have the same Arrow type and other values.
fn is_marked(kind: &Kind) -> bool {
    match kind.innermost() {
        Kind::FixedString(_) | Kind::Ipv4 | Kind::Ipv6 | Kind::Json | Kind::Date | Kind::Date32 => true,
        Kind::String | Kind::LowCardinalityString | Kind::Enum(_) | Kind::Bool | Kind::Uuid => false,
        Kind::Int8 | Kind::Int16 | Kind::Int32 | Kind::Int64 => false,
        Kind::UInt8 | Kind::UInt16 | Kind::UInt32 | Kind::UInt64 => false,
        Kind::Float32 | Kind::Float64 | Kind::Decimal { .. } => false,
        Kind::DateTime(_) | Kind::DateTime64(..) => false,
        Kind::MapStringString | Kind::Map(_) | Kind::Array(_) => false,
    }
}

/// The Arrow type of a field's column.
#[must_use]
pub fn arrow_type(kind: &Kind) -> DataType {
    match kind {
        Kind::LowCardinalityString | Kind::Enum(_) => {
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
        }
        Kind::String | Kind::FixedString(_) | Kind::Json | Kind::Ipv4 | Kind::Ipv6 => DataType::Utf8,
        Kind::Bool => DataType::Boolean,
        Kind::Int8 => DataType::Int8,
        Kind::Int16 => DataType::Int16,
        Kind::Int32 => DataType::Int32,
        Kind::Int64 => DataType::Int64,
        Kind::UInt8 => DataType::UInt8,
        Kind::UInt16 => DataType::UInt16,
        Kind::UInt32 => DataType::UInt32,
        Kind::UInt64 => DataType::UInt64,
        Kind::Float32 => DataType::Float32,
        Kind::Float64 => DataType::Float64,
        Kind::DateTime(_) | Kind::DateTime64(..) => DataType::Timestamp(time_unit(kind), Some("UTC".into())),
        Kind::Decimal { precision, scale } => decimal(*precision, *scale),
        Kind::Date | Kind::Date32 => DataType::Date32,
        Kind::Uuid => DataType::FixedSizeBinary(16),
        Kind::MapStringString => map(map_fields()),
        Kind::Map(inner) => map(Fields::from(vec![
            ArrowField::new("keys", DataType::Utf8, false),
            inner_field("values", inner),
        ])),
        Kind::Array(inner) => DataType::List(Arc::new(inner_field("item", inner))),
    }
}

fn inner_field(name: &str, inner: &FieldType) -> ArrowField {
    let mut plain = arrow_type(&inner.kind);
    if let DataType::Dictionary(_, values) = plain {
        plain = *values;
    }
    ArrowField::new(name, plain, inner.nullable)
}

fn decimal(precision: u8, scale: u8) -> DataType {
    let scale = i8::try_from(scale).unwrap_or(i8::MAX);
    if precision <= 38 {
        DataType::Decimal128(precision, scale)
    } else {
        DataType::Decimal256(precision, scale)
    }
}

fn map(entries: Fields) -> DataType {
    DataType::Map(
        Arc::new(ArrowField::new("entries", DataType::Struct(entries), false)),
        false,
    )
}

/// Key and value of a map of strings; its values are never null.
#[must_use]
pub fn map_fields() -> Fields {
    Fields::from(vec![
        ArrowField::new("keys", DataType::Utf8, false),
        ArrowField::new("values", DataType::Utf8, false),
    ])
}

/// The Arrow unit of a time: the coarsest that holds its digits.
#[must_use]
pub fn time_unit(kind: &Kind) -> TimeUnit {
    let Kind::DateTime64(digits, _) = kind else {
        return TimeUnit::Second;
    };
    match digits {
        0 => TimeUnit::Second,
        1..=3 => TimeUnit::Millisecond,
        4..=6 => TimeUnit::Microsecond,
        7.. => TimeUnit::Nanosecond,
    }
}

/// Column bytes of one value, without what lies in it; validity rounded up to a byte.
#[must_use]
pub fn fixed_bytes(kind: &Kind) -> usize {
    let bytes = match kind {
        Kind::Bool | Kind::Int8 | Kind::UInt8 => 1,
        Kind::Int16 | Kind::UInt16 => 2,
        Kind::Int32 | Kind::UInt32 | Kind::Float32 | Kind::Date | Kind::Date32 => 4,
        // The end of what lies elsewhere.
        Kind::String | Kind::LowCardinalityString | Kind::FixedString(_) | Kind::Enum(_) => 4,
        Kind::Ipv4 | Kind::Ipv6 | Kind::Json | Kind::MapStringString | Kind::Map(_) | Kind::Array(_) => 4,
        Kind::Int64 | Kind::UInt64 | Kind::Float64 => 8,
        Kind::DateTime(_) | Kind::DateTime64(..) => 8,
        Kind::Uuid => 16,
        Kind::Decimal { precision, .. } if *precision <= 38 => 16,
        Kind::Decimal { .. } => 32,
    };
    bytes + 1
}

/// A column of numbers.
///
/// # Errors
/// Where values and nulls are not as many.
pub fn primitive<T: ArrowPrimitiveType>(
    values: Vec<T::Native>,
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef, ArrowError> {
    Ok(Arc::new(PrimitiveArray::<T>::try_new(
        ScalarBuffer::from(values),
        nulls,
    )?))
}

/// A column of times, UTC.
///
/// # Errors
/// Where values and nulls are not as many.
pub fn times(
    unit: TimeUnit,
    values: ScalarBuffer<i64>,
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef, ArrowError> {
    Ok(match unit {
        TimeUnit::Second => Arc::new(TimestampSecondArray::try_new(values, nulls)?.with_timezone("UTC")),
        TimeUnit::Millisecond => {
            Arc::new(TimestampMillisecondArray::try_new(values, nulls)?.with_timezone("UTC"))
        }
        TimeUnit::Microsecond => {
            Arc::new(TimestampMicrosecondArray::try_new(values, nulls)?.with_timezone("UTC"))
        }
        TimeUnit::Nanosecond => {
            Arc::new(TimestampNanosecondArray::try_new(values, nulls)?.with_timezone("UTC"))
        }
    })
}
