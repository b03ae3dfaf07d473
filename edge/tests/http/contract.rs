//! Every mistake that a user of the API can make has its status, its code and what to do.

use crate::harness::{KEY, NARROW, accepted, start, start_accepting};
use http::{Request, StatusCode};
use sluice_common::error::Problem;
use sluice_common::limits::MAX_BODY_BYTES;
use sluice_common::wire::intake::{BodyFormat, IntakeReply, RowError, RowsAnswer};

#[tokio::test]
async fn events_are_handed_on_as_they_were_sent_and_acknowledged() {
    let fixture = start(|_| async { accepted(2) }).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (kind, format) in [
        (Some("application/json"), BodyFormat::Json),
        (Some("Application/JSON; charset=utf-8"), BodyFormat::Json),
        (Some("application/x-ndjson"), BodyFormat::Ndjson),
        (Some("application/jsonl;x=y"), BodyFormat::Ndjson),
        (None, BodyFormat::Auto),
    ] {
        let mut request = fixture
            .events()
            .header("traceparent", trace)
            .header("x-request-id", "mine");
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let answer = fixture
            .send(request.header("idempotency-key", "\"k 1\""), b"{}\n{}")
            .await;
        assert_eq!(answer.status, StatusCode::ACCEPTED);
        let expected = serde_json::json!({"accepted": 2, "rejected": 0, "errors": [], "errors_omitted": 0});
        assert_eq!(answer.body, expected);
        let seen = fixture.seen.lock().unwrap().pop().unwrap();
        assert_eq!((seen.tenant.as_str(), seen.dataset.as_str()), ("acme", "events"));
        assert_eq!((seen.format, &seen.body[..]), (format, &b"{}\n{}"[..]));
        assert_eq!(seen.idempotency_key.as_deref(), Some("k 1"));
        assert_eq!(seen.request.to_string(), answer.header("x-request-id"));
        assert_eq!(seen.trace.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
    }
}

#[tokio::test]
async fn rejected_rows_are_told_and_all_rejected_is_422() {
    let error = RowError {
        index: 1,
        field: "a".into(),
        code: "missing".into(),
        message: "say a".into(),
    };
    let fixture = start(move |request| {
        let none = request.body.starts_with(b"[");
        let rows = RowsAnswer {
            accepted: u64::from(!none),
            rejected: 1,
            errors: vec![error.clone()],
            errors_omitted: 0,
        };
        async move { IntakeReply::Rows(rows) }
    })
    .await;
    let some = fixture.send(fixture.events(), b"{}").await;
    assert_eq!(
        (some.status, &some.body["errors"][0]["index"]),
        (StatusCode::ACCEPTED, &1.into())
    );
    let none = fixture.send(fixture.events(), b"[{}]").await;
    assert_eq!(none.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        none.body["errors"][0],
        serde_json::json!({"index": 1, "field": "a", "code": "missing", "message": "say a"})
    );
}

#[tokio::test]
async fn zero_rows_are_202() {
    let fixture = start(|_| async { accepted(0) }).await;
    assert_eq!(
        fixture.send(fixture.events(), b"[]").await.status,
        StatusCode::ACCEPTED
    );
}

#[tokio::test]
async fn unknown_routes_are_404_with_directions_and_other_methods_405() {
    let fixture = start_accepting().await;
    for (path, says) in [
        ("/", "/v1/events/{dataset}"),
        ("/v1/events", "name the dataset"),
        ("/v1/events/", "name the dataset"),
        ("/v1/events/a/b", "/v1/events/{dataset}"),
        ("/v1/logs", "OTLP is not there yet"),
        ("/v1/traces", "OTLP is not there yet"),
        ("/v1/metrics", "OTLP is not there yet"),
        ("/metrics", "admin"),
        ("/readyz", "admin"),
    ] {
        let answer = fixture.send(fixture.post(path), b"{}").await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::NOT_FOUND, "unknown_route"),
            "{path}"
        );
        assert!(
            answer.body["detail"].as_str().unwrap().contains(says),
            "{path}: {}",
            answer.body
        );
    }
    for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
        let answer = fixture.send(fixture.events().method(method), b"").await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed")
        );
        assert_eq!(answer.header("allow"), "POST");
    }
}

