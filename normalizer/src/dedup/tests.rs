//! The dedup state against a plain map, through crashes, merges and full directories.

use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use sluice_common::ids::{Name, RequestId};
use sluice_common::record::{Holds, Placement, RecordContent, RecordMeta, RequestSpan};
use std::path::{Path, PathBuf};

const LOG: LogId = LogId(77);
const WINDOW: u64 = 1_000;
const HOUR: u64 = 3_600_000;

fn options(dir: &Path) -> DedupOptions {
    DedupOptions {
        dir: dir.into(),
        log: LOG,
        secret_check: 5,
        memory_bytes: 400,
        max_bytes: 1 << 30,
        active_keys: 6,
        max_window_ms: WINDOW,
        rotate_ms: WINDOW / 6,
        workers: Workers::Threads,
    }
}

fn open(dir: &Path) -> Dedup {
    Dedup::open(options(dir)).unwrap()
}

/// What a record of a test holds; keys are spread as real key hashes are.
#[derive(Debug, Clone)]
struct Draft {
    offset: Offset,
    at_ms: UnixMs,
    identity: Identity,
    window_ms: u64,
    holds: Holds,
    rows: Vec<(u8, u32)>,
}

impl Draft {
    fn keyed(offset: Offset, at_ms: UnixMs, keys: &[u8]) -> Self {
        let rows = keys.iter().map(|key| (*key, 0)).collect();
        Self {
            offset,
            at_ms,
            identity: Identity::Key,
            window_ms: WINDOW,
            holds: Holds::Events,
            rows,
        }
    }

    fn record(&self) -> Record {
        let meta = RecordMeta {
            tenant: TenantId::new(if self.offset.is_multiple_of(2) {
                "even"
            } else {
                "odd"
            })
            .unwrap(),
            dataset: Name::new("events").unwrap(),
            table: Name::new("events").unwrap(),
            schema_version: 1,
            identity: self.identity,
            window_ms: self.window_ms,
            holds: self.holds,
        };
        let rows = self.rows.len() as u32;
        let span = RequestSpan {
            request: RequestId(1),
            first_row: 0,
            rows,
            taken: rows,
            rejected: 0,
            trace_id: 0,
            span_id: 0,
        };
        let prints = self.rows.iter().map(|row| row.1);
        let content = RecordContent {
            column_bytes: 0,
            meta: serde_json::to_vec(&meta).unwrap().into(),
            spans: vec![span],
            keys: self.rows.iter().map(|row| hashed(row.0)).collect(),
            fingerprints: if self.identity == Identity::IdempotencyKey {
                prints.collect()
            } else {
                Vec::new()
            },
            body: Bytes::new(),
        };
        let place = Placement {
            log: LOG,
            offset: self.offset,
            append_ms: self.at_ms,
            durable_below: 0,
        };
        let mut frame = Vec::new();
        content.write(place, &mut frame);
        Record::read(&frame.into()).unwrap()
    }
}

fn hashed(key: u8) -> u128 {
    u128::from(xxhash_rust::xxh3::xxh3_64(&[key])) << 64 | u128::from(xxhash_rust::xxh3::xxh3_64(&[key, 1]))
}

/// R7 as one would write it down.
#[derive(Default)]
struct Model {
    now_ms: UnixMs,
    seen: HashMap<u8, (UnixMs, u32)>,
}

