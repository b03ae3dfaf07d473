//! Clients that go away while they send, or before they are answered: each of their requests is in the log as a whole
//! or not at all, rows are what the log has, and nothing is held for them any more.

use serde_json::json;
use sluice_tests::{Deployment, Part, Shape, books_balance, eventually, long_form, now_ms};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// `SLUICE_LEAVERS=10000` is the long form.
const CLIENTS: u64 = 2_000;
const EVENTS_EACH: usize = 3;
/// As many at once: under the cap of connections from one address.
const AT_ONCE: usize = 250;

/// The events of one client; `part-` where it does not send all of them.
fn body(client: usize, whole: bool) -> String {
    let name = if whole { "whole" } else { "part" };
    let line = |n: usize| {
        let id = format!("{name}-{client}-{n}");
        json!({"event_id": id, "timestamp": now_ms(), "service": "t0"}).to_string() + "\n"
    };
    (0..EVENTS_EACH).map(line).collect()
}

/// Sends the request of one client, or as much of it as the client sends, and leaves.
async fn send_and_leave(address: &str, key: &str, client: usize) {
    let whole = !client.is_multiple_of(3);
    let body = body(client, whole);
    let head = format!(
        "POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let sent = if whole { body.len() } else { client % body.len() };
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let request = [head.as_bytes(), &body.as_bytes()[..sent]].concat();
    stream.write_all(&request).await.expect("sent");
    // Some leave at once, others when the edge has long begun.
    for _ in 0..client % 7 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_thousand_clients_left_behind_is_whole_events_each_once() {
    let deployment = Deployment::start(Shape::ThreeProcesses).await;
    let (address, key) = (deployment.edge_address(), deployment.tenants[0].key.clone());
    let clients = long_form("LEAVERS", CLIENTS) as usize;
    for first in (0..clients).step_by(AT_ONCE) {
        let leaving: Vec<_> = (first..clients.min(first + AT_ONCE))
            .map(|client| {
                let (address, key) = (address.clone(), key.clone());
                tokio::spawn(async move { send_and_leave(&address, &key, client).await })
            })
            .collect();
        for client in leaving {
            client.await.expect("no panic");
        }
    }
    let zero = async |part, name, label| deployment.metric(part, name, label).await == 0.0;
    eventually("all is given back", Duration::from_secs(60), async || {
        let free = zero(Part::Edge, "sluice_queue_bytes", "edge").await
            && zero(Part::Edge, "sluice_queue_requests", "edge").await
            && zero(Part::Edge, "sluice_connections", "").await
            && zero(Part::Edge, "sluice_forward_requests", "").await
            && zero(Part::Normalizer, "sluice_log_backlog_bytes", "").await;
        free.then_some(())
    })
    .await;
    let left = rows(&deployment).await;
    books_balance(&deployment.clickhouse(), left.len() as u64).await;
    let of = |client: usize| (0..EVENTS_EACH).map(move |n| format!("whole-{client}-{n}"));
    let whole = || (0..clients).filter(|client| !client.is_multiple_of(3));
    for client in whole() {
        let there = of(client).filter(|id| left.contains(id)).count();
        assert!(there == 0 || there == EVENTS_EACH, "{there} of client {client}");
    }
    println!(
        "{} of {} events were taken",
        left.len(),
        whole().count() * EVENTS_EACH
    );
    // Whoever sends again ends in one row.
    for client in whole() {
        let answer = deployment
            .tenant(0)
            .post("/v1/events/events", body(client, true))
            .await;
        assert_eq!(answer.expect("an answer").status, 202);
    }
    eventually("all are stored", Duration::from_secs(60), async || {
        let stored = rows(&deployment).await;
        (stored.len() == whole().count() * EVENTS_EACH).then_some(())
    })
    .await;
}

/// The ids of all rows, none of them twice or of an event that was not sent whole.
async fn rows(deployment: &Deployment) -> BTreeSet<String> {
    let sql = "SELECT event_id FROM telemetry.events FORMAT TSV";
    let told = deployment.clickhouse().query(sql).await.expect("rows");
    let ids: BTreeSet<String> = told.lines().map(str::to_owned).collect();
    assert_eq!(ids.len(), told.lines().count(), "an event is there twice");
    let part = ids.iter().find(|id| id.starts_with("part"));
    assert_eq!(part, None, "an event whose request was not sent whole");
    ids
}
