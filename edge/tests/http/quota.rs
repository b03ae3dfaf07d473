//! Quotas on the socket: 429 and 413 as clients see them, and what a refusal costs.

use crate::harness::{Answer, Fixture, KEY, accepted, busy, eventually, hash, start_as};
use http::{Request, StatusCode};
use sluice_common::config::Loaded;
use sluice_common::error::{Limit, Problem};
use sluice_common::wire::intake::{IntakeReply, IntakeRequest};
use std::future::Future;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;

fn config(quota: &str) -> String {
    format!(
        "tenants:\n- {{id: acme, keys: [{{sha256: {}}}], quota: {quota}}}\n- {{id: free, keys: [{{sha256: {}}}]}}\n\
         datasets:\n- {{name: events, fields: [{{name: a, type: string}}]}}\n- {{name: other, fields: [{{name: a, type: string}}]}}\n",
        hash(KEY),
        hash("slc_free_key")
    )
}

async fn limited<F, R>(quota: &str, answer: F) -> Fixture
where
    F: Fn(IntakeRequest) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = IntakeReply> + Send + 'static,
{
    start_as(&config(quota), None, answer).await
}

async fn accepting(quota: &str) -> Fixture {
    limited(quota, |_| async { accepted(1) }).await
}

fn lines(n: usize) -> Vec<u8> {
    b"{\"a\":\"b\"}\n".repeat(n)
}

fn status(answer: &Answer) -> (u16, &str) {
    (answer.status.as_u16(), answer.code())
}

#[tokio::test]
async fn over_a_quota_is_429_that_says_which_and_when_and_then_is_taken() {
    let fixture = accepting("{events_per_second: 10, burst: 2s}").await;
    let answer = fixture.send_once(fixture.events(), &lines(18)).await;
    assert_eq!(answer.status.as_u16(), 202);
    assert_eq!(
        answer.header("ratelimit-policy"),
        "\"tenant-events\";q=20;qu=\"events\";w=2"
    );
    assert!(
        answer.header("ratelimit").starts_with("\"tenant-events\";r="),
        "{}",
        answer.header("ratelimit")
    );
    let refused = fixture.send_once(fixture.events(), &lines(18)).await;
    assert_eq!(status(&refused), (429, "quota_exceeded"));
    assert_eq!(
        refused.body["type"],
        "https://iana.org/assignments/http-problem-types#quota-exceeded"
    );
    assert_eq!(
        refused.body["violated-policies"],
        serde_json::json!(["tenant-events"])
    );
    let detail = refused.body["detail"].as_str().unwrap();
    assert!(detail.contains("10 events a second, 20 at once"), "{detail}");
    let seconds: u64 = refused.header("retry-after").parse().unwrap();
    let t = refused
        .header("ratelimit")
        .rsplit("t=")
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=4).contains(&seconds) && seconds >= t, "{seconds} {t}");
    assert_eq!(fixture.seen(), 1, "nothing was passed on");
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let again = fixture.send_once(fixture.events(), &lines(18)).await;
    assert_eq!(again.status.as_u16(), 202);
    let other = Request::post(format!("http://{}/v1/events/events", fixture.address))
        .header("x-api-key", "slc_free_key");
    let other = fixture.send_once(other, &lines(500)).await;
    assert_eq!(
        (other.status.as_u16(), other.header("ratelimit-policy")),
        (202, "")
    );
    let metrics = fixture.metrics.render();
    for line in [
        r#"sluice_quota_refusals_total{mode="refused",policy="tenant-events",tenant="acme"} 1"#,
        r#"sluice_shed_total{reason="quota_tenant_events",where="edge"} 1"#,
        r#"sluice_quota_used_ratio{tenant="acme"} "#,
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
}

#[tokio::test]
async fn what_is_larger_than_a_burst_is_413_with_what_would_fit() {
    let fixture = accepting("{events_per_second: 10, bytes_per_second: 1000, burst: 2s}").await;
    let answer = fixture.send(fixture.events(), &lines(21)).await;
    assert_eq!(status(&answer), (413, "request_exceeds_burst"));
    assert_eq!(
        (&answer.body["fits"], &answer.body["unit"]),
        (&20.into(), &"events".into())
    );
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(3_000));
    let answer = fixture.send(fixture.events(), long.as_bytes()).await;
    assert_eq!(status(&answer), (413, "request_exceeds_burst"));
    assert_eq!(
        (&answer.body["fits"], &answer.body["unit"]),
        (&2_000.into(), &"bytes".into())
    );
    assert_eq!(fixture.seen(), 0);
    let whole = fixture.send_once(fixture.events(), &lines(20)).await;
    assert_eq!(whole.status.as_u16(), 202, "the refusals cost nothing");
}

