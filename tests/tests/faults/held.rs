//! Requests and answers that the network holds back: whoever waits for them gives up, asks the server what it has,
//! and rows are there once, whatever arrives later.

use super::trial::{SOON, Trial};
use sluice_tests::proxy::{Act, EVENTS_INSERT, Rule, Way};
use sluice_tests::{Hop, Part, Plan, Shape, eventually};
use std::time::Duration;

/// The first time-out of an insert, and time to do something about it.
const PAST_THE_TIME_OUT: Duration = Duration::from_secs(80);

async fn start() -> Trial {
    let trial = Trial::start(Plan::new(Shape::AllInOne).proxied(Hop::ToClickHouse)).await;
    trial.acked(0, 10).await;
    trial.until_rows(10).await;
    trial.deployment.proxy(Hop::ToClickHouse).count(EVENTS_INSERT);
    trial
}

async fn caught(trial: &Trial, times: u64) {
    let proxy = trial.deployment.proxy(Hop::ToClickHouse);
    eventually("an insert that is held", SOON, async || {
        (proxy.caught() == times).then_some(())
    })
    .await;
}

/// Row 6.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_held_past_the_time_out_is_verified_and_no_second_insert_is_sent() {
    let mut trial = start().await;
    let proxy = trial.deployment.proxy(Hop::ToClickHouse);
    proxy.set(Rule::on(EVENTS_INSERT, Act::HoldAnswer).times(1));
    trial.acked(0, 20).await;
    caught(&trial, 1).await;
    trial.until_rows(30).await;
    let in_flight = "sluice_log_backlog_bytes";
    assert!(
        trial.deployment.metric(Part::Up, in_flight, "").await > 0.0,
        "nobody has heard of the rows"
    );
    eventually("the rows are found", PAST_THE_TIME_OUT, async || {
        (trial.deployment.metric(Part::Up, in_flight, "").await == 0.0).then_some(())
    })
    .await;
    let proxy = trial.deployment.proxy(Hop::ToClickHouse);
    assert_eq!(proxy.counted(), 1, "one insert was sent");
    // Nobody listens to it any more.
    proxy.pass();
    trial.acked(1, 5).await;
    trial.verdict().await;
}

/// Row 7.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_request_that_arrives_after_its_retry_has_won_stores_nothing() {
    let mut trial = start().await;
    let proxy = trial.deployment.proxy(Hop::ToClickHouse);
    proxy.set(Rule::on(EVENTS_INSERT, Act::HoldRequest).times(1));
    trial.acked(0, 20).await;
    caught(&trial, 1).await;
    assert_eq!(trial.rows().await, Some(10));
    release_late(&mut trial, 2).await;
}

/// Row 30.
#[tokio::test(flavor = "multi_thread")]
async fn two_held_requests_that_arrive_after_a_third_attempt_store_nothing() {
    let mut trial = start().await;
    let proxy = trial.deployment.proxy(Hop::ToClickHouse);
    proxy.set(Rule::on(EVENTS_INSERT, Act::HoldRequest).times(2));
    trial.acked(0, 20).await;
    caught(&trial, 1).await;
    trial.deployment.proxy(Hop::ToClickHouse).leave_clients();
    caught(&trial, 2).await;
    assert_eq!(trial.rows().await, Some(10));
    release_late(&mut trial, 3).await;
}

/// Cuts the waiting off, lets the retry win and other blocks follow, and delivers what was held; `attempts` in all.
async fn release_late(trial: &mut Trial, attempts: u64) {
    trial.deployment.proxy(Hop::ToClickHouse).leave_clients();
    trial.until_rows(30).await;
    assert_eq!(trial.deployment.proxy(Hop::ToClickHouse).counted(), attempts);
    for n in 1..=5 {
        trial.acked(1, 10).await;
        trial.until_rows(30 + 10 * n).await;
    }
    let proxy = trial.deployment.proxy(Hop::ToClickHouse);
    let answered = proxy.bytes(Way::Back);
    proxy.pass();
    eventually("an answer to what came late", SOON, async || {
        (proxy.bytes(Way::Back) > answered).then_some(())
    })
    .await;
    trial.acked(2, 10).await;
    trial.verdict().await;
    assert_eq!(trial.rows().await, Some(90));
}

/// What the token window is for: past it a network that delivers what it held doubles rows, and the oracle sees it.
/// This is where the promise ends (`docs/promise.md`), and shows that the tests above can fail.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_request_that_arrives_past_the_token_window_doubles_and_the_oracle_sees_it() {
    let mut trial = start().await;
    let narrow = "ALTER TABLE telemetry.events MODIFY SETTING non_replicated_deduplication_window = 2";
    trial
        .deployment
        .clickhouse()
        .query(narrow)
        .await
        .expect("altered");
    let proxy = trial.deployment.proxy(Hop::ToClickHouse);
    proxy.set(Rule::on(EVENTS_INSERT, Act::HoldRequest).times(1));
    trial.acked(0, 20).await;
    caught(&trial, 1).await;
    trial.deployment.proxy(Hop::ToClickHouse).leave_clients();
    trial.until_rows(30).await;
    for n in 1..=5 {
        trial.acked(1, 10).await;
        trial.until_rows(30 + 10 * n).await;
    }
    trial.deployment.proxy(Hop::ToClickHouse).pass();
    trial.until_rows(100).await;
    let verdict = trial.oracle.drained_verdict(&trial.deployment).await;
    assert_eq!(
        (verdict.total().doubled, verdict.is_clean()),
        (20, false),
        "{verdict}"
    );
}
