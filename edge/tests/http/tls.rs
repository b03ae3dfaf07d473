//! TLS on the public listener, with a real TLS client.

use crate::harness::{self, Fixture, KEY, accepted, eventually, read_answers};
use crate::pki::{Authority, Caller, Leaf, server_files};
use http::{Request, StatusCode, Version};
use rcgen::SanType;
use sluice_common::tls::reload::Reloadable as _;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

struct Place {
    dir: tempfile::TempDir,
    authority: Authority,
    fixture: Fixture,
}

impl Place {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new("sluice test");
        authority.leaf(&Leaf::server()).write(dir.path(), "edge");
        let files = server_files(dir.path(), None);
        let fixture =
            harness::start_as(&harness::two_tenants(), Some(files), |_| async { accepted(1) }).await;
        Self {
            dir,
            authority,
            fixture,
        }
    }

    fn caller(&self) -> Caller {
        Caller::trusting(&self.authority, self.fixture.address)
    }

    fn outcome(&self, outcome: &str) -> f64 {
        let line = format!("sluice_tls_handshakes_total{{outcome=\"{outcome}\"}} ");
        let text = self.fixture.metrics.render();
        let found = text.lines().find_map(|found| found.strip_prefix(&line));
        found.map_or(-1.0, |value| value.parse().unwrap())
    }
}

fn event() -> Request<String> {
    Request::post("https://localhost/v1/events/events")
        .header("x-api-key", KEY)
        .header("host", "localhost")
        .body("{\"a\":\"b\"}".to_owned())
        .unwrap()
}

#[tokio::test]
async fn both_versions_of_tls_carry_both_versions_of_http() {
    let place = Place::start().await;
    for tls in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (alpn, http) in [
            (&[&b"h2"[..]][..], Version::HTTP_2),
            (&[b"http/1.1"], Version::HTTP_11),
            (&[b"h2", b"http/1.1"], Version::HTTP_2),
            (&[], Version::HTTP_11),
        ] {
            let caller = place.caller().speaking(tls).offering(alpn);
            let answer = caller.send(event()).await.unwrap();
            assert_eq!(
                (answer.status, answer.version),
                (StatusCode::ACCEPTED, http),
                "{tls:?} {alpn:?}"
            );
            assert_eq!(answer.tls, Some(tls.version));
        }
    }
    assert_eq!(place.fixture.seen(), 8);
    assert_eq!(place.outcome("done"), 8.0);
}

#[tokio::test]
async fn a_client_that_offers_no_protocol_of_ours_or_trusts_another_authority_gets_no_connection() {
    let place = Place::start().await;
    assert!(place.caller().offering(&[b"smtp"]).send(event()).await.is_err());
    let other = Authority::new("another");
    let stranger = Caller::trusting(&other, place.fixture.address);
    let error = stranger.send(event()).await.unwrap_err();
    assert!(
        error.contains("UnknownIssuer") || error.contains("certificate"),
        "{error}"
    );
    eventually("both are counted", || place.outcome("failed") == 2.0).await;
    assert_eq!(place.fixture.seen(), 0);
}

#[tokio::test]
async fn idle_handshakes_do_not_keep_others_from_theirs_and_end_at_the_deadline() {
    let place = Place::start().await;
    let mut idle = Vec::new();
    for n in 0..300 {
        let mut stream = place.fixture.connect().await;
        if n % 2 == 0 {
            // The first bytes of a record that never ends.
            stream.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        }
        idle.push(stream);
    }
    let started = Instant::now();
    for _ in 0..20 {
        let answer = place.caller().send(event()).await.unwrap();
        assert_eq!(answer.status, StatusCode::ACCEPTED);
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(2), "20 requests took {took:?}");
    let closed = async {
        for stream in &mut idle {
            // An alert, or nothing; then the end.
            stream.read_to_end(&mut Vec::new()).await.ok();
        }
    };
    tokio::time::timeout(Duration::from_secs(9), closed)
        .await
        .expect("closed at the deadline");
    eventually("all are counted", || place.outcome("late") == 300.0).await;
}

