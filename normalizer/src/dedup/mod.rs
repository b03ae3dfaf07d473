//! Dedup: which rows of a record are repeats (R7–R9 of ARCHITECTURE.md). Behind the log, in log order, once.
//!
//! # Constraints
//! A row is dropped iff an earlier copy of its key, kept or dropped, was appended less than the
//! record's window before it. Every copy restarts the window, so an entry is `key → latest append
//! time`. Time is the record's; one that steps back (Kafka) counts as the newest seen. An
//! `Idempotency-Key` row whose live copy had other content is a conflict; the first content stays,
//! the time is refreshed. Copies of rejected rows have no identity: all are kept. The state is a pure function of the log: after a crash, the manifest and
//! the log from its applied offset on repeat every decision.
//!
//! # In memory
//! The *active* bucket takes all copies. It *freezes* when it is `rotate_ms` old or full, or when the log needs the
//! room of what it covers; at most
//! [`MAX_FROZEN`] wait to be sealed, then [`DedupError::Stalled`] stops the pump before anything is
//! touched. 29.5 bytes a key when full. Where buckets end has no influence on any decision.
//!
//! # On disk (`dedup.dir`)
//! `lock` (flock: one process), `manifest` (see `manifest.rs`), and for each sealed bucket
//! `b-<id>.mdb` (an LMDB environment, see `bucket.rs`) and `b-<id>.filter` (see `filter.rs`).
//! Only files that the manifest names count. 25.5 bytes a key, filter included.
//!
//! # Write
//! A frozen bucket is sealed once the committed offset has reached its end: sorted, loaded, synced,
//! on a thread of its own; then the owner swaps the manifest with the new applied offset. So disk
//! holds the state of a prefix at or below the committed offset. Where that fails (a full disk), the
//! files are removed, the bucket stays in memory, [`DedupStats::last_error`] says why, and a later
//! [`Dedup::committed`] tries again. Where `max_bytes` would be passed, sealing waits, `over_limit`
//! is set, and the pump stalls once memory is full: dedup never stops silently.
//!
//! # Read
//! Newest first: active, frozen, sealed; the first copy found is the latest. A bucket whose last
//! copy is a window old ends the search. A filter's "no" is final, its "yes" is confirmed in LMDB.
//! Beyond 6 sealed buckets two neighbours are merged, one merge at a time (see `plan.rs`); a merge
//! needs room for its result beside its inputs within `max_bytes`, else it waits and probes cost more.
//!
//! # Delete
//! A bucket is unlinked when its last copy is a widest window older than the record at the applied
//! offset: not older than the newest record, because those above the applied offset are decided
//! again after a crash. So it lives up to one rotation longer, and a merged one up to the time that
//! it spans, as a rule at most half a window. Progress (the manifest) first, unlinking second.
//!
//! # Recovery
//! Every bucket and filter is read once and compared with its checksum. Orphans are removed, damaged filters
//! rebuilt from their bucket, a damaged manifest or bucket refuses to open. No manifest means no state: [`Dedup::applied`] is none, and the caller has the log
//! from a window before the committed offset on [absorbed](Dedup::absorb), or refuses to start. Such
//! a rebuilt state decides as the lost one did, but for conflicts: if the first content of an
//! `Idempotency-Key` was last seen more than a window ago, its repeats inside the window speak for it.
//!
//! # Measured
//! November 2026, a 2-core VM shared with other builds, optimised build, one thread decides:
//!
//! | sealed keys | buckets | new key | repeat, sealed | repeat, active | seal a key | disk a key |
//! |---|---|---|---|---|---|---|
//! | 1 M | 1 | 0.11 µs | 1.0 µs | 0.07 µs | 0.13 µs | 25.5 B |
//! | 20 M, filters in memory | 5 | 0.35 µs | 1.5 µs | 0.08 µs | 0.13 µs | 25.5 B |
//! | 40 M, filters in memory, merged | 6 | 0.82 µs | 1.8 µs | 0.07 µs | 0.09–0.6 µs | 25.5 B |
//! | 20 M, `memory_bytes` 0 | 5 | 6.9 µs | 5.6 µs | 0.08 µs | 0.11 µs | 25.5 B |
//!
//! "Seal" is sorting, loading, filter and fsync. A full active bucket of 4 M keys takes 118 MB (29.5 B
//! a key), a filter 1.16 B a key; 10,000 decisions or a commit stopped for 30 ms at most, for 320 ms with
//! seal and merge on the same two cores. The
//! last row is why `dedup.memory` should hold all filters: a read from the page cache costs 0.45 µs.

