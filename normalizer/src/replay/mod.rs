//! Replay: stored records of the log are written again, to shadow tables beside the live ones, held against them,
//! and put in their place.
//!
//! # Way
//! [`plan`] says exactly what will be touched; [`run`] reads the log apart from the pump, has [`decide`] find the rows
//! that were kept, and writes range by range by the same proven inserts; [`promote`] puts the shadow's partitions in
//! the live ones' places. [`file`](self::file) keeps how far each is; [`sink`] asks the sink-writer.
//!
//! # What protects the live path
//! One replay works at a time, in one task. It has a cap of events a second, and waits while the live backlog is older
//! than `REPLAY_BACKLOG_AGE`. It reads no more than one range into memory. The log keeps what a replay still has to
//! read, within a bound; a log that needs the room takes it, and the replay ends with an error.

mod decide;
mod file;
mod plan;
mod promote;
mod routes;
mod run;
mod scan;
mod sink;
#[cfg(test)]
mod tests;

pub use decide::DedupAt;
pub use routes::routes;

use crate::log::EmbeddedLog;
use crate::parked::shelf::Shelf;
use crate::progress::store::Store;
use crate::pump::batching::SharedSettings;
use crate::pump::servers::Servers;
use crate::runtime::{Instant, block_in_place};
use file::{Promotion, State};
use http::StatusCode;
use parking_lot::Mutex;
use plan::Planned;
use run::{RunError, is_at_work};
use scan::Wanted;
use sink::{Sink, SinkTrouble};
use sluice_common::admin::Refused;
use sluice_common::clock::{SharedClock, UnixMs};
use sluice_common::disk::Dir;
use sluice_common::ids::{Name, Offset};
use sluice_common::limits::{REPLAY_PIN_AGE, REPLAY_PLANS};
use sluice_common::metrics::Metrics;
use sluice_common::replay::{
    Decisions, Phase, PromoteOrder, ReplayId, ReplayOrder, ReplayPlan, ReplayTold, TableDiff,
};
use sluice_common::shutdown::Stop;
use sluice_common::wire::sink::SinkRequest;
use sluice_common::wire::transport::Seam;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// What replays stand on.
pub struct Parts {
    pub dir: Dir,
    pub log: Arc<EmbeddedLog>,
    pub progress: Arc<Mutex<Store>>,
    pub shelf: Shelf,
    pub sink: Seam<SinkRequest>,
    pub settings: SharedSettings,
    /// Orders about dead letters take it one at a time.
    pub letters: Arc<Semaphore>,
    pub dedup_at: DedupAt,
    pub clock: SharedClock,
    pub metrics: Metrics,
    pub stop: Stop,
}

/// All replays. Cloning shares them.
#[derive(Clone)]
pub struct Replays(Arc<Inner>);

struct Inner {
    parts: Parts,
    servers: Servers,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Plans that may be run, oldest first.
    plans: VecDeque<Planned>,
    replays: BTreeMap<ReplayId, Arc<Running>>,
    /// A task works on it.
    at_work: Option<ReplayId>,
}

/// One replay, at work or not.
pub(crate) struct Running {
    state: Mutex<State>,
    /// Tells its task to stop; another one for each task.
    told: Mutex<Stop>,
    /// When the last range was begun, and how long its events last at the cap.
    debt: Mutex<Option<(Instant, Duration)>>,
}

/// The turn of one replay, which ends with this.
struct Turn<'a>(&'a Replays, ReplayId);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut known = self.0.0.known.lock();
        known.at_work.take_if(|id| *id == self.1);
    }
}

impl Running {
    fn new(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            told: Mutex::new(Stop::new()),
            debt: Mutex::new(None),
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
    }

    fn wanted(&self) -> Wanted {
        let state = self.state.lock();
        Wanted {
            tenant: state.told.plan.tenant.clone(),
            dataset: state.told.plan.dataset.clone(),
        }
    }

    fn stop(&self) -> Stop {
        self.told.lock().clone()
    }
}

