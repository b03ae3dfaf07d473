//! Putting a normalizer together: lock and recover the log, find the progress, open the dedup state,
//! start the appender and the pump.

use crate::admin;
use crate::append::Appender;
use crate::dedup::{Dedup, DedupOpenError, DedupOptions, Workers};
use crate::dlq::DeadLetters;
use crate::grant::Grant;
use crate::intake::{Drift, Intake};
use crate::key_cap::KeyCap;
use crate::ledger::Ledger;
use crate::log::{EmbeddedLog, LogOptions, OpenError};
use crate::parked;
use crate::parked::file::FileError;
use crate::progress::store::{Store, StoreError};
use crate::pump::batching::{Settings, SharedSettings};
use crate::pump::{Parts, Pump, PumpError, retries};
use crate::replay::{self, Replays};
use crate::service::{IntakeService, RejectMarks};
use crate::source::{Sources, Spec};
use crate::state::{State, StateOptions, secret_check};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sluice_common::admin::Readiness;
use sluice_common::clock::{SharedClock, UnixMs};
use sluice_common::config::{ConfigError, Loaded};
use sluice_common::disk::{Dir, Disk};
use sluice_common::failpoint::{self, Bound};
use sluice_common::ids::{LogId, Offset};
use sluice_common::limits::{ACTIVE_BUCKET_KEYS, LOG_QUEUE_BYTES, SEGMENT_BYTES, TAIL_CACHE_BYTES};
use sluice_common::metrics::{Gauge, Metrics};
use sluice_common::reload::Part;
use sluice_common::shutdown::Stop;
use sluice_common::wire::intake::IntakeRequest;
use sluice_common::wire::sink::SinkRequest;
use sluice_common::wire::transport::Seam;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// What a normalizer is given besides its config.
pub struct Environment {
    pub sink: Seam<SinkRequest>,
    pub metrics: Metrics,
    pub clock: SharedClock,
    /// Told when the pump must come to its end: after the edge has stopped taking.
    pub stop: Stop,
    /// `--accept-window-loss`.
    pub accept_window_loss: bool,
}

/// A running normalizer.
pub struct Running {
    pub intake: Seam<IntakeRequest>,
    pub ready: Readiness,
    /// Control routes of the normalizer.
    pub control: axum::Router,
    /// Ends with the stop, or with the reason why the partition cannot go on.
    pub pump: JoinHandle<Result<(), PumpError>>,
    log: Arc<EmbeddedLog>,
    service: Arc<IntakeService>,
    settings: SharedSettings,
    sources: Sources,
}

/// Why a normalizer does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot use the data directory {dir}: {error}")]
    DataDir { dir: PathBuf, error: std::io::Error },
    #[error("progress: {0}")]
    Progress(#[from] StoreError),
    #[error("rows that were set aside: {0}")]
    Parked(#[from] FileError),
    #[error("log: {0}")]
    Log(#[from] OpenError),
    #[error("dedup state: {0}")]
    Dedup(#[from] DedupOpenError),
    #[error(
        "the progress in {path} belongs to log {progress}, and {dir} holds log {log}: restore log, progress and \
         dedup together, from one moment"
    )]
    OtherLog {
        path: PathBuf,
        progress: LogId,
        dir: PathBuf,
        log: LogId,
    },
    #[error(
        "the manifest in {} has another hash secret than the keys in its log were made with: restore the manifest \
         that was made with the log",
        .0.display()
    )]
    OtherSecret(PathBuf),
    #[error(
        "the log holds records up to {end} and {path} is missing: without it they would be stored twice. Restore it \
         together with the log"
    )]
    ProgressMissing { path: PathBuf, end: Offset },
}

/// Age at which the active dedup bucket rotates: a sixth of the window, within these bounds.
const ROTATE_MIN: Duration = Duration::from_secs(60);
const ROTATE_MAX: Duration = Duration::from_secs(4 * 3600);

impl Running {
    /// Starts everything. Blocking work (recovery) is done before it returns.
    ///
    /// # Errors
    /// [`StartError`], saying what to do.
    pub fn start(loaded: &Loaded, environment: Environment) -> Result<Self, StartError> {
        let disk = Disk::default();
        let options = StateOptions {
            data_dir: &loaded.data_dir,
            log: log_options(loaded),
            parked_dir: loaded.parked_dir(),
            parked_max_bytes: loaded.config.parked.max_bytes.0,
            outbox: (loaded.outbox_dir(), loaded.config.kafka.max_bytes.0),
            dedup: &|log, secret_check| dedup_options(loaded, &disk, (log, secret_check)),
        };
        let state = State::open(options, Arc::clone(&environment.clock), &disk)?;
        state.shelf.show(&environment.metrics, &loaded.config.datasets);
        let secret = state.log.hash_secret();
        let intake = Intake::new(&loaded.config.datasets, secret)
            .map_err(|problems| loaded.source.refuse(&problems))?
            .with_copy_budget(loaded.config.dead_letters.bytes_per_second.0);
        Self::assemble(loaded, environment, state, intake)
    }

