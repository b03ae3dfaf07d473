//! Putting a normalizer together: lock and recover the log, find the progress, open the dedup state,
//! start the appender and the pump.

use crate::admin;
use crate::append::Appender;
use crate::cluster::{Cluster, Places};
use crate::dedup::{DedupOpenError, DedupOptions, Workers};
use crate::dlq::DeadLetters;
use crate::grant::Grant;
use crate::intake::{Drift, Intake};
use crate::key_cap::KeyCap;
use crate::ledger::Ledger;
use crate::log::embedded::Whole;
use crate::log::kafka::{KafkaLog, KafkaLogError, LogClients, Member};
use crate::log::{Log, LogOptions, OpenError};
use crate::owned::Owned;
use crate::parked;
use crate::parked::file::FileError;
use crate::progress::store::StoreError;
use crate::pump::batching::{Settings, SharedSettings};
use crate::pump::pacing::Pace;
use crate::pump::{Leave, Parts, Pump, PumpError, retries};
use crate::replay::{self, Replays};
use crate::service::{IntakeService, RejectMarks};
use crate::source::{Sources, Spec};
use crate::state::{State, StateOptions, secret_check};
use arc_swap::ArcSwap;
use sluice_common::admin::Readiness;
use sluice_common::clock::SharedClock;
use sluice_common::config::{ConfigError, Loaded};
use sluice_common::disk::{Dir, Disk};
use sluice_common::failpoint::{self, Bound};
use sluice_common::ids::{LogId, Offset, TenantId};
use sluice_common::limits::{ACTIVE_BUCKET_KEYS, LOG_QUEUE_BYTES, SEGMENT_BYTES, TAIL_CACHE_BYTES};
use sluice_common::metrics::{Gauge, Metrics};
use sluice_common::reload::Part;
use sluice_common::shutdown::Stop;
use sluice_common::wire::intake::IntakeRequest;
use sluice_common::wire::sink::SinkRequest;
use sluice_common::wire::transport::Seam;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// What a normalizer is given besides its config.
#[derive(Clone)]
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
    #[error("log: {0}")]
    SharedLog(#[from] KafkaLogError),
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
/// Keys of the active dedup bucket of one partition of many, at least.
const LEAST_ACTIVE_KEYS: usize = 256 << 10;

impl Running {
    /// Starts everything. Blocking work (recovery) is done before it returns.
    ///
    /// # Errors
    /// [`StartError`], saying what to do.
    pub fn start(loaded: &Loaded, environment: Environment) -> Result<Self, StartError> {
        match LogClients::of(loaded) {
            None => Self::alone(loaded, environment),
            Some(clients) => Self::among_others(loaded, environment, clients),
        }
    }

    /// With a log of its own.
    fn alone(loaded: &Loaded, environment: Environment) -> Result<Self, StartError> {
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
        let log = Arc::clone(&state.log);
        let begun_at = *log.durable_end().borrow();
        let known = state.dedup.events_by_tenant();
        let shared: Arc<dyn Log> = Arc::new(Arc::clone(&log));
        let common = Common::new(loaded, &environment, shared, (Some(begun_at), known))?;
        let parts = Parts {
            log: Arc::new(Whole(Arc::clone(&log))),
            dedup: state.dedup,
            store: state.store,
            shelf: state.shelf,
            outbox: state.outbox,
            grant: common.service.grant.clone(),
            sink: environment.sink.clone(),
            metrics: environment.metrics.clone(),
            clock: Arc::clone(&environment.clock),
            stop: environment.stop.clone(),
            leave: Leave::Drained,
            accept_window_loss: environment.accept_window_loss,
            settings: Arc::clone(&common.settings),
            pace: Pace::default(),
            park_after: Duration::from_millis(loaded.config.clickhouse.park_after.ms()),
            dice: retries::dice(),
        };
        let pump = Pump::new(parts);
        common.service.owned.add(pump.work());
        let replays = open_replays(loaded, &common, environment)?;
        let pump = tokio::spawn(watched(pump.run(), common.builder));
        replays.go_on();
        Ok(Self::with(
            loaded,
            common.service,
            common.settings,
            pump,
            common.control.merge(replay::routes(replays)),
        ))
    }

    /// With a log that it shares.
    fn among_others(
        loaded: &Loaded,
        environment: Environment,
        clients: LogClients,
    ) -> Result<Self, StartError> {
        let log = KafkaLog::open(clients.clone(), Arc::clone(&environment.clock))?;
        let shared: Arc<dyn Log> = Arc::new(Arc::clone(&log));
        let common = Common::new(loaded, &environment, shared, (None, HashMap::new()))?;
        let member = Member::join(&clients, Log::id(&log), &environment.metrics);
        let member = member.map_err(KafkaLogError::Unreachable)?;
        let replays = open_replays(loaded, &common, environment.clone())?;
        let cluster = Cluster {
            places: places(loaded, Log::spread(&log).partitions()),
            log,
            owned: common.service.owned.clone(),
            grant: common.service.grant.clone(),
            sink: environment.sink,
            metrics: environment.metrics,
            clock: environment.clock,
            settings: Arc::clone(&common.settings),
            pace: Pace::default(),
            park_after: Duration::from_millis(loaded.config.clickhouse.park_after.ms()),
        };
        let running = cluster.run(member, environment.stop);
        let pump = tokio::spawn(watched(running, common.builder));
        replays.go_on();
        replays.let_go();
        let control = common.control.merge(replay::routes(replays));
        Ok(Self::with(loaded, common.service, common.settings, pump, control))
    }

    fn with(
        loaded: &Loaded,
        service: Arc<IntakeService>,
        settings: SharedSettings,
        pump: JoinHandle<Result<(), PumpError>>,
        control: axum::Router,
    ) -> Self {
        Self {
            control,
            intake: Arc::clone(&service).seam(),
            ready: readiness(Arc::clone(&service.log)),
            pump,
            sources: Sources::start(&service, Spec::all(loaded, service.log.id())),
            service,
            settings,
        }
    }

    /// Follows the config: schemas for requests that come from now on, the cap of keys, and what the pump
    /// takes of it. What is in the log lands as its records say.
    #[must_use]
    pub fn part(&self) -> Part {
        let (service, settings) = (Arc::clone(&self.service), Arc::clone(&self.settings));
        let (sources, log) = (self.sources.clone(), self.service.log.id());
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
        let log = Arc::clone(&self.service.log);
        if tokio::task::spawn_blocking(move || log.close()).await.is_err() {
            tracing::error!("the log did not close in order; what was acknowledged is durable all the same");
        }
    }
}

/// What does not depend on which log it is.
struct Common {
    service: Arc<IntakeService>,
    builder: JoinHandle<()>,
    settings: SharedSettings,
    /// Whoever writes to live tables besides pumps takes turns.
    orders: Arc<Semaphore>,
    control: axum::Router,
}

impl Common {
    /// Intake before `log`, of which what is below an offset was written before this process began, and the control
    /// routes that ask about it. `known` are the events that dedup remembers.
    fn new(
        loaded: &Loaded,
        environment: &Environment,
        log: Arc<dyn Log>,
        (begun_at, known): (Option<Offset>, HashMap<TenantId, u64>),
    ) -> Result<Self, StartError> {
        let Environment {
            sink, metrics, clock, ..
        } = environment;
        let config = &loaded.config;
        let intake = Intake::new(&config.datasets, log.hash_secret())
            .map_err(|problems| loaded.source.refuse(&problems))?
            .with_copy_budget(config.dead_letters.bytes_per_second.0);
        show_limits(metrics, config.log.max_bytes.0, config.dedup.max_bytes.0);
        let grant = Grant::new(Arc::clone(clock), config.log.max_bytes.0, begun_at);
        let (appender, builder) = Appender::start(Arc::clone(&log), grant.clone(), metrics);
        let settings = Arc::new(ArcSwap::from_pointee(Settings::new(config)));
        let owned = Owned::default();
        owned.show(metrics, &config.datasets, &settings);
        let (cap, window) = (config.dedup.keys_per_tenant.0, config.max_window_ms());
        let service = Arc::new(IntakeService {
            intake,
            drift: Drift::default(),
            appender,
            log,
            grant,
            owned: owned.clone(),
            key_cap: KeyCap::new(cap, window, known, clock.now_ms()),
            marks: RejectMarks::default(),
            budget: IntakeService::budget(metrics),
            metrics: metrics.clone(),
            clock: Arc::clone(clock),
        });
        let orders = Arc::new(Semaphore::new(1));
        let ledger = Ledger {
            log: service.log.id(),
            partitions: service.log.spread().partitions(),
            owned: owned.clone(),
            sink: sink.clone(),
            clock: Arc::clone(clock),
            gate: Semaphore::new(1),
        };
        let letters = DeadLetters {
            sink: sink.clone(),
            service: Arc::clone(&service),
            gate: Arc::clone(&orders),
        };
        let control = admin::routes(Arc::clone(&service), config.clickhouse.database.clone())
            .merge(parked::routes::routes(owned))
            .merge(ledger.routes())
            .merge(letters.routes());
        Ok(Self {
            service,
            builder,
            settings,
            orders,
            control,
        })
    }
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

fn open_replays(loaded: &Loaded, common: &Common, environment: Environment) -> Result<Replays, StartError> {
    let dir = replay_dir(loaded);
    let log = Arc::clone(&common.service.log);
    let parts = replay::Parts {
        dir: Dir::from(dir.as_path()),
        dedup_at: dedup_beside(loaded, &*log),
        log,
        grant: common.service.grant.clone(),
        owned: common.service.owned.clone(),
        sink: environment.sink,
        settings: Arc::clone(&common.settings),
        letters: Arc::clone(&common.orders),
        clock: environment.clock,
        metrics: environment.metrics,
        stop: environment.stop,
    };
    Replays::open(parts).map_err(|error| StartError::DataDir { dir, error })
}

/// Where partitions have what they keep here. They share what is configured of dedup's memory and disk.
fn places(loaded: &Loaded, partitions: u16) -> Places {
    let options = dedup_options(loaded, &Disk::default(), (LogId(0), 0));
    let of_one = u64::from(partitions.max(1));
    let keys = ACTIVE_BUCKET_KEYS / usize::from(partitions.max(1));
    Places {
        parked: loaded.parked_dir(),
        parked_max_bytes: loaded.config.parked.max_bytes.0,
        outbox: loaded.outbox_dir(),
        outbox_max_bytes: loaded.config.kafka.max_bytes.0,
        dedup: Arc::new(move |log, secret_check, name| DedupOptions {
            dir: Dir {
                path: options.dir.path.join(name),
                ..options.dir.clone()
            },
            log,
            secret_check,
            memory_bytes: options.memory_bytes / of_one,
            max_bytes: options.max_bytes / of_one,
            active_keys: keys.max(LEAST_ACTIVE_KEYS),
            ..options.clone()
        }),
    }
}

fn replay_dir(loaded: &Loaded) -> PathBuf {
    loaded.data_dir.join("replay")
}

/// Dedup states of replays: as the pump's, but for place and memory.
fn dedup_beside(loaded: &Loaded, log: &dyn Log) -> replay::DedupAt {
    let options = dedup_options(
        loaded,
        &Disk::default(),
        (log.id(), secret_check(&log.hash_secret())),
    );
    Arc::new(move |dir| DedupOptions {
        dir,
        memory_bytes: options.memory_bytes / 4,
        ..options.clone()
    })
}

#[expect(clippy::cast_precision_loss, reason = "gauges")]
fn show_limits(metrics: &Metrics, log: u64, dedup: u64) {
    metrics.watch(Gauge::LogBacklogLimitBytes, &[], move || log as f64);
    metrics.watch(Gauge::DedupLimitBytes, &[], move || dedup as f64);
}

fn readiness(log: Arc<dyn Log>) -> Readiness {
    Arc::new(move || {
        let closed = log.standing(None).closed;
        closed.map_or(Ok(()), |reason| Err(reason.to_string()))
    })
}