#[tokio::test]
async fn a_packed_body_is_charged_for_what_is_in_it() {
    let fixture = accepting("{bytes_per_second: 10000, burst: 2s}").await;
    let pack = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let gzip = || fixture.events().header("content-encoding", "gzip");
    let small = pack(&lines(1_500));
    assert!(small.len() < 1_000);
    assert_eq!(fixture.send_once(gzip(), &small).await.status.as_u16(), 202);
    let refused = fixture.send_once(gzip(), &small).await;
    assert_eq!(status(&refused), (429, "quota_exceeded"));
    assert_eq!(
        refused.body["violated-policies"],
        serde_json::json!(["tenant-bytes"])
    );
    let bomb = fixture.send_once(gzip(), &pack(&lines(100_000))).await;
    assert_eq!(status(&bomb), (413, "request_exceeds_burst"));
}

#[tokio::test]
async fn an_empty_bucket_refuses_before_the_body_is_read() {
    let fixture = accepting("{events_per_second: 1, burst: 60s}").await;
    assert_eq!(
        fixture
            .send_once(fixture.events(), &lines(60))
            .await
            .status
            .as_u16(),
        202
    );
    let mut client = fixture.connect().await;
    let head = format!(
        "POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: {}\r\n\r\n",
        64 << 20
    );
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4_096];
    let read = tokio::time::timeout(Duration::from_secs(2), client.read(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer[..read.expect("at once").unwrap()]).into_owned();
    assert!(
        answer.starts_with("HTTP/1.1 429") && answer.contains("connection: close"),
        "{answer}"
    );
    assert_eq!(fixture.edge.held_bytes(), 0, "no memory was taken");
}

#[tokio::test]
async fn a_refusal_for_want_of_room_costs_nothing_and_what_was_taken_or_wrong_does() {
    let replies = Arc::new(AtomicUsize::new(0));
    let next = Arc::clone(&replies);
    let fixture = limited("{events_per_second: 1, burst: 100s}", move |_| {
        let reply = match next.load(Ordering::SeqCst) {
            0 => busy(1),
            1 => IntakeReply::Unavailable {
                unknown: false,
                reason: "away".into(),
                retry_after_ms: 1,
            },
            2 => IntakeReply::Unavailable {
                unknown: true,
                reason: "away".into(),
                retry_after_ms: 1,
            },
            _ => accepted(1),
        };
        async move { reply }
    })
    .await;
    for _ in 0..3 {
        let answer = fixture.send_once(fixture.events(), &lines(60)).await;
        assert_eq!(answer.status.as_u16(), 503);
    }
    replies.store(1, Ordering::SeqCst);
    eventually_taken(&fixture, 503, 60).await;
    replies.store(3, Ordering::SeqCst);
    eventually_taken(&fixture, 202, 60).await;
    replies.store(2, Ordering::SeqCst);
    let unknown = fixture.send_once(fixture.events(), &lines(30)).await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.header("sluice-outcome")),
        (503, "unknown")
    );
    let over = fixture.send_once(fixture.events(), &lines(30)).await;
    assert_eq!(status(&over), (429, "quota_exceeded"), "unknown stays charged");
}

/// The gate stays shut for a moment after the normalizer was busy.
async fn eventually_taken(fixture: &Fixture, expected: u16, events: usize) {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = fixture.send_once(fixture.events(), &lines(events)).await;
        let gate = answer.status.as_u16() == 503 && answer.code() == "overloaded";
        if !gate {
            assert_eq!(answer.status.as_u16(), expected, "{}", answer.body);
            return;
        }
        assert!(Instant::now() < until, "the gate does not open");
    }
}

