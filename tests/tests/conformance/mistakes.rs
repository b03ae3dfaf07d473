//! An API user's mistakes: each answer has the status, the code and the words to mend it.

use crate::shared::{LIMITED_KEY, sluice};
use crate::values::rfc3339;
use http::{Method, StatusCode};
use sluice_tests::client::Answer;
use sluice_tests::{Client, Deployment, now_ms};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const EVENTS: &str = "/v1/events/events";

/// One mistake, and what the answer must be.
struct Mistake {
    name: &'static str,
    client: Client,
    method: Method,
    path: &'static str,
    body: Vec<u8>,
    status: u16,
    code: &'static str,
    /// What the detail must say.
    says: &'static str,
    /// A header, and what it must contain.
    header: Option<(&'static str, &'static str)>,
}

fn post(
    name: &'static str,
    client: Client,
    body: &[u8],
    expected: (u16, &'static str, &'static str),
) -> Mistake {
    let (status, code, says) = expected;
    Mistake {
        name,
        client,
        method: Method::POST,
        path: EVENTS,
        body: body.to_vec(),
        status,
        code,
        says,
        header: None,
    }
}

impl Mistake {
    fn at(self, path: &'static str) -> Self {
        Self { path, ..self }
    }

    fn by(self, method: Method) -> Self {
        Self { method, ..self }
    }

    fn with(self, name: &'static str, part: &'static str) -> Self {
        Self {
            header: Some((name, part)),
            ..self
        }
    }
}

fn credentials(edge: &Client, key: &Client) -> Vec<Mistake> {
    let challenge = "www-authenticate";
    let basic = edge.clone().with("authorization", "Basic c2x1aWNl");
    let two = key.clone().with("x-api-key", "slc_other_1");
    let limited = edge.clone().with_key(LIMITED_KEY);
    vec![
        post(
            "no key",
            edge.clone(),
            b"{}",
            (401, "missing_api_key", "Authorization: Bearer KEY"),
        )
        .with(challenge, "Bearer"),
        post(
            "wrong key",
            edge.clone().with_key("slc_t0_wrong"),
            b"{}",
            (401, "unknown_api_key", "check it"),
        )
        .with(challenge, "invalid_token"),
        post(
            "basic auth",
            basic,
            b"{}",
            (401, "bad_authorization", "Bearer KEY"),
        )
        .with(challenge, "Bearer"),
        post("two keys", two, b"{}", (401, "conflicting_api_keys", "send one")).with(challenge, "Bearer"),
        post(
            "dataset not granted",
            limited.clone(),
            b"{}",
            (403, "dataset_not_granted", "datasets"),
        ),
        post(
            "unknown and not granted",
            limited,
            b"{}",
            (403, "dataset_not_granted", "datasets"),
        )
        .at("/v1/events/nope"),
        post(
            "unknown dataset",
            key.clone(),
            b"{}",
            (404, "unknown_dataset", "check the name"),
        )
        .at("/v1/events/nope"),
        post(
            "dataset of another case",
            key.clone(),
            b"{}",
            (404, "unknown_dataset", "\"Events\""),
        )
        .at("/v1/events/Events"),
    ]
}

fn routes(key: &Client) -> Vec<Mistake> {
    let lost = |name, path, says| post(name, key.clone(), b"{}", (404, "unknown_route", says)).at(path);
    let method = |name, method| {
        post(name, key.clone(), b"", (405, "method_not_allowed", "POST"))
            .by(method)
            .with("allow", "POST")
    };
    vec![
        lost("no dataset", "/v1/events", "name the dataset"),
        lost("root", "/", "/v1/events/{dataset}"),
        lost("OTLP logs", "/v1/logs", "OTLP is not there yet"),
        lost("OTLP traces", "/v1/traces", "OTLP is not there yet"),
        lost(
            "one level too deep",
            "/v1/events/events/x",
            "/v1/events/{dataset}",
        ),
        lost("metrics on the public listener", "/metrics", "admin listener"),
        method("GET", Method::GET),
        method("PUT", Method::PUT),
        method("DELETE", Method::DELETE),
    ]
}

