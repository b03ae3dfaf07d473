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
//! than `REPLAY_BACKLOG_AGE`. It reads no more than two ranges into memory: the next one while one is written. The log keeps what a replay still has to
//! read, within a bound; a log that needs the room takes it, and the replay ends with an error.

mod decide;
mod file;
mod holds;
mod orders;
mod plan;
mod planning;
mod promote;
mod routes;
mod run;
mod scan;
mod sink;
#[cfg(test)]
mod tests;

pub use decide::DedupAt;
pub use routes::routes;

use crate::grant::Grant;
use crate::log::{Log, Partition};
use crate::owned::{Owned, Work};
use crate::parked::shelf::Shelf;
use crate::pump::batching::SharedSettings;
use crate::pump::servers::Servers;
use crate::runtime::{Instant, block_in_place};
use file::{Kept, State};
use orders::{conflict, missing};
use parking_lot::Mutex;
use plan::Planned;
use planning::Planning;
use run::RunError;
use scan::Wanted;
use sink::Sink;
use sluice_common::admin::Refused;
use sluice_common::clock::{SharedClock, UnixMs};
use sluice_common::disk::Dir;
use sluice_common::ids::{Name, Offset};
use sluice_common::limits::REPLAY_PIN_AGE;
use sluice_common::metrics::Metrics;
use sluice_common::replay::{Decisions, Phase, ReplayId, ReplayTold};
use sluice_common::servers::ServerId;
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
    pub log: Arc<dyn Log>,
    /// While it holds tenants to shares a replay waits.
    pub grant: Grant,
    /// Partitions that are worked on here: others are not replayed here.
    pub owned: Owned,
    pub sink: Seam<SinkRequest>,
    pub settings: SharedSettings,
    /// Orders about dead letters take it one at a time.
    pub letters: Arc<Semaphore>,
    pub dedup_at: DedupAt,
    pub clock: SharedClock,
    pub metrics: Metrics,
    pub stop: Stop,
}

/// What is read of one partition, and what is asked about it.
#[derive(Clone)]
struct Source {
    log: Arc<dyn Partition>,
    sink: Sink,
    /// What waits in it is in flight, and goes in by itself.
    shelf: Shelf,
}

/// Partitions that other normalizers work on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "partitions {} of the log are not worked on here: a replay is made where they are. Ask the normalizer that has them, name \
     one of this one's (`--partition`), or have this one have them all: stop the others for as long as it takes",
    .0.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
)]
pub struct Elsewhere(Vec<u16>);

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
    planning: Vec<Planning>,
    replays: BTreeMap<ReplayId, Arc<Running>>,
    /// A task works on it, in the so-maniest turn: one that is over must not end the next.
    at_work: Option<(ReplayId, u64)>,
    turns: u64,
}

/// One replay, at work or not.
pub(crate) struct Running {
    state: Mutex<State>,
    kept: Mutex<Kept>,
    /// Tells its task to stop; another one for each task.
    told: Mutex<Stop>,
    /// When the last range was begun, and how long its events last at the cap.
    debt: Mutex<Option<(Instant, Duration)>>,
}

/// The turn of one replay, which ends with this.
struct Turn(Replays, u64);

impl Drop for Turn {
    fn drop(&mut self) {
        let mut known = self.0.0.known.lock();
        known.at_work.take_if(|(_, turn)| *turn == self.1);
    }
}

impl Running {
    fn new(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            kept: Mutex::default(),
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
            let tables: Vec<Name> = state.tables().into_iter().cloned().collect();
            for work in parts.owned.all() {
                work.shelf.hold(&tables);
            }
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
        let at_work = |one: &&Arc<Running>| one.state.lock().is_at_work();
        let mut found: Vec<Arc<Running>> = known.replays.values().filter(at_work).cloned().collect();
        drop(known);
        found.sort_by_key(|one| one.state.lock().told.phase != Phase::Promoting);
        for running in found {
            match self.take_turn(&running) {
                Ok(turn) => self.spawn(&running, turn),
                Err(_) => {
                    tracing::error!("two replays were at work: the second waits to be resumed");
                    running.change(|state| state.told.phase = Phase::Paused);
                }
            }
        }
    }

    /// Everything known, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<ReplayTold> {
        let known = self.0.known.lock();
        let mut told: Vec<ReplayTold> = known.replays.values().map(|one| one.told_now()).collect();
        told.sort_by_key(|one| std::cmp::Reverse(one.begun_ms));
        told
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

    /// One works at a time.
    fn take_turn(&self, running: &Running) -> Result<Turn, Refused> {
        let id = running.id();
        let mut known = self.0.known.lock();
        if let Some((other, _)) = known.at_work {
            let detail = format!("replay {other} is at work: wait for it, or pause it");
            return Err(conflict("replay_busy", detail));
        }
        known.turns += 1;
        known.at_work = Some((id, known.turns));
        *running.told.lock() = self.0.parts.stop.child_token();
        Ok(Turn(self.clone(), known.turns))
    }

    fn spawn(&self, running: &Arc<Running>, turn: Turn) {
        self.pin();
        let (all, running) = (self.clone(), Arc::clone(running));
        tokio::spawn(async move {
            // It ends also where the work fails inside.
            let _turn = turn;
            all.work(&running).await;
        });
    }