#[tokio::test]
async fn a_stranger_is_401_and_told_how_to_identify() {
    let fixture = start_accepting().await;
    let url = format!("http://{}/v1/events/events", fixture.address);
    for (headers, code) in [
        (&[][..], "missing_api_key"),
        (&[("authorization", "Bearer wrong")], "unknown_api_key"),
        (&[("authorization", "Basic eDp5")], "bad_authorization"),
        (
            &[("authorization", KEY), ("x-api-key", NARROW)],
            "conflicting_api_keys",
        ),
        (&[("x-tenant", "acme")], "missing_api_key"),
    ] {
        let request = headers
            .iter()
            .fold(Request::post(&url), |request, (name, value)| {
                request.header(*name, *value)
            });
        let answer = fixture.send(request, b"{}").await;
        assert_eq!((answer.status, answer.code()), (StatusCode::UNAUTHORIZED, code));
        assert!(answer.header("www-authenticate").starts_with("Bearer realm="));
    }
    for headers in [("authorization", KEY), ("x-api-key", KEY)] {
        let answer = fixture
            .send(Request::post(&url).header(headers.0, headers.1), b"{}")
            .await;
        assert_eq!(answer.status, StatusCode::ACCEPTED);
    }
    assert_eq!(fixture.seen(), 4);
}

#[tokio::test]
async fn a_dataset_must_be_granted_and_exist() {
    let fixture = start_accepting().await;
    let answer = fixture.send(fixture.post("/v1/events/nowhere"), b"{}").await;
    assert_eq!(
        (answer.status, answer.code()),
        (StatusCode::NOT_FOUND, "unknown_dataset")
    );
    let answer = fixture.send(fixture.post("/v1/events/%ff%fe"), b"{}").await;
    assert_eq!(
        (answer.status, answer.code()),
        (StatusCode::NOT_FOUND, "unknown_dataset")
    );
    for path in ["events", "nowhere"] {
        let url = format!("http://{}/v1/events/{path}", fixture.address);
        let answer = fixture
            .send(Request::post(url).header("x-api-key", NARROW), b"{}")
            .await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::FORBIDDEN, "dataset_not_granted")
        );
    }
}

#[tokio::test]
async fn unsupported_types_and_encodings_are_415_naming_the_supported() {
    let fixture = start_accepting().await;
    for kind in ["text/plain", "application/x-protobuf", "application/jsonx", ""] {
        let answer = fixture
            .send(fixture.events().header("content-type", kind), b"{}")
            .await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type")
        );
        assert!(
            answer.body["detail"]
                .as_str()
                .unwrap()
                .contains("application/x-ndjson")
        );
    }
    for encoding in ["br", "gzip, zstd", "gzip, gzip", "snappy"] {
        let answer = fixture
            .send(fixture.events().header("content-encoding", encoding), b"{}")
            .await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding")
        );
        assert!(answer.header("accept-encoding").contains("zstd"));
    }
}

#[tokio::test]
async fn packed_bodies_are_unpacked_and_broken_ones_400() {
    let fixture = start_accepting().await;
    let packed = zstd::encode_all(&b"{\"a\":1}"[..], 3).unwrap();
    let answer = fixture
        .send(fixture.events().header("content-encoding", "ZSTD"), &packed)
        .await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    assert_eq!(&fixture.seen.lock().unwrap()[0].body[..], b"{\"a\":1}");
    for encoding in ["gzip", "zstd", "deflate"] {
        let answer = fixture
            .send(
                fixture.events().header("content-encoding", encoding),
                b"{\"a\":1}",
            )
            .await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::BAD_REQUEST, "malformed_body"),
            "{encoding}"
        );
    }
    for encoding in ["identity", "gzip"] {
        let answer = fixture
            .send(fixture.events().header("content-encoding", encoding), b"")
            .await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::BAD_REQUEST, "no_body"),
            "{encoding}"
        );
    }
    let bomb = zstd::encode_all(std::io::repeat(b' ').take_bytes(2 * MAX_BODY_BYTES), 3).unwrap();
    let answer = fixture
        .send(fixture.events().header("content-encoding", "zstd"), &bomb)
        .await;
    assert_eq!(
        (answer.status, answer.code()),
        (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large")
    );
    assert_eq!(fixture.edge.held_bytes(), 0);
}

trait TakeBytes: std::io::Read + Sized {
    fn take_bytes(self, bytes: usize) -> std::io::Take<Self> {
        self.take(bytes as u64)
    }
}