fn packing(key: &Client) -> Vec<Mistake> {
    let typed = |value: &str| key.clone().with("content-type", value);
    let packed = |value: &str| key.clone().with("content-encoding", value);
    let media = |says| (415, "unsupported_media_type", says);
    let encoding = |says| (415, "unsupported_encoding", says);
    let broken = (400, "malformed_body", "gzip");
    vec![
        post(
            "form",
            typed("application/x-www-form-urlencoded"),
            b"a=1",
            media("x-ndjson"),
        ),
        post(
            "plain text",
            typed("text/plain"),
            b"{}",
            media("application/jsonl"),
        ),
        post("brotli", packed("br"), b"{}", encoding("gzip, zstd, deflate")).with("accept-encoding", "zstd"),
        post(
            "two encodings",
            packed("gzip, zstd"),
            b"{}",
            encoding("more than one"),
        ),
        post("plain sent as gzip", packed("gzip"), b"{}", broken),
    ]
}

fn bodies(key: &Client) -> Vec<Mistake> {
    let json = || key.clone().with("content-type", "application/json");
    let not_json = (400, "malformed_json", "correct it and send it again");
    vec![
        post(
            "no body",
            key.clone(),
            b"",
            (400, "no_body", "at least one event"),
        ),
        post("broken object", json(), b"{\"a\":", not_json),
        post("broken array", json(), b"[{},]", not_json),
        post("NDJSON sent as JSON", json(), b"{}\n{}\n", not_json),
        post(
            "a scalar",
            json(),
            b"42",
            (400, "not_an_object", "send an object"),
        ),
    ]
}

fn sizes(key: &Client) -> Vec<Mistake> {
    let zstd = key.clone().with("content-encoding", "zstd");
    let spaces = zstd::encode_all(&vec![b' '; 65 << 20][..], 1).expect("packed");
    let lines = b"{}\n".repeat(65_537);
    let now = now_ms() / 1_000;
    let hour = |n: u64| format!("{{\"at\":{:?}}}\n", rfc3339(now - n * 3_600));
    let hours: String = (0..25).map(hour).collect();
    let over = |code, says| (413, code, says);
    vec![
        post(
            "unpacks to 65 MiB",
            zstd,
            &spaces,
            over("body_too_large", "split it"),
        ),
        post(
            "65,537 events",
            key.clone(),
            &lines,
            over("too_many_events", "65536"),
        ),
        post(
            "25 hours",
            key.clone(),
            hours.as_bytes(),
            over("too_many_partitions", "24"),
        )
        .at("/v1/events/hourly"),
    ]
}

fn idempotency_keys(key: &Client) -> Vec<Mistake> {
    let long = "k".repeat(256);
    ["", "\"\"", "\"open", "\"a\"b", &long]
        .map(|value| {
            post(
                "Idempotency-Key",
                key.clone().with("idempotency-key", value),
                b"{}",
                (400, "bad_idempotency_key", "1 to 255 bytes"),
            )
        })
        .into()
}

