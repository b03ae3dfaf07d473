//! A real edge on a real socket, with a normalizer that does what a test tells it.

use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use sha2::{Digest as _, Sha256};
use sluice_common::config::Loaded;
use sluice_common::metrics::Metrics;
use sluice_common::shutdown::Stop;
use sluice_common::tls::ServerTls;
use sluice_common::tls::server::ServerFiles;
use sluice_common::wire::intake::{BusyScope, IntakeReply, IntakeRequest, RowsAnswer};
use sluice_common::wire::transport::Seam;
use sluice_edge::{Edge, EdgeServer};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tower::util::BoxCloneSyncService;

pub const KEY: &str = "slc_acme_secret";
/// A tenant that may write `other` and a dataset that is not configured.
pub const NARROW: &str = "slc_narrow_secret";

/// What reached the normalizer.
pub type Seen = Arc<Mutex<Vec<IntakeRequest>>>;

pub struct Fixture {
    pub edge: Edge,
    pub address: SocketAddr,
    pub seen: Seen,
    pub metrics: Metrics,
    pub tls: Option<ServerTls>,
    stop: Stop,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: serde_json::Value,
}

impl Answer {
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or("")
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

pub fn accepted(n: u64) -> IntakeReply {
    IntakeReply::Rows(RowsAnswer {
        accepted: n,
        ..RowsAnswer::default()
    })
}

pub fn busy(retry_after_ms: u64) -> IntakeReply {
    IntakeReply::Busy {
        scope: BusyScope::All,
        reason: "the log is full".into(),
        retry_after_ms,
    }
}

/// "This tenant has had its share."
pub fn busy_for_tenant(retry_after_ms: u64) -> IntakeReply {
    IntakeReply::Busy {
        scope: BusyScope::Tenant,
        reason: "the tenant has had its share".into(),
        retry_after_ms,
    }
}

/// An edge before a normalizer that answers with `answer`.
pub async fn start<F, R>(answer: F) -> Fixture
where
    F: Fn(IntakeRequest) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = IntakeReply> + Send + 'static,
{
    start_as(&two_tenants(), None, answer).await
}

/// The tenants and datasets of most tests.
pub fn two_tenants() -> String {
    format!(
        "tenants:\n- {{id: acme, keys: [{{sha256: {}}}]}}\n- {{id: narrow, datasets: [other], keys: [{{sha256: {}}}]}}\n\
         datasets:\n- {{name: events, fields: [{{name: a, type: string}}]}}\n- {{name: other, fields: [{{name: a, type: string}}]}}\n",
        hash(KEY),
        hash(NARROW)
    )
}

/// A key as configs store it.
pub fn hash(key: &str) -> String {
    hex::encode(Sha256::digest(key))
}

/// An edge before several normalizers, each of which answers with one of `answers`, by its number.
pub async fn start_before<F>(answers: Vec<F>) -> Fixture
where
    F: Fn() -> IntakeReply + Clone + Send + Sync + 'static,
{
    let config = Loaded::parse(&two_tenants(), Path::new("test"), Path::new("/tmp")).unwrap();
    let seen = Seen::default();
    let seam = |answer: F| -> Seam<IntakeRequest> {
        let saw = Arc::clone(&seen);
        BoxCloneSyncService::new(tower::service_fn(move |request: IntakeRequest| {
            saw.lock().unwrap().push(request);
            let reply = answer();
            async move { Ok::<_, Infallible>(reply) }
        }))
    };
    let seams = answers.into_iter().map(seam).collect();
    let metrics = Metrics::new("test", &config.config).unwrap();
    let edge = Edge::before(&config.config, seams, metrics.clone());
    bound(edge, metrics, None, seen).await
}

/// An edge with the config `yaml`, over TLS where there are files for it.
pub async fn start_as<F, R>(yaml: &str, tls: Option<ServerFiles>, answer: F) -> Fixture
where
    F: Fn(IntakeRequest) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = IntakeReply> + Send + 'static,
{
    let config = Loaded::parse(yaml, Path::new("test"), Path::new("/tmp")).unwrap();
    let seen = Seen::default();
    let saw = Arc::clone(&seen);
    let seam: Seam<IntakeRequest> =
        BoxCloneSyncService::new(tower::service_fn(move |request: IntakeRequest| {
            saw.lock().unwrap().push(request.clone());
            let reply = answer(request);
            async move { Ok::<_, Infallible>(reply.await) }
        }));
    let metrics = Metrics::new("test", &config.config).unwrap();
    let edge = Edge::new(&config.config, seam, metrics.clone());
    bound(edge, metrics, tls, seen).await
}

async fn bound(edge: Edge, metrics: Metrics, tls: Option<ServerFiles>, seen: Seen) -> Fixture {
    let tls = tls.map(|files| ServerTls::open(files, &metrics).unwrap());
    let server = EdgeServer::bind(edge.clone(), &["127.0.0.1:0".into()], tls.clone())
        .await
        .unwrap();
    let address = server.addresses()[0];
    let stop = Stop::new();
    tokio::spawn(server.run(stop.clone()));
    Fixture {
        edge,
        address,
        seen,
        metrics,
        tls,
        stop,
    }
}

pub async fn start_accepting() -> Fixture {
    start(|_| async { accepted(1) }).await
}

impl Fixture {
    pub fn post(&self, path: &str) -> http::request::Builder {
        Request::post(format!("http://{}{path}", self.address))
            .header("authorization", format!("Bearer {KEY}"))
    }

