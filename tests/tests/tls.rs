//! TLS over real processes and with real clients: curl, and our own.

use ingestctl::http::Http;
use rustix::process::{Signal, kill_process};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use sluice_common::tls::PemFile;
use sluice_common::tls::client::{ClientFiles, ClientTls};
use sluice_tests::pki::{Authority, dns};
use sluice_tests::service::{Service, clickhouse, executable, tail};
use sluice_tests::{Client, eventually, now_ms, ports};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

const KEY: &str = "slc_acme_of-the-tests";
/// Where nothing answers: `up` takes events into its log all the same.
const NO_CLICKHOUSE: &str = "http://127.0.0.1:9";

/// A directory with certificates, a config and data, and ports that are free.
struct Place {
    dir: TempDir,
    ports: Vec<u16>,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        std::fs::create_dir(dir.path().join("data")).expect("made");
        Self {
            ports: ports::free::<8>().into(),
            dir,
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn authority(&self, name: &str) -> Authority {
        Authority::new(&self.data(), name)
    }

    fn address(&self, n: usize) -> String {
        format!("127.0.0.1:{}", self.ports[n])
    }

    fn configure(&self, yaml: &str) {
        std::fs::write(self.dir.path().join("sluice.yaml"), yaml).expect("written");
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    async fn start(&self, name: &'static str, more: &[&str], configured: bool) -> Result<Service, String> {
        let mut args: Vec<String> = more.iter().map(|one| (*one).to_owned()).collect();
        args.extend(["--data-dir".into(), self.data().display().to_string()]);
        if configured {
            let config = self.dir.path().join("sluice.yaml");
            args.extend(["--config".into(), config.display().to_string()]);
        }
        let log = self.log(name);
        let started = tokio::task::spawn_blocking(move || Service::start(name, &args, &log)).await;
        started.expect("no panic")
    }

    /// `ingestctl up` with the config and no ClickHouse behind it.
    async fn up(&self) -> Service {
        let started = self
            .start("ingestctl", &["up", "--clickhouse-url", NO_CLICKHOUSE], true)
            .await;
        started.unwrap_or_else(|error| panic!("{error}"))
    }

    /// A metric's value on an admin listener.
    async fn metric(&self, admin: usize, line: &str) -> Option<f64> {
        let client = Client::new(format!("http://{}", self.address(admin)));
        let text = client.get("/metrics").await.ok()?.text();
        let value = text
            .lines()
            .find_map(|found| found.strip_prefix(line)?.strip_prefix(' '))?;
        value.parse().ok()
    }

    async fn reloaded(&self, admin: usize, certificate: &str, outcome: &str, times: f64) {
        let line = format!("sluice_tls_reloads_total{{certificate=\"{certificate}\",outcome=\"{outcome}\"}}");
        let what = format!("{outcome} {times} times");
        eventually(&what, Duration::from_secs(15), async || {
            self.metric(admin, &line).await.filter(|value| *value == times)
        })
        .await;
    }
}

fn event(n: u64) -> String {
    json!({"event_id": format!("e{n}"), "timestamp": now_ms(), "service": "tls"}).to_string()
}

/// A client that trusts the certificates in one file.
fn trusting(ca: &Path) -> Http {
    let files = ClientFiles {
        name: "test",
        ca: Some(PemFile {
            key: "ca",
            path: ca.to_owned(),
        }),
        shows: None,
        alpn: "http/1.1",
    };
    Http::over(Some(ClientTls::open(files).expect("usable")))
}

/// What curl prints: the answer, then the version of HTTP and the status. Empty where it failed.
fn curl(url: &str, key: Option<&str>, more: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args([
        "-sS",
        "--max-time",
        "20",
        "-w",
        " %{http_version} %{http_code}",
        "-d",
        &event(0),
    ]);
    command.args(["-H", "Content-Type: application/json"]);
    if let Some(key) = key {
        command.args(["-H", &format!("X-Api-Key: {key}")]);
    }
    let output = command.args(more).arg(url).output().expect("curl is installed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        said
    } else {
        String::new()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_self_signed_up_is_spoken_to_by_curl_in_every_version() {
    let place = Place::new();
    let (edge, admin) = (place.address(0), place.address(1));
    let args = [
        "up",
        "--tls",
        "self-signed",
        "--listen",
        &edge,
        "--admin-listen",
        &admin,
        "--clickhouse-url",
        NO_CLICKHOUSE,
    ];
    let up = place.start("ingestctl", &args, false).await.expect("ready");
    let text = |place: &str| {
        up.ready
            .pointer(place)
            .and_then(|it| it.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let (ca, key) = (text("/certificate/path"), text("/api_key"));
    assert_eq!(text("/edge"), format!("https://{edge}"));
    for host in [&edge, &edge.replace("127.0.0.1", "localhost")] {
        let url = format!("https://{host}/v1/events/events");
        for tls in ["1.2", "1.3"] {
            for (http, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
                let wants = ["--cacert", &ca, &format!("--tlsv{tls}"), "--tls-max", tls, http];
                let said = curl(&url, Some(&key), &wants);
                assert!(said.ends_with(&format!(" {version} 202")), "{tls} {http}: {said}");
            }
        }
        assert_eq!(
            curl(&url, Some(&key), &[]),
            "",
            "who does not trust it gets no connection"
        );
        assert_eq!(curl(&url, Some(&key), &["--cacert", &ca, "--tls-max", "1.1"]), "");
    }
    let said = curl(&format!("http://{edge}/v1/events/events"), Some(&key), &[]);
    assert!(
        said.contains("tls_required") && said.ends_with(" 1.1 400"),
        "{said}"
    );
    let first = text("/certificate/sha256");
    drop(up);
    let up = place.start("ingestctl", &args, false).await.expect("ready");
    let again = up.ready.pointer("/certificate/sha256").and_then(|it| it.as_str());
    assert_eq!(again, Some(first.as_str()), "kept over a restart");
}

/// Requests without end: from a connection that stays, and each on a connection of its own.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(url: &str, ca: &Path) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..4).map(|n| {
            let (stop, sent, url, ca) = (stop.clone(), sent.clone(), url.to_owned(), ca.to_owned());
            tokio::spawn(async move {
                let (mut failed, mut http) = (Vec::new(), trusting(&ca));
                while !stop.load(Ordering::Relaxed) {
                    if n % 2 == 0 {
                        http = trusting(&ca);
                    }
                    let number = sent.fetch_add(1, Ordering::Relaxed);
                    match http.post(&url, Some(KEY), event(number).into()).await {
                        Ok((status, _)) if status == 202 => {}
                        Ok((status, body)) => failed.push(format!("{status} {body:?}")),
                        Err(error) => failed.push(format!("{error:?}")),
                    }
                }
                failed
            })
        });
        Self {
            tasks: tasks.collect(),
            stop,
            sent,
        }
    }

    /// What failed, and how much was sent.
    async fn end(self) -> (Vec<String>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for task in self.tasks {
            failed.extend(task.await.expect("no panic"));
        }
        (failed, self.sent.load(Ordering::Relaxed))
    }
}

fn edge_config(place: &Place, more: &str, tenants: &str) -> String {
    format!(
        "edge: {{listen: [\"{}\"], admin: \"{}\", tls: {{cert: edge.crt, key: edge.key{more}}}}}\ntenants:\n{tenants}",
        place.address(0),
        place.address(1),
    )
}

fn acme() -> String {
    format!(
        "- {{id: acme, keys: [{{sha256: {}}}]}}\n",
        ingestctl::demo::hash(KEY)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_under_load_without_a_failed_request() {
    let place = Place::new();
    let ca = place.authority("ca");
    ca.sign_local("edge");
    place.configure(&edge_config(&place, "", &acme()));
    let up = place.up().await;
    let url = format!("https://{}/v1/events/events", place.address(0));
    let load = Load::start(&url, &ca.path());
    let file = |name: &str| place.data().join(name);
    // The key of another certificate, then nothing, then no PEM: each refused whole, each counted once.
    let good = std::fs::read(file("edge.key")).expect("there");
    let other = rcgen::KeyPair::generate().expect("a key").serialize_pem();
    for (n, bad) in [other.as_str(), "", "not a key"].iter().enumerate() {
        std::fs::write(file("edge.key"), bad).expect("written");
        place.reloaded(1, "edge", "refused", (n + 1) as f64).await;
    }
    std::fs::write(file("edge.key"), &good).expect("written");
    place.reloaded(1, "edge", "applied", 1.0).await;
    ca.sign_local("edge");
    place.reloaded(1, "edge", "applied", 2.0).await;
    // Asked for by a person: at once.
    ca.sign_local("edge");
    kill_process(up.pid(), Signal::HUP).expect("it runs");
    place.reloaded(1, "edge", "applied", 3.0).await;
    let (failed, sent) = load.end().await;
    assert!(
        failed.is_empty(),
        "{} of {sent}: {:?}",
        failed.len(),
        failed.first()
    );
    assert!(sent > 50, "{sent}");
    let shown = curl(&url, Some(KEY), &["--cacert", &ca.path().display().to_string()]);
    assert!(shown.ends_with(" 202"), "{shown}");
    let log = std::fs::read_to_string(place.log("ingestctl")).expect("a log");
    assert!(
        log.contains("edge.tls.key") && log.contains("belong together"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_idle_handshakes_block_nobody() {
    let place = Place::new();
    let ca = place.authority("ca");
    ca.sign_local("edge");
    place.configure(&edge_config(&place, "", &acme()));
    let _up = place.up().await;
    let mut idle: Vec<std::net::TcpStream> = Vec::new();
    for n in 0..500 {
        let mut stream = std::net::TcpStream::connect(place.address(0)).expect("connected");
        if n % 2 == 0 {
            stream.write_all(&[22, 3, 1, 2, 0, 1, 0]).expect("written");
        }
        idle.push(stream);
    }
    let url = format!("https://{}/v1/events/events", place.address(0));
    let started = Instant::now();
    for n in 0..20 {
        let answer = trusting(&ca.path()).post(&url, Some(KEY), event(n).into()).await;
        assert_eq!(answer.expect("an answer").0, 202);
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "20 requests took {took:?}");
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_stands_for_its_tenant_and_a_stranger_s_for_nobody() {
    let place = Place::new();
    let (ca, strangers) = (place.authority("ca"), place.authority("strangers"));
    ca.sign_local("edge");
    ca.sign("agent", vec![dns("agent.acme.example")]);
    ca.sign("nobody", vec![dns("nobody.example")]);
    strangers.sign("forged", vec![dns("agent.acme.example")]);
    let tenants = format!(
        "{}- {{id: other, keys: [], certificates: [{{dns: agent.acme.example}}]}}\n",
        acme()
    );
    place.configure(&edge_config(&place, ", client_ca: ca.crt", &tenants));
    let _up = place.up().await;
    let url = format!("https://{}/v1/events/events", place.address(0));
    let data = place.data();
    let show = |name: &str, key: Option<&str>| {
        let file = |ending: &str| data.join(format!("{name}.{ending}")).display().to_string();
        let ca = ca.path().display().to_string();
        curl(
            &url,
            key,
            &["--cacert", &ca, "--cert", &file("crt"), "--key", &file("key")],
        )
    };
    assert!(show("agent", None).ends_with(" 202"));
    assert!(show("nobody", Some(KEY)).ends_with(" 202"));
    for (said, code) in [
        (show("nobody", None), "unknown_certificate"),
        (show("agent", Some(KEY)), "credentials_disagree"),
    ] {
        assert!(said.contains(code) && said.ends_with(" 401"), "{said}");
    }
    assert_eq!(show("forged", None), "", "signed by another authority");
    assert_eq!(show("forged", Some(KEY)), "", "with a good key too");
}

/// TLS before a server that speaks none, as operators put before ClickHouse.
async fn proxy(listen: &str, behind: String, dir: &Path, name: &str) {
    let file = |ending: &str| dir.join(format!("{name}.{ending}"));
    let chain = vec![CertificateDer::from_pem_file(file("crt")).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_file(file("key")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind(listen).await.expect("a port");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            tokio::spawn(async move {
                let Ok(mut secure) = acceptor.accept(stream).await else {
                    return;
                };
                let mut plain = tokio::net::TcpStream::connect(behind).await.expect("it runs");
                tokio::io::copy_bidirectional(&mut secure, &mut plain).await.ok();
            });
        }
    });
}

fn three_processes(place: &Place) -> String {
    let at = |n| place.address(n);
    format!(
        "edge: {{listen: [\"{}\"], admin: \"{}\", normalizer: [\"https://{}\"]}}\n\
         normalizer: {{listen: \"{}\", admin: \"{}\", sink_writer: [\"https://{}\"]}}\n\
         sink_writer: {{listen: \"{}\", admin: \"{}\"}}\n\
         internal: {{tls: {{cert: inner.crt, key: inner.key, ca: ca.crt}}}}\n\
         clickhouse: {{url: \"https://{}\", ca: ca.crt}}\ntenants:\n{}",
        at(0),
        at(1),
        at(2),
        at(2),
        at(3),
        at(4),
        at(4),
        at(5),
        at(6),
        acme(),
    )
}

async fn rows(clickhouse: &Client, expected: &str) {
    let sql = "SELECT count() FROM telemetry.events WHERE tenant = 'acme' FORMAT TSV";
    eventually(&format!("{expected} rows"), Duration::from_secs(30), async || {
        clickhouse.query(sql).await.ok().filter(|rows| rows == expected)
    })
    .await;
}

/// Whoever reaches an inner listener writes as any tenant: no certificate, no words.
fn no_stranger_is_heard(place: &Place, authority: &Path) {
    let intake = format!("https://{}/", place.address(2));
    let data = place.data();
    let file = |name: &str| data.join(name).display().to_string();
    let authority = authority.display().to_string();
    assert_eq!(
        curl(&intake, None, &["--cacert", &authority]),
        "",
        "no certificate"
    );
    let forged = [
        "--cacert",
        &authority,
        "--cert",
        &file("forged.crt"),
        "--key",
        &file("forged.key"),
    ];
    assert_eq!(curl(&intake, None, &forged), "", "another authority's");
    let ours = [
        "--cacert",
        &authority,
        "--cert",
        &file("inner.crt"),
        "--key",
        &file("inner.key"),
    ];
    let said = curl(&intake, None, &[&ours[..], &["--http1.1"]].concat());
    assert!(said.ends_with(" 404"), "one of ours is let in: {said:?}");
    assert!(
        curl(&format!("http://{}/", place.address(2)), None, &[]).ends_with(" 400"),
        "plain HTTP"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn three_processes_and_clickhouse_speak_mutual_tls_and_let_no_stranger_in() {
    let place = Place::new();
    let (ca, strangers) = (place.authority("ca"), place.authority("strangers"));
    for name in ["inner", "server"] {
        ca.sign_local(name);
    }
    strangers.sign_local("forged");
    place.configure(&three_processes(&place));
    let server = clickhouse(&place.dir.path().join("server"), place.ports[7]).await;
    proxy(&place.address(6), place.address(7), &place.data(), "server").await;
    let mut services = Vec::new();
    for name in ["sluice-sink-writer", "sluice-normalizer", "sluice-edge"] {
        services.push(
            place
                .start(name, &[], true)
                .await
                .unwrap_or_else(|error| panic!("{error}")),
        );
    }
    assert!(
        services[1].ready["normalizer"]
            .as_str()
            .is_some_and(|url| url.starts_with("https://"))
    );
    let clickhouse = Client::new(format!("http://{}", place.address(7)));
    let edge = Client::new(format!("http://{}", place.address(0))).with_key(KEY);
    let send = async |n: u64| {
        edge.post("/v1/events/events", event(n))
            .await
            .expect("an answer")
            .status
    };
    assert_eq!(send(1).await, 202, "{}", tail(&place.log("sluice-edge")));
    rows(&clickhouse, "1").await;

    no_stranger_is_heard(&place, &ca.path());

    // New certificates come into force while events flow.
    ca.sign_local("inner");
    // A normalizer is both a server and a client.
    for (admin, times) in [(1, 1.0), (3, 2.0), (5, 1.0)] {
        place.reloaded(admin, "internal", "applied", times).await;
    }
    assert_eq!(send(2).await, 202);
    rows(&clickhouse, "2").await;
    let restarted = services.remove(1);
    tokio::task::spawn_blocking(move || restarted.terminate())
        .await
        .expect("no panic");
    let _normalizer = place.start("sluice-normalizer", &[], true).await.expect("ready");
    eventually(
        "taken over a new connection",
        Duration::from_secs(20),
        async || (send(3).await == 202).then_some(()),
    )
    .await;
    rows(&clickhouse, "3").await;
    server.stop(Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_or_a_clickhouse_of_another_authority_is_not_spoken_to() {
    let place = Place::new();
    let ca = place.authority("ca");
    ca.sign_local("inner");
    place.authority("strangers").sign_local("forged");
    place.configure(&three_processes(&place));
    proxy(&place.address(6), place.address(7), &place.data(), "forged").await;
    proxy(&place.address(2), place.address(7), &place.data(), "forged").await;
    let _edge = place.start("sluice-edge", &[], true).await.expect("ready");
    let edge = Client::new(format!("http://{}", place.address(0))).with_key(KEY);
    let answer = edge.post("/v1/events/events", event(1)).await.expect("an answer");
    assert_eq!(
        (answer.status.as_u16(), answer.header("sluice-outcome")),
        (503, "refused")
    );
    let config = place.dir.path().join("sluice.yaml").display().to_string();
    let data = place.data().display().to_string();
    let check = Command::new(executable("ingestctl"))
        .args(["check", "--config", &config, "--data-dir", &data])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&check.stdout);
    assert_eq!(check.status.code(), Some(1), "{said}");
    assert!(said.contains("UnknownIssuer"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_bad_certificate_says_which_file_and_what_to_do() {
    let place = Place::new();
    let ca = place.authority("ca");
    ca.sign_local("edge");
    std::fs::write(place.data().join("edge.key"), "nothing").expect("written");
    place.configure(&edge_config(&place, "", &acme()));
    let args = ["up", "--clickhouse-url", NO_CLICKHOUSE];
    let error = place.start("ingestctl", &args, true).await.expect_err("refused");
    for part in ["edge.tls.key", "data/edge.key", "no private key"] {
        assert!(error.contains(part), "{part} in {error}");
    }
}
