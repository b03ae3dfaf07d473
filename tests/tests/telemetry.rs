//! What the services say of themselves: spans and metrics over OTLP, `/metrics`, log lines; and what
//! they must never say.

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::{Value, json};
use sluice_tests::{Deployment, Part, Shape, eventually, now_ms};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
const PARTS: [Part; 3] = [Part::Edge, Part::Normalizer, Part::SinkWriter];
/// A key that nobody has; like the good ones it must not be found anywhere.
const WRONG_KEY: &str = "slc_canary_00112233445566778899aabbccddeeff";
/// The exporters' own intervals are 5 s for spans and 10 s for metrics.
const EXPORTED: Duration = Duration::from_secs(40);

/// What a receiver was sent.
#[derive(Debug, Default)]
struct Received {
    /// With the name of the service.
    spans: Vec<(String, Span)>,
    metrics: BTreeSet<(String, String)>,
    /// All bodies as they came.
    raw: Vec<Bytes>,
}

type Shared = Arc<Mutex<Received>>;

/// Starts an OTLP/HTTP receiver; its address and what it was sent.
async fn receiver() -> (String, Shared) {
    let received = Shared::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let router = Router::new()
        .route("/v1/traces", post(take_spans))
        .route("/v1/metrics", post(take_metrics))
        .with_state(Arc::clone(&received));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, received)
}

async fn take_spans(State(received): State<Shared>, body: Bytes) {
    let request = ExportTraceServiceRequest::decode(body.clone()).expect("OTLP spans");
    let mut received = received.lock().expect("unpoisoned");
    received.raw.push(body);
    for group in request.resource_spans {
        let service = service_name(group.resource.as_ref());
        let spans = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
        received.spans.extend(spans.map(|span| (service.clone(), span)));
    }
}

async fn take_metrics(State(received): State<Shared>, body: Bytes) {
    let request = ExportMetricsServiceRequest::decode(body.clone()).expect("OTLP metrics");
    let mut received = received.lock().expect("unpoisoned");
    received.raw.push(body);
    for group in request.resource_metrics {
        let service = service_name(group.resource.as_ref());
        let metrics = group.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
        received
            .metrics
            .extend(metrics.map(|metric| (service.clone(), metric.name)));
    }
}

fn service_name(resource: Option<&Resource>) -> String {
    let attributes = resource
        .map(|resource| &resource.attributes[..])
        .unwrap_or_default();
    let name = attributes.iter().find(|one| one.key == "service.name");
    match name.and_then(|one| one.value.as_ref()?.value.clone()) {
        Some(AnyValue::StringValue(name)) => name,
        _ => String::new(),
    }
}

/// One event with a client's trace, until it is a row.
async fn traced_event(deployment: &Deployment) {
    let client = deployment
        .tenant(0)
        .with("traceparent", &format!("00-{TRACE}-{CALLER}-01"));
    let event = json!({"event_id": "traced", "timestamp": now_ms(), "service": "test"});
    let answer = client
        .post("/v1/events/events", event.to_string())
        .await
        .expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.text());
    let sql = "SELECT event_id FROM telemetry.events FORMAT TSV";
    eventually("the row", Duration::from_secs(20), async || {
        deployment
            .clickhouse()
            .query(sql)
            .await
            .ok()
            .filter(|rows| rows == "traced")
    })
    .await;
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The span of `service` that `is` holds of, once it has come.
async fn span(received: &Shared, service: &str, name: &str, is: impl Fn(&Span) -> bool) -> Span {
    eventually(&format!("span {name} of {service}"), EXPORTED, async || {
        let received = received.lock().expect("unpoisoned");
        let mut spans = received.spans.iter();
        let found = spans.find(|(by, span)| by == service && span.name == name && is(span));
        found.map(|(_, span)| span.clone())
    })
    .await
}

/// Client → edge → intake ⇢ range → write: parents, and a link where many requests become one range.
async fn expect_connected_spans(received: &Shared) {
    let in_trace = |span: &Span| hex(&span.trace_id) == TRACE;
    let request = span(received, "sluice-edge", "request", in_trace).await;
    assert_eq!(hex(&request.parent_span_id), CALLER);
    let intake = span(received, "sluice-normalizer", "intake", in_trace).await;
    assert_eq!(
        intake.parent_span_id, request.span_id,
        "intake's parent is the edge's request"
    );
    let linked = |span: &Span| {
        span.links
            .iter()
            .any(|link| hex(&link.trace_id) == TRACE && link.span_id == intake.span_id)
    };
    let range = span(received, "sluice-normalizer", "range", linked).await;
    let write = span(received, "sluice-sink-writer", "write", |span| {
        span.trace_id == range.trace_id
    })
    .await;
    assert_eq!(
        write.parent_span_id, range.span_id,
        "the write's parent is its range"
    );
}

