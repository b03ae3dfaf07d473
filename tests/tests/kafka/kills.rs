//! Processes and broker killed under the oracle's load: every stored event is in its topic, and a copy is one of a range
//! that was repeated.

use super::{Stand, plain};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use sluice_common::failpoint::Point;
use sluice_tests::failpoints::{Action, Case, Failpoints, is_full};
use sluice_tests::kafka::Kafka;
use sluice_tests::oracle::load::Style;
use sluice_tests::oracle::{self, Oracle};
use sluice_tests::{Deployment, Part, Shape, eventually};
use std::time::Duration;

/// On the way of a share to its topic.
pub(super) const POINTS: [Point; 8] = [
    Point::PublishSend,
    Point::PublishAnswered,
    Point::CommitPersist,
    Point::CommitPersisted,
    Point::UnitWrite,
    Point::UnitWritten,
    Point::UnitRemove,
    Point::UnitRemoved,
];
const FIRED: Duration = Duration::from_secs(60);

/// Two datasets, and no more than Kafka's own consumer reads in seconds.
fn style() -> Style {
    Style {
        writers: 2,
        max_events: 200,
        pause_ms: 20..100,
        datasets: 2,
    }
}

async fn checked(stand: &Stand, oracle: &mut Oracle) {
    let verdict = oracle.drained_verdict(&stand.deployment).await;
    verdict.assert_clean();
    stand.drained().await;
    stand.hold_both().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_and_every_process_killed_under_load_leave_no_stored_event_out_of_its_topic() {
    let seed = oracle::seed("kafka kills");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut stand = Stand::start(Shape::ThreeProcesses).await;
    let mut oracle = Oracle::new(&stand.deployment, seed);
    oracle.style = style();
    let load = oracle.load(&stand.deployment);
    for round in 0..12 {
        let victim = [
            None,
            Some(Part::Normalizer),
            Some(Part::SinkWriter),
            Some(Part::ClickHouse),
        ][round % 4];
        // When the kill comes is drawn; nothing is waited for.
        tokio::time::sleep(Duration::from_millis(rng.random_range(200..900))).await;
        let Some(part) = victim else {
            stand.kafka.kill();
            // And how long the broker is away: shorter and longer than a message has.
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..6_000))).await;
            stand.kafka.bring_up().await;
            continue;
        };
        oracle.weigh(&stand.deployment);
        stand.deployment.kill(part);
        if part != Part::ClickHouse {
            stand.deployment.bring_up(part).await.expect("ready");
        }
    }
    load.stop().await;
    checked(&stand, &mut oracle).await;
}

/// A kill and an error at each point; the broker is away for half of them, so that shares are set aside.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_misses_nothing_whatever_happens_at_a_step_of_publishing() {
    let seed = oracle::seed("kafka points");
    let kafka = Kafka::start().await;
    kafka.topic("clean.events", 2, &[]).await;
    kafka.topic("clean.more", 2, &[]).await;
    let mut points = None;
    let extra = plain(&kafka);
    let started = Deployment::start_prepared(3, Shape::ThreeProcesses, &extra, |dir| {
        points = Some(Failpoints::below(dir));
    });
    let deployment = started.await;
    let mut points = points.expect("prepared");
    let mut stand = Stand { kafka, deployment };
    let mut oracle = Oracle::new(&stand.deployment, seed);
    oracle.style = style();
    let load = oracle.load(&stand.deployment);
    for (point, actions) in turns(&POINTS, seed) {
        for action in actions {
            let needs_trouble = !matches!(
                point,
                Point::PublishSend | Point::PublishAnswered | Point::CommitPersist | Point::CommitPersisted
            );
            if needs_trouble {
                stand.kafka.kill();
            }
            let case = Case {
                point,
                action,
                nth: 1,
            };
            println!("{case}");
            points.arm(case);
            if matches!(point, Point::UnitRemove | Point::UnitRemoved) {
                // Set aside first, sent and removed once the broker is back.
                wait_aside(&stand, &points).await;
                stand.kafka.bring_up().await;
            }
            points.fired(case, FIRED).await;
            points.disarm();
            if action == Action::Kill || ends(point) {
                eventually("the process ends", FIRED, async || {
                    stand.deployment.ended(Part::Normalizer)
                })
                .await;
                stand.deployment.bring_up(Part::Normalizer).await.expect("ready");
            }
            if needs_trouble && !matches!(point, Point::UnitRemove | Point::UnitRemoved) {
                stand.kafka.bring_up().await;
            }
        }
    }
    load.stop().await;
    checked(&stand, &mut oracle).await;
}

/// What is done at each point: a kill or an error, as the seed has it; with `SLUICE_SWEEP=full` both.
pub(super) fn turns(points: &[Point], seed: u64) -> Vec<(Point, Vec<Action>)> {
    let mut rng = StdRng::seed_from_u64(seed);
    let both = [Action::Kill, Action::Error];
    let of_one = |point: &Point| {
        let drawn = both[rng.random_range(0..both.len())];
        (*point, if is_full() { both.to_vec() } else { vec![drawn] })
    };
    points.iter().map(of_one).collect()
}

/// Whether an error there ends the process.
pub(super) fn ends(point: Point) -> bool {
    ![Point::PublishSend, Point::PublishAnswered, Point::UnitWrite].contains(&point)
}

/// A share is set aside; or what one of before did was enough.
async fn wait_aside(stand: &Stand, points: &Failpoints) {
    eventually("a share is set aside", FIRED, async || {
        (points.has_fired() || stand.all_waiting().await > Some(0.0)).then_some(())
    })
    .await;
}
