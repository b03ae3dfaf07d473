//! A log that is a topic: every promise holds whatever is killed, one normalizer goes on where another was, and what
//! cannot be gone on with stops with an alarm.

use super::hold;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::Signal;
use serde_json::{Value, json};
use sluice_common::failpoint::{Bound, Point};
use sluice_tests::failpoints::{Action, Case, Failpoints};
use sluice_tests::kafka::{Kafka, WORKED_ON, partitions, works_on};
use sluice_tests::oracle::copies::LogTopic;
use sluice_tests::oracle::load::Style;
use sluice_tests::oracle::{self, Oracle};
use sluice_tests::{Deployment, Part, Plan, Shape, eventually, now_ms};
use std::path::Path;
use std::time::Duration;

const TENANTS: usize = 3;
const TOPIC: &str = "events-log";

/// A config whose log is that Kafka's, with these keys of `log` besides.
pub(super) fn config(kafka: &Kafka, log: &str) -> String {
    at(&format!("brokers: [\"{}\"]", kafka.brokers()), log)
}

/// The same by the way through the Kafka's proxy; batches are not compressed, so that it sees what is in them.
pub(super) fn proxied_config(kafka: &Kafka, log: &str) -> String {
    let brokers = kafka.proxied_brokers();
    at(&format!("brokers: [\"{brokers}\"], compression: none"), log)
}

fn at(kafka: &str, log: &str) -> String {
    let datasets = oracle::CONFIG;
    format!("kafka: {{{kafka}}}\nlog: {{kind: kafka, topic: {TOPIC}{log}}}\n{datasets}")
}

/// A Sluice with that config.
async fn start(shape: Shape, kafka: &Kafka, log: &str) -> Deployment {
    Plan::new(shape).extra(&config(kafka, log)).start().await
}

/// A Sluice of three processes with that config and these bounds made smaller, and its failpoints.
pub(super) async fn prepared(config: &str, bounds: &[(Bound, u64)]) -> (Deployment, Failpoints) {
    let mut points = None;
    let prepare = |dir: &Path| {
        let made = Failpoints::below(dir);
        made.shrink(bounds);
        points = Some(made);
    };
    let started = Deployment::start_prepared(TENANTS, Shape::ThreeProcesses, config, prepare);
    let deployment = started.await;
    (deployment, points.expect("prepared"))
}

/// Where the log lies, for an oracle of a test in which answers of its brokers are lost.
pub(super) fn log_topic(kafka: &Kafka) -> LogTopic {
    LogTopic {
        brokers: kafka.brokers(),
        topic: TOPIC,
    }
}

pub(super) fn style() -> Style {
    Style {
        writers: 3,
        max_events: 300,
        pause_ms: 10..60,
        datasets: 3,
    }
}

/// Events with these numbers.
fn events(numbers: impl IntoIterator<Item = u64>) -> String {
    let event =
        |n: u64| json!({"event_id": format!("e{n}"), "timestamp": now_ms(), "service": "s", "size_kib": n});
    json!(numbers.into_iter().map(event).collect::<Vec<Value>>()).to_string()
}

pub(super) async fn send(deployment: &Deployment, numbers: impl IntoIterator<Item = u64>) -> u16 {
    let answer = deployment
        .tenant(0)
        .post("/v1/events/events", events(numbers))
        .await;
    answer.map_or(0, |answer| answer.status.into())
}

