//! The embedded log: one partition in segment files on a local disk.
//!
//! # Constraints
//! - A batch is acknowledged only when it is durable, and only what is durable is read (R5).
//! - A record that was durable is never lost silently: damage stops the log with an alarm, a torn write is
//!   removed with a warning, and the two are told apart.
//! - A refusal is definite: nothing of the batch is in the log, then or after a crash.
//!   Only [`AppendError::Unknown`] leaves it open.
//! - Append time never decreases, also over restarts and clock steps (R7).
//! - Memory is bounded: the queue in bytes and batches, the tail cache in bytes, the index by entries.
//!
//! # Why segment files and not LMDB
//! A log needs no tree. Group commits of 8 KiB records, 300 of each, measured on one 2-core VM (ext4) in
//! November 2026, median / p99:
//!
//! | group | zeroed segment, write + fdatasync | LMDB (heed), `MDB_APPEND` + commit |
//! |---|---|---|
//! | 1 record | 0.09–0.10 / 0.17–0.21 ms | 0.28–0.30 / 0.41–0.55 ms |
//! | 200 records | 0.54–0.55 / 0.75–1.40 ms | 2.27–2.83 / 3.04–13.0 ms |
//!
//! An LMDB file also keeps what was deleted as free pages, and holds its map's size as its limit.
//! Segments are *written* with zeros ahead: fdatasync of 4 KiB took 0.11 ms into such a file, 0.18 ms into
//! an `fallocate`d one, 0.25 ms appended; 200 KB: 0.16, 0.81, 0.91 ms (medians of a separate run on such a
//! machine). The price is each byte written twice. Retired segments are not used again: old frames behind the tail would make it harder to
//! tell a torn write from damage, to save writes that happen beside the commits.
//!
//! # Bytes
//! ```text
//! lock                            flock of the owner, its process id inside
//! manifest                        log id, hash secret, partitions          (manifest.rs)
//! 00000000000000000000.segment    header, frames, mark, zeros              (segment.rs, common::record, mark.rs)
//! 00000000000000004711.segment    named by its first offset; chained to the one before by its header
//! spare                           zeros for the next segment; a leftover when found at open
//! ```
//! A frame never spans segments, and a batch that fits a segment does not either.
//!
//! # Write (writer.rs, spare.rs, keeper.rs)
//! Callers queue batches; one thread takes what waits up to `GROUP_COMMIT_BYTES`, writes it at once,
//! syncs it, publishes the new end, then answers. A failed write is wiped with zeros and synced before it
//! is refused. A failed sync ends the process: the kernel may have dropped the pages and call the next
//! sync clean. When nothing waits, a durable mark is left behind the last frame. From half a segment on
//! the keeper makes the next one ahead; its header is synced before it gets its name. Space is needed
//! for that alone: a volume at its reserve refuses there, and nowhere else.
//!
//! # Read (reader.rs, tail_cache.rs)
//! The tail from memory, older records from the disk through a sparse index that reading itself builds.
//! Each record is checked: place, log id, offset, checksum.
//!
//! # Delete (keeper.rs, catalogue.rs)
//! Whole segments, oldest first, never the newest, never one with an offset at or above
//! min(committed, sealed): when older than `retain`, or when `max_bytes` or the volume's reserve needs the
//! space. The directory is synced after each, so that no order of removals on disk leaves a gap.
//!
//! # Recovery (recover.rs, tail_scan.rs)
//! All headers are read and chained, so that a missing segment shows. Only the newest segment is read: all
//! others were synced whole before it was made; they are checked as they are read. What is kept is synced, file
//! and directory, before anything reads it. A bad frame in the newest segment is a torn write unless the
//! progress store, a mark or a later frame says that its offset was durable. (A whole frame behind it
//! alone proves nothing: of a group that was not synced, power loss keeps any part.)

mod catalogue;
mod errors;
mod face;
mod files;
mod keeper;
mod manifest;
mod mark;
mod options;
mod queue;
mod reader;
mod recover;
mod segment;
mod segment_file;
mod shared;
mod spare;
mod tail_cache;
mod tail_scan;
#[cfg(test)]
mod tests;
mod writer;

