//! What is in the log lands as its records say, whatever the config says by then.

use serde_json::json;
use sluice_tests::{Deployment, Part, Shape, eventually};
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

#[tokio::test(flavor = "multi_thread")]
async fn window_table_and_schema_changed_with_an_open_range_and_a_backlog_decide_nothing_anew() {
    let mut deployment = Deployment::start_with(Shape::ThreeProcesses, DATASET).await;
    deployment.stop_clickhouse().await;
    send(&deployment, json!({"event_id": "declared", "status": 1})).await;
    eventually(
        "the range is declared and in trouble",
        Duration::from_secs(30),
        async || {
            let unsettled = deployment.metric(Part::Normalizer, "sluice_unsettled", "").await;
            (unsettled > 0.0).then_some(())
        },
    )
    .await;
    for n in 2..50 {
        send(
            &deployment,
            json!({"event_id": format!("backlog-{n}"), "status": n}),
        )
        .await;
    }
    for part in [Part::Edge, Part::Normalizer, Part::SinkWriter] {
        deployment.kill(part);
    }
    let config = std::fs::read_to_string(deployment.config()).expect("read");
    let config = config
        .replace("table: before", "table: after")
        .replace(
            "{name: status, type: uint16, required: true}",
            "{name: level, type: string, required: true}",
        )
        .replace("window: 24h", "window: 1h");
    std::fs::write(deployment.config(), config).expect("written");
    for part in [Part::ClickHouse, Part::SinkWriter, Part::Normalizer, Part::Edge] {
        deployment.bring_up(part).await.expect("ready");
    }
    // The first is a repeat of an event in the backlog; only the second is new.
    send(&deployment, json!({"event_id": "declared", "level": "again"})).await;
    send(&deployment, json!({"event_id": "new", "level": "high"})).await;
    let after = rows(
        &deployment,
        "SELECT event_id, level FROM telemetry.after FORMAT TSV",
    )
    .await;
    assert_eq!(after, "new\thigh", "{}", deployment.last_words());
    let sql = "SELECT count(), uniqExact(event_id), sum(status) FROM telemetry.before FORMAT TSV";
    assert_eq!(
        rows(&deployment, sql).await,
        format!("49\t49\t{}", (1..50).sum::<u32>())
    );
}

async fn send(deployment: &Deployment, event: serde_json::Value) {
    let answer = deployment
        .tenant(0)
        .post("/v1/events/events", event.to_string())
        .await
        .expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.text());
}

async fn rows(deployment: &Deployment, sql: &str) -> String {
    eventually(sql, Duration::from_secs(30), async || {
        let rows = deployment.clickhouse().query(sql).await.ok()?;
        (!rows.is_empty()).then_some(rows)
    })
    .await
}