mod active;
mod bucket;
mod entry;
mod error;
mod filter;
mod manifest;
mod plan;
mod recover;
mod sealed;
#[cfg(test)]
mod tests;
mod upkeep;
mod work;

pub use error::{DedupError, DedupOpenError, StorageError};

use active::MemoryBucket;
use entry::Seen;
use sealed::Sealed;
use sluice_common::clock::UnixMs;
use sluice_common::disk::Dir;
use sluice_common::failpoint::{self, Safety};
use sluice_common::fates::{Fate, Fates};
use sluice_common::ids::{LogId, Offset, TenantId};
use sluice_common::record::{Holds, Identity, Record};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::Arc;
use work::Job;
pub use work::Workers;

/// Frozen buckets that may wait to be sealed: the pump is never more than two ranges ahead of the
/// committed offset, and one may be under way to disk.
pub const MAX_FROZEN: usize = 3;

/// What [`Dedup::open`] needs to know.
#[derive(Debug, Clone)]
pub struct DedupOptions {
    /// Directory of this partition's state; created where it is missing.
    pub dir: Dir,
    /// The log whose records are decided (R1).
    pub log: LogId,
    /// A hash of the log's secret: state made under another one refuses to open.
    pub secret_check: u64,
    /// Bytes of filters kept in memory (`dedup.memory`).
    pub memory_bytes: u64,
    /// Bytes that sealed buckets may take on disk (`dedup.max_bytes`).
    pub max_bytes: u64,
    /// Keys of the active bucket before it freezes.
    pub active_keys: usize,
    /// The widest window that any dataset asks for, ms. A record with a wider one widens it for as
    /// long as the process runs.
    pub max_window_ms: u64,
    /// Age at which the active bucket freezes, ms; at most 49 days.
    pub rotate_ms: u64,
    pub workers: Workers,
}

/// The dedup state of one partition. Synchronous, one owner: it blocks on disk reads.
pub struct Dedup {
    options: DedupOptions,
    /// Oldest first, as all buckets here.
    sealed: Vec<Sealed>,
    frozen: VecDeque<Arc<MemoryBucket>>,
    active: MemoryBucket,
    /// The next record due; none where the first one says where the state begins.
    next: Option<Offset>,
    /// Latest append time seen.
    now_ms: UnixMs,
    widest_ms: u64,
    /// Offset and time that the manifest says; none before the first seal.
    applied: Option<(Offset, UnixMs)>,
    next_id: u64,
    seal: Option<Job>,
    merge: Option<Job>,
    trouble: upkeep::Trouble,
    /// The directory's flock, held until the end.
    _lock: File,
}

/// What the state holds and how it fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DedupStats {
    /// Keys of the active and the frozen buckets.
    pub keys_active: u64,
    /// Keys of the sealed buckets; one that lies in two counts twice.
    pub keys_sealed: u64,
    /// Bytes of the sealed buckets and their filters.
    pub disk_bytes: u64,
    /// Bytes of the tables and of the filters in memory.
    pub memory_bytes: u64,
    /// Sealed buckets.
    pub buckets: usize,
    /// Buckets that wait to be sealed, of [`MAX_FROZEN`].
    pub frozen: usize,
    /// A bucket cannot be sealed within `max_bytes`: raise it or shorten windows, or the pump stalls.
    pub over_limit: bool,
    /// Why the last seal, merge or manifest swap failed, until one succeeds.
    pub last_error: Option<String>,
}

/// What one record asks of all its keys.
#[derive(Clone, Copy)]
struct Question {
    now_ms: UnixMs,
    window_ms: u64,
    /// Whether another fingerprint is a conflict.
    compares: bool,
}

impl Question {
    fn is_live(&self, seen: Seen) -> bool {
        self.now_ms.saturating_sub(seen.at_ms) < self.window_ms
    }

    /// The fate of a copy with `print`, given the latest copy before it.
    fn fate(&self, seen: Option<Seen>, print: u32) -> Fate {
        match seen.filter(|seen| self.is_live(*seen)) {
            None => Fate::Keep,
            Some(seen) if self.compares && seen.fingerprint != print => Fate::Conflict,
            Some(_) => Fate::Drop,
        }
    }

