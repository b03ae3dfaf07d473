//! What one process is made of: all that it keeps on the disk, and its pump's parts.

use crate::dedup::{DedupOptions, Workers};
use crate::grant::Grant;
use crate::log::LogOptions;
use crate::log::embedded::Whole;
use crate::pump::batching::{Batching, Settings};
use crate::pump::pacing::Pace;
use crate::pump::{Leave, Parts};
use crate::sim::append::{TABLES, WINDOW_MS};
use crate::state::{State, StateOptions};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use sluice_common::clock::SharedClock;
use sluice_common::disk::{Dir, Disk};
use sluice_common::ids::Name;
use sluice_common::metrics::Metrics;
use sluice_common::shutdown::Stop;
use sluice_common::wire::sink::SinkRequest;
use sluice_common::wire::transport::Seam;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const PARK_AFTER: Duration = Duration::from_secs(20);
/// Of the log.
pub const SEGMENT_BYTES: u64 = 8 << 10;

/// All that a process keeps below `root`, which it makes where there is none.
pub fn open(disk: &Disk, root: &Path, clock: &SharedClock) -> Result<State, String> {
    open_log_of(64 << 20, disk, root, clock)
}

/// The same with a log of so many bytes.
pub fn open_log_of(max_bytes: u64, disk: &Disk, root: &Path, clock: &SharedClock) -> Result<State, String> {
    let data = root.join("data");
    let log = LogOptions {
        segment_bytes: SEGMENT_BYTES,
        reserve_bytes: Some(0),
        ..LogOptions::new(data.join("log"), max_bytes, 0)
    };
    let dedup = |log, secret_check| DedupOptions {
        dir: Dir {
            disk: disk.clone(),
            path: data.join("dedup"),
        },
        log,
        secret_check,
        memory_bytes: 1 << 20,
        max_bytes: 1 << 30,
        // Two ranges fit the buckets that may wait, as in production: else a start could wait for itself.
        active_keys: 256,
        max_window_ms: WINDOW_MS,
        rotate_ms: WINDOW_MS / 6,
        workers: Workers::Caller,
    };
    let options = StateOptions {
        data_dir: &data,
        log,
        parked_dir: data.join("parked"),
        parked_max_bytes: 1 << 30,
        outbox: (data.join("outbox"), 1 << 30),
        dedup: &dedup,
    };
    let opened = State::open(options, Arc::clone(clock), disk);
    opened.map_err(|error| format!("it refuses to start: {error}"))
}

/// What a pump stands on.
pub fn parts(state: State, clock: &SharedClock, sink: Seam<SinkRequest>, seed: u64) -> Parts {
    let settings = Settings {
        datasets: Vec::new(),
        batching: Batching::default(),
        tables: TABLES.iter().map(|table| Name::new(table).unwrap()).collect(),
        max_window_ms: WINDOW_MS,
        topics: BTreeMap::new(),
        letters_topic: None,
    };
    let end = *state.log.durable_end().borrow();
    let dice = Mutex::new(SmallRng::seed_from_u64(seed));
    Parts {
        grant: Grant::new(Arc::clone(clock), 64 << 20, Some(end)),
        log: Arc::new(Whole(state.log)),
        dedup: state.dedup,
        store: state.store,
        shelf: state.shelf,
        outbox: state.outbox,
        sink,
        metrics: Metrics::detached(),
        clock: Arc::clone(clock),
        stop: Stop::new(),
        leave: Leave::Drained,
        pace: Pace::default(),
        accept_window_loss: false,
        settings: Arc::new(ArcSwap::from_pointee(settings)),
        park_after: PARK_AFTER,
        dice: Arc::new(move || dice.lock().random()),
    }
}