/// What each process owes at its start, before any request: CONTRACT.md's names as far as their
/// features are there.
const OWED: [(Part, &str, &[&str]); 3] = [
    (
        Part::Edge,
        "sluice-edge",
        &[
            "sluice_events_total{outcome=\"accepted\",stage=\"edge\"} 0",
            "sluice_bytes_total{stage=\"edge\"} 0",
            "sluice_http_requests_total{code=\"202\",route=\"/v1/events/{dataset}\"} 0",
            "sluice_request_duration_seconds_count{route=\"/v1/events/{dataset}\"} 0",
            "sluice_ack_duration_seconds_count 0",
            "sluice_queue_bytes{queue=\"edge\"} 0",
            "sluice_queue_limit_bytes{queue=\"edge\"} ",
            "sluice_shed_total{reason=\"edge_bytes\",where=\"edge\"} 0",
        ],
    ),
    (
        Part::Normalizer,
        "sluice-normalizer",
        &[
            "sluice_events_total{outcome=\"accepted\",stage=\"intake\"} 0",
            "sluice_events_total{outcome=\"duplicate\",stage=\"dedup\"} 0",
            "sluice_events_total{outcome=\"stored\",stage=\"sink\"} 0",
            "sluice_bytes_total{stage=\"log\"} 0",
            "sluice_freshness_seconds_count 0",
            "sluice_queue_bytes{queue=\"intake\"} 0",
            "sluice_queue_limit_bytes{queue=\"log\"} ",
            "sluice_log_backlog_bytes{partition=\"0\"} 0",
            "sluice_log_backlog_age_seconds{partition=\"0\"} 0",
            "sluice_log_disk_bytes ",
            "sluice_shed_total{reason=\"log_full\",where=\"log\"} 0",
            "sluice_token_generation_bumps_total 0",
            "sluice_dedup_keys 0",
            "sluice_dead_letters_total{reason=\"idempotency_conflict\"} 0",
            "sluice_alarms_total{reason=\"unsettled_range\"} 0",
            "sluice_unsettled{partition=\"0\"} 0",
        ],
    ),
    (
        Part::SinkWriter,
        "sluice-sink-writer",
        &[
            "sluice_bytes_total{stage=\"sink\"} 0",
            "sluice_insert_duration_seconds_count 0",
            "sluice_insert_rows_count 0",
            "sluice_clickhouse_errors_total{class=\"alarm\"} 0",
            "sluice_verify_total{outcome=\"all\"} 0",
            "sluice_queue_bytes{queue=\"sink\"} 0",
            "sluice_queue_limit_bytes{queue=\"sink\"} ",
            "sluice_shed_total{reason=\"budget\",where=\"sink\"} 0",
        ],
    ),
];
const OF_EACH: [&str; 4] = [
    "sluice_build_info{version=",
    "process_resident_memory_bytes ",
    "process_cpu_seconds_total ",
    "process_open_fds ",
];

async fn exposition(deployment: &Deployment, part: Part) -> String {
    let answer = deployment.admin(part).get("/metrics").await.expect("an answer");
    assert_eq!(answer.status, 200);
    answer.text()
}

async fn expect_zeros(deployment: &Deployment) {
    for (part, _, owed) in OWED {
        let text = exposition(deployment, part).await;
        for line in owed.iter().chain(&OF_EACH) {
            assert!(
                text.lines().any(|found| found.starts_with(line)),
                "{part:?} has no {line}\n{text}"
            );
        }
        expect_well_formed(&text);
    }
}

/// Each family is announced once, and each sample belongs to the family before it.
fn expect_well_formed(text: &str) {
    let mut families = BTreeSet::new();
    let mut family = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap_or_default();
            assert!(families.insert(family), "{family} twice");
        } else if !line.starts_with('#') {
            assert!(line.starts_with(family), "{line} outside its family");
            let value = line.rsplit(' ').next().unwrap_or_default();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}

