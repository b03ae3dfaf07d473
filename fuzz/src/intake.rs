//! Bodies into rows, beside a second reader of JSON.
//!
//! - What intake takes, `serde_json` takes; what `serde_json` takes is never called malformed.
//! - Rows and rejections add up, and rows become records that are read back with as many rows.
//! - Numbers, booleans and strings of a single event are those that `serde_json` reads.

use crate::rows::{NOW_MS, intake, request};
use arrow_array::{Array as _, RecordBatch, cast::AsArray as _, types};
use serde_json::Value;
use sluice_common::wire::intake::{BodyFormat, RowsAnswer};
use sluice_normalizer::intake::{Intake, NotParsed, Parsed, build_records};
use std::sync::OnceLock;

static INTAKE: OnceLock<Intake> = OnceLock::new();
/// Refusals of a body that is JSON.
const NOT_FOR_THE_TEXT: [&str; 5] = [
    "not_an_object",
    "empty_body",
    "too_many_events",
    "too_many_partitions",
    "columns_too_large",
];
/// Rows that are rejected before they are read to their end.
const NOT_READ: [&str; 3] = ["too_deep", "event_too_large", "too_many_members"];

/// One body.
pub fn run(input: &[u8]) {
    let (choice, body) = super::choice(input);
    let format = match choice {
        240.. => BodyFormat::Messages,
        _ => [BodyFormat::Json, BodyFormat::Ndjson, BodyFormat::Auto][usize::from(choice) % 3],
    };
    let intake = INTAKE.get_or_init(intake);
    let result = intake.parse(&request(format, body.to_vec()), NOW_MS, &mut |_| true);
    let parsed = match result {
        Ok(parsed) => parsed,
        Err(NotParsed::Refused(problem)) => {
            assert!(problem.status().is_client_error(), "{problem:?}");
            let fine = serde_json::from_slice::<Value>(text(body)).is_ok();
            let code = problem.code.as_ref();
            assert!(
                !(fine && format == BodyFormat::Json) || NOT_FOR_THE_TEXT.contains(&code),
                "{problem:?}"
            );
            return;
        }
        Err(NotParsed::Full) => panic!("there was room"),
    };
    adds_up(&parsed);
    if format == BodyFormat::Json {
        whole(&parsed, text(body));
    } else if format == BodyFormat::Ndjson {
        lines(&parsed.answer, body);
    }
    records(parsed);
}

/// Without the byte order mark, which intake passes over.
fn text(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body)
}

fn adds_up(parsed: &Parsed) {
    let taken: u64 = parsed.pending.iter().map(|one| u64::from(one.span.taken)).sum();
    assert_eq!(taken, parsed.answer.accepted);
    let told = parsed.answer.errors.len() as u64 + parsed.answer.errors_omitted;
    assert_eq!(told, parsed.answer.rejected);
    for one in &parsed.pending {
        assert_eq!(one.batch.num_rows(), one.keys.len());
    }
}

/// A body that was taken as a whole is JSON, unless an element was not read to its end.
fn whole(parsed: &Parsed, text: &[u8]) {
    let not_read = |answer: &RowsAnswer| {
        answer
            .errors
            .iter()
            .any(|one| NOT_READ.contains(&one.code.as_ref()))
    };
    match serde_json::from_slice::<Value>(text) {
        Ok(Value::Object(event)) if parsed.answer.accepted == 1 => {
            let row = &parsed.pending.first().expect("a row").batch;
            same(row, &Value::Object(event));
        }
        Ok(_) => {}
        Err(error) => {
            assert!(
                is_beyond(&error) || not_read(&parsed.answer) || parsed.answer.errors_omitted > 0,
                "taken, but {error}"
            );
        }
    }
}

/// What `serde_json` reads no further, though it is JSON.
fn is_beyond(error: &serde_json::Error) -> bool {
    let limits = error.to_string();
    limits.contains("number out of range") || limits.contains("recursion limit")
}

/// Each line is malformed for both or for neither.
fn lines(answer: &RowsAnswer, body: &[u8]) {
    let is_blank = |line: &&[u8]| !line.iter().all(|byte| b" \t\r".contains(byte));
    let all: Vec<&[u8]> = text(body).split(|byte| *byte == b'\n').filter(is_blank).collect();
    for (at, line) in all.iter().enumerate() {
        let error = answer.errors.iter().find(|one| one.index as usize == at);
        let broken = error.is_some_and(|one| ["malformed_json", "not_utf8"].contains(&one.code.as_ref()));
        let read = serde_json::from_slice::<Value>(line);
        assert!(
            !(broken && read.is_ok()),
            "{error:?} of {:?}",
            String::from_utf8_lossy(line)
        );
        let taken = error.is_none() && answer.errors_omitted == 0;
        if let Err(problem) = read {
            let text = String::from_utf8_lossy(line);
            assert!(!taken || is_beyond(&problem), "taken, but {problem}: {text:?}");
        }
    }
    let seen = answer.accepted + answer.rejected;
    assert_eq!(seen, all.len() as u64, "every line is an event");
}

fn same(row: &RecordBatch, event: &Value) {
    let column = |name: &str| row.column_by_name(name).filter(|column| !column.is_null(0));
    if let Some(text) = event.get("s").and_then(Value::as_str) {
        assert_eq!(column("s").expect("a value").as_string::<i32>().value(0), text);
    }
    if let Some(number) = event.get("i").and_then(Value::as_i64) {
        assert_eq!(
            column("i")
                .expect("a value")
                .as_primitive::<types::Int64Type>()
                .value(0),
            number
        );
    }
    if let Some(number) = event.get("u").and_then(Value::as_u64) {
        assert_eq!(
            column("u")
                .expect("a value")
                .as_primitive::<types::UInt64Type>()
                .value(0),
            number
        );
    }
    if let Some(is) = event.get("b").and_then(Value::as_bool) {
        assert_eq!(column("b").expect("a value").as_boolean().value(0), is);
    }
    if let Some(number) = event.get("f").and_then(Value::as_f64) {
        let ours = column("f")
            .expect("a value")
            .as_primitive::<types::Float64Type>()
            .value(0);
        // serde_json may be off by a unit in the last place.
        assert!(
            (ours - number).abs() <= number.abs() * 4.0 * f64::EPSILON,
            "{ours} for {number}"
        );
    }
}

fn records(parsed: Parsed) {
    let rows: usize = parsed.pending.iter().map(|one| one.batch.num_rows()).sum();
    let built = build_records(parsed.pending).expect("rows that were taken can be encoded");
    let encoded: usize = built.iter().map(|(content, _)| content.keys.len()).sum();
    assert_eq!(encoded, rows);
}
