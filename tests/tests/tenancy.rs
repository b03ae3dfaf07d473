//! What one tenant may do, over real processes: quotas that hold, refusals that are true and cost nothing,
//! changes without a restart, and no way to another tenant's rows.

use serde_json::{Value, json};
use sluice_tests::pki::{Authority, dns};
use sluice_tests::service::executable;
use sluice_tests::{Answer, Client, Deployment, Part, Shape, eventually, now_ms};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const EVENTS: &str = "/v1/events/events";

/// NDJSON of events that name who sent them.
fn events(sender: &str, from: usize, count: usize) -> String {
    let line = |n: usize| {
        let event = json!({"event_id": format!("{sender}-{n}"), "timestamp": now_ms(), "service": sender});
        format!("{event}\n")
    };
    (from..from + count).map(line).collect()
}

async fn send(client: &Client, body: impl Into<bytes::Bytes>) -> Answer {
    client.post(EVENTS, body).await.expect("an answer")
}

fn code(answer: &Answer) -> (u16, String) {
    let code = answer.json()["code"].as_str().unwrap_or_default().to_owned();
    (answer.status.as_u16(), code)
}

fn over() -> (u16, String) {
    (429, "quota_exceeded".to_owned())
}

fn retry_after(answer: &Answer) -> Duration {
    let seconds = answer.header("retry-after").parse().expect("whole seconds");
    assert!(seconds >= 1);
    Duration::from_secs(seconds)
}

/// Runs `ingestctl` against the deployment's edge; its document.
fn ingestctl(deployment: &Deployment, args: &[&str]) -> Value {
    let output = Command::new(executable("ingestctl"))
        .args(args)
        .args(["--admin", &deployment.admin_url(Part::Edge), "--output", "json"])
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).expect("one document")
}