impl Model {
    fn decide(&mut self, draft: &Draft) -> Fates {
        self.now_ms = self.now_ms.max(draft.at_ms);
        let compares = draft.identity == Identity::IdempotencyKey;
        let mut fates = Fates::new();
        for (key, print) in &draft.rows {
            if draft.holds == Holds::RejectedCopies {
                fates.push(Fate::Keep);
                continue;
            }
            let print = if compares { *print } else { 0 };
            let live = self
                .seen
                .get(key)
                .filter(|seen| self.now_ms - seen.0 < draft.window_ms)
                .copied();
            fates.push(match live {
                None => Fate::Keep,
                Some((_, first)) if compares && first != print => Fate::Conflict,
                Some(_) => Fate::Drop,
            });
            let stays = live.filter(|_| compares).map_or(print, |seen| seen.1);
            self.seen.insert(*key, (self.now_ms, stays));
        }
        fates
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append {
        after_ms: u64,
        back_ms: u64,
        identity: Identity,
        window_ms: u64,
        holds: Holds,
        rows: Vec<(u8, u32)>,
    },
    /// Commit up to so many records behind the newest, without waiting for the work it starts.
    Commit(u64),
    /// Commit and wait.
    Settle(u64),
    /// The log needs room.
    Freeze,
    /// The process dies.
    Crash,
    /// The process ends in order.
    Close,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let identity = prop_oneof![
        Just(Identity::Key),
        Just(Identity::IdempotencyKey),
        Just(Identity::Request)
    ];
    let after = prop_oneof![12 => 0..40u64, 4 => 0..200u64, 1 => 990..1_010u64, 1 => Just(20_000u64)];
    let back = prop_oneof![9 => Just(0u64), 1 => 0..300u64];
    let window = prop_oneof![Just(WINDOW), Just(300), Just(1)];
    let holds = prop_oneof![9 => Just(Holds::Events), 1 => Just(Holds::RejectedCopies)];
    let rows = prop::collection::vec((0..24u8, 0..3u32), 0..5);
    let append = (after, back, identity, window, holds, rows).prop_map(
        |(after_ms, back_ms, identity, window_ms, holds, rows)| Step::Append {
            after_ms,
            back_ms,
            identity,
            window_ms,
            holds,
            rows,
        },
    );
    let step = prop_oneof![
        12 => append,
        3 => (0..3u64).prop_map(Step::Commit),
        2 => (0..2u64).prop_map(Step::Settle),
        1 => Just(Step::Freeze),
        1 => Just(Step::Crash),
        1 => Just(Step::Close),
    ];
    prop::collection::vec(step, 1..160)
}

/// 150, or as many as `PROPTEST_CASES` says.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(150)
}

/// A directory in memory where there is one: each case syncs some hundred files, and a power loss is
/// not what the model is about.
fn fast_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// A partition under test: its log, what was decided, and the state.
struct Partition {
    dir: tempfile::TempDir,
    dedup: Option<Dedup>,
    model: Model,
    now_ms: UnixMs,
    log: Vec<(Record, Fates)>,
    committed: Offset,
}

impl Partition {
    fn new() -> Self {
        let dir = fast_dir();
        let dedup = Some(open(dir.path()));
        Self {
            dir,
            dedup,
            model: Model::default(),
            now_ms: 10_000,
            log: Vec::new(),
            committed: 0,
        }
    }

    fn dedup(&mut self) -> &mut Dedup {
        self.dedup.as_mut().unwrap()
    }

    fn decide(&mut self, record: &Record) -> Fates {
        match self.dedup().decide(record) {
            Ok(fates) => fates,
            Err(error) => {
                assert!(error.is_stall(), "{error}");
                self.committed = record.place.offset;
                let committed = self.committed;
                self.dedup().settle(committed);
                self.dedup().decide(record).unwrap()
            }
        }
    }

