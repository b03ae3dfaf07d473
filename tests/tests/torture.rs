//! A short slice of `make torture`, which runs for as long as it is told.

use sluice_tests::oracle;
use sluice_tests::torture::{Options, draw::Draw, run};
use std::time::Duration;

/// Rounds are begun for so long; the last one takes its time.
const TIME: Duration = Duration::from_secs(40);
const KAFKA_TIME: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn rounds_of_kills_stops_restarts_and_broken_networks_break_no_promise() {
    let options = Options {
        time: TIME,
        seed: oracle::seed("torture"),
        first: 1,
        kafka: false,
    };
    let outcome = run(options, |line| println!("{line}")).await;
    println!("{outcome}");
    assert!(outcome.breach.is_none(), "{outcome}");
    assert!(outcome.figures.killed() > 0, "{outcome}");
}

/// The same with a log in Kafka, and faults of its broker among the others.
#[tokio::test(flavor = "multi_thread")]
async fn rounds_of_faults_with_a_kafka_log_break_no_promise() {
    let options = Options {
        time: KAFKA_TIME,
        seed: oracle::seed("torture of a kafka log"),
        first: 1,
        kafka: true,
    };
    let outcome = run(options, |line| println!("{line}")).await;
    println!("{outcome}");
    assert!(outcome.breach.is_none(), "{outcome}");
    assert!(outcome.figures.kills.contains_key("Kafka"), "{outcome}");
}

#[test]
fn a_seed_draws_the_same_round_again_and_another_seed_another() {
    let told = |seed| format!("{:?}", Draw::of(seed));
    assert_eq!(told(7), told(7));
    assert_ne!(told(7), told(8));
}
