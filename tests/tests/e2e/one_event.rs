//! One event, in both shapes.

use serde_json::json;
use sluice_tests::{Deployment, Shape, eventually};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_event_is_a_row_all_in_one() {
    one_event(Shape::AllInOne).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_event_is_a_row_over_three_processes() {
    one_event(Shape::ThreeProcesses).await;
}

async fn one_event(shape: Shape) {
    let deployment = Deployment::start(shape).await;
    let event =
        json!({"event_id": "one", "timestamp": sluice_tests::now_ms(), "service": "test", "extra": "kept"});
    let client = deployment.tenant(0).with("content-type", "application/json");
    for _ in 0..2 {
        let answer = client
            .post("/v1/events/events", event.to_string())
            .await
            .expect("an answer");
        assert_eq!(answer.status, 202, "{}", answer.text());
        assert_eq!(answer.json()["accepted"], 1);
    }
    let sql = "SELECT tenant, event_id, attributes['extra'] FROM telemetry.events FORMAT TSV";
    let rows = eventually("the row", Duration::from_secs(10), async || {
        deployment
            .clickhouse()
            .query(sql)
            .await
            .ok()
            .filter(|rows| !rows.is_empty())
    });
    assert_eq!(rows.await, "t0\tone\tkept", "{}", deployment.last_words());
}
