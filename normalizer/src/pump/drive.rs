//! One range's way to its outcome: the state machine of `progress::settle` with its calls, waits and
//! writes; then what has to be told of refused rows and of tables that were set aside.

use super::aside::own_tables;
use super::books::Evidence;
use super::call::{Caller, Occasion};
use super::range::{ClosedRange, sends};
use super::recover::{HORIZON_DEADLINE, RowsAhead, rows_ahead};
use super::retries::Retries;
use super::servers::Servers;
use crate::parked::file::FileError;
use crate::parked::shelf::Shelf;
use crate::progress::closing::{self, Aside, Work};
use crate::progress::plan::{Next, Plan, Rules, Trouble};
use crate::progress::settle::Settling;
use crate::progress::store::{Store, StoreError};
use crate::progress::{Intent, Marks, Progress, Proof, is_data};
use crate::runtime::block_in_place;
use parking_lot::Mutex;
use sluice_common::books::LEDGER;
use sluice_common::clock::SharedClock;
use sluice_common::failpoint::{self, Point, Safety};
use sluice_common::ids::{Name, source_o};
use sluice_common::metrics::{Counter, Metrics};
use sluice_common::servers::ServerId;
use sluice_common::telemetry;
use sluice_common::trace::TraceContext;
use sluice_common::wire::sink::{Horizon, Verdict};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing::Instrument as _;

/// What driving needs; cheap to clone.
#[derive(Clone)]
pub struct Driver {
    pub caller: Caller,
    pub store: Arc<Mutex<Store>>,
    pub shelf: Shelf,
    pub servers: Servers,
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
    #[error(transparent)]
    Ahead(#[from] RowsAhead),
    #[error("the publishing task failed: {0}")]
    Publishing(#[from] tokio::task::JoinError),
}

/// Traces that one range's span is linked to at most.
const MAX_LINKS: usize = 8;
/// How long a range waits at most for a server that is lost: it is set aside soon.
const LOST_PAUSE: Duration = Duration::from_secs(1);
/// A log line of a lasting trouble comes once in so many waits.
const SAY_EVERY: u32 = 6;

/// What was said of a range's troubles.
#[derive(Default)]
pub(super) struct Said {
    waits: u32,
    alarmed: bool,
}

/// One range on its way.
pub(super) struct Way<'a> {
    pub(super) closed: &'a ClosedRange,
    pub(super) occasion: Occasion,
    /// This process has declared it.
    pub(super) declared: bool,
    /// Tables whose rows wait elsewhere.
    pub(super) aside: Aside,
    /// Of these our own, which are made durable once it is known what the range tells.
    pub(super) own: BTreeMap<Name, Trouble>,
    pub(super) evidence: Evidence,
    said: Said,
}

/// What of a range is being settled.
pub(super) enum Stage<'a> {
    Rows,
    /// Dead letters and corrections of the books: what was decided, and what is told of it.
    Telling(&'a Marks, &'a Work),
}

impl Stage<'_> {
    pub(super) fn work(&self, way: &Way<'_>) -> Work {
        match self {
            Self::Rows => left(way.closed, &way.aside),
            Self::Telling(_, told) => told.without(&way.aside),
        }
    }

    /// The tables whose rows it settles, but for those that are set aside. Once a range tells, its own rows are settled:
    /// a table that were set aside only then would be counted as parked by nobody.
    pub(super) fn tables(&self, way: &Way<'_>) -> Aside {
        let records = match self {
            Self::Rows => way.closed.records.as_slice(),
            Self::Telling(..) => &[],
        };
        let sending = records.iter().filter(|one| sends(one));
        let tables = sending.map(|one| one.record.meta.table.clone());
        let mut tables: Aside = tables.chain(own_tables()).collect();
        tables.retain(|table| !way.aside.contains(table));
        tables
    }

    fn durable(&self, marks: Marks) -> Marks {
        match self {
            Self::Rows => marks,
            Self::Telling(decided, _) => decided.with_bumped(marks),
        }
    }
}

