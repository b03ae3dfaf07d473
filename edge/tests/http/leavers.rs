//! Clients that go away: in the middle of a body, while their request waits for its turn, and while it is appended.

use crate::harness::{Fixture, KEY, accepted, busy, eventually, start_as, two_tenants};
use sluice_common::ids::RequestId;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Requests that the edge has under way to one normalizer to begin with.
const UNDER_WAY: usize = 64;
/// What a small request holds.
const LEAST: usize = 4_096;

/// The two tenants, of which `acme` may send 100 requests at once, and one more a second.
fn limited() -> String {
    two_tenants().replace(
        "{id: acme,",
        "{id: acme, quota: {requests_per_second: 1, burst: 100s},",
    )
}

fn head(framing: &str) -> String {
    format!("POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n{framing}\r\n\r\n")
}

fn whole() -> String {
    head("content-length: 2") + "{}"
}

async fn sent(fixture: &Fixture, request: &str) -> TcpStream {
    let mut client = fixture.connect().await;
    client.write_all(request.as_bytes()).await.unwrap();
    client
}

/// How many more requests the tenant may send after one more, which is taken.
async fn left_after_one_more(fixture: &Fixture) -> u64 {
    let answered = async {
        loop {
            let answer = fixture.send_once(fixture.events(), b"{}").await;
            if answer.status == 202 {
                return answer;
            }
            assert_eq!(answer.header("sluice-outcome"), "refused", "{}", answer.status);
        }
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), answered).await;
    let answer = answer.expect("there is room again");
    let (_, left) = answer.header("ratelimit").split_once(";r=").expect("a limit");
    left.split(';').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_client_that_leaves_while_its_request_waits_to_be_tried_again_costs_its_tenant_nothing() {
    let full = Arc::new(AtomicBool::new(true));
    let is_full = Arc::clone(&full);
    let fixture = start_as(&limited(), None, move |_| {
        let full = is_full.load(Ordering::SeqCst);
        async move { if full { busy(100) } else { accepted(1) } }
    })
    .await;
    let client = sent(&fixture, &whole()).await;
    eventually("it was tried, and waits", || fixture.seen() >= 1).await;
    drop(client);
    eventually("its bytes are given back", || fixture.edge.held_bytes() == 0).await;
    full.store(false, Ordering::SeqCst);
    assert_eq!(left_after_one_more(&fixture).await, 99);
}

/// A normalizer that answers when it is let to, and how much of that it has done.
#[derive(Clone, Default)]
struct Appends {
    done: Arc<AtomicUsize>,
    ids: Arc<Mutex<Vec<RequestId>>>,
}

async fn slow(yaml: &str) -> (Fixture, Appends, Arc<Semaphore>) {
    let (appends, gate) = (Appends::default(), Arc::new(Semaphore::new(0)));
    let (counts, opens) = (appends.clone(), Arc::clone(&gate));
    let fixture = start_as(yaml, None, move |request| {
        let (counts, opens) = (counts.clone(), Arc::clone(&opens));
        async move {
            opens.acquire().await.unwrap().forget();
            counts.ids.lock().unwrap().push(request.request);
            counts.done.fetch_add(1, Ordering::SeqCst);
            accepted(1)
        }
    })
    .await;
    (fixture, appends, gate)
}

/// How many requests may still be sent once 100 clients have left, 64 of them while their requests were appended and
/// 36 while theirs waited; nothing where the machine was so slow that some waited for too long.
async fn left_by_a_hundred() -> Option<u64> {
    let (fixture, appends, gate) = slow(&limited()).await;
    let begun = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(sent(&fixture, &whole()).await);
    }
    while fixture.edge.held_bytes() < 100 * LEAST {
        if begun.elapsed() > Duration::from_millis(400) {
            return None;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.seen(), UNDER_WAY);
    drop(clients);
    eventually("those that wait are gone", || {
        fixture.edge.held_bytes() <= UNDER_WAY * LEAST
    })
    .await;
    assert_eq!(
        fixture.edge.held_bytes(),
        UNDER_WAY * LEAST,
        "what is appended is held on"
    );
    let page = fixture.metrics.render();
    let shed = |reason| {
        page.contains(&format!(
            "sluice_shed_total{{reason=\"{reason}\",where=\"edge\"}} 0\n"
        ))
    };
    if !shed("queue_target") || !shed("queue_deadline") {
        return None;
    }
    gate.add_permits(UNDER_WAY + 1);
    eventually("what was passed on outlives its client", || {
        appends.done.load(Ordering::SeqCst) == UNDER_WAY && fixture.edge.held_bytes() == 0
    })
    .await;
    assert_eq!(fixture.seen(), UNDER_WAY, "what waited was not passed on");
    let page = fixture.metrics.render();
    assert!(
        page.contains("sluice_queue_requests{queue=\"edge\"} 0\n"),
        "{page}"
    );
    Some(left_after_one_more(&fixture).await)
}

