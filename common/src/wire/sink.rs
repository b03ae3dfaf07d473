//! normalizer.pump → sink-writer: one call names a range, its sub-batches, the attempt and the
//! deadline, and ends in one verdict a sub-batch (R13).

pub use super::asked::{Horizon, HorizonTold, PartsLine, PartsQuery, WhichServers};

use super::publish::{PublishCall, PublishOrder, Published};
use super::transport::{Answer, BadMessage, Call, Failure};
use crate::books::{BooksLine, BooksQuery, Entry, LedgerRow};
use crate::classify::Class;
use crate::fates::Fates;
use crate::ids::{LogId, Name, Offset};
use crate::letters::{LettersCall, LettersTold};
use crate::limits::SINK_CALL_BYTES;
use crate::record::{self, Record};
use crate::replay::{ReplayCall, SinkTold};
use crate::servers::{ServerId, ServersSeen};
use crate::trace::TraceContext;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Record offsets `[a, b)` of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Range {
    pub a: Offset,
    pub b: Offset,
}

/// Which rows of a range's share in one ClickHouse partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Piece {
    /// All of them.
    #[default]
    Whole,
    /// Rows `[from, to)` of all of them, in log order: a node of the walk that finds refused rows (R15).
    Rows { from: u32, to: u32 },
    /// Dead letters of rows that were refused; in `dead_letters` only.
    Quarantined,
    /// Rows of the books, of one kind.
    Entry(Entry),
}

impl Piece {
    fn is_whole(&self) -> bool {
        *self == Self::Whole
    }
}

/// One sub-batch of a range: rows of one table's ClickHouse partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SubKey {
    pub table: Name,
    /// ClickHouse's `_partition_id`; `all` for a table without partitions.
    pub part: String,
    #[serde(default, skip_serializing_if = "Piece::is_whole")]
    pub piece: Piece,
}

impl SubKey {
    /// All rows of one table's partition.
    #[must_use]
    pub fn whole(table: Name, part: impl Into<String>) -> Self {
        Self {
            table,
            part: part.into(),
            piece: Piece::Whole,
        }
    }
}

/// A sub-batch to work on, and the generation of its token (R14).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubTask {
    pub sub: SubKey,
    pub generation: u32,
}

/// What to do with each sub-batch, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    pub verify_first: bool,
    pub insert: bool,
    pub verify_after: bool,
}

impl Steps {
    /// A first attempt by the process that declared the range: a clean answer is proof.
    pub const FIRST: Self = Self {
        verify_first: false,
        insert: true,
        verify_after: false,
    };
    /// A first attempt whose clean answer is verified all the same.
    pub const FIRST_VERIFIED: Self = Self {
        verify_first: false,
        insert: true,
        verify_after: true,
    };
    /// Any later attempt.
    pub const AGAIN: Self = Self {
        verify_first: true,
        insert: true,
        verify_after: true,
    };
}

/// Rows that end as dead letters for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRows {
    /// The column `code`.
    pub code: String,
    pub message: String,
    /// Provenance, ascending.
    pub rows: Vec<u64>,
}

/// One record of a range with what dedup decided of its rows.
#[derive(Debug, Clone)]
pub struct RangeRecord {
    pub record: Record,
    pub fates: Fates,
}

/// A range to be written.
#[derive(Debug, Clone)]
pub struct SinkCall {
    pub log: LogId,
    pub partition: u16,
    /// Where it is carried out, and nowhere else; the first one where none is named.
    pub server: Option<ServerId>,
    pub range: Range,
    /// From 1; told for logs and time-outs, no decision hangs on it.
    pub attempt: u32,
    pub timeout: Duration,
    pub steps: Steps,
    /// `None`: all sub-batches of the range, at generation 0.
    pub tasks: Option<Vec<SubTask>>,
    pub records: Vec<RangeRecord>,
    /// Rows of the books that go out with the range (R20).
    pub ledger: Vec<LedgerRow>,
    /// Rows of the records that are written as dead letters; their fate is to be dropped otherwise.
    pub quarantined: Vec<RefusedRows>,
    /// Tables that are written in place of those that the records name: a replay's.
    pub instead: BTreeMap<Name, Name>,
    pub trace: TraceContext,
}

/// What became of one sub-batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// All rows are there: proven, or a clean answer to a first attempt.
    Done,
    /// The insert was answered clean, and verification then found none of the rows: the token is
    /// poisoned (a crash left its record without its part).
    CleanButNone,
    /// Verified: none of the rows are there. No insert was asked for.
    NoneThere,
    /// Verified: some rows are there, some are not.
    Between { found: u64 },
    /// The server, or the sink-writer before it, refused the rows, and none are there.
    Refused {
        code: u32,
        message: String,
        /// Whether rows, server or table are at fault. Only the sink-writer knows: what it refuses
        /// itself is the table's fault under any code.
        class: Class,
    },
    /// This call sent no byte of an insert: the server was not reached, or had no room. Earlier ones may have.
    Unsent { reason: String },
    /// Nothing can be said.
    Unknown { reason: String },
}