/// Waits until the table holds just so many rows of a tenant, all of them sent by it.
async fn expect_rows(deployment: &Deployment, tenant: &str, expected: u64) {
    let sql = format!(
        "SELECT count(), uniqExact(event_id), countIf(service != '{tenant}') FROM telemetry.events WHERE tenant = '{tenant}' FORMAT TSV"
    );
    let wanted = format!("{expected}\t{expected}\t0");
    let part = match deployment.shape {
        Shape::AllInOne => Part::Up,
        Shape::ThreeProcesses => Part::Normalizer,
    };
    let what = format!("{expected} rows of {tenant}");
    eventually(&what, Duration::from_secs(60), async || {
        if deployment.metric(part, "sluice_log_backlog_bytes", "").await > 0.0 {
            return None;
        }
        let found = deployment.clickhouse().query(&sql).await.ok()?;
        assert!(found.ends_with("\t0"), "rows of another tenant: {found}");
        (found == wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_over_its_quota_is_taken_again_when_it_was_told_and_its_refusals_leave_nothing() {
    let deployment = Deployment::start(Shape::AllInOne).await;
    let limits = [
        "--events-per-second",
        "50",
        "--bytes-per-second",
        "1MiB",
        "--burst",
        "2s",
        "--weight",
        "3",
    ];
    let added = ingestctl(&deployment, &[&["tenants", "add", "acme"], &limits[..]].concat());
    let acme = deployment
        .edge()
        .with_key(added["api_key"].as_str().expect("a key"));
    let mut taken = 0;
    for _ in 0..3 {
        // As many as go at once; then the same request again, after just the time that was told.
        let refused = loop {
            let answer = send(&acme, events("acme", taken, 40)).await;
            if answer.status != 202 {
                break answer;
            }
            taken += 40;
        };
        assert_eq!(code(&refused), over(), "{}", refused.text());
        assert_eq!(refused.json()["violated-policies"], json!(["tenant-events"]));
        tokio::time::sleep(retry_after(&refused)).await;
        let again = send(&acme, events("acme", taken, 40)).await;
        assert_eq!(again.status, 202, "{}", again.text());
        taken += 40;
    }
    let burst = send(&acme, events("acme", 100_000, 101)).await;
    assert_eq!(code(&burst), (413, "request_exceeds_burst".into()));
    assert_eq!(
        (&burst.json()["fits"], &burst.json()["unit"]),
        (&json!(100), &json!("events"))
    );
    expect_rows(&deployment, "acme", taken as u64).await;
    let used = deployment
        .metric(Part::Edge, "sluice_quota_used_ratio", "acme")
        .await;
    assert!(used > 0.1, "{used}");
    assert!(
        deployment
            .metric(Part::Edge, "sluice_quota_refusals_total", "tenant-events")
            .await
            >= 3.0
    );
    changes_by_command(&deployment, &acme).await;
}

/// `quota set` is in force when it returns.
async fn changes_by_command(deployment: &Deployment, acme: &Client) {
    let shown = ingestctl(deployment, &["quota", "show", "acme"]);
    assert_eq!(
        (&shown[0]["quota"]["events_per_second"], &shown[0]["weight"]),
        (&json!(50), &json!(3))
    );
    ingestctl(deployment, &["quota", "set", "acme", "--events-per-second", "5k"]);
    assert_eq!(
        send(acme, events("acme", 200_000, 101)).await.status,
        202,
        "in force at once"
    );
    ingestctl(
        deployment,
        &[
            "quota",
            "set",
            "acme",
            "--dataset",
            "events",
            "--events-per-second",
            "1",
        ],
    );
    assert_eq!(code(&send(acme, events("acme", 300_000, 3)).await).0, 413);
    let none = ["--dataset", "events", "--events-per-second", "none"];
    let changed = ingestctl(deployment, &[&["quota", "set", "acme"], &none[..]].concat());
    assert_eq!(changed["quota"]["datasets"], Value::Null);
    ingestctl(
        deployment,
        &["quota", "set", "acme", "--events-per-second", "1", "--dry-run"],
    );
    assert_eq!(
        send(acme, events("acme", 400_000, 500)).await.status,
        202,
        "a dry run takes all"
    );
    assert!(
        deployment
            .metric(Part::Edge, "sluice_quota_refusals_total", "mode=\"dry_run\"")
            .await
            >= 1.0
    );
    ingestctl(deployment, &["quota", "set", "acme", "--dry-run", "false"]);
    assert_eq!(code(&send(acme, events("acme", 500_000, 500)).await).0, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_change_by_the_config_file_and_by_sighup_over_three_processes() {
    let mut deployment = Deployment::start(Shape::ThreeProcesses).await;
    let (limited, free) = (deployment.tenant(0), deployment.tenant(1));
    assert_eq!(send(&limited, events("t0", 0, 300)).await.status, 202);
    deployment.tenants[0].quota = "{bytes_per_second: 20kB, concurrent_requests: 8, burst: 2s}".into();
    deployment.reload("").await;
    let large = send(&limited, events("t0", 1_000, 1_000)).await;
    assert_eq!(
        code(&large),
        (413, "request_exceeds_burst".into()),
        "{}",
        large.text()
    );
    // A packed body is charged for what is in it.
    let text = events("t0", 2_000, 400);
    assert!(text.len() > 20_000 && text.len() < 40_000);
    let packed = gzip(text.as_bytes());
    assert!(packed.len() < 10_000);
    let gzip = limited.clone().with("content-encoding", "gzip");
    assert_eq!(send(&gzip, packed.clone()).await.status, 202);
    assert_eq!(code(&send(&gzip, packed).await), over());
    assert_eq!(
        send(&free, events("t1", 0, 1_000)).await.status,
        202,
        "another tenant is not touched"
    );
    deployment.tenants[0].quota = String::new();
    deployment.reload("").await;
    assert_eq!(send(&limited, events("t0", 3_000, 1_000)).await.status, 202);
    expect_rows(&deployment, "t0", 1_700).await;
    expect_rows(&deployment, "t1", 1_000).await;
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("a Vec takes everything");
    encoder.finish().expect("a Vec takes everything")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_bucket_refuses_64_mib_before_they_are_sent() {
    let mut deployment = Deployment::start(Shape::AllInOne).await;
    deployment.tenants[0].quota = "{events_per_second: 1, burst: 60s}".into();
    deployment.reload("").await;
    assert_eq!(send(&deployment.tenant(0), events("t0", 0, 60)).await.status, 202);
    let mut stream = tokio::net::TcpStream::connect(deployment.edge_address())
        .await
        .expect("connected");
    let head = format!(
        "POST {EVENTS} HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\ncontent-length: {}\r\n\r\n",
        deployment.tenants[0].key,
        64 << 20
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    // Not a byte of the body is there to be read.
    let mut answer = vec![0; 8_192];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer)).await;
    let read = read.expect("an answer at once").expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..read]).to_lowercase();
    assert!(
        answer.starts_with("http/1.1 429") && answer.contains("retry-after:"),
        "{answer}"
    );
    assert_eq!(
        deployment.metric(Part::Edge, "sluice_queue_bytes", "edge").await,
        0.0
    );
}

/// A request that tries to become another tenant's: what is changed of an honest one, and the answer.
struct Attempt {
    what: &'static str,
    client: Client,
    path: String,
    event: Value,
    status: u16,
}

#[tokio::test(flavor = "multi_thread")]
#[expect(
    clippy::too_many_lines,
    reason = "one story after the other, on one deployment"
)]
async fn no_header_path_payload_or_key_leads_to_another_tenant_s_rows() {
    let deployment = Deployment::start(Shape::ThreeProcesses).await;
    let (mallory, victim) = (deployment.tenant(0), deployment.tenant(1));
    let old = ingestctl(&deployment, &["tenants", "add", "acme"]);
    let old = old["api_key"].as_str().expect("a key").to_owned();
    ingestctl(&deployment, &["tenants", "revoke", "acme"]);
    assert_eq!(send(&victim, events("t1", 0, 10)).await.status, 202);
    let (own, other) = (&deployment.tenants[0].key, &deployment.tenants[1].key);
    let secret = own.rsplit('_').next().expect("a secret");
    let with_key = |key: &str| deployment.edge().with_key(key);
    let attempts = [
        ("its id as the key", with_key("t1"), 401),
        (
            "its id before our secret",
            with_key(&format!("slc_t1_{secret}")),
            401,
        ),
        ("our key with its id behind", with_key(&format!("{own}_t1")), 401),
        ("two keys", mallory.clone().with("x-api-key", other), 401),
        ("a revoked key", with_key(&old), 401),
        (
            "a header of ours that names it",
            mallory.clone().with("x-tenant", "t1"),
            202,
        ),
        (
            "the inner hop's header",
            mallory.clone().with("sluice-tenant", "t1"),
            202,
        ),
        (
            "the inner hop's headers",
            mallory
                .clone()
                .with("sluice-tenant", "t1")
                .with("sluice-dataset", "events"),
            202,
        ),
        (
            "a forwarded certificate",
            mallory
                .clone()
                .with("x-forwarded-client-cert", "Subject=\"CN=t1\""),
            202,
        ),
    ];
    let by_head = attempts.into_iter().map(|(what, client, status)| Attempt {
        what,
        client,
        path: EVENTS.into(),
        event: json!({"service": "t0"}),
        status,
    });
    let by_path = [
        "/v1/events/events?tenant=t1",
        "/v1/events/t1/events",
        "/v1/t1/events/events",
        "/v1/events/events%2f..%2ft1",
    ];
    let by_path = by_path.into_iter().map(|path| Attempt {
        what: "the path",
        client: mallory.clone(),
        path: path.into(),
        event: json!({"service": "t0"}),
        status: if path.contains('?') { 202 } else { 404 },
    });
    let members = ["tenant", "_tenant", "tenant_id", "_src_l", "_src_p", "_src_o"];
    let by_payload = members.into_iter().map(|member| Attempt {
        what: "a member of the event",
        client: mallory.clone(),
        path: EVENTS.into(),
        event: json!({"service": "t0", member: "t1"}),
        status: 202,
    });
    let mut own_rows = 0;
    for (n, attempt) in by_head.chain(by_path).chain(by_payload).enumerate() {
        let mut event = attempt.event;
        // The victim's own ids: neither are they dropped as repeats of its events, nor the other way round.
        event["event_id"] = json!(format!("t1-{n}"));
        event["timestamp"] = json!(now_ms());
        let answer = attempt
            .client
            .post(&attempt.path, event.to_string())
            .await
            .expect("an answer");
        assert_eq!(
            answer.status.as_u16(),
            attempt.status,
            "{} {}: {}",
            attempt.what,
            attempt.path,
            answer.text()
        );
        own_rows += u64::from(attempt.status == 202);
    }
    expect_rows(&deployment, "t0", own_rows).await;
    expect_rows(&deployment, "t1", 10).await;
    the_inner_listener_takes_no_stranger(&deployment, other).await;
    let others = "SELECT count() FROM telemetry.events WHERE tenant NOT IN ('t0', 't1') FORMAT TSV";
    assert_eq!(deployment.clickhouse().query(others).await.as_deref(), Ok("0"));
}

/// Whoever reaches the normalizer without the services' token writes as nobody, a tenant's key or not.
async fn the_inner_listener_takes_no_stranger(deployment: &Deployment, key: &str) {
    let yaml = std::fs::read_to_string(deployment.config()).expect("a config");
    let intake = yaml
        .split("normalizer: [\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .expect("an address");
    for client in [Client::new(intake), Client::new(intake).with_key(key)] {
        let forged = client
            .over_http2()
            .with("sluice-tenant", "t1")
            .with("sluice-dataset", "events");
        let forged = forged
            .with("sluice-request-id", &"0".repeat(32))
            .with("sluice-format", "auto");
        let answer = forged
            .post("/internal/v1/intake", events("forged", 0, 1))
            .await
            .expect("an answer");
        assert_eq!(answer.status.as_u16(), 401, "{}", answer.text());
    }
}

/// The two tenants' certificates, and one of nobody's, in force at the edge of a fresh deployment.
async fn with_certificates() -> Deployment {
    let mut deployment = Deployment::start(Shape::AllInOne).await;
    let authority = Authority::new(&deployment.data(), "ca");
    authority.sign_local("edge");
    for name in ["t0", "t1", "nobody"] {
        authority.sign(name, vec![dns(&format!("{name}.example"))]);
    }
    let mut yaml = std::fs::read_to_string(deployment.config()).expect("a config");
    for id in ["t0", "t1"] {
        let named = format!("{{id: {id}, certificates: [{{dns: {id}.example}}], ");
        yaml = yaml.replace(&format!("{{id: {id}, "), &named);
    }
    let tls = "edge: {tls: {cert: edge.crt, key: edge.key, client_ca: ca.crt}, ";
    std::fs::write(deployment.config(), yaml.replace("edge: {", tls)).expect("written");
    deployment.kill(Part::Up);
    deployment.bring_up(Part::Up).await.expect("ready");
    deployment
}

/// Header lines, and an event.
type Sent = (Vec<String>, Value);

/// What `curl` is answered to one request after the other, all on one connection: its status, and how many
/// connections it took.
fn on_one_connection(deployment: &Deployment, certificate: Option<&str>, requests: &[Sent]) -> Vec<String> {
    let file = |name: &str| deployment.data().join(name).display().to_string();
    let url = format!("https://{}{EVENTS}", deployment.edge_address());
    let mut args = Vec::new();
    for (n, (headers, event)) in requests.iter().enumerate() {
        if n > 0 {
            args.push("--next".to_owned());
        }
        args.extend(["-sS", "-o", "/dev/null", "-w", "%{http_code}/%{num_connects}\n"].map(str::to_owned));
        args.extend([
            "--cacert".to_owned(),
            file("ca.crt"),
            "-d".to_owned(),
            event.to_string(),
        ]);
        if let Some(name) = certificate {
            let files = [file(&format!("{name}.crt")), file(&format!("{name}.key"))];
            args.extend([
                "--cert".to_owned(),
                files[0].clone(),
                "--key".to_owned(),
                files[1].clone(),
            ]);
        }
        for header in ["Content-Type: application/json"]
            .into_iter()
            .chain(headers.iter().map(String::as_str))
        {
            args.extend(["-H".to_owned(), header.to_owned()]);
        }
        args.push(url.clone());
    }
    let output = Command::new("curl")
        .args(&args)
        .output()
        .expect("curl is installed");
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_certificate_or_key_reuse_leads_to_another_tenant_s_rows() {
    let deployment = with_certificates().await;
    let added = ingestctl(&deployment, &["tenants", "add", "acme"]);
    let header = |key: &str| format!("X-Api-Key: {key}");
    let revoked = header(added["api_key"].as_str().expect("a key"));
    ingestctl(&deployment, &["tenants", "revoke", "acme"]);
    let [own, other] = [0, 1].map(|n| header(&deployment.tenants[n].key));
    // The same ids and the same `Idempotency-Key` for both: neither is another's repeat.
    let twice = "Idempotency-Key: one-for-both";
    let event = |id: &str, tenant: &str| json!({"event_id": id, "timestamp": now_ms(), "service": tenant});
    let from = |headers: &[&str], id: &str, tenant: &str| {
        let headers: Vec<String> = headers.iter().map(|one| (*one).to_owned()).collect();
        (headers, event(id, tenant))
    };
    let cases: [(Option<&str>, Vec<Sent>, &[&str]); 7] = [
        (
            Some("t1"),
            vec![from(&[], "a", "t1"), from(&[&other], "b", "t1")],
            &["202/1", "202/0"],
        ),
        (
            Some("t0"),
            vec![from(&[], "a", "t0"), from(&[&own], "b", "t0")],
            &["202/1", "202/0"],
        ),
        // One tenant's key over the other's connection, and its own behind it.
        (
            Some("t1"),
            vec![
                from(&[&own], "c", "t0"),
                from(&[&revoked], "c", "acme"),
                from(&[&other], "d", "t1"),
            ],
            &["401/1", "401/0", "202/0"],
        ),
        (
            Some("nobody"),
            vec![from(&[], "e", "nobody"), from(&[&revoked], "e", "acme")],
            &["401/1", "401/0"],
        ),
        // Keys one after the other on a connection that is nobody's: each counts for itself.
        (
            None,
            vec![
                from(&[&other, twice], "f", "t1"),
                from(&[&own, twice], "f", "t0"),
                from(&[&revoked, twice], "f", "acme"),
                from(&[twice], "f", "nobody"),
                from(&[&other, twice], "g", "t1"),
            ],
            &["202/1", "202/0", "401/0", "401/0", "202/0"],
        ),
        (Some("nobody"), vec![from(&[&own], "h", "t0")], &["202/1"]),
        (None, vec![from(&[&own, &other], "i", "t0")], &["401/1"]),
    ];
    for (n, (certificate, requests, expected)) in cases.into_iter().enumerate() {
        let told = on_one_connection(&deployment, certificate, &requests);
        assert_eq!(told, expected, "case {n}");
    }
    expect_rows(&deployment, "t0", 4).await;
    expect_rows(&deployment, "t1", 5).await;
    let others = "SELECT count() FROM telemetry.events WHERE tenant NOT IN ('t0', 't1') FORMAT TSV";
    assert_eq!(deployment.clickhouse().query(others).await.as_deref(), Ok("0"));
}