#[tokio::test]
async fn of_a_hundred_clients_that_leave_those_whose_requests_wait_take_them_along_and_pay_nothing() {
    let mut tries = 0;
    let left = loop {
        if let Some(left) = left_by_a_hundred().await {
            break left;
        }
        tries += 1;
        assert!(tries < 50, "the machine is too slow to tell");
    };
    // One more a second may have come; without what waited none would be left.
    assert!((35..=60).contains(&left), "{left}");
}

#[tokio::test]
async fn two_thousand_clients_that_leave_at_every_stage_leave_nothing_behind() {
    let (fixture, appends, gate) = slow(&two_tenants()).await;
    let halves = [
        head("content-length: 90000") + "{\"a\":",
        head("transfer-encoding: chunked") + "5\r\n{\"a\":",
        head("content-length: 2\r\nexpect: 100-continue"),
    ];
    let mut passed_on = 0;
    for round in 0..4 {
        let mut clients = Vec::new();
        for n in 0..500 {
            let request = halves.get(n % 5).cloned().unwrap_or_else(whole);
            clients.push(sent(&fixture, &request).await);
            // Each round some are let through, so that clients leave while others are appended.
            if n % 10 == 9 {
                gate.add_permits(1);
            }
        }
        eventually("some are appended", || fixture.seen() >= passed_on + 40).await;
        drop(clients);
        // All that was passed on ends; those behind it find their clients gone.
        gate.add_permits(1_000);
        eventually("all is given back", || fixture.edge.held_bytes() == 0).await;
        passed_on = fixture.seen();
        let done = || appends.done.load(Ordering::SeqCst);
        eventually("what was passed on is appended", || done() == passed_on).await;
        let taken = gate.forget_permits(usize::MAX >> 4);
        println!("round {round}: {passed_on} passed on, {taken} not needed");
    }
    let ids = appends.ids.lock().unwrap().clone();
    let different: HashSet<u128> = ids.iter().map(|id| id.0).collect();
    assert_eq!(different.len(), ids.len(), "each at most once");
    assert!(ids.len() <= 4 * 200, "halves are passed on never");
    let page = fixture.metrics.render();
    for gauge in [
        "sluice_queue_requests{queue=\"edge\"} 0\n",
        "sluice_queue_bytes{queue=\"edge\"} 0\n",
        "sluice_forward_requests{normalizer=\"0\"} 0\n",
    ] {
        assert!(page.contains(gauge), "{gauge} in {page}");
    }
    eventually("no connection is left", || {
        fixture.metrics.render().contains("sluice_connections 0\n")
    })
    .await;
    gate.add_permits(1);
    assert_eq!(
        fixture.send_once(fixture.events(), b"{}").await.status,
        202,
        "the next is served"
    );
}

#[tokio::test]
async fn a_request_that_was_refused_after_its_client_left_costs_its_tenant_nothing() {
    let gate = Arc::new(Semaphore::new(0));
    let opens = Arc::clone(&gate);
    let first = Arc::new(AtomicBool::new(true));
    let yaml = limited();
    let fixture = start_as(&yaml, None, move |_| {
        let (opens, first) = (Arc::clone(&opens), first.swap(false, Ordering::SeqCst));
        async move {
            if first {
                opens.acquire().await.unwrap().forget();
                return busy(20);
            }
            accepted(1)
        }
    })
    .await;
    let client = sent(&fixture, &whole()).await;
    eventually("it is passed on", || fixture.seen() == 1).await;
    drop(client);
    eventually("its connection is gone", || {
        fixture.metrics.render().contains("sluice_connections 0\n")
    })
    .await;
    gate.add_permits(1);
    eventually("it is answered to nobody", || fixture.edge.held_bytes() == 0).await;
    assert_eq!(left_after_one_more(&fixture).await, 99);
}
