//! What happens when there is no room, and when clients go away.

use crate::harness::{
    KEY, NARROW, accepted, busy, busy_for_tenant, eventually, start, start_accepting, start_before,
};
use sluice_common::limits::FORWARD_REQUESTS_FIRST;
use sluice_common::wire::intake::IntakeReply;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;

#[tokio::test]
async fn a_request_waits_for_a_busy_normalizer_and_is_tried_again() {
    let calls = Arc::new(AtomicUsize::new(0));
    let fixture = start(move |_| {
        let first = calls.fetch_add(1, Ordering::SeqCst) < 2;
        async move { if first { busy(30) } else { accepted(1) } }
    })
    .await;
    let answer = fixture.send_once(fixture.events(), b"{}").await;
    assert_eq!((answer.status.as_u16(), fixture.seen()), (202, 3));
    let seen = fixture.seen.lock().unwrap();
    assert!(
        seen.iter().all(|one| one.request == seen[0].request),
        "one identity for all tries"
    );
}

#[tokio::test]
async fn a_normalizer_that_stays_busy_is_503_at_the_deadline_then_at_once_until_it_has_room() {
    let full = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_full = Arc::clone(&full);
    let fixture = start(move |_| {
        let reply = if is_full.load(Ordering::SeqCst) {
            busy(300)
        } else {
            accepted(1)
        };
        async move { reply }
    })
    .await;
    let started = Instant::now();
    let answer = fixture.send_once(fixture.events(), b"{}").await;
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!((answer.status.as_u16(), answer.code()), (503, "overloaded"));
    assert_eq!(answer.header("sluice-outcome"), "refused");
    let calls = fixture.seen();
    let started = Instant::now();
    let answer = fixture.send_once(fixture.events(), b"{}").await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("sluice-outcome")),
        (503, "refused")
    );
    assert!(started.elapsed() < Duration::from_millis(200), "the gate is shut");
    assert_eq!(fixture.seen(), calls, "nothing was handed on");
    assert!((fixture.edge.readiness())().is_err());
    full.store(false, Ordering::SeqCst);
    let opened = async { while fixture.send_once(fixture.events(), b"{}").await.status.as_u16() != 202 {} };
    tokio::time::timeout(Duration::from_secs(5), opened)
        .await
        .expect("a probe opens the gate");
    assert_eq!((fixture.edge.readiness())(), Ok(()));
    assert!(
        fixture
            .metrics
            .render()
            .contains(r#"sluice_shed_total{reason="queue_deadline",where="edge"} 1"#)
    );
}

