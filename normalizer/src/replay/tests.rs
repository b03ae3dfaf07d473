//! Deciding as dedup did, and the state file. The whole of it on a real ClickHouse: `tests/tests/replay/`.

use super::Source;
use super::decide::Decider;
use super::file::{self, Kept, Leg, Promotion, State};
use super::sink::{Part, Sink};
use crate::dedup::{Dedup, DedupOptions, Workers};
use crate::framed::frame;
use crate::log::embedded::Whole;
use crate::log::{EmbeddedLog, LogOptions};
use crate::parked::shelf::Shelf;
use crate::sim::append::{Clients, TABLES, WINDOW_MS, append};
use crate::slots::{HEAD_BYTES, Slots};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use sluice_common::clock::ManualClock;
use sluice_common::disk::{Dir, Disk, DiskOp, DiskWatch};
use sluice_common::fates::{Fate, Fates};
use sluice_common::ids::{LogId, Name, Offset};
use sluice_common::record::Record;
use sluice_common::replay::{
    Decisions, KeptRows, Phase, ReplayId, ReplayPlan, ReplayTold, SinkAsk, SinkTold, Span,
};
use sluice_common::servers::ServerId;
use sluice_common::shutdown::Stop;
use sluice_common::wire::sink::{Range, SinkReply, SinkRequest};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tower::util::BoxCloneSyncService;

const NOW: u64 = 1_795_231_830_000;

fn state(id: u32, phase: Phase) -> State {
    let plan = ReplayPlan {
        id: ReplayId(id),
        shadow_tables: Vec::new(),
        partitions: Vec::new(),
        spans: vec![Span {
            partition: 0,
            from: 3,
            to: 9,
        }],
        tenant: None,
        dataset: None,
        decisions: Some(Decisions::Anew),
        events_per_second: 5,
        notes: Vec::new(),
    };
    State {
        told: ReplayTold {
            id: ReplayId(id),
            who: "a@b".into(),
            begun_ms: NOW + u64::from(id),
            changed_ms: NOW,
            phase,
            reason: None,
            plan,
            read: Vec::new(),
            next: [(0, 5)].into(),
            written: 6,
            left_out: 7,
            comparing: false,
            diff: None,
            steps: vec!["one".into()],
        },
        legs: vec![Leg {
            partition: 0,
            next: 5,
            end: 9,
            decisions: TABLES
                .iter()
                .map(|table| (Name::new(table).unwrap(), Decisions::All))
                .collect(),
            window_ms: WINDOW_MS,
            needs: 2,
            empty: BTreeSet::new(),
        }],
        server: ServerId {
            name: "a:8123".into(),
            uuid: Some("u".into()),
        },
        intent: None,
        promotion: Some(Promotion {
            row_wise: true,
            told: false,
            parts: vec![(
                Name::new("a").unwrap(),
                Part {
                    id: "202611".into(),
                    live: 4,
                    shadow: 5,
                },
            )],
            saved: 1,
            swapped: 0,
        }),
    }
}

