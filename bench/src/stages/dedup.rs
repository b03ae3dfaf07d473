//! Decisions about repeats, and the upkeep of what they go by.

use super::record::{LOG, logged};
use super::{EVENTS, Round};
use sluice_common::disk::Dir;
use sluice_common::limits::MAX_SEALED_BUCKETS;
use sluice_common::record::Record;
use sluice_normalizer::dedup::{Dedup, DedupOptions, Workers};
use std::hint::black_box;
use tempfile::TempDir;

const WINDOW_MS: u64 = 24 * 3_600_000;
/// Records of a sealed bucket.
const BUCKET_RECORDS: usize = 20;
/// Keys that a round of [`sealed_and_merged`] seals.
pub const MERGED: usize = EVENTS * BUCKET_RECORDS;

fn empty() -> (TempDir, Dedup) {
    let dir = tempfile::tempdir().expect("a directory");
    let options = DedupOptions {
        dir: Dir::from(dir.path()),
        log: LOG,
        secret_check: 7,
        memory_bytes: 64 << 20,
        max_bytes: 1 << 30,
        active_keys: 1 << 22,
        max_window_ms: WINDOW_MS,
        rotate_ms: WINDOW_MS,
        // Whoever measures counts this thread's work.
        workers: Workers::Caller,
    };
    let dedup = Dedup::open(options).expect("an empty directory");
    (dir, dedup)
}

/// All keys are new: each is looked for in a sealed bucket's filter, too.
pub fn new_keys(rounds: usize) -> Round {
    let (dir, mut dedup) = empty();
    let mut records = logged(BUCKET_RECORDS + rounds).into_iter();
    seal(&mut dedup, &mut records);
    assert_eq!(
        (dedup.stats().buckets, dedup.stats().keys_active),
        (1, 0),
        "one is sealed"
    );
    Box::new(move || {
        let record = records.next().expect("one a round");
        let fates = dedup.decide(&record).expect("decided");
        assert_eq!(fates.kept() as usize, EVENTS, "all are new");
        black_box(&dir);
    })
}

/// All keys are repeats of what the active bucket holds.
pub fn repeats(rounds: usize) -> Round {
    let (dir, mut dedup) = empty();
    let once = logged(rounds);
    for record in &once {
        dedup.decide(record).expect("decided");
    }
    let mut again = once.into_iter();
    Box::new(move || {
        let mut record = again.next().expect("one a round");
        record.place.offset += rounds as u64;
        let fates = dedup.decide(&record).expect("decided");
        assert_eq!(fates.kept(), 0, "all are repeats");
        black_box(&dir);
    })
}

/// A bucket is sorted and sealed, and two are merged because it is one too many.
pub fn sealed_and_merged(rounds: usize) -> Round {
    let records = logged((MAX_SEALED_BUCKETS + 1) * BUCKET_RECORDS);
    let full = || {
        let (dir, mut dedup) = empty();
        let mut records = records.iter().cloned();
        (0..MAX_SEALED_BUCKETS).for_each(|_| seal(&mut dedup, &mut records));
        let end = fill(&mut dedup, &mut records);
        assert_eq!(
            dedup.stats().buckets,
            MAX_SEALED_BUCKETS,
            "as many as there may be"
        );
        (dir, dedup, end)
    };
    let mut ready: Vec<(TempDir, Dedup, u64)> = (0..rounds).map(|_| full()).collect();
    Box::new(move || {
        let (dir, mut dedup, end) = ready.pop().expect("one a round");
        dedup.freeze();
        settle(&mut dedup, end);
        assert_eq!(
            dedup.stats().buckets,
            MAX_SEALED_BUCKETS,
            "one was sealed, and two were merged"
        );
        black_box(&dir);
    })
}

/// Takes a bucket's records; the offset behind them.
fn fill(dedup: &mut Dedup, records: &mut impl Iterator<Item = Record>) -> u64 {
    let mut end = 0;
    for record in records.take(BUCKET_RECORDS) {
        dedup.absorb(&record).expect("taken");
        end = record.place.offset + 1;
    }
    end
}

fn seal(dedup: &mut Dedup, records: &mut impl Iterator<Item = Record>) {
    let end = fill(dedup, records);
    dedup.freeze();
    settle(dedup, end);
}

/// What is frozen is sealed at one commit, named in the manifest at the next, and merged by then or at the one after it.
fn settle(dedup: &mut Dedup, end: u64) {
    for _ in 0..4 {
        dedup.committed(end).expect("upkeep");
    }
    let stats = dedup.stats();
    assert_eq!((stats.frozen, &stats.last_error), (0, &None), "all is sealed");
}