    fn commit(&mut self, behind: u64) -> Offset {
        self.committed = self.committed.max((self.log.len() as u64).saturating_sub(behind));
        self.committed
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Append {
                after_ms,
                back_ms,
                identity,
                window_ms,
                holds,
                rows,
            } => {
                self.now_ms += after_ms;
                let (offset, at_ms) = (self.log.len() as u64, self.now_ms - back_ms);
                let draft = Draft {
                    offset,
                    at_ms,
                    identity,
                    window_ms,
                    holds,
                    rows,
                };
                let (record, expected) = (draft.record(), self.model.decide(&draft));
                assert_eq!(self.decide(&record), expected, "{draft:?}");
                self.log.push((record, expected));
            }
            Step::Commit(behind) => {
                let committed = self.commit(behind);
                self.dedup().committed(committed).unwrap();
            }
            Step::Settle(behind) => {
                let committed = self.commit(behind);
                self.dedup().settle(committed);
                assert!(self.dedup().stats().buckets <= sluice_common::limits::MAX_SEALED_BUCKETS);
            }
            Step::Freeze => self.dedup().freeze(),
            Step::Crash => {
                self.dedup = None;
                self.reopen();
            }
            Step::Close => {
                self.dedup.take().unwrap().close().unwrap();
                self.reopen();
            }
        }
    }

    fn reopen(&mut self) {
        self.dedup = Some(open(self.dir.path()));
        let applied = self.dedup().applied().unwrap_or(0);
        assert!(applied <= self.committed, "disk is ahead of the commit");
        for (record, fates) in self.log.clone().into_iter().skip(applied as usize) {
            assert_eq!(
                self.decide(&record),
                fates,
                "offset {} after a restart",
                record.place.offset
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn every_decision_is_the_models_and_the_same_again_after_a_crash(steps in steps()) {
        let mut partition = Partition::new();
        steps.into_iter().for_each(|step| partition.run(step));
        partition.run(Step::Crash);
    }
}

/// Decides records that each hold one key, committing and settling after each.
fn fates_of(dedup: &mut Dedup, drafts: &[Draft]) -> Vec<Fate> {
    drafts
        .iter()
        .map(|draft| {
            let fates = dedup.decide(&draft.record()).unwrap();
            dedup.settle(draft.offset + 1);
            fates.of(0)
        })
        .collect()
}

#[test]
fn a_copy_is_dropped_up_to_one_millisecond_before_the_window_ends() {
    for (gap, fate) in [
        (WINDOW - 1, Fate::Drop),
        (WINDOW, Fate::Keep),
        (WINDOW + 1, Fate::Keep),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let drafts = [Draft::keyed(0, 5_000, &[1]), Draft::keyed(1, 5_000 + gap, &[1])];
        assert_eq!(
            fates_of(&mut open(dir.path()), &drafts),
            [Fate::Keep, fate],
            "after {gap} ms"
        );
        // The same where both are in the active bucket.
        let dir = tempfile::tempdir().unwrap();
        let slow = DedupOptions {
            rotate_ms: 10 * WINDOW,
            ..options(dir.path())
        };
        let fates = fates_of(&mut Dedup::open(slow).unwrap(), &drafts);
        assert_eq!(fates, [Fate::Keep, fate], "active, after {gap} ms");
        // The same with the first copy sealed and other buckets in between.
        let dir = tempfile::tempdir().unwrap();
        let mut drafts = vec![Draft::keyed(0, 5_000, &[1])];
        drafts.extend((1..5).map(|n| Draft::keyed(n, 5_000 + n * 200, &[n as u8 + 100])));
        drafts.push(Draft::keyed(5, 5_000 + gap.max(800), &[1]));
        assert_eq!(
            fates_of(&mut open(dir.path()), &drafts)[5],
            fate,
            "sealed, after {gap} ms"
        );
    }
}

#[test]
fn the_state_can_move_to_the_thread_that_owns_it() {
    let dir = tempfile::tempdir().unwrap();
    sealed_state(dir.path(), 3);
    let dedup = open(dir.path());
    assert_eq!(
        std::thread::spawn(move || dedup.applied()).join().unwrap(),
        Some(2)
    );
}

#[test]
fn a_repeat_within_one_record_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let fates = open(dir.path())
        .decide(&Draft::keyed(0, 1, &[1, 2, 1, 1]).record())
        .unwrap();
    assert_eq!((fates.kept(), fates.dropped()), (2, &[2, 3][..]));
}

#[test]
fn a_key_repeated_each_hour_stays_dropped_though_the_state_is_lost_and_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let day = DedupOptions {
        max_window_ms: 24 * HOUR,
        rotate_ms: 4 * HOUR,
        ..options(dir.path())
    };
    let drafts: Vec<Draft> = (0..72)
        .map(|n| Draft {
            window_ms: 24 * HOUR,
            ..Draft::keyed(n, 1_000 + n * HOUR, &[1, 50 + n as u8])
        })
        .collect();
    let mut dedup = Dedup::open(day.clone()).unwrap();
    let fates = fates_of(&mut dedup, &drafts);
    assert_eq!(fates.iter().filter(|fate| **fate == Fate::Keep).count(), 1);
    assert!(
        dedup.stats().keys_sealed < 40,
        "buckets past the window are gone: {:?}",
        dedup.stats()
    );
    drop(dedup);

    std::fs::remove_dir_all(dir.path()).unwrap();
    let mut rebuilt = Dedup::open(day).unwrap();
    assert_eq!(rebuilt.applied(), None);
    drafts[72 - 24..].iter().for_each(|draft| {
        rebuilt.absorb(&draft.record()).unwrap();
        rebuilt.settle(draft.offset + 1);
    });
    let again = Draft {
        window_ms: 24 * HOUR,
        ..Draft::keyed(72, 1_000 + 72 * HOUR, &[1, 50 + 71, 50])
    };
    let fates = rebuilt.decide(&again.record()).unwrap();
    assert_eq!(
        [0, 1, 2].map(|row| fates.of(row)),
        [Fate::Drop, Fate::Drop, Fate::Keep]
    );
}

