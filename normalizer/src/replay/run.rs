//! Running a replay: ranges of records are decided, declared, written to the shadow tables and proven, as the live
//! path does it, with a state file in the place of the progress.

use super::decide::{DecideError, Decider};
use super::file::{Leg, State};
use super::scan::{touch, walk};
use super::{Elsewhere, Replays, Running, Source};
use crate::log::ReadError;
use crate::parked::file::UnitId;
use crate::parked::shelf::Unit;
use crate::progress::closing::{self, Aside, Work};
use crate::progress::plan::{Next, Rules};
use crate::progress::settle::Settling;
use crate::progress::{Intent, Marks};
use crate::pump::call::{Caller, Occasion};
use crate::runtime::{Instant, block_in_place, sleep};
use sluice_common::ids::{Name, Offset};
use sluice_common::limits::{
    MAX_RANGE_BYTES, MAX_RANGE_FRAME_BYTES, REPLAY_ASIDE_PATIENCE, REPLAY_BACKLOG_AGE, REPLAY_PATIENCE,
    REPLAY_RANGE_RECORDS, REPLAY_RANGE_ROWS, RETRY_BACKOFF_MIN, VERIFY_ONE_IN,
};
use sluice_common::metrics::Counter;
use sluice_common::record::Record;
use sluice_common::replay::{Beside, Touched};
use sluice_common::trace::TraceContext;
use sluice_common::wire::sink::{Range, RangeRecord};
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two looks at the live path while it is behind.
const LOOK: Duration = Duration::from_millis(100);

/// Why a replay stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Told to.
    #[error("it was told to stop")]
    Told,
    #[error(transparent)]
    Elsewhere(#[from] Elsewhere),
    #[error("reading the log: {0}; {advice}", advice = advice(.0))]
    Log(#[from] ReadError),
    #[error(transparent)]
    Decide(#[from] DecideError),
    #[error("keeping its state: {0}; mend the disk, then resume it")]
    State(#[from] std::io::Error),
    #[error("{0}")]
    Sink(String),
    #[error(
        "the range {a}..{b} does not come out as it was declared: the live table was changed while it was replayed. \
         Discard this replay and begin another"
    )]
    Differs { a: Offset, b: Offset },
}

fn advice(error: &ReadError) -> &'static str {
    match error {
        ReadError::OutOfReach { .. } => "what it still has can be replayed by a new plan",
        ReadError::Unavailable(_) => "resume it once they do",
        ReadError::Corrupt(_) | ReadError::Io { .. } | ReadError::Foreign { .. } => "see to that first",
    }
}

/// Records of one range, and what they become.
struct Cut {
    range: Range,
    records: Vec<Record>,
}

impl Replays {
    /// Reads and writes until each leg's end is reached.
    ///
    /// # Errors
    /// [`RunError`]; the state says how far it came.
    pub(super) async fn run(&self, running: &Running) -> Result<(), RunError> {
        self.let_in(running).await?;
        loop {
            let Some(leg) = running.state.lock().leg().cloned() else {
                return running.wait_for_last().await;
            };
            self.awaited(running, leg.partition).await?;
            let source = self.source_of(running, leg.partition)?;
            let at = (self.dir(), self.dedup_at());
            let mut decider = Decider::new(source.clone(), &leg, at, running.stop());
            let ran = self.ranges(running, &source, &mut decider).await;
            decider.close();
            ran?;
        }
    }

    /// Rows that are set aside are left out, and go into the live table by themselves. Done after that, a shadow without
    /// them could not take its place: those that are still to be decided are waited for, for a while.
    async fn let_in(&self, running: &Running) -> Result<(), RunError> {
        let (begun, tables) = (Instant::now(), running.tables());
        let (legs, declared) = {
            let state = running.state.lock();
            (state.legs.clone(), state.intent.is_some())
        };
        let waits = |leg: &Leg| {
            let Ok(work) = self.here(leg.partition) else {
                return false;
            };
            let shelf = work.shelf;
            shelf.units().iter().any(|(id, unit): &(UnitId, Unit)| {
                let is_due = id.a < leg.end && leg.next < id.b && tables.contains(&id.table);
                is_due && (unit.heals || unit.mend) && !shelf.is_held(&id.table)
            })
        };
        // What is declared is to come out as it was.
        while !declared && begun.elapsed() < REPLAY_ASIDE_PATIENCE && legs.iter().any(waits) {
            running.change(|state| state.told.reason = Some("rows that were set aside go in first".into()));
            running.wait(LOOK).await?;
        }
        running.change(|state| state.told.reason = None);
        Ok(())
    }

