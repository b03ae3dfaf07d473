//! A first start that is cut short leaves nothing in the way of the next.

use super::trial::Trial;
use super::{TURNS, cases_of_one_hit};
use sluice_common::failpoint::Point;
use sluice_tests::failpoints::Action;
use sluice_tests::{Part, Shape};

/// Each is passed while log and progress are made.
const POINTS: [Point; 4] = [
    Point::SpareWrite,
    Point::SegmentRename,
    Point::SegmentRenamed,
    Point::ProgressWritten,
];
/// What a normalizer keeps.
const STATE: [&str; 4] = ["log", "dedup", "parked", "progress"];

pub async fn sweep() {
    let _turn = TURNS.acquire().await.expect("never closed");
    let mut trial = Trial::start(Shape::ThreeProcesses, "failpoints of a first start", "").await;
    for case in cases_of_one_hit(&POINTS, &mut trial.rng) {
        trial.check("the case before").await;
        trial.deployment.kill(Part::Normalizer);
        for name in STATE {
            let path = trial.deployment.data().join(name);
            let gone = if path.is_dir() {
                std::fs::remove_dir_all(path)
            } else {
                std::fs::remove_file(path)
            };
            gone.expect("removed");
        }
        trial.points.arm(case);
        let started = trial.deployment.bring_up(Part::Normalizer).await;
        let delayed = matches!(case.action, Action::Delay(_));
        assert_eq!(started.is_ok(), delayed, "{case}: {started:?}");
        trial.survives(case).await;
        trial.check(&case.to_string()).await;
    }
    trial.sum_up().await;
}