#[test]
fn the_first_content_of_an_idempotency_key_stays_while_copies_follow() {
    let dir = tempfile::tempdir().unwrap();
    let prints = [(0, 7), (600, 8), (1_200, 7), (1_800, 8), (2_900, 8), (3_000, 7)];
    let drafts: Vec<Draft> = (0..)
        .zip(prints)
        .map(|(offset, (at, print))| Draft {
            identity: Identity::IdempotencyKey,
            rows: vec![(1, print)],
            ..Draft::keyed(offset, 10_000 + at, &[])
        })
        .collect();
    let expected = [
        Fate::Keep,
        Fate::Conflict,
        Fate::Drop,
        Fate::Conflict,
        Fate::Keep,
        Fate::Conflict,
    ];
    assert_eq!(fates_of(&mut open(dir.path()), &drafts), expected);
}

/// A state of a few sealed buckets: keys 0..n, one a record, 200 ms apart.
fn sealed_state(dir: &Path, records: u64) {
    let mut dedup = open(dir);
    let drafts: Vec<Draft> = (0..records)
        .map(|n| Draft::keyed(n, 10_000 + n * 200, &[n as u8]))
        .collect();
    fates_of(&mut dedup, &drafts);
    assert_eq!(dedup.sealed(), records - 1);
    dedup.close().unwrap();
}

fn names(dir: &Path, end: &str) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| path.to_str().unwrap().ends_with(end))
        .collect();
    paths.sort();
    paths
}

#[test]
fn merged_buckets_answer_with_the_latest_copy_and_leave_out_what_is_past_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let narrow = DedupOptions {
        active_keys: 3,
        ..options(dir.path())
    };
    let mut dedup = Dedup::open(narrow).unwrap();
    // Key 0 comes in every bucket, each other key once; 20 ms apart, 50 records to a window.
    for n in 0..120 {
        let record = Draft::keyed(n, 10_000 + n * 20, &[0, 1 + n as u8]).record();
        let fates = dedup.decide(&record).unwrap();
        assert_eq!(
            fates.dropped(),
            if n == 0 { &[][..] } else { &[0][..] },
            "record {n}"
        );
        dedup.settle(n + 1);
        assert!(dedup.stats().buckets <= sluice_common::limits::MAX_SEALED_BUCKETS);
    }
    // A window's 50 keys, key 0 once a bucket, and less than half a window that waits to expire.
    let stats = dedup.stats();
    assert!((50..50 + 6 + 25).contains(&stats.keys_sealed), "{stats:?}");
    let now = 10_000 + 120 * 20;
    let last: Vec<u8> = (0..=120).collect();
    let fates = dedup.decide(&Draft::keyed(120, now, &last).record()).unwrap();
    let expected: Vec<u16> = [0].into_iter().chain(72..=120).collect();
    assert_eq!(fates.dropped(), expected);
}

#[test]
fn buckets_past_the_window_are_unlinked() {
    let dir = tempfile::tempdir().unwrap();
    let mut dedup = open(dir.path());
    let drafts: Vec<Draft> = (0..40)
        .map(|n| Draft::keyed(n, 10_000 + n * 200, &[n as u8]))
        .collect();
    fates_of(&mut dedup, &drafts);
    let stats = dedup.stats();
    assert!(stats.buckets <= 6 && stats.keys_sealed <= 8, "{stats:?}");
    assert_eq!(
        (
            names(dir.path(), ".mdb").len(),
            names(dir.path(), ".filter").len()
        ),
        (stats.buckets, stats.buckets)
    );
    let on_disk: u64 = [".mdb", ".filter"]
        .iter()
        .flat_map(|end| names(dir.path(), end))
        .map(|path| path.metadata().unwrap().len())
        .sum();
    assert_eq!(stats.disk_bytes, on_disk);
}

#[test]
fn a_damaged_or_missing_filter_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    sealed_state(dir.path(), 5);
    let filters = names(dir.path(), ".filter");
    let mut bytes = std::fs::read(&filters[0]).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&filters[0], &bytes).unwrap();
    std::fs::remove_file(&filters[1]).unwrap();
    let mut dedup = open(dir.path());
    dedup.absorb(&Draft::keyed(4, 10_800, &[4]).record()).unwrap();
    let fates = dedup
        .decide(&Draft::keyed(5, 10_801, &[0, 1, 2, 3, 4]).record())
        .unwrap();
    assert_eq!(fates.dropped().len(), 5);
    assert_eq!(names(dir.path(), ".filter"), filters);
}