    /// Works on one until it is done, told to stop, or in trouble.
    async fn work(&self, running: &Running) {
        let phase = running.state.lock().told.phase;
        if phase == Phase::Promoting {
            self.promote(running).await;
        } else {
            self.work_to_end(running).await;
        }
        tracing::info!(id = %running.id(), phase = ?running.state.lock().told.phase, "replay");
        self.pin();
    }

    async fn work_to_end(&self, running: &Running) {
        let id = running.id();
        let ran = if running.is_fresh() {
            // A process may have ended between its state and its tables.
            let made = self.tables_sink(running).prepare(running.tables()).await;
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
        let state = self.written(running, change).inspect_err(|error| {
            running.change(|state| state.told.reason = Some(format!("keeping its state: {error}")));
        })?;
        self.show(running, state);
        Ok(())
    }

    /// Shows what is durable, together with the turn being free.
    fn show(&self, running: &Running, state: State) {
        let mut known = self.0.known.lock();
        running.change(|shown| *shown = state);
        known.at_work = None;
    }

    /// The changed state, once it is durable: shown by nobody yet.
    fn written(&self, running: &Running, change: impl FnOnce(&mut State)) -> std::io::Result<State> {
        let mut state = running.state.lock().clone();
        change(&mut state);
        state.told.changed_ms = self.now_ms();
        block_in_place(|| running.kept.lock().write(self.dir(), &state))?;
        Ok(state)
    }

    /// Has the log keep what replays may still read: for a while.
    fn pin(&self) {
        let now = self.now_ms();
        let known = self.0.known.lock();
        let young = |state: &State| state.told.changed_ms.saturating_add(ms(REPLAY_PIN_AGE)) > now;
        let mut lowest: BTreeMap<u16, Offset> = BTreeMap::new();
        for running in known.replays.values() {
            let state = running.state.lock();
            if !state.has_ended() && (young(&state) || state.is_at_work()) {
                for leg in &state.legs {
                    let anew = leg.decisions.values().any(|how| *how == Decisions::Anew);
                    let needs = if anew { leg.needs } else { leg.next };
                    let lowest = lowest.entry(leg.partition).or_insert(needs);
                    *lowest = needs.min(*lowest);
                }
            }
        }
        self.log().pin(&lowest);
    }

    /// For what is asked about tables, and not about records of a partition.
    fn tables_sink(&self, running: &Running) -> Sink {
        let server = running.state.lock().server.clone();
        self.sink(running.id(), 0, Some(server))
    }

    fn sink(&self, id: ReplayId, partition: u16, server: Option<ServerId>) -> Sink {
        Sink {
            id,
            log: self.log().id(),
            partition,
            server,
            seam: self.seam(),
        }
    }

    /// A partition for a reader of its own; asked about where new ranges go.
    ///
    /// # Errors
    /// [`Elsewhere`].
    fn source(&self, id: ReplayId, partition: u16) -> Result<Source, Elsewhere> {
        let work = self.here(partition)?;
        Ok(Source {
            log: work.log.beside(),
            sink: self.sink(id, partition, None),
            shelf: work.shelf,
        })
    }

    /// The same for one that was ordered, where all of it happens.
    ///
    /// # Errors
    /// [`Elsewhere`].
    fn source_of(&self, running: &Running, partition: u16) -> Result<Source, Elsewhere> {
        let mut source = self.source(running.id(), partition)?;
        source.sink.server = Some(running.state.lock().server.clone());
        Ok(source)
    }

    /// # Errors
    /// [`Elsewhere`].
    fn here(&self, partition: u16) -> Result<Work, Elsewhere> {
        let found = self.0.parts.owned.get(partition);
        found.ok_or_else(|| Elsewhere(vec![partition]))
    }

    /// Every partition of the log.
    ///
    /// # Errors
    /// [`Elsewhere`].
    fn all_here(&self) -> Result<Vec<Work>, Elsewhere> {
        let all = self.0.parts.owned.all();
        let has = |number: &u16| all.iter().any(|work| work.log.number() == *number);
        let elsewhere: Vec<u16> = (0..self.partitions()).filter(|number| !has(number)).collect();
        if elsewhere.is_empty() {
            Ok(all)
        } else {
            Err(Elsewhere(elsewhere))
        }
    }

    fn partitions(&self) -> u16 {
        self.log().spread().partitions()
    }

    fn seam(&self) -> Seam<SinkRequest> {
        self.0.parts.sink.clone()
    }

    fn log(&self) -> &dyn Log {
        &*self.0.parts.log
    }

    fn grant(&self) -> &Grant {
        &self.0.parts.grant
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
        self.state.lock().telling()
    }

    fn id(&self) -> ReplayId {
        self.state.lock().told.id
    }

    /// The live tables.
    fn tables(&self) -> Vec<Name> {
        self.state.lock().tables().into_iter().cloned().collect()
    }

    /// Nothing of it is read yet.
    fn is_fresh(&self) -> bool {
        let state = self.state.lock();
        let spans = state.told.plan.spans.iter().map(|span| span.from);
        spans.eq(state.legs.iter().map(|leg| leg.next)) && state.intent.is_none()
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
