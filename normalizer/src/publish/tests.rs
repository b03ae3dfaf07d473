//! Topics that take events, stop, hang and lose answers, and crashes between any two steps, in virtual time.

use super::*;
use crate::pump::batching::{Batching, Settings};
use crate::pump::retries::dice;
use crate::sim::append::kept;
use crate::sim::time::Virtual;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use sluice_common::clock::ManualClock;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::Path;
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
        let events: Vec<Event> = events_of(&call.records);
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

fn events_of(records: &[RangeRecord]) -> Vec<Event> {
    let of = |one: &RangeRecord| {
        let offset = one.record.place.offset;
        (0..one.record.rows()).map(move |row| (offset, row))
    };
    records.iter().flat_map(of).collect()
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
    let settings = Settings {
        datasets: Vec::new(),
        batching: Batching::default(),
        tables: Vec::new(),
        max_window_ms: 1_000,
        topics: [(name, plan)].into(),
    };
    let (clock, metrics): (SharedClock, _) = (Arc::new(ManualClock::at(0)), Metrics::detached());
    let retries = Retries::new(Arc::clone(&clock), metrics.clone(), dice());
    let outbox = Shelf::open(dir.into(), (LogId(1), 0), 1 << 30, committed).unwrap();
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
    topic.lock().calm = true;
    let publisher = publisher(&topic, root.path(), committed);
    let drain = tokio::spawn(publisher.clone().drain());
    let begun = Instant::now();
    while !publisher.outbox.units().is_empty() {
        assert!(begun.elapsed() < IN_TIME, "what waits goes out");
        // Of virtual time: a look a second.
        sleep(Duration::from_secs(1)).await;
    }
    drain.abort();
    let sent = ranges.iter().flat_map(|records| events_of(records)).collect();
    let has = topic.lock().has.clone();
    (sent, has)
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
        let mut order = publisher.order(
            Range { a: 0, b: 2 },
            &publisher.settings.load().topics[&Name::new("a").unwrap()],
        );
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
        assert_eq!(publisher.note(&mut order, &records, some), Err("down".into()));
        publisher.send(&mut order, &records).await.unwrap();
        assert_eq!(topic.lock().has, events_of(&records));
    });
}
