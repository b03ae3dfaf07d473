//! One kept event, or one dead letter, as a message: its key, itself as JSON, and headers that say where it came from.

use crate::json;
use arrow_array::RecordBatch;
use serde_json::Value;
use sluice_common::config::kafka::TENANT;
use sluice_common::ids::{Name, source_o};
use sluice_common::record::Record;
use sluice_common::wire::publish::PublishOrder;

/// The names of the headers, all of them text. `sluice-src-*` are the columns `_src_*` of the event's row: together
/// they tell each event from every other, and a copy of one from another.
pub const HEADERS: [&str; 6] = [
    "sluice-tenant",
    "sluice-dataset",
    "sluice-src-l",
    "sluice-src-p",
    "sluice-src-o",
    "sluice-range",
];

/// A message that is not sent yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub key: Option<String>,
    pub payload: String,
    /// Values of [`HEADERS`].
    pub headers: [String; 6],
    /// The event's append time.
    pub timestamp_ms: i64,
}

/// One row of a record, as an event.
#[must_use]
pub fn of(order: &PublishOrder, record: &Record, batch: &RecordBatch, row: u32) -> Message {
    let payload = json::row_json(batch, row as usize);
    carrying(order, record, (batch, row), payload)
}

/// One row of a record, which `payload` tells.
#[must_use]
pub fn carrying(
    order: &PublishOrder,
    record: &Record,
    (batch, row): (&RecordBatch, u32),
    payload: String,
) -> Message {
    let (meta, place, range) = (&record.meta, record.place, order.range);
    Message {
        key: key(order, record, batch, row as usize),
        payload,
        headers: [
            meta.tenant.to_string(),
            meta.dataset.to_string(),
            place.log.0.to_string(),
            order.partition.to_string(),
            source_o(place.offset, row).to_string(),
            format!("{}-{}", range.a, range.b),
        ],
        timestamp_ms: i64::try_from(place.append_ms).unwrap_or(i64::MAX),
    }
}

/// The one field's text, or a JSON array of several; none where there is no key. A compacted topic takes no message
/// without one: so a field that is not there is an empty text.
fn key(order: &PublishOrder, record: &Record, batch: &RecordBatch, row: usize) -> Option<String> {
    let value = |name: &Name| match batch.column_by_name(name.as_str()) {
        _ if name.as_str() == TENANT => Value::String(record.meta.tenant.to_string()),
        Some(column) => json::cell(column.as_ref(), row),
        None => Value::Null,
    };
    match order.key.as_slice() {
        [] => None,
        [one] => match value(one) {
            // Of a record whose schema did not have it yet.
            Value::Null => Some(String::new()),
            Value::String(text) => Some(text),
            other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                Some(other.to_string())
            }
        },
        several => Some(Value::Array(several.iter().map(value).collect()).to_string()),
    }
}
