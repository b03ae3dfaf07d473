//! Two edges before one normalizer and two sink-writers behind it, restarted one after the other under load. (The
//! embedded log has one normalizer.)

use crate::trial::Trial;
use sluice_tests::{Part, Plan, Shape};
use std::time::Duration;
use tokio::task::block_in_place;

const TURNS: u32 = 3;
/// What flows between two restarts.
const PAUSE: Duration = Duration::from_millis(700);

#[tokio::test(flavor = "multi_thread")]
async fn two_edges_and_two_sink_writers_restarted_in_turn_under_load_lose_and_double_nothing() {
    let mut trial = Trial::start(Plan::new(Shape::ThreeProcesses).twins(true)).await;
    // Two loads: the tenants of one are at the other edge in the other.
    let loads = [
        trial.oracle.load(&trial.deployment),
        trial.oracle.load(&trial.deployment),
    ];
    for _ in 0..TURNS {
        for part in [
            Part::Edge,
            Part::SinkWriter,
            Part::SecondEdge,
            Part::SecondSinkWriter,
        ] {
            tokio::time::sleep(PAUSE).await;
            restart(&mut trial, part).await;
        }
    }
    restart(&mut trial, Part::Normalizer).await;
    for load in loads {
        load.stop().await;
    }
    trial.verdict().await;
}

async fn restart(trial: &mut Trial, part: Part) {
    let well = block_in_place(|| trial.deployment.terminate(part));
    assert!(well, "{part:?}: {}", trial.deployment.last_words());
    trial.deployment.bring_up(part).await.expect("ready");
}