pub use errors::{AppendError, Damage, DamageKind, FullReason, OpenError, ReadError};
pub use face::{PARTITION, Whole};
pub use manifest::BadManifest;
pub use options::{FailStop, Hooks, LogOptions};
pub use segment::BadHeader;
pub use writer::AppendedAt;

use catalogue::{Catalogue, Plan};
use files::{Files, LogFile};
use manifest::Manifest;
use parking_lot::Mutex;
use queue::{Pending, Queue};
use shared::Shared;
use sluice_common::clock::{SharedClock, UnixMs};
use sluice_common::ids::{LogId, Offset};
use sluice_common::limits::MAX_RECORD_ROWS;
use sluice_common::record::{MAX_FRAME_BYTES, Record, RecordContent, RecordMeta};
use std::fs::File;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{oneshot, watch};
use writer::{Active, Writer};

const LOCK: &str = "lock";

/// An open log. Dropping it closes it.
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    manifest: Manifest,
    running: Mutex<Option<Running>>,
}

struct Running {
    writer: JoinHandle<()>,
    keeper: JoinHandle<()>,
    _lock: File,
}

/// The log in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogStats {
    pub first_offset: Offset,
    pub durable_end: Offset,
    /// Bytes of frames at or above the committed offset; deep on disk up to one index gap too many.
    pub backlog_bytes: u64,
    /// Bytes of all segment files, without the spare.
    pub disk_bytes: u64,
    /// Append time of the oldest record at or above the committed offset, or of one shortly before it.
    pub oldest_backlog_append_ms: Option<UnixMs>,
    /// Why nothing is taken now.
    pub closed: Option<FullReason>,
    /// Bytes of frames that wait for the writer or are in its hands.
    pub queued_bytes: u64,
    /// Syncs of files and directory since the log was opened.
    pub syncs: u64,
}

impl EmbeddedLog {
    /// Opens the log in `options.dir`, or makes one there, and recovers it.
    ///
    /// # Errors
    /// [`OpenError`]; each says what to do.
    pub fn open(options: LogOptions, clock: SharedClock) -> Result<Arc<Self>, OpenError> {
        Self::open_with(options, clock, Hooks::default())
    }