    /// The fingerprint that stays: the first content's, as long as copies follow within the window.
    fn stays(&self, seen: Seen, print: u32) -> u32 {
        if self.compares && self.is_live(seen) {
            seen.fingerprint
        } else {
            print
        }
    }
}

impl Dedup {
    /// Opens the state in `options.dir`, or an empty one.
    ///
    /// # Errors
    /// [`DedupOpenError`]: locked, of another log or secret, or not readable.
    pub fn open(options: DedupOptions) -> Result<Self, DedupOpenError> {
        let recovered = recover::recover(&options)?;
        let applied = recovered
            .manifest
            .as_ref()
            .map(|manifest| (manifest.applied, manifest.applied_ms));
        let now_ms = applied.map_or(0, |(_, ms)| ms);
        let mut dedup = Self {
            sealed: recovered.sealed,
            frozen: VecDeque::new(),
            active: MemoryBucket::new(options.active_keys, 0, now_ms),
            next: applied.map(|(offset, _)| offset),
            now_ms,
            widest_ms: options.max_window_ms,
            applied,
            next_id: recovered.manifest.map_or(0, |manifest| manifest.next_id),
            seal: None,
            merge: None,
            trouble: upkeep::Trouble::default(),
            _lock: recovered.lock,
            options,
        };
        dedup.place_filters();
        Ok(dedup)
    }

    /// The durable state covers all records below this offset; the first record to decide is this
    /// one. None where there is no state at all.
    #[must_use]
    pub fn applied(&self) -> Option<Offset> {
        self.applied.map(|(offset, _)| offset)
    }

    /// The log may be deleted below the lower of this and the committed offset. 0 without a state.
    #[must_use]
    pub fn sealed(&self) -> Offset {
        self.applied().unwrap_or(0)
    }

    /// Decides the rows of the next record. Records come in offset order without gaps from
    /// [`Self::applied`] on; without a state, from wherever the first one lies.
    ///
    /// # Errors
    /// [`DedupError::Stalled`] passes; after any other the state must be opened anew.
    pub fn decide(&mut self, record: &Record) -> Result<Fates, DedupError> {
        let question = self.take(record)?;
        let mut fates = Fates::new();
        if record.meta.holds == Holds::RejectedCopies || !failpoint::is_on(Safety::Dedup) {
            (0..record.rows()).for_each(|_| fates.push(Fate::Keep));
            return Ok(fates);
        }
        let mut prints = record.fingerprints();
        for key in record.keys() {
            let print = if question.compares {
                prints.next().unwrap_or(0)
            } else {
                0
            };
            fates.push(self.decide_key(question, key, print)?);
        }
        Ok(fates)
    }

    /// Has nothing deleted that a window of `window_ms` still asks for. Windows only grow here: one that was
    /// made shorter is still asked for by the records that were appended under it, until the next start.
    pub fn widen(&mut self, window_ms: u64) {
        self.widest_ms = self.widest_ms.max(window_ms);
    }

    /// Takes a record into the state whose fates nobody needs: to rebuild a lost state from the log.
    ///
    /// # Errors
    /// As [`Self::decide`].
    pub fn absorb(&mut self, record: &Record) -> Result<(), DedupError> {
        self.decide(record).map(drop)
    }

    /// Checks that the record is the next one and makes room for it, before any key is touched.
    fn take(&mut self, record: &Record) -> Result<Question, DedupError> {
        let place = record.place;
        if place.log != self.options.log {
            return Err(DedupError::OtherLog {
                expected: self.options.log,
                found: place.log,
            });
        }
        if let Some(expected) = self.next.filter(|next| *next != place.offset) {
            return Err(DedupError::Gap {
                expected,
                found: place.offset,
            });
        }
        let now_ms = self.now_ms.max(place.append_ms);
        let keys = match record.meta.holds {
            Holds::Events => record.rows(),
            Holds::RejectedCopies => 0,
        };
        self.rotate(place.offset, now_ms, keys as usize)?;
        self.active.take(place.offset, now_ms, &record.meta.tenant, keys);
        self.now_ms = now_ms;
        self.next = Some(place.offset + 1);
        self.widest_ms = self.widest_ms.max(record.meta.window_ms);
        let compares = record.meta.identity == Identity::IdempotencyKey;
        Ok(Question {
            now_ms,
            window_ms: record.meta.window_ms,
            compares,
        })
    }

