//! The broker of a log in Kafka is killed, stands still, or its answer to an append is lost: nothing is acknowledged that
//! is not there, what is refused never is, and a copy that a retry leaves in the log is dropped by the log's order.

use super::log::{config, count, log_topic, prepared, proxied_config, send, style};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::Signal;
use serde_json::{Value, json};
use sluice_common::failpoint::Bound;
use sluice_tests::kafka::{Kafka, WORKED_ON};
use sluice_tests::oracle::request::Outcome;
use sluice_tests::oracle::{self, Oracle};
use sluice_tests::proxy::{Act, Ending, Rule, Way};
use sluice_tests::{Deployment, Part, eventually, finally, long_form, now_ms};
use std::time::Duration;

/// Instead of half a minute: how long brokers have to take a record, in ms. Shorter than any client's patience here.
const APPEND_MS: (Bound, u64) = (Bound::AppendMs, 4_000);
/// Answers that are lost under load.
const LOST: u64 = 12;
/// An event's id, which its request to the brokers has among its bytes: LZ4 leaves it, for nothing is like it.
const HELD: &str = "zQ7~wK4_xJ9^vB2";
/// How a record's frame begins.
const FRAME: &str = "SLR1";

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_keeps_each_event_once_though_its_broker_is_killed_again_and_again() {
    let seed = oracle::seed("kafka log broker kills");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut kafka = Kafka::start().await;
    let (deployment, _points) = prepared(&config(&kafka, ""), &[]).await;
    let mut oracle = Oracle::new(&deployment, seed);
    oracle.style = style();
    oracle.log_topic = Some(log_topic(&kafka));
    let load = oracle.load(&deployment);
    for _ in 0..long_form("BROKER_KILLS", 5) {
        acknowledged(&oracle, &deployment).await;
        // When the kill comes is drawn, and how long the broker is away; nothing is waited for.
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..1_500))).await;
        kafka.kill();
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..2_000))).await;
        kafka.bring_up().await;
    }
    acknowledged(&oracle, &deployment).await;
    load.stop().await;
    let verdict = oracle.drained_verdict(&deployment).await;
    println!("{}", verdict.table());
    verdict.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_whose_broker_stands_still_past_the_append_deadline_acknowledges_nothing_meanwhile() {
    let seed = oracle::seed("kafka log standstill");
    let kafka = Kafka::start().await;
    let (deployment, _points) = prepared(&config(&kafka, ""), &[APPEND_MS]).await;
    let mut oracle = Oracle::new(&deployment, seed);
    oracle.style = style();
    oracle.log_topic = Some(log_topic(&kafka));
    // First by itself, where it is known what was sent before the broker stood still; then under load.
    let unknown = standstill(&kafka, (&oracle, &deployment)).await;
    assert!(unknown > 0, "what was sent to it, and not answered, may be there");
    let load = oracle.load(&deployment);
    standstill(&kafka, (&oracle, &deployment)).await;
    load.stop().await;
    let verdict = oracle.drained_verdict(&deployment).await;
    println!("{}", verdict.table());
    verdict.assert_clean();
}

/// The broker stands still for longer than brokers have to take a record and their last word counts. Of all that is
/// sent meanwhile nothing is acknowledged, and everything is once it is sent again. How many requests were answered
/// `unknown`.
async fn standstill(kafka: &Kafka, (oracle, deployment): (&Oracle, &Deployment)) -> usize {
    acknowledged(oracle, deployment).await;
    kafka.signal(Signal::STOP);
    eventually("the broker stands still", WORKED_ON, async || stands_still(kafka)).await;
    let (mut sent, mut unknown, mut refused) = (Vec::new(), 0, 0);
    finally("all is refused at last", WORKED_ON, async || {
        let (one, other) = tokio::join!(oracle.send(deployment, 0, 20), oracle.send(deployment, 1, 5));
        for (batch, outcome) in [one, other] {
            match outcome {
                Outcome::Acked => panic!("nobody has taken it"),
                Outcome::Unknown => (unknown, refused) = (unknown + 1, 0),
                Outcome::Refused => refused += 1,
            }
            sent.push(batch);
        }
        let ready = deployment.admin(Part::Normalizer).get("/readyz").await;
        let is_told = ready.is_ok_and(|answer| answer.status == 503);
        if is_told && refused >= 10 {
            Ok(())
        } else {
            Err(format!("{unknown} unknown, then {refused} refused; {is_told}"))
        }
    })
    .await;
    kafka.signal(Signal::CONT);
    for batch in sent {
        eventually("what was sent is acknowledged", WORKED_ON, async || {
            (oracle.attempt(deployment, &batch).await == Outcome::Acked).then_some(())
        })
        .await;
    }
    unknown
}

/// Whether each of the broker's threads has stopped.
fn stands_still(kafka: &Kafka) -> Option<()> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", kafka.pid()?)).ok()?;
    status
        .lines()
        .any(|line| line.starts_with("State:\tT"))
        .then_some(())
}

