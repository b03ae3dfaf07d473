//! The world: one run from its plan to what became of it, process after process.

mod chance;
mod process;
mod work;

use super::append::{Clients, WINDOW_MS};
use super::clickhouse::{Insert, Server};
use super::disk::{Lie, Model, Recorder};
use super::oracle;
use super::sink;
use super::time::{Virtual, sleep};
use crate::log::EmbeddedLog;
use crate::parked::shelf::Shelf;
use crate::progress::store::Store;
use crate::pump::Pump;
use parking_lot::{Mutex, MutexGuard};
pub use process::{SEGMENT_BYTES, open, open_log_of, parts};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use sluice_common::clock::{ManualClock, SharedClock};
use sluice_common::disk::{Disk, DiskWatch};
use sluice_common::ids::{Name, Offset};
use sluice_common::wire::sink::{SinkCall, SubKey, SubTask};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use work::Work;

const BEGIN_MS: u64 = 1_700_000_000_000;
/// In this time all must be settled once nothing fails any more.
const DRAIN: Duration = Duration::from_secs(4 * 3_600);

/// A safety of the pump that the world around it switches off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Switch {
    #[default]
    AllOn,
    VerifySkipped,
    BumpOnTimeout,
    DedupOff,
}

/// What a run is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub switch: Switch,
    pub lie: Lie,
    /// Processes that die before one is left alone.
    pub crashes: usize,
    /// The part of the deaths that are power losses.
    pub power_loss: f64,
    /// Operation of each process before which it dies; drawn where none is said.
    pub die_at: Vec<u64>,
    /// What befalls ClickHouse, 1 for a storm.
    pub trouble: f64,
    /// Batches that clients send.
    pub batches: usize,
}

/// What became of a run.
#[derive(Debug)]
pub struct Outcome {
    pub breach: Option<String>,
    pub trace: Vec<String>,
    pub trace_hash: u64,
    pub lives: u64,
    pub rows: u64,
    /// Operations of the last process.
    pub points: u64,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            switch: Switch::AllOn,
            lie: Lie::None,
            crashes: 0,
            power_loss: 0.0,
            die_at: Vec::new(),
            trouble: [0.0, 0.3, 1.0][usize::try_from(seed % 3).unwrap()],
            batches: 25,
        }
    }
}

/// One process.
struct Life {
    died: Notify,
    points: AtomicU64,
    die_at: u64,
    has_sent: AtomicBool,
    recorder: Mutex<Option<Arc<Recorder>>>,
    progress: Mutex<Option<Arc<Mutex<Store>>>>,
}

pub struct World {
    pub seed: u64,
    pub switch: Switch,
    pub bad: BTreeSet<u128>,
    trouble: f64,
    time: Virtual,
    clock: ManualClock,
    servers: Mutex<Vec<Server>>,
    life: Mutex<Arc<Life>>,
    inner: Mutex<Inner>,
}

struct Inner {
    random: SmallRng,
    trace: VecDeque<String>,
    hash: u64,
    breach: Option<String>,
    running: BTreeMap<(u64, SubKey), u32>,
    /// Tables that take nothing until then, and the code that they answer.
    broken: BTreeMap<Name, (Duration, u32)>,
    healed: bool,
    committed: Offset,
}

enum End {
    Died,
    Drained,
}

/// Ends a sub-batch's being worked on.
pub struct Running<'a> {
    world: &'a World,
    key: (u64, SubKey),
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.world.inner.lock().running.remove(&self.key);
    }
}

/// Runs a plan to its end.
pub fn simulate(plan: &Plan) -> Outcome {
    let (world, mut work) = World::new(plan);
    let (mut model, mut lives) = (Model::default(), 0);
    for life in 0..=plan.crashes {
        lives += 1;
        let die_at = plan.die_at.get(life).copied();
        let die_at = die_at.unwrap_or_else(|| world.inner.lock().random.random_range(0..250));
        let die_at = if life < plan.crashes { die_at } else { u64::MAX };
        let (ended, left) = world.live(plan.lie, model, &mut work, die_at);
        model = left;
        match ended {
            Ok(End::Died) if life < plan.crashes => {
                if world.chance_of(plan.power_loss) {
                    let seed = world.inner.lock().random.random();
                    world.say(|| "the power is lost".into());
                    model = model.power_loss(seed);
                }
            }
            Ok(End::Died) => world.breach("it died of itself".into()),
            Ok(End::Drained) => break,
            Err(breach) => world.breach(breach),
        }
        if world.inner.lock().breach.is_some() {
            break;
        }
    }
    let broken = world.inner.lock().breach.is_some();
    let checked = oracle::check(&work.log, &mut world.servers.lock(), &world.bad);
    if let Err(breach) = checked
        && !broken
    {
        world.breach(breach);
    }
    let points = world.life.lock().points.load(Ordering::SeqCst);
    let inner = world.inner.lock();
    Outcome {
        breach: inner.breach.clone(),
        trace: inner.trace.iter().cloned().collect(),
        trace_hash: inner.hash,
        lives,
        rows: work.log.iter().map(|one| one.draft.rows.len() as u64).sum(),
        points,
    }
}

