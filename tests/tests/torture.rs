//! A short slice of `make torture`, which runs for as long as it is told.

use sluice_tests::oracle;
use sluice_tests::torture::{Options, draw::Draw, run};
use std::time::Duration;

/// Rounds are begun for so long; the last one takes its time.
const TIME: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn rounds_of_kills_stops_restarts_and_broken_networks_break_no_promise() {
    let options = Options {
        time: TIME,
        seed: oracle::seed("torture"),
        first: 1,
    };
    let outcome = run(options, |line| println!("{line}")).await;
    println!("{outcome}");
    assert!(outcome.breach.is_none(), "{outcome}");
    assert!(outcome.figures.killed() > 0, "{outcome}");
}

#[test]
fn a_seed_draws_the_same_round_again_and_another_seed_another() {
    let told = |seed| format!("{:?}", Draw::of(seed));
    assert_eq!(told(7), told(7));
    assert_ne!(told(7), told(8));
}