pub(super) async fn count(deployment: &Deployment, table: &str) -> u64 {
    let told = deployment
        .clickhouse()
        .query(&format!("SELECT count() FROM telemetry.{table}"))
        .await;
    told.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

async fn a_partition_stops(deployment: &Deployment) {
    eventually("an alarm", WORKED_ON, async || {
        let alarms = deployment
            .metric(Part::Normalizer, "sluice_alarms_total", "partition_stopped")
            .await;
        (alarms >= 1.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_keeps_each_event_once_whatever_is_killed() {
    let seed = oracle::seed("kafka log kills");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut kafka = Kafka::start().await;
    let mut deployment = start(Shape::ThreeProcesses, &kafka, "").await;
    let mut oracle = Oracle::new(&deployment, seed);
    oracle.style = style();
    oracle.log_topic = Some(log_topic(&kafka));
    let load = oracle.load(&deployment);
    for round in 0..15 {
        let victim = [
            Some(Part::Normalizer),
            None,
            Some(Part::SinkWriter),
            Some(Part::ClickHouse),
            Some(Part::Edge),
        ][round % 5];
        // When the kill comes is drawn; nothing is waited for.
        tokio::time::sleep(Duration::from_millis(rng.random_range(300..1_500))).await;
        let Some(part) = victim else {
            kafka.kill();
            // And how long the broker is away.
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..3_000))).await;
            kafka.bring_up().await;
            continue;
        };
        oracle.weigh(&deployment);
        deployment.kill(part);
        if part != Part::ClickHouse {
            deployment.bring_up(part).await.expect("ready");
        }
    }
    load.stop().await;
    oracle.drained_verdict(&deployment).await.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_s_partitions_move_between_normalizers_and_each_event_is_there_once() {
    let seed = oracle::seed("kafka log moves");
    let kafka = Kafka::start().await;
    let plan = Plan::new(Shape::ThreeProcesses)
        .twin_normalizers()
        .extra(&config(&kafka, ""));
    let mut deployment = plan.start().await;
    for part in deployment.normalizers() {
        works_on(&deployment, part, 2).await;
    }
    let mut oracle = Oracle::new(&deployment, seed);
    oracle.style = style();
    let load = oracle.load(&deployment);
    // One leaves in order, and comes back.
    tokio::task::block_in_place(|| deployment.terminate(Part::SecondNormalizer));
    works_on(&deployment, Part::Normalizer, 4).await;
    deployment.bring_up(Part::SecondNormalizer).await.expect("ready");
    works_on(&deployment, Part::SecondNormalizer, 2).await;
    // One is killed: the group finds out by itself.
    deployment.kill(Part::Normalizer);
    works_on(&deployment, Part::SecondNormalizer, 4).await;
    deployment.bring_up(Part::Normalizer).await.expect("ready");
    works_on(&deployment, Part::Normalizer, 2).await;
    // One stands still until its partitions are another's, and then goes on.
    deployment.signal(Part::SecondNormalizer, Signal::STOP);
    works_on(&deployment, Part::Normalizer, 4).await;
    let before = kafka.offsets("sluice").await;
    eventually(
        "others go on with each of its partitions",
        WORKED_ON,
        async || {
            let now = kafka.offsets("sluice").await;
            let moved = |(at, offset): (_, &u64)| now.get(at) > Some(offset);
            before.iter().all(moved).then_some(())
        },
    )
    .await;
    deployment.signal(Part::SecondNormalizer, Signal::CONT);
    works_on(&deployment, Part::SecondNormalizer, 2).await;
    works_on(&deployment, Part::Normalizer, 2).await;
    load.stop().await;
    oracle.drained_verdict(&deployment).await.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_knows_repeats_after_all_local_state_was_lost() {
    let kafka = Kafka::start().await;
    let mut deployment = start(Shape::ThreeProcesses, &kafka, ", partitions: 2").await;
    assert_eq!(send(&deployment, 0..3_000).await, 202);
    oracle::drained(&deployment).await;
    for _ in 0..2 {
        deployment.kill(Part::Normalizer);
        for dir in ["dedup", "parked", "outbox"] {
            std::fs::remove_dir_all(deployment.data().join(dir)).expect("it was there");
        }
        deployment.bring_up(Part::Normalizer).await.expect("ready");
        assert_eq!(send(&deployment, 1_000..4_000).await, 202);
        oracle::drained(&deployment).await;
    }
    assert_eq!(count(&deployment, "events").await, 4_000);
    let sums = "SELECT sum(received), sum(stored), sum(duplicate) FROM telemetry.ledger FORMAT TSV";
    let books = deployment.clickhouse().query(sums).await.expect("books");
    assert_eq!(books.trim(), "9000\t4000\t5000");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_kafka_a_log_acknowledges_nothing_and_says_so() {
    let mut kafka = Kafka::start().await;
    let deployment = start(Shape::AllInOne, &kafka, "").await;
    assert_eq!(send(&deployment, 0..100).await, 202);
    oracle::drained(&deployment).await;
    kafka.kill();
    for turn in 1..4 {
        let answer = deployment
            .tenant(0)
            .post("/v1/events/events", events(turn * 100..turn * 100 + 100))
            .await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(
            ["refused", "unknown"].contains(&answer.header("sluice-outcome")),
            "{answer:?}"
        );
        assert!(
            answer
                .header("retry-after")
                .parse::<u64>()
                .is_ok_and(|seconds| seconds >= 1)
        );
    }
    eventually("it is not ready", WORKED_ON, async || {
        let ready = deployment.admin(Part::Up).get("/readyz").await.ok()?;
        (ready.status == 503).then_some(())
    })
    .await;
    kafka.bring_up().await;
    eventually("it takes events again", WORKED_ON, async || {
        (send(&deployment, 0..400).await == 202).then_some(())
    })
    .await;
    oracle::drained(&deployment).await;
    assert_eq!(count(&deployment, "events").await, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_s_offset_that_is_out_of_range_stops_its_partition_and_resets_nothing() {
    let kafka = Kafka::start().await;
    let mut deployment = start(Shape::ThreeProcesses, &kafka, ", partitions: 1").await;
    assert_eq!(send(&deployment, 0..100).await, 202);
    oracle::drained(&deployment).await;
    // What comes now is appended, and stays behind the committed offset.
    deployment.signal(Part::SinkWriter, Signal::STOP);
    for turn in 1..20 {
        assert_eq!(send(&deployment, turn * 100..turn * 100 + 100).await, 202);
    }
    deployment.kill(Part::Normalizer);
    kafka.delete_before("events-log", 0, 15).await;
    deployment.signal(Part::SinkWriter, Signal::CONT);
    deployment
        .bring_up(Part::Normalizer)
        .await
        .expect("it takes events all the same");
    a_partition_stops(&deployment).await;
    let offsets = kafka.offsets("sluice").await;
    let committed = offsets[&("events-log".to_owned(), 0)];
    assert!(committed < 15, "{committed}: nothing was passed over");
    assert!(count(&deployment, "events").await < 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_that_is_not_what_it_was_is_refused_with_what_to_do() {
    let kafka = Kafka::start().await;
    let mut deployment = start(Shape::ThreeProcesses, &kafka, ", partitions: 3").await;
    assert_eq!(send(&deployment, 0..10).await, 202);
    oracle::drained(&deployment).await;
    deployment.kill(Part::Normalizer);
    let told = async |deployment: &mut Deployment, log: &str| {
        deployment.rewrite(&config(&kafka, log));
        let refused = deployment.bring_up(Part::Normalizer).await;
        refused.expect_err("it does not start")
    };
    let words = told(&mut deployment, ", partitions: 5").await;
    assert!(
        words.contains("has 3 partitions, `log.partitions` says 5, and the log was made with 3"),
        "{words}"
    );
    let words = told(&mut deployment, ", partitions: 3, tenant_partitions: 1").await;
    assert!(
        words.contains("made with 3 partitions for each tenant"),
        "{words}"
    );
    kafka
        .topic("small", 1, &["retention.ms=60000", "cleanup.policy=compact"])
        .await;
    kafka.topic("small.state", 1, &[]).await;
    deployment.rewrite(&config(&kafka, "").replace("topic: events-log", "topic: small, partitions: 1"));
    let words = deployment
        .bring_up(Part::Normalizer)
        .await
        .expect_err("it does not start");
    for setting in [
        "cleanup.policy=delete",
        "message.timestamp.type=LogAppendTime",
        "set retention.ms to",
        "topic small.state: set retention.ms=-1",
    ] {
        assert!(words.contains(setting), "{setting}: {words}");
    }
    deployment.rewrite(&config(&kafka, ", partitions: 3"));
    deployment.bring_up(Part::Normalizer).await.expect("as it was");
    assert_eq!(send(&deployment, 5..20).await, 202);
    oracle::drained(&deployment).await;
    assert_eq!(count(&deployment, "events").await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_kafka_log_kept_goes_to_its_clean_topic_by_partition() {
    let kafka = Kafka::start().await;
    kafka.topic("clean", 2, &[]).await;
    let published = config(&kafka, "").replacen(
        "batch: {max_age: 200ms}}",
        "batch: {max_age: 200ms}, publish: {topic: clean}}",
        1,
    );
    let deployment = Plan::new(Shape::AllInOne).extra(&published).start().await;
    for turn in 0..5 {
        assert_eq!(send(&deployment, turn * 300..turn * 300 + 400).await, 202);
    }
    oracle::drained(&deployment).await;
    let messages = kafka.read("clean").await;
    let stand = super::Stand { kafka, deployment };
    let rows = stand.rows("events").await;
    assert_eq!(rows.len(), 1_600);
    let partitions: std::collections::BTreeSet<_> =
        rows.keys().map(|(_, partition, _)| partition.clone()).collect();
    assert_eq!(partitions.len(), 4, "keys lie in all partitions");
    assert_eq!(hold(&messages, &rows, "events"), 0, "no copies without a crash");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_aside_of_a_kafka_log_is_sent_by_whoever_has_its_partition_then() {
    let kafka = Kafka::start().await;
    let plan = Plan::new(Shape::ThreeProcesses)
        .twin_normalizers()
        .extra(&config(&kafka, ""));
    let mut deployment = plan.clickhouse("park_after: 1s").start().await;
    for part in deployment.normalizers() {
        works_on(&deployment, part, 2).await;
    }
    let rename = async |deployment: &Deployment, from: &str, to: &str| {
        let sql = format!("RENAME TABLE telemetry.{from} TO telemetry.{to}");
        deployment.clickhouse().query(&sql).await.expect("renamed");
    };
    rename(&deployment, "events", "elsewhere").await;
    // Keys lie in all partitions: each normalizer sets some aside.
    let parked = async |deployment: &Deployment, part: Part| {
        deployment.metric(part, "sluice_parked_units", "events").await
    };
    let mut sent = 0;
    for part in [Part::Normalizer, Part::SecondNormalizer] {
        eventually("rows are set aside", WORKED_ON, async || {
            sent += u64::from(send(&deployment, sent..sent + 50).await == 202) * 50;
            (parked(&deployment, part).await > 0.0).then_some(())
        })
        .await;
    }
    // One is gone for ever, its disk with it.
    deployment.kill(Part::SecondNormalizer);
    std::fs::remove_dir_all(deployment.second_data()).expect("it was there");
    works_on(&deployment, Part::Normalizer, 4).await;
    assert_eq!(send(&deployment, sent..sent + 50).await, 202);
    sent += 50;
    rename(&deployment, "elsewhere", "events").await;
    eventually("everything is in its table", WORKED_ON, async || {
        let empty = parked(&deployment, Part::Normalizer).await == 0.0;
        (empty && count(&deployment, "events").await == sent).then_some(())
    })
    .await;
    let distinct = "SELECT uniqExact(event_id) FROM telemetry.events";
    assert_eq!(
        deployment
            .clickhouse()
            .query(distinct)
            .await
            .expect("told")
            .trim(),
        sent.to_string()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_whose_offsets_or_topic_are_gone_is_not_begun_again_by_itself() {
    let kafka = Kafka::start().await;
    let mut deployment = start(Shape::ThreeProcesses, &kafka, ", partitions: 1").await;
    assert_eq!(send(&deployment, 0..100).await, 202);
    oracle::drained(&deployment).await;
    tokio::task::block_in_place(|| deployment.terminate(Part::Normalizer));
    kafka.forget_offsets("sluice", "events-log").await;
    deployment
        .bring_up(Part::Normalizer)
        .await
        .expect("it starts: other partitions may be well");
    a_partition_stops(&deployment).await;
    eventually(
        "nothing is taken that nobody would store",
        WORKED_ON,
        async || (send(&deployment, 100..110).await == 503).then_some(()),
    )
    .await;
    assert_eq!(
        count(&deployment, "events").await,
        100,
        "nothing was stored twice"
    );
    deployment.kill(Part::Normalizer);
    kafka.delete_topic("events-log").await;
    let words = deployment
        .bring_up(Part::Normalizer)
        .await
        .expect_err("it does not start");
    assert!(words.contains("topic events-log was made anew"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_s_commit_that_is_late_by_a_rebalance_is_dropped_and_counted() {
    let kafka = Kafka::start().await;
    let (one, other) = (Part::Normalizer, Part::SecondNormalizer);
    let plan = Plan::new(Shape::ThreeProcesses).twin_normalizers().tenants(8);
    let plan = plan.extra(&config(&kafka, ", partitions: 2, tenant_partitions: 1"));
    let mut deployment = plan.start().await;
    let mut points = Failpoints::below(deployment.path());
    tokio::task::block_in_place(|| deployment.terminate(one));
    deployment.bring_up(one).await.expect("ready");
    for part in [one, other] {
        works_on(&deployment, part, 1).await;
    }
    let post = async |deployment: &Deployment, tenant: usize, numbers: std::ops::Range<u64>| {
        eventually("events are taken", WORKED_ON, async || {
            let client = deployment.tenant(tenant);
            let sent = client.post("/v1/events/events", events(numbers.clone())).await;
            sent.is_ok_and(|answer| answer.status == 202).then_some(())
        })
        .await;
    };
    for tenant in 0..8 {
        post(&deployment, tenant, 0..10).await;
    }
    oracle::drained(&deployment).await;
    // A tenant whose events lie in one partition: which one goes to the other is the group's to say.
    let sql = "SELECT min(tenant) FROM telemetry.events WHERE _src_p = 0";
    let tenant = deployment.clickhouse().query(sql).await.expect("told");
    let tenant: usize = tenant
        .trim()
        .trim_start_matches('t')
        .parse()
        .expect("a tenant has events there");
    for _ in 0..8 {
        tokio::task::block_in_place(|| deployment.terminate(other));
        works_on(&deployment, one, 2).await;
        // Longer than a partition that is to go is waited for.
        let case = Case {
            point: Point::CommitPersist,
            action: Action::Delay(20_000),
            nth: 1,
        };
        points.arm(case);
        post(&deployment, tenant, 10..20).await;
        points.fired(case, WORKED_ON).await;
        points.disarm();
        deployment.bring_up(other).await.expect("ready");
        works_on(&deployment, other, 1).await;
        if partitions(&deployment, other).await == [0] {
            break;
        }
        oracle::drained(&deployment).await;
    }
    eventually("the late commit is counted", WORKED_ON, async || {
        let late = deployment.metric(one, "sluice_stale_commits_total", "").await;
        (late >= 1.0).then_some(())
    })
    .await;
    post(&deployment, tenant, 15..30).await;
    oracle::drained(&deployment).await;
    let rows = "SELECT count(), uniqExact(tenant, event_id) FROM telemetry.events FORMAT TSV";
    let rows = deployment.clickhouse().query(rows).await.expect("told");
    assert_eq!(rows.trim(), "100\t100");
}