impl Driver {
    /// Settles a declared range at `server`; returns when every row has its outcome.
    ///
    /// # Errors
    /// [`DriveError`]: the process must end.
    pub async fn settle(
        self,
        closed: Arc<ClosedRange>,
        start: Start,
        server: ServerId,
    ) -> Result<Outcome, DriveError> {
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
        let occasion = Occasion::now(closed.range, server, trace);
        let way = Way {
            closed: &closed,
            occasion,
            declared: matches!(start, Start::Declared { .. }),
            aside: self.shelf.tables_of(closed.range),
            own: BTreeMap::new(),
            evidence: Evidence::default(),
            said: Said::default(),
        };
        self.run(way, start).instrument(span).await
    }

    async fn run(&self, mut way: Way<'_>, start: Start) -> Result<Outcome, DriveError> {
        let closed = way.closed;
        let mut marks = match &start {
            Start::Declared { .. } => Marks::default(),
            Start::Found(marks) => marks.clone(),
        };
        way.aside.iter().for_each(|table| marks.forget(table));
        let found_closing = marks.closing;
        self.own_found(&mut way);
        if !marks.closing {
            self.set_aside_broken(&mut way, &mut marks).await?;
            let work = left(closed, &way.aside);
            let settling = self.begin(&work, start, &marks);
            marks = self.settle_stage(&mut way, &Stage::Rows, settling).await?;
        }
        let mut told = Work::default();
        if !marks.dead.is_empty() || way.aside.iter().any(is_data) {
            marks.closing = true;
            told = closing::of_range(&closed.records, &marks, &way.aside);
            // A start that finds the range closing sends its rows to nobody any more: what of them our own tables
            // did not take must be elsewhere by then.
            self.set_aside_own(&mut way, &marks, &told).await?;
            // What they say is durable before the first byte.
            block_in_place(|| self.persist(marks.clone()))?;
            let work = told.without(&way.aside);
            let settling = Settling::found(work.proof, self.rules(), marks.telling()).with_books(work.books);
            self.settle_stage(&mut way, &Stage::Telling(&marks, &told), settling)
                .await?;
        }
        self.set_aside_own(&mut way, &marks, &told).await?;
        if self.in_trouble.swap(false, Ordering::Relaxed) {
            tracing::info!(
                a = closed.range.a,
                b = closed.range.b,
                "the range is settled after all"
            );
        }
        Ok(Outcome {
            marks,
            aside: way.aside,
            told,
            evidence: (!found_closing).then_some(way.evidence),
        })
    }

    fn rules(&self) -> Rules {
        Rules {
            quarantine: true,
            park_after: Some(self.park_after),
            mend: false,
        }
    }

    fn begin(&self, work: &Work, start: Start, marks: &Marks) -> Settling {
        let settling = match start {
            Start::Declared { verify } => Settling::declared(work.proof, self.rules(), verify),
            Start::Found(_) => Settling::found(work.proof, self.rules(), marks.clone()),
        };
        settling.with_books(work.books)
    }

    async fn settle_stage(
        &self,
        way: &mut Way<'_>,
        stage: &Stage<'_>,
        mut settling: Settling,
    ) -> Result<Marks, DriveError> {
        let mut work = stage.work(way);
        if work.is_empty() {
            return Ok(settling.marks().clone());
        }
        loop {
            match settling.advance() {
                Next::Proven => return Ok(settling.marks().clone()),
                Next::Call(plan) => self.call(way, &work, plan, &mut settling).await?,
                Next::Persist(marks) => block_in_place(|| self.persist(stage.durable(marks)))?,
                Next::Park(tables) => {
                    self.park(way, stage, &tables, &mut settling)?;
                    work = stage.work(way);
                }
                Next::Wait { delay, reason, alarm } => {
                    self.wait(way, delay, &reason, alarm).await;
                    if self.part_from_server(way, stage, &mut settling)? {
                        work = stage.work(way);
                    }
                }
            }
        }
    }

