//! One request: event by event, until it is done or refused.

use super::body::{EventText, Events, Shape};
use super::column::Column;
use super::copies::Copies;
use super::fault::{Fault, RowFault};
use super::identity::{RecordTemplate, RowHasher};
use super::json::Parser;
use super::row::RowWriter;
use super::schema::Schema;
use super::{Intake, NotParsed, Parsed, Pending};
use arrow_array::RecordBatch;
use arrow_schema::ArrowError;
use http::StatusCode;
use simd_json::Node;
use sluice_common::error::Problem;
use sluice_common::limits::{
    MAX_EVENT_BYTES, MAX_EVENTS_PER_REQUEST, MAX_PARTITIONS_PER_REQUEST, MAX_QUOTED_BYTES, MAX_RECORD_ROWS,
    MAX_ROW_ERRORS, TARGET_RECORD_BYTES,
};
use sluice_common::record::RequestSpan;
use sluice_common::wire::intake::{BodyFormat, IntakeRequest, RowError, RowsAnswer};
use sluice_common::wire::messages::Origin;
use std::sync::Arc;

/// JSON of a usual event: what room is made for at first.
const USUAL_EVENT_BYTES: usize = 256;

/// Asked for bytes of columns beyond the body's; says whether they are there.
type Room<'r> = &'r mut dyn FnMut(usize) -> bool;