impl Replays {
    /// Finds the replays of earlier processes. A table that is being promoted takes no rows from here on; nothing
    /// runs until [`Self::go_on`].
    ///
    /// # Errors
    /// Any of the directory.
    pub fn open(parts: Parts) -> std::io::Result<Self> {
        let states = file::list(&parts.dir)?;
        // What was declared before is verified as ever, unless a replacement may be on its way.
        for state in states.iter().filter(|state| state.is_replacing()) {
            let tables: Vec<Name> = state.tables().cloned().collect();
            parts.shelf.hold(&tables);
        }
        let replays = states
            .into_iter()
            .map(|state| (state.told.id, Arc::new(Running::new(state))));
        let known = Known {
            replays: replays.collect(),
            ..Known::default()
        };
        let servers = Servers::new(parts.sink.clone());
        let all = Self(Arc::new(Inner {
            parts,
            servers,
            known: Mutex::new(known),
        }));
        all.pin();
        Ok(all)
    }

    /// Goes on with what was at work when an earlier process ended.
    pub fn go_on(&self) {
        let known = self.0.known.lock();
        let at_work = |one: &&Arc<Running>| is_at_work(one.state.lock().told.phase);
        let mut found: Vec<Arc<Running>> = known.replays.values().filter(at_work).cloned().collect();
        drop(known);
        found.sort_by_key(|one| one.state.lock().told.phase != Phase::Promoting);
        for running in found {
            if self.begin(&running).is_err() {
                tracing::error!("two replays were at work: the second waits to be resumed");
                running.change(|state| state.told.phase = Phase::Paused);
            }
        }
    }

