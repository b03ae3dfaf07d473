//! Fault 2 of the list: at each failpoint but a replay's and a topic's, at its first, middle and last hit, a SIGKILL, an error and a delay.
//! After each the process is back within 10 s, drains, and the oracle finds every promise kept.
//!
//! | scenario | points | how they are reached |
//! |---|---|---|
//! | [`way`] | all on the way of an event that meets no trouble | load, small segments, buckets sealed twice a second |
//! | [`aside`] | rows refused and set aside, dead letters tried again | a constraint, a table that is away, `dlq retry` |
//! | [`bump`] | a token given up for another | rows that ClickHouse has lost though it knows their token |
//! | [`start`] | a first start | a data directory that is empty |
//!
//! `SLUICE_SWEEP=full` runs every case, those of [`way`] in both shapes, about an hour; else a choice by seed runs, each point at least once in three processes.
//! `SLUICE_SEED` replays a choice. How often a point is hit is counted in a run without faults before.

mod absent;
mod aside;
mod bump;
mod start;
mod trial;
mod way;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use sluice_common::failpoint::Point;
use sluice_tests::failpoints::{Action, Case, is_full};
use sluice_tests::{Part, Shape};
use tokio::sync::Semaphore;

/// Deployments that run at once.
static TURNS: Semaphore = Semaphore::const_new(2);
/// Where a sync has just failed.
const SYNCS: [Point; 3] = [Point::LogSynced, Point::ProgressWritten, Point::ManifestRenamed];
/// How long a delay lasts, in ms: longer than a range grows, shorter than any deadline.
const DELAY_MS: std::ops::Range<u64> = 300..900;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_at_a_point_of_the_way_loses_and_doubles_nothing() {
    way::sweep(Shape::ThreeProcesses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_at_a_point_of_the_way_in_one_process_loses_and_doubles_nothing() {
    way::sweep(Shape::AllInOne).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_while_rows_are_refused_and_set_aside_each_has_one_outcome() {
    aside::sweep().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_while_a_token_is_given_up_its_rows_are_stored_once() {
    bump::sweep().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_at_a_first_start_the_next_one_works() {
    start::sweep().await;
}

/// Where a point is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    Way,
    Aside,
    Bump,
    /// In `tests/tests/replay/kills.rs`, at each of its steps.
    Replay,
    /// In `tests/tests/kafka/kills.rs`, beside a real broker.
    Publish,
    /// In `tests/tests/kafka/source.rs`, the same.
    Source,
    /// In `tests/tests/kafka/producer.rs`, the same.
    Producer,
}

fn scenario(point: Point) -> Scenario {
    match point {
        Point::EdgeForward
        | Point::EdgeAnswered
        | Point::LogWrite
        | Point::LogWritten
        | Point::LogSynced
        | Point::LogAnswered
        | Point::SpareWrite
        | Point::SegmentRename
        | Point::SegmentRenamed
        | Point::SegmentUnlink
        | Point::SegmentUnlinked
        | Point::SealWrite
        | Point::SealWritten
        | Point::ManifestRename
        | Point::ManifestRenamed
        | Point::BucketUnlink
        | Point::BucketUnlinked
        | Point::ProgressWritten
        | Point::IntentPersist
        | Point::IntentPersisted
        | Point::CommitPersist
        | Point::CommitPersisted
        | Point::CommitTold
        | Point::CallSend
        | Point::CallAnswered
        | Point::InsertSend
        | Point::InsertAnswered
        | Point::VerifyAsk
        | Point::VerifyAnswered => Scenario::Way,
        Point::MarksPersist
        | Point::MarksPersisted
        | Point::UnitWrite
        | Point::UnitWritten
        | Point::UnitMarks
        | Point::UnitMarked
        | Point::UnitRemove
        | Point::UnitRemoved
        | Point::LetterStored
        | Point::LetterBooked
        | Point::LetterDeleted => Scenario::Aside,
        Point::BumpPersist | Point::BumpPersisted => Scenario::Bump,
        Point::ReplayPersist | Point::ReplayPersisted | Point::ReplayAct | Point::ReplayActed => {
            Scenario::Replay
        }
        Point::PublishSend | Point::PublishAnswered => Scenario::Publish,
        Point::SourceRead | Point::SourceDurable => Scenario::Source,
        Point::ProduceSend | Point::ProduceSent | Point::BesideSend | Point::BesideSent => Scenario::Producer,
    }
}

/// The process of three that a point is in.
fn part(point: Point) -> Part {
    match point {
        Point::EdgeForward | Point::EdgeAnswered => Part::Edge,
        Point::InsertSend
        | Point::InsertAnswered
        | Point::VerifyAsk
        | Point::VerifyAnswered
        | Point::LetterStored
        | Point::LetterBooked
        | Point::LetterDeleted => Part::SinkWriter,
        Point::LogWrite
        | Point::LogWritten
        | Point::LogSynced
        | Point::LogAnswered
        | Point::ProduceSend
        | Point::ProduceSent
        | Point::BesideSend
        | Point::BesideSent
        | Point::SpareWrite
        | Point::SegmentRename
        | Point::SegmentRenamed
        | Point::SegmentUnlink
        | Point::SegmentUnlinked
        | Point::SealWrite
        | Point::SealWritten
        | Point::ManifestRename
        | Point::ManifestRenamed
        | Point::BucketUnlink
        | Point::BucketUnlinked
        | Point::ProgressWritten
        | Point::IntentPersist
        | Point::IntentPersisted
        | Point::MarksPersist
        | Point::MarksPersisted
        | Point::BumpPersist
        | Point::BumpPersisted
        | Point::CommitPersist
        | Point::CommitPersisted
        | Point::CommitTold
        | Point::CallSend
        | Point::CallAnswered
        | Point::UnitWrite
        | Point::UnitWritten
        | Point::UnitMarks
        | Point::UnitMarked
        | Point::UnitRemove
        | Point::UnitRemoved
        | Point::PublishSend
        | Point::PublishAnswered
        | Point::SourceRead
        | Point::SourceDurable
        | Point::ReplayPersist
        | Point::ReplayPersisted
        | Point::ReplayAct
        | Point::ReplayActed => Part::Normalizer,
    }
}

/// Whether an error there ends the process, because nobody knows what is on disk.
fn ends(point: Point) -> bool {
    match point {
        Point::LogSynced
        | Point::SegmentRenamed
        | Point::SegmentUnlinked
        | Point::ManifestRenamed
        | Point::ProgressWritten
        | Point::IntentPersist
        | Point::IntentPersisted
        | Point::MarksPersist
        | Point::MarksPersisted
        | Point::BumpPersist
        | Point::BumpPersisted
        | Point::CommitPersist
        | Point::CommitPersisted
        | Point::CommitTold
        | Point::UnitWritten
        | Point::UnitMarked
        | Point::UnitRemove
        | Point::UnitRemoved => true,
        Point::EdgeForward
        | Point::EdgeAnswered
        | Point::LogWrite
        | Point::LogWritten
        | Point::LogAnswered
        | Point::ProduceSend
        | Point::ProduceSent
        | Point::BesideSend
        | Point::BesideSent
        | Point::SpareWrite
        | Point::SegmentRename
        | Point::SegmentUnlink
        | Point::SealWrite
        | Point::SealWritten
        | Point::ManifestRename
        | Point::BucketUnlink
        | Point::BucketUnlinked
        | Point::CallSend
        | Point::CallAnswered
        | Point::InsertSend
        | Point::InsertAnswered
        | Point::VerifyAsk
        | Point::VerifyAnswered
        | Point::UnitWrite
        | Point::UnitMarks
        | Point::LetterStored
        | Point::LetterBooked
        | Point::LetterDeleted
        | Point::PublishSend
        | Point::PublishAnswered
        | Point::SourceRead
        | Point::SourceDurable
        | Point::ReplayPersist
        | Point::ReplayPersisted
        | Point::ReplayAct
        | Point::ReplayActed => false,
    }
}

/// Which of its hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hit {
    First,
    Middle,
    Last,
}

/// A case before it is known how often its point is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wish {
    point: Point,
    action: Action,
    hit: Hit,
}

impl Wish {
    /// The case, where the point is hit `hits` times.
    fn of(self, hits: u64) -> Case {
        let nth = match self.hit {
            Hit::First => 1,
            Hit::Middle => hits.div_ceil(2),
            Hit::Last => hits,
        };
        Case {
            point: self.point,
            action: self.action,
            nth: nth.max(1),
        }
    }
}

fn points_of(wanted: Scenario) -> Vec<Point> {
    let points = Point::ALL.iter().copied();
    points.filter(|point| scenario(*point) == wanted).collect()
}

/// All cases of some points, or one of each that the seed chooses.
fn wishes(points: &[Point], rng: &mut StdRng) -> Vec<Wish> {
    let mut wishes = Vec::new();
    for point in points {
        let delay = Action::Delay(rng.random_range(DELAY_MS));
        let all = [Action::Kill, Action::Error, delay]
            .into_iter()
            .flat_map(|action| {
                let hits = [Hit::First, Hit::Middle, Hit::Last].into_iter();
                hits.map(move |hit| Wish {
                    point: *point,
                    action,
                    hit,
                })
            });
        let all: Vec<Wish> = all.collect();
        if is_full() {
            wishes.extend(all);
        } else {
            // That a sync which failed ends a real process is seen in each run.
            let sync = Wish {
                point: *point,
                action: Action::Error,
                hit: Hit::First,
            };
            let is_sync = SYNCS.contains(point);
            wishes.extend(is_sync.then_some(sync));
            wishes.extend(all.choose(rng).filter(|chosen| !is_sync || **chosen != sync));
        }
    }
    wishes
}

/// The same of points that are hit once: each case once.
fn cases_of_one_hit(points: &[Point], rng: &mut StdRng) -> Vec<Case> {
    let mut cases: Vec<Case> = wishes(points, rng).into_iter().map(|wish| wish.of(1)).collect();
    cases.dedup();
    cases
}
