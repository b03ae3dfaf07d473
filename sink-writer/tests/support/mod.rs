//! Records and calls as the pump would make them.

use arrow_array::builder::{MapBuilder, StringBuilder};
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray, TimestampMillisecondArray, UInt16Array};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field};
use bytes::Bytes;
use sluice_common::config::{Dataset, Loaded};
use sluice_common::fates::{Fate, Fates};
use sluice_common::ids::{LogId, Name, RequestId, TenantId};
use sluice_common::metrics::Metrics;
use sluice_common::record::{Holds, Identity, Placement, Record, RecordContent, RecordMeta, RequestSpan};
use sluice_common::trace::TraceContext;
use sluice_common::wire::sink::{
    Range, RangeRecord, SinkCall, SinkReply, SinkRequest, Steps, SubReport, SubTask,
};
use sluice_sink_writer::{SinkWriter, Target};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;

/// 2026-11-21 03:30:30 UTC.
pub const APPEND_MS: u64 = 1_795_231_830_000;
pub const LOG: LogId = LogId(0xfeed_0000_0000_0001);
pub const PARTITION: u16 = 3;

pub fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

/// The default config's only dataset.
pub fn events() -> Dataset {
    let loaded = Loaded::read(None, Path::new("/nowhere")).expect("the default config");
    loaded.config.datasets.into_iter().next().expect("it has one")
}

pub fn writer(url: &str, database: &str, datasets: &[Dataset]) -> SinkWriter {
    let target = Target {
        name: "embedded".into(),
        url: url.into(),
        database: name(database),
        user: None,
        password: None,
        tls: None,
        letters_ttl: sluice_common::config::Period::hours(720),
    };
    SinkWriter::new(&[target], datasets, &Metrics::detached())
}

pub type Columns = Vec<(&'static str, ArrayRef)>;

/// Rows of the default dataset, one a time.
pub fn rows(times: &[i64]) -> Columns {
    let ids = StringArray::from_iter_values((0..times.len()).map(|n| format!("id-{n}")));
    let services = StringArray::from_iter_values(times.iter().map(|_| "api"));
    let value = Field::new("values", DataType::Utf8, false);
    let mut attributes =
        MapBuilder::new(None, StringBuilder::new(), StringBuilder::new()).with_values_field(value);
    for n in 0..times.len() {
        attributes.keys().append_value("n");
        attributes.values().append_value(n.to_string());
        attributes.append(true).expect("as many keys as values");
    }
    let status = UInt16Array::from_iter((0..times.len()).map(|n| (n % 2 == 0).then_some(200)));
    vec![
        ("event_id", Arc::new(ids)),
        (
            "timestamp",
            Arc::new(TimestampMillisecondArray::from(times.to_vec()).with_timezone("UTC")),
        ),
        ("service", Arc::new(services)),
        ("status", Arc::new(status)),
        ("attributes", Arc::new(attributes.finish())),
    ]
}

/// One record; `fates` may be shorter than its rows: the rest are kept.
pub fn record(offset: u64, table: &str, columns: Columns, fates: &[Fate]) -> RangeRecord {
    record_that_holds(offset, table, columns, fates, None)
}

/// The same; where it is told to, it says that its columns take so many bytes.
pub fn record_that_holds(
    offset: u64,
    table: &str,
    columns: Columns,
    fates: &[Fate],
    column_bytes: Option<u32>,
) -> RangeRecord {
    let rows = columns[0].1.len();
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)));
    let batch = batch.expect("columns of one length");
    let mut stream = StreamWriter::try_new(Vec::new(), batch.schema_ref()).expect("a schema");
    stream.write(&batch).expect("written to memory");
    let meta = RecordMeta {
        tenant: TenantId::new("acme").expect("valid"),
        dataset: name(table),
        table: name(table),
        schema_version: 1,
        identity: Identity::Key,
        window_ms: 1_000,
        holds: Holds::Events,
    };
    let count = u32::try_from(rows).expect("small");
    let span = RequestSpan {
        request: RequestId(7),
        first_row: 0,
        rows: count,
        taken: count,
        rejected: 0,
        trace_id: 0,
        span_id: 0,
    };
    let content = RecordContent {
        meta: serde_json::to_vec(&meta).expect("json").into(),
        spans: vec![span],
        keys: (0..rows as u128).collect(),
        fingerprints: Vec::new(),
        column_bytes: column_bytes
            .unwrap_or_else(|| u32::try_from(batch.get_array_memory_size()).expect("small")),
        body: Bytes::from(stream.into_inner().expect("finished")),
    };
    let mut frame = Vec::new();
    content.write(
        Placement {
            log: LOG,
            offset,
            append_ms: APPEND_MS,
            durable_below: offset,
        },
        &mut frame,
    );
    let mut decided = Fates::new();
    (0..rows).for_each(|row| decided.push(fates.get(row).copied().unwrap_or(Fate::Keep)));
    RangeRecord {
        record: Record::read(&frame.into()).expect("just written"),
        fates: decided,
    }
}

pub fn call(
    range: (u64, u64),
    steps: Steps,
    tasks: Option<Vec<SubTask>>,
    records: Vec<RangeRecord>,
) -> SinkCall {
    SinkCall {
        log: LOG,
        partition: PARTITION,
        server: None,
        range: Range {
            a: range.0,
            b: range.1,
        },
        attempt: 1,
        timeout: Duration::from_secs(20),
        steps,
        tasks,
        records,
        ledger: Vec::new(),
        quarantined: Vec::new(),
        instead: BTreeMap::new(),
        trace: TraceContext::default(),
    }
}

/// Makes the call and takes its reports.
pub async fn write(writer: &SinkWriter, call: SinkCall) -> Vec<SubReport> {
    match ask(writer, call).await {
        SinkReply::Wrote(reports) => reports,
        other @ (SinkReply::Horizon(_)
        | SinkReply::Books(_, _)
        | SinkReply::Letters(_, _)
        | SinkReply::Parts(_)
        | SinkReply::Servers(_)
        | SinkReply::Replay(_)
        | SinkReply::Published(_)
        | SinkReply::Busy { .. }
        | SinkReply::Failed { .. }) => {
            panic!("not written: {other:?}")
        }
    }
}

pub async fn ask(writer: &SinkWriter, call: SinkCall) -> SinkReply {
    let answer = writer.clone().oneshot(SinkRequest::Write(call)).await;
    answer.unwrap_or_else(|never| match never {})
}
