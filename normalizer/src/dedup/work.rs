//! The heavy work, on threads of its own: sealing a frozen bucket, merging two sealed ones.
//!
//! Both stream ascending entries into a new bucket and its filter and sync them. Nothing counts until
//! the owner names the files in the manifest, so work that fails or is cancelled leaves only orphans.

use super::DedupOptions;
use super::active::MemoryBucket;
use super::bucket::{BucketScan, BucketWriter};
use super::entry::Entry;
use super::error::StorageError;
use super::filter::FilterWriter;
use super::manifest::BucketMeta;
use super::sealed::{self, Sealed};
use sluice_common::clock::UnixMs;
use sluice_common::disk::Dir;
use sluice_common::failpoint::{self, Point};
use sluice_common::ids::TenantId;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Entries between two looks at the cancel flag.
const CANCEL_EVERY: u64 = 1 << 16;

/// Who does the heavy work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    Threads,
    /// Whoever asks for it: a simulation, which must not hang on threads.
    Caller,
}

enum Work {
    Thread(JoinHandle<Result<Sealed, StorageError>>),
    Done(Box<Result<Sealed, StorageError>>),
}

/// One piece of work under way.
pub(super) struct Job {
    work: Work,
    cancel: Arc<AtomicBool>,
    /// Id of the bucket being made.
    pub(super) id: u64,
    /// Ids of the buckets it replaces: two for a merge, none for a seal.
    pub(super) replaces: Vec<u64>,
}

/// Two adjacent buckets to be merged, older first.
pub(super) struct MergeInput {
    pub(super) scans: [BucketScan; 2],
    pub(super) metas: [BucketMeta; 2],
    /// Entries before this time can no longer be asked and are left out.
    pub(super) floor_ms: UnixMs,
}

impl Job {
    /// Starts sealing `bucket` as bucket `id`.
    pub(super) fn seal(
        options: &DedupOptions,
        id: u64,
        bucket: Arc<MemoryBucket>,
    ) -> Result<Self, StorageError> {
        let dir = options.dir.clone();
        Self::start((options.workers, "dedup-seal"), id, Vec::new(), move |cancel| {
            seal(&dir, id, &bucket, cancel)
        })
    }

    /// Starts merging two buckets into bucket `id`.
    pub(super) fn merge(options: &DedupOptions, id: u64, input: MergeInput) -> Result<Self, StorageError> {
        let dir = options.dir.clone();
        let replaces = input.metas.iter().map(|meta| meta.id).collect();
        Self::start((options.workers, "dedup-merge"), id, replaces, move |cancel| {
            merge(&dir, id, &input, cancel)
        })
    }

    fn start(
        (workers, name): (Workers, &str),
        id: u64,
        replaces: Vec<u64>,
        work: impl FnOnce(&AtomicBool) -> Result<Sealed, StorageError> + Send + 'static,
    ) -> Result<Self, StorageError> {
        let cancel = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&cancel);
        let work = match workers {
            Workers::Caller => Work::Done(Box::new(work(&flag))),
            Workers::Threads => thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || work(&flag))
                .map(Work::Thread)
                .map_err(|error| StorageError::Thread(error.to_string()))?,
        };
        Ok(Self {
            work,
            cancel,
            id,
            replaces,
        })
    }

    /// Whether [`Self::finish`] will not wait.
    pub(super) fn is_done(&self) -> bool {
        match &self.work {
            Work::Thread(thread) => thread.is_finished(),
            Work::Done(_) => true,
        }
    }

    /// Asks the work to end soon.
    pub(super) fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// Waits for the result.
    pub(super) fn finish(self) -> Result<Sealed, StorageError> {
        match self.work {
            Work::Thread(thread) => thread
                .join()
                .unwrap_or_else(|_| Err(StorageError::Thread("it panicked".into()))),
            Work::Done(done) => *done,
        }
    }
}

fn seal(dir: &Dir, id: u64, bucket: &MemoryBucket, cancel: &AtomicBool) -> Result<Sealed, StorageError> {
    let meta = BucketMeta {
        id,
        keys: bucket.keys() as u64,
        min_ms: bucket.base_ms(),
        max_ms: bucket.last_ms(),
        first: bucket.first(),
        end: bucket.end(),
        bytes: 0,
        crc: None,
        tenants: bucket.tenants().clone(),
    };
    write(dir, meta, bucket.sorted().map(Ok), cancel)
}