    fn assemble(
        loaded: &Loaded,
        environment: Environment,
        state: State,
        intake: Intake,
    ) -> Result<Self, StartError> {
        let State {
            log,
            store,
            dedup,
            shelf,
            outbox,
        } = state;
        let Environment {
            sink,
            metrics,
            clock,
            stop,
            accept_window_loss,
        } = environment;
        let log_limit = loaded.config.log.max_bytes.0;
        show_limits(&metrics, log_limit, loaded.config.dedup.max_bytes.0);
        let routes = parked::routes::routes(shelf.clone());
        let grant = Grant::new(Arc::clone(&clock), log_limit, *log.durable_end().borrow());
        let (appender, builder) = Appender::start(Arc::clone(&log), grant.clone(), &metrics);
        let service = Arc::new(IntakeService {
            intake,
            drift: Drift::default(),
            appender,
            log: Arc::clone(&log),
            grant: grant.clone(),
            shelf: shelf.clone(),
            outbox: outbox.clone(),
            key_cap: key_cap(loaded, &dedup, clock.now_ms()),
            marks: RejectMarks::default(),
            budget: IntakeService::budget(&metrics),
            metrics: metrics.clone(),
            clock: Arc::clone(&clock),
        });
        let questions = sink.clone();
        let settings = Arc::new(ArcSwap::from_pointee(Settings::new(&loaded.config)));
        let parts = Parts {
            log: Arc::clone(&log),
            dedup,
            store,
            shelf,
            outbox,
            grant,
            sink,
            metrics,
            clock,
            stop,
            accept_window_loss,
            settings: Arc::clone(&settings),
            park_after: Duration::from_millis(loaded.config.clickhouse.park_after.ms()),
            dice: retries::dice(),
        };
        let stop = parts.stop.clone();
        let pump = Pump::new(parts);
        // Whoever writes to live tables besides the pump takes turns.
        let orders = Arc::new(Semaphore::new(1));
        let shared = (questions.clone(), Arc::clone(&settings));
        let replays = open_replays(loaded, &service, &pump, shared, (Arc::clone(&orders), stop))?;
        let control = questions_to(&service, pump.progress(), (questions, orders), loaded);
        let pump = tokio::spawn(watched(pump.run(), builder));
        replays.go_on();
        let sources = Sources::start(&service, Spec::all(loaded, log.id()));
        Ok(Self {
            control: control.merge(routes).merge(replay::routes(replays)),
            intake: Arc::clone(&service).seam(),
            ready: readiness(Arc::clone(&log)),
            pump,
            log,
            service,
            settings,
            sources,
        })
    }

    /// Follows the config: schemas for requests that come from now on, the cap of keys, and what the pump
    /// takes of it. What is in the log lands as its records say.
    #[must_use]
    pub fn part(&self) -> Part {
        let (service, settings) = (Arc::clone(&self.service), Arc::clone(&self.settings));
        let (sources, log) = (self.sources.clone(), self.log.id());
        Box::new(move |loaded| {
            let schemas = Intake::compile(&loaded.config.datasets)?;
            let next = Settings::new(&loaded.config);
            let cap = loaded.config.dedup.keys_per_tenant.0;
            let (service, settings) = (Arc::clone(&service), Arc::clone(&settings));
            let (sources, specs) = (sources.clone(), Spec::all(loaded, log));
            Ok(Box::new(move || {
                sources.retire(&specs);
                service.key_cap.set(cap, next.max_window_ms);
                // First: nothing may be deleted that the new windows ask for.
                settings.store(Arc::new(next));
                service.intake.replace(schemas);
                service.show_datasets();
                sources.replace(specs);
            }))
        })
    }

    /// Ends the sources, and closes the log: what is queued is written, nothing more is taken.
    pub async fn close(&self) {
        self.sources.stop().await;
        let log = Arc::clone(&self.log);
        if tokio::task::spawn_blocking(move || log.close()).await.is_err() {
            tracing::error!("the log did not close in order; what was acknowledged is durable all the same");
        }
    }
}

/// The control routes that ask the service, the books and the dead letters.
fn questions_to(
    service: &Arc<IntakeService>,
    progress: Arc<Mutex<Store>>,
    (sink, orders): (Seam<SinkRequest>, Arc<Semaphore>),
    loaded: &Loaded,
) -> axum::Router {
    let ledger = Ledger {
        log: Arc::clone(&service.log),
        shelf: service.shelf.clone(),
        progress: Arc::clone(&progress),
        sink: sink.clone(),
        clock: Arc::clone(&service.clock),
        gate: Semaphore::new(1),
    };
    let letters = DeadLetters {
        sink,
        service: Arc::clone(service),
        progress,
        gate: orders,
    };
    admin::routes(Arc::clone(service), loaded.config.clickhouse.database.clone())
        .merge(ledger.routes())
        .merge(letters.routes())
}

