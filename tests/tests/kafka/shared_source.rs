//! A topic that feeds a dataset of several normalizers, which share a log in Kafka too: each message is one row, whoever
//! reads it, and whoever works on the partition that it was appended to.

use serde_json::json;
use sluice_common::failpoint::Point;
use sluice_tests::failpoints::{Action, Case, Failpoints};
use sluice_tests::kafka::{Kafka, WORKED_ON, works_on};
use sluice_tests::{Deployment, Part, Plan, Shape, eventually, finally, oracle};
use std::collections::BTreeSet;
use std::path::Path;

/// Of the topic, as of the log.
const PARTITIONS: u32 = 4;
/// Messages of equal content: only where they lie tells them apart.
const COPIES: u64 = 3;
/// Different messages that are written at once.
const ROUND: u64 = 1_000;

fn config(kafka: &Kafka) -> String {
    format!(
        "kafka: {{brokers: [\"{}\"]}}
log: {{kind: kafka, topic: events-log, partitions: {PARTITIONS}}}
datasets:
- {{name: lines, fields: [{{name: n, type: uint32, required: true}}], batch: {{max_age: 200ms}},
   consume: [{{topics: [lines], tenant: t1, group: readers}}]}}
",
        kafka.brokers()
    )
}

/// The topic's partitions that a normalizer reads.
async fn reads(deployment: &Deployment, part: Part) -> BTreeSet<String> {
    let told = deployment.admin(part).get("/metrics").await;
    let text = told.map_or_else(|_| String::new(), |told| told.text());
    let of = |line: &str| {
        let labels = line.strip_prefix("sluice_kafka_consumer_lag{")?;
        let number = labels.split("partition=\"").nth(1)?.split('"').next()?;
        Some(number.to_owned())
    };
    text.lines().filter_map(of).collect()
}

/// Waits until each of these reads as many partitions, and all are read.
async fn shared(deployment: &Deployment, parts: &[Part]) {
    finally("the topic's partitions are shared", WORKED_ON, async || {
        let mut all = Vec::new();
        for part in parts {
            all.push(reads(deployment, *part).await);
        }
        let each = PARTITIONS as usize / parts.len();
        let whole: BTreeSet<&String> = all.iter().flatten().collect();
        let is_shared = all.iter().all(|one| one.len() == each) && whole.len() == PARTITIONS as usize;
        is_shared.then_some(()).ok_or_else(|| format!("{all:?}"))
    })
    .await;
}

/// The so-maniest round of messages.
async fn write(kafka: &Kafka, round: u64) {
    let numbers = round * ROUND..(round + 1) * ROUND;
    // Copies have different keys, so that they lie in different partitions too.
    let copies = numbers.flat_map(|n| (0..COPIES).map(move |copy| (n + copy, n)));
    let messages = copies.map(|(key, n)| (key.to_string(), json!({"n": n}).to_string()));
    kafka.write("lines", messages).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_as_a_source_of_two_normalizers_makes_each_message_one_row_whoever_reads_it() {
    let kafka = Kafka::start().await;
    kafka.topic("lines", PARTITIONS, &[]).await;
    let plan = Plan::new(Shape::ThreeProcesses)
        .twin_normalizers()
        .extra(&config(&kafka));
    let mut points = None;
    let prepare = |dir: &Path| points = Some(Failpoints::below(dir));
    let mut deployment = plan.start_prepared(prepare).await;
    let mut points = points.expect("prepared");
    let both = deployment.normalizers();
    for part in &both {
        works_on(&deployment, *part, 2).await;
    }
    shared(&deployment, &both).await;
    // One is killed with messages in the log whose offsets are not committed: the other one reads them again.
    let case = Case {
        point: Point::SourceDurable,
        action: Action::Kill,
        nth: 1,
    };
    points.arm(case);
    tokio::join!(write(&kafka, 0), points.fired(case, WORKED_ON));
    let killed = eventually("a normalizer ends", WORKED_ON, async || {
        let mut all = both.iter().copied();
        all.find(|part| deployment.ended(*part).is_some())
    })
    .await;
    let other = both.iter().copied().find(|part| *part != killed).expect("two");
    let (only_other, only_killed) = ([other], [killed]);
    tokio::join!(write(&kafka, 1), shared(&deployment, &only_other));
    // It comes back, and is given its share again.
    let (_, back) = tokio::join!(write(&kafka, 2), deployment.bring_up(killed));
    back.expect("ready");
    shared(&deployment, &both).await;
    // The other one leaves in order while messages come, and comes back.
    let leaves = async {
        let ended = tokio::task::block_in_place(|| deployment.terminate(other));
        assert!(ended, "it ends with 0");
    };
    tokio::join!(write(&kafka, 3), leaves);
    shared(&deployment, &only_killed).await;
    let (_, back) = tokio::join!(write(&kafka, 4), deployment.bring_up(other));
    back.expect("ready");
    shared(&deployment, &both).await;
    each_is_there_once(&kafka, &deployment, 5).await;
}

/// Everything is read to its end, and so many rounds of messages are so many rows.
async fn each_is_there_once(kafka: &Kafka, deployment: &Deployment, rounds: u64) {
    let (distinct, written) = (rounds * ROUND, rounds * ROUND * COPIES);
    eventually("offsets are at the ends", WORKED_ON, async || {
        let read: u64 = kafka.offsets("readers").await.values().sum();
        (read == written).then_some(())
    })
    .await;
    oracle::drained(deployment).await;
    let clickhouse = deployment.clickhouse();
    let told = async |sql: &str| {
        let told = clickhouse.query(sql).await.expect("told");
        told.trim().to_owned()
    };
    let rows = "SELECT count(), uniqExact(n) FROM telemetry.lines FORMAT TSV";
    assert_eq!(told(rows).await, format!("{written}\t{distinct}"));
    let odd =
        format!("SELECT n, count() AS rows FROM telemetry.lines GROUP BY n HAVING rows != {COPIES} LIMIT 5");
    assert_eq!(told(&odd).await, "", "each is there as often as it was written");
    let books = "SELECT sum(stored), sum(duplicate) > 0 FROM telemetry.ledger FORMAT TSV";
    assert_eq!(told(books).await, format!("{written}\t1"), "some were read twice");
}