#[tokio::test]
async fn requests_at_once_are_capped_and_one_whose_client_left_counts_until_it_is_done() {
    let (open, calls) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (gate, counted) = (Arc::clone(&open), Arc::clone(&calls));
    let fixture = limited("{concurrent_requests: 1}", move |_| {
        let (gate, counted) = (Arc::clone(&gate), Arc::clone(&counted));
        async move {
            counted.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            accepted(1)
        }
    })
    .await;
    let mut client = fixture.connect().await;
    let request = format!(
        "POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    eventually("it is under way", || calls.load(Ordering::SeqCst) == 1).await;
    drop(client);
    for _ in 0..3 {
        let refused = fixture.send_once(fixture.events(), b"{}").await;
        assert_eq!(status(&refused), (429, "quota_exceeded"));
        assert_eq!(
            refused.body["violated-policies"],
            serde_json::json!(["tenant-concurrency"])
        );
    }
    open.add_permits(1);
    open.add_permits(1);
    let until = Instant::now() + Duration::from_secs(10);
    while fixture.send_once(fixture.events(), b"{}").await.status.as_u16() != 202 {
        assert!(Instant::now() < until, "it never ends");
    }
}

#[tokio::test]
async fn a_dry_run_takes_all_and_counts() {
    let fixture =
        accepting("{events_per_second: 1, bytes_per_second: 100, concurrent_requests: 1, dry_run: true}")
            .await;
    for _ in 0..5 {
        let answer = fixture.send_once(fixture.events(), &lines(100)).await;
        assert_eq!(answer.status.as_u16(), 202);
    }
    let metrics = fixture.metrics.render();
    let counted = r#"sluice_quota_refusals_total{mode="dry_run",policy="tenant-bytes",tenant="acme"} 5"#;
    assert!(metrics.contains(counted), "{metrics}");
    assert!(metrics.contains(r#"sluice_shed_total{reason="quota_tenant_bytes",where="edge"} 0"#));
}

#[tokio::test]
async fn a_new_config_counts_for_the_next_request() {
    let fixture = accepting("{events_per_second: 10, burst: 2s}").await;
    assert_eq!(
        fixture
            .send_once(fixture.events(), &lines(200))
            .await
            .status
            .as_u16(),
        413
    );
    let loaded = Loaded::parse(
        &config("{events_per_second: 1k, burst: 2s}"),
        Path::new("t"),
        Path::new("/tmp"),
    )
    .unwrap();
    fixture.edge.tenants().replace(&loaded.config);
    assert_eq!(
        fixture
            .send_once(fixture.events(), &lines(200))
            .await
            .status
            .as_u16(),
        202
    );
}

#[tokio::test]
async fn the_cap_of_keys_is_told_beside_the_quotas_with_a_wait_that_is_true() {
    let over_cap = || {
        let mut problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "keys_per_tenant", "too many");
        problem.retry_after_s = Some(400);
        problem.limit = Some(Box::new(Limit {
            policy: "tenant-keys".into(),
            unit: "events".into(),
            most: 1_000,
            window_s: 86_400,
            left: 7,
        }));
        IntakeReply::Refused(problem)
    };
    let policy = "\"tenant-keys\";q=1000;qu=\"events\";w=86400";
    for (quota, beside) in [("{}", 0), ("{events_per_second: 10, burst: 2s}", 1)] {
        let fixture = limited(quota, move |_| async move { over_cap() }).await;
        let answer = fixture.send_once(fixture.events(), &lines(18)).await;
        assert_eq!(status(&answer), (429, "keys_per_tenant"));
        assert_eq!(
            answer.body["violated-policies"],
            serde_json::json!(["tenant-keys"])
        );
        let wait: u64 = answer.header("retry-after").parse().unwrap();
        assert!((400..=600).contains(&wait), "{wait}");
        let policies: Vec<_> = answer.header("ratelimit-policy").split(", ").collect();
        assert_eq!((policies.len(), policies[beside]), (beside + 1, policy));
        let limits: Vec<_> = answer.header("ratelimit").split(", ").collect();
        assert_eq!(limits[beside], "\"tenant-keys\";r=7;t=400");
        let again = fixture.send_once(fixture.events(), &lines(18)).await;
        assert_eq!(status(&again).1, "keys_per_tenant", "the quota was given back");
    }
}

/// Sends 300 requests of ten events one after the other: how many events were taken, in how long.
async fn hurry(fixture: &Fixture) -> (u32, Duration) {
    let (started, mut taken) = (Instant::now(), 0);
    for _ in 0..300 {
        let answer = fixture.send_once(fixture.events(), &lines(10)).await;
        match answer.status.as_u16() {
            202 => taken += 10,
            other => assert_eq!(other, 429, "{}", answer.body),
        }
    }
    (taken, started.elapsed())
}

#[tokio::test]
async fn two_edges_with_half_of_a_quota_each_give_all_of_it_together_and_one_alone_gives_half() {
    let half = "edge: {quota_share: 50%}\n".to_owned() + &config("{events_per_second: 100, burst: 1s}");
    let edge = || start_as(&half, None, |_| async { accepted(1) });
    let (one, two) = tokio::join!(edge(), edge());
    let ends = tokio::join!(hurry(&one), hurry(&two));
    for (taken, time) in [ends.0, ends.1] {
        let most = 50.0 + 50.0 * time.as_secs_f64();
        assert!(taken >= 50, "half of a burst: {taken}");
        assert!(f64::from(taken) <= most, "{taken} of {most} in {time:?}");
    }
    // One that has been asked nothing: the bucket of the others may be empty, which is a refusal before the body is read.
    let fresh = edge().await;
    let larger = fresh.send_once(fresh.events(), &lines(51)).await;
    assert_eq!(status(&larger), (413, "request_exceeds_burst"));
    assert_eq!(larger.body["fits"], 50, "half of a burst alone");
}
