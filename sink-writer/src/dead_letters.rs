//! What was acknowledged and cannot become a row of its table, and copies of what was rejected: one row
//! each of `dead_letters`, with the provenance of the row that it stands for.

use crate::assemble::{Column, milliseconds, runs, stamps, uuid_text};
use crate::block::{Sights, placement_of};
use crate::ddl::DEAD_LETTERS;
use crate::place::ALL;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    TimestampMicrosecondType as Us, TimestampMillisecondType as Ms, TimestampNanosecondType as Ns,
    TimestampSecondType as S, UInt32Type,
};
use arrow_array::{Array, RecordBatch, StringArray, UInt32Array};
use arrow_schema::{DataType, TimeUnit};
use jiff::Timestamp;
use serde_json::{Map, Value};
use sluice_common::ids::{LogId, Name, source_o};
use sluice_common::limits::MAX_LETTER_BYTES;
use sluice_common::record::{Record, TYPE_MARK};
use sluice_common::wire::sink::SubKey;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Ends a payload that was cut.
pub(crate) const CUT_MARK: &str = "… (cut)";

/// One dead letter.
#[derive(Debug, Clone, Copy)]
pub struct Letter<'a> {
    record: &'a Record,
    partition: u16,
    batch: &'a RecordBatch,
    row: u32,
    stage: &'static str,
    code: &'a str,
    message: &'a str,
    field: &'a str,
    /// Place of the event in its request, where it is known.
    event_index: Option<u32>,
    /// What the client sent; none where the row is decoded.
    payload: Option<&'a str>,
}

impl<'a> Letter<'a> {
    /// The same `Idempotency-Key` identity with other content (R3).
    pub fn conflict(record: &'a Record, partition: u16, batch: &'a RecordBatch, row: u32) -> Self {
        let message = "an event with the same Idempotency-Key and index, and other content, came before it";
        Self {
            record,
            partition,
            batch,
            row,
            stage: "dedup",
            code: "idempotency_conflict",
            message,
            field: "",
            event_index: None,
            payload: None,
        }
    }

    /// The copy of a row that intake rejected: the record says all of it.
    pub fn rejected(record: &'a Record, partition: u16, batch: &'a RecordBatch, row: u32) -> Self {
        let text = |name: &str| {
            let column = batch
                .column_by_name(name)
                .and_then(|column| column.as_string_opt::<i32>());
            column.map_or("", |column| column.value(row as usize))
        };
        let index = batch.column_by_name("event_index");
        let index = index.and_then(|column| column.as_primitive_opt::<UInt32Type>());
        Self {
            record,
            partition,
            batch,
            row,
            stage: "intake",
            code: text("code"),
            message: text("message"),
            field: text("field"),
            event_index: index.map(|column| column.value(row as usize)),
            payload: Some(text("payload")),
        }
    }

    /// A row that was refused alone (R15).
    pub fn refused(
        record: &'a Record,
        partition: u16,
        batch: &'a RecordBatch,
        row: u32,
        (code, message): (&'a str, &'a str),
    ) -> Self {
        let stage = "insert";
        Self {
            record,
            partition,
            batch,
            row,
            stage,
            code,
            message,
            field: "",
            event_index: None,
            payload: None,
        }
    }

    /// The request that the row came with, in hex.
    fn request_id(&self) -> String {
        let request = self.record.request_of(self.row);
        request.map_or_else(String::new, |request| request.to_string())
    }

    /// `_src_o`.
    pub fn source_o(&self) -> u64 {
        source_o(self.record.place.offset, self.row)
    }
}

/// Splits letters by the partition of `dead_letters` that they fall into.
pub(crate) fn by_partition<'a>(letters: &[Letter<'a>], sights: &Sights) -> BTreeMap<SubKey, Vec<Letter<'a>>> {
    let mut groups: BTreeMap<SubKey, Vec<Letter<'a>>> = BTreeMap::new();
    let Ok(table) = Name::new(DEAD_LETTERS) else {
        return groups;
    };
    let placement = placement_of(&table, sights);
    for letter in letters {
        let seconds = milliseconds(letter.record.place.append_ms).div_euclid(1_000);
        let part = placement
            .as_ref()
            .map_or_else(|| ALL.to_owned(), |placement| placement.id(seconds));
        groups
            .entry(SubKey::whole(table.clone(), part))
            .or_default()
            .push(*letter);
    }
    groups
}

/// The rows as JSON, each cut at its share of [`MAX_LETTER_BYTES`]: a range is never cut again, so its
/// letters must always fit one block. The share is a function of the range, as every byte must be.
fn payloads(letters: &[Letter<'_>]) -> Column {
    let share = MAX_LETTER_BYTES / letters.len().max(1);
    let cut = |letter: &Letter<'_>| {
        let sent = letter.payload.map(str::to_owned);
        let mut text = sent.unwrap_or_else(|| row_json(letter.batch, letter.row as usize));
        if text.len() > share {
            text.truncate(text.floor_char_boundary(share.saturating_sub(CUT_MARK.len())));
            text.push_str(CUT_MARK);
        }
        text
    };
    let array = StringArray::from_iter_values(letters.iter().map(cut));
    Column {
        name: "payload".into(),
        array: Arc::new(array),
    }
}

/// The columns of some letters.
pub(crate) fn columns(letters: &[Letter<'_>]) -> Vec<Column> {
    let labels = |name: &str, of: fn(&Letter<'_>) -> String| {
        let texts: Vec<String> = letters.iter().map(of).collect();
        Column {
            name: name.into(),
            array: runs(texts.iter().map(|text| (text.as_str(), 1))),
        }
    };
    let mut columns = vec![
        labels("tenant", |letter| letter.record.meta.tenant.to_string()),
        labels("dataset", |letter| letter.record.meta.dataset.to_string()),
        labels("stage", |letter| letter.stage.to_owned()),
        labels("code", |letter| letter.code.to_owned()),
        labels("field", |letter| letter.field.to_owned()),
        texts("message", letters.iter().map(|letter| letter.message.to_owned())),
        texts("request_id", letters.iter().map(Letter::request_id)),
        Column {
            name: "event_index".into(),
            array: Arc::new(UInt32Array::from_iter(
                letters.iter().map(|letter| letter.event_index),
            )),
        },
        payloads(letters),
    ];
    let times = letters
        .iter()
        .map(|letter| milliseconds(letter.record.place.append_ms))
        .collect();
    let log = letters.first().map_or(LogId(0), |letter| letter.record.place.log);
    let partition = letters.first().map_or(0, |letter| letter.partition);
    columns.extend(stamps(
        times,
        log,
        partition,
        letters.iter().map(Letter::source_o).collect(),
    ));
    columns
}

/// Texts of which few are the same.
fn texts(name: &str, values: impl Iterator<Item = String>) -> Column {
    Column {
        name: name.into(),
        array: Arc::new(StringArray::from_iter_values(values)),
    }
}

/// One row as a JSON object, nulls left out.
fn row_json(batch: &RecordBatch, row: usize) -> String {
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
fn cell(array: &dyn Array, row: usize) -> Value {
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

fn text(array: &dyn Array, row: usize) -> String {
    arrow_cast::display::array_value_to_string(array, row).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::builder::{Int64Builder, ListBuilder, MapBuilder, StringBuilder};
    use arrow_array::{
        ArrayRef, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float64Array, TimestampMillisecondArray,
    };
    use arrow_schema::{Field, Schema};

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