#[tokio::test]
async fn a_request_that_has_no_turn_for_as_long_as_it_may_wait_is_503() {
    let fixture = start(|_| async {
        std::future::pending::<()>().await;
        accepted(1)
    })
    .await;
    let mut clients = Vec::new();
    let whole = format!(
        "POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    let first = FORWARD_REQUESTS_FIRST as usize;
    for _ in 0..first {
        let mut client = fixture.connect().await;
        client.write_all(whole.as_bytes()).await.unwrap();
        clients.push(client);
    }
    eventually("all that may be are under way", || fixture.seen() == first).await;
    let answer = tokio::time::timeout(
        Duration::from_secs(10),
        fixture.send_once(fixture.events(), b"{}"),
    );
    let answer = answer.await.expect("it does not wait for those under way");
    assert_eq!((answer.status.as_u16(), answer.code()), (503, "overloaded"));
    assert_eq!(answer.header("sluice-outcome"), "refused");
    assert_eq!(fixture.seen(), first);
}

#[tokio::test]
async fn an_append_outlives_its_client_and_keeps_its_bytes_charged() {
    let gate = Arc::new(Semaphore::new(0));
    let done = Arc::new(AtomicUsize::new(0));
    let (open, finished) = (Arc::clone(&gate), Arc::clone(&done));
    let fixture = start(move |_| {
        let (open, finished) = (Arc::clone(&open), Arc::clone(&finished));
        async move {
            open.acquire().await.unwrap().forget();
            finished.fetch_add(1, Ordering::SeqCst);
            accepted(1)
        }
    })
    .await;
    let mut client = fixture.connect().await;
    let request = format!(
        "POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    eventually("the request is handed on", || fixture.seen() == 1).await;
    drop(client);
    eventually("its connection is gone", || {
        fixture.metrics.render().contains("sluice_connections 0\n")
    })
    .await;
    assert!(fixture.edge.held_bytes() > 0);
    gate.add_permits(1);
    eventually("the append ends", || done.load(Ordering::SeqCst) == 1).await;
    eventually("its bytes are given back", || fixture.edge.held_bytes() == 0).await;
}

#[tokio::test]
async fn a_thousand_clients_that_leave_in_the_middle_leave_nothing_behind() {
    let fixture = start_accepting().await;
    let known = format!(
        "POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: 90000\r\n\r\n{{\"a\":"
    );
    let chunked = format!(
        "POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{{\"a\":"
    );
    for _ in 0..10 {
        let mut clients = Vec::new();
        for n in 0..100 {
            let mut client = fixture.connect().await;
            let request = if n % 2 == 0 { &known } else { &chunked };
            client.write_all(request.as_bytes()).await.unwrap();
            clients.push(client);
        }
        eventually("bodies are charged", || fixture.edge.held_bytes() > 1_000_000).await;
        drop(clients);
        eventually("all is given back", || fixture.edge.held_bytes() == 0).await;
    }
    assert_eq!(fixture.seen(), 0);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_it_is_read() {
    let fixture = start_accepting().await;
    let head = format!(
        "POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: {}\r\n\r\n",
        60 << 20
    );
    let mut holders = Vec::new();
    for _ in 0..2 {
        let mut client = fixture.connect().await;
        client.write_all(head.as_bytes()).await.unwrap();
        holders.push(client);
    }
    eventually("both are charged", || fixture.edge.held_bytes() == 120 << 20).await;
    let answer = fixture.raw(head.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("sluice-outcome: refused"),
        "{answer}"
    );
    let small = fixture.send(fixture.events(), b"{}").await;
    assert_eq!(small.status.as_u16(), 202, "what fits goes on");
}

fn small(key: &str, dataset: &str) -> String {
    format!(
        "POST /v1/events/{dataset} HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\ncontent-length: 2\r\n\r\n{{}}"
    )
}

#[tokio::test]
async fn a_client_that_leaves_while_its_request_waits_takes_it_along() {
    let fixture = start(|_| async { busy(100) }).await;
    let mut client = fixture.connect().await;
    client.write_all(small(KEY, "events").as_bytes()).await.unwrap();
    eventually("it was tried, and waits", || fixture.seen() == 1).await;
    assert!(fixture.edge.held_bytes() > 0);
    drop(client);
    eventually("its bytes are given back", || fixture.edge.held_bytes() == 0).await;
    let tried = fixture.seen();
    // Another's request is tried after the hold, and the one that left is not.
    let answer = fixture.send_once(fixture.events(), b"{}").await;
    assert_eq!(answer.status.as_u16(), 503);
    let seen = fixture.seen.lock().unwrap();
    let left = seen[0].request;
    assert!(seen.len() > tried && seen[tried..].iter().all(|one| one.request != left));
}

#[tokio::test]
async fn a_normalizer_that_is_busy_for_one_tenant_is_not_busy_for_another() {
    let fixture = start(|request: sluice_common::wire::intake::IntakeRequest| async move {
        match request.tenant.as_str() {
            "acme" => busy_for_tenant(400),
            _ => accepted(1),
        }
    })
    .await;
    let held = tokio::spawn({
        let request = fixture.events();
        let body = http_body_util::Full::new(bytes::Bytes::from_static(b"{}"));
        crate::harness::exchange(request.body(body).unwrap(), false)
    });
    eventually("the one is told", || fixture.seen() >= 1).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let started = Instant::now();
        let answer = fixture.raw_once(small(NARROW, "other").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
        slowest = slowest.max(started.elapsed());
    }
    assert!(slowest < Duration::from_millis(400), "{slowest:?}");
    assert_eq!((fixture.edge.readiness())(), Ok(()), "one tenant's matter");
    let held = held.await.unwrap();
    assert_eq!(
        (held.status.as_u16(), held.header("sluice-outcome")),
        (503, "refused")
    );
}

/// What a noisy tenant has waiting in [`place_of_the_quiet`], beside the 64 that are under way.
const WAITING: usize = 60;
/// From then on what waits may be shed, and tells nothing of the order any more.
const SHED_FROM: Duration = Duration::from_millis(450);

/// Waits for `condition`; nothing where that takes until [`SHED_FROM`] after `begun`.
async fn in_time(begun: Instant, condition: impl Fn() -> bool) -> Option<()> {
    while !condition() {
        if begun.elapsed() > SHED_FROM {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Some(())
}

/// After how many requests that of a quiet tenant is passed on, which came behind all of a noisy one's; nothing
/// where the machine was too slow to tell.
async fn place_of_the_quiet() -> Option<usize> {
    let open = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&open);
    let fixture = start(move |_| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            accepted(1)
        }
    })
    .await;
    let mut clients = Vec::new();
    for _ in 0..=64 + WAITING {
        clients.push(fixture.connect().await);
    }
    let mut quiet = clients.pop().unwrap();
    let begun = Instant::now();
    for client in &mut clients {
        client.write_all(small(KEY, "events").as_bytes()).await.unwrap();
    }
    let held = |requests: usize| fixture.edge.held_bytes() == requests * 4096;
    in_time(begun, || fixture.seen() == 64 && held(64 + WAITING)).await?;
    quiet.write_all(small(NARROW, "other").as_bytes()).await.unwrap();
    in_time(begun, || held(64 + WAITING + 1)).await?;
    let is_quiet = |one: &sluice_common::wire::intake::IntakeRequest| one.tenant.as_str() == "narrow";
    let place = || fixture.seen.lock().unwrap().iter().position(is_quiet);
    // Slow answers close the window: how many must be answered until one more is passed on is not for this to say.
    while place().is_none() {
        if begun.elapsed() > SHED_FROM {
            return None;
        }
        open.add_permits(1);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    place()
}

#[tokio::test]
async fn a_quiet_tenants_request_does_not_wait_for_all_that_a_noisy_one_has_sent() {
    let mut tries = 0;
    let place = loop {
        if let Some(place) = place_of_the_quiet().await {
            break place;
        }
        tries += 1;
        assert!(tries < 50, "the machine is too slow to tell");
    };
    assert!(place <= 64 + 17, "after {} more of the noisy one's", place - 64);
}

fn gone() -> IntakeReply {
    IntakeReply::Unreached {
        reason: "nobody listens there".into(),
    }
}

/// Of one dataset, say.
fn full() -> IntakeReply {
    IntakeReply::Unavailable {
        unknown: false,
        reason: "the dataset is full".into(),
        retry_after_ms: 1_000,
    }
}

#[tokio::test]
async fn of_several_normalizers_those_that_cannot_be_reached_take_nothing_from_the_others() {
    let well = || accepted(1);
    let all: Vec<fn() -> IntakeReply> = vec![gone, gone, well];
    let fixture = start_before(all).await;
    for _ in 0..20 {
        let answer = fixture.send_once(fixture.events(), b"{\"a\": \"1\"}").await;
        assert_eq!(answer.status, 202, "{}", answer.body);
    }
    let asked = fixture.seen();
    assert!(
        (22..=24).contains(&asked),
        "each that is gone was asked {asked} - 20 times, and then left alone"
    );
    // Where none can be reached, each is asked once, and the client is told.
    let fixture = start_before(vec![gone, gone]).await;
    for n in 1..=3 {
        let answer = fixture.send_once(fixture.events(), b"{\"a\": \"1\"}").await;
        assert_eq!((answer.status.as_u16(), answer.code()), (503, "unavailable"));
        assert!(fixture.seen() <= n + 1, "{} of {n}", fixture.seen());
    }
    // One that says no is there: it is asked in its turn, and nobody else is asked instead.
    let some: Vec<fn() -> IntakeReply> = vec![full, || accepted(1)];
    let fixture = start_before(some).await;
    let mut taken = 0;
    for _ in 0..10 {
        let answer = fixture.send_once(fixture.events(), b"{\"a\": \"1\"}").await;
        taken += usize::from(answer.status == 202);
    }
    assert_eq!((taken, fixture.seen()), (5, 10));
}