#[test]
fn a_state_is_found_as_it_was_written_and_leftovers_go() {
    let root = tempfile::tempdir().unwrap();
    let dir = Dir::from(root.path().join("replay").as_path());
    assert_eq!(file::list(&dir).unwrap(), []);
    let (old, new) = (state(1, Phase::Promoting), state(2, Phase::Paused));
    keep(&dir, &old);
    let mut kept = Kept::default();
    kept.write(&dir, &state(2, Phase::Running)).unwrap();
    let inode = || std::fs::metadata(dir.join("r00000002.state")).unwrap().ino();
    let first = inode();
    kept.write(&dir, &new).unwrap();
    assert_eq!(inode(), first, "in place");
    std::fs::write(dir.join("r00000002.state.new"), "half").unwrap();
    std::fs::create_dir(dir.join("r00000002.dedup")).unwrap();
    assert_eq!(file::list(&dir).unwrap(), [new, old.clone()]);
    let left: BTreeSet<_> = std::fs::read_dir(&dir.path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
    // One that does not check out is left alone, and hides no other.
    let path = dir.join("r00000002.state");
    let slots = std::fs::read(&path).unwrap();
    let half = slots.len() / 2;
    // One slot is torn: the state before it counts. Both are: nothing does.
    for (broken, expected) in [
        (vec![0], vec![state(2, Phase::Running), old.clone()]),
        (vec![0, 1], vec![old.clone()]),
    ] {
        let mut bytes = slots.clone();
        broken.iter().for_each(|slot| bytes[slot * half + 40] ^= 1);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(file::list(&dir).unwrap(), expected);
    }
    assert!(path.exists());
}

#[test]
fn the_bytes_of_a_state_are_frozen() {
    let root = tempfile::tempdir().unwrap();
    let dir = Dir::from(root.path());
    keep(&dir, &state(7, Phase::Done));
    let bytes = std::fs::read(dir.join("r00000007.state")).unwrap();
    let half = bytes.len() / 2;
    assert!(
        bytes[..half].iter().all(|byte| *byte == 0),
        "the first write is the second slot's"
    );
    let text = &bytes[half + HEAD_BYTES..];
    let text = &text[..text.iter().rposition(|byte| *byte != 0).unwrap() + 1];
    assert_eq!(&bytes[half..half + 4], b"SLR2");
    let told =
        "a later release must read what is here: a new field needs a default, a new meaning a new version";
    assert_eq!(
        crc32c::crc32c(&bytes[half..]),
        GOLDEN,
        "{told}\n{}",
        String::from_utf8_lossy(text)
    );
}

const GOLDEN: u32 = 3_035_482_968;

/// What was written before logs had several partitions.
const OF_ONE_PARTITION: &str = r#"{"told":{"id":"r00000007","who":"a@b","begun_ms":1795231830007,"changed_ms":1795231830000,"phase":"done","reason":null,"plan":{"id":"r00000007","shadow_tables":[],"partitions":[],"from":3,"to":9,"tenant":null,"dataset":null,"decisions":"anew","events_per_second":5,"notes":[]},"read":[],"next":5,"written":6,"left_out":7,"comparing":false,"diff":null,"steps":["one"]},"end":9,"decisions":DECISIONS,"window_ms":WINDOW,"needs":2,"empty":[],"server":{"name":"a:8123","uuid":"u"},"intent":null,"promotion":{"row_wise":true,"parts":[["a",{"id":"202611","live":4,"shadow":5}]],"saved":1,"swapped":0}}"#;

#[test]
fn states_of_earlier_layouts_are_read() {
    let root = tempfile::tempdir().unwrap();
    let dir = Dir::from(root.path());
    let expected = state(7, Phase::Done);
    let decisions = serde_json::to_string(&expected.legs[0].decisions).unwrap();
    let text = OF_ONE_PARTITION.replace("DECISIONS", &decisions);
    let text = text.replace("WINDOW", &WINDOW_MS.to_string());
    let path = dir.join("r00000007.state");
    std::fs::write(&path, frame(*b"SLRP", 1, text.as_bytes())).unwrap();
    assert_eq!(file::list(&dir).unwrap(), std::slice::from_ref(&expected));
    let format = crate::slots::Format {
        magic: *b"SLR2",
        versions: 1..=1,
    };
    let fresh = dir.join("r00000007.state.new");
    let (paths, format) = ((&*fresh, &*path), (format, 64 << 10, 0o600));
    Slots::create(&dir.disk, paths, format, (text.as_bytes(), || Ok(()))).unwrap();
    assert_eq!(file::list(&dir).unwrap(), [expected]);
}

#[test]
fn a_state_that_outgrows_its_slot_has_a_larger_file_and_a_failed_sync_makes_a_fresh_one() {
    let root = tempfile::tempdir().unwrap();
    let fails = Arc::new(FailingSync::default());
    let dir = Dir {
        disk: Disk::watched(Arc::clone(&fails) as Arc<dyn DiskWatch>),
        path: root.path().to_owned(),
    };
    let path = dir.join("r00000003.state");
    let mut kept = Kept::default();
    kept.write(&dir, &state(3, Phase::Running)).unwrap();
    let small = std::fs::metadata(&path).unwrap();
    let mut large = state(3, Phase::Running);
    large.told.steps = vec!["x".repeat(1000); 100];
    kept.write(&dir, &large).unwrap();
    let grown = std::fs::metadata(&path).unwrap();
    assert!(
        grown.len() > small.len() && grown.len() > 200_000,
        "{}",
        grown.len()
    );
    fails.0.store(true, Ordering::Relaxed);
    assert!(kept.write(&dir, &state(3, Phase::Paused)).is_err());
    fails.0.store(false, Ordering::Relaxed);
    kept.write(&dir, &state(3, Phase::Failed)).unwrap();
    assert_ne!(std::fs::metadata(&path).unwrap().ino(), grown.ino());
    assert_eq!(file::list(&dir).unwrap(), [state(3, Phase::Failed)]);
}

/// Refuses syncs while it is told to.
#[derive(Default)]
struct FailingSync(AtomicBool);

impl DiskWatch for FailingSync {
    fn before(&self, op: &DiskOp<'_>) -> std::io::Result<()> {
        if matches!(op, DiskOp::Sync { .. }) && self.0.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("as told"));
        }
        Ok(())
    }
}