    /// Everything known, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<ReplayTold> {
        let known = self.0.known.lock();
        let mut told: Vec<ReplayTold> = known
            .replays
            .values()
            .map(|one| one.state.lock().told.clone())
            .collect();
        told.sort_by_key(|one| std::cmp::Reverse(one.begun_ms));
        told
    }

    /// Remembers a plan, so that it can be run.
    pub fn remember(&self, planned: Planned) {
        let plans = &mut self.0.known.lock().plans;
        if plans.len() == REPLAY_PLANS {
            plans.pop_front();
        }
        plans.push_back(planned);
    }

    /// Runs a plan.
    ///
    /// # Errors
    /// A refusal; nothing was touched then.
    pub async fn order(&self, order: ReplayOrder) -> Result<ReplayTold, Refused> {
        let planned = self
            .0
            .known
            .lock()
            .plans
            .iter()
            .find(|one| one.plan.id == order.plan)
            .cloned();
        let Some(planned) = planned else {
            let detail = format!(
                "there is no plan {}: plan again (a restart forgets plans)",
                order.plan
            );
            return Err(missing("replay_unknown", detail));
        };
        let running = Arc::new(Running::new(self.fresh(planned, order).await?));
        self.take_turn(&running)?;
        // In a task: whoever asked may go away.
        let (all, begins) = (self.clone(), Arc::clone(&running));
        let begun = tokio::spawn(async move {
            let turn = Turn(&all, begins.id());
            all.prepare(&begins).await?;
            all.0
                .known
                .lock()
                .replays
                .insert(begins.id(), Arc::clone(&begins));
            all.0.known.lock().plans.retain(|one| one.plan.id != begins.id());
            std::mem::forget(turn);
            all.spawn(&begins);
            Ok(())
        });
        begun.await.unwrap_or_else(|error| Err(stopped(&error)))?;
        Ok(running.told_now())
    }

    async fn fresh(&self, planned: Planned, order: ReplayOrder) -> Result<State, Refused> {
        let Planned {
            mut plan,
            decisions,
            window_ms,
            empty,
        } = planned;
        if plan.decisions.is_none() {
            return Err(conflict("replay_undecidable", plan.notes.join("; ")));
        }
        let first = self.log().first_offset();
        if plan.from < first {
            let detail = format!("the log begins at {first} by now: plan again");
            return Err(conflict("replay_out_of_reach", detail));
        }
        if let Some(cap) = order.events_per_second {
            plan.events_per_second = cap.max(1);
        }
        let now = self.now_ms();
        Ok(State {
            end: plan.to,
            needs: self.needs(&plan, window_ms),
            empty,
            decisions,
            window_ms,
            server: self.server().await?,
            intent: None,
            promotion: None,
            told: ReplayTold {
                id: plan.id,
                who: order.who.chars().take(120).collect(),
                begun_ms: now,
                changed_ms: now,
                phase: Phase::Running,
                reason: None,
                read: Vec::new(),
                next: plan.from,
                written: 0,
                left_out: 0,
                comparing: false,
                diff: None,
                steps: Vec::new(),
                plan,
            },
        })
    }

    /// Where dedup has to begin to read, to decide anew.
    fn needs(&self, plan: &ReplayPlan, window_ms: u64) -> Offset {
        if plan.decisions != Some(Decisions::Anew) {
            return plan.from;
        }
        let firsts = plan.partitions.iter().filter_map(|one| one.first_append_ms);
        let first_ms = firsts.min().unwrap_or_default();
        self.log()
            .first_offset_appended_at_or_after(first_ms.saturating_sub(window_ms))
    }

    async fn server(&self) -> Result<sluice_common::servers::ServerId, Refused> {
        let looked = self.0.servers.look().await;
        looked.map_err(|reason| unreachable(&SinkTrouble(reason)))?;
        let chosen = self.0.servers.chosen();
        chosen.ok_or_else(|| unreachable(&SinkTrouble("no ClickHouse answers".into())))
    }

    /// Its state is durable and its tables are there, or nothing is.
    async fn prepare(&self, running: &Running) -> Result<(), Refused> {
        let state = running.state.lock().clone();
        let (id, tables) = (state.told.id, state.tables().cloned().collect::<Vec<Name>>());
        let kept = self.keep(running);
        let begun = match kept {
            Err(error) => {
                let detail =
                    format!("the state of a replay cannot be kept: {error}; make room in the data directory");
                Err(Refused::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "replay_no_room",
                    detail,
                ))
            }
            Ok(()) => self
                .sink(id)
                .prepare(tables.clone())
                .await
                .map_err(|error| unreachable(&error)),
        };
        if begun.is_err() {
            // Best effort: what stays is told by the list, and goes with `discard`.
            let removed = block_in_place(|| file::remove(self.dir(), id));
            let dropped = self.sink(id).drop_beside(tables).await;
            if removed.is_err() || dropped.is_err() {
                tracing::warn!(%id, "a replay that did not begin may have left empty tables");
            }
        }
        begun
    }

    /// Pauses one that runs.
    ///
    /// # Errors
    /// A refusal.
    pub fn pause(&self, id: ReplayId) -> Result<ReplayTold, Refused> {
        let running = self.find(id)?;
        let phase = running.state.lock().told.phase;
        if phase != Phase::Running {
            return Err(wrong_phase(id, phase, "only one that runs can be paused"));
        }
        running.stop().cancel();
        Ok(running.told_now())
    }

    /// Resumes one that was paused or failed.
    ///
    /// # Errors
    /// A refusal.
    pub fn resume(&self, id: ReplayId) -> Result<ReplayTold, Refused> {
        let running = self.find(id)?;
        let phase = running.state.lock().told.phase;
        match phase {
            Phase::Failed if running.state.lock().promotion.is_some() => {
                return Err(wrong_phase(id, phase, "its promotion was given up: discard it"));
            }
            Phase::Paused | Phase::Failed => {}
            Phase::Running => return Ok(running.told_now()),
            Phase::Done | Phase::Promoting | Phase::Promoted | Phase::Discarded => {
                return Err(wrong_phase(
                    id,
                    phase,
                    "only one that was paused or failed can be resumed",
                ));
            }
        }
        self.take_turn(&running)?;
        running.change(|state| (state.told.phase, state.told.reason) = (Phase::Running, None));
        self.spawn(&running);
        Ok(running.told_now())
    }

    /// Holds the shadows against the live tables, in the background.
    ///
    /// # Errors
    /// A refusal.
    pub fn diff(&self, id: ReplayId) -> Result<ReplayTold, Refused> {
        let running = self.find(id)?;
        let phase = running.state.lock().told.phase;
        if matches!(
            phase,
            Phase::Discarded | Phase::Running | Phase::Promoting | Phase::Promoted
        ) {
            return Err(wrong_phase(id, phase, "compare once it is done"));
        }
        let already = std::mem::replace(&mut running.state.lock().told.comparing, true);
        if !already {
            running.change(|state| (state.told.diff, state.told.reason) = (None, None));
            let (all, running) = (self.clone(), Arc::clone(&running));
            tokio::spawn(async move { all.compare(&running).await });
        }
        Ok(running.told_now())
    }

    async fn compare(&self, running: &Running) {
        let state = running.state.lock().clone();
        let (sink, plan) = (self.sink(state.told.id), &state.told.plan);
        let mut all: Vec<TableDiff> = Vec::new();
        let mut trouble = None;
        for table in state.tables() {
            let span = (plan.from, state.told.next);
            match sink
                .compare(table.clone(), plan.tenant.clone(), span, false)
                .await
            {
                Ok(diff) => all.push(diff),
                Err(error) => trouble = Some(format!("comparing {table}: {error}")),
            }
        }
        running.change(|state| {
            state.told.comparing = false;
            state.told.diff = trouble.is_none().then_some(all);
            state.told.reason = trouble;
        });
    }

    /// Puts the shadow's rows in the live tables' places, in the background.
    ///
    /// # Errors
    /// A refusal.
    pub fn order_promotion(&self, id: ReplayId, order: PromoteOrder) -> Result<ReplayTold, Refused> {
        let running = self.find(id)?;
        let phase = running.state.lock().told.phase;
        if phase != Phase::Done || running.state.lock().told.comparing {
            return Err(wrong_phase(
                id,
                phase,
                "only one that is done, and not being compared, can be promoted",
            ));
        }
        self.take_turn(&running)?;
        running.change(|state| {
            (state.told.phase, state.told.reason) = (Phase::Promoting, None);
            state.told.steps.clear();
            state.promotion = Some(Promotion {
                row_wise: order.row_wise,
                ..Promotion::default()
            });
        });
        if let Err(error) = self.keep(&running) {
            self.0.known.lock().at_work = None;
            running.change(|state| state.told.phase = Phase::Done);
            let detail =
                format!("the state of the replay cannot be kept: {error}; make room in the data directory");
            return Err(Refused::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "replay_no_room",
                detail,
            ));
        }
        self.spawn(&running);
        Ok(running.told_now())
    }

    /// Drops a replay's tables.
    ///
    /// # Errors
    /// A refusal.
    pub async fn discard(&self, id: ReplayId) -> Result<ReplayTold, Refused> {
        let running = self.find(id)?;
        let phase = running.state.lock().told.phase;
        if is_at_work(phase) || running.state.lock().told.comparing {
            return Err(wrong_phase(id, phase, "pause it first"));
        }
        self.take_turn(&running)?;
        let (all, ends) = (self.clone(), Arc::clone(&running));
        let discarded = tokio::spawn(async move {
            let _turn = Turn(&all, id);
            all.discarded(&ends).await
        });
        discarded.await.unwrap_or_else(|error| Err(stopped(&error)))?;
        self.pin();
        Ok(running.told_now())
    }

    async fn discarded(&self, running: &Running) -> Result<(), Refused> {
        let tables: Vec<Name> = running.state.lock().tables().cloned().collect();
        let dropped = self.sink(running.id()).drop_beside(tables).await;
        dropped.map_err(|error| unreachable(&error))?;
        running.change(|state| {
            state.intent = None;
            (state.told.phase, state.told.reason) = (Phase::Discarded, None);
        });
        self.keep(running).map_err(|error| {
            let detail =
                format!("its tables are dropped, and that cannot be kept: {error}; discard it again");
            Refused::new(StatusCode::SERVICE_UNAVAILABLE, "replay_no_room", detail)
        })
    }

    /// One replay.
    ///
    /// # Errors
    /// Where there is none of that id.
    pub fn find(&self, id: ReplayId) -> Result<Arc<Running>, Refused> {
        let found = self.0.known.lock().replays.get(&id).cloned();
        found.ok_or_else(|| {
            missing(
                "replay_unknown",
                format!("there is no replay {id}: `ingestctl replay list` shows them"),
            )
        })
    }

    fn begin(&self, running: &Arc<Running>) -> Result<(), Refused> {
        self.take_turn(running)?;
        self.spawn(running);
        Ok(())
    }

    /// One works at a time.
    fn take_turn(&self, running: &Running) -> Result<(), Refused> {
        let id = running.state.lock().told.id;
        let mut known = self.0.known.lock();
        if let Some(other) = known.at_work {
            let detail = format!("replay {other} is at work: wait for it, or pause it");
            return Err(conflict("replay_busy", detail));
        }
        known.at_work = Some(id);
        *running.told.lock() = self.0.parts.stop.child_token();
        Ok(())
    }

    fn spawn(&self, running: &Arc<Running>) {
        self.pin();
        let (all, running) = (self.clone(), Arc::clone(running));
        tokio::spawn(async move { all.work(&running).await });
    }

    /// Works on one until it is done, told to stop, or in trouble.
    async fn work(&self, running: &Running) {
        let (id, phase) = {
            let state = running.state.lock();
            (state.told.id, state.told.phase)
        };
        // Also where it fails inside.
        let _turn = Turn(self, id);
        if phase == Phase::Promoting {
            self.promote(running).await;
        } else {
            self.work_to_end(running).await;
        }
        tracing::info!(%id, phase = ?running.state.lock().told.phase, "replay");
        self.pin();
    }

    async fn work_to_end(&self, running: &Running) {
        let tables: Vec<Name> = running.state.lock().tables().cloned().collect();
        let id = running.state.lock().told.id;
        let ran = if running.is_fresh() {
            // A process may have ended between its state and its tables.
            let made = self.sink(id).prepare(tables).await;
            made.map_err(|error| RunError::Sink(error.to_string()))
        } else {
            Ok(())
        };
        let ran = match ran {
            Ok(()) => self.run(running).await,
            failed => failed,
        };
        let (phase, reason) = match ran {
            Ok(()) => match running.misread() {
                Some(misread) => (Phase::Failed, Some(misread)),
                None => (Phase::Done, None),
            },
            // The next start goes on with it.
            Err(RunError::Told) if self.stopping() => return,
            Err(RunError::Told) => (Phase::Paused, None),
            Err(error) => (Phase::Failed, Some(error.to_string())),
        };
        let ended = |state: &mut State| (state.told.phase, state.told.reason) = (phase, reason.clone());
        if let Err(error) = self.end(running, ended) {
            tracing::error!(%id, %error, "the state of a replay cannot be kept: after a restart it goes on from an earlier one");
            running.change(ended);
        }
    }

    /// Makes a change durable, and shows it together with the turn being free: who sees it may order the next step.
    ///
    /// # Errors
    /// Any of the disk; nothing is shown then but the reason, and the turn is kept.
    fn end(&self, running: &Running, change: impl FnOnce(&mut State)) -> std::io::Result<()> {
        let mut state = running.state.lock().clone();
        change(&mut state);
        state.told.changed_ms = self.now_ms();
        if let Err(error) = block_in_place(|| file::write(self.dir(), &state)) {
            running.change(|state| state.told.reason = Some(format!("keeping its state: {error}")));
            return Err(error);
        }
        let mut known = self.0.known.lock();
        running.change(|shown| *shown = state);
        known.at_work = None;
        Ok(())
    }

    /// Has the log keep what replays may still read: for a while.
    fn pin(&self) {
        let now = self.now_ms();
        let known = self.0.known.lock();
        let young = |state: &State| state.told.changed_ms.saturating_add(ms(REPLAY_PIN_AGE)) > now;
        let mut lowest: Option<Offset> = None;
        for running in known.replays.values() {
            let state = running.state.lock();
            if !state.has_ended() && (young(&state) || is_at_work(state.told.phase)) {
                let anew = state.decisions.values().any(|how| *how == Decisions::Anew);
                let needs = if anew { state.needs } else { state.told.next };
                let needs = needs.min(lowest.unwrap_or(Offset::MAX));
                lowest = Some(needs);
            }
        }
        self.log().pin(lowest);
    }

    fn sink(&self, id: ReplayId) -> Sink {
        Sink {
            id,
            log: self.log().id(),
            seam: self.seam(),
        }
    }

    fn seam(&self) -> Seam<SinkRequest> {
        self.0.parts.sink.clone()
    }

    fn log(&self) -> &EmbeddedLog {
        &self.0.parts.log
    }

    fn shared_log(&self) -> Arc<EmbeddedLog> {
        Arc::clone(&self.0.parts.log)
    }

    fn shelf(&self) -> &Shelf {
        &self.0.parts.shelf
    }

    fn dir(&self) -> &Dir {
        &self.0.parts.dir
    }

    fn metrics(&self) -> &Metrics {
        &self.0.parts.metrics
    }

    fn dedup_at(&self) -> DedupAt {
        Arc::clone(&self.0.parts.dedup_at)
    }

    fn letters_gate(&self) -> Arc<Semaphore> {
        Arc::clone(&self.0.parts.letters)
    }

    fn committed(&self) -> Offset {
        self.0.parts.progress.lock().state().committed
    }

    fn declared_end(&self) -> Offset {
        self.0.parts.progress.lock().state().end()
    }

    fn now_ms(&self) -> UnixMs {
        self.0.parts.clock.now_ms()
    }

    fn stopping(&self) -> bool {
        self.0.parts.stop.is_cancelled()
    }

    /// Datasets whose rows go to a table, by the config.
    fn datasets_of(&self, table: &Name) -> Vec<Name> {
        let settings = self.0.parts.settings.load();
        let of_table = settings.datasets.iter().filter(|(_, one)| one == table);
        of_table.map(|(dataset, _)| dataset.clone()).collect()
    }
}

