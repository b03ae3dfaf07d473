//! One request: event by event, until it is done or refused.

use super::body::{EventText, Events, Shape};
use super::column::Column;
use super::fault::{Fault, RowFault};
use super::identity::{RecordTemplate, RowHasher};
use super::json::Parser;
use super::row::RowWriter;
use super::schema::Schema;
use super::{Intake, Parsed, Pending};
use arrow_array::RecordBatch;
use http::StatusCode;
use simd_json::Node;
use sluice_common::error::Problem;
use sluice_common::limits::{
    MAX_EVENT_BYTES, MAX_EVENTS_PER_REQUEST, MAX_PARTITIONS_PER_REQUEST, MAX_QUOTED_BYTES, MAX_RECORD_ROWS,
    MAX_REQUEST_COLUMN_BYTES, MAX_ROW_ERRORS, TARGET_RECORD_BYTES,
};
use sluice_common::record::RequestSpan;
use sluice_common::wire::intake::{IntakeRequest, RowsAnswer};
use std::sync::Arc;

/// Parses a request with a parser of its own.
pub(super) fn parse(
    intake: &Intake,
    request: &IntakeRequest,
    now_ms: u64,
    parser: &mut Parser,
) -> Result<Parsed, Problem> {
    let schema = intake
        .schema(&request.dataset)
        .ok_or_else(|| unknown_dataset(&request.dataset))?;
    if request.body.is_empty() {
        return Err(refusal(
            "empty_body",
            "the body is empty; send at least one event".to_owned(),
        ));
    }
    let events = Events::new(&request.body, request.format);
    if events.shape() == Shape::Single && !events.begins_object() {
        return Err(scalar(&request.body, parser));
    }
    let mut run = Run::new(intake, schema, request, now_ms);
    let shape = events.shape();
    for event in events {
        let event = event.map_err(|broken| malformed(broken.at))?;
        run.take(event, shape, parser)?;
    }
    run.finish()
}

/// A body that is neither object nor array: JSON or not, it has no events.
fn scalar(body: &[u8], parser: &mut Parser) -> Problem {
    let text = &body[..body.len().min(MAX_EVENT_BYTES)];
    let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
    match parser.parse(text, |_| ()) {
        Ok(()) | Err(Fault::NumberTooLarge | Fault::TooDeep) => refusal(
            "not_an_object",
            "the body is a lone JSON value; send an object, an array of objects or NDJSON".to_owned(),
        ),
        Err(fault) => malformed(if let Fault::MalformedJson { at } = fault {
            at
        } else {
            0
        }),
    }
}

fn refusal(code: &'static str, detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, code, detail)
}

fn malformed(at: usize) -> Problem {
    refusal(
        "malformed_json",
        format!(
            "the body is not JSON (at or before byte {at}); nothing of it was taken, correct it and send it again"
        ),
    )
}

fn too_large(code: &'static str, detail: String) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, code, detail)
}

fn unknown_dataset(name: &str) -> Problem {
    let quoted = &name[..name.floor_char_boundary(MAX_QUOTED_BYTES)];
    Problem::new(
        StatusCode::NOT_FOUND,
        "unknown_dataset",
        format!("there is no dataset {quoted:?}; name one of the config's"),
    )
}

/// A request on its way.
struct Run<'s> {
    schema: &'s Arc<Schema>,
    template: Arc<RecordTemplate>,
    writer: RowWriter<'s>,
    hasher: RowHasher,
    span: RequestSpan,
    open: Open,
    pending: Vec<Pending>,
    answer: RowsAnswer,
    /// Events seen, rejected ones included.
    events: usize,
    /// Bytes of the columns of all rows.
    column_bytes: usize,
    /// Events taken that came late.
    late: u64,
    partitions: Partitions,
}

/// Rows of the next pending.
struct Open {
    columns: Vec<Column>,
    keys: Vec<u128>,
    fingerprints: Vec<u32>,
    bytes: usize,
}

/// The table's partitions that the request touches.
#[derive(Default)]
struct Partitions {
    slots: Vec<i64>,
    /// The hour of the row before: within one, the partition cannot change.
    hour: Option<i64>,
}

impl Open {
    fn new(schema: &Schema, template: &RecordTemplate) -> Self {
        let column = |field: &super::schema::FieldPlan| Column::new(&field.kind, Some(&template.inner_key));
        Self {
            columns: schema.fields.iter().map(column).collect(),
            keys: Vec::new(),
            fingerprints: Vec::new(),
            bytes: 0,
        }
    }
}

impl<'s> Run<'s> {
    fn new(intake: &Intake, schema: &'s Arc<Schema>, request: &IntakeRequest, now_ms: u64) -> Self {
        let key = request.idempotency_key.as_deref();
        let identity = schema.identity(key.is_some());
        let template = schema.template(&request.tenant, identity, &intake.secret);
        Self {
            schema,
            writer: RowWriter::new(schema, now_ms),
            hasher: RowHasher::new(&template, request.request, key),
            span: RequestSpan {
                request: request.request,
                first_row: 0,
                rows: 0,
                taken: 0,
                rejected: 0,
                trace_id: request.trace.trace_id,
                span_id: request.trace.span_id,
            },
            open: Open::new(schema, &template),
            template,
            pending: Vec::new(),
            answer: RowsAnswer::default(),
            events: 0,
            column_bytes: 0,
            late: 0,
            partitions: Partitions::default(),
        }
    }

