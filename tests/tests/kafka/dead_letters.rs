//! The topic of dead letters: every row of `dead_letters` is there, of whichever kind, whatever is away or killed.

use super::kills::{POINTS, ends, turns};
use super::{CAUGHT_UP, Source, source, source_of};
use serde_json::{Value, json};
use sluice_common::failpoint::Point;
use sluice_tests::failpoints::{Action, Case, Failpoints, park_soon};
use sluice_tests::kafka::{Kafka, Message};
use sluice_tests::{Deployment, Part, Shape, eventually, finally, now_ms, oracle};
use std::collections::BTreeMap;
use std::time::Duration;

const TOPIC: &str = "dead.letters";
const SOON: Duration = Duration::from_secs(60);
/// Members that are columns.
const MEMBERS: [&str; 9] = [
    "tenant",
    "dataset",
    "stage",
    "code",
    "message",
    "field",
    "event_index",
    "request_id",
    "payload",
];
/// `KAFKA` are keys of it, `LETTERS` those of `dead_letters`.
const CONFIG: &str = "kafka: {KAFKA}
dead_letters: {LETTERS}
datasets:
- {name: sales, keep_rejected: true, time: {field: time}, partition_by: toDate(time), batch: {max_age: 200ms}, dedup: {key: [id]},
   fields: [{name: id, type: string, required: true}, {name: time, type: datetime64(3), required: true, epoch: ms},
     {name: amount, type: int64}, {name: note, type: string}]}
- {name: plain, batch: {max_age: 200ms}, fields: [{name: n, type: uint32, required: true}]}
";

/// A broker with a topic of dead letters, a Sluice, and a table that refuses what is not above 0.
struct Stand {
    kafka: Kafka,
    deployment: Deployment,
    points: Failpoints,
    sent: u64,
}

fn config(kafka: &Kafka, more: &str, letters: &str) -> String {
    let brokers = format!("brokers: [\"{}\"]{more}", kafka.brokers());
    CONFIG.replace("KAFKA", &brokers).replace("LETTERS", letters)
}

fn topic() -> String {
    format!("topic: {TOPIC}")
}

impl Stand {
    async fn start(more: &str) -> Self {
        let kafka = Kafka::start().await;
        kafka.topic(TOPIC, 2, &[]).await;
        let (mut points, extra) = (None, config(&kafka, more, &topic()));
        let started = Deployment::start_prepared(3, Shape::ThreeProcesses, &extra, |dir| {
            park_soon(dir);
            points = Some(Failpoints::below(dir));
        });
        let deployment = started.await;
        let stand = Self {
            kafka,
            deployment,
            points: points.expect("prepared"),
            sent: 0,
        };
        stand.shows("EXISTS telemetry.sales", "1").await;
        stand
            .run("ALTER TABLE telemetry.sales ADD CONSTRAINT positive CHECK amount > 0")
            .await;
        stand
    }

    async fn run(&self, sql: &str) -> String {
        self.deployment.clickhouse().query(sql).await.expect(sql)
    }

    async fn shows(&self, sql: &str, wanted: &str) {
        finally(sql, SOON, async || {
            match self.deployment.clickhouse().query(sql).await {
                Ok(told) if told == wanted => Ok(()),
                told => Err(format!("{told:?}, not {wanted:?}")),
            }
        })
        .await;
    }

    /// Sends ten sales: two that the table refuses, and one that intake rejects. Whether they were taken, or all refused.
    async fn spoil(&mut self, tenant: usize) -> bool {
        let from = self.sent;
        self.sent += 10;
        let sale = |n: u64| {
            let amount = match n - from {
                2 | 7 => json!(-1),
                5 => json!("none"),
                _ => json!(1),
            };
            json!({"id": n.to_string(), "time": now_ms(), "amount": amount, "note": "\"a\ttab\" and ü"})
        };
        let sales: Vec<Value> = (from..self.sent).map(sale).collect();
        let client = self.deployment.tenant(tenant);
        let answer = client.post("/v1/events/sales", json!(sales).to_string()).await;
        let answer = answer.expect("an answer");
        let is_refused = answer.status == 503 && answer.header("sluice-outcome") == "refused";
        assert!(answer.status.is_success() || is_refused, "{answer:?}");
        answer.status.is_success()
    }

