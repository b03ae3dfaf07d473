//! Tests of the embedded log, by property.

mod append;
mod model;
mod recovery;
mod space;

use super::*;
use sluice_common::clock::ManualClock;
use sluice_common::disk::{Disk, DiskOp, DiskWatch};
use sluice_common::ids::{Name, RequestId, TenantId};
use sluice_common::record::{Identity, RequestSpan};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const NOW: UnixMs = 1_700_000_000_000;
pub const SEGMENT: u64 = 32 << 10;

/// A record of one row, told by its key, with a body of `bytes`.
pub fn record(key: u128, bytes: usize) -> RecordContent {
    let meta = RecordMeta {
        tenant: TenantId::new("acme").unwrap(),
        dataset: Name::new("events").unwrap(),
        table: Name::new("events").unwrap(),
        schema_version: 7,
        identity: Identity::Key,
        window_ms: 1,
        holds: sluice_common::record::Holds::Events,
    };
    RecordContent {
        column_bytes: 0,
        meta: serde_json::to_vec(&meta).unwrap().into(),
        spans: vec![RequestSpan {
            request: RequestId(1),
            first_row: 0,
            rows: 1,
            taken: 1,
            rejected: 0,
            trace_id: 0,
            span_id: 0,
        }],
        keys: vec![key],
        fingerprints: Vec::new(),
        body: vec![0xA5; bytes].into(),
    }
}

pub fn options(dir: &Path) -> LogOptions {
    let mut options = LogOptions::new(dir.to_path_buf(), 8 << 20, 3_600_000);
    (options.segment_bytes, options.reserve_bytes) = (SEGMENT, Some(0));
    options
}

pub fn open(dir: &Path) -> Arc<EmbeddedLog> {
    EmbeddedLog::open(options(dir), Arc::new(ManualClock::at(NOW))).unwrap()
}

pub fn open_error(options: LogOptions) -> OpenError {
    EmbeddedLog::open(options, Arc::new(ManualClock::at(NOW))).expect_err("the log must not open")
}

pub fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(future)
}

pub fn append(
    log: &EmbeddedLog,
    keys: std::ops::Range<u128>,
    bytes: usize,
) -> Result<AppendedAt, AppendError> {
    run(log.append(keys.map(|key| record(key, bytes)).collect()))
}

/// The keys of all records from `from` on, with their places checked.
pub fn keys_from(log: &EmbeddedLog, from: Offset) -> Vec<u128> {
    let (mut next, mut keys) = (from, Vec::new());
    while next < *log.durable_end().borrow() {
        let records = log.read(next, 10_000).unwrap();
        assert!(
            !records.is_empty(),
            "offset {next} is durable and must be readable"
        );
        for record in records {
            assert_eq!((record.place.offset, record.place.log), (next, log.id()));
            keys.extend(record.keys());
            next += 1;
        }
    }
    keys
}

/// A copy of the files as they are, as a kill would leave them.
pub fn copy(dir: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

/// The segment files of a directory, oldest first.
pub fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|ext| ext == "segment"))
        .collect();
    paths.sort();
    paths
}

/// Byte behind the last whole frame of a segment.
pub fn frames_end(path: &Path) -> usize {
    *frame_starts(path).last().unwrap()
}

/// Where each frame begins, and where the last one ends.
pub fn frame_starts(path: &Path) -> Vec<usize> {
    let bytes = std::fs::read(path).unwrap();
    let mut starts = vec![segment::SEGMENT_HEADER_BYTES];
    while let Ok(length) = sluice_common::record::frame_length(&bytes[*starts.last().unwrap()..]) {
        starts.push(starts.last().unwrap() + length);
    }
    starts
}

pub fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// Waits for a condition that another thread brings about.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::yield_now();
    }
}

/// Faults to be injected; each is spent by the operation it strikes.
#[derive(Default)]
pub struct Faults {
    pub fail_write: AtomicBool,
    /// Marks say what is durable, and lie over what a failed write has left.
    pub no_marks: AtomicBool,
    pub fail_sync: AtomicBool,
    pub fail_create: AtomicBool,
    pub hold_syncs: AtomicBool,
    pub held: AtomicBool,
    pub no_space: AtomicBool,
    /// Free bytes; 0: what there really are.
    pub free: AtomicU64,
    pub group_writes: AtomicU64,
}

impl DiskWatch for Faults {
    fn before(&self, op: &DiskOp<'_>) -> io::Result<()> {
        let strike = |fault: &AtomicBool| match fault.swap(false, Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => Ok(()),
        };
        match op {
            DiskOp::Write { path, at, bytes } if bytes.starts_with(b"SLR1") => {
                self.group_writes.fetch_add(1, Ordering::SeqCst);
                // What is told to have failed may have reached the file all the same.
                strike(&self.fail_write).inspect_err(|_| {
                    let file = std::fs::File::options().write(true).open(path).unwrap();
                    file.write_all_at(bytes, *at).unwrap();
                })
            }
            DiskOp::Write { bytes, .. }
                if bytes.len() == mark::MARK_BYTES && self.no_marks.load(Ordering::SeqCst) =>
            {
                Err(io::Error::from_raw_os_error(5))
            }
            DiskOp::Sync { path } if path.extension().is_some_and(|ext| ext == "segment") => {
                while self.hold_syncs.load(Ordering::SeqCst) {
                    self.held.store(true, Ordering::SeqCst);
                    std::thread::yield_now();
                }
                strike(&self.fail_sync)
            }
            DiskOp::Create { .. } if self.fail_create.load(Ordering::SeqCst) => {
                Err(io::Error::from_raw_os_error(28))
            }
            DiskOp::Create { .. }
            | DiskOp::Write { .. }
            | DiskOp::Sync { .. }
            | DiskOp::Rename { .. }
            | DiskOp::Remove { .. }
            | DiskOp::MakeDir { .. }
            | DiskOp::Fill { .. }
            | DiskOp::SyncDir { .. } => Ok(()),
        }
    }

    fn free_bytes(&self, real: u64) -> u64 {
        if self.no_space.load(Ordering::SeqCst) {
            return 0;
        }
        match self.free.load(Ordering::SeqCst) {
            0 => real,
            free => free,
        }
    }
}

/// A log over injected faults, and whether its fail-stop was called.
pub fn open_faulty(options: LogOptions) -> (Arc<EmbeddedLog>, Arc<Faults>, Arc<AtomicBool>) {
    let (faults, stopped) = (Arc::new(Faults::default()), Arc::new(AtomicBool::new(false)));
    let seen = Arc::clone(&stopped);
    let disk = Disk::watched(Arc::clone(&faults) as Arc<dyn DiskWatch>);
    let on_fsync_failure: FailStop = Arc::new(move |_| seen.store(true, Ordering::SeqCst));
    let hooks = Hooks {
        disk,
        on_fsync_failure,
    };
    let log = EmbeddedLog::open_with(options, Arc::new(ManualClock::at(NOW)), hooks).unwrap();
    (log, faults, stopped)
}
