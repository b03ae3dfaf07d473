//! Topics that datasets are fed from: every message is one row or one dead letter, whatever is killed.

use super::checked;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use sluice_common::failpoint::Point;
use sluice_tests::balance::books_balance;
use sluice_tests::failpoints::{Action, Case, Failpoints};
use sluice_tests::kafka::{Kafka, NO_VALUE, USER};
use sluice_tests::{Deployment, Part, Plan, Shape, eventually, finally, now_ms, oracle};
use std::collections::BTreeMap;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// A dataset with a key, from two topics, and one without. `KAFKA` is the way to the broker.
const CONFIG: &str = "kafka: {KAFKA}
datasets:
- {name: orders, fields: [{name: id, type: string, required: true}, {name: at, type: datetime64(3), required: true, epoch: ms},
     {name: size_bytes, type: nullable(uint64), from: size_kib, unit: {from: KiBy, to: By}}],
   dedup: {key: [id], window: 24h}, time: {field: at}, partition_by: toDate(at), batch: {max_age: 200ms},
   consume: [{topics: [orders.eu, orders.us], tenant: t0}]}
- {name: lines, fields: [{name: n, type: uint32, required: true}], batch: {max_age: 200ms},
   consume: [{topics: [lines], tenant: t1, group: readers, from: earliest}]}
";

fn config(kafka: &str) -> String {
    CONFIG.replace("KAFKA", kafka)
}

fn plain(kafka: &Kafka) -> String {
    config(&format!("brokers: [\"{}\"]", kafka.brokers()))
}

async fn broker() -> Kafka {
    let kafka = Kafka::start().await;
    for (topic, partitions) in [("orders.eu", 3), ("orders.us", 1), ("lines", 2)] {
        kafka.topic(topic, partitions, &[]).await;
    }
    kafka
}

fn order(n: u64) -> (String, String) {
    let value = json!({"id": n.to_string(), "at": now_ms(), "size_kib": n});
    (n.to_string(), value.to_string())
}

/// Equal in content to others: only where it lies tells them apart.
fn line(n: u64) -> (String, String) {
    (n.to_string(), json!({"n": n % 10}).to_string())
}

async fn number(deployment: &Deployment, sql: &str) -> Option<u64> {
    deployment.clickhouse().query(sql).await.ok()?.trim().parse().ok()
}

/// Waits until a table has so many rows.
async fn rows(deployment: &Deployment, table: &str, expected: u64) {
    let sql = format!("SELECT count() FROM telemetry.{table}");
    finally(
        &format!("{expected} rows of {table}"),
        SOON,
        async || match number(deployment, &sql).await {
            Some(count) if count == expected => Ok(()),
            other => Err(format!("{other:?}\n{}", deployment.last_words())),
        },
    )
    .await;
}

/// How often each order is stored, with its size.
async fn orders(deployment: &Deployment) -> BTreeMap<u64, (u64, u64)> {
    let sql = "SELECT toUInt64(id), count(), max(size_bytes) FROM telemetry.orders GROUP BY id FORMAT TSV";
    let told = deployment.clickhouse().query(sql).await.expect("rows");
    let line = |line: &str| {
        let mut numbers = line.split('\t').map(|word| word.parse().expect("a number"));
        let mut next = || numbers.next().expect("three");
        (next(), (next(), next()))
    };
    told.lines().map(line).collect()
}

async fn read_so_far(deployment: &Deployment, part: Part, outcome: &str) -> f64 {
    let text = deployment
        .admin(part)
        .get("/metrics")
        .await
        .expect("metrics")
        .text();
    let labels = ["stage=\"source\"".to_owned(), format!("outcome=\"{outcome}\"")];
    let line = text.lines().find(|line| {
        line.starts_with("sluice_events_total{") && labels.iter().all(|label| line.contains(label))
    });
    let line = line.expect("it is exported from the start on");
    line.rsplit(' ')
        .next()
        .and_then(|word| word.parse().ok())
        .expect("a number")
}