impl World {
    fn new(plan: &Plan) -> (Arc<Self>, Work) {
        let mut random = SmallRng::seed_from_u64(plan.seed);
        let mut clients = Clients::default();
        let batches: VecDeque<_> = (0..plan.batches).map(|_| clients.batch(&mut random)).collect();
        let keys = batches
            .iter()
            .flatten()
            .flat_map(|draft| &draft.rows)
            .map(|row| row.0);
        let bad = keys
            .filter(|key| super::append::is_bad(*key, plan.seed))
            .collect();
        let clock = ManualClock::at(BEGIN_MS);
        let moved = clock.clone();
        let time = Virtual::new(move |now| moved.set(BEGIN_MS + u64::try_from(now.as_millis()).unwrap()));
        let servers = if plan.seed.is_multiple_of(2) { 1 } else { 2 };
        let inner = Inner {
            random,
            trace: VecDeque::new(),
            hash: 0,
            breach: None,
            running: BTreeMap::new(),
            broken: BTreeMap::new(),
            healed: false,
            committed: 0,
        };
        let world = Self {
            seed: plan.seed,
            switch: plan.switch,
            bad,
            trouble: plan.trouble,
            time,
            clock,
            servers: Mutex::new((0..servers).map(|_| Server::default()).collect()),
            life: Mutex::new(Arc::new(Life::new(0))),
            inner: Mutex::new(inner),
        };
        let off = plan.switch == Switch::DedupOff;
        let work = Work {
            batches,
            log: Vec::new(),
            in_doubt: None,
            window_ms: if off { 0 } else { WINDOW_MS },
        };
        (Arc::new(world), work)
    }

    /// One process from its start to its death, or until all is settled; the disk that it leaves.
    fn live(
        self: &Arc<Self>,
        lie: Lie,
        model: Model,
        work: &mut Work,
        die_at: u64,
    ) -> (Result<End, String>, Model) {
        let root = tempfile::Builder::new()
            .prefix("sluice-sim")
            .tempdir_in(memory())
            .unwrap();
        model.lay_out(root.path());
        let life = Arc::new(Life::new(die_at));
        let dying = Arc::clone(&life);
        let recorder = Recorder::new(root.path().to_owned(), model, lie, move |_| dying.is_last_point());
        *life.recorder.lock() = Some(Arc::clone(&recorder));
        *self.life.lock() = Arc::clone(&life);
        self.inner.lock().running.clear();
        self.say(|| format!("a process starts, to die at its operation {die_at}"));
        let disk = Disk::watched(Arc::clone(&recorder) as Arc<dyn DiskWatch>);
        let ended = self.time.run(self.process(&disk, root.path(), work));
        let ended = if recorder.is_dead() { Ok(End::Died) } else { ended };
        let (left, last) = recorder.take();
        // Each holds the other, and files.
        *life.recorder.lock() = None;
        *life.progress.lock() = None;
        self.say_disk(last.iter().filter(|line| !line.contains("spare")));
        (ended, left)
    }

    async fn process(self: &Arc<Self>, disk: &Disk, root: &Path, work: &mut Work) -> Result<End, String> {
        let clock: SharedClock = Arc::new(self.clock.clone());
        let state = open(disk, root, &clock)?;
        let life = Arc::clone(&self.life.lock());
        let (log, shelf) = (Arc::clone(&state.log), state.shelf.clone());
        if life.is_dead() {
            return Ok(End::Died);
        }
        let committed = state.store.state().committed;
        if committed < self.inner.lock().committed {
            return Err(format!("progress went backwards, to {committed}"));
        }
        work.recovered(&log, committed)?;
        let pump = Pump::new(parts(state, &clock, sink::seam(self), self.seed));
        let progress = pump.work().progress;
        *life.progress.lock() = Some(Arc::clone(&progress));
        let mut pump = tokio::spawn(pump.run());
        tokio::select! {
            biased;
            () = life.died.notified() => Ok(End::Died),
            ended = &mut pump => Err(format!("the partition stopped: {ended:?}")),
            ended = self.clients(&log, (&progress, &shelf), work) => ended,
        }
    }