fn keep(dir: &Dir, state: &State) {
    Kept::default().write(dir, state).unwrap();
}

#[test]
fn of_replays_that_ended_the_newest_hundred_are_kept_and_every_other() {
    let root = tempfile::tempdir().unwrap();
    let dir = Dir::from(root.path());
    keep(&dir, &state(0, Phase::Paused));
    (1..=103).for_each(|id| keep(&dir, &state(id, Phase::Discarded)));
    let listed = file::list(&dir).unwrap();
    let ids: BTreeSet<u32> = listed.iter().map(|state| state.told.id.0).collect();
    assert_eq!(ids, (4..=103).chain([0]).collect());
    assert_eq!(file::list(&dir).unwrap().len(), 101);
}

fn options(dir: Dir, log: LogId) -> DedupOptions {
    DedupOptions {
        dir,
        log,
        secret_check: 1,
        memory_bytes: 1 << 20,
        max_bytes: 1 << 30,
        active_keys: 256,
        max_window_ms: WINDOW_MS,
        rotate_ms: WINDOW_MS / 6,
        workers: Workers::Caller,
    }
}

fn log(dir: &Path, clock: &ManualClock) -> Arc<EmbeddedLog> {
    let options = LogOptions {
        dir: dir.join("log"),
        max_bytes: 64 << 20,
        retain_ms: u64::MAX,
        reserve_bytes: Some(0),
        segment_bytes: 1 << 20,
        tail_cache_bytes: 1 << 20,
        queue_bytes: 8 << 20,
        known_durable: 0,
    };
    EmbeddedLog::open(options, Arc::new(clock.clone())).unwrap()
}

/// What dedup decides as records come: its fates of each.
fn decided(dir: &Path, log: &EmbeddedLog) -> BTreeMap<Offset, (Record, Fates)> {
    let mut dedup = Dedup::open(options(Dir::from(dir.join("dedup").as_path()), log.id())).unwrap();
    let mut all = BTreeMap::new();
    while let Some(record) = log.read(all.len() as u64, 1).unwrap().into_iter().next() {
        let fates = dedup.decide(&record).unwrap();
        if record.place.offset.is_multiple_of(50) {
            dedup.committed(record.place.offset + 1).unwrap();
        }
        all.insert(record.place.offset, (record, fates));
    }
    all
}

