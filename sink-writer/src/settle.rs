//! One sub-batch at one ClickHouse: the asking of it. What follows from the answers is decided in
//! [`sluice_common::settle`].

use crate::block::{Content, SubBatch};
use crate::client::{Client, ServerError};
use crate::insert::{self, Origin};
use crate::limiter::{Limiter, Slot};
use crate::observe::Observer;
use crate::tables::{DescribeError, Table, Tables};
use crate::verify::verify;
use bytes::Bytes;
use parking_lot::Mutex;
use sluice_common::classify::{Class, TIME_OUT_OF_RANGE, classify, is_stale_description};
use sluice_common::failpoint::{self, Point, Safety};
use sluice_common::ids::Name;
use sluice_common::settle::{self, Attempt, Evidence, Found, Sent};
use sluice_common::wire::sink::{Steps, SubReport, Verdict};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

/// What all sub-batches of one call share.
#[derive(Debug, Clone)]
pub struct Settler {
    pub client: Client,
    pub tables: Arc<Tables>,
    pub observer: Observer,
    pub limiter: Limiter,
    pub origin: Origin,
    pub steps: Steps,
    /// Nobody waits for these rows: others go first.
    pub gentle: bool,
    pub deadline: Instant,
    /// Tables that failed in this call, and how.
    pub failed: Arc<Mutex<BTreeMap<Name, String>>>,
}

/// One sub-batch that can be sent.
struct Sendable<'a> {
    settler: &'a Settler,
    sub: &'a SubBatch,
    generation: u32,
    columns: &'a [String],
    body: &'a Bytes,
    table: &'a Table,
    slot: &'a Slot,
}

impl Attempt for Sendable<'_> {
    async fn verify(&self) -> Found {
        self.settler.verify(self.sub, self.table).await
    }

    async fn insert(&self) -> Sent {
        let (settler, sub) = (self.settler, self.sub);
        let request = (self.columns, self.body.clone(), settler.deadline);
        let database = settler.client.database();
        let mut request = insert::request(database, settler.origin, sub, self.generation, request);
        if settler.gentle {
            request.settings.extend(insert::gentle());
        }
        let begun = Instant::now();
        let answer = match failpoint::hit(Point::InsertSend) {
            Ok(()) => settler.client.insert(request, settler.deadline).await,
            Err(error) => Err(ServerError::Uncertain(error.to_string())),
        };
        let answer = failpoint::hit(Point::InsertAnswered)
            .map_err(|error| ServerError::Uncertain(error.to_string()))
            .and(answer);
        let (took, bytes) = (begun.elapsed(), self.body.len());
        settler.observer.inserted(sub.rows, bytes, took, &answer);
        if let Some(error) = self.slot.ended(&answer, begun) {
            let mut failed = settler.failed.lock();
            failed.insert(sub.key.table.clone(), error.to_string());
        }
        match answer {
            Ok(()) => Sent::Clean,
            Err(ServerError::Definite { code, message }) => {
                settler.note_error(sub, code, &message);
                Sent::Refused { code, message }
            }
            Err(ServerError::Unreached(reason)) => Sent::Unreached(reason),
            Err(ServerError::Uncertain(reason)) => Sent::Uncertain(reason),
        }
    }

    fn is_in_time(&self) -> bool {
        Instant::now() < self.settler.deadline
    }
}

impl Settler {
    /// Works one sub-batch to its verdict.
    pub async fn settle(&self, sub: SubBatch, generation: u32) -> SubReport {
        for column in &sub.left_out {
            let what = format!("column {column} of the dataset is not in the table and is left out");
            self.tables.warn_once(&sub.key.table, &what);
        }
        let slot = self.slot(&sub).await;
        let verdict = match &slot {
            Ok(slot) => self.verdict(&sub, generation, slot).await,
            Err(reason) => Verdict::Unsent {
                reason: reason.clone(),
            },
        };
        SubReport {
            sub: sub.key,
            rows: sub.rows,
            sum_o: sub.sum_o,
            sum_o2: sub.sum_o2,
            verdict,
        }
    }