#[test]
fn orphans_go_and_strangers_files_stay() {
    let dir = tempfile::tempdir().unwrap();
    sealed_state(dir.path(), 3);
    let orphans = [
        "b-00000000000000ff.mdb",
        "b-00000000000000ff.filter",
        "b-0000000000000000.filter.new",
        "manifest.new",
    ];
    let strangers = ["notes.txt", "b-1.mdb", "b-00000000000000ff.bak"];
    orphans
        .iter()
        .chain(&strangers)
        .for_each(|name| std::fs::write(dir.path().join(name), b"x").unwrap());
    drop(open(dir.path()));
    assert!(orphans.iter().all(|name| !dir.path().join(name).exists()));
    assert!(strangers.iter().all(|name| dir.path().join(name).exists()));
}

#[test]
fn another_log_secret_or_process_is_refused_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    sealed_state(dir.path(), 3);
    let refused = |changed: DedupOptions| Dedup::open(changed).err().expect("refused");
    let error = refused(DedupOptions {
        log: LogId(1),
        ..options(dir.path())
    });
    assert!(
        matches!(error, DedupOpenError::OtherLog { found: LOG, .. }),
        "{error}"
    );
    let error = refused(DedupOptions {
        secret_check: 6,
        ..options(dir.path())
    });
    assert!(matches!(error, DedupOpenError::OtherSecret(_)), "{error}");
    let open_one = open(dir.path());
    assert!(matches!(refused(options(dir.path())), DedupOpenError::Locked(_)));
    assert_eq!(open_one.applied(), Some(2));
}

#[test]
fn a_damaged_manifest_or_bucket_refuses_to_open() {
    let dir = tempfile::tempdir().unwrap();
    sealed_state(dir.path(), 3);
    let manifest = dir.path().join("manifest");
    let good = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, &good[..good.len() - 1]).unwrap();
    assert!(matches!(
        Dedup::open(options(dir.path())),
        Err(DedupOpenError::Storage(_))
    ));
    std::fs::write(&manifest, &good).unwrap();
    std::fs::remove_file(&names(dir.path(), ".mdb")[0]).unwrap();
    assert!(matches!(
        Dedup::open(options(dir.path())),
        Err(DedupOpenError::Storage(_))
    ));
}

/// Damage to each kind of page, in each part of it: LMDB would end the process by a signal at some, and at others
/// take a new key for a repeat.
#[test]
fn a_bucket_that_differs_by_a_bit_or_a_cut_is_refused_before_anything_is_read_of_it() {
    let dir = tempfile::tempdir().unwrap();
    sealed_state(dir.path(), 3);
    let path = &names(dir.path(), ".mdb")[0];
    let good = std::fs::read(path).unwrap();
    let refuses = |bytes: &[u8], what: &str| {
        std::fs::write(path, bytes).unwrap();
        let error = Dedup::open(options(dir.path())).err().expect(what);
        assert!(error.to_string().contains("is damaged"), "{what}: {error}");
    };
    for at in (0..good.len()).step_by(97) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        refuses(&bytes, &format!("a bit of byte {at}"));
    }
    for length in (0..good.len()).step_by(1_000) {
        refuses(&good[..length], &format!("cut to {length} bytes"));
    }
    std::fs::write(path, &good).unwrap();
    assert_eq!(open(dir.path()).applied(), Some(2));
}

#[test]
fn records_out_of_order_or_of_another_log_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut dedup = open(dir.path());
    dedup.decide(&Draft::keyed(7, 1, &[1]).record()).unwrap();
    for offset in [6, 7, 9] {
        let error = dedup.decide(&Draft::keyed(offset, 1, &[1]).record()).unwrap_err();
        assert!(matches!(error, DedupError::Gap { expected: 8, .. }), "{error}");
    }
    let mut other = Dedup::open(DedupOptions {
        log: LogId(1),
        ..options(&dir.path().join("other"))
    })
    .unwrap();
    let error = other.decide(&Draft::keyed(0, 1, &[1]).record()).unwrap_err();
    assert!(matches!(error, DedupError::OtherLog { .. }), "{error}");
}