/// Parses a request with a parser of its own.
pub(super) fn parse(
    intake: &Intake,
    request: &IntakeRequest,
    now_ms: u64,
    (parser, room): (&mut Parser, Room<'_>),
) -> Result<Parsed, NotParsed> {
    let schema = intake
        .schema(&request.dataset, &request.tenant)
        .ok_or_else(|| unknown_dataset(&request.dataset))?;
    if request.body.is_empty() {
        return Err(refusal(
            "empty_body",
            "the body is empty; send at least one event".to_owned(),
        )
        .into());
    }
    let events = Events::new(&request.body, request.format);
    if events.shape() == Shape::Single && !events.begins_object() {
        return Err(scalar(&request.body, parser).into());
    }
    let mut run = Run::new(intake, &schema, request, (now_ms, room));
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

/// About how many rows the first record will have, and no more than take what the body does: that is what is charged.
fn about_rows(schema: &Schema, body: usize) -> usize {
    let most = TARGET_RECORD_BYTES.min(body) / schema.fixed_row_bytes.max(1);
    (body / USUAL_EVENT_BYTES).min(most).clamp(1, MAX_RECORD_ROWS)
}

/// A request on its way.
struct Run<'s, 'r> {
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
    /// Place of the event in hand.
    place: u32,
    /// Where its messages lie: no client is told why one was rejected, so its dead letter says which it was.
    origin: Option<Origin>,
    /// Events taken that came late.
    late: u64,
    partitions: Partitions,
    room: Room<'r>,
    /// Column bytes of the pendings.
    columns: usize,
    /// Column bytes that are paid for.
    charged: usize,
    copies: Option<Copies<'s>>,
    /// Why the event in hand was rejected, where a copy of it is to be kept.
    fault: Option<RowError>,
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
    /// For about so many rows.
    fn new(schema: &Schema, template: &RecordTemplate, rows: usize) -> Self {
        let column = |field: &super::schema::FieldPlan| {
            let mut column = Column::new(&field.kind, Some(&template.inner_key));
            column.reserve(rows);
            column
        };
        Self {
            columns: schema.fields.iter().map(column).collect(),
            keys: Vec::with_capacity(rows),
            fingerprints: Vec::new(),
            bytes: 0,
        }
    }
}

impl<'s, 'r> Run<'s, 'r> {
    fn new(
        intake: &'s Intake,
        schema: &'s Arc<Schema>,
        request: &'s IntakeRequest,
        (now_ms, room): (u64, Room<'r>),
    ) -> Self {
        let key = request.idempotency_key.as_deref();
        let is_source = request.format == BodyFormat::Messages;
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
            open: Open::new(schema, &template, about_rows(schema, request.body.len())),
            template,
            pending: Vec::new(),
            answer: RowsAnswer::default(),
            events: 0,
            place: 0,
            origin: key.filter(|_| is_source).and_then(Origin::parse),
            late: 0,
            partitions: Partitions::default(),
            room,
            columns: 0,
            charged: request.body.len(),
            copies: (schema.keeps_rejected() || is_source)
                .then(|| Copies::new(intake, schema, request, now_ms)),
            fault: None,
        }
    }

    /// Takes one event, or rejects it, or refuses the whole request.
    fn take(&mut self, event: EventText<'_>, shape: Shape, parser: &mut Parser) -> Result<(), NotParsed> {
        let text = event.text;
        let taken = self.take_or_reject(event, shape, parser);
        if let (Some(copies), Some(fault)) = (&mut self.copies, self.fault.take()) {
            copies.keep(fault, text);
        }
        taken
    }

    fn take_or_reject(
        &mut self,
        event: EventText<'_>,
        shape: Shape,
        parser: &mut Parser,
    ) -> Result<(), NotParsed> {
        if self.events == MAX_EVENTS_PER_REQUEST {
            return Err(too_large(
                "too_many_events",
                format!("a request has at most {MAX_EVENTS_PER_REQUEST} events; send several"),
            )
            .into());
        }
        let before = u32::try_from(self.events).unwrap_or(u32::MAX);
        self.place = event.place.unwrap_or(before);
        self.events += 1;
        if event.text.len() > MAX_EVENT_BYTES {
            self.reject(Fault::JsonTooLarge.of_row(), &[]);
            return Ok(());
        }
        match parser.parse(event.text, |nodes| self.write(nodes)) {
            Ok(written) => written,
            Err(Fault::MalformedJson { at }) if !shape.stands_alone() => Err(malformed(event.at + at).into()),
            Err(Fault::NotUtf8) if !shape.stands_alone() => Err(malformed(event.at).into()),
            Err(fault) => {
                self.reject(fault.of_row(), &[]);
                Ok(())
            }
        }
    }

    fn write(&mut self, nodes: &[Node<'_>]) -> Result<(), NotParsed> {
        let row = self.open.keys.len();
        match self.writer.write(nodes, &mut self.open.columns) {
            Ok(bytes) if row > 0 && self.is_full(bytes) => {
                self.writer.take_back(&mut self.open.columns, row);
                self.close()?;
                self.write(nodes)
            }
            Ok(bytes) => Ok(self.accept(row, bytes)?),
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
        self.partitions.touch(self.schema, columns, row)?;
        self.open
            .keys
            .push(self.hasher.key(self.schema, columns, row, self.place));
        self.open
            .fingerprints
            .extend(self.hasher.fingerprint(self.schema, columns, row));
        self.open.bytes += bytes;
        self.answer.accepted += 1;
        self.late += u64::from(self.writer.is_late());
        Ok(())
    }

    fn reject(&mut self, fault: RowFault, nodes: &[Node<'_>]) {
        self.answer.rejected += 1;
        self.writer.observed.rejected(&fault);
        let told = self.answer.errors.len() < MAX_ROW_ERRORS;
        if !told {
            self.answer.errors_omitted += 1;
        }
        if !told && self.copies.is_none() {
            return;
        }
        let mut error = fault.describe(self.place, &self.schema.fields, nodes);
        if let Some(origin) = &self.origin {
            let (Origin { topic, partition, .. }, offset) = (origin, origin.offset(self.place));
            error.message += &format!(" (Kafka topic {topic}, partition {partition}, offset {offset})");
        }
        if self.copies.is_some() {
            self.fault = Some(error.clone());
        }
        if told {
            self.answer.errors.push(error);
        }
    }

    /// Pays for the open rows.
    fn charge(&mut self) -> Result<(), NotParsed> {
        self.columns += self.open.bytes;
        let most = self.schema.max_request_bytes;
        if self.columns > most {
            let rows = usize::try_from(self.answer.accepted).unwrap_or(usize::MAX).max(1);
            let fitting = most / (self.columns / rows).max(1);
            return Err(too_large(
                "columns_too_large",
                format!(
                    "the events of a request take at most {most} bytes as columns, whatever their JSON takes; send \
                     at most {fitting} such events at once"
                ),
            )
            .into());
        }
        if self.columns > self.charged {
            if !(self.room)(self.columns - self.charged) {
                return Err(NotParsed::Full);
            }
            self.charged = self.columns;
        }
        Ok(())
    }

    /// Makes the open rows a pending. How many follow is not known.
    fn close(&mut self) -> Result<(), NotParsed> {
        self.charge()?;
        let next = Open::new(self.schema, &self.template, 0);
        let open = std::mem::replace(&mut self.open, next);
        let columns = open
            .columns
            .into_iter()
            .map(Column::finish)
            .collect::<Result<_, _>>();
        let batch =
            columns.and_then(|columns| RecordBatch::try_new(Arc::clone(self.schema.arrow_schema()), columns));
        let batch = batch.map_err(contradiction)?;
        self.pending.push(Pending {
            partition: 0,
            template: Arc::clone(&self.template),
            batch,
            is_part: false,
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

    /// The totals of the request go into its first rows, or into a mark of their own where there are none.
    fn count_whole_request(&mut self) -> Option<Pending> {
        let (taken, rejected) = (self.answer.accepted, self.answer.rejected);
        let whole = RequestSpan {
            taken: u32::try_from(taken).unwrap_or(u32::MAX),
            rejected: u32::try_from(rejected).unwrap_or(u32::MAX),
            ..self.span
        };
        if let Some(first) = self.pending.first_mut() {
            (first.span.taken, first.span.rejected) = (whole.taken, whole.rejected);
            return None;
        }
        (rejected > 0).then(|| Pending {
            partition: 0,
            template: Arc::clone(&self.template),
            batch: RecordBatch::new_empty(Arc::clone(self.schema.arrow_schema())),
            is_part: false,
            keys: Vec::new(),
            fingerprints: Vec::new(),
            span: whole,
            bytes: 0,
        })
    }

    fn finish(mut self) -> Result<Parsed, NotParsed> {
        if !self.open.keys.is_empty() {
            self.close()?;
        }
        let mark = self.count_whole_request();
        let span = RequestSpan {
            rejected: 0,
            ..self.span
        };
        let mut copies_dropped = [("budget", 0), ("request", 0)];
        if let Some(copies) = self.copies {
            if self.origin.is_some() && copies.over_request > 0 {
                let rows = self.answer.rejected;
                let why = format!(
                    "{rows} rejected messages have more copies than a request may keep: take fewer at once"
                );
                return Err(too_large("too_many_rejected", why).into());
            }
            (copies_dropped[0].1, copies_dropped[1].1) = (copies.over_budget, copies.over_request);
            self.pending.extend(copies.finish(span).map_err(contradiction)?);
        }
        Ok(Parsed {
            schema: Arc::clone(self.schema),
            pending: self.pending,
            mark,
            copies_dropped,
            answer: self.answer,
            dropped_members: self.writer.dropped,
            conversions: self.writer.conversions(),
            observed: self.writer.observed,
            late_events: self.late,
        })
    }
}

fn contradiction(error: ArrowError) -> Problem {
    let detail =
        format!("the columns contradict each other ({error}); this is a fault of ours, please report it");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "internal", detail)
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
