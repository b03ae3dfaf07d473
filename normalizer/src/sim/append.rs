//! What clients send, and how it gets into the log: without a task that waits, because the log's writer is a
//! thread, and virtual time must not pass it by.

use crate::log::AppendError;
use crate::log::EmbeddedLog;
use crate::log::embedded::AppendedAt;
use bytes::Bytes;
use rand::Rng;
use rand::rngs::SmallRng;
use sluice_common::clock::UnixMs;
use sluice_common::fates::{Fate, Fates};
use sluice_common::ids::{LogId, Name, Offset, RequestId, TenantId};
use sluice_common::record::{Holds, Identity, Placement, Record, RecordContent, RecordMeta, RequestSpan};
use sluice_common::wire::sink::RangeRecord;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

pub const TABLES: [&str; 3] = ["a", "b", "c"];
pub const WINDOW_MS: u64 = 20_000;

/// The rows of one record: which events, and what they say where that is compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    pub table: usize,
    pub compares: bool,
    pub rows: Vec<(u128, u32)>,
    pub rejected: u32,
    /// Bytes of its columns.
    pub body: usize,
}

impl Draft {
    fn meta(&self, window_ms: u64, holds: Holds) -> RecordMeta {
        let name = Name::new(TABLES[self.table]).unwrap();
        let identity = if self.compares {
            Identity::IdempotencyKey
        } else {
            Identity::Key
        };
        RecordMeta {
            tenant: TenantId::new("acme").unwrap(),
            dataset: name.clone(),
            table: name,
            schema_version: 1,
            identity,
            window_ms,
            holds,
        }
    }

    pub fn content(&self, window_ms: u64) -> RecordContent {
        self.content_of(&self.meta(window_ms, Holds::Events))
    }

    fn content_of(&self, meta: &RecordMeta) -> RecordContent {
        let rows = u32::try_from(self.rows.len()).unwrap();
        let span = RequestSpan {
            request: RequestId(1),
            first_row: 0,
            rows,
            taken: rows,
            rejected: self.rejected,
            trace_id: 0,
            span_id: 0,
        };
        let prints = self.rows.iter().map(|row| row.1);
        RecordContent {
            column_bytes: 100,
            meta: serde_json::to_vec(meta).unwrap().into(),
            spans: vec![span],
            keys: self.rows.iter().map(|row| row.0).collect(),
            fingerprints: if self.compares {
                prints.collect()
            } else {
                Vec::new()
            },
            body: Bytes::from(vec![0xA5; self.body]),
        }
    }
}

/// A record of new events as it is read, and as dedup decides it.
pub fn kept(place: (Offset, UnixMs), rows: u32) -> RangeRecord {
    decided(place, Holds::Events, (0..rows).map(|_| Fate::Keep))
}

/// A record of rows with these fates.
pub fn decided(
    (offset, append_ms): (Offset, UnixMs),
    holds: Holds,
    rows: impl Iterator<Item = Fate>,
) -> RangeRecord {
    let mut fates = Fates::new();
    rows.for_each(|fate| fates.push(fate));
    let draft = Draft {
        table: 0,
        compares: false,
        rows: (0..u128::from(fates.rows())).map(|key| (key, 0)).collect(),
        rejected: 0,
        body: 10,
    };
    let place = Placement {
        log: LogId(1),
        offset,
        append_ms,
        durable_below: offset,
    };
    let mut frame = Vec::new();
    let content = draft.content_of(&draft.meta(WINDOW_MS, holds));
    content.write(place, &mut frame);
    RangeRecord {
        record: Record::read(&frame.into()).unwrap(),
        fates,
    }
}

/// All the events that clients have made up so far.
#[derive(Debug, Default)]
pub struct Clients {
    keys: Vec<(usize, bool, u128)>,
}

impl Clients {
    /// The records of one request group; some of their events were sent before.
    pub fn batch(&mut self, random: &mut SmallRng) -> Vec<Draft> {
        let records = random.random_range(1..4);
        (0..records).map(|_| self.draft(random)).collect()
    }

    fn draft(&mut self, random: &mut SmallRng) -> Draft {
        let (table, compares) = (random.random_range(0..TABLES.len()), random.random_bool(0.3));
        let rows = (0..random.random_range(1..9)).map(|_| self.row(random, table, compares));
        let rows = rows.collect();
        Draft {
            table,
            compares,
            rows,
            rejected: random.random_range(0..3),
            body: random.random_range(0..1_500),
        }
    }

    fn row(&mut self, random: &mut SmallRng, table: usize, compares: bool) -> (u128, u32) {
        let alike = |(one, other, _): &&(usize, bool, u128)| (*one, *other) == (table, compares);
        let known = self
            .keys
            .iter()
            .rev()
            .filter(alike)
            .nth(random.random_range(0..40));
        let key = match known {
            Some((.., key)) if random.random_bool(0.3) => *key,
            Some(_) | None => {
                let key = random.random();
                self.keys.push((table, compares, key));
                key
            }
        };
        let print = if compares { random.random_range(1..3) } else { 0 };
        (key, print)
    }
}

/// Whether ClickHouse refuses this event for its own sake, in the log that simulations write.
pub fn is_bad(key: u128, seed: u64) -> bool {
    seed.is_multiple_of(3) && (key >> 40).is_multiple_of(23)
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Appends, and blocks this thread until it is known what became of it.
pub fn append(log: &EmbeddedLog, records: Vec<RecordContent>) -> Result<AppendedAt, AppendError> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut appending = pin!(log.append(records));
    loop {
        match appending.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(outcome) => return outcome,
            Poll::Pending => std::thread::park(),
        }
    }
}