    /// Freezes the active bucket where it is old, or too full for `rows` more.
    fn rotate(&mut self, offset: Offset, now_ms: UnixMs, rows: usize) -> Result<(), DedupError> {
        if self.active.is_empty() {
            return Ok(());
        }
        let age = now_ms - self.active.base_ms();
        // Age alone may wait for room; keys must not, nor times beyond 32 bits.
        let must = self.active.keys() + rows > self.options.active_keys || age > u64::from(u32::MAX);
        let room = self.frozen.len() < MAX_FROZEN;
        if must && !room {
            return Err(DedupError::Stalled {
                frozen: self.frozen.len(),
                why: self.trouble.why(),
            });
        }
        if room && (must || age >= self.options.rotate_ms) {
            let fresh = MemoryBucket::new(self.options.active_keys, offset, now_ms);
            self.frozen
                .push_back(Arc::new(std::mem::replace(&mut self.active, fresh)));
        }
        Ok(())
    }

    /// Freezes the active bucket before its time, unless one waits to be sealed already: the log cannot delete what
    /// is in neither. Where buckets end has no influence on any decision.
    pub fn freeze(&mut self) {
        let Some(next) = self
            .next
            .filter(|_| self.frozen.is_empty() && !self.active.is_empty())
        else {
            return;
        };
        let fresh = MemoryBucket::new(self.options.active_keys, next, self.now_ms);
        self.frozen
            .push_back(Arc::new(std::mem::replace(&mut self.active, fresh)));
    }

    fn decide_key(&mut self, question: Question, key: u128, print: u32) -> Result<Fate, DedupError> {
        let now_ms = question.now_ms;
        if let Some(seen) = self.active.touch(key, now_ms, |seen| question.stays(seen, print)) {
            return Ok(question.fate(Some(seen), print));
        }
        let seen = self.find_older(question, key)?;
        let stays = seen.map_or(print, |seen| question.stays(seen, print));
        self.active.insert(key, now_ms, stays);
        Ok(question.fate(seen, print))
    }

    /// The latest copy outside the active bucket, where it can be live.
    fn find_older(&self, question: Question, key: u128) -> Result<Option<Seen>, StorageError> {
        let over = |last_ms: UnixMs| question.now_ms - last_ms >= question.window_ms;
        for bucket in self.frozen.iter().rev() {
            if over(bucket.last_ms()) {
                return Ok(None);
            }
            if let Some(seen) = bucket.find(key) {
                return Ok(Some(seen));
            }
        }
        for bucket in self.sealed.iter().rev() {
            if over(bucket.meta.max_ms) {
                return Ok(None);
            }
            if let Some(seen) = bucket.find(key)? {
                return Ok(Some(seen));
            }
        }
        Ok(None)
    }

    /// What the state holds and how it fares.
    #[must_use]
    pub fn stats(&self) -> DedupStats {
        let tables = || self.frozen.iter().map(Arc::as_ref).chain([&self.active]);
        let filters: u64 = self.sealed.iter().map(|bucket| bucket.filter_bytes().1).sum();
        DedupStats {
            keys_active: tables().map(|table| table.keys() as u64).sum(),
            keys_sealed: self.sealed.iter().map(|bucket| bucket.meta.keys).sum(),
            disk_bytes: self.disk_bytes(),
            memory_bytes: tables().map(MemoryBucket::memory_bytes).sum::<u64>() + filters,
            buckets: self.sealed.len(),
            frozen: self.frozen.len(),
            over_limit: self.trouble.over_limit,
            last_error: self.trouble.last_error.clone(),
        }
    }

    /// Events appended by each tenant in the ranges of all live buckets: an upper bound of the keys
    /// that it holds here, for intake's cap (R9). A bucket counts at most 100,000 tenants.
    #[must_use]
    pub fn events_by_tenant(&self) -> HashMap<TenantId, u64> {
        let mut sum: HashMap<TenantId, u64> = HashMap::new();
        let tables = self
            .frozen
            .iter()
            .map(Arc::as_ref)
            .chain([&self.active])
            .map(MemoryBucket::tenants);
        for tenants in self
            .sealed
            .iter()
            .map(|bucket| &bucket.meta.tenants)
            .chain(tables)
        {
            for (tenant, events) in tenants {
                *sum.entry(tenant.clone()).or_default() += events;
            }
        }
        sum
    }
}
