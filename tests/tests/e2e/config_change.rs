//! What is in the log lands as its records say, whatever the config says by then; and a column that is
//! added takes effect without a restart.

use serde_json::json;
use sluice_tests::{Deployment, Part, Shape, books_balance, eventually};
use std::time::Duration;

const DATASET: &str = r#"
datasets:
  - name: events
    table: before
    fields:
      - {name: event_id, type: string, required: true}
      - {name: status, type: uint16, required: true}
    dedup: {key: [event_id], window: 24h}
"#;
const DEADLINE: Duration = Duration::from_secs(30);

/// The dataset with another window, table and schema.
fn changed() -> String {
    DATASET
        .replace("table: before", "table: after")
        .replace(
            "{name: status, type: uint16, required: true}",
            "{name: level, type: string, required: true}",
        )
        .replace("window: 24h", "window: 1h")
}

/// The part that settles ranges.
fn pump(deployment: &Deployment) -> Part {
    match deployment.shape {
        Shape::AllInOne => Part::Up,
        Shape::ThreeProcesses => Part::Normalizer,
    }
}

/// One event in a declared range that cannot be settled, and 48 behind it in the log.
async fn declare_and_pile_up(deployment: &Deployment) {
    send(deployment, json!({"event_id": "declared", "status": 1})).await;
    eventually("the range is declared and in trouble", DEADLINE, async || {
        let unsettled = deployment.metric(pump(deployment), "sluice_unsettled", "").await;
        (unsettled > 0.0).then_some(())
    })
    .await;
    for n in 2..50 {
        send(
            deployment,
            json!({"event_id": format!("backlog-{n}"), "status": n}),
        )
        .await;
    }
}

/// What was sent before the change is in its table, what came after it in the other; each once.
async fn all_landed(deployment: &Deployment) {
    let after = rows(
        deployment,
        "SELECT event_id, level FROM telemetry.after FORMAT TSV",
    )
    .await;
    assert_eq!(after, "new\thigh", "{}", deployment.last_words());
    // On a slow machine the table was set aside meanwhile: then its rows come by themselves, after the others.
    let sql = "SELECT count(), uniqExact(event_id), sum(status) FROM telemetry.before FORMAT TSV";
    let expected = format!("49\t49\t{}", (1..50).sum::<u32>());
    eventually("what was sent before is there", DEADLINE, async || {
        let rows = deployment.clickhouse().query(sql).await.ok()?;
        (rows == expected).then_some(())
    })
    .await;
    // 49 before, a repeat and a new one after.
    books_balance(&deployment.clickhouse(), 51).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn window_table_and_schema_changed_with_an_open_range_and_a_backlog_decide_nothing_anew() {
    let mut deployment = Deployment::start_with(Shape::ThreeProcesses, DATASET).await;
    deployment.stop_clickhouse().await;
    declare_and_pile_up(&deployment).await;
    for part in [Part::Edge, Part::Normalizer, Part::SinkWriter] {
        deployment.kill(part);
    }
    deployment.rewrite(&changed());
    for part in [Part::ClickHouse, Part::SinkWriter, Part::Normalizer, Part::Edge] {
        deployment.bring_up(part).await.expect("ready");
    }
    // The first is a repeat of an event in the backlog; only the second is new.
    send(&deployment, json!({"event_id": "declared", "level": "again"})).await;
    send(&deployment, json!({"event_id": "new", "level": "high"})).await;
    all_landed(&deployment).await;
}

async fn changed_while_running(shape: Shape) {
    let deployment = Deployment::start_with(shape, DATASET).await;
    let clickhouse = deployment.clickhouse();
    eventually("the table is there", DEADLINE, async || {
        let moved = clickhouse
            .query("RENAME TABLE telemetry.before TO telemetry.aside")
            .await;
        moved.ok()
    })
    .await;
    declare_and_pile_up(&deployment).await;
    deployment.reload(&changed()).await;
    send(&deployment, json!({"event_id": "declared", "level": "again"})).await;
    send(&deployment, json!({"event_id": "new", "level": "high"})).await;
    clickhouse
        .query("RENAME TABLE telemetry.aside TO telemetry.before")
        .await
        .expect("renamed");
    all_landed(&deployment).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_changed_while_one_process_runs_decides_nothing_anew() {
    changed_while_running(Shape::AllInOne).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_changed_while_three_processes_run_decides_nothing_anew() {
    changed_while_running(Shape::ThreeProcesses).await;
}

const ALTER: &str = "ALTER TABLE telemetry.before ADD COLUMN level String";

/// The dataset with one more column.
fn with_a_column() -> String {
    DATASET.replace(
        "    dedup:",
        "      - {name: level, type: string, required: true}\n    dedup:",
    )
}

async fn a_column_is_added(shape: Shape, alter_first: bool) {
    let deployment = Deployment::start_with(shape, DATASET).await;
    send(&deployment, json!({"event_id": "old", "status": 1})).await;
    rows(&deployment, "SELECT event_id FROM telemetry.before").await;
    let clickhouse = deployment.clickhouse();
    if alter_first {
        clickhouse.query(ALTER).await.expect("altered");
    }
    deployment.reload(&with_a_column()).await;
    send(
        &deployment,
        json!({"event_id": "first", "status": 1, "level": "x"}),
    )
    .await;
    let level = |id: &str| format!("SELECT level FROM telemetry.before WHERE event_id = '{id}'");
    if alter_first {
        assert_eq!(rows(&deployment, &level("first")).await, "x", "seen at once");
    } else {
        rows(
            &deployment,
            "SELECT event_id FROM telemetry.before WHERE event_id = 'first'",
        )
        .await;
        clickhouse.query(ALTER).await.expect("altered");
    }
    let mut sent = 2;
    eventually("the new column is written", DEADLINE, async || {
        sent += 1;
        let id = format!("later-{sent}");
        send(&deployment, json!({"event_id": id, "status": 1, "level": "y"})).await;
        rows(
            &deployment,
            &format!("SELECT event_id FROM telemetry.before WHERE event_id = '{id}'"),
        )
        .await;
        (clickhouse.query(&level(&id)).await.ok()? == "y").then_some(())
    })
    .await;
    let count = rows(&deployment, "SELECT count() FROM telemetry.before").await;
    assert_eq!(count, sent.to_string(), "no row is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_added_to_the_table_first_is_written_from_the_reload_on() {
    a_column_is_added(Shape::AllInOne, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_added_to_the_config_first_is_written_once_the_table_has_it() {
    a_column_is_added(Shape::ThreeProcesses, false).await;
}

async fn send(deployment: &Deployment, event: serde_json::Value) {
    let answer = deployment
        .tenant(0)
        .post("/v1/events/events", event.to_string())
        .await
        .expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(answer.json()["accepted"], 1, "{}", answer.text());
}

async fn rows(deployment: &Deployment, sql: &str) -> String {
    eventually(sql, DEADLINE, async || {
        let rows = deployment.clickhouse().query(sql).await.ok()?;
        (!rows.is_empty()).then_some(rows)
    })
    .await
}
