//! One range's way to its outcome: the state machine of `progress::settle` with its calls, waits and
//! writes; then what has to be told of refused rows and of tables that were set aside.

use super::books::Evidence;
use super::call::{Caller, Occasion};
use super::range::{ClosedRange, sends};
use super::retries::Retries;
use crate::parked::file::FileError;
use crate::parked::shelf::Shelf;
use crate::progress::closing::{self, Aside, Work};
use crate::progress::plan::{Next, Plan, Rules, Trouble, Why};
use crate::progress::settle::Settling;
use crate::progress::store::{Store, StoreError};
use crate::progress::{Intent, Marks, Progress, Proof};
use parking_lot::Mutex;
use sluice_common::clock::SharedClock;
use sluice_common::ids::Name;
use sluice_common::metrics::{Counter, Metrics};
use sluice_common::telemetry;
use sluice_common::trace::TraceContext;
use sluice_common::wire::sink::Verdict;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::block_in_place;
use tracing::Instrument as _;

/// What driving needs; cheap to clone.
#[derive(Clone)]
pub struct Driver {
    pub caller: Caller,
    pub store: Arc<Mutex<Store>>,
    pub shelf: Shelf,
    pub park_after: Duration,
    pub clock: SharedClock,
    pub metrics: Metrics,
    /// Up while the declared range is in trouble; shown as `sluice_unsettled`.
    pub in_trouble: Arc<AtomicBool>,
    pub retries: Retries,
}

/// Where settling begins.
#[derive(Debug, Clone)]
pub enum Start {
    /// This process has just declared the range.
    Declared { verify: bool },
    /// The intent was found at a start.
    Found(Marks),
}

/// What became of a range.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Rows that are dead letters now.
    pub marks: Marks,
    /// Tables whose rows wait elsewhere.
    pub aside: Aside,
    /// What was told last.
    pub told: Work,
    /// What the sink-writer proved; `None` where an earlier process saw a part of it.
    pub evidence: Option<Evidence>,
}