    /// Waits for a partition that may be on its way to us: after a start, or while the group moves it.
    async fn awaited(&self, running: &Running, partition: u16) -> Result<(), RunError> {
        let begun = Instant::now();
        while let Err(elsewhere) = self.here(partition) {
            if begun.elapsed() > REPLAY_PATIENCE {
                return Err(elsewhere.into());
            }
            running.change(|state| state.told.reason = Some(elsewhere.to_string()));
            running.wait(LOOK).await?;
        }
        Ok(())
    }

    /// The ranges of one leg.
    async fn ranges(
        &self,
        running: &Running,
        source: &Source,
        decider: &mut Decider,
    ) -> Result<(), RunError> {
        let partition = source.log.number();
        let (mut ranges, mut ahead) = (0, None);
        loop {
            let state = running.state.lock().clone();
            let Some(leg) = state.leg().filter(|leg| leg.partition == partition) else {
                return Ok(());
            };
            self.pace(running).await?;
            // What is set aside of it would not be known.
            self.here(partition)?;
            let begun = Instant::now();
            let (cut, decided) = match ahead.take() {
                Some(decided) => decided?,
                None => {
                    let declared = state.intent.as_ref().map(|intent| intent.range);
                    self.decided(running, (source, leg, declared), decider).await?
                }
            };
            let range = cut.range;
            let events: u64 = cut.records.iter().map(|record| u64::from(record.rows())).sum();
            let work = redirected(&state, decided);
            let verify = ranges % VERIFY_ONE_IN == 0;
            let written = async {
                // A range that is declared was not empty: where it would be now, somebody changed the live table.
                if work.proof.rows > 0 || state.intent.is_some() {
                    self.write(running, partition, (range, &work), verify).await?;
                }
                Ok::<_, RunError>(())
            };
            let next = Leg {
                next: range.b,
                ..leg.clone()
            };
            let (written, next) = tokio::join!(written, self.next_decided(running, (source, &next), decider));
            written?;
            ahead = next;
            ranges += 1;
            self.count(work.proof.rows, events);
            running.change(|state| {
                state.intent = None;
                if let Some(leg) = state.leg_of(partition) {
                    leg.next = range.b;
                }
                state.told.written += work.proof.rows;
                state.told.left_out += events - work.proof.rows;
                state.told.reason = None;
                // What a promotion catches up was not planned.
                if state.promotion.is_none() {
                    let read = of_partition(&mut state.told.read, partition);
                    cut.records.iter().for_each(|record| touch(read, record));
                }
            });
            // A range that stayed declared while others go on would be decided again after they changed the live table.
            self.keep(running)?;
            running.owe(events, begun);
        }
    }

    /// The range behind one that is being written: reading and deciding take as long as that does. What fails here ends
    /// the replay in its turn.
    async fn next_decided(
        &self,
        running: &Running,
        (source, leg): (&Source, &Leg),
        decider: &mut Decider,
    ) -> Option<Result<(Cut, Vec<RangeRecord>), RunError>> {
        if leg.next >= leg.end {
            return None;
        }
        Some(self.decided(running, (source, leg, None), decider).await)
    }

    async fn decided(
        &self,
        running: &Running,
        of: (&Source, &Leg, Option<Range>),
        decider: &mut Decider,
    ) -> Result<(Cut, Vec<RangeRecord>), RunError> {
        let cut = self.cut(running, of).await?;
        let decided = self.decide(running, decider, &cut).await?;
        Ok((cut, decided))
    }