    /// One call at the range's server. One that is lost meanwhile is not waited for: what it does with the
    /// call is unknown, as after a time-out.
    async fn call(
        &self,
        way: &mut Way<'_>,
        work: &Work,
        plan: Plan,
        settling: &mut Settling,
    ) -> Result<(), DriveError> {
        let server = way.occasion.server.clone();
        if let Err(reason) = self.check(way).await? {
            settling.not_begun(reason);
            return Ok(());
        }
        settling.answering(self.servers.answers(&server));
        let all = plan.tasks.is_none() && !work.is_told();
        let reports = tokio::select! {
            biased;
            reports = self.caller.call(&way.occasion, work, plan, settling) => Some(reports),
            () = self.servers.lost(&server, self.park_after) => None,
        };
        match reports {
            Some(Some(reports)) => {
                if reports.iter().all(|report| report.verdict == Verdict::Done) {
                    self.retries.succeeded();
                }
                way.evidence.note(all, &reports);
            }
            Some(None) => {}
            None => settling.failed(format!("{server} went away while it was called")),
        }
        Ok(())
    }

    /// R19 at a server that did not answer at the start: no rows past what this process knows of.
    async fn check(&self, way: &Way<'_>) -> Result<Result<(), String>, DriveError> {
        let (server, range) = (&way.occasion.server, way.closed.range);
        if self.servers.is_checked(server) {
            return Ok(Ok(()));
        }
        let end = if way.declared { range.a } else { range.b };
        let tables = way.closed.records.iter().map(|one| one.record.meta.table.clone());
        let tables: Aside = tables.filter(is_data).collect();
        let question = Horizon {
            log: self.caller.log,
            partition: self.caller.partition,
            server: Some(server.clone()),
            from_o: source_o(end, 0),
            tables: tables.into_iter().collect(),
            timeout: HORIZON_DEADLINE,
        };
        match self.caller.horizon(question).await {
            Ok(told) => {
                rows_ahead(told.found, end)?;
                self.servers.checked(told.asked);
                Ok(Ok(()))
            }
            Err(reason) => Ok(Err(reason)),
        }
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
        let (before, after) = match new {
            0 => (Point::MarksPersist, Point::MarksPersisted),
            _ => (Point::BumpPersist, Point::BumpPersisted),
        };
        store.pass(before)?;
        if new == 0 || failpoint::is_on(Safety::Bump) {
            store.write(Progress {
                intent: Some(Intent { marks, ..intent }),
                ..state
            })?;
        }
        store.pass(after)
    }

    pub(super) async fn wait(&self, way: &mut Way<'_>, delay: Duration, reason: &str, alarm: bool) {
        let server = &way.occasion.server;
        // Nobody but a person brings back a server that the config has lost.
        let alarm = alarm || self.servers.is_unknown(server);
        let delay = if self.servers.lost_for(server).is_some() {
            delay.min(LOST_PAUSE)
        } else {
            delay
        };
        let said = &mut way.said;
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
    if !aside.iter().any(|table| table.as_str() == LEDGER) {
        work.books = Proof::of(closed.ledger.iter().map(|row| row.source_o));
        work.ledger.clone_from(&closed.ledger);
    }
    work
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pump::range::OpenRange;
    use crate::sim::append::kept;
    use sluice_common::books::DEAD_LETTERS;

    #[test]
    fn once_a_range_tells_what_became_of_its_rows_only_our_own_tables_can_be_set_aside() {
        let mut range = OpenRange::at(0);
        range.push(
            kept((0, 0), 3),
            (&crate::pump::batching::Batching::default(), 1.0),
            0,
        );
        let closed = range.close();
        let server = ServerId {
            name: "a:8123".into(),
            uuid: None,
        };
        let way = Way {
            occasion: Occasion::now(closed.range, server, TraceContext::default()),
            closed: &closed,
            declared: true,
            aside: Aside::new(),
            own: BTreeMap::new(),
            evidence: Evidence::default(),
            said: Said::default(),
        };
        let names = |tables: &[&str]| -> Aside { tables.iter().flat_map(|table| Name::new(table)).collect() };
        assert_eq!(Stage::Rows.tables(&way), names(&["a", DEAD_LETTERS, LEDGER]));
        let (marks, told) = (Marks::default(), Work::default());
        let telling = Stage::Telling(&marks, &told);
        assert_eq!(telling.tables(&way), names(&[DEAD_LETTERS, LEDGER]));
    }
}