#[tokio::test]
async fn plain_http_on_the_tls_port_is_told_so() {
    let place = Place::start().await;
    let body = "x".repeat(100_000);
    for request in [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        format!("POST /v1/events/events HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n{body}"),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ] {
        let mut stream = place.fixture.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let text = read_answers(&mut stream).await;
        assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{text}");
        assert!(
            text.contains("tls_required") && text.contains("https://"),
            "{text}"
        );
    }
    // The last is counted once its drain is over.
    eventually("all are counted", || place.outcome("plain_http") == 3.0).await;
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
    let place = Place::start().await;
    let tls = place.fixture.tls.clone().unwrap();
    let mut open = place.caller().offering(&[b"h2"]).connect().await.unwrap();
    let first = open.certificate();
    place
        .authority
        .leaf(&Leaf::server())
        .write(place.dir.path(), "edge");
    tls.reload().unwrap();
    let new = place.caller().connect().await.unwrap().certificate();
    assert_ne!(first, new);
    assert_eq!(open.send(event()).await.unwrap().status, StatusCode::ACCEPTED);
    std::fs::write(place.dir.path().join("edge.key"), "not a key").unwrap();
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("edge.tls.key"), "{error}");
    assert_eq!(place.caller().connect().await.unwrap().certificate(), new);
    assert_eq!(open.send(event()).await.unwrap().status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn an_expired_certificate_is_served_with_its_end_in_the_metrics() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("sluice test");
    authority
        .leaf(&Leaf::server().expired())
        .write(dir.path(), "edge");
    let files = server_files(dir.path(), None);
    let fixture = harness::start_as(&harness::two_tenants(), Some(files), |_| async { accepted(1) }).await;
    let text = fixture.metrics.render();
    // 2021-01-01T00:00:00Z
    let line = "sluice_tls_certificate_expiry_seconds{certificate=\"edge\"} 1609459200";
    assert!(text.contains(line), "{text}");
    let refused = Caller::trusting(&authority, fixture.address)
        .send(event())
        .await
        .unwrap_err();
    assert!(
        refused.contains("Expired") || refused.contains("expired"),
        "{refused}"
    );
}

/// Tenants `a` (a key and two names) and `b` (a name).
fn tenants_by_certificate() -> String {
    format!(
        "edge: {{tls: {{cert: edge.crt, key: edge.key, client_ca: ca.crt}}}}\ntenants:\n\
         - {{id: a, keys: [{{sha256: {}}}], certificates: [{{dns: agent.a.example}}, {{cn: agent-a}}]}}\n\
         - {{id: b, keys: [], certificates: [{{uri: \"spiffe://example/b\"}}]}}\n\
         datasets: [{{name: events, fields: [{{name: a, type: string}}]}}]\n",
        harness::hash(KEY)
    )
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

fn without_key() -> Request<String> {
    let mut request = event();
    request.headers_mut().remove("x-api-key");
    // What a client says of itself counts for nothing.
    request.headers_mut().insert("x-tenant", "b".parse().unwrap());
    request
}

#[tokio::test]
async fn a_client_certificate_is_its_tenant_and_must_agree_with_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    servers.leaf(&Leaf::server()).write(dir.path(), "edge");
    clients.write(dir.path(), "ca.crt");
    let files = server_files(dir.path(), Some("ca.crt"));
    let place = harness::start_as(&tenants_by_certificate(), Some(files), |_| async { accepted(1) }).await;
    let caller = || Caller::trusting(&servers, place.address);
    let shows = |cn: &str, names: Vec<SanType>| clients.leaf(&Leaf::client(cn, names));
    for (signed, request, expected) in [
        (shows("x", vec![dns("Agent.A.example")]), without_key(), "a"),
        (shows("agent-a", vec![]), without_key(), "a"),
        (
            shows("agent-a", vec![uri("spiffe://example/b")]),
            without_key(),
            "b",
        ),
        (shows("x", vec![dns("agent.a.example")]), event(), "a"),
        (shows("mesh", vec![dns("nobody")]), event(), "a"),
        (
            shows("agent-a", vec![dns("nobody")]),
            without_key(),
            "unknown_certificate",
        ),
        (
            shows("x", vec![uri("spiffe://example/b")]),
            event(),
            "credentials_disagree",
        ),
        (
            shows("x", vec![uri("spiffe://example/b"), dns("agent.a.example")]),
            without_key(),
            "ambiguous_certificate",
        ),
    ] {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let answer = caller()
                .speaking(version)
                .showing(&signed)
                .send(request.clone())
                .await
                .unwrap();
            let tenant = place
                .seen
                .lock()
                .unwrap()
                .pop()
                .map(|call| call.tenant.to_string());
            if answer.status == StatusCode::ACCEPTED {
                assert_eq!(tenant.as_deref(), Some(expected));
            } else {
                assert_eq!((answer.status, tenant), (StatusCode::UNAUTHORIZED, None));
                assert_eq!(answer.body["code"], expected);
            }
        }
    }
    let answer = caller().send(event()).await.unwrap();
    assert_eq!(answer.status, StatusCode::ACCEPTED, "a key alone");
    let answer = caller().send(without_key()).await.unwrap();
    assert_eq!(answer.body["code"], "missing_api_key", "neither");
}

#[tokio::test]
async fn a_certificate_of_another_authority_or_an_expired_one_gets_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    servers.leaf(&Leaf::server()).write(dir.path(), "edge");
    clients.write(dir.path(), "ca.crt");
    let files = server_files(dir.path(), Some("ca.crt"));
    let place = harness::start_as(&tenants_by_certificate(), Some(files), |_| async { accepted(1) }).await;
    let mine = || Leaf::client("agent-a", vec![]);
    for signed in [
        servers.leaf(&mine()),
        Authority::new("clients").leaf(&mine()),
        clients.leaf(&mine().expired()),
    ] {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let caller = Caller::trusting(&servers, place.address).speaking(version);
            // With a good key too: what is shown must be sound.
            assert!(caller.showing(&signed).send(event()).await.is_err());
        }
    }
    assert_eq!(place.seen(), 0);
}
