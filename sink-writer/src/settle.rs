//! One sub-batch's steps, from what the pump asked to one verdict (R13, R14).

use crate::block::{Content, SubBatch};
use crate::client::{Client, ServerError};
use crate::insert::{self, Origin};
use crate::limiter::{Limiter, Slot};
use crate::observe::Observer;
use crate::tables::{DescribeError, Table, Tables};
use crate::verify::{Found, verify};
use bytes::Bytes;
use parking_lot::Mutex;
use sluice_common::classify::{
    Class, QUERY_WITH_SAME_ID_IS_RUNNING, TIME_OUT_OF_RANGE, classify, is_stale_description,
};
use sluice_common::failpoint::{self, Point, Safety};
use sluice_common::ids::Name;
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
    pub deadline: Instant,
    /// Tables that failed in this call, and how.
    pub failed: Arc<Mutex<BTreeMap<Name, String>>>,
}

/// What became of the insert itself.
enum Sent {
    Clean,
    Refused {
        code: u32,
        message: String,
        class: Class,
    },
    /// Not a byte of it.
    Unreached(String),
    Uncertain(String),
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
                let content = (columns.as_slice(), body, table.as_ref());
                self.write((sub, generation), content, slot).await
            }
            Content::Refused { refusal, table } => {
                let refused = Sent::Refused {
                    code: refusal.code,
                    message: refusal.message.clone(),
                    // The table takes none of these rows, whichever they are.
                    class: Class::Alarm,
                };
                self.tables.forget(&sub.key.table);
                self.unsent(sub, table, refused).await
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

    /// Verify first, if asked; then insert, if asked and none is there; then the insert's answer.
    async fn write(
        &self,
        (sub, generation): (&SubBatch, u32),
        (columns, body, table): (&[String], &Bytes, &Table),
        slot: &Slot,
    ) -> Verdict {
        // Where nothing can be verified, the token alone stands between a repeat and a second row.
        if self.steps.verify_first && table.verifiable {
            match self.verify(sub, table).await {
                Found::None => {}
                found @ (Found::All | Found::Some { .. } | Found::Unknown(_)) => return settled(found),
            }
        }
        if !self.steps.insert {
            return if self.steps.verify_first && table.verifiable {
                Verdict::NoneThere
            } else {
                Verdict::Unknown {
                    reason: "its rows cannot be verified, and no insert was asked for".into(),
                }
            };
        }
        let request = (columns, body.clone(), self.deadline);
        let request = insert::request(self.client.database(), self.origin, sub, generation, request);
        let begun = Instant::now();
        let answer = match failpoint::hit(Point::InsertSend) {
            Ok(()) => self.client.insert(request, self.deadline).await,
            Err(error) => Err(ServerError::Uncertain(error.to_string())),
        };
        let answer = failpoint::hit(Point::InsertAnswered)
            .map_err(|error| ServerError::Uncertain(error.to_string()))
            .and(answer);
        self.observer
            .inserted(sub.rows, body.len(), begun.elapsed(), &answer);
        if let Some(error) = slot.ended(&answer, begun) {
            self.failed
                .lock()
                .insert(sub.key.table.clone(), error.to_string());
        }
        let sent = match answer {
            Ok(()) => Sent::Clean,
            Err(ServerError::Definite { code, message }) => {
                self.note_error(sub, code, &message);
                Sent::Refused {
                    code,
                    message,
                    class: classify(code),
                }
            }
            Err(ServerError::Unreached(reason)) => Sent::Unreached(reason),
            Err(ServerError::Uncertain(reason)) => Sent::Uncertain(reason),
        };
        self.after(sub, table, sent).await
    }

    /// From the insert's answer to the verdict.
    async fn after(&self, sub: &SubBatch, table: &Table, sent: Sent) -> Verdict {
        match sent {
            // answered clean → done, where that is enough
            Sent::Clean if !self.steps.verify_after || !table.verifiable => Verdict::Done,
            // answered clean → poisoned, only where none there is certain
            Sent::Clean => match self.verify(sub, table).await {
                Found::None if table.bump_safe => Verdict::CleanButNone,
                Found::None => Verdict::Unknown {
                    reason: "none there yet, on a replica that may lag behind".into(),
                },
                found @ (Found::All | Found::Some { .. } | Found::Unknown(_)) => settled(found),
            },
            // still running under the same id → evidence of nothing
            Sent::Refused {
                code: QUERY_WITH_SAME_ID_IS_RUNNING,
                ..
            } => match self.proven(sub, table).await {
                Some(done) => done,
                None => Verdict::Unknown {
                    reason: "an earlier attempt still runs on the server".into(),
                },
            },
            // refused → refused, only where none there is verified
            Sent::Refused { code, message, class } => {
                if !self.steps.verify_after || !table.verifiable {
                    return Verdict::Unknown {
                        reason: format!("code {code}: {message}"),
                    };
                }
                match self.verify(sub, table).await {
                    Found::None => Verdict::Refused { code, message, class },
                    found @ (Found::All | Found::Some { .. } | Found::Unknown(_)) => settled(found),
                }
            }
            // not sent → nothing new is known
            Sent::Unreached(reason) => Verdict::Unsent {
                reason: format!("the server cannot be reached: {reason}"),
            },
            // no answer → done where all are there, else nobody knows: it may still arrive
            Sent::Uncertain(reason) => match self.proven(sub, table).await {
                Some(done) => done,
                None => Verdict::Unknown { reason },
            },
        }
    }

    /// A sub-batch that this call cannot send: an earlier attempt may have landed all the same.
    async fn unsent(&self, sub: &SubBatch, table: &Table, refused: Sent) -> Verdict {
        let asked = self.steps.verify_first || self.steps.verify_after;
        let found = if asked && table.verifiable {
            self.verify(sub, table).await
        } else {
            Found::None
        };
        match (found, refused) {
            (Found::None, Sent::Refused { code, message, class }) => {
                Verdict::Refused { code, message, class }
            }
            (found, _) => settled(found),
        }
    }

    /// Done, if verification is asked for and finds all.
    async fn proven(&self, sub: &SubBatch, table: &Table) -> Option<Verdict> {
        if !self.steps.verify_after || !table.verifiable || Instant::now() >= self.deadline {
            return None;
        }
        matches!(self.verify(sub, table).await, Found::All).then_some(Verdict::Done)
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

fn settled(found: Found) -> Verdict {
    match found {
        Found::All => Verdict::Done,
        Found::None => Verdict::NoneThere,
        Found::Some { rows } => Verdict::Between { found: rows },
        Found::Unknown(reason) => Verdict::Unknown { reason },
    }
}