    /// [`Self::open`] with seams for tests.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(options: LogOptions, clock: SharedClock, hooks: Hooks) -> Result<Arc<Self>, OpenError> {
        let options = options.checked()?;
        let dir = options.dir.clone();
        let trouble = |doing| {
            let dir = dir.clone();
            move |source| OpenError::Io { doing, dir, source }
        };
        let files = Files::open(&dir, hooks.disk).map_err(trouble("open the directory"))?;
        let lock = files.lock(LOCK).map_err(trouble("lock the directory"))?;
        let lock = lock.map_err(|holder| OpenError::Locked {
            dir: dir.clone(),
            holder,
        })?;
        let recover::Recovered {
            manifest,
            mut catalogue,
            active,
        } = recover::recover(&files, &options, clock.now_ms())?;
        let active = active_segment(&mut catalogue, active);
        let shared = Arc::new(Shared {
            log: manifest.log,
            queue: Queue::new(options.queue_bytes),
            durable: watch::Sender::new(catalogue.durable_end),
            catalogue: Mutex::new(catalogue),
            spare: spare::SpareSlot::default(),
            on_fsync_failure: hooks.on_fsync_failure,
            options,
            files,
            clock,
        });
        let running = start(&shared, active, lock).map_err(trouble("start the log's threads"))?;
        Ok(Arc::new(Self {
            shared,
            manifest,
            running: Mutex::new(Some(running)),
        }))
    }

    /// The log's id (R1).
    #[must_use]
    pub fn id(&self) -> LogId {
        self.manifest.log
    }

    /// The secret of the key hashes (R3).
    #[must_use]
    pub fn hash_secret(&self) -> [u8; 32] {
        self.manifest.hash_secret
    }

    /// Partitions (R4): 1.
    #[must_use]
    pub fn partitions(&self) -> u16 {
        self.manifest.partitions
    }

    /// Appends a batch, in order and without gaps, and resolves once all of it is durable. Once queued (at
    /// the first poll) it is written even if this future is dropped.
    ///
    /// # Errors
    /// All but [`AppendError::Unknown`] mean that nothing of the batch is in the log or will be. `Unknown` can
    /// come only where the log stops, or where a batch larger than a segment fails on its way.
    pub async fn append(&self, records: Vec<RecordContent>) -> Result<AppendedAt, AppendError> {
        let outcome = self.enqueue(records)?;
        outcome.await.unwrap_or(Err(AppendError::Unknown))
    }

    fn enqueue(
        &self,
        records: Vec<RecordContent>,
    ) -> Result<oneshot::Receiver<Result<AppendedAt, AppendError>>, AppendError> {
        let room = self.shared.options.segment_bytes - segment::SEGMENT_HEADER_BYTES as u64;
        check(&records, room).map_err(AppendError::Invalid)?;
        let queued = self.shared.queue.bytes() as u64;
        if let Some(reason) = self.shared.catalogue.lock().admission(queued) {
            self.shared.spare.nudge();
            return Err(AppendError::Full(reason));
        }
        let bytes = records.iter().map(RecordContent::frame_bytes).sum();
        let (reply, outcome) = oneshot::channel();
        self.shared.queue.push(Pending {
            records,
            bytes,
            reply,
        })?;
        Ok(outcome)
    }

    /// The end of what is durable: every offset below can be read.
    #[must_use]
    pub fn durable_end(&self) -> watch::Receiver<Offset> {
        self.shared.durable.subscribe()
    }

    /// Records from `from` on: at least one if `from` is below the durable end, `max_bytes` of frames at most
    /// but for the first; fewer where a segment ends. Blocks on the disk where memory does not have them.
    ///
    /// # Errors
    /// [`ReadError`]; damage is never passed over.
    pub fn read(&self, from: Offset, max_bytes: usize) -> Result<Vec<Record>, ReadError> {
        let plan = self.shared.catalogue.lock().plan(from, max_bytes);
        match plan {
            Plan::Nothing => Ok(Vec::new()),
            Plan::OutOfReach { first } => Err(ReadError::OutOfReach { first }),
            Plan::Cached(frames) => frames.iter().map(|frame| self.cached(frame)).collect(),
            Plan::Disk(plan) => match reader::read(&self.shared.files, self.id(), &plan, from, max_bytes) {
                Ok((records, places)) => {
                    self.shared.catalogue.lock().learn(plan.base, &places);
                    Ok(records)
                }
                Err(error) => Err(self.deleted_meanwhile(&plan, error)),
            },
        }
    }

    fn cached(&self, cached: &tail_cache::CachedFrame) -> Result<Record, ReadError> {
        Record::read(&cached.frame).map_err(|bad| {
            let (segment, kind) = ("(memory)".to_owned(), DamageKind::Record(bad));
            Damage {
                segment,
                position: 0,
                offset: cached.offset,
                kind,
            }
            .into()
        })
    }

    /// A segment may be deleted between the plan and the read: its file goes first.
    fn deleted_meanwhile(&self, plan: &catalogue::DiskPlan, error: ReadError) -> ReadError {
        let catalogue = self.shared.catalogue.lock();
        let gone = catalogue.first_offset() > plan.base || catalogue.deletable() == Some(plan.base);
        let missing =
            matches!(&error, ReadError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
        if gone && missing {
            return ReadError::OutOfReach {
                first: catalogue.first_offset().max(plan.end),
            };
        }
        error
    }

    /// The oldest offset that can be read.
    #[must_use]
    pub fn first_offset(&self) -> Offset {
        self.shared.catalogue.lock().first_offset()
    }

    /// Says that all below `committed` is stored and all below `sealed` is in sealed buckets. What is below
    /// both may be deleted at once: the caller has made both durable before. Never goes backwards.
    pub fn set_progress(&self, committed: Offset, sealed: Offset) {
        let queued = self.shared.queue.bytes() as u64;
        let mut catalogue = self.shared.catalogue.lock();
        catalogue.set_progress(committed, sealed);
        catalogue.admission(queued);
        let deletable = catalogue.deletable().is_some();
        drop(catalogue);
        if deletable {
            self.shared.spare.nudge();
        }
    }

    /// Keeps records from `offset` on for a replay, though they are stored and old: until it is called again, within a
    /// bound of disk, and never where the volume's reserve needs the room.
    pub fn pin(&self, offset: Option<Offset>) {
        self.shared.catalogue.lock().pin(offset);
        self.shared.spare.nudge();
    }

    /// Whether what is stored should be sealed now, so that it can be deleted: it takes half of `max_bytes`, or the
    /// log is shut on a volume without room.
    #[must_use]
    pub fn wants_seal(&self) -> bool {
        self.shared.catalogue.lock().wants_seal()
    }

    /// An offset at or below the first record appended at `ms` or later: the beginning of its segment.
    #[must_use]
    pub fn first_offset_appended_at_or_after(&self, ms: UnixMs) -> Offset {
        self.shared.catalogue.lock().first_appended_at_or_after(ms)
    }

    /// The log in numbers.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        let queued_bytes = self.shared.queue.bytes() as u64;
        let mut catalogue = self.shared.catalogue.lock();
        LogStats {
            first_offset: catalogue.first_offset(),
            durable_end: catalogue.durable_end,
            backlog_bytes: catalogue.backlog_bytes(),
            disk_bytes: catalogue.disk_bytes(),
            oldest_backlog_append_ms: catalogue.oldest_backlog_append_ms(),
            closed: catalogue.admission(queued_bytes),
            queued_bytes,
            syncs: self.shared.files.syncs(),
        }
    }

    /// Takes no more, finishes what waits, and releases the directory. Blocks until all of it is done.
    pub fn close(&self) {
        self.shared.queue.close();
        let Some(running) = self.running.lock().take() else {
            return;
        };
        let writer = running.writer.join();
        self.shared.spare.close();
        if writer.and(running.keeper.join()).is_err() {
            tracing::error!("a thread of the log panicked; the log is recovered when it is opened again");
        }
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for EmbeddedLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedLog")
            .field("manifest", &self.manifest)
            .finish_non_exhaustive()
    }
}