async fn expect_metrics_over_otlp(received: &Shared) {
    for (_, service, owed) in OWED {
        for line in owed {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let name = name.strip_suffix("_count").unwrap_or(name);
            let wanted = (service.to_owned(), name.to_owned());
            eventually(&format!("{name} of {service}"), EXPORTED, async || {
                received
                    .lock()
                    .expect("unpoisoned")
                    .metrics
                    .contains(&wanted)
                    .then_some(())
            })
            .await;
        }
    }
}

/// Ends every part and reads all that it has said.
fn expect_json_lines_to_the_end(mut deployment: Deployment) {
    for part in PARTS {
        assert!(
            deployment.terminate(part),
            "{part:?}: {}",
            deployment.last_words()
        );
    }
    let secrets = secrets(&deployment);
    for part in PARTS {
        let text = std::fs::read_to_string(deployment.log_file(part)).expect("a log");
        assert!(!text.is_empty(), "{part:?} said nothing");
        for secret in &secrets {
            assert!(!text.contains(secret), "{part:?}'s log has the secret {secret}");
        }
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{part:?}: {line}"));
            assert!(
                line["timestamp"].is_string() && line["level"].is_string(),
                "{line}"
            );
            assert!(
                line["level"] != "ERROR" && line["level"] != "WARN",
                "nothing was wrong: {line}"
            );
        }
    }
}

fn secrets(deployment: &Deployment) -> Vec<String> {
    let token = std::fs::read_to_string(deployment.data().join("internal.token")).expect("a token");
    let keys = deployment.tenants.iter().map(|tenant| tenant.key.clone());
    keys.chain([token.trim().to_owned(), WRONG_KEY.to_owned()])
        .collect()
}

/// Keys and tokens must be in no log, metric, span or command line.
async fn expect_no_secrets(deployment: &Deployment, received: &Shared) {
    let secrets = secrets(deployment);
    let mut said: Vec<(String, Vec<u8>)> = Vec::new();
    for part in PARTS {
        let pid = deployment.service(part).expect("it runs").pid().as_raw_nonzero();
        said.push((
            format!("{part:?}'s log"),
            std::fs::read(deployment.log_file(part)).expect("a log"),
        ));
        said.push((
            format!("{part:?}'s metrics"),
            exposition(deployment, part).await.into_bytes(),
        ));
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).expect("it runs");
        assert!(command.starts_with(b"/"), "a command line");
        said.push((format!("{part:?}'s command line"), command));
    }
    let raw = received.lock().expect("unpoisoned").raw.concat();
    assert!(!raw.is_empty());
    said.push(("OTLP".to_owned(), raw));
    for (place, text) in said {
        for secret in &secrets {
            let found = text
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{place} has the secret {secret}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_processes_are_seen_in_traces_metrics_and_logs_and_keep_their_secrets() {
    let (endpoint, received) = receiver().await;
    let extra = format!("telemetry: {{otlp_endpoint: \"{endpoint}\"}}\n");
    let deployment = Deployment::start_with(Shape::ThreeProcesses, &extra).await;
    expect_zeros(&deployment).await;
    traced_event(&deployment).await;
    let refused = deployment
        .edge()
        .with_key(WRONG_KEY)
        .post("/v1/events/events", "{}")
        .await;
    assert_eq!(refused.expect("an answer").status, 401);
    expect_connected_spans(&received).await;
    expect_metrics_over_otlp(&received).await;
    for part in PARTS {
        expect_well_formed(&exposition(&deployment, part).await);
    }
    assert!(
        deployment
            .metric(Part::Normalizer, "sluice_bytes_total", "log")
            .await
            > 0.0
    );
    expect_no_secrets(&deployment, &received).await;
    tokio::task::block_in_place(|| expect_json_lines_to_the_end(deployment));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_not_there_costs_no_event() {
    // Bound and never answered: exports run into their time-out.
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let extra = format!(
        "telemetry: {{otlp_endpoint: \"http://{}\"}}\n",
        held.local_addr().expect("an address")
    );
    let mut deployment = Deployment::start_with(Shape::AllInOne, &extra).await;
    traced_event(&deployment).await;
    assert!(deployment.terminate(Part::Up), "{}", deployment.last_words());
}
