//! A normalizer among several that share a log: it works on the partitions that the group gives it.
//!
//! # A partition's way
//! ```text
//! given ──▶ opening ──▶ worked on ──▶ gone
//!              │            │
//!              └────────────┴──▶ stopped: an alarm; the others go on
//! ```
//! *Opening*: the progress that whoever had it last committed, what is on this machine's disk of it, and of dedup's state
//! what is missing, from the log. *Worked on*: by a pump, as an embedded log's only partition is. *Gone*: the group asked
//! for it back; the pump settles the range under way, if that does not take long, and ends. What is not settled then is
//! declared, and verified by whoever goes on. *Stopped*: its log or its progress is not as it has to be; nothing of it is
//! passed over or decided anew, and a person has to look.
//!
//! Dedup's state on this machine's disk is a copy of what the log says: where it cannot be gone on with it is made anew.

use crate::dedup::{Dedup, DedupOpenError, DedupOptions};
use crate::grant::Grant;
use crate::log::kafka::member::Given;
use crate::log::kafka::seat::NoProgress;
use crate::log::kafka::units::NotBrought;
use crate::log::kafka::{Assigned, KafkaLog, Member};
use crate::log::{Log as _, Partition as _, ReadError};
use crate::owned::Owned;
use crate::parked::file::FileError;
use crate::parked::mirror::Mirror;
use crate::parked::shelf::{Copies, Shelf};
use crate::progress::Progress;
use crate::progress::store::{NotKept, Store, StoreError};
use crate::publish::{OUTBOX_PREFIX, Outbox};
use crate::pump::batching::SharedSettings;
use crate::pump::drive::DriveError;
use crate::pump::pacing::Pace;
use crate::pump::{Leave, Parts, Pump, PumpError, retries};
use crate::runtime::sleep;
use crate::state::secret_check;
use sluice_common::clock::SharedClock;
use sluice_common::disk::Dir;
use sluice_common::ids::LogId;
use sluice_common::limits::{RETRY_BACKOFF_MAX, RETRY_BACKOFF_MIN};
use sluice_common::metrics::{Counter, Metrics};
use sluice_common::shutdown::Stop;
use sluice_common::wire::sink::SinkRequest;
use sluice_common::wire::transport::Seam;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;

/// What names of copies of the shelf begin with.
const PARKED_PREFIX: &str = "parked";

/// What work on any partition stands on.
#[derive(Clone)]
pub struct Cluster {
    pub log: Arc<KafkaLog>,
    pub owned: Owned,
    pub places: Places,
    pub grant: Grant,
    pub sink: Seam<SinkRequest>,
    pub metrics: Metrics,
    pub clock: SharedClock,
    pub settings: SharedSettings,
    pub pace: Pace,
    /// `clickhouse.park_after`.
    pub park_after: Duration,
}

/// Dedup's options for the log of this id, a hash of its secret, and a directory's name.
pub type DedupOf = Arc<dyn Fn(LogId, u64, &str) -> DedupOptions + Send + Sync>;

/// Where partitions have what they keep on this machine, each in a directory of its own below these.
#[derive(Clone)]
pub struct Places {
    pub parked: PathBuf,
    /// Of one dataset.
    pub parked_max_bytes: u64,
    pub outbox: PathBuf,
    pub outbox_max_bytes: u64,
    pub dedup: DedupOf,
}

/// Why a partition is not worked on, or not any more.
enum Ended {
    /// It went to another.
    Gone,
    /// It may be tried again.
    Later(String),
    /// A person has to see to it.
    Stopped(String),
    /// This process cannot go on; another one may.
    Broken(PumpError),
}

