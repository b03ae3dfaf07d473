//! Topics that take events, stop, hang and lose answers, and crashes between any two steps, in virtual time.

use super::*;
use crate::progress::DeadRow;
use crate::progress::closing::{self, Aside};
use crate::pump::batching::{Batching, Settings};
use crate::pump::retries::dice;
use crate::runtime::{Instant, sleep};
use crate::sim::append::{decided, kept};
use crate::sim::time::Virtual;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use sluice_common::clock::ManualClock;
use sluice_common::fates::Fate;
use sluice_common::ids::source_o;
use sluice_common::limits::PUBLISH_DEADLINE;
use sluice_common::record::Holds;
use sluice_common::trace::TraceContext;
use sluice_common::wire::publish::{Content, PublishCall, PublishOrder, Published};
use sluice_common::wire::sink::SinkReply;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;
use tower::util::BoxCloneSyncService;

const RANGES: usize = 12;
/// Long after every pause between two attempts.
const IN_TIME: Duration = Duration::from_secs(3_600);

/// An event, by offset and row.
type Event = (u64, u32);

/// What the brokers make of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Takes,
    /// As many events, and then no more.
    Stops(u64),
    /// All, and the answer is lost.
    TakesUnheard,
    Hangs,
    Busy,
}

/// A topic, and a sink-writer before it.
struct Topic {
    dice: SmallRng,
    calm: bool,
    /// In the order in which they came.
    has: Vec<Event>,
}

impl Topic {
    fn mood(&mut self) -> Mood {
        if self.calm {
            return Mood::Takes;
        }
        match self.dice.random_range(0..10) {
            0..5 => Mood::Takes,
            5..7 => Mood::Stops(self.dice.random_range(0..9)),
            7 => Mood::TakesUnheard,
            8 => Mood::Hangs,
            _ => Mood::Busy,
        }
    }

    fn take(&mut self, call: &PublishCall, mood: Mood) -> SinkReply {
        let events: Vec<Event> = asked(&call.order.content, &call.records);
        let (all, skip) = (events.len() as u64, call.order.skip);
        let asked = skip.saturating_add(call.order.most).min(all);
        let until = match mood {
            Mood::Takes | Mood::TakesUnheard => asked,
            Mood::Stops(more) => (skip + more).min(asked),
            Mood::Hangs => skip,
            Mood::Busy => return SinkReply::Busy { retry_after_ms: 250 },
        };
        let taken = (skip..until).map(|at| events[usize::try_from(at).unwrap()]);
        self.has.extend(taken);
        if mood == Mood::TakesUnheard {
            return SinkReply::Failed {
                reason: "lost".into(),
            };
        }
        let failed = (until < asked).then(|| "down".into());
        SinkReply::Published(Published {
            done: until,
            sent: until - skip,
            too_large: 0,
            failed,
        })
    }
}

/// The rows that a call is about, in log order.
fn asked(content: &Content, records: &[RangeRecord]) -> Vec<Event> {
    let refused: BTreeSet<u64> = match content {
        Content::Events => BTreeSet::new(),
        Content::Letters(refused) => refused.iter().flat_map(|one| one.rows.clone()).collect(),
    };
    let goes = |one: &RangeRecord, row: u32| {
        let fate = one.fates.of(u16::try_from(row).unwrap());
        match (content, one.record.meta.holds) {
            (Content::Events, _) | (Content::Letters(_), Holds::RejectedCopies) => fate == Fate::Keep,
            (Content::Letters(_), Holds::Events) => {
                fate == Fate::Conflict || refused.contains(&source_o(one.record.place.offset, row))
            }
        }
    };
    let of = |one: &RangeRecord| -> Vec<Event> {
        let rows = (0..one.record.rows()).filter(|row| goes(one, *row));
        rows.map(|row| (one.record.place.offset, row)).collect()
    };
    records.iter().flat_map(of).collect()
}

fn events_of(records: &[RangeRecord]) -> Vec<Event> {
    asked(&Content::Events, records)
}

