//! Points on the way of an event that meets no trouble, under load.

use super::trial::Trial;
use super::{Scenario, TURNS, Wish, is_full, points_of, wishes};
use rand::seq::IndexedRandom as _;
use sluice_common::failpoint::Point;
use sluice_tests::failpoints::Case;
use sluice_tests::{Part, Shape, eventually};
use std::collections::BTreeMap;
use std::time::Duration;

/// Stored segments go at once.
const EXTRA: &str = "log: {retain: 1s}";
/// Ranges that a life without faults commits.
const LIFE_RANGES: u64 = 4;
/// Hits that each point has at least.
const LEAST_HITS: u64 = 3;
const DRY_DEADLINE: Duration = Duration::from_secs(60);
/// Cases of a choice in one process, where each restart brings a ClickHouse along.
const CHOSEN_IN_ONE: usize = 8;
/// Starts until a verification is met, at most.
const STARTS: usize = 10;

pub async fn sweep(shape: Shape) {
    let _turn = TURNS.acquire().await.expect("never closed");
    let mut trial = Trial::start(shape, &format!("failpoints of the way, {shape:?}"), EXTRA).await;
    let points = points_of(Scenario::Way);
    let hits = dry_run(&mut trial, &points).await;
    let mut wishes = wishes(&points, &mut trial.rng);
    if shape == Shape::AllInOne && !is_full() {
        wishes = wishes
            .choose_multiple(&mut trial.rng, CHOSEN_IN_ONE)
            .copied()
            .collect();
    }
    for wish in wishes {
        run(&mut trial, wish, &hits).await;
    }
    trial.sum_up().await;
}

/// How often each point is hit in one life without faults.
async fn dry_run(trial: &mut Trial, points: &[Point]) -> BTreeMap<Point, u64> {
    let load = trial.oracle.load(&trial.deployment);
    let count = |hits: &BTreeMap<Point, u64>, point: &Point| hits.get(point).copied().unwrap_or(0);
    let life = eventually("a life without faults", DRY_DEADLINE, async || {
        let hits = trial.points.hits();
        (count(&hits, &Point::CommitPersisted) >= LIFE_RANGES).then_some(hits)
    });
    let life = life.await;
    let least = |point: &Point| if is_verification(*point) { 1 } else { LEAST_HITS };
    eventually("every point hit", DRY_DEADLINE, async || {
        let hits = trial.points.hits();
        let missing: Vec<_> = points
            .iter()
            .filter(|point| count(&hits, point) < least(point))
            .collect();
        missing.is_empty().then_some(())
    })
    .await;
    load.stop().await;
    trial.check("a run without faults").await;
    points
        .iter()
        .map(|point| (*point, count(&life, point).max(least(point))))
        .collect()
}

/// Only after a start are all sub-batches verified.
fn is_verification(point: Point) -> bool {
    [Point::VerifyAsk, Point::VerifyAnswered].contains(&point)
}

async fn run(trial: &mut Trial, wish: Wish, hits: &BTreeMap<Point, u64>) {
    let case = wish.of(hits[&wish.point]);
    let load = trial.oracle.load(&trial.deployment);
    trial.points.arm(case);
    if is_verification(case.point) {
        verified(trial, case).await;
    }
    trial.survives(case).await;
    load.stop().await;
    trial.check(&case.to_string()).await;
}

/// Starts the normalizer until its verifications reach the case.
async fn verified(trial: &mut Trial, case: Case) {
    let pump = match trial.deployment.shape {
        Shape::AllInOne => Part::Up,
        Shape::ThreeProcesses => Part::Normalizer,
    };
    for _ in 0..STARTS {
        if trial.points.has_fired() {
            return;
        }
        let committed = trial.points.hits()[&Point::CommitPersisted];
        trial.restart(pump).await;
        eventually("a range after the start", Duration::from_secs(20), async || {
            let more = trial.points.hits()[&Point::CommitPersisted] > committed;
            (more || trial.points.has_fired()).then_some(())
        })
        .await;
    }
    panic!("{STARTS} starts did not reach {case}");
}