fn active_segment(catalogue: &mut Catalogue, file: LogFile) -> Active {
    let newest = catalogue.newest().map(|newest| (newest.used, newest.file_bytes));
    let (used, file_bytes) = newest.expect("recovery found a newest segment");
    // A file cut short by damage may end within a word, and frames begin at multiples of 8.
    Active {
        file,
        used,
        capacity: file_bytes & !7,
    }
}

fn start(shared: &Arc<Shared>, active: Active, lock: File) -> std::io::Result<Running> {
    let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
    let (for_keeper, writer) = (Arc::clone(shared), Writer::new(Arc::clone(shared), active));
    let keeper = spawn("log-keeper").spawn(move || keeper::run(&for_keeper))?;
    match spawn("log-writer").spawn(move || writer.run()) {
        Ok(writer) => Ok(Running {
            writer,
            keeper,
            _lock: lock,
        }),
        Err(error) => {
            shared.spare.close();
            Err(error)
        }
    }
}

/// What would make the writer panic, or a record unreadable for ever, is refused at the door.
fn check(records: &[RecordContent], room: u64) -> Result<(), &'static str> {
    if records.is_empty() {
        return Err("the batch has no records");
    }
    for record in records {
        let frame = record.frame_bytes();
        if record.rows() > MAX_RECORD_ROWS || frame > MAX_FRAME_BYTES || frame as u64 > room {
            return Err("it has too many rows or bytes");
        }
        if !record.fingerprints.is_empty() && record.fingerprints.len() != record.rows() {
            return Err("it has not one fingerprint a row");
        }
        if serde_json::from_slice::<RecordMeta>(&record.meta).is_err() {
            return Err("its meta cannot be read");
        }
    }
    Ok(())
}
