//! A short slice of `make torture`, which runs for as long as it is told.

use sluice_tests::oracle;
use sluice_tests::torture::{Options, Outcome, draw::Draw, run};
use std::time::Duration;

/// Rounds are begun for so long; the last one takes its time.
const TIME: Duration = Duration::from_secs(40);
const KAFKA_TIME: Duration = Duration::from_secs(20);

/// Rounds in which no promise is broken.
async fn played(time: Duration, (seed, kafka): (&str, bool)) -> Outcome {
    let options = Options {
        time,
        seed: oracle::seed(seed),
        first: 1,
        kafka,
    };
    let outcome = run(options, |line| println!("{line}")).await;
    println!("{outcome}");
    assert!(outcome.breach.is_none(), "{outcome}");
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_of_kills_stops_restarts_and_broken_networks_break_no_promise() {
    let outcome = played(TIME, ("torture", false)).await;
    assert!(outcome.figures.killed() > 0, "{outcome}");
}

/// The same with a log in Kafka, and faults of its broker among the others.
#[tokio::test(flavor = "multi_thread")]
async fn rounds_of_faults_with_a_kafka_log_break_no_promise() {
    let outcome = played(KAFKA_TIME, ("torture of a kafka log", true)).await;
    assert!(outcome.figures.kills.contains_key("Kafka"), "{outcome}");
}

#[test]
fn a_seed_draws_the_same_round_again_and_another_seed_another() {
    let told = |seed| format!("{:?}", Draw::of(seed));
    assert_eq!(told(7), told(7));
    assert_ne!(told(7), told(8));
}