    /// Decides a range; a ClickHouse that is away for a while is waited for.
    async fn decide(
        &self,
        running: &Running,
        decider: &mut Decider,
        cut: &Cut,
    ) -> Result<Vec<RangeRecord>, RunError> {
        let begun = Instant::now();
        loop {
            match decider.decide(cut.range, &cut.records).await {
                Err(DecideError::Told) => return Err(RunError::Told),
                Err(DecideError::Sink(trouble)) if begun.elapsed() < REPLAY_PATIENCE => {
                    running.change(|state| state.told.reason = Some(trouble.to_string()));
                    running.wait(RETRY_BACKOFF_MIN * 5).await?;
                }
                decided => return Ok(decided?),
            }
        }
    }

    fn count(&self, written: u64, events: u64) {
        let add = |outcome, n| {
            self.metrics()
                .add(Counter::ReplayEvents, n, &[("outcome", outcome)])
        };
        add("written", written);
        add("left_out", events - written);
    }

    /// The next range: the declared one, or as many records as one may have.
    async fn cut(
        &self,
        running: &Running,
        (source, leg, declared): (&Source, &Leg, Option<Range>),
    ) -> Result<Cut, RunError> {
        let (from, to) = declared.map_or((leg.next, leg.end), |range| (range.a, range.b));
        let wanted = running.wanted();
        let (mut b, mut records) = (from, Vec::new());
        let mut size = Size::default();
        let far = from.saturating_add(REPLAY_RANGE_RECORDS);
        let told = running.stop();
        walk(&source.log, (from, to), |record| {
            if declared.is_none() && (record.place.offset >= far || told.is_cancelled()) {
                return false;
            }
            let is_one = wanted.has(&record) && leg.decisions.contains_key(&record.meta.table);
            if is_one && !size.takes(&record) && declared.is_none() {
                return false;
            }
            b = record.place.offset + 1;
            if is_one {
                records.push(record);
            }
            true
        })
        .await?;
        if b == from {
            return Err(RunError::Told);
        }
        let range = Range { a: from, b };
        Ok(Cut { range, records })
    }

    /// Declares a range and has it written and proven.
    async fn write(
        &self,
        running: &Running,
        partition: u16,
        (range, work): (Range, &Work),
        verify: bool,
    ) -> Result<(), RunError> {
        let state = running.state.lock().clone();
        let (rules, instead) = (Rules::TELLING, instead(&state));
        let mut settling = match state.intent {
            Some(intent) if intent.proof != work.proof => {
                return Err(RunError::Differs {
                    a: range.a,
                    b: range.b,
                });
            }
            Some(intent) => Settling::found(work.proof, rules, intent.marks),
            None => {
                running.change(|state| {
                    state.intent = Some(Intent {
                        range,
                        proof: work.proof,
                        server: Some(state.server.clone()),
                        marks: Marks::default(),
                    });
                });
                self.keep(running)?;
                Settling::declared(work.proof, rules, verify)
            }
        };
        let caller = Caller {
            log: self.log().id(),
            partition,
            sink: self.seam(),
            instead,
        };
        let occasion = Occasion::now(range, state.server, TraceContext::default());
        self.settle(running, (&caller, &occasion), work, &mut settling)
            .await
    }

    async fn settle(
        &self,
        running: &Running,
        (caller, occasion): (&Caller, &Occasion),
        work: &Work,
        settling: &mut Settling,
    ) -> Result<(), RunError> {
        loop {
            match settling.advance() {
                Next::Proven => return Ok(()),
                Next::Call(plan) => {
                    caller.call(occasion, work, plan, settling).await;
                }
                Next::Persist(marks) => {
                    running.change(|state| {
                        if let Some(intent) = &mut state.intent {
                            intent.marks = marks;
                        }
                    });
                    self.keep(running)?;
                }
                // The rules do not ask for it.
                Next::Park(_) => {}
                Next::Wait { delay, reason, .. } => {
                    if occasion.begun.elapsed() > REPLAY_PATIENCE {
                        return Err(RunError::Sink(reason));
                    }
                    running.change(|state| state.told.reason = Some(reason));
                    running.wait(delay).await?;
                }
            }
        }
    }

