//! The load tests of `loadtest/`, with short settings: each passes against a real Sluice and leaves in ClickHouse
//! what was acknowledged and nothing else, and each can fail.

mod k6;
mod moods;

use axum::Router;
use axum::http::StatusCode;
use k6::{Ran, Running, THRESHOLDS_FAILED, expect_stored, start};
use sluice_tests::{Deployment, Part, Shape, eventually, service};
use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};

/// k6 takes what CPU there is: one of these tests at a time, or they measure each other.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}

#[tokio::test(flavor = "multi_thread")]
async fn smoke_spike_and_soak_pass_and_each_acknowledged_event_is_stored_once() {
    let _alone = alone().await;
    let deployment = Deployment::start(Shape::AllInOne).await;
    let smoke = [("DURATION", "2s"), ("P99_MS", "5000")];
    let smoke = start("smoke", &deployment, &smoke).ended().await;
    smoke.expect_passed(&deployment);
    assert_eq!(smoke.report["checks"].as_array().map(Vec::len), Some(13));

    let spike = [
        ("DURATION", "4s"),
        ("RATE", "20"),
        ("FACTOR", "15"),
        ("P99_MS", "5000"),
    ];
    let spike = start("spike", &deployment, &spike).ended().await;
    spike.expect_passed(&deployment);

    let soak = [
        ("DURATION", "4s"),
        ("RATE", "30"),
        ("VUS", "100"),
        ("P99_MS", "5000"),
    ];
    let soak = start("soak", &deployment, &soak).ended().await;
    soak.expect_passed(&deployment);
    for figure in ["memory at most, MiB", "backlog at most, MiB", "drained after, s"] {
        assert!(
            soak.report["figures"][figure].is_number(),
            "{}",
            soak.report["figures"]
        );
    }
    expect_stored(&deployment, &[&smoke, &spike, &soak]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_client_is_not_refused_beside_slow_ones_and_a_quiet_tenant_beside_a_noisy_one() {
    let _alone = alone().await;
    let deployment = Deployment::start_for(8, Shape::AllInOne, "").await;
    let slow = [("DURATION", "6s"), ("P99_MS", "5000"), ("RATIO", "50")];
    let running = start("slow-client", &deployment, &slow);
    let crowd = Command::new(service::executable("sluice-bench"))
        .args(["drip", "--connections", "400", "--after", "2", "--seconds", "4"])
        .args([
            "--address",
            &deployment.edge_address(),
            "--key",
            &deployment.tenants[7].key,
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("started");
    let slow = running.ended().await;
    slow.expect_passed(&deployment);
    let crowd = crowd.wait_with_output().await.expect("an end");
    let crowd: serde_json::Value = serde_json::from_slice(&crowd.stdout).expect("JSON");
    assert_eq!(crowd["open_at_most"], 400, "{crowd}");

    let noisy = [
        ("DURATION", "6s"),
        ("RATE", "5"),
        ("VUS", "4"),
        ("P99_MS", "5000"),
        ("RATIO", "100"),
    ];
    let noisy = start("noisy-neighbour", &deployment, &noisy).ended().await;
    noisy.expect_passed(&deployment);
    let rows = &noisy.report["rows"];
    assert!(
        rows["noisy"]["events/s"].as_f64() > rows["together"]["events/s"].as_f64(),
        "{rows}"
    );
    expect_stored(&deployment, &[&slow, &noisy]).await;
}

/// `log.max_bytes`, the least there is.
const WATERMARK: u64 = 256 * 1024 * 1024;
const CLIENTS: usize = 8;
const EVENTS: u64 = 10;
const EVENT_BYTES: u64 = 5_500;

#[tokio::test(flavor = "multi_thread")]
async fn with_clickhouse_stopped_requests_are_taken_to_the_watermark_then_refused_then_taken_again() {
    let _alone = alone().await;
    let extra = format!("log: {{max_bytes: {WATERMARK}}}\n");
    let mut deployment = Deployment::start_with(Shape::ThreeProcesses, &extra).await;
    let running = start(
        "backpressure",
        &deployment,
        &[
            ("DURATION", "90s"),
            ("RATE", "800"),
            ("VUS", "8"),
            ("EVENTS", "10"),
            ("PAYLOAD", "5500"),
            ("AFTER_S", "2"),
        ],
    );
    eventually("something is taken", Duration::from_secs(20), async || {
        (running.ends().acked.len() > 3).then_some(())
    })
    .await;
    deployment.stop_clickhouse().await;
    let full = eventually("each client is refused", Duration::from_secs(60), async || {
        let ends = running.ends();
        (ends.refused.len() == CLIENTS).then_some(ends)
    })
    .await;
    // One tenant alone may fill 16/17 of it; frames and what was stored before take a little.
    let taken = full.events() * EVENT_BYTES;
    assert!(taken > WATERMARK / 10 * 8, "refused with {taken} bytes taken");
    let more = eventually("refusals go on", Duration::from_secs(30), async || {
        let ends = running.ends();
        (ends.refusals >= 2 * CLIENTS).then_some(ends)
    })
    .await;
    assert_eq!(
        more.acked.len(),
        full.acked.len(),
        "taken while others are refused"
    );
    deployment.bring_up(Part::ClickHouse).await.expect("ready");

    let ran = running.ended().await;
    ran.expect_passed(&deployment);
    assert_eq!(
        ran.ends
            .refused
            .iter()
            .filter(|id| !ran.ends.acked.contains_key(*id))
            .count(),
        0
    );
    assert_eq!(ran.ends.acked.values().max(), Some(&EVENTS));
    expect_stored(&deployment, &[&ran]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_passes_where_there_is_one_and_fails_where_there_is_none() {
    let _alone = alone().await;
    let mut deployment = Deployment::start(Shape::AllInOne).await;
    deployment.tenants[0].quota = "{events_per_second: 200, burst: 2s}".into();
    deployment.reload("").await;
    let settings = [
        ("DURATION", "24s"),
        ("VUS", "3"),
        ("P99_MS", "5000"),
        ("LEAST", "0.3"),
    ];
    let limited = start("quota", &deployment, &settings).ended().await;
    limited.expect_passed(&deployment);
    assert!(limited.ends.overs > 0);
    let free = deployment.tenants[1].key.clone();
    let settings = [
        ("DURATION", "2s"),
        ("VUS", "1"),
        ("P99_MS", "5000"),
        ("KEYS", &free),
    ];
    let unlimited = start("quota", &deployment, &settings).ended().await;
    assert_eq!(unlimited.code, Some(THRESHOLDS_FAILED), "{}", unlimited.text);
    assert!(
        unlimited.failed().contains(&"sluice_over{phase:alone}"),
        "{:?}",
        unlimited.failed()
    );
    expect_stored(&deployment, &[&limited, &unlimited]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_passes_in_each_version_and_fails_without_tls() {
    let _alone = alone().await;
    let dir = tempfile::TempDir::new().expect("a directory");
    let args: Vec<String> = [
        "up",
        "--tls",
        "self-signed",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--clickhouse-url",
        "http://127.0.0.1:9",
        "--data-dir",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([dir.path().join("data").display().to_string()])
    .collect();
    let log = dir.path().join("log");
    let started =
        tokio::task::spawn_blocking(move || service::Service::start("ingestctl", &args, &log)).await;
    let up = started.expect("no panic").expect("ready");
    let (url, key) = (up.ready["edge"].as_str(), up.ready["api_key"].as_str());
    let (url, key) = (url.expect("a URL"), key.expect("a key"));
    let short = [
        ("DURATION", "4s"),
        ("RATE", "10"),
        ("P99_MS", "5000"),
        ("HANDSHAKE_MS", "5000"),
        ("KEYS", key),
    ];
    for version in ["tls1.2", "tls1.3", ""] {
        let own = [("TLS_INSECURE", "1"), ("TLS_VERSION", version)];
        let ran = Running::start("tls", url, &[&short[..], &own].concat())
            .ended()
            .await;
        assert_eq!(ran.code, Some(0), "{version}: {}", ran.text);
        assert!(
            ran.report["figures"]["handshakes"].as_u64() > Some(1),
            "{}",
            ran.text
        );
    }
    // Whoever does not know the certificate gets no answer; plain HTTP is no version of TLS.
    let strict = Running::start("tls", url, &short).ended().await;
    assert!(strict.failed().contains(&"sluice_unanswered"), "{}", strict.text);
    let deployment = Deployment::start(Shape::AllInOne).await;
    let plain = start("tls", &deployment, &short[..4]).ended().await;
    assert_eq!(plain.code, Some(THRESHOLDS_FAILED), "{}", plain.text);
    assert!(
        plain.failed().contains(&"sluice_other_version"),
        "{:?}",
        plain.failed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_threshold_that_cannot_hold_makes_k6_exit_with_99() {
    let _alone = alone().await;
    let deployment = Deployment::start(Shape::AllInOne).await;
    let ran = start("smoke", &deployment, &[("DURATION", "1s"), ("P99_MS", "0.001")])
        .ended()
        .await;
    assert_eq!(ran.code, Some(THRESHOLDS_FAILED), "{}", ran.text);
    assert_eq!(ran.failed(), ["sluice_ack_ms"]);
    assert!(
        ran.text.contains("FAIL  sluice_ack_ms p(99)<0.001"),
        "{}",
        ran.text
    );
    assert!(ran.text.contains("THRESHOLDS FAILED"));
    expect_stored(&deployment, &[&ran]).await;
}

/// A server that gives every request the same answer.
async fn server(
    status: StatusCode,
    headers: [(&'static str, &'static str); 2],
    body: &'static str,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let app = Router::new().fallback(move || async move { (status, headers, body) });
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

async fn run_all(base: &str) -> Vec<(&'static str, Ran)> {
    let settings = [
        ("KEYS", "slc_a_0,slc_b_0,slc_c_0"),
        ("DURATION", "4s"),
        ("RATE", "4"),
        ("VUS", "2"),
    ];
    let scripts = [
        "smoke",
        "spike",
        "soak",
        "backpressure",
        "noisy-neighbour",
        "slow-client",
        "quota",
        "tls",
    ];
    let running = scripts.map(|script| (script, Running::start(script, base, &settings)));
    let mut ran = Vec::new();
    for (script, running) in running {
        ran.push((script, running.ended().await));
    }
    ran
}

#[tokio::test(flavor = "multi_thread")]
async fn every_script_fails_where_all_is_refused_and_where_answers_lie() {
    let _alone = alone().await;
    let honest = [("retry-after", "1"), ("sluice-outcome", "refused")];
    let refusing = server(StatusCode::SERVICE_UNAVAILABLE, honest, "").await;
    for (script, ran) in run_all(&refusing).await {
        assert_eq!(ran.code, Some(THRESHOLDS_FAILED), "{script}: {}", ran.text);
        assert!(
            ran.failed().contains(&"sluice_acked"),
            "{script}: {:?}",
            ran.failed()
        );
        assert_eq!(ran.report["rows"]["all"]["wrong"], 0, "{script}");
    }
    // A 202 that tells of fewer events than were sent, and a 503 that does not say what became of them.
    let of_one = r#"{"accepted":1,"rejected":0,"errors":[],"errors_omitted":0}"#;
    let lies = [
        (
            StatusCode::ACCEPTED,
            [("retry-after", "1"), ("x-lie", "few")],
            of_one,
        ),
        (
            StatusCode::SERVICE_UNAVAILABLE,
            [("retry-after", "1"), ("x-lie", "no outcome")],
            "",
        ),
        (
            StatusCode::SERVICE_UNAVAILABLE,
            [("retry-after", "soon"), ("sluice-outcome", "refused")],
            "",
        ),
    ];
    for (status, headers, body) in lies {
        let lying = server(status, headers, body).await;
        let settings = [
            ("KEYS", "slc_a_0"),
            ("DURATION", "1s"),
            ("RATE", "4"),
            ("VUS", "2"),
        ];
        let ran = Running::start("soak", &lying, &settings).ended().await;
        assert_eq!(ran.code, Some(THRESHOLDS_FAILED), "{}", ran.text);
        assert!(
            ran.failed().contains(&"sluice_wrong"),
            "{headers:?}: {:?}",
            ran.failed()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_runner_starts_a_sluice_of_its_own_and_leaves_nothing_behind() {
    let _alone = alone().await;
    let dir = tempfile::TempDir::new().expect("a directory");
    let bin = service::executable("ingestctl");
    let summary = dir.path().join("smoke.json");
    let mut command = Command::new(k6::root().join("loadtest/run.sh"));
    command
        .arg("smoke")
        .env("SLUICE_K6", k6::executable())
        .env("SLUICE_BIN", bin.parent().expect("a directory"))
        .env("TMPDIR", dir.path())
        .env("SUMMARY", &summary)
        .envs([("DURATION", "1s"), ("P99_MS", "5000")])
        .env_remove("BASE_URL")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if let Ok(ingestctl::clickhouse::Engine::Library(library)) = service::places().locate() {
        command.env(ingestctl::clickhouse::LIBRARY_VARIABLE, library);
    }
    let output = command.output().await.expect("it ran");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("all thresholds passed"), "{text}");
    let left: BTreeSet<_> = std::fs::read_dir(dir.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(left, BTreeSet::from(["smoke.json".into()]));
}
