//! Row 5: a ClickHouse that stands still is none of the clients' business.

use super::trial::Trial;
use rustix::process::Signal;
use sluice_tests::{Part, Plan, Shape, long_form};
use std::time::{Duration, Instant};

/// How long something stands still, in seconds; `SLUICE_STANDSTILL_S=60` is the long form.
fn standstill() -> Duration {
    Duration::from_secs(long_form("STANDSTILL_S", 6))
}

/// What the machine's other work may add, whatever Sluice does.
const NOISE: Duration = Duration::from_millis(100);

/// The 99th percentile of the time to an acknowledgement.
async fn p99(trial: &Trial, time: Duration) -> Duration {
    let (begun, mut took) = (Instant::now(), Vec::new());
    while begun.elapsed() < time {
        let sent = Instant::now();
        trial.acked(0, 20).await;
        took.push(sent.elapsed());
    }
    took.sort_unstable();
    took[(took.len() * 99 / 100).min(took.len() - 1)]
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_are_as_quick_while_clickhouse_stands_still_and_all_rows_come() {
    let mut trial = Trial::start(Plan::new(Shape::ThreeProcesses)).await;
    p99(&trial, Duration::from_secs(1)).await;
    let before = p99(&trial, standstill() / 2).await;
    trial.deployment.signal(Part::ClickHouse, Signal::STOP);
    let during = p99(&trial, standstill()).await;
    trial.deployment.signal(Part::ClickHouse, Signal::CONT);
    println!("p99 of acknowledgements: {before:?} before, {during:?} during");
    assert!(
        during < before * 2 + NOISE,
        "{before:?} before, {during:?} during"
    );
    trial.verdict().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_process_may_stand_still_for_a_while_under_load() {
    let mut trial = Trial::start(Plan::new(Shape::ThreeProcesses)).await;
    let load = trial.oracle.load(&trial.deployment);
    for part in trial.deployment.parts() {
        trial.deployment.signal(part, Signal::STOP);
        tokio::time::sleep(standstill() / 3).await;
        trial.deployment.signal(part, Signal::CONT);
        tokio::time::sleep(standstill() / 6).await;
    }
    load.stop().await;
    trial.verdict().await;
}