    /// Sends what is left to be sent, breaks things on the way; then heals all and waits.
    async fn clients(
        &self,
        log: &EmbeddedLog,
        (progress, shelf): (&Mutex<Store>, &Shelf),
        work: &mut Work,
    ) -> Result<End, String> {
        let life = Arc::clone(&self.life.lock());
        while !work.batches.is_empty() {
            self.let_time_pass().await;
            if let Some(batch) = work.batches.pop_front() {
                work.send(self, log, batch)?;
            }
            if life.is_dead() {
                return Ok(End::Died);
            }
            self.break_something();
        }
        let rest = self.inner.lock().random.random_range(0..60);
        sleep(Duration::from_secs(rest)).await;
        self.heal();
        let until = self.now() + DRAIN;
        let is_settled = || {
            let progress = progress.lock();
            let state = progress.state();
            state.intent.is_none() && state.committed == work.log.len() as u64 && shelf.units().is_empty()
        };
        while !is_settled() {
            if self.now() > until {
                let state = progress.lock().state().clone();
                return Err(format!(
                    "it does not end: {state:?} of {}, {:?}",
                    work.log.len(),
                    shelf.units()
                ));
            }
            sleep(Duration::from_secs(1)).await;
        }
        Ok(End::Drained)
    }

    /// A point at which the process may die. The dead go no further.
    pub async fn alive(&self, what: &str) {
        let life = Arc::clone(&self.life.lock());
        if !life.is_dead() && life.is_last_point() {
            self.say(|| format!("it dies as {what}"));
            let recorder = life.recorder.lock().clone();
            recorder.into_iter().for_each(|recorder| recorder.die());
        }
        if life.is_dead() {
            std::future::pending::<()>().await;
        }
        if let Some(store) = life.progress.lock().as_ref() {
            let committed = store.lock().state().committed;
            if !life.is_dead() {
                self.inner.lock().committed = committed;
            }
        }
    }

    pub fn now(&self) -> Duration {
        self.time.now()
    }

    pub fn servers(&self) -> MutexGuard<'_, Vec<Server>> {
        self.servers.lock()
    }

    pub fn server_is_up(&self, place: usize) -> bool {
        self.servers.lock()[place].is_up(self.now())
    }

    /// Two attempts of one process at the same sub-batch at once are a breach.
    pub fn begins(&self, first: u64, sub: &SubKey) -> Running<'_> {
        let key = (first, sub.clone());
        let mut inner = self.inner.lock();
        let running = inner.running.entry(key.clone()).or_default();
        *running += 1;
        if *running > 1 {
            inner.breach.get_or_insert(format!("{key:?} is under way twice"));
        }
        Running { world: self, key }
    }

    /// A token is given up only if it is known to be poisoned (R14).
    pub fn check_generation(&self, task: &SubTask, insert: &Insert) {
        let Some(before) = task.generation.checked_sub(1) else {
            return;
        };
        let token = format!("{}#{before}", insert.query_id);
        if !self
            .servers
            .lock()
            .iter()
            .any(|server| server.is_poisoned(&token))
        {
            self.breach(format!("{token} was given up and is not poisoned"));
        }
    }

    /// A process does not rely on the answer to its first range (R14).
    pub fn check_first(&self, call: &SinkCall) {
        let first = !self.life.lock().has_sent.swap(true, Ordering::SeqCst);
        if first && call.steps.insert && !call.steps.verify_after {
            self.breach("the first range after a start is not verified".into());
        }
    }

    pub fn breach(&self, what: String) {
        self.say(|| format!("BREACH: {what}"));
        self.inner.lock().breach.get_or_insert(what);
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        let line = format!("{:>9.3} {}", self.now().as_secs_f64(), what());
        let mut inner = self.inner.lock();
        inner.hash = xxhash_rust::xxh3::xxh3_64_with_seed(line.as_bytes(), inner.hash);
        inner.keep(line);
    }

    /// Not a part of the hash: the log's keeper works in its own time.
    fn say_disk<'a>(&self, lines: impl Iterator<Item = &'a String>) {
        let mut inner = self.inner.lock();
        lines.for_each(|line| inner.keep(format!("          disk: {line}")));
    }
}

impl Inner {
    fn keep(&mut self, line: String) {
        self.trace.push_back(line);
        if self.trace.len() > 400 {
            self.trace.pop_front();
        }
    }
}

impl Life {
    fn new(die_at: u64) -> Self {
        Self {
            died: Notify::new(),
            points: AtomicU64::new(0),
            die_at,
            has_sent: AtomicBool::new(false),
            recorder: Mutex::new(None),
            progress: Mutex::new(None),
        }
    }

    fn is_last_point(&self) -> bool {
        let last = self.points.fetch_add(1, Ordering::SeqCst) == self.die_at;
        if last {
            self.died.notify_one();
        }
        last
    }

    fn is_dead(&self) -> bool {
        self.recorder
            .lock()
            .as_ref()
            .is_some_and(|recorder| recorder.is_dead())
    }
}

/// Memory, where there is a file system in it.
fn memory() -> &'static Path {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm } else { Path::new("/tmp") }
}