impl Running {
    /// Its state, for those who ask.
    #[must_use]
    pub fn told_now(&self) -> ReplayTold {
        self.state.lock().told.clone()
    }

    fn id(&self) -> ReplayId {
        self.state.lock().told.id
    }

    /// Nothing of it is read yet.
    fn is_fresh(&self) -> bool {
        let state = self.state.lock();
        state.told.next == state.told.plan.from && state.intent.is_none()
    }

    /// What was read must be what was planned.
    fn misread(&self) -> Option<String> {
        let state = self.state.lock();
        (state.told.read != state.told.plan.partitions).then(|| {
            "what was read is not what was planned: the log was changed meanwhile; discard this replay"
                .to_owned()
        })
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn stopped(error: &tokio::task::JoinError) -> Refused {
    let detail = format!("it was cut short: {error}; look at `ingestctl replay list`");
    Refused::new(StatusCode::SERVICE_UNAVAILABLE, "replay_unreachable", detail)
}

fn bad(detail: String) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, "bad_replay", detail)
}

fn conflict(code: &'static str, detail: String) -> Refused {
    Refused::new(StatusCode::CONFLICT, code, detail)
}

fn missing(code: &'static str, detail: String) -> Refused {
    Refused::new(StatusCode::NOT_FOUND, code, detail)
}

fn unreachable(error: &SinkTrouble) -> Refused {
    let detail = format!("ClickHouse cannot be asked or does not do it: {error}");
    Refused::new(StatusCode::SERVICE_UNAVAILABLE, "replay_unreachable", detail)
}

fn wrong_phase(id: ReplayId, phase: Phase, what: &str) -> Refused {
    let phase = format!("{phase:?}").to_lowercase();
    conflict("replay_wrong_phase", format!("replay {id} is {phase}: {what}"))
}