    /// Waits for what the cap allows, and as long as the live path is behind.
    async fn pace(&self, running: &Running) -> Result<(), RunError> {
        running.wait(running.owed()).await?;
        // Rows of a table that is being promoted wait meanwhile: it must come to its end.
        let promotes = running.promotes();
        while !promotes && self.is_behind() {
            running.change(|state| state.told.reason = Some("the live path is behind: it goes first".into()));
            running.wait(LOOK).await?;
        }
        Ok(())
    }

    /// Whether the live path's backlog is old, or tenants are held to their shares of what is drained.
    fn is_behind(&self) -> bool {
        let standing = self.log().standing(None);
        let view = self.grant().view(
            standing.backlog_bytes + standing.queued_bytes,
            standing.oldest_backlog_append_ms,
        );
        let age = view.oldest_ms.map_or(0, |oldest| view.now.saturating_sub(oldest));
        Duration::from_millis(age) > REPLAY_BACKLOG_AGE || self.grant().is_shut(view)
    }

    /// Makes the state durable.
    ///
    /// # Errors
    /// Any of the disk.
    pub(super) fn keep(&self, running: &Running) -> std::io::Result<()> {
        running.change(|state| state.told.changed_ms = self.now_ms());
        let state = running.state.lock().clone();
        block_in_place(|| running.kept.lock().write(self.dir(), &state))
    }
}

/// How large a range is.
#[derive(Default)]
struct Size {
    rows: usize,
    columns: usize,
    frames: usize,
}

impl Size {
    /// Whether a record fits too; the first one always does.
    fn takes(&mut self, record: &Record) -> bool {
        let is_first = self.rows == 0;
        self.rows += record.rows() as usize;
        self.columns += record.column_bytes();
        self.frames += record.frame().len();
        is_first
            || (self.rows <= REPLAY_RANGE_ROWS
                && self.columns <= MAX_RANGE_BYTES
                && self.frames <= MAX_RANGE_FRAME_BYTES)
    }
}

impl Running {
    /// Sleeps, unless it is told to stop.
    ///
    /// # Errors
    /// [`RunError::Told`].
    pub(super) async fn wait(&self, delay: Duration) -> Result<(), RunError> {
        let told = self.stop();
        tokio::select! {
            biased;
            () = told.cancelled() => Err(RunError::Told),
            () = sleep(delay) => Ok(()),
        }
    }

    /// Takes note of what was just read: the cap makes what comes wait for it.
    fn owe(&self, events: u64, begun: Instant) {
        let rate = self.state.lock().told.plan.events_per_second.max(1);
        #[expect(clippy::cast_precision_loss, reason = "a wait")]
        let worth = Duration::from_secs_f64(events as f64 / rate as f64);
        *self.debt.lock() = Some((begun, worth));
    }

    /// Its last range counts for the cap as the others do. Rows of a table that is being promoted wait meanwhile: that
    /// goes on at once.
    async fn wait_for_last(&self) -> Result<(), RunError> {
        if self.promotes() {
            return Ok(());
        }
        self.wait(self.owed()).await
    }

    fn promotes(&self) -> bool {
        self.state.lock().promotion.is_some()
    }

    fn owed(&self) -> Duration {
        let debt = *self.debt.lock();
        debt.map_or(Duration::ZERO, |(begun, worth)| {
            worth.saturating_sub(begun.elapsed())
        })
    }
}

/// The shadow tables by live table.
fn instead(state: &State) -> BTreeMap<Name, Name> {
    let id = state.told.id;
    state
        .tables()
        .into_iter()
        .map(|table| (table.clone(), id.table(table, Beside::Shadow)))
        .collect()
}

/// What goes to the shadow tables.
fn redirected(state: &State, mut decided: Vec<RangeRecord>) -> Work {
    let instead = instead(state);
    for one in &mut decided {
        if let Some(shadow) = instead.get(&one.record.meta.table) {
            one.record.meta.table = shadow.clone();
        }
    }
    closing::rows(&decided, &Aside::new())
}

/// What was read of one partition.
fn of_partition(read: &mut Vec<Touched>, partition: u16) -> &mut Touched {
    let found = read.iter().position(|one| one.partition == partition);
    let at = found.unwrap_or(read.len());
    if at == read.len() {
        read.push(Touched {
            partition,
            ..Touched::default()
        });
    }
    &mut read[at]
}