    /// The same until they are taken: three more letters, seven more rows.
    async fn spoilt(&mut self, tenant: usize) {
        finally("sales are taken", SOON, async || {
            self.spoil(tenant).await.then_some(()).ok_or("refused")
        })
        .await;
    }

    /// One idempotency key with two contents: a conflict.
    async fn clash(&self, key: &str) {
        let client = self.deployment.tenant(1).with("idempotency-key", key);
        for n in [1, 2] {
            let answer = client
                .post("/v1/events/plain", json!([{"n": n}]).to_string())
                .await;
            assert_eq!(answer.expect("an answer").status, 202);
        }
    }

    async fn metric(&self, name: &str, label: &str) -> f64 {
        self.deployment.metric(Part::Normalizer, name, label).await
    }

    /// Bytes that wait for the topic; none where the normalizer does not answer.
    async fn waiting(&self) -> Option<f64> {
        let name = "sluice_dead_letters_waiting_bytes";
        self.deployment.level(Part::Normalizer, name, "").await
    }

    async fn some_wait(&self) {
        eventually("dead letters wait", SOON, async || {
            (self.waiting().await > Some(0.0)).then_some(())
        })
        .await;
    }

    /// Everything is settled, and nothing waits for the topic.
    async fn drained(&self) {
        oracle::drained(&self.deployment).await;
        finally(
            "the topic has what waited for it",
            CAUGHT_UP,
            async || match self.waiting().await {
                Some(0.0) => Ok(()),
                waiting => Err(format!("{waiting:?} bytes wait")),
            },
        )
        .await;
    }

    async fn restart(&mut self) {
        self.deployment.kill(Part::Normalizer);
        self.deployment.bring_up(Part::Normalizer).await.expect("ready");
    }

    /// The rows of the table, each of them there once.
    async fn rows(&self) -> BTreeMap<Source, Value> {
        let sql = format!(
            "SELECT toString(_src_l) AS l, toString(_src_p) AS p, toString(_src_o) AS o, {}, \
             toUnixTimestamp64Milli(ingested_at) AS taken FROM telemetry.dead_letters FORMAT JSONEachRow \
             SETTINGS output_format_json_quote_64bit_integers = 0",
            MEMBERS.join(", ")
        );
        let told = self.run(&sql).await;
        let rows = told.lines().map(|line| {
            let row: Value = serde_json::from_str(line).expect("JSON");
            let text = |name: &str| row[name].as_str().expect("text").to_owned();
            (source(text, ["l", "p", "o"]), row)
        });
        let rows: Vec<(Source, Value)> = rows.collect();
        let all = rows.len();
        let rows: BTreeMap<Source, Value> = rows.into_iter().collect();
        assert_eq!(rows.len(), all, "each row is there once");
        rows
    }

    /// Holds the topic against the table: every row is there, and nothing else is. How many copies there are.
    async fn hold(&self, expected: usize) -> usize {
        let (rows, messages) = (self.rows().await, self.kafka.read(TOPIC).await);
        assert_eq!(rows.len(), expected, "rows of dead_letters");
        let mut seen: BTreeMap<Source, &Message> = BTreeMap::new();
        for message in &messages {
            let source = source_of(message);
            let row = rows.get(&source);
            is_of(message, row.unwrap_or_else(|| panic!("no row is of {message:?}")));
            if let Some(first) = seen.insert(source, message) {
                assert_eq!((&first.value, &first.headers), (&message.value, &message.headers));
            }
        }
        let missing: Vec<_> = rows
            .iter()
            .filter(|(source, _)| !seen.contains_key(source))
            .collect();
        assert!(missing.is_empty(), "not in the topic: {missing:?}");
        println!(
            "{} messages, {} copies",
            messages.len(),
            messages.len() - seen.len()
        );
        messages.len() - seen.len()
    }
}

