//! Rows as JSON: what a dead letter keeps of one, and what a topic is sent.

use crate::assemble::uuid_text;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    TimestampMicrosecondType as Us, TimestampMillisecondType as Ms, TimestampNanosecondType as Ns,
    TimestampSecondType as S,
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use jiff::Timestamp;
use serde_json::{Map, Value};
use sluice_common::record::TYPE_MARK;

/// One row as a JSON object, nulls left out: as a client may send it.
pub(crate) fn row_json(batch: &RecordBatch, row: usize) -> String {
    let mut members = Map::new();
    for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let mut value = cell(array.as_ref(), row);
        let is_json = field.metadata().get(TYPE_MARK).is_some_and(|mark| mark == "json");
        if let (true, Value::String(text)) = (is_json, &value) {
            value = serde_json::from_str(text).unwrap_or(value);
        }
        if !value.is_null() {
            members.insert(field.name().clone(), value);
        }
    }
    Value::Object(members).to_string()
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "Arrow has 40 types; what has no JSON of its own is text"
)]
pub(crate) fn cell(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Map(_, _) => {
            let entries = array.as_map().value(row);
            let [keys, values] = entries.columns() else {
                return Value::Null;
            };
            let pair = |at| (text(keys.as_ref(), at), cell(values.as_ref(), at));
            Value::Object((0..entries.len()).map(pair).collect())
        }
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            (0..items.len()).map(|at| cell(items.as_ref(), at)).collect()
        }
        // A JSON number would not keep all of a decimal's digits.
        DataType::Decimal128(..) | DataType::Decimal256(..) => Value::String(text(array, row)),
        DataType::FixedSizeBinary(16) => Value::String(uuid_text(array.as_fixed_size_binary().value(row))),
        DataType::Timestamp(unit, _) => time(array, *unit, row).map_or(Value::Null, Value::String),
        kind if kind.is_numeric() || *kind == DataType::Boolean => {
            let written = text(array, row);
            serde_json::from_str(&written).unwrap_or(Value::String(written))
        }
        _ => Value::String(text(array, row)),
    }
}

/// RFC 3339 in UTC, as a client may send it.
fn time(array: &dyn Array, unit: TimeUnit, row: usize) -> Option<String> {
    let time = match unit {
        TimeUnit::Second => Timestamp::from_second(array.as_primitive::<S>().value(row)),
        TimeUnit::Millisecond => Timestamp::from_millisecond(array.as_primitive::<Ms>().value(row)),
        TimeUnit::Microsecond => Timestamp::from_microsecond(array.as_primitive::<Us>().value(row)),
        TimeUnit::Nanosecond => Timestamp::from_nanosecond(i128::from(array.as_primitive::<Ns>().value(row))),
    };
    time.ok().map(|time| time.to_string())
}

pub(crate) fn text(array: &dyn Array, row: usize) -> String {
    arrow_cast::display::array_value_to_string(array, row).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::builder::{Int64Builder, ListBuilder, MapBuilder, StringBuilder};
    use arrow_array::{
        ArrayRef, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float64Array, StringArray,
        TimestampMillisecondArray,
    };
    use arrow_schema::{Field, Schema};
    use std::sync::Arc;

    #[test]
    fn every_type_is_written_as_it_is_sent() {
        let json = Field::new("doc", DataType::Utf8, false)
            .with_metadata([(TYPE_MARK.to_owned(), "json".to_owned())].into());
        let decimal = Decimal128Array::from(vec![-1_250]).with_precision_and_scale(38, 2);
        let decimal: ArrayRef = Arc::new(decimal.expect("it fits"));
        let id = FixedSizeBinaryArray::try_from_iter([[0xab; 16]].into_iter()).expect("16 bytes");
        let mut list = ListBuilder::new(Int64Builder::new());
        list.append_value([Some(1), None]);
        let columns: [(Field, ArrayRef); 5] = [
            (json, Arc::new(StringArray::from(vec![r#"{"a":[1,null]}"#]))),
            (Field::new("price", decimal.data_type().clone(), false), decimal),
            (
                Field::new("id", DataType::FixedSizeBinary(16), false),
                Arc::new(id),
            ),
            (
                Field::new("day", DataType::Date32, false),
                Arc::new(Date32Array::from(vec![-1])),
            ),
            (
                Field::new("list", DataType::new_list(DataType::Int64, true), false),
                Arc::new(list.finish()),
            ),
        ];
        let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns.into_iter().unzip();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).expect("columns");
        let expected = r#"{"day":"1969-12-31","doc":{"a":[1,null]},"id":"abababab-abab-abab-abab-abababababab","list":[1,null],"price":"-12.50"}"#;
        assert_eq!(row_json(&batch, 0), expected);
    }

    #[test]
    fn a_row_is_written_as_the_event_that_a_client_would_send() {
        let mut map = MapBuilder::new(None, StringBuilder::new(), Int64Builder::new());
        map.keys().append_value("n \"quoted\"");
        map.values().append_value(-7);
        map.append(true).expect("one key, one value");
        let columns: [(&str, ArrayRef); 4] = [
            (
                "at",
                Arc::new(TimestampMillisecondArray::from(vec![1_795_231_830_123]).with_timezone("UTC")),
            ),
            ("none", Arc::new(StringArray::from(vec![None::<&str>]))),
            ("ratio", Arc::new(Float64Array::from(vec![0.5]))),
            ("map", Arc::new(map.finish())),
        ];
        let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
        let expected = r#"{"at":"2026-11-21T03:30:30.123Z","map":{"n \"quoted\"":-7},"ratio":0.5}"#;
        assert_eq!(row_json(&batch, 0), expected);
    }
}