    pub fn events(&self) -> http::request::Builder {
        self.post("/v1/events/events")
    }

    /// Sends over HTTP/1.1 and over HTTP/2, and requires the same answer.
    pub async fn send(&self, request: http::request::Builder, body: &[u8]) -> Answer {
        let request = request.body(Full::from(body.to_vec())).unwrap();
        let over_h1 = exchange(request.clone(), false).await;
        let over_h2 = exchange(request, true).await;
        assert_eq!(over_h1.status, over_h2.status);
        assert_eq!(over_h1.code(), over_h2.code());
        assert_ne!(over_h1.header("x-request-id"), over_h2.header("x-request-id"));
        over_h2
    }

    /// Sends once, over HTTP/1.1.
    pub async fn send_once(&self, request: http::request::Builder, body: &[u8]) -> Answer {
        exchange(request.body(Full::from(body.to_vec())).unwrap(), false).await
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends `bytes` as they are, and reads until the edge closes or is silent for a moment.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        read_answers(&mut stream).await
    }

    /// Sends `bytes` as they are, and reads the head of the first answer.
    pub async fn raw_once(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        read_head(&mut stream).await
    }

    pub fn seen(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

/// The head of the next answer, or what came of it before the connection was closed.
pub async fn read_head(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let read = async {
        while !text.windows(4).any(|four| four == b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => text.push(byte),
                Err(_) => return,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.ok();
    String::from_utf8_lossy(&text).into_owned()
}

/// What comes until the connection is closed, or for half a second.
pub async fn read_answers(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let read = stream.read_to_end(&mut text);
    tokio::time::timeout(Duration::from_millis(500), read).await.ok();
    String::from_utf8_lossy(&text).into_owned()
}

pub async fn exchange(request: Request<Full<bytes::Bytes>>, h2: bool) -> Answer {
    let client: Client<HttpConnector, Full<bytes::Bytes>> =
        Client::builder(TokioExecutor::new()).http2_only(h2).build_http();
    let response = client.request(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let answer = Answer {
        status: parts.status,
        headers: parts.headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    well_formed(&answer);
    answer
}

/// What holds of every answer.
fn well_formed(answer: &Answer) {
    let id = answer.header("x-request-id");
    assert_eq!(id.len(), 32, "X-Request-Id {id:?}");
    if answer.status.is_success() || answer.status == StatusCode::UNPROCESSABLE_ENTITY {
        assert_eq!(answer.header("content-type"), "application/json");
        return;
    }
    assert_eq!(answer.header("content-type"), "application/problem+json");
    for member in ["type", "title", "detail", "code"] {
        assert!(answer.body[member].is_string(), "{member} in {}", answer.body);
    }
    assert_eq!(answer.body["status"], answer.status.as_u16());
    assert_eq!(answer.body["request_id"], id);
    assert_ne!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    if matches!(answer.status.as_u16(), 429 | 503) {
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
    let outcome = answer.header("sluice-outcome");
    assert_eq!(
        matches!(outcome, "refused" | "unknown"),
        answer.status.as_u16() == 503
    );
}

/// Waits for `condition`, at most ten seconds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(10), "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
