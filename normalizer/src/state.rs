//! What a partition keeps on disk, opened in the order in which one part needs the other: progress tells
//! which of the log's records were durable, the log's id and secret tell whose the rest must be.

use crate::dedup::{Dedup, DedupOptions};
use crate::log::embedded::{Hooks, PARTITION};
use crate::log::{EmbeddedLog, LogOptions};
use crate::parked::shelf::Shelf;
use crate::progress::Progress;
use crate::progress::store::Store;
use crate::publish::Outbox;
use crate::start::StartError;
use sluice_common::clock::SharedClock;
use sluice_common::disk::{Dir, Disk};
use sluice_common::ids::LogId;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where everything lies, and how large it may be.
pub struct StateOptions<'a> {
    pub data_dir: &'a Path,
    /// What was durable is known here.
    pub log: LogOptions,
    pub parked_dir: PathBuf,
    /// Of one dataset.
    pub parked_max_bytes: u64,
    /// Where events and dead letters wait for their topics, and what one dataset may have there of either.
    pub outbox: (PathBuf, u64),
    /// For the log of this id, and a hash of its secret.
    pub dedup: &'a dyn Fn(LogId, u64) -> DedupOptions,
}

/// A partition's state, open.
pub struct State {
    pub log: Arc<EmbeddedLog>,
    pub store: Store,
    pub dedup: Dedup,
    pub shelf: Shelf,
    pub outbox: Outbox,
}

impl State {
    /// Recovers all of it; blocks for the disk.
    ///
    /// # Errors
    /// [`StartError`], saying what to do.
    pub fn open(options: StateOptions<'_>, clock: SharedClock, disk: &Disk) -> Result<Self, StartError> {
        let dir = options.data_dir;
        disk.make_dir(dir, 0o777).map_err(|error| StartError::DataDir {
            dir: dir.to_owned(),
            error,
        })?;
        let path = dir.join("progress");
        let store = Store::open(disk, &path)?;
        let known_durable = store.as_ref().map_or(0, |store| store.state().end());
        let log_dir = options.log.dir.clone();
        let log = LogOptions {
            known_durable,
            ..options.log
        };
        let hooks = Hooks {
            disk: disk.clone(),
            ..Hooks::default()
        };
        let log = EmbeddedLog::open_with(log, clock, hooks)?;
        let store = match_store(disk, store, &path, (&log, log_dir))?;
        let committed = store.state().committed;
        let at = |path| Dir {
            disk: disk.clone(),
            path,
        };
        let of = (log.id(), PARTITION);
        let shelf = Shelf::open(at(options.parked_dir), of, options.parked_max_bytes, committed)?;
        let (dir, max_bytes) = options.outbox;
        let outbox = Outbox::open(at(dir), of, max_bytes, committed)?;
        let dedup = Dedup::open((options.dedup)(log.id(), secret_check(&log.hash_secret())))?;
        log.set_progress(committed, dedup.sealed().min(committed));
        Ok(Self {
            log,
            store,
            dedup,
            shelf,
            outbox,
        })
    }
}

/// The progress that belongs to this log; a new one only for a log that holds nothing.
fn match_store(
    disk: &Disk,
    store: Option<Store>,
    path: &Path,
    (log, log_dir): (&EmbeddedLog, PathBuf),
) -> Result<Store, StartError> {
    let (path, id) = (path.to_owned(), log.id());
    let secret = secret_check(&log.hash_secret());
    let Some(mut store) = store else {
        let end = *log.durable_end().borrow();
        if end > 0 {
            return Err(StartError::ProgressMissing { path, end });
        }
        let fresh = Progress::new(id, Some(secret));
        return Ok(Store::create(disk, &path, fresh)?);
    };
    let progress = store.state().log;
    if progress != id {
        return Err(StartError::OtherLog {
            path,
            progress,
            dir: log_dir,
            log: id,
        });
    }
    match store.state().secret_check {
        Some(found) if found != secret => return Err(StartError::OtherSecret(log_dir)),
        Some(_) => {}
        None => {
            let state = store.state().clone();
            store.write(Progress {
                secret_check: Some(secret),
                ..state
            })?;
        }
    }
    Ok(store)
}

/// A hash of the log's secret: state that was made under another one is told by it.
pub fn secret_check(secret: &[u8; 32]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(secret)
}
