//! What intake promises, by property.

mod bodies;
mod checks;
mod copies;
mod drift;
mod identities;
mod model;
mod overrides;
mod records;
mod rows;
mod spread;
mod types;
mod units;

use super::{Intake, NotParsed, Parsed, Pending};
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, TimestampMillisecondType};
use arrow_array::{Array, RecordBatch};
use bytes::Bytes;
use sluice_common::config::{Config, DEFAULT_YAML, Loaded, Weight};
use sluice_common::error::Problem;
use sluice_common::ids::{RequestId, TenantId};
use sluice_common::trace::TraceContext;
use sluice_common::wire::intake::{BodyFormat, IntakeRequest};
use std::path::Path;
use std::time::Duration;

/// 2026-11-21T03:30:30Z.
const NOW_MS: u64 = 1_795_231_830_000;
const SECRET: [u8; 32] = *b"0123456789abcdef0123456789ABCDEF";

fn config(yaml: &str) -> Config {
    let loaded = Loaded::parse(yaml, Path::new("test.yaml"), Path::new("/nowhere"));
    loaded.unwrap_or_else(|error| panic!("{error}")).config
}

fn intake(yaml: &str) -> Intake {
    Intake::new(&config(yaml).datasets, SECRET).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn default_intake() -> Intake {
    intake(DEFAULT_YAML)
}

/// A dataset `events` of these fields.
fn fields(fields: &str) -> Intake {
    intake(&format!("datasets: [{{name: events, fields: [{fields}]}}]"))
}

fn acme() -> TenantId {
    TenantId::new("acme").expect("valid")
}

fn request(format: BodyFormat, body: impl Into<Bytes>) -> IntakeRequest {
    IntakeRequest {
        tenant: acme(),
        weight: Weight::default(),
        dataset: "events".into(),
        request: RequestId(7),
        idempotency_key: None,
        format,
        body: body.into(),
        timeout: Duration::from_secs(1),
        trace: TraceContext::default(),
    }
}

fn parse(intake: &Intake, format: BodyFormat, body: impl Into<Bytes>) -> Result<Parsed, Problem> {
    parse_request(intake, &request(format, body))
}

fn parse_request(intake: &Intake, request: &IntakeRequest) -> Result<Parsed, Problem> {
    let parsed = intake.parse(request, NOW_MS, &mut |_| true);
    parsed.map_err(|not| match not {
        NotParsed::Refused(problem) => problem,
        NotParsed::Full => panic!("there is room"),
    })
}

fn lines(intake: &Intake, body: impl Into<Bytes>) -> Parsed {
    parse(intake, BodyFormat::Ndjson, body).unwrap_or_else(|problem| panic!("{problem:?}"))
}

/// An event of the default dataset with this id and, after a comma, these members.
fn event(id: &str, more: &str) -> String {
    format!(r#"{{"event_id":"{id}","timestamp":"2026-11-21T03:30:30.123Z","service":"api"{more}}}"#)
}

/// Each row's values as text, in column order; null is `None`.
fn table(batch: &RecordBatch) -> Vec<Vec<Option<String>>> {
    let row = |row: usize| {
        batch
            .columns()
            .iter()
            .map(|column| text(column.as_ref(), row))
            .collect()
    };
    (0..batch.num_rows()).map(row).collect()
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "Arrow has many types, and ours are listed"
)]
fn text(column: &dyn Array, row: usize) -> Option<String> {
    use arrow_array::types::{
        Date32Type, Decimal128Type, Decimal256Type, Float32Type, Float64Type, Int8Type, Int16Type, Int64Type,
        TimestampMicrosecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type,
        UInt32Type, UInt64Type,
    };
    use arrow_schema::{DataType, TimeUnit};
    if column.is_null(row) {
        return None;
    }
    Some(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
        DataType::Dictionary(_, _) => {
            let column = column.as_dictionary::<Int32Type>();
            column
                .values()
                .as_string::<i32>()
                .value(column.key(row)?)
                .to_owned()
        }
        DataType::Boolean => column.as_boolean().value(row).to_string(),
        DataType::Int8 => column.as_primitive::<Int8Type>().value(row).to_string(),
        DataType::Int16 => column.as_primitive::<Int16Type>().value(row).to_string(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::UInt8 => column.as_primitive::<UInt8Type>().value(row).to_string(),
        DataType::UInt16 => column.as_primitive::<UInt16Type>().value(row).to_string(),
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(row).to_string(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row).to_string(),
        DataType::Float32 => format!("{:?}", column.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => format!("{:?}", column.as_primitive::<Float64Type>().value(row)),
        DataType::Timestamp(TimeUnit::Second, _) => column
            .as_primitive::<TimestampSecondType>()
            .value(row)
            .to_string(),
        DataType::Timestamp(TimeUnit::Millisecond, _) => column
            .as_primitive::<TimestampMillisecondType>()
            .value(row)
            .to_string(),
        DataType::Timestamp(TimeUnit::Microsecond, _) => column
            .as_primitive::<TimestampMicrosecondType>()
            .value(row)
            .to_string(),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => column
            .as_primitive::<TimestampNanosecondType>()
            .value(row)
            .to_string(),
        DataType::Map(_, _) => {
            let entries = column.as_map().value(row);
            let (keys, values) = (entries.column(0).as_string::<i32>(), entries.column(1));
            let value = |at| text(values.as_ref(), at).unwrap_or_else(|| "null".to_owned());
            let entry = |at| format!("{}={}", keys.value(at), value(at));
            (0..keys.len()).map(entry).collect::<Vec<_>>().join(";")
        }
        DataType::List(_) => {
            let items = column.as_list::<i32>().value(row);
            let item = |at| text(items.as_ref(), at).unwrap_or_else(|| "null".to_owned());
            format!("[{}]", (0..items.len()).map(item).collect::<Vec<_>>().join(","))
        }
        DataType::Decimal128(..) => column.as_primitive::<Decimal128Type>().value(row).to_string(),
        DataType::Decimal256(..) => column.as_primitive::<Decimal256Type>().value(row).to_string(),
        DataType::Date32 => column.as_primitive::<Date32Type>().value(row).to_string(),
        DataType::FixedSizeBinary(_) => column
            .as_fixed_size_binary()
            .value(row)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        other => panic!("no column is {other}"),
    })
}

/// The values of the only row.
fn only_row(parsed: &Parsed) -> Vec<Option<String>> {
    assert_eq!(
        (parsed.answer.accepted, parsed.answer.rejected),
        (1, 0),
        "{:?}",
        parsed.answer.errors
    );
    table(&parsed.pending[0].batch).remove(0)
}

fn rows_of(pending: &[Pending]) -> Vec<Vec<Option<String>>> {
    pending.iter().flat_map(|one| table(&one.batch)).collect()
}