/// The pump, and an eye on the builder: without it nothing can be appended, so the process has to end.
async fn watched(
    pump: impl Future<Output = Result<(), PumpError>>,
    builder: JoinHandle<()>,
) -> Result<(), PumpError> {
    tokio::pin!(pump);
    tokio::select! {
        ended = &mut pump => return ended,
        built = builder => built.map_err(PumpError::Builder)?,
    }
    // It ended in order, because nobody appends any more.
    pump.await
}

/// Compiles all datasets and says how many there are; what `ingestctl check` asks.
///
/// # Errors
/// [`ConfigError`] with every problem and its line.
pub fn compile(loaded: &Loaded) -> Result<usize, ConfigError> {
    let intake = Intake::new(&loaded.config.datasets, [0; 32]);
    let intake = intake.map_err(|problems| loaded.source.refuse(&problems))?;
    Ok(intake.schemas().len())
}

fn log_options(loaded: &Loaded) -> LogOptions {
    let log = &loaded.config.log;
    LogOptions {
        dir: loaded.log_dir(),
        max_bytes: log.max_bytes.0,
        retain_ms: log.retain.ms(),
        reserve_bytes: log.reserve.map(|reserve| reserve.0),
        segment_bytes: failpoint::shrunk(Bound::SegmentBytes, SEGMENT_BYTES as u64),
        tail_cache_bytes: TAIL_CACHE_BYTES,
        queue_bytes: LOG_QUEUE_BYTES,
        known_durable: 0,
    }
}

fn dedup_options(loaded: &Loaded, disk: &Disk, (log, secret_check): (LogId, u64)) -> DedupOptions {
    let (dedup, window) = (&loaded.config.dedup, loaded.config.max_window_ms());
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    DedupOptions {
        dir: Dir {
            disk: disk.clone(),
            path: loaded.dedup_dir(),
        },
        log,
        secret_check,
        memory_bytes: dedup.memory.0,
        max_bytes: dedup.max_bytes.0,
        active_keys: ACTIVE_BUCKET_KEYS,
        max_window_ms: window,
        workers: Workers::Threads,
        rotate_ms: failpoint::shrunk(
            Bound::RotateMs,
            (window / 6).clamp(ms(ROTATE_MIN), ms(ROTATE_MAX)),
        ),
    }
}

fn open_replays(
    loaded: &Loaded,
    service: &IntakeService,
    pump: &Pump,
    (sink, settings): (Seam<SinkRequest>, SharedSettings),
    (letters, stop): (Arc<Semaphore>, Stop),
) -> Result<Replays, StartError> {
    let dir = replay_dir(loaded);
    let parts = replay::Parts {
        dir: Dir::from(dir.as_path()),
        log: Arc::clone(&service.log),
        progress: pump.progress(),
        shelf: service.shelf.clone(),
        sink,
        settings,
        letters,
        dedup_at: dedup_beside(loaded, &service.log),
        clock: Arc::clone(&service.clock),
        metrics: service.metrics.clone(),
        stop,
    };
    Replays::open(parts).map_err(|error| StartError::DataDir { dir, error })
}

fn replay_dir(loaded: &Loaded) -> PathBuf {
    loaded.data_dir.join("replay")
}

/// Dedup states of replays: as the pump's, but for place and memory.
fn dedup_beside(loaded: &Loaded, log: &EmbeddedLog) -> replay::DedupAt {
    let options = dedup_options(loaded, &Disk::default(), (log.id(), secret_check(log)));
    Arc::new(move |dir| DedupOptions {
        dir,
        memory_bytes: options.memory_bytes / 4,
        ..options.clone()
    })
}

fn key_cap(loaded: &Loaded, dedup: &Dedup, now: UnixMs) -> KeyCap {
    let (cap, window) = (
        loaded.config.dedup.keys_per_tenant.0,
        loaded.config.max_window_ms(),
    );
    KeyCap::new(cap, window, dedup.events_by_tenant(), now)
}

#[expect(clippy::cast_precision_loss, reason = "gauges")]
fn show_limits(metrics: &Metrics, log: u64, dedup: u64) {
    metrics.watch(Gauge::LogBacklogLimitBytes, &[], move || log as f64);
    metrics.watch(Gauge::DedupLimitBytes, &[], move || dedup as f64);
}

fn readiness(log: Arc<EmbeddedLog>) -> Readiness {
    Arc::new(move || {
        log.stats()
            .closed
            .map_or(Ok(()), |reason| Err(format!("the log is full: {reason}")))
    })
}