    /// The right to ask the server; the rest of a call for a table whose probe has just failed has none.
    async fn slot(&self, sub: &SubBatch) -> Result<Slot, String> {
        let table = &sub.key.table;
        let slot = self.limiter.take(table, self.deadline).await;
        let slot = slot.ok_or("ClickHouse had no room before the deadline")?;
        // It may have failed while this one waited.
        match self.failed.lock().get(table) {
            Some(error) if self.steps.insert && self.limiter.is_open(table) => Err(format!(
                "the table keeps failing, and a probe failed just now: {error}"
            )),
            Some(_) | None => Ok(slot),
        }
    }

    async fn verdict(&self, sub: &SubBatch, generation: u32, slot: &Slot) -> Verdict {
        match &sub.content {
            Content::Block { columns, body, table } => {
                let attempt = Sendable {
                    settler: self,
                    sub,
                    generation,
                    columns,
                    body,
                    table,
                    slot,
                };
                settle::settle(self.steps, evidence(table), &attempt).await
            }
            Content::Refused { refusal, table } => {
                self.tables.forget(&sub.key.table);
                // The table takes none of these rows, whichever they are.
                let refused = (refusal.code, refusal.message.clone(), Class::Alarm);
                settle::refused(self.earlier(sub, table).await, refused)
            }
            Content::Unplaced => Verdict::Refused {
                code: TIME_OUT_OF_RANGE,
                message: UNPLACEABLE.into(),
                class: Class::Quarantine,
            },
            Content::Hidden(DescribeError::Missing(table)) => Verdict::Refused {
                code: UNKNOWN_TABLE,
                message: DescribeError::Missing(table.clone()).to_string(),
                class: Class::Alarm,
            },
            Content::Hidden(DescribeError::Server(ServerError::Unreached(reason))) => Verdict::Unsent {
                reason: format!("the server cannot be reached: {reason}"),
            },
            Content::Hidden(DescribeError::Server(error)) => Verdict::Unknown {
                reason: format!("table {} cannot be described: {error}", sub.key.table),
            },
        }
    }

    /// What an earlier attempt has left of a sub-batch that this call cannot send.
    async fn earlier(&self, sub: &SubBatch, table: &Table) -> Found {
        let asked = self.steps.verify_first || self.steps.verify_after;
        if asked && table.verifiable {
            self.verify(sub, table).await
        } else {
            Found::None
        }
    }

    async fn verify(&self, sub: &SubBatch, table: &Table) -> Found {
        if !failpoint::is_on(Safety::Verify) {
            return Found::All;
        }
        let found = match failpoint::hit(Point::VerifyAsk) {
            Ok(()) => verify(&self.client, self.origin, sub, table, self.deadline).await,
            Err(error) => Found::Unknown(error.to_string()),
        };
        let found = match failpoint::hit(Point::VerifyAnswered) {
            Ok(()) => found,
            Err(error) => Found::Unknown(error.to_string()),
        };
        self.observer.verified(&found);
        if matches!(found, Found::Unknown(_)) {
            // Another server, or a table that is another now: see it afresh next time.
            self.tables.forget(&sub.key.table);
        }
        found
    }

    fn note_error(&self, sub: &SubBatch, code: u32, message: &str) {
        let class = classify(code).label();
        tracing::warn!(table = %sub.key.table, part = %sub.key.part, code, class, "insert refused: {message}");
        if is_stale_description(code) {
            self.tables.forget(&sub.key.table);
        }
    }
}

const UNKNOWN_TABLE: u32 = 60;
/// ClickHouse would put such a time into a partition of another time.
const UNPLACEABLE: &str =
    "the time that decides the table's partition is null, before 1970 or after 2106-02-07";

fn evidence(table: &Table) -> Evidence {
    Evidence {
        verifiable: table.verifiable,
        bump_safe: table.bump_safe,
    }
}
