//! One event, in both shapes.

use serde_json::json;
use sluice_tests::{Deployment, Shape, eventually, finally};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Barrier;

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

/// In one request twice, in a hundred requests, on a hundred connections that send at the same moment.
#[tokio::test(flavor = "multi_thread")]
async fn one_id_from_a_hundred_connections_at_once_is_one_row() {
    const CONNECTIONS: usize = 100;
    let deployment = Deployment::start(Shape::ThreeProcesses).await;
    let event = json!({"event_id": "one", "timestamp": sluice_tests::now_ms(), "service": "test"});
    let body = format!("{event}\n{event}\n");
    let all_ready = Arc::new(Barrier::new(CONNECTIONS));
    let senders = (0..CONNECTIONS).map(|_| {
        let (client, body, all_ready) = (deployment.tenant(0), body.clone(), Arc::clone(&all_ready));
        tokio::spawn(async move {
            all_ready.wait().await;
            client.post("/v1/events/events", body).await.expect("an answer")
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        let answer = sender.await.expect("no panic");
        assert_eq!(answer.status, 202, "{}", answer.text());
        assert_eq!(answer.json()["accepted"], 2);
    }
    let sql = "SELECT (SELECT count() FROM telemetry.events), sum(received), sum(stored), sum(duplicate) \
               FROM telemetry.ledger FORMAT TSV";
    let expected = format!("1\t{}\t1\t{}", 2 * CONNECTIONS, 2 * CONNECTIONS - 1);
    finally("one row", Duration::from_secs(20), async || {
        let told = deployment.clickhouse().query(sql).await?;
        if told.trim() == expected {
            Ok(())
        } else {
            Err(told)
        }
    })
    .await;
}
