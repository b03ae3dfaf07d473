//! The producer of a log in Kafka has a fatal error, after which librdkafka sends nothing more with it: another one goes
//! on in the same process, and each event is in its table once. The same of those behind the topics beside the log.

use super::log::{config, count, prepared, proxied_config, send, style};
use super::seats::{ALL_REFUSED, EARLY_REFUSED, FATES, REFUSED, events_of_two_days, long_progress};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use sluice_common::failpoint::Point;
use sluice_tests::failpoints::{Action, Case, Failpoints, park_soon};
use sluice_tests::kafka::{Kafka, WORKED_ON, works_on};
use sluice_tests::oracle::{self, Oracle};
use sluice_tests::proxy::{Act, Rule};
use sluice_tests::{Deployment, Part, Shape, eventually, now_ms};
use std::path::Path;

/// Producers that end in one run.
const ENDS: usize = 12;
/// An event's id, which its request to the brokers has among its bytes.
const HELD: &str = "zQ7~wK4_xJ9^vB2";
/// What the normalizer's log says of each.
const ENDED: &str = "the producer of the log has ended; another one goes on";

fn ends(point: Point, nth: u64) -> Case {
    let action = Action::Error;
    Case { point, action, nth }
}

/// How many producers the normalizer has replaced.
fn replaced(deployment: &Deployment) -> usize {
    let log = std::fs::read_to_string(deployment.log_file(Part::Normalizer));
    log.unwrap_or_default().matches(ENDED).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_s_producers_that_end_under_load_are_replaced_and_cost_no_event() {
    let seed = oracle::seed("kafka log producers");
    let mut rng = StdRng::seed_from_u64(seed);
    let kafka = Kafka::start().await;
    let (deployment, mut points) = prepared(&config(&kafka, ""), &[]).await;
    let process = deployment.service(Part::Normalizer).map(|one| one.pid());
    let mut oracle = Oracle::new(&deployment, seed);
    oracle.style = style();
    let load = oracle.load(&deployment);
    for turn in 0..ENDS {
        let point = [Point::ProduceSend, Point::ProduceSent][turn % 2];
        let case = ends(point, rng.random_range(1..30));
        points.arm(case);
        points.fired(case, WORKED_ON).await;
        eventually("another producer goes on", WORKED_ON, async || {
            (replaced(&deployment) > turn).then_some(())
        })
        .await;
        eventually("events are acknowledged", WORKED_ON, async || {
            oracle.probe(&deployment).await.then_some(())
        })
        .await;
    }
    load.stop().await;
    let now = deployment.service(Part::Normalizer).map(|one| one.pid());
    assert_eq!(process, now, "it was never started again");
    assert_eq!(replaced(&deployment), ENDS);
    let verdict = oracle.drained_verdict(&deployment).await;
    println!("{}", verdict.table());
    verdict.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_s_producer_that_ends_refuses_what_it_did_not_send_and_waits_for_what_it_did() {
    let kafka = Kafka::start().await;
    let (deployment, mut points) = prepared(&proxied_config(&kafka, ", partitions: 1"), &[]).await;
    assert_eq!(send(&deployment, 0..10).await, 202);
    kafka.proxy.set(Rule::on(HELD, Act::HoldAnswer).times(1));
    let held = json!([{"event_id": HELD, "timestamp": now_ms(), "service": "s"}]).to_string();
    let client = deployment.tenant(0);
    let sent = tokio::spawn(async move { client.post("/v1/events/events", held).await });
    // It is in the log, and stored, before anybody knows.
    eventually("the event is stored", WORKED_ON, async || {
        (count(&deployment, "events").await == 11).then_some(())
    })
    .await;
    assert_eq!(kafka.proxy.caught(), 1);
    let case = ends(Point::ProduceSend, 1);
    points.arm(case);
    let body = json!([{"event_id": "e10", "timestamp": now_ms(), "service": "s"}]).to_string();
    let answer = deployment.tenant(0).post("/v1/events/events", body).await;
    let answer = answer.expect("an answer");
    assert!(points.has_fired());
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.header("sluice-outcome"), "refused", "{answer:?}");
    assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    assert_eq!(replaced(&deployment), 1);
    // The next producer has a connection of its own, whose answers nobody holds.
    assert_eq!(send(&deployment, 10..20).await, 202);
    assert!(!sent.is_finished(), "nobody knows yet what became of it");
    kafka.proxy.pass();
    let answer = sent.await.expect("it ends").expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.text());
    oracle::drained(&deployment).await;
    assert_eq!(count(&deployment, "events").await, 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_kafka_log_sets_aside_is_in_its_topic_though_the_producer_ended_on_the_way() {
    let kafka = Kafka::start().await;
    let mut points = None;
    let prepare = |dir: &Path| {
        park_soon(dir);
        points = Some(Failpoints::below(dir));
    };
    let config = config(&kafka, ", partitions: 1");
    let started = Deployment::start_prepared(1, Shape::ThreeProcesses, &config, prepare);
    let (mut deployment, mut points) = (started.await, points.expect("prepared"));
    works_on(&deployment, Part::Normalizer, 1).await;
    let process = deployment.service(Part::Normalizer).map(|one| one.pid());
    let rename = async |deployment: &Deployment, what: &str| {
        let sql = format!("RENAME TABLE telemetry.{what}");
        deployment.clickhouse().query(&sql).await.expect("renamed");
    };
    rename(&deployment, "events TO telemetry.elsewhere").await;
    let parked = async |deployment: &Deployment| {
        deployment
            .metric(Part::Normalizer, "sluice_parked_units", "")
            .await
    };
    let mut sent = 0;
    // A unit is a piece and its head, a message each.
    for (point, nth) in [
        (Point::BesideSend, 1),
        (Point::BesideSent, 1),
        (Point::BesideSend, 2),
        (Point::BesideSent, 2),
    ] {
        let (case, units) = (ends(point, nth), parked(&deployment).await);
        points.arm(case);
        assert_eq!(send(&deployment, sent..sent + 50).await, 202);
        sent += 50;
        points.fired(case, WORKED_ON).await;
        eventually("they are set aside", WORKED_ON, async || {
            (parked(&deployment).await > units).then_some(())
        })
        .await;
    }
    let now = deployment.service(Part::Normalizer).map(|one| one.pid());
    assert_eq!(process, now, "it was never started again");
    // All that is left is in the topic.
    deployment.kill(Part::Normalizer);
    for dir in ["dedup", "parked", "outbox"] {
        std::fs::remove_dir_all(deployment.data().join(dir)).expect("it was there");
    }
    deployment.bring_up(Part::Normalizer).await.expect("ready");
    rename(&deployment, "elsewhere TO telemetry.events").await;
    works_on(&deployment, Part::Normalizer, 1).await;
    oracle::drained(&deployment).await;
    let rows = "SELECT count(), uniqExact(event_id) FROM telemetry.events FORMAT TSV";
    let rows = deployment.clickhouse().query(rows).await.expect("told");
    assert_eq!(rows.trim(), format!("{sent}\t{sent}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_s_long_progress_is_kept_though_its_producer_ended_on_the_way() {
    let kafka = Kafka::start().await;
    let (deployment, mut points) = prepared(&config(&kafka, ", partitions: 1"), &[]).await;
    works_on(&deployment, Part::Normalizer, 1).await;
    let clickhouse = deployment.clickhouse();
    clickhouse.query(REFUSED).await.expect("refused from now on");
    let (mut all, mut letters) = (0, 0);
    for point in [Point::BesideSend, Point::BesideSent] {
        let case = ends(point, 1);
        points.arm(case);
        let (events, sent) = events_of_two_days(&case.to_string());
        let client = deployment.tenant(0);
        let answer = client.post("/v1/events/events", events.to_string()).await;
        assert_eq!(answer.expect("an answer").status, 202);
        points.fired(case, WORKED_ON).await;
        (all, letters) = (all + sent, letters + ALL_REFUSED);
        let expected = format!("{all}\t{all}\t{letters}");
        eventually("each event has its fate", WORKED_ON, async || {
            let told = clickhouse.query(FATES).await.ok()?;
            (told.trim() == expected).then_some(())
        })
        .await;
    }
    oracle::drained(&deployment).await;
    // Of either range, what was known first as well as all: a message may be there twice.
    let mut long = long_progress(&kafka).await;
    long.dedup();
    let of_one = [EARLY_REFUSED, ALL_REFUSED];
    assert_eq!(long, [of_one, of_one].concat());
}