/// One sub-batch's report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubReport {
    pub sub: SubKey,
    pub rows: u64,
    /// Wrapping sum of `_src_o`.
    pub sum_o: u64,
    /// Wrapping sum of `_src_o * _src_o`.
    pub sum_o2: u64,
    pub verdict: Verdict,
}

/// All that the sink-writer is asked.
#[derive(Debug, Clone)]
pub enum SinkRequest {
    Write(SinkCall),
    Horizon(Horizon),
    Books(BooksQuery),
    Letters(LettersCall),
    Parts(PartsQuery),
    Servers(WhichServers),
    Replay(ReplayCall),
    Publish(PublishCall),
}

/// All that it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SinkReply {
    Wrote(Vec<SubReport>),
    Horizon(HorizonTold),
    /// The sums asked for, newest minute first, over all servers that answered; and who did not.
    Books(Vec<BooksLine>, Vec<String>),
    /// Dead letters, or what became of them; and which servers did not answer.
    Letters(LettersTold, Vec<String>),
    /// The parts of those tables that there are.
    Parts(Vec<PartsLine>),
    Servers(ServersSeen),
    Replay(SinkTold),
    Published(Published),
    /// Over its byte budget; nothing was begun. Over HTTP: 429.
    Busy {
        retry_after_ms: u64,
    },
    /// The call could not be carried out; what was begun is unknown.
    Failed {
        reason: String,
    },
}

impl SinkReply {
    /// Why an answer is none to the question that was asked: a sentence.
    #[must_use]
    pub fn not_an_answer(self) -> String {
        match self {
            Self::Failed { reason } => reason,
            Self::Busy { .. } => "the sink-writer is full".into(),
            Self::Wrote(_)
            | Self::Horizon(_)
            | Self::Books(_, _)
            | Self::Letters(_, _)
            | Self::Parts(_)
            | Self::Servers(_)
            | Self::Replay(_)
            | Self::Published(_) => "the sink-writer answers another question".into(),
        }
    }
}

impl From<Failure> for SinkReply {
    fn from(failure: Failure) -> Self {
        Self::Failed {
            reason: failure.reason,
        }
    }
}