async fn acknowledged(oracle: &Oracle, deployment: &Deployment) {
    eventually("events are acknowledged", WORKED_ON, async || {
        oracle.probe(deployment).await.then_some(())
    })
    .await;
}

/// Ten events that are one record, and the answer to what holds it is kept.
async fn held(kafka: &Kafka, deployment: &Deployment) -> String {
    assert_eq!(send(deployment, 0..10).await, 202);
    kafka.proxy.set(Rule::on(HELD, Act::HoldAnswer).times(1));
    let id = |n: usize| if n == 0 { HELD.to_owned() } else { format!("h{n}") };
    let event = |n| json!({"event_id": id(n), "timestamp": now_ms(), "service": "s"});
    json!((0..10).map(event).collect::<Vec<Value>>()).to_string()
}

/// Both are in the log, and the second of them is a repeat.
async fn once(deployment: &Deployment) {
    oracle::drained(deployment).await;
    let clickhouse = deployment.clickhouse();
    let rows = "SELECT count(), uniqExact(event_id) FROM telemetry.events FORMAT TSV";
    assert_eq!(clickhouse.query(rows).await.as_deref(), Ok("20\t20"));
    let books = "SELECT sum(received), sum(stored), sum(duplicate) FROM telemetry.ledger FORMAT TSV";
    assert_eq!(clickhouse.query(books).await.as_deref(), Ok("30\t20\t10"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_in_a_kafka_log_whose_first_answer_came_too_late_is_dropped_by_order() {
    let kafka = Kafka::start().await;
    let (deployment, _points) = prepared(&proxied_config(&kafka, ", partitions: 1"), &[APPEND_MS]).await;
    let body = held(&kafka, &deployment).await;
    let client = deployment.tenant(0);
    let sent = tokio::spawn({
        let (client, body) = (client.clone(), body.clone());
        async move { client.post("/v1/events/events", body).await }
    });
    eventually("its events are stored", WORKED_ON, async || {
        (count(&deployment, "events").await == 20).then_some(())
    })
    .await;
    let answer = sent.await.expect("it ends").expect("an answer");
    assert_eq!(kafka.proxy.caught(), 1);
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.header("sluice-outcome"), "unknown", "{answer:?}");
    assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    eventually("the retry is acknowledged", WORKED_ON, async || {
        let answer = client.post("/v1/events/events", body.clone()).await;
        answer.is_ok_and(|answer| answer.status == 202).then_some(())
    })
    .await;
    kafka.proxy.pass();
    once(&deployment).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_in_a_kafka_log_whose_first_answer_is_lost_with_its_connection_is_dropped_by_order() {
    let kafka = Kafka::start().await;
    let (deployment, _points) = prepared(&proxied_config(&kafka, ", partitions: 1"), &[]).await;
    let body = held(&kafka, &deployment).await;
    let post = || {
        let (client, body) = (deployment.tenant(0), body.clone());
        tokio::spawn(async move { client.post("/v1/events/events", body).await })
    };
    let first = post();
    eventually("its events are stored", WORKED_ON, async || {
        (count(&deployment, "events").await == 20).then_some(())
    })
    .await;
    // A client that waits no longer sends it again, by the same connection to the broker.
    let second = post();
    eventually("both are in the log", WORKED_ON, async || {
        let offsets = kafka.offsets("sluice").await;
        (offsets.values().sum::<u64>() == 3).then_some(())
    })
    .await;
    assert!(!first.is_finished() && !second.is_finished());
    kafka.proxy.cut(Ending::Reset);
    for sent in [first, second] {
        let answer = sent.await.expect("it ends").expect("an answer");
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    assert_eq!(kafka.proxy.caught(), 1);
    once(&deployment).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_whose_answers_are_lost_again_and_again_under_load_keeps_each_event_once() {
    let seed = oracle::seed("kafka log lost answers");
    let kafka = Kafka::start().await;
    let (deployment, _points) = prepared(&proxied_config(&kafka, ""), &[APPEND_MS]).await;
    let mut oracle = Oracle::new(&deployment, seed);
    oracle.style = style();
    oracle.log_topic = Some(log_topic(&kafka));
    let load = oracle.load(&deployment);
    let lost = Act::Cut {
        way: Way::Back,
        after: 0,
        ending: Ending::Reset,
    };
    for turn in 0..LOST {
        // Every fourth time it is nobody's to ask again: the answer comes when its time is over.
        let act = if turn % 4 == 3 {
            Act::HoldAnswer
        } else {
            lost.clone()
        };
        kafka.proxy.set(Rule::on(FRAME, act).times(1));
        eventually("an append is caught", WORKED_ON, async || {
            (kafka.proxy.caught() > turn).then_some(())
        })
        .await;
        acknowledged(&oracle, &deployment).await;
    }
    kafka.proxy.pass();
    load.stop().await;
    let verdict = oracle.drained_verdict(&deployment).await;
    println!("{}", verdict.table());
    verdict.assert_clean();
}