/// Fills memory until the state stalls; returns the record that did not fit.
fn stall(dedup: &mut Dedup, committed: Option<Offset>) -> Record {
    for offset in 0..100 {
        let keys: Vec<u8> = (0..5).map(|n| (offset * 5 + n) as u8).collect();
        let record = Draft::keyed(offset, 10_000, &keys).record();
        match dedup.decide(&record) {
            Ok(fates) => assert_eq!(fates.kept(), 5),
            Err(error) => {
                assert!(error.is_stall(), "{error}");
                assert_eq!(dedup.stats().frozen, MAX_FROZEN);
                return record;
            }
        }
        if let Some(committed) = committed {
            dedup.settle(committed.max(offset));
        }
    }
    panic!("it never stalled");
}

#[test]
fn an_uncommitted_backlog_stalls_and_goes_on_where_it_stood() {
    let dir = tempfile::tempdir().unwrap();
    let mut dedup = open(dir.path());
    let record = stall(&mut dedup, None);
    let stats = dedup.stats();
    assert_eq!((stats.buckets, stats.keys_active), (0, 20));
    assert!(dedup.decide(&record).is_err_and(|error| error.is_stall()));
    dedup.settle(record.place.offset);
    assert_eq!(dedup.decide(&record).unwrap().kept(), 5);
}

#[test]
fn the_byte_limit_stalls_and_says_so_instead_of_forgetting() {
    let dir = tempfile::tempdir().unwrap();
    let mut dedup = Dedup::open(DedupOptions {
        max_bytes: 100_000,
        ..options(dir.path())
    })
    .unwrap();
    let record = stall(&mut dedup, Some(0));
    let stats = dedup.stats();
    assert!(
        stats.over_limit && stats.buckets > 0 && stats.disk_bytes <= 100_000,
        "{stats:?}"
    );
    let error = dedup.decide(&record).unwrap_err().to_string();
    assert!(error.contains("dedup.max_bytes"), "{error}");
    drop(dedup);
    let mut raised = open(dir.path());
    let applied = raised.applied().unwrap();
    let keys: Vec<u8> = (0..5).map(|n| (applied * 5 + n) as u8).collect();
    assert_eq!(
        raised
            .decide(&Draft::keyed(applied, 10_000, &keys).record())
            .unwrap()
            .kept(),
        5
    );
    assert_eq!(
        raised
            .decide(&Draft::keyed(applied + 1, 10_000, &[0, 1, 2]).record())
            .unwrap()
            .dropped()
            .len(),
        3
    );
}

#[test]
fn a_seal_that_cannot_be_written_stays_in_memory_and_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut dedup = open(dir.path());
    // A directory where the bucket's file must go fails as a full disk does: with an error.
    let obstacle = dir.path().join("b-0000000000000000.mdb");
    std::fs::create_dir_all(obstacle.join("x")).unwrap();
    dedup.decide(&Draft::keyed(0, 10_000, &[1]).record()).unwrap();
    dedup.decide(&Draft::keyed(1, 10_500, &[2]).record()).unwrap();
    dedup.settle(1);
    let stats = dedup.stats();
    assert_eq!((stats.buckets, stats.frozen, dedup.applied()), (0, 1, None));
    assert!(stats.last_error.is_some());
    for _ in 0..100_000 {
        dedup.committed(1).unwrap();
        std::thread::yield_now();
    }
    dedup.settle(1);
    let stats = dedup.stats();
    assert_eq!((stats.buckets, stats.frozen, stats.last_error), (1, 0, None));
    assert_eq!(
        dedup
            .decide(&Draft::keyed(2, 10_600, &[1, 2]).record())
            .unwrap()
            .dropped()
            .len(),
        2
    );
}

#[test]
fn events_are_counted_by_tenant_over_the_live_buckets() {
    let dir = tempfile::tempdir().unwrap();
    let mut dedup = open(dir.path());
    let drafts: Vec<Draft> = (0..5)
        .map(|n| Draft::keyed(n, 10_000 + n * 200, &[1, 2]))
        .collect();
    fates_of(&mut dedup, &drafts);
    let counts = |dedup: &Dedup| {
        let tenants = dedup.events_by_tenant();
        ["even", "odd"].map(|tenant| tenants.get(&TenantId::new(tenant).unwrap()).copied())
    };
    assert_eq!(counts(&dedup), [Some(6), Some(4)]);
    dedup.close().unwrap();
    assert_eq!(
        counts(&open(dir.path())),
        [Some(4), Some(4)],
        "the active bucket is repeated from the log"
    );
}