fn is_of(message: &Message, row: &Value) {
    let value = &message.value;
    for member in MEMBERS {
        // What has no value is left out.
        let told = value.get(member).unwrap_or(&Value::Null);
        assert_eq!(told, &row[member], "{member} of {message:?}");
    }
    let at: jiff::Timestamp = value["ingested_at"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("a time");
    let taken = row["taken"].as_u64().expect("a number");
    assert_eq!(
        u64::try_from(at.as_millisecond()).expect("later than 1970"),
        taken
    );
    assert_eq!(message.timestamp, taken);
    let tenant = row["tenant"].as_str().expect("text");
    assert_eq!(
        (message.key.as_deref(), message.header("sluice-tenant")),
        (Some(tenant), tenant)
    );
    assert_eq!(message.header("sluice-dataset"), row["dataset"]);
    let (log, partition, offset) = source_of(message);
    let log: u64 = log.parse().expect("a number");
    assert_eq!(value["id"], format!("{log:016x}-{partition}-{offset}"));
    let range = message.header("sluice-range").split_once('-').expect("a range");
    let range = range.0.parse().expect("a number")..range.1.parse::<u64>().expect("a number");
    assert!(range.contains(&(offset >> 16)), "{message:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_has_dead_letters_of_each_kind_once_as_their_table_has_them() {
    let mut stand = Stand::start("").await;
    for tenant in 0..3 {
        stand.spoilt(tenant).await;
    }
    stand.clash("one").await;
    stand.clash("two").await;
    stand
        .shows("SELECT count() FROM telemetry.dead_letters", "11")
        .await;
    stand.drained().await;
    assert_eq!(stand.hold(11).await, 0, "no trouble, no copies");
    let stages = "SELECT arraySort(groupUniqArray(stage)) FROM telemetry.dead_letters";
    assert_eq!(stand.run(stages).await, "['dedup','insert','intake']");
    let published = stand
        .metric("sluice_events_total", "stage=\"publish_letters\"")
        .await;
    assert!((published - 11.0).abs() < 0.5, "{published}");
    assert_eq!(stand.run("SELECT count() FROM telemetry.sales").await, "21");
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_that_is_away_makes_dead_letters_wait_to_a_bound_and_gets_all_of_them() {
    let mut stand = Stand::start(", max_bytes: 100KiB").await;
    stand.spoilt(0).await;
    stand.drained().await;
    stand.kafka.kill();
    let mut taken = 1;
    finally("sales beyond the bound are refused", SOON, async || {
        if !stand.spoil(0).await {
            return Ok(());
        }
        taken += 1;
        // One batch at a time: each counts as 16 KiB at least.
        oracle::drained(&stand.deployment).await;
        Err(format!("{taken} were taken"))
    })
    .await;
    let shed = stand
        .metric("sluice_shed_total", "reason=\"unpublished_letters\"")
        .await;
    assert!(shed >= 1.0, "{shed}");
    // The other dataset has its own bound; no range waits.
    stand.clash("one").await;
    oracle::drained(&stand.deployment).await;
    let letters = taken * 3 + 1;
    assert_eq!(stand.rows().await.len(), letters);
    // What waits outlives the process, and the topic's being taken out of the config.
    stand.restart().await;
    let without = config(&stand.kafka, ", max_bytes: 100KiB", "");
    stand.deployment.reload(&without).await;
    stand.kafka.bring_up().await;
    finally("it is said what is missing", SOON, async || {
        let told = std::fs::read_to_string(stand.deployment.log_file(Part::Normalizer)).expect("a log");
        let said = told.contains("give it `dead_letters.topic` again");
        said.then_some(()).ok_or("not said yet")
    })
    .await;
    assert!(stand.waiting().await > Some(0.0));
    let with = config(&stand.kafka, ", max_bytes: 100KiB", &topic());
    stand.deployment.reload(&with).await;
    stand.drained().await;
    stand.hold(letters).await;
    stand.spoilt(0).await;
    stand.drained().await;
    stand.hold(letters + 3).await;
}

/// A kill and an error at each point; the broker is away for half of them, so that letters are set aside.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_misses_no_dead_letter_whatever_happens_at_a_step_of_publishing() {
    let mut stand = Stand::start("").await;
    let mut sent = 0;
    for (point, actions) in turns(&POINTS, oracle::seed("kafka dead letters' points")) {
        for action in actions {
            let nth = 1;
            let case = Case { point, action, nth };
            println!("{case}");
            stand.drained().await;
            let removes = matches!(point, Point::UnitRemove | Point::UnitRemoved);
            let is_away = removes || matches!(point, Point::UnitWrite | Point::UnitWritten);
            if is_away {
                stand.kafka.kill();
            }
            if removes {
                stand.spoilt(0).await;
                stand.some_wait().await;
                oracle::drained(&stand.deployment).await;
                stand.points.arm(case);
                stand.kafka.bring_up().await;
            } else {
                stand.points.arm(case);
                stand.spoilt(0).await;
            }
            sent += 1;
            stand.points.fired(case, SOON).await;
            stand.points.disarm();
            if action == Action::Kill || ends(point) {
                eventually("the process ends", SOON, async || {
                    stand.deployment.ended(Part::Normalizer)
                })
                .await;
                stand.deployment.bring_up(Part::Normalizer).await.expect("ready");
            }
            if is_away && !removes {
                stand.kafka.bring_up().await;
            }
        }
    }
    stand.drained().await;
    stand.hold(sent * 3).await;
    let stored = stand
        .run("SELECT count(), uniqExact(id) FROM telemetry.sales FORMAT TSV")
        .await;
    assert_eq!(stored, format!("{0}\t{0}", sent * 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_has_dead_letters_of_rows_that_were_set_aside_and_holds_up_none_of_them() {
    let mut stand = Stand::start("").await;
    let ddl = stand.run("SHOW CREATE TABLE telemetry.sales FORMAT TSVRaw").await;
    let mut sent = 0;
    // The broker is away while its table takes the rows; then it is there, and the process dies before their file goes.
    for is_away in [true, false] {
        stand.run("DROP TABLE telemetry.sales SYNC").await;
        stand.spoilt(0).await;
        stand.clash(&format!("{is_away}")).await;
        sent += 1;
        eventually("rows are set aside", SOON, async || {
            let bytes = stand.metric("sluice_parked_bytes", "sales").await;
            (bytes > 0.0).then_some(())
        })
        .await;
        // Copies and conflicts belong to their range.
        let own = format!("{}", sent * 2 + (sent - 1) * 2);
        stand
            .shows("SELECT count() FROM telemetry.dead_letters", &own)
            .await;
        if is_away {
            eventually("the range's letters are in the topic", SOON, async || {
                (stand.metric("sluice_log_backlog_bytes", "").await < 0.5).then_some(())
            })
            .await;
            stand.kafka.kill();
            stand.run(&ddl).await;
            // Its rows, and what comes next: no table waits for a topic.
            stand.shows("SELECT count() FROM telemetry.sales", "7").await;
            oracle::drained(&stand.deployment).await;
            stand.some_wait().await;
            stand.restart().await;
            stand.kafka.bring_up().await;
        } else {
            let case = Case {
                point: Point::UnitRemove,
                action: Action::Kill,
                nth: 1,
            };
            stand.points.arm(case);
            stand.run(&ddl).await;
            stand.points.fired(case, SOON).await;
            stand.points.disarm();
            eventually("the process ends", SOON, async || {
                stand.deployment.ended(Part::Normalizer)
            })
            .await;
            stand.deployment.bring_up(Part::Normalizer).await.expect("ready");
            stand.shows("SELECT count() FROM telemetry.sales", "7").await;
        }
        stand.drained().await;
        let copies = stand.hold(sent * 4).await;
        assert!(is_away || copies >= 2, "the unit's letters came twice: {copies}");
    }
}