/// A sink-writer that tells which rows live tables have: those that were kept.
fn sink(log: LogId, live: BTreeMap<Offset, (Record, Fates)>) -> Sink {
    let seam = BoxCloneSyncService::new(tower::service_fn(move |request| {
        let SinkRequest::Replay(call) = request else {
            panic!("{request:?}")
        };
        let told = match &call.ask {
            SinkAsk::Kept { table, from, to } => {
                let span = live
                    .range(*from..*to)
                    .filter(|(_, (record, _))| record.meta.table == *table);
                SinkTold::Kept(
                    span.filter_map(|(offset, (record, fates))| rows(*offset, record, fates))
                        .collect(),
                )
            }
            SinkAsk::Letters { .. } => SinkTold::Kept(Vec::new()),
            SinkAsk::Facts { .. }
            | SinkAsk::Prepare { .. }
            | SinkAsk::Compare { .. }
            | SinkAsk::Covers { .. }
            | SinkAsk::Fill { .. }
            | SinkAsk::Save { .. }
            | SinkAsk::Swap { .. }
            | SinkAsk::Fence { .. }
            | SinkAsk::Shadows { .. }
            | SinkAsk::Drop { .. } => panic!("{:?}", call.ask),
        };
        async move { Ok::<_, Infallible>(SinkReply::Replay(told)) }
    }));
    Sink {
        id: ReplayId(1),
        log,
        partition: 0,
        server: None,
        seam,
    }
}

fn rows(offset: Offset, record: &Record, fates: &Fates) -> Option<KeptRows> {
    let all = (0..u16::try_from(record.rows()).unwrap()).filter(|row| fates.of(*row) == Fate::Keep);
    let rows: Vec<u16> = all.collect();
    let last = *rows.last()?;
    let dense = rows.len() == usize::from(last) + 1;
    Some(KeptRows {
        offset,
        last,
        rows: if dense { Vec::new() } else { rows },
    })
}

#[test]
fn by_provenance_and_anew_from_a_window_earlier_the_rows_that_dedup_kept_are_found_and_no_others() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    for seed in 0..4 {
        let root = tempfile::tempdir().unwrap();
        let clock = ManualClock::at(NOW);
        let log = log(root.path(), &clock);
        let (mut random, mut clients) = (SmallRng::seed_from_u64(seed), Clients::default());
        for _ in 0..150 {
            clock.advance(random.random_range(0..WINDOW_MS / 40));
            let batch: Vec<_> = clients
                .batch(&mut random)
                .iter()
                .map(|draft| draft.content(WINDOW_MS))
                .collect();
            append(&log, batch).unwrap();
        }
        let all = decided(root.path(), &log);
        let dropped: usize = all.values().map(|(_, fates)| fates.dropped().len()).sum();
        assert!(dropped > 25, "{dropped}");
        let end = all.len() as u64;
        for how in [Decisions::Provenance, Decisions::Anew] {
            let mut leg = state(1, Phase::Running).legs.remove(0);
            leg.decisions.values_mut().for_each(|one| *one = how);
            if how == Decisions::Anew {
                // Nothing is there that could tell.
                leg.empty = leg.decisions.keys().cloned().collect();
            }
            let id = log.id();
            let dir = Dir::from(root.path().join("replay").as_path());
            let dedup_at = Arc::new(move |dir| options(dir, id));
            let from = random.random_range(end / 2..end - 20);
            let shelf = Shelf::open(
                Dir::from(root.path().join("parked").as_path()),
                (id, 0),
                1 << 20,
                0,
            )
            .unwrap();
            let source = Source {
                log: Arc::new(Whole(Arc::clone(&log))),
                sink: sink(id, all.clone()),
                shelf,
            };
            let mut decider = Decider::new(source, &leg, (&dir, dedup_at), Stop::new());
            let mut a = from;
            while a < end {
                let b = (a + random.random_range(1..20)).min(end);
                let records: Vec<Record> = all.range(a..b).map(|(_, (record, _))| record.clone()).collect();
                let decided = runtime.block_on(decider.decide(Range { a, b }, &records));
                for one in decided.unwrap() {
                    let (_, fates) = &all[&one.record.place.offset];
                    let kept = |fates: &Fates, row| fates.of(row) == Fate::Keep;
                    for row in 0..u16::try_from(one.record.rows()).unwrap() {
                        assert_eq!(
                            kept(&one.fates, row),
                            kept(fates, row),
                            "seed {seed}, {how:?} from {from}: row {row} of record {}",
                            one.record.place.offset
                        );
                    }
                }
                a = b;
            }
            decider.close();
            assert!(!dir.join("r00000001.dedup").exists());
        }
    }
}