impl TakeBytes for std::io::Repeat {}

#[tokio::test]
async fn a_bad_idempotency_key_is_400() {
    let fixture = start_accepting().await;
    let long = "k".repeat(256);
    for key in ["", "\"\"", "\"open", &long] {
        let answer = fixture
            .send(fixture.events().header("idempotency-key", key), b"{}")
            .await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::BAD_REQUEST, "bad_idempotency_key"),
            "{key}"
        );
    }
    assert_eq!(fixture.seen(), 0);
}

#[tokio::test]
async fn checks_come_in_the_order_of_the_contract() {
    let fixture = start_accepting().await;
    let too_long = (MAX_BODY_BYTES + 1).to_string();
    let head = |path: &str, extra: &[(&str, &str)]| {
        let extra: String = extra
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {too_long}\r\n{extra}\r\n"
        )
    };
    let bad_type = ("content-type", "text/plain");
    let (key, bad_key) = (("x-api-key", KEY), ("idempotency-key", "\"\""));
    for (request, status) in [
        (head("/nowhere", &[bad_type, bad_key]), "404"),
        (head("/v1/events/nowhere", &[bad_type, bad_key]), "401"),
        (head("/v1/events/nowhere", &[bad_type, bad_key, key]), "404"),
        (head("/v1/events/events", &[bad_type, bad_key, key]), "415"),
        (head("/v1/events/events", &[bad_key, key]), "413"),
    ] {
        let answer = fixture.raw(request.as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{status}: {answer}"
        );
    }
}

#[tokio::test]
async fn what_intake_refuses_is_told_and_never_500() {
    let fixture = start(|request| async move {
        let status = std::str::from_utf8(&request.body).unwrap().parse().unwrap();
        IntakeReply::Refused(Problem::new(
            StatusCode::from_u16(status).unwrap(),
            "why",
            "do this",
        ))
    })
    .await;
    for (asked, answered) in [(400, 400), (413, 413), (429, 429), (500, 503), (503, 503)] {
        let answer = fixture.send(fixture.events(), asked.to_string().as_bytes()).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (answered, "why"));
        assert_eq!(answer.body["detail"], "do this");
    }
}

#[tokio::test]
async fn an_unavailable_normalizer_is_503_that_says_whether_something_was_taken() {
    let fixture = start(|request| async move {
        let unknown = request.body == "unknown";
        IntakeReply::Unavailable {
            unknown,
            reason: "the log is away".into(),
            retry_after_ms: 4_000,
        }
    })
    .await;
    assert_eq!((fixture.edge.readiness())(), Ok(()));
    for outcome in ["unknown", "refused"] {
        let answer = fixture.send(fixture.events(), outcome.as_bytes()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("sluice-outcome")),
            (503, outcome)
        );
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 4);
        assert!(
            !answer.body.to_string().contains("log is away"),
            "inner reasons are for operators"
        );
    }
    assert_eq!(fixture.seen(), 4, "never tried again");
    assert!((fixture.edge.readiness())().is_err());
}

#[tokio::test]
async fn a_panic_behind_the_seam_is_503_unknown() {
    let fixture = start(|_| async { panic!("a bug") }).await;
    let answer = fixture.send(fixture.events(), b"{}").await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("sluice-outcome")),
        (503, "unknown")
    );
    assert_eq!(fixture.edge.held_bytes(), 0);
}

#[tokio::test]
async fn requests_are_counted_and_keys_never_shown() {
    let fixture = start_accepting().await;
    fixture.send(fixture.events(), b"{}").await;
    fixture.send(fixture.post("/nowhere"), b"{}").await;
    let text = fixture.metrics.render();
    for line in [
        r#"sluice_http_requests_total{code="202",route="/v1/events/{dataset}"} 2"#,
        r#"sluice_http_requests_total{code="404",route="other"} 2"#,
        r#"sluice_events_total{outcome="accepted",stage="edge"} 2"#,
        r#"sluice_bytes_total{stage="edge"} 4"#,
        r#"sluice_shed_total{reason="gate",where="edge"} 0"#,
        r#"sluice_queue_limit_bytes{queue="edge"} 268435456"#,
        "sluice_ack_duration_seconds_count 2",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    assert!(!text.contains("secret"));
}