fn log_of(deployment: &Deployment, part: Part) -> String {
    std::fs::read_to_string(deployment.log_file(part)).expect("a log")
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_as_a_source_makes_each_message_one_row_whatever_is_killed() {
    let seed = oracle::seed("kafka source");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut kafka = broker().await;
    let mut deployment = Plan::new(Shape::ThreeProcesses)
        .extra(&plain(&kafka))
        .start()
        .await;
    for round in 0..8_u64 {
        // A third of the orders comes twice, over another topic.
        let (from, to) = (round * 1_000, round * 1_000 + 1_000);
        kafka.write("orders.eu", (from..to).map(order)).await;
        kafka.write("orders.us", (from..to).step_by(3).map(order)).await;
        kafka.write("lines", (from..to).map(line)).await;
        // When the kill comes is drawn; nothing is waited for.
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..600))).await;
        let victim = [
            Some(Part::Normalizer),
            None,
            Some(Part::SinkWriter),
            Some(Part::ClickHouse),
        ][usize::try_from(round % 4).expect("small")];
        let Some(part) = victim else {
            kafka.kill();
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..2_000))).await;
            kafka.bring_up().await;
            continue;
        };
        deployment.kill(part);
        if part != Part::ClickHouse {
            deployment.bring_up(part).await.expect("ready");
        }
    }
    rows(&deployment, "orders", 8_000).await;
    rows(&deployment, "lines", 8_000).await;
    oracle::drained(&deployment).await;
    // Read to the end, and nothing came after.
    eventually("offsets at the ends", SOON, async || {
        let orders: u64 = kafka.offsets("sluice.orders.t0").await.values().sum();
        let lines: u64 = kafka.offsets("readers").await.values().sum();
        (orders == 8_000 + 8 * 334 && lines == 8_000).then_some(())
    })
    .await;
    let stored = orders(&deployment).await;
    assert_eq!(stored.len(), 8_000);
    for (id, (times, bytes)) in &stored {
        assert_eq!((*times, *bytes), (1, id * 1_024), "order {id}");
    }
    let lines =
        "SELECT countIf(times != 800) FROM (SELECT n, count() AS times FROM telemetry.lines GROUP BY n)";
    assert_eq!(number(&deployment, lines).await, Some(0));
    let theirs = "SELECT uniqExact(tenant) * 100 + countIf(tenant = 't0') FROM telemetry.lines";
    assert_eq!(
        number(&deployment, theirs).await,
        Some(100),
        "the config says whose they are"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_as_a_source_loses_and_doubles_nothing_whatever_happens_at_its_steps() {
    let kafka = broker().await;
    let mut points = None;
    let extra = plain(&kafka);
    let started = Deployment::start_prepared(3, Shape::ThreeProcesses, &extra, |dir| {
        points = Some(Failpoints::below(dir));
    });
    let (mut deployment, mut points) = (started.await, points.expect("prepared"));
    let mut sent = 0;
    for point in [Point::SourceRead, Point::SourceDurable] {
        // The delay is longer than a source is patient: it holds its place in the group meanwhile.
        for action in [Action::Kill, Action::Error, Action::Delay(4_000)] {
            let case = Case {
                point,
                action,
                nth: 2,
            };
            println!("{case}");
            points.arm(case);
            let writing = async {
                kafka.write("orders.eu", (sent..sent + 500).map(order)).await;
                kafka.write("lines", (sent..sent + 500).map(line)).await;
            };
            tokio::join!(writing, points.fired(case, SOON));
            points.disarm();
            sent += 500;
            if action == Action::Kill {
                eventually("the process ends", SOON, async || {
                    deployment.ended(Part::Normalizer)
                })
                .await;
                deployment.bring_up(Part::Normalizer).await.expect("ready");
            }
        }
    }
    rows(&deployment, "orders", sent).await;
    rows(&deployment, "lines", sent).await;
    assert!(orders(&deployment).await.values().all(|(times, _)| *times == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_messages_that_are_no_events_become_dead_letters_that_say_where_they_lie() {
    let kafka = broker().await;
    let deployment = Plan::new(Shape::AllInOne).extra(&plain(&kafka)).start().await;
    let long = "x".repeat(200_000);
    let values = [
        r#"{"n": 1}"#,
        "{broken",
        NO_VALUE,
        r#"{"n": "text"}"#,
        r#"[{"n": 1}]"#,
        r#"{"n": 2}"#,
        &format!(r#"{{"n": 3, "unknown": "{long}"}}"#),
        r#" {"n": 4} "#,
    ];
    // One key: all lie in one partition, in this order.
    kafka
        .write("lines", values.map(|value| ("k".into(), value.into())))
        .await;
    rows(&deployment, "lines", 3).await;
    rows(&deployment, "dead_letters", 5).await;
    let sql = "SELECT event_index, tenant, dataset, stage, code, message, payload FROM telemetry.dead_letters \
               ORDER BY event_index FORMAT JSONCompactEachRow";
    let told = deployment.clickhouse().query(sql).await.expect("rows");
    let letters: Vec<Value> = told
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let expected = [
        (1, "malformed_json", "{broken"),
        (2, "malformed_json", ""),
        (3, "wrong_type", r#"{"n": "text"}"#),
        (4, "not_an_object", r#"[{"n": 1}]"#),
        (6, "unknown_field", r#"{"n": 3, "unknown": "xxx"#),
    ];
    for (letter, (offset, code, payload)) in letters.iter().zip(expected) {
        assert_eq!(letter[0], offset, "{letter}");
        assert_eq!((&letter[1], &letter[2]), (&json!("t1"), &json!("lines")));
        assert_eq!(letter[4], code, "{letter}");
        let message = letter[5].as_str().expect("text");
        assert!(message.contains("Kafka topic lines, partition "), "{message}");
        assert!(message.ends_with(&format!("offset {offset})")), "{message}");
        assert!(letter[6].as_str().expect("text").starts_with(payload), "{letter}");
    }
    books_balance(&deployment.clickhouse(), 8).await;
    // Of a batch that is rejected whole every message is kept, whatever a request of a client may keep.
    let broken = format!("broken {}", "y".repeat(2_000));
    kafka
        .write("lines", (0..1_500).map(|_| ("k".to_owned(), broken.clone())))
        .await;
    rows(&deployment, "dead_letters", 1_505).await;
    assert!((read_so_far(&deployment, Part::Up, "rejected").await - 1_505.0).abs() < 0.5);
    assert!(log_of(&deployment, Part::Up).contains("messages were rejected"));
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_groups_begin_where_they_are_told_and_go_on_where_they_stopped() {
    let kafka = broker().await;
    kafka.write("lines", (0..100).map(line)).await;
    let then = jiff::Timestamp::from_millisecond(i64::try_from(now_ms()).expect("a time")).expect("a time");
    kafka.write("lines", (0..50).map(line)).await;
    let (ca, (user, password)) = (kafka.file("ca.crt").display().to_string(), USER);
    let way = format!(
        "brokers: [\"{}\"], tls: {{ca: {ca}}}, sasl: {{mechanism: scram-sha-512, username: {user}, password: {password}}}",
        kafka.sasl_brokers()
    );
    let dataset = |name: &str, from: &str| {
        format!(
            "- {{name: {name}, fields: [{{name: n, type: uint32, required: true}}], batch: {{max_age: 200ms}}, \
             consume: [{{topics: [lines], tenant: t0, from: \"{from}\"}}]}}\n"
        )
    };
    let some = format!(
        "kafka: {{{way}}}\ndatasets:\n{}",
        dataset("all_of_it", "earliest")
    );
    let mut deployment = Plan::new(Shape::AllInOne).extra(&some).start().await;
    rows(&deployment, "all_of_it", 150).await;
    let more = format!(
        "{some}{}{}",
        dataset("late", "latest"),
        dataset("since", &then.to_string())
    );
    deployment.reload(&more).await;
    rows(&deployment, "since", 50).await;
    // Its first offsets are fixed before anything is read: from then on nothing is missed.
    eventually("a beginning", SOON, async || {
        let offsets = kafka.offsets("sluice.late.t0").await;
        (offsets.values().sum::<u64>() == 150).then_some(())
    })
    .await;
    kafka.write("lines", (0..25).map(line)).await;
    rows(&deployment, "all_of_it", 175).await;
    rows(&deployment, "since", 75).await;
    rows(&deployment, "late", 25).await;
    eventually("all is committed", SOON, async || {
        let mut sums = Vec::new();
        for group in ["sluice.all_of_it.t0", "sluice.since.t0", "sluice.late.t0"] {
            sums.push(kafka.offsets(group).await.values().sum::<u64>());
        }
        (sums == [175, 175, 175]).then_some(())
    })
    .await;
    deployment.kill(Part::Up);
    kafka.write("lines", (0..5).map(line)).await;
    deployment.bring_up(Part::Up).await.expect("ready");
    rows(&deployment, "all_of_it", 180).await;
    rows(&deployment, "since", 80).await;
    rows(&deployment, "late", 30).await;
    let read = read_so_far(&deployment, Part::Up, "accepted").await;
    assert!(
        (read - 15.0).abs() < 0.5,
        "{read}: what was committed is not read again"
    );
    // Taken out, it is left alone; the others go on.
    deployment.reload(&some).await;
    kafka.write("lines", (0..5).map(line)).await;
    rows(&deployment, "all_of_it", 185).await;
    rows(&deployment, "late", 30).await;
    assert!(
        !log_of(&deployment, Part::Up).contains(password),
        "a password is told"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_messages_that_were_deleted_unread_stop_their_partition_alone_and_nothing_is_reset() {
    let kafka = broker().await;
    let extra = plain(&kafka);
    let mut deployment = Plan::new(Shape::AllInOne).extra(&extra).start().await;
    kafka.write("orders.us", (0..100).map(order)).await;
    rows(&deployment, "orders", 100).await;
    assert!(deployment.terminate(Part::Up), "it ends with 0");
    let offsets = kafka.offsets("sluice.orders.t0").await;
    assert_eq!(
        offsets.get(&("orders.us".into(), 0)),
        Some(&100),
        "committed at the end: {offsets:?}"
    );
    kafka.write("orders.us", (100..200).map(order)).await;
    kafka.delete_before("orders.us", 0, 150).await;
    kafka.write("orders.eu", (1_000..1_050).map(order)).await;
    deployment.bring_up(Part::Up).await.expect("ready");
    rows(&deployment, "orders", 150).await;
    finally("it is told", SOON, async || {
        let told = log_of(&deployment, Part::Up);
        let wanted = "partition 0 of topic orders.us is not read: the group's offset is 100, and the topic has 150 to 200";
        if told.contains(wanted) { Ok(()) } else { Err(told) }
    })
    .await;
    let alarms = deployment
        .metric(Part::Up, "sluice_alarms_total", "reason=\"source\"")
        .await;
    assert!(alarms >= 1.0, "{alarms}");
    kafka.write("orders.us", (200..210).map(order)).await;
    kafka.write("orders.eu", (1_050..1_060).map(order)).await;
    rows(&deployment, "orders", 160).await;
    let offsets = kafka.offsets("sluice.orders.t0").await;
    assert_eq!(
        offsets.get(&("orders.us".into(), 0)),
        Some(&100),
        "nothing was reset"
    );
    // As the message says.
    let without = extra.replace(
        "consume: [{topics: [orders.eu, orders.us], tenant: t0}]",
        "consume: []",
    );
    assert_ne!(without, extra);
    deployment.reload(&without).await;
    finally("the group is empty", SOON, async || {
        let told = log_of(&deployment, Part::Up);
        if told.contains("left its consumer group") {
            Ok(())
        } else {
            Err(told)
        }
    })
    .await;
    kafka.rewind("sluice.orders.t0", "orders.us:0").await;
    deployment.reload(&extra).await;
    rows(&deployment, "orders", 160 + 60).await;
}

/// A second Sluice with the first one's config, and a log of its own.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_offsets_of_another_log_are_not_gone_on_with_and_partitions_that_come_back_are_read() {
    let kafka = broker().await;
    let extra = plain(&kafka);
    let first = Plan::new(Shape::AllInOne).extra(&extra).start().await;
    kafka.write("orders.eu", (0..500).map(order)).await;
    rows(&first, "orders", 500).await;
    let mut second = Plan::new(Shape::AllInOne).extra(&extra).start().await;
    finally("it is told", SOON, async || {
        let told = log_of(&second, Part::Up);
        let is_told = told.contains("the group's offset was committed by another log (sluice log ");
        if is_told { Ok(()) } else { Err(told) }
    })
    .await;
    kafka.write("orders.eu", (500..1_500).map(order)).await;
    kafka.write("orders.us", (1_500..1_600).map(order)).await;
    finally("what waits is told", SOON, async || {
        let text = second
            .admin(Part::Up)
            .get("/metrics")
            .await
            .map_err(|error| error.to_string())?
            .text();
        let is_one = |line: &&str| line.starts_with("sluice_kafka_consumer_lag{") && !line.ends_with(" 0");
        if text.lines().any(|line| is_one(&line)) {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
    assert!(second.terminate(Part::Up), "it ends with 0");
    rows(&first, "orders", 1_600).await;
    assert!(orders(&first).await.values().all(|(times, _)| *times == 1));
    second.bring_up(Part::Up).await.expect("ready");
    assert_eq!(
        number(&second, "SELECT count() FROM telemetry.orders").await,
        Some(0),
        "none by both"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_topics_are_looked_at_by_check() {
    let kafka = Kafka::start().await;
    kafka.topic("lines", 2, &[]).await;
    kafka.topic("orders.eu", 3, &[]).await;
    let check = |brokers: String| checked(&config(&format!("brokers: [\"{brokers}\"]")));
    let (code, told) = check(kafka.brokers());
    assert_eq!(code, Some(1), "a topic is missing: {told}");
    let finding = |topic: &str| {
        let all = told["findings"].as_array().expect("a list");
        let one = all.iter().find(|one| one["what"] == format!("topic {topic}"));
        one.unwrap_or_else(|| panic!("{topic}: {told}")).clone()
    };
    assert_eq!(
        finding("lines")["message"],
        "dataset lines is fed from it; 2 partitions"
    );
    assert_eq!(finding("orders.eu")["level"], "good");
    assert_eq!(finding("orders.us")["level"], "unusable");
    let message = finding("orders.us")["message"].as_str().expect("text").to_owned();
    assert!(message.contains("UnknownTopicOrPartition"), "{message}");
    let (code, told) = check("127.0.0.1:1".into());
    assert_eq!(code, Some(1));
    assert!(told.to_string().contains("no broker answers"), "{told}");
}