/// Why settling cannot go on: the process must end.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    #[error("keeping progress: {0}")]
    Store(#[from] StoreError),
    #[error("setting rows aside: {0}")]
    Parked(#[from] FileError),
}

/// Traces that one range's span is linked to at most.
const MAX_LINKS: usize = 8;
/// A log line of a lasting trouble comes once in so many waits.
const SAY_EVERY: u32 = 6;

/// What was said of a range's troubles.
#[derive(Default)]
struct Said {
    waits: u32,
    alarmed: bool,
}

impl Driver {
    /// Settles a declared range; returns when every row has its outcome.
    ///
    /// # Errors
    /// [`DriveError`]: the process must end.
    pub async fn settle(self, closed: Arc<ClosedRange>, start: Start) -> Result<Outcome, DriveError> {
        let (a, b, rows) = (closed.range.a, closed.range.b, closed.proof.rows);
        let span = tracing::info_span!("range", partition = self.caller.partition, a, b, rows);
        let spans = closed.records.iter().flat_map(|one| one.record.spans());
        for one in spans.filter(|span| span.trace_id != 0).take(MAX_LINKS) {
            let to = TraceContext {
                trace_id: one.trace_id,
                span_id: one.span_id,
                sampled: true,
            };
            telemetry::link(&span, to);
        }
        let trace = telemetry::context_of(&span, TraceContext::default());
        self.run(&closed, start, trace).instrument(span).await
    }

    async fn run(
        &self,
        closed: &ClosedRange,
        start: Start,
        trace: TraceContext,
    ) -> Result<Outcome, DriveError> {
        let occasion = Occasion::now(closed.range, trace);
        let mut aside = self.shelf.tables_of(closed.range);
        let mut marks = match &start {
            Start::Declared { .. } => Marks::default(),
            Start::Found(marks) => marks.clone(),
        };
        aside.iter().for_each(|table| marks.forget(table));
        let found_closing = marks.closing;
        let (mut evidence, mut told) = (None, Work::default());
        if !marks.closing {
            self.set_aside_broken(closed, &mut marks, &mut aside)?;
            let settling = self.begin(left(closed, &aside), start, &marks);
            let mut seen = Evidence::default();
            marks = self
                .settle_rows(closed, settling, (&mut aside, &mut seen), occasion)
                .await?;
            evidence = Some(seen);
        }
        if !marks.dead.is_empty() || !aside.is_empty() {
            marks.closing = true;
            told = closing::of_range(&closed.records, &marks, &aside);
            let seen = evidence.get_or_insert_default();
            self.tell(&told, &marks, seen, occasion).await?;
            evidence = evidence.filter(|_| !found_closing);
        }
        if self.in_trouble.swap(false, Ordering::Relaxed) {
            tracing::info!(
                a = closed.range.a,
                b = closed.range.b,
                "the range is settled after all"
            );
        }
        Ok(Outcome {
            marks,
            aside,
            told,
            evidence,
        })
    }

    fn begin(&self, work: Work, start: Start, marks: &Marks) -> (Settling, Work) {
        let Work { proof, books, .. } = work;
        let rules = Rules {
            quarantine: true,
            park_after: Some(self.park_after),
            mend: false,
        };
        let settling = match start {
            Start::Declared { verify } => Settling::declared(proof, rules, verify),
            Start::Found(_) => Settling::found(proof, rules, marks.clone()),
        };
        (settling.with_books(books), work)
    }

    async fn settle_rows(
        &self,
        closed: &ClosedRange,
        (mut settling, mut work): (Settling, Work),
        (aside, evidence): (&mut Aside, &mut Evidence),
        occasion: Occasion,
    ) -> Result<Marks, DriveError> {
        let mut said = Said::default();
        loop {
            match settling.advance() {
                Next::Proven => return Ok(settling.marks().clone()),
                Next::Call(plan) => self.call(occasion, &work, plan, (&mut settling, evidence)).await,
                Next::Persist(marks) => block_in_place(|| self.persist(marks))?,
                Next::Park(tables) => {
                    for (table, trouble) in &tables {
                        let content = (closed, settling.marks());
                        match block_in_place(|| self.set_aside(content, table, trouble)) {
                            Ok(()) => {
                                aside.insert(table.clone());
                                evidence.forget(table);
                                work = left(closed, aside);
                                settling.set_aside(std::iter::once(table), work.proof);
                            }
                            Err(error) => settling.not_set_aside(only_io(error)?.to_string()),
                        }
                    }
                }
                Next::Wait { delay, reason, alarm } => self.wait(&mut said, delay, &reason, alarm).await,
            }
        }
    }

    /// Dead letters and corrections of the books. What they say is durable before the first byte.
    async fn tell(
        &self,
        work: &Work,
        marks: &Marks,
        evidence: &mut Evidence,
        occasion: Occasion,
    ) -> Result<(), DriveError> {
        block_in_place(|| self.persist(marks.clone()))?;
        let mut settling =
            Settling::found(work.proof, Rules::TELLING, marks.telling()).with_books(work.books);
        let mut said = Said::default();
        loop {
            match settling.advance() {
                Next::Proven => return Ok(()),
                Next::Call(plan) => self.call(occasion, work, plan, (&mut settling, evidence)).await,
                Next::Persist(told) => block_in_place(|| self.persist(marks.with_bumped(told)))?,
                // The rules do not ask for it.
                Next::Park(_) => {}
                Next::Wait { delay, reason, alarm } => self.wait(&mut said, delay, &reason, alarm).await,
            }
        }
    }

    async fn call(
        &self,
        occasion: Occasion,
        work: &Work,
        plan: Plan,
        (settling, evidence): (&mut Settling, &mut Evidence),
    ) {
        let all = plan.tasks.is_none() && !work.is_told();
        if let Some(reports) = self.caller.call(occasion, work, plan, settling).await {
            if reports.iter().all(|report| report.verdict == Verdict::Done) {
                self.retries.succeeded();
            }
            evidence.note(all, &reports);
        }
    }

    /// What comes for tables that take nothing is set aside without being tried.
    fn set_aside_broken(
        &self,
        closed: &ClosedRange,
        marks: &mut Marks,
        aside: &mut Aside,
    ) -> Result<(), DriveError> {
        for (table, reason) in self.shelf.broken() {
            let is_here = |table: &Name| {
                let mut records = closed.records.iter();
                records.any(|one| one.record.meta.table == *table && one.fates.kept() > 0)
            };
            if aside.contains(&table) || !is_here(&table) {
                continue;
            }
            let trouble = Trouble {
                since: Duration::ZERO,
                why: Why::Unsettled,
                reason,
            };
            match block_in_place(|| self.set_aside((closed, &*marks), &table, &trouble)) {
                Ok(()) => {
                    marks.forget(&table);
                    aside.insert(table);
                }
                // No room: then it is tried like any other.
                Err(error) => drop(only_io(error)?),
            }
        }
        Ok(())
    }

    fn set_aside(
        &self,
        (closed, marks): (&ClosedRange, &Marks),
        table: &Name,
        trouble: &Trouble,
    ) -> Result<(), FileError> {
        let (why, reason) = (trouble.why.label(), &trouble.reason);
        tracing::error!(
            %table, why, reason,
            "the table's rows are set aside, and other tables go on: mend the table (`ingestctl parked list`)"
        );
        self.metrics
            .add(Counter::Alarms, 1, &[("reason", "parked_table")]);
        let content = (closed.range, closed.records.as_slice());
        self.shelf
            .set_aside(content, table, trouble, (marks, self.clock.now_ms()))
    }

    fn persist(&self, marks: Marks) -> Result<(), StoreError> {
        let mut store = self.store.lock();
        let state = store.state().clone();
        let Some(intent) = state.intent else { return Ok(()) };
        let is_new = |task: &&_| !intent.marks.bumped.contains(task);
        let new = marks.bumped.iter().filter(is_new).count() as u64;
        if new > 0 {
            tracing::warn!(
                new,
                "ClickHouse had recorded a token without its rows (a crash between the two): sending under a new one"
            );
            self.metrics.add(Counter::GenerationBumps, new, &[]);
        }
        store.write(Progress {
            intent: Some(Intent { marks, ..intent }),
            ..state
        })
    }

    async fn wait(&self, said: &mut Said, delay: Duration, reason: &str, alarm: bool) {
        // The first alarm is said at once, though waits before it were said as such.
        let due = said.waits.is_multiple_of(SAY_EVERY) || (alarm && !said.alarmed);
        self.say(reason, alarm, due);
        said.alarmed |= alarm;
        said.waits += 1;
        self.retries.wait(delay).await;
    }

    fn say(&self, reason: &str, alarm: bool, due: bool) {
        self.in_trouble.store(true, Ordering::Relaxed);
        if alarm {
            self.metrics
                .add(Counter::Alarms, 1, &[("reason", "unsettled_range")]);
        }
        if !due {
            return;
        }
        if alarm {
            tracing::error!(
                reason,
                "a range cannot be settled; it stays declared and is retried: mend the cause"
            );
        } else {
            tracing::warn!(
                reason,
                "a range is not settled yet; it is verified and tried again"
            );
        }
    }
}

/// What of a range is left to be sent.
fn left(closed: &ClosedRange, aside: &Aside) -> Work {
    let mut work = if aside.is_empty() {
        Work {
            records: closed.records.iter().filter(|one| sends(one)).cloned().collect(),
            proof: closed.proof,
            ..Work::default()
        }
    } else {
        closing::rows(&closed.records, aside)
    };
    work.books = Proof::of(closed.ledger.iter().map(|row| row.source_o));
    work.ledger.clone_from(&closed.ledger);
    work
}

/// An error that left nothing behind; any other ends the process.
fn only_io(error: FileError) -> Result<FileError, FileError> {
    match error {
        FileError::Io { .. } => Ok(error),
        FileError::InDoubt { .. } | FileError::Damaged { .. } => Err(error),
    }
}

/// Refused rows by the code of their letters.
#[must_use]
pub fn dead_by_code(marks: &Marks) -> BTreeMap<String, u64> {
    let mut codes = BTreeMap::new();
    for one in &marks.dead {
        let code = sluice_common::classify::letter_code(one.code);
        *codes.entry(code).or_default() += 1;
    }
    codes
}