impl Cluster {
    /// Works on what is given until it is told to stop, and leaves the group.
    ///
    /// # Errors
    /// [`PumpError`]: this process has to end. Others take its partitions.
    pub async fn run(
        self,
        (mut member, mut given): (Member, Receiver<Given>),
        stop: Stop,
    ) -> Result<(), PumpError> {
        self.metrics
            .add(Counter::Alarms, 0, &[("reason", "partition_stopped")]);
        let mut working = JoinSet::new();
        let ended = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                reason = member.lost() => break Err(PumpError::Lost(reason)),
                Some(ended) = working.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break Err(error),
                    Err(error) => break Err(PumpError::Settling(error)),
                },
                Some(one) = given.recv() => {
                    working.spawn(self.clone().work(member.take(one)));
                }
            }
        };
        // What comes from now on is given back at once.
        given.close();
        while let Ok(one) = given.try_recv() {
            drop(member.take(one));
        }
        let left = tokio::task::spawn_blocking(move || member.leave()).await;
        while working.join_next().await.is_some() {}
        left?;
        ended
    }

    /// Given → gone.
    async fn work(self, assigned: Assigned) -> Result<(), PumpError> {
        let (partition, mut delay) = (assigned.partition, RETRY_BACKOFF_MIN);
        loop {
            let ended = self.once(&assigned).await;
            self.owned.remove(partition);
            match ended {
                Ended::Gone => return Ok(()),
                Ended::Broken(error) => return Err(error),
                Ended::Later(reason) => {
                    tracing::warn!(
                        partition,
                        reason,
                        "the partition cannot be worked on yet; it is tried again"
                    );
                    tokio::select! {
                        biased;
                        () = assigned.leave.cancelled() => return Ok(()),
                        () = sleep(delay) => {}
                    }
                    delay = (delay * 2).min(RETRY_BACKOFF_MAX);
                }
                Ended::Stopped(reason) => {
                    tracing::error!(
                        partition,
                        reason,
                        "the partition is stopped: its events wait in the log, and others go on; mend the cause and restart"
                    );
                    self.metrics
                        .add(Counter::Alarms, 1, &[("reason", "partition_stopped")]);
                    assigned.leave.cancelled().await;
                    return Ok(());
                }
            }
        }
    }

    /// Opens the partition and pumps it until it goes.
    async fn once(&self, assigned: &Assigned) -> Ended {
        let opened = tokio::task::block_in_place(|| self.open(assigned));
        let parts = match opened {
            Ok(parts) => parts,
            Err(_) if assigned.leave.is_cancelled() => return Ended::Gone,
            Err(ended) => return ended,
        };
        let pump = Pump::new(parts);
        let work = pump.work();
        self.owned.add(work.clone());
        let ended = pump.run().await;
        // Others may have it still, a promotion for one: from here on they keep nothing. What is being kept is waited for.
        tokio::task::block_in_place(|| work.progress.lock().end());
        match ended {
            Ok(()) => Ended::Gone,
            Err(error) => told(error),
        }
    }

    fn open(&self, assigned: &Assigned) -> Result<Parts, Ended> {
        let partition = assigned.partition;
        let secret = secret_check(&self.log.hash_secret());
        let (progress, store) = open_store(assigned, secret)?;
        let log = self
            .log
            .partition(partition, progress.committed)
            .map_err(Ended::Later)?;
        let (name, of) = (partition.to_string(), (log.log(), partition));
        let options = (self.places.dedup)(of.0, secret, &name);
        // Its lock first: whoever had the partition here before may not have ended yet.
        let dedup = open_dedup(options, log.first_offset())?;
        let (places, committed, held) = (&self.places, progress.committed, progress.held);
        let at = |path: &PathBuf| -> Dir { Dir::from(path.join(&name).as_path()) };
        let mirror = self.bring(assigned, &name)?;
        let copies = Copies {
            prefix: PARKED_PREFIX,
            mirror: Arc::clone(&mirror),
        };
        let bounds = (places.parked_max_bytes, committed);
        let shelf = Shelf::open_copied(at(&places.parked), of, bounds, Some(copies))?;
        if let Some(held) = &held {
            let (by, tables) = (held.by, &held.tables);
            tracing::warn!(
                partition, %by, ?tables,
                "a replay puts others in the places of these tables: their rows are set aside until it is over, or discarded"
            );
            shelf.hold(tables);
        }
        let bounds = (places.outbox_max_bytes, committed);
        let outbox = Outbox::open_copied(at(&places.outbox), of, bounds, Some(mirror))?;
        Ok(Parts {
            log,
            dedup,
            store,
            shelf,
            outbox,
            grant: self.grant.clone(),
            sink: self.sink.clone(),
            metrics: self.metrics.clone(),
            clock: Arc::clone(&self.clock),
            stop: assigned.leave.clone(),
            leave: Leave::Soon,
            accept_window_loss: false,
            settings: Arc::clone(&self.settings),
            pace: self.pace.clone(),
            park_after: self.park_after,
            dice: retries::dice(),
        })
    }

    /// Has what is set aside of a partition on this machine's disk, as the topic beside the log has it.
    fn bring(&self, assigned: &Assigned, name: &str) -> Result<Arc<dyn Mirror>, Ended> {
        let (parked, outbox) = (self.places.parked.join(name), self.places.outbox.join(name));
        for dir in [&parked, &outbox] {
            match std::fs::remove_dir_all(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Ended::Later(format!("{}: {error}", dir.display())));
                }
                Ok(()) | Err(_) => {}
            }
        }
        let place = |copy: &str| match copy.split_once('/') {
            Some((OUTBOX_PREFIX, file)) => outbox.join(file),
            Some((_, file)) => parked.join(file),
            None => parked.join(copy),
        };
        let of = (assigned.partition, assigned.leave.clone());
        self.log.units.bring(of, &place).map_err(|error| match error {
            NotBrought::Unavailable(reason) => Ended::Later(reason),
            NotBrought::Damaged(_) => Ended::Stopped(error.to_string()),
            NotBrought::Disk { path, error } => {
                Ended::Broken(PumpError::Parked(FileError::Io { path, error }))
            }
            NotBrought::Left => Ended::Gone,
        })
    }
}