    /// Takes one event, or rejects it, or refuses the whole request.
    fn take(&mut self, event: EventText<'_>, shape: Shape, parser: &mut Parser) -> Result<(), Problem> {
        if self.events == MAX_EVENTS_PER_REQUEST {
            return Err(too_large(
                "too_many_events",
                format!("a request has at most {MAX_EVENTS_PER_REQUEST} events; send several"),
            ));
        }
        self.events += 1;
        if event.text.len() > MAX_EVENT_BYTES {
            self.reject(Fault::JsonTooLarge.of_row(), &[]);
            return Ok(());
        }
        match parser.parse(event.text, |nodes| self.write(nodes)) {
            Ok(written) => written,
            Err(Fault::MalformedJson { at }) if shape != Shape::Lines => Err(malformed(event.at + at)),
            Err(Fault::NotUtf8) if shape != Shape::Lines => Err(malformed(event.at)),
            Err(fault) => {
                self.reject(fault.of_row(), &[]);
                Ok(())
            }
        }
    }

    fn write(&mut self, nodes: &[Node<'_>]) -> Result<(), Problem> {
        let row = self.open.keys.len();
        match self.writer.write(nodes, &mut self.open.columns) {
            Ok(bytes) if row > 0 && self.is_full(bytes) => {
                self.writer.take_back(&mut self.open.columns, row);
                self.close()?;
                self.write(nodes)
            }
            Ok(bytes) => self.accept(row, bytes),
            Err(fault) => {
                self.reject(fault, nodes);
                Ok(())
            }
        }
    }

    fn is_full(&self, more: usize) -> bool {
        self.open.bytes + more > TARGET_RECORD_BYTES || self.open.keys.len() == MAX_RECORD_ROWS
    }

    fn accept(&mut self, row: usize, bytes: usize) -> Result<(), Problem> {
        let columns = &self.open.columns;
        let index = u32::try_from(self.events - 1).unwrap_or(u32::MAX);
        self.partitions.touch(self.schema, columns, row)?;
        self.open
            .keys
            .push(self.hasher.key(self.schema, columns, row, index));
        self.open
            .fingerprints
            .extend(self.hasher.fingerprint(self.schema, columns, row));
        self.open.bytes += bytes;
        self.column_bytes += bytes;
        if self.column_bytes > MAX_REQUEST_COLUMN_BYTES {
            return Err(too_large(
                "columns_too_large",
                format!(
                    "the columns of its events are over {MAX_REQUEST_COLUMN_BYTES} bytes; split the request"
                ),
            ));
        }
        self.answer.accepted += 1;
        self.late += u64::from(self.writer.is_late());
        Ok(())
    }

    fn reject(&mut self, fault: RowFault, nodes: &[Node<'_>]) {
        self.answer.rejected += 1;
        if self.answer.errors.len() == MAX_ROW_ERRORS {
            self.answer.errors_omitted += 1;
            return;
        }
        let index = u32::try_from(self.events - 1).unwrap_or(u32::MAX);
        self.answer
            .errors
            .push(fault.describe(index, &self.schema.fields, nodes));
    }

    /// Makes the open rows a pending.
    fn close(&mut self) -> Result<(), Problem> {
        let open = std::mem::replace(&mut self.open, Open::new(self.schema, &self.template));
        let columns = open
            .columns
            .into_iter()
            .map(Column::finish)
            .collect::<Result<_, _>>();
        let batch =
            columns.and_then(|columns| RecordBatch::try_new(Arc::clone(self.schema.arrow_schema()), columns));
        let batch = batch.map_err(|error| {
            let detail = format!(
                "the columns contradict each other ({error}); this is a fault of ours, please report it"
            );
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "internal", detail)
        })?;
        self.pending.push(Pending {
            template: Arc::clone(&self.template),
            batch,
            span: RequestSpan {
                rows: u32::try_from(open.keys.len()).unwrap_or(u32::MAX),
                ..self.span
            },
            keys: open.keys,
            fingerprints: open.fingerprints,
            bytes: open.bytes,
        });
        Ok(())
    }

    fn finish(mut self) -> Result<Parsed, Problem> {
        if !self.open.keys.is_empty() {
            self.close()?;
        }
        if let Some(first) = self.pending.first_mut() {
            first.span.taken = u32::try_from(self.answer.accepted).unwrap_or(u32::MAX);
            first.span.rejected = u32::try_from(self.answer.rejected).unwrap_or(u32::MAX);
        }
        Ok(Parsed {
            pending: self.pending,
            answer: self.answer,
            dropped_members: self.writer.dropped,
            late_events: self.late,
        })
    }
}

impl Partitions {
    fn touch(&mut self, schema: &Schema, columns: &[Column], row: usize) -> Result<(), Problem> {
        let Some(field) = schema.partition_field else {
            return Ok(());
        };
        let seconds = columns[usize::from(field)].seconds(row).unwrap_or(0);
        let hour = seconds.div_euclid(3_600);
        if self.hour.replace(hour) == Some(hour) {
            return Ok(());
        }
        let slot = schema.partition_by().slot(seconds);
        if self.slots.contains(&slot) {
            return Ok(());
        }
        if self.slots.len() == MAX_PARTITIONS_PER_REQUEST {
            return Err(too_large(
                "too_many_partitions",
                format!(
                    "the events of a request touch at most {MAX_PARTITIONS_PER_REQUEST} partitions of their table \
                     ({}); send them in order of time",
                    schema.partition_by()
                ),
            ));
        }
        self.slots.push(slot);
        Ok(())
    }
}
