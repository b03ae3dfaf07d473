//! Two datasets that write one table: it has the columns of both, and each is deduplicated by itself.

use serde_json::{Value, json};
use sluice_tests::{Deployment, Shape, eventually, now_ms};
use std::time::Duration;

const DATASETS: &str = r#"
datasets:
  - name: web
    table: hits
    fields:
      - {name: id, type: string, required: true}
      - {name: at, type: datetime64(3), required: true, epoch: ms}
      - {name: path, type: string}
      - {name: labels, type: "map(string, string)"}
      - {name: size, type: nullable(uint64)}
    dedup: {key: [id]}
    time: {field: at}
    partition_by: toDate(at)
  - name: mobile
    table: hits
    fields:
      - {name: id, type: string, required: true}
      - {name: at, type: datetime64(3), required: true, epoch: ms}
      - {name: device, type: low_cardinality(string), required: true}
      - {name: battery, type: float64}
      - {name: size, type: nullable(uint64)}
    dedup: {key: [id]}
    time: {field: at}
    partition_by: toDate(at)
"#;
const COUNTS: &str = "SELECT countIf(device = ''), countIf(device != ''), uniqExact(id), sum(size), \
                      sum(length(labels)), countIf(path = '') FROM telemetry.hits FORMAT TSV";

async fn send(deployment: &Deployment, dataset: &str, events: &[Value]) {
    let path = format!("/v1/events/{dataset}");
    let answer = deployment.tenant(0).post(&path, json!(events).to_string()).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.text());
}

/// Both datasets send the same ids, twice.
async fn send_all(deployment: &Deployment) {
    let at = now_ms();
    let web: Vec<Value> = (0..50)
        .map(|n| json!({"id": format!("{n}"), "at": at, "path": "/", "labels": {"a": "b"}, "size": 1}))
        .collect();
    let mobile: Vec<Value> = (0..30)
        .map(|n| json!({"id": format!("{n}"), "at": at, "device": "phone", "battery": 0.5, "size": 100}))
        .collect();
    for _ in 0..2 {
        // Small requests of both, so that a block holds records of both.
        for (web, mobile) in web.chunks(5).zip(mobile.chunks(3)) {
            send(deployment, "web", web).await;
            send(deployment, "mobile", mobile).await;
        }
    }
}

async fn shows(deployment: &Deployment, expected: &str) {
    let mut last = String::new();
    eventually("the rows of both", Duration::from_secs(30), async || {
        last = deployment.clickhouse().query(COUNTS).await.ok()?;
        (last == expected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_arrive_in_one_table_and_none_is_a_repeat_of_the_others() {
    let deployment = Deployment::start_with(Shape::AllInOne, DATASETS).await;
    send_all(&deployment).await;
    shows(&deployment, "50\t30\t50\t3050\t50\t30").await;
    let sql = "SELECT name, type FROM system.columns WHERE table = 'hits' AND name IN ('path', 'device') \
               ORDER BY name FORMAT TSV";
    let columns = deployment.clickhouse().query(sql).await.expect("columns");
    assert_eq!(columns, "device\tLowCardinality(String)\npath\tString");
}

/// The table of one dataset, as a config before had it; its operator adds what the other needs.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_there_first_takes_the_second_dataset_once_it_has_its_columns() {
    let mut deployment = Deployment::start(Shape::ThreeProcesses).await;
    let sql = "CREATE TABLE telemetry.hits (tenant LowCardinality(String), id String, at DateTime64(3, 'UTC'), \
               path String, labels Map(LowCardinality(String), String), size Nullable(UInt64), \
               ingested_at DateTime64(3, 'UTC'), _src_l UInt64, _src_p UInt16, _src_o UInt64) \
               ENGINE = MergeTree PARTITION BY toDate(at) ORDER BY (tenant, at) \
               SETTINGS non_replicated_deduplication_window = 10000";
    deployment.clickhouse().query(sql).await.expect("made");
    let alter =
        "ALTER TABLE telemetry.hits ADD COLUMN device LowCardinality(String), ADD COLUMN battery Float64";
    deployment.clickhouse().query(alter).await.expect("altered");
    restart_with(&mut deployment, DATASETS).await;
    send_all(&deployment).await;
    shows(&deployment, "50\t30\t50\t3050\t50\t30").await;
}

async fn restart_with(deployment: &mut Deployment, datasets: &str) {
    use sluice_tests::Part;
    for part in [Part::Edge, Part::Normalizer, Part::SinkWriter] {
        deployment.kill(part);
    }
    let config = std::fs::read_to_string(deployment.config()).expect("read");
    let head = config.split("\ndatasets:").next().expect("a head").to_owned();
    std::fs::write(deployment.config(), format!("{head}{datasets}")).expect("written");
    for part in [Part::SinkWriter, Part::Normalizer, Part::Edge] {
        deployment.bring_up(part).await.expect("ready");
    }
}
