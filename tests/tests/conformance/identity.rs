//! What makes two events the same where the dataset has no key of its own.

use crate::shared::{rows, sluice};
use serde_json::json;
use sluice_tests::{Client, Deployment, eventually};
use std::time::Duration;

/// Posts events to `loose` and requires them to be taken.
async fn take(client: &Client, ids: &[&str]) -> String {
    let body: String = ids
        .iter()
        .map(|id| json!({"id": id}).to_string() + "\n")
        .collect();
    let answer = client.post("/v1/events/loose", body).await.expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(answer.json()["accepted"], ids.len());
    answer.header("x-request-id").to_owned()
}

/// Ids that begin with `prefix`, once the event `last` of this tenant is there: the log is in order.
async fn stored(sluice: &Deployment, client: &Client, prefix: &str) -> String {
    let last = format!("{prefix}last");
    take(client, &[&last]).await;
    let clickhouse = sluice.clickhouse();
    rows(
        &clickhouse,
        &format!("SELECT 1 FROM telemetry.loose WHERE id = '{last}' FORMAT TSV"),
    )
    .await;
    let sql = format!(
        "SELECT arrayStringConcat(arraySort(groupArray(concat(tenant, ':', id))), ' ') FROM telemetry.loose \
         WHERE startsWith(id, '{prefix}') AND id != '{last}' FORMAT TSV"
    );
    clickhouse.query(&sql).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_sent_twice_stores_its_events_once() {
    let sluice = sluice().await;
    let client = sluice.tenant(0);
    let bare = client.clone().with("idempotency-key", "the same");
    let quoted = client.clone().with("idempotency-key", "\"the same\"");
    take(&bare, &["twice-a", "twice-b"]).await;
    take(&bare, &["twice-a", "twice-b"]).await;
    take(&quoted, &["twice-a", "twice-b"]).await;
    assert_eq!(stored(&sluice, &client, "twice-").await, "t0:twice-a t0:twice-b");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_reused_with_another_body_is_a_conflict_among_the_dead_letters() {
    let sluice = sluice().await;
    let client = sluice.tenant(0);
    let keyed = client.clone().with("idempotency-key", "reused");
    take(&keyed, &["conflict-a", "conflict-b"]).await;
    take(&keyed, &["conflict-a", "conflict-other"]).await;
    assert_eq!(
        stored(&sluice, &client, "conflict-").await,
        "t0:conflict-a t0:conflict-b"
    );
    let sql = "SELECT tenant, dataset, code, position(payload, 'conflict-other') > 0, message != '' \
               FROM telemetry.dead_letters WHERE tenant = 't0' FORMAT TSV";
    assert_eq!(
        rows(&sluice.clickhouse(), sql).await,
        "t0\tloose\tidempotency_conflict\t1\t1"
    );
    // Other tests send too: each line of the books balances by itself.
    let books = "SELECT sum(dead_lettered), sum(abs(received - stored - duplicate - dead_lettered - rejected - parked)) \
                 FROM telemetry.ledger WHERE tenant = 't0' AND dataset = 'loose' FORMAT TSV";
    eventually("it is in the books", Duration::from_secs(30), async || {
        let told = sluice.clickhouse().query(books).await.ok()?;
        (told == "1\t0").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_request_id_identifies_nothing() {
    let sluice = sluice().await;
    let client = sluice.tenant(0);
    let same = client
        .clone()
        .with("x-request-id", "0123456789abcdef0123456789abcdef");
    let first = take(&same, &["request-a"]).await;
    let second = take(&same, &["request-a"]).await;
    assert_ne!(first, second);
    assert_eq!(
        stored(&sluice, &client, "request-").await,
        "t0:request-a t0:request-a"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tenants_may_use_one_idempotency_key() {
    let sluice = sluice().await;
    for tenant in 0..2 {
        take(
            &sluice.tenant(tenant).with("idempotency-key", "shared"),
            &["tenants-a"],
        )
        .await;
    }
    assert_eq!(
        stored(&sluice, &sluice.tenant(0), "tenants-").await,
        "t0:tenants-a t1:tenants-a"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dedup_key_counts_more_than_an_idempotency_key() {
    let sluice = sluice().await;
    let client = sluice.tenant(0);
    for n in 0..2 {
        let event =
            json!({"event_id": "by-key", "timestamp": sluice_tests::now_ms(), "service": format!("s{n}")});
        let keyed = client.clone().with("idempotency-key", &format!("key {n}"));
        let answer = keyed
            .post("/v1/events/events", event.to_string())
            .await
            .expect("an answer");
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    stored(&sluice, &client, "by-key-").await;
    let sql = "SELECT service FROM telemetry.events WHERE event_id = 'by-key' FORMAT TSV";
    assert_eq!(rows(&sluice.clickhouse(), sql).await, "s0");
}