/// What holds of every refusal.
fn check(mistake: &Mistake, answer: &Answer) {
    let (name, told) = (mistake.name, answer.json());
    assert_eq!(answer.status, mistake.status, "{name}: {told}");
    assert_eq!(
        answer.header("content-type"),
        "application/problem+json",
        "{name}"
    );
    assert_eq!(told["code"], mistake.code, "{name}: {told}");
    assert_eq!(told["status"], mistake.status, "{name}");
    assert_eq!(
        told["type"],
        format!("urn:sluice:problem:{}", mistake.code),
        "{name}"
    );
    assert!(
        told["title"].as_str().is_some_and(|title| !title.is_empty()),
        "{name}: {told}"
    );
    let detail = told["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(mistake.says), "{name}: {detail}");
    assert!(
        !detail.contains("127.0.0.1"),
        "{name} names an inner address: {detail}"
    );
    assert_eq!(answer.header("x-request-id").len(), 32, "{name}");
    assert_eq!(told["request_id"], answer.header("x-request-id"), "{name}");
    if let Some((header, part)) = mistake.header {
        assert!(
            answer.header(header).contains(part),
            "{name}: {header}: {:?}",
            answer.header(header)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mistake_is_answered_with_what_to_do_over_http_1_and_2() {
    let sluice = sluice().await;
    for edge in [sluice.edge(), sluice.edge().over_http2()] {
        let key = edge.clone().with_key(&sluice.tenants[0].key);
        let mistakes = [
            credentials(&edge, &key),
            routes(&key),
            packing(&key),
            bodies(&key),
            sizes(&key),
            idempotency_keys(&key),
        ];
        for mistake in mistakes.into_iter().flatten() {
            let answer = mistake
                .client
                .send(mistake.method.clone(), mistake.path, mistake.body.clone())
                .await;
            check(
                &mistake,
                &answer.unwrap_or_else(|error| panic!("{}: {error}", mistake.name)),
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_mistake_is_taken() {
    let sluice = sluice().await;
    for edge in [sluice.edge(), sluice.edge().over_http2()] {
        let key = &sluice.tenants[0].key;
        let bare = edge.clone().with("authorization", key);
        let header = edge.clone().with("x-api-key", key);
        let upper = edge
            .clone()
            .with_key(key)
            .with("content-type", "Application/JSON; charset=UTF-8");
        for client in [bare, header, upper] {
            let answer = client.post("/v1/events/loose", "[]").await.expect("an answer");
            assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
            let none = serde_json::json!({"accepted": 0, "rejected": 0, "errors": [], "errors_omitted": 0});
            assert_eq!(answer.json(), none);
            assert_eq!(answer.header("x-request-id").len(), 32);
        }
        let lines = edge.with_key(key).with("content-type", "application/jsonl");
        let answer = lines
            .post("/v1/events/loose", "\n \r\n")
            .await
            .expect("an answer");
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    }
}

/// What the edge answers to these bytes.
fn raw(sluice: &Deployment, bytes: &str) -> String {
    let address = sluice.edge_address();
    let mut stream = std::net::TcpStream::connect(address).expect("connected");
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("set");
    stream.write_all(bytes.as_bytes()).expect("written");
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    // Until the problem document is whole, or the edge closes.
    while !answer.ends_with(b"}") {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(length) => answer.extend_from_slice(&piece[..length]),
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_too_long_by_its_own_account_is_refused_before_it_is_sent() {
    let sluice = sluice().await;
    let (good, bad) = (&sluice.tenants[0].key, "slc_t0_wrong");
    let head = |key: &str| {
        format!(
            "POST {EVENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 1073741824\r\n\r\n"
        )
    };
    let refused = raw(&sluice, &head(good));
    assert!(
        refused.starts_with("HTTP/1.1 413") && refused.contains("body_too_large"),
        "{refused}"
    );
    // Who may not come in learns nothing else.
    let refused = raw(&sluice, &head(bad));
    assert!(
        refused.starts_with("HTTP/1.1 401") && refused.contains("unknown_api_key"),
        "{refused}"
    );
}

/// The shell blocks of a page that post events.
fn curls(page: &str) -> Vec<String> {
    let blocks = page
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("\n```").next());
    blocks
        .filter(|block| block.contains("curl ") && block.contains("/v1/events/"))
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_curl_of_the_pages_works_as_it_is_written() {
    let sluice = sluice().await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for page in ["README.md", "deploy/README.md"] {
        let text = std::fs::read_to_string(root.join(page)).expect("the page");
        let blocks = curls(&text);
        assert!(!blocks.is_empty(), "{page} shows how to send an event");
        for block in blocks {
            let here = block
                .replace("127.0.0.1:4318", &sluice.edge_address())
                .replace("$(cat data/demo.key)", &sluice.tenants[0].key);
            let run = Command::new("bash")
                .args(["-c", &here])
                .env("KEY", &sluice.tenants[0].key)
                .output()
                .expect("bash");
            let (out, said) = (
                String::from_utf8_lossy(&run.stdout),
                String::from_utf8_lossy(&run.stderr),
            );
            assert!(out.contains("{\"accepted\":1,"), "{page}: {block}\n{out}\n{said}");
        }
    }
}
