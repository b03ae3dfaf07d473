//! An acknowledged event can be queried within two seconds, at a few thousand events a second.

use serde_json::json;
use sluice_tests::{Client, Deployment, Shape, now_ms};
use std::collections::HashMap;
use std::time::{Duration, Instant};

const BATCHES: u64 = 60;
const BATCH_EVENTS: usize = 250;
const EVERY: Duration = Duration::from_millis(83);
const BOUND: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn at_3000_events_a_second_each_acknowledged_event_can_be_queried_within_two_seconds() {
    let deployment = Deployment::start(Shape::AllInOne).await;
    let client = deployment.tenant(0);
    let watching = tokio::spawn(watch(deployment.clickhouse()));
    let mut acked = HashMap::new();
    let mut pace = tokio::time::interval(EVERY);
    for batch in 0..BATCHES {
        pace.tick().await;
        let events: Vec<_> = (0..BATCH_EVENTS)
            .map(|n| json!({"event_id": format!("{batch}-{n}"), "timestamp": now_ms(), "service": "s", "name": batch.to_string()}))
            .collect();
        let answer = client
            .post("/v1/events/events", json!(events).to_string())
            .await
            .expect("an answer");
        assert_eq!(answer.status, 202, "{}", answer.text());
        acked.insert(batch, Instant::now());
    }
    let seen = watching.await.expect("watched");
    let mut took: Vec<Duration> = acked
        .iter()
        .map(|(batch, acked)| seen[batch].saturating_duration_since(*acked))
        .collect();
    took.sort();
    println!(
        "acknowledged to queryable: p50 {:?}, p95 {:?}",
        took[30], took[56]
    );
    assert!(took.iter().all(|took| *took < BOUND), "{took:?}");
}

/// When each batch was first there as a whole.
async fn watch(clickhouse: Client) -> HashMap<u64, Instant> {
    let sql =
        format!("SELECT name FROM telemetry.events GROUP BY name HAVING count() = {BATCH_EVENTS} FORMAT TSV");
    let mut seen = HashMap::new();
    let until = Instant::now() + Duration::from_secs(40);
    while seen.len() < BATCHES as usize {
        assert!(Instant::now() < until, "only {} batches came", seen.len());
        let names = clickhouse.query(&sql).await.expect("an answer");
        let now = Instant::now();
        for name in names.lines() {
            seen.entry(name.parse().expect("a number")).or_insert(now);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    seen
}