impl Answer for SinkReply {
    fn status(&self) -> StatusCode {
        match self {
            Self::Wrote(_)
            | Self::Horizon(_)
            | Self::Books(_, _)
            | Self::Letters(_, _)
            | Self::Parts(_)
            | Self::Servers(_)
            | Self::Replay(_)
            | Self::Published(_) => StatusCode::OK,
            Self::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Failed { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// The JSON head of a call's body; the records' frames follow it.
#[derive(Debug, Serialize, Deserialize)]
enum Head {
    Write {
        log: LogId,
        partition: u16,
        server: Option<ServerId>,
        range: Range,
        attempt: u32,
        steps: Steps,
        tasks: Option<Vec<SubTask>>,
        fates: Vec<Fates>,
        ledger: Vec<LedgerRow>,
        #[serde(default)]
        quarantined: Vec<RefusedRows>,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        instead: BTreeMap<Name, Name>,
    },
    Horizon(Horizon),
    Books(BooksQuery),
    Letters(LettersCall),
    Parts(PartsQuery),
    Servers(WhichServers),
    Replay(ReplayCall),
    Publish {
        order: PublishOrder,
        fates: Vec<Fates>,
    },
}

impl Call for SinkRequest {
    const PATH: &'static str = "/internal/v1/sink";
    const MAX_BODY_BYTES: usize = SINK_CALL_BYTES;
    type Reply = SinkReply;

    fn timeout(&self) -> Duration {
        match self {
            Self::Write(call) => call.timeout,
            Self::Horizon(horizon) => horizon.timeout,
            Self::Books(query) => query.timeout,
            Self::Letters(call) => call.timeout,
            Self::Parts(query) => query.timeout,
            Self::Servers(asked) => asked.timeout,
            Self::Replay(call) => call.timeout,
            Self::Publish(call) => call.timeout,
        }
    }

    fn trace(&self) -> TraceContext {
        match self {
            Self::Write(call) => call.trace,
            Self::Publish(call) => call.trace,
            Self::Horizon(_)
            | Self::Books(_)
            | Self::Letters(_)
            | Self::Parts(_)
            | Self::Servers(_)
            | Self::Replay(_) => TraceContext::default(),
        }
    }

    fn into_parts(self, _headers: &mut HeaderMap) -> Bytes {
        let (head, records) = match self {
            Self::Write(call) => split_call(call),
            Self::Horizon(horizon) => (Head::Horizon(horizon), Vec::new()),
            Self::Books(query) => (Head::Books(query), Vec::new()),
            Self::Letters(call) => (Head::Letters(call), Vec::new()),
            Self::Parts(query) => (Head::Parts(query), Vec::new()),
            Self::Servers(asked) => (Head::Servers(asked), Vec::new()),
            Self::Replay(call) => (Head::Replay(call), Vec::new()),
            Self::Publish(PublishCall { order, records, .. }) => {
                let (records, fates) = taken_apart(records);
                (Head::Publish { order, fates }, records)
            }
        };
        let head = serde_json::to_vec(&head).expect("the head has no map with other keys than text");
        let frames: usize = records.iter().map(|record| record.frame().len()).sum();
        let mut body = BytesMut::with_capacity(4 + head.len() + frames);
        body.put_u32_le(u32::try_from(head.len()).expect("the head is under 4 GiB"));
        body.put_slice(&head);
        records.iter().for_each(|record| body.put_slice(record.frame()));
        body.freeze()
    }

    fn from_parts(headers: &HeaderMap, timeout: Duration, body: Bytes) -> Result<Self, BadMessage> {
        let (head, mut rest) = split_head(&body)?;
        match head {
            Head::Horizon(mut horizon) => {
                horizon.timeout = timeout;
                Ok(Self::Horizon(horizon))
            }
            Head::Books(mut query) => {
                query.timeout = timeout;
                Ok(Self::Books(query))
            }
            Head::Parts(mut query) => {
                query.timeout = timeout;
                Ok(Self::Parts(query))
            }
            Head::Letters(mut call) => {
                call.timeout = timeout;
                Ok(Self::Letters(call))
            }
            Head::Servers(_) => Ok(Self::Servers(WhichServers { timeout })),
            Head::Replay(mut call) => {
                call.timeout = timeout;
                Ok(Self::Replay(call))
            }
            Head::Publish { order, fates } => Ok(Self::Publish(PublishCall {
                order,
                records: take_records(fates, &mut rest)?,
                timeout,
                trace: TraceContext::from_headers(headers),
            })),
            Head::Write {
                log,
                partition,
                server,
                range,
                attempt,
                steps,
                tasks,
                fates,
                ledger,
                quarantined,
                instead,
            } => {
                let records = take_records(fates, &mut rest)?;
                let trace = TraceContext::from_headers(headers);
                Ok(Self::Write(SinkCall {
                    log,
                    partition,
                    server,
                    range,
                    attempt,
                    timeout,
                    steps,
                    tasks,
                    records,
                    ledger,
                    quarantined,
                    instead,
                    trace,
                }))
            }
        }
    }
}

fn split_call(call: SinkCall) -> (Head, Vec<Record>) {
    let SinkCall {
        log,
        partition,
        server,
        range,
        attempt,
        steps,
        tasks,
        records,
        ledger,
        quarantined,
        instead,
        ..
    } = call;
    let (records, fates) = taken_apart(records);
    (
        Head::Write {
            log,
            partition,
            server,
            range,
            attempt,
            steps,
            tasks,
            fates,
            ledger,
            quarantined,
            instead,
        },
        records,
    )
}

fn taken_apart(records: Vec<RangeRecord>) -> (Vec<Record>, Vec<Fates>) {
    records.into_iter().map(|one| (one.record, one.fates)).unzip()
}

fn split_head(body: &Bytes) -> Result<(Head, Bytes), BadMessage> {
    let length = body.first_chunk().map(|word| u32::from_le_bytes(*word) as usize);
    let head = length.and_then(|length| body.get(4..4 + length));
    let head = head.ok_or_else(|| BadMessage("the head is cut short".into()))?;
    let parsed = serde_json::from_slice(head).map_err(|error| BadMessage(error.to_string()))?;
    Ok((parsed, body.slice(4 + head.len()..)))
}

/// The records that follow a head, each with its fates.
fn take_records(fates: Vec<Fates>, rest: &mut Bytes) -> Result<Vec<RangeRecord>, BadMessage> {
    let one = |fates: Fates| {
        let record = take_record(rest)?;
        if fates.rows() != record.rows() || !fates.is_sound() {
            return Err(BadMessage("fates do not match their record".into()));
        }
        Ok(RangeRecord { record, fates })
    };
    fates.into_iter().map(one).collect()
}

fn take_record(rest: &mut Bytes) -> Result<Record, BadMessage> {
    let record = Record::read(rest).map_err(|error: record::BadRecord| BadMessage(error.to_string()))?;
    *rest = rest.slice(record.frame().len()..);
    Ok(record)
}