fn sink(topic: &Arc<Mutex<Topic>>) -> Seam<SinkRequest> {
    let topic = Arc::clone(topic);
    BoxCloneSyncService::new(tower::service_fn(move |request| {
        let topic = Arc::clone(&topic);
        async move {
            let SinkRequest::Publish(call) = request else {
                panic!("nothing else is asked")
            };
            let mood = topic.lock().mood();
            let reply = topic.lock().take(&call, mood);
            if mood == Mood::Hangs {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(reply)
        }
    }))
}

fn publisher(topic: &Arc<Mutex<Topic>>, dir: &Path, committed: u64) -> Publisher {
    let name = Name::new("a").unwrap();
    let plan = TopicPlan {
        topic: "clean".into(),
        key: Vec::new(),
    };
    let letters = TopicPlan {
        topic: "dead".into(),
        ..plan.clone()
    };
    let settings = Settings {
        datasets: Vec::new(),
        batching: Batching::default(),
        tables: Vec::new(),
        max_window_ms: 1_000,
        topics: [(name, plan)].into(),
        letters_topic: Some(letters),
    };
    let (clock, metrics): (SharedClock, _) = (Arc::new(ManualClock::at(0)), Metrics::detached());
    let retries = Retries::new(Arc::clone(&clock), metrics.clone(), dice());
    let outbox = Outbox::open(dir.into(), (LogId(1), 0), 1 << 30, committed).unwrap();
    Publisher::new(
        (sink(topic), Arc::new(ArcSwap::from_pointee(settings))),
        (LogId(1), 0),
        outbox,
        (metrics, clock, retries),
    )
}

/// Publishes ranges by a topic of many moods, through crashes before commits and after them.
async fn live(seed: u64) -> (Vec<Event>, Vec<Event>) {
    let mut dice = SmallRng::seed_from_u64(seed);
    let root = tempfile::tempdir().unwrap();
    let topic = Arc::new(Mutex::new(Topic {
        dice: SmallRng::seed_from_u64(!seed),
        calm: false,
        has: Vec::new(),
    }));
    let mut next = 0;
    let ranges: Vec<Vec<RangeRecord>> = (0..RANGES)
        .map(|_| {
            let records = dice.random_range(1..4);
            next += records;
            (next - records..next)
                .map(|offset| kept((offset, 0), dice.random_range(1..6)))
                .collect()
        })
        .collect();
    let (mut at, mut committed) = (0, 0);
    while at < ranges.len() {
        let publisher = publisher(&topic, root.path(), committed);
        let drain = tokio::spawn(publisher.clone().drain());
        while let Some(records) = ranges.get(at) {
            let b = committed + records.len() as u64;
            publisher.range(Range { a: committed, b }, records).await.unwrap();
            if dice.random_bool(0.2) {
                break;
            }
            (at, committed) = (at + 1, b);
            publisher.outbox.committed(committed);
            if dice.random_bool(0.2) {
                break;
            }
            // Of virtual time: how far the outbox is drained when the next range comes is drawn.
            sleep(Duration::from_millis(dice.random_range(0..2_000))).await;
        }
        // A crash.
        drain.abort();
        drain.await.ok();
    }
    let sent = ranges.iter().flat_map(|records| events_of(records)).collect();
    (sent, drained(&topic, root.path(), committed).await)
}

/// What a topic has once it takes everything.
async fn drained(topic: &Arc<Mutex<Topic>>, dir: &Path, committed: u64) -> Vec<Event> {
    topic.lock().calm = true;
    let publisher = publisher(topic, dir, committed);
    let drain = tokio::spawn(publisher.clone().drain());
    let begun = Instant::now();
    let outbox = &publisher.outbox;
    while !(outbox.events.units().is_empty() && outbox.letters.units().is_empty()) {
        assert!(begun.elapsed() < IN_TIME, "what waits goes out");
        // Of virtual time: a look a second.
        sleep(Duration::from_secs(1)).await;
    }
    drain.abort();
    topic.lock().has.clone()
}

/// A range, and the rows of it that ClickHouse refused; with its table set aside, they are its unit's.
struct Settled {
    range: Range,
    records: Vec<RangeRecord>,
    dead: Marks,
    aside: bool,
}

impl Settled {
    fn draw(dice: &mut SmallRng, a: u64) -> Self {
        let b = a + dice.random_range(1..4);
        let record = |dice: &mut SmallRng, offset| {
            if dice.random_bool(0.2) {
                let rows = dice.random_range(1..4);
                return decided((offset, 0), Holds::RejectedCopies, (0..rows).map(|_| Fate::Keep));
            }
            let fates: Vec<Fate> = (0..dice.random_range(1..9))
                .map(|_| match dice.random_range(0..10) {
                    0 => Fate::Conflict,
                    1..4 => Fate::Drop,
                    _ => Fate::Keep,
                })
                .collect();
            decided((offset, 0), Holds::Events, fates.into_iter())
        };
        let records: Vec<RangeRecord> = (a..b).map(|offset| record(dice, offset)).collect();
        let events = records
            .iter()
            .filter(|one| one.record.meta.holds == Holds::Events);
        let mut dead = events_of(&events.cloned().collect::<Vec<_>>());
        dead.retain(|_| dice.random_bool(0.2));
        Self {
            range: Range { a, b },
            dead: Marks {
                dead: dead.into_iter().map(dead_row).collect(),
                ..Marks::default()
            },
            records,
            aside: dice.random_bool(0.3),
        }
    }

    /// What the range tells of them itself.
    fn told(&self) -> Work {
        let dead = if self.aside {
            Marks::default()
        } else {
            self.dead.clone()
        };
        closing::of_range(&self.records, &dead, &Aside::new())
    }

    fn unit(&self) -> (UnitId, Vec<RangeRecord>) {
        let table = Name::new("a").unwrap();
        let events = self
            .records
            .iter()
            .filter(|one| one.record.meta.holds == Holds::Events);
        let records = closing::of_table(&events.cloned().collect::<Vec<_>>(), &table);
        (UnitId::new(self.range, table), records)
    }

    /// Its dead letters by provenance: those of the range, and those of the unit.
    fn letters(&self) -> [Vec<Event>; 2] {
        let dead = self.dead.dead.iter();
        let refused: Vec<Event> = dead.map(|one| (one.o >> 16, one.row)).collect();
        let mut of_range: Vec<Event> = asked(&Content::Letters(Vec::new()), &self.records);
        if self.aside {
            return [of_range, refused];
        }
        of_range.extend(refused);
        of_range.sort_unstable();
        [of_range, Vec::new()]
    }
}

fn dead_row((offset, row): Event) -> DeadRow {
    DeadRow {
        table: Name::new("a").unwrap(),
        part: "all".into(),
        row,
        o: source_o(offset, row),
        code: 469,
        message: format!("violated by {row}"),
    }
}

/// Settles ranges and units by a topic of many moods, through crashes before and after each step. The dead letters of
/// ranges, those of units, and what the topic has.
async fn settle(seed: u64) -> ([Vec<Event>; 2], Vec<Event>) {
    let mut dice = SmallRng::seed_from_u64(seed);
    let root = tempfile::tempdir().unwrap();
    let topic = Arc::new(Mutex::new(Topic {
        dice: SmallRng::seed_from_u64(!seed),
        calm: false,
        has: Vec::new(),
    }));
    let mut ranges: Vec<Settled> = Vec::new();
    for _ in 0..RANGES {
        let a = ranges.last().map_or(0, |one| one.range.b);
        ranges.push(Settled::draw(&mut dice, a));
    }
    let (mut at, mut committed, mut units) = (0, 0, Vec::new());
    while at < ranges.len() || !units.is_empty() {
        let publisher = publisher(&topic, root.path(), committed);
        let drain = tokio::spawn(publisher.clone().drain());
        loop {
            if let Some(unit) = units.first() {
                let one: &Settled = &ranges[*unit];
                let (id, records) = one.unit();
                publisher.letters_of_unit(&id, &records, &one.dead).await.unwrap();
                if dice.random_bool(0.2) {
                    break;
                }
                units.remove(0);
            }
            let Some(one) = ranges.get(at) else { break };
            publisher
                .letters(one.range, &one.records, &one.told())
                .await
                .unwrap();
            if dice.random_bool(0.2) {
                break;
            }
            units.extend(one.aside.then_some(at));
            (at, committed) = (at + 1, one.range.b);
            publisher.outbox.committed(committed);
            if dice.random_bool(0.2) {
                break;
            }
            // Of virtual time: how far the outbox is drained when the next range comes is drawn.
            sleep(Duration::from_millis(dice.random_range(0..2_000))).await;
        }
        // A crash.
        drain.abort();
        drain.await.ok();
    }
    let of = |which: usize| {
        ranges
            .iter()
            .flat_map(|one| one.letters()[which].clone())
            .collect()
    };
    let has = drained(&topic, root.path(), committed).await;
    ([of(0), of(1)], has)
}

#[test]
fn every_dead_letter_is_in_its_topic_whatever_the_brokers_do_and_however_often_it_is_killed() {
    let (mut copies, mut of_units) = (0, 0);
    for seed in 0..400 {
        let ([of_ranges, of_set_aside], has) = Virtual::new(|_| {}).run(settle(seed));
        let mut seen = BTreeSet::new();
        let first: Vec<Event> = has.iter().copied().filter(|one| seen.insert(*one)).collect();
        let late: BTreeSet<Event> = of_set_aside.iter().copied().collect();
        let in_order: Vec<Event> = first.iter().copied().filter(|one| !late.contains(one)).collect();
        assert_eq!(in_order, of_ranges, "seed {seed}");
        assert_eq!(
            first.len(),
            of_ranges.len() + late.len(),
            "of units too, and nothing else: seed {seed}"
        );
        assert!(late.is_subset(&seen), "seed {seed}");
        (copies, of_units) = (copies + has.len() - first.len(), of_units + late.len());
    }
    assert!(copies > 100 && of_units > 100, "{copies} {of_units}");
}

#[test]
fn dead_letters_without_a_topic_go_nowhere_and_those_that_wait_stay_until_it_is_given_again() {
    Virtual::new(|_| {}).run(async {
        let root = tempfile::tempdir().unwrap();
        let topic = Arc::new(Mutex::new(Topic {
            dice: SmallRng::seed_from_u64(7),
            calm: true,
            has: Vec::new(),
        }));
        let one = |a| Settled {
            range: Range { a, b: a + 1 },
            records: vec![decided((a, 0), Holds::Events, [Fate::Conflict].into_iter())],
            dead: Marks::default(),
            aside: false,
        };
        let publisher = publisher(&topic, root.path(), 0);
        // Behind something that waits: so it is set aside.
        let (first, second) = (one(0), one(1));
        let work = work::letters_of_range(&first.records, &first.told());
        let plan = publisher.settings.load().letters_topic.clone();
        let line = Name::new(DEAD_LETTERS).unwrap();
        let lot = Lot {
            line,
            plan: plan.clone().unwrap(),
            work,
        };
        publisher.letters.set_aside(first.range, &lot, "down").unwrap();
        let config = |letters_topic| {
            let now = publisher.settings.load();
            Arc::new(Settings {
                datasets: Vec::new(),
                batching: Batching::default(),
                tables: Vec::new(),
                max_window_ms: now.max_window_ms,
                topics: now.topics.clone(),
                letters_topic,
            })
        };
        publisher.settings.store(config(None));
        let drain = tokio::spawn(publisher.clone().drain());
        publisher
            .letters(second.range, &second.records, &second.told())
            .await
            .unwrap();
        publisher.outbox.committed(2);
        // Of virtual time: several attempts.
        sleep(Duration::from_secs(60)).await;
        assert!(topic.lock().has.is_empty() && publisher.outbox.letters.units().len() == 1);
        let (_, unit) = publisher.outbox.letters.units().remove(0);
        assert!(unit.reason.contains("`dead_letters.topic`"), "{}", unit.reason);
        publisher.settings.store(config(plan));
        sleep(Duration::from_secs(60)).await;
        drain.abort();
        assert_eq!(topic.lock().has, [(0, 0)]);
    });
}

#[test]
fn every_event_is_in_its_topic_in_log_order_whatever_the_brokers_do_and_however_often_it_is_killed() {
    let mut copies = 0;
    for seed in 0..400 {
        let (sent, has) = Virtual::new(|_| {}).run(live(seed));
        let mut seen = BTreeSet::new();
        let first: Vec<Event> = has.iter().copied().filter(|event| seen.insert(*event)).collect();
        // Of a call that breaks in its middle this topic takes a beginning: so nothing comes late either.
        assert_eq!(first, sent, "seed {seed}");
        copies += has.len() - first.len();
    }
    assert!(copies > 100, "the moods were met: {copies}");
}

#[test]
fn what_was_certainly_taken_is_sent_once_though_the_brokers_stop_all_the_time() {
    Virtual::new(|_| {}).run(async {
        let root = tempfile::tempdir().unwrap();
        let topic = Arc::new(Mutex::new(Topic {
            dice: SmallRng::seed_from_u64(7),
            calm: true,
            has: Vec::new(),
        }));
        let publisher = publisher(&topic, root.path(), 0);
        let records = [kept((0, 0), 5), kept((1, 0), 4)];
        let work = Work {
            records: records.to_vec(),
            ..Work::default()
        };
        let plan = publisher.settings.load().topics[&Name::new("a").unwrap()].clone();
        let mut order = publisher.events.order(Range { a: 0, b: 2 }, &plan, &work);
        let call = |skip| PublishCall {
            order: PublishOrder {
                skip,
                ..order.clone()
            },
            records: records.to_vec(),
            timeout: PUBLISH_DEADLINE,
            trace: TraceContext::default(),
        };
        let SinkReply::Published(some) = topic.lock().take(&call(0), Mood::Stops(6)) else {
            panic!("published")
        };
        assert_eq!(publisher.events.note(&mut order, 9, some), Err("down".into()));
        publisher.events.send(&mut order, &work).await.unwrap();
        assert_eq!(topic.lock().has, events_of(&records));
    });
}

#[test]
fn dead_letters_of_a_unit_that_wait_for_their_topic_go_out_though_no_range_follows() {
    Virtual::new(|_| {}).run(async {
        let root = tempfile::tempdir().unwrap();
        let topic = Arc::new(Mutex::new(Topic {
            dice: SmallRng::seed_from_u64(7),
            calm: true,
            has: Vec::new(),
        }));
        let publisher = publisher(&topic, root.path(), 1);
        let one = Settled {
            range: Range { a: 0, b: 1 },
            records: vec![kept((0, 0), 3)],
            dead: Marks {
                dead: vec![dead_row((0, 2))],
                ..Marks::default()
            },
            aside: true,
        };
        let drain = tokio::spawn(publisher.clone().drain());
        // Of virtual time: the workers have looked around, and found nothing.
        sleep(Duration::from_secs(1)).await;
        let (id, records) = one.unit();
        let lot = Lot {
            line: id.table.clone(),
            plan: publisher.settings.load().letters_topic.clone().unwrap(),
            work: work::letters_of_unit(&records, &one.dead),
        };
        publisher.letters.set_aside(one.range, &lot, "down").unwrap();
        sleep(Duration::from_secs(60)).await;
        drain.abort();
        assert_eq!(topic.lock().has, [(0, 2)]);
        assert!(publisher.outbox.letters.units().is_empty());
    });
}
