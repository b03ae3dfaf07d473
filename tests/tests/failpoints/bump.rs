//! Points where a token is given up for another: ClickHouse knows it and has lost its rows, as after its crash
//! between the two.

use super::trial::Trial;
use super::{Scenario, TURNS, cases_of_one_hit, points_of};
use sluice_common::failpoint::Point;
use sluice_tests::{Part, Shape};

pub async fn sweep() {
    let _turn = TURNS.acquire().await.expect("never closed");
    let mut trial = Trial::start(Shape::ThreeProcesses, "failpoints of a token given up", "").await;
    for case in cases_of_one_hit(&points_of(Scenario::Bump), &mut trial.rng) {
        trial.check("the case before").await;
        trial.points.forget_hits();
        trial
            .points
            .lose_rows_of_a_token(&mut trial.deployment, &trial.oracle)
            .await;
        trial.points.arm(case);
        trial.deployment.bring_up(Part::SinkWriter).await.expect("ready");
        trial.survives(case).await;
        assert!(
            trial.points.hits()[&Point::BumpPersist] > 0,
            "no token was given up"
        );
        trial.check(&case.to_string()).await;
    }
    trial.sum_up().await;
}