/// The progress that whoever had the partition last committed.
fn open_store(assigned: &Assigned, secret: u64) -> Result<(Progress, Store), Ended> {
    let progress = assigned.progress().map_err(|error| match error {
        NoProgress::Unavailable(_) => Ended::Later(error.to_string()),
        NoProgress::Missing(_) | NoProgress::Foreign(..) => Ended::Stopped(error.to_string()),
    })?;
    if progress.secret_check.is_some_and(|found| found != secret) {
        let reason = "its progress was made with keys of another secret than the log's manifest has";
        return Err(Ended::Stopped(reason.into()));
    }
    let mut store = Store::shared(assigned.keep(), progress.clone());
    if progress.secret_check.is_none() {
        let told = Progress {
            secret_check: Some(secret),
            ..progress.clone()
        };
        store
            .write(told)
            .map_err(|error| told_of_store(error, PumpError::Store))?;
    }
    Ok((progress, store))
}

/// What is on this machine's disk of dedup's state, if it can be gone on with; else an empty one.
fn open_dedup(options: DedupOptions, first: u64) -> Result<Dedup, Ended> {
    let dir = options.dir.path.clone();
    let why = match Dedup::open(options.clone()) {
        Ok(dedup) if dedup.applied().is_none_or(|applied| applied >= first) => return Ok(dedup),
        Ok(_) => "the log does not reach back to where it ends".to_owned(),
        Err(error @ DedupOpenError::Locked { .. }) => return Err(Ended::Later(error.to_string())),
        Err(error) => error.to_string(),
    };
    tracing::warn!(dir = %dir.display(), why, "dedup's state on this machine is made anew from the log");
    let failed = |error: std::io::Error| Ended::Later(format!("{}: {error}", dir.display()));
    std::fs::remove_dir_all(&dir).map_err(failed)?;
    Dedup::open(options).map_err(|error| Ended::Later(error.to_string()))
}

impl From<FileError> for Ended {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Damaged { .. } => Self::Stopped(error.to_string()),
            FileError::Io { .. } | FileError::InDoubt { .. } => Self::Broken(PumpError::Parked(error)),
        }
    }
}

fn told_of_store(error: StoreError, other: impl FnOnce(StoreError) -> PumpError) -> Ended {
    if let StoreError::Shared(NotKept::Fenced) = error {
        return Ended::Gone;
    }
    Ended::Broken(other(error))
}

/// What a pump's end means to its partition, and to this process.
fn told(error: PumpError) -> Ended {
    match error {
        PumpError::Store(error) => told_of_store(error, PumpError::Store),
        PumpError::Drive(DriveError::Store(error)) => {
            told_of_store(error, |error| PumpError::Drive(DriveError::Store(error)))
        }
        PumpError::Log(ReadError::Unavailable(reason)) => Ended::Later(reason),
        PumpError::Log(_)
        | PumpError::Recover(_)
        | PumpError::Drive(DriveError::Ahead(_))
        | PumpError::Dedup(_) => Ended::Stopped(error.to_string()),
        PumpError::Stopped => Ended::Gone,
        PumpError::Parked(error) => error.into(),
        PumpError::Drive(_) | PumpError::Settling(_) | PumpError::Builder(_) | PumpError::Lost(_) => {
            Ended::Broken(error)
        }
    }
}