fn merge(dir: &Dir, id: u64, input: &MergeInput, cancel: &AtomicBool) -> Result<Sealed, StorageError> {
    let [older, newer] = &input.metas;
    let meta = BucketMeta {
        id,
        keys: older.keys + newer.keys,
        min_ms: older.min_ms.max(input.floor_ms),
        max_ms: newer.max_ms,
        first: older.first,
        end: newer.end,
        bytes: 0,
        crc: None,
        tenants: add_tenants(&older.tenants, &newer.tenants),
    };
    let merged = Merged {
        older: input.scans[0].entries()?.peekable(),
        newer: input.scans[1].entries()?.peekable(),
    };
    let floor = input.floor_ms;
    let live = merged.filter(|entry| entry.as_ref().map_or(true, |entry| entry.at_ms >= floor));
    write(dir, meta, live, cancel)
}

fn add_tenants(older: &BTreeMap<TenantId, u64>, newer: &BTreeMap<TenantId, u64>) -> BTreeMap<TenantId, u64> {
    let mut sum = older.clone();
    newer
        .iter()
        .for_each(|(tenant, events)| *sum.entry(tenant.clone()).or_default() += events);
    sum
}

/// Two ascending streams as one; of a key in both, the newer bucket's entry counts.
struct Merged<I: Iterator<Item = Result<Entry, StorageError>>> {
    older: Peekable<I>,
    newer: Peekable<I>,
}

impl<I: Iterator<Item = Result<Entry, StorageError>>> Iterator for Merged<I> {
    type Item = Result<Entry, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (Some(Ok(older)), Some(Ok(newer))) = (self.older.peek(), self.newer.peek()) else {
            let failed = matches!(self.older.peek(), Some(Err(_)));
            return if failed || self.newer.peek().is_none() {
                self.older.next()
            } else {
                self.newer.next()
            };
        };
        if older.key < newer.key {
            return self.older.next();
        }
        if older.key == newer.key {
            self.older.next();
        }
        self.newer.next()
    }
}

/// Writes a bucket and its filter and syncs files and directory. `meta.keys` is an upper bound at first.
fn write(
    dir: &Dir,
    mut meta: BucketMeta,
    entries: impl Iterator<Item = Result<Entry, StorageError>>,
    cancel: &AtomicBool,
) -> Result<Sealed, StorageError> {
    failpoint::hit(Point::SealWrite).map_err(StorageError::io("write", &dir.path))?;
    sealed::remove_files(dir, meta.id);
    let filter_path = sealed::filter_path(dir, meta.id);
    let mut bucket = BucketWriter::create(
        &dir.disk,
        &sealed::data_path(dir, meta.id),
        meta.keys,
        meta.min_ms,
    )?;
    let mut filter = FilterWriter::create(&dir.disk, &filter_path, meta.id, meta.keys)
        .map_err(StorageError::io("write", &filter_path))?;
    meta.keys = 0;
    for entry in entries {
        let entry = entry?;
        filter
            .push(entry.key)
            .map_err(StorageError::io("write", &filter_path))?;
        bucket.push(entry)?;
        meta.keys += 1;
        if meta.keys.is_multiple_of(CANCEL_EVERY) && cancel.load(Ordering::Relaxed) {
            return Err(StorageError::Cancelled);
        }
    }
    let filter_bytes = filter.finish().map_err(StorageError::io("write", &filter_path))?;
    let (bucket_bytes, crc) = bucket.finish()?;
    (meta.bytes, meta.crc) = (bucket_bytes + filter_bytes, Some(crc));
    dir.sync()
        .and_then(|()| failpoint::hit(Point::SealWritten))
        .map_err(StorageError::io("sync", &dir.path))?;
    Sealed::open(dir, meta)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_key_in_both_buckets_a_merge_keeps_the_newer_entry_and_all_others_in_order() {
        let bucket = |at_ms, keys: &[u128]| {
            let entry = |key: &u128| {
                Ok(Entry {
                    key: *key,
                    at_ms,
                    fingerprint: 0,
                })
            };
            keys.iter()
                .map(entry)
                .collect::<Vec<Result<Entry, StorageError>>>()
        };
        let merged = Merged {
            older: bucket(1, &[1, 3, 4, 9]).into_iter().peekable(),
            newer: bucket(2, &[2, 3, 4, 5]).into_iter().peekable(),
        };
        let found: Vec<(u128, u64)> = merged
            .map(|entry| entry.map(|one| (one.key, one.at_ms)).unwrap())
            .collect();
        assert_eq!(found, [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2), (9, 1)]);
    }
}
