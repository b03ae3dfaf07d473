//! Kafka topics of what dedup kept, beside a real broker: each stored event is there, whatever is killed, and whoever
//! does not take it holds up nobody else.

mod broker;
mod clusters;
mod dead_letters;
mod kills;
mod log;
mod members;
mod outage;
mod producer;
mod seats;
mod security;
mod shared_source;
mod source;
mod topics;

use serde_json::{Value, json};
use sluice_tests::kafka::{Kafka, Message};
use sluice_tests::oracle;
use sluice_tests::service::executable;
use sluice_tests::{Deployment, Part, Plan, Shape, finally, now_ms};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a topic may take to have what waited for it.
const CAUGHT_UP: Duration = Duration::from_secs(60);

/// Two datasets of one shape, each with a topic of its name. `KAFKA` is the way to the broker.
const CONFIG: &str = "kafka: {KAFKA}
datasets:
- {name: events, unknown_fields: attributes, time: {field: timestamp}, partition_by: toDate(timestamp),
   fields: [{name: event_id, type: string, required: true}, {name: timestamp, type: datetime64(3), required: true, epoch: ms},
     {name: service, type: low_cardinality(string), required: true}, {name: attributes, type: \"map(string, string)\"},
     {name: size_bytes, type: nullable(uint64), from: size_kib, unit: {from: KiBy, to: By}}],
   dedup: {key: [event_id], window: 24h}, batch: {max_age: 200ms}, publish: {topic: clean.events}}
- {name: more_events, unknown_fields: attributes, time: {field: timestamp}, partition_by: toYYYYMM(timestamp),
   fields: [{name: event_id, type: string, required: true}, {name: timestamp, type: datetime64(3), required: true, epoch: ms},
     {name: service, type: low_cardinality(string), required: true}, {name: attributes, type: \"map(string, string)\"},
     {name: size_bytes, type: nullable(uint64), from: size_kib, unit: {from: KiBy, to: By}}],
   dedup: {key: [event_id], window: 24h}, batch: {max_age: 200ms}, publish: {topic: clean.more, key: [tenant, service]}}
";

/// A row of a table, by its provenance.
type Rows = BTreeMap<Source, Value>;
/// `_src_l`, `_src_p`, `_src_o`.
type Source = (String, String, u64);

/// The config, with these keys of `kafka`.
fn config(kafka: &str) -> String {
    CONFIG.replace("KAFKA", kafka)
}

/// That of a broker without TLS or passwords.
fn plain(kafka: &Kafka) -> String {
    config(&format!("brokers: [\"{}\"]", kafka.brokers()))
}

/// What `ingestctl check` ends with for a config, and what it says.
fn checked(config: &str) -> (Option<i32>, Value) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sluice.yaml");
    std::fs::write(&path, config).expect("written");
    let output = std::process::Command::new(executable("ingestctl"))
        .args(["check", "--output", "json", "--config"])
        .arg(&path)
        .arg("--data-dir")
        .arg(dir.path())
        .output()
        .expect("it runs");
    let told = serde_json::from_slice(&output.stdout).expect("JSON");
    (output.status.code(), told)
}

/// A broker with both topics, and a Sluice that publishes to them.
struct Stand {
    kafka: Kafka,
    deployment: Deployment,
}

impl Stand {
    async fn start(shape: Shape) -> Self {
        let kafka = Kafka::start().await;
        kafka.topic("clean.events", 3, &[]).await;
        kafka.topic("clean.more", 2, &[]).await;
        let deployment = Plan::new(shape).extra(&plain(&kafka)).start().await;
        Self { kafka, deployment }
    }

    /// Sends events with these numbers; the answer's status.
    async fn send(
        &self,
        (tenant, dataset): (usize, &str),
        numbers: impl IntoIterator<Item = u64>,
        padding: usize,
    ) -> u16 {
        let event = |n: u64| {
            json!({
                "event_id": n.to_string(), "timestamp": now_ms(), "service": format!("s{}", n % 7), "size_kib": n,
                "padding": "x".repeat(padding), "said": "\"a\ttab\" and ü",
            })
        };
        let events: Vec<Value> = numbers.into_iter().map(event).collect();
        let client = self.deployment.tenant(tenant);
        let path = format!("/v1/events/{dataset}");
        let answer = client.post(&path, json!(events).to_string()).await;
        answer.expect("an answer").status.into()
    }

    async fn metric(&self, part: Part, name: &str, label: &str) -> f64 {
        self.deployment.metric(part, name, label).await
    }

    /// Bytes of a dataset's events that wait for their topic; none where the normalizer does not answer.
    async fn waiting(&self, dataset: &str) -> Option<f64> {
        let label = format!("dataset=\"{dataset}\"");
        let name = "sluice_publish_waiting_bytes";
        self.deployment.level(Part::Normalizer, name, &label).await
    }

    /// The same of both datasets.
    async fn all_waiting(&self) -> Option<f64> {
        Some(self.waiting("events").await? + self.waiting("more_events").await?)
    }

    /// Everything is stored, and nothing waits for a topic.
    async fn drained(&self) {
        oracle::drained(&self.deployment).await;
        finally(
            "the topics have what waited for them",
            CAUGHT_UP,
            async || match self.all_waiting().await {
                Some(0.0) => Ok(()),
                waiting => Err(format!("{waiting:?} bytes wait")),
            },
        )
        .await;
    }

    /// Holds both topics against their datasets' rows; copies may be among the messages.
    async fn hold_both(&self) {
        for (topic, dataset) in [("clean.events", "events"), ("clean.more", "more_events")] {
            let messages = self.kafka.read(topic).await;
            let copies = hold(&messages, &self.rows(dataset).await, dataset);
            println!("{dataset}: {} messages, {copies} copies", messages.len());
        }
    }

    /// The rows of a table.
    async fn rows(&self, table: &str) -> Rows {
        let sql = format!(
            "SELECT toString(_src_l) AS l, toString(_src_p) AS p, toString(_src_o) AS o, tenant, event_id, service, \
             size_bytes, attributes, toUnixTimestamp64Milli(timestamp) AS at, toUnixTimestamp64Milli(ingested_at) AS taken \
             FROM telemetry.{table} FORMAT JSONEachRow SETTINGS output_format_json_quote_64bit_integers = 0"
        );
        let told = self.deployment.clickhouse().query(&sql).await.expect("rows");
        let rows = told.lines().map(|line| {
            let row: Value = serde_json::from_str(line).expect("JSON");
            (
                source(
                    |name| row[name].as_str().expect("text").to_owned(),
                    ["l", "p", "o"],
                ),
                row,
            )
        });
        let rows: Vec<(Source, Value)> = rows.collect();
        let all = rows.len();
        let rows: Rows = rows.into_iter().collect();
        assert_eq!(rows.len(), all, "each row is there once");
        rows
    }
}

fn source(text: impl Fn(&str) -> String, names: [&str; 3]) -> Source {
    let [log, partition, offset] = names.map(text);
    (log, partition, offset.parse().expect("a number"))
}

/// Where a message's event came from.
fn source_of(message: &Message) -> Source {
    let names = ["sluice-src-l", "sluice-src-p", "sluice-src-o"];
    source(|name| message.header(name).to_owned(), names)
}

/// Holds a topic against its dataset's rows: every row is there, nothing else is, and copies are copies. How many of
/// them there are.
fn hold(messages: &[Message], rows: &Rows, dataset: &str) -> usize {
    let mut seen: BTreeMap<Source, &Message> = BTreeMap::new();
    for message in messages {
        let source = source_of(message);
        let row = rows.get(&source);
        let row = row.unwrap_or_else(|| panic!("no row is of {message:?}"));
        is_of(message, row, dataset);
        if let Some(first) = seen.insert(source, message) {
            assert_eq!((&first.key, &first.value), (&message.key, &message.value));
            assert_eq!(
                first.partition, message.partition,
                "equal keys lie in one partition"
            );
            assert_eq!(first.headers, message.headers, "a range is never cut otherwise");
        }
    }
    let missing: Vec<_> = rows.keys().filter(|source| !seen.contains_key(source)).collect();
    assert!(
        missing.is_empty(),
        "{} of {} rows of {dataset} are not in its topic: {:?}",
        missing.len(),
        rows.len(),
        &missing[..missing.len().min(5)]
    );
    messages.len() - seen.len()
}

fn is_of(message: &Message, row: &Value, dataset: &str) {
    let value = &message.value;
    assert_eq!(message.header("sluice-tenant"), row["tenant"], "{message:?}");
    assert_eq!(message.header("sluice-dataset"), dataset);
    for field in ["event_id", "service", "size_bytes", "attributes"] {
        assert_eq!(value[field], row[field], "{field} of {message:?}");
    }
    let at: jiff::Timestamp = value["timestamp"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("a time");
    assert_eq!(at.as_millisecond(), row["at"].as_i64().expect("a number"));
    assert_eq!(message.timestamp, row["taken"].as_u64().expect("a number"));
    let key = match dataset {
        "events" => row["event_id"].as_str().expect("text").to_owned(),
        _ => json!([row["tenant"], row["service"]]).to_string(),
    };
    assert_eq!(message.key.as_deref(), Some(key.as_str()));
    let range = message.header("sluice-range").split_once('-').expect("a range");
    let range = range.0.parse().expect("a number")..range.1.parse::<u64>().expect("a number");
    assert!(range.contains(&(source_of(message).2 >> 16)), "{message:?}");
}
