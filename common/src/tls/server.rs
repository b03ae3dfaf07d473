//! A listener's side of TLS: which certificate it shows, whom it lets in, and the handshake within its
//! bounds of time and number.

use super::certificate::ClientCertificate;
use super::crowd::Crowd;
use super::material::{Identity, PemFile, TlsError, Validity};
use super::reload::{Digest, Reloadable, digest};
use crate::clock::{Clock as _, SystemClock};
use crate::error::Problem;
use crate::ids::RequestId;
use crate::limits::{HANDSHAKE_DEADLINE, MAX_HANDSHAKES, REFUSAL_DRAIN_BYTES, REFUSAL_DRAIN_DEADLINE};
use crate::metrics::{Counter, Gauge, Metrics};
use arc_swap::ArcSwap;
use http::StatusCode;
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Who may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clients {
    /// Whoever can; no certificate is asked for.
    Anyone,
    /// Whoever can; a certificate is asked for, and one that is shown must be signed by these.
    MayShow(PemFile),
    /// Only who shows a certificate signed by these.
    MustShow(PemFile),
}

/// The files behind a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// Names it in metrics and log lines: `edge`, `internal`.
    pub name: &'static str,
    pub cert: PemFile,
    pub key: PemFile,
    pub clients: Clients,
}

impl ServerFiles {
    /// Whether a listener could use them, and how long.
    ///
    /// # Errors
    /// [`TlsError`] naming the file and what to do.
    pub fn check(&self) -> Result<Validity, TlsError> {
        build(self).map(|(_, validity)| validity)
    }

    fn all(&self) -> Vec<PemFile> {
        let clients = match &self.clients {
            Clients::Anyone => None,
            Clients::MayShow(ca) | Clients::MustShow(ca) => Some(ca),
        };
        [&self.cert, &self.key]
            .into_iter()
            .chain(clients)
            .cloned()
            .collect()
    }
}

/// TLS of one or more listeners. Cloning shares it.
#[derive(Clone)]
pub struct ServerTls(Arc<Inner>);

struct Inner {
    files: ServerFiles,
    config: ArcSwap<ServerConfig>,
    began: Digest,
    expiry: Arc<AtomicI64>,
    crowd: Crowd,
    metrics: Metrics,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ServerTls").field(&self.0.files).finish()
    }
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] naming the file and what to do.
    pub fn open(files: ServerFiles, metrics: &Metrics) -> Result<Self, TlsError> {
        let began = digest(&files.all());
        let (config, validity) = build(&files)?;
        let expiry = Arc::new(AtomicI64::new(validity.not_after));
        let shown = Arc::clone(&expiry);
        metrics.watch(
            Gauge::TlsCertificateExpiry,
            &[("certificate", files.name)],
            move || seconds(shown.load(Ordering::Relaxed)),
        );
        for ended in Ended::ALL {
            count(metrics, ended, 0);
        }
        Ok(Self(Arc::new(Inner {
            crowd: Crowd::of(MAX_HANDSHAKES),
            files,
            config: ArcSwap::new(config),
            began,
            expiry,
            metrics: metrics.clone(),
        })))
    }

    /// The handshake, within its deadline; `None` where it came to nothing.
    pub async fn accept(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
    ) -> Option<(TlsStream<TcpStream>, ClientCertificate)> {
        let place = self.0.crowd.enter();
        let outcome = tokio::select! {
            biased;
            () = place.taken() => Err(Ended::CrowdedOut),
            done = tokio::time::timeout(HANDSHAKE_DEADLINE, self.handshake(stream)) => {
                done.unwrap_or(Err(Ended::Late))
            }
        };
        let ended = outcome.as_ref().err().copied().unwrap_or(Ended::Done);
        count(&self.0.metrics, ended, 1);
        if ended != Ended::Done {
            tracing::debug!(%peer, outcome = ended.label(), "no TLS connection came of it");
        }
        let stream = outcome.ok()?;
        let shown = ClientCertificate::of(stream.get_ref().1.peer_certificates());
        Some((stream, shown))
    }

    async fn handshake(&self, mut stream: TcpStream) -> Result<TlsStream<TcpStream>, Ended> {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(0) | Err(_) => return Err(Ended::Failed),
            Ok(_) => {}
        }
        // A TLS record of a handshake starts with 22, a request of HTTP with a method's letter.
        if first[0].is_ascii_uppercase() {
            direct_to_https(&mut stream).await.ok();
            return Err(Ended::PlainHttp);
        }
        let accepted = TlsAcceptor::from(self.0.config.load_full()).accept(stream).await;
        accepted.map_err(|error| {
            tracing::debug!(%error, "a TLS handshake failed");
            Ended::Failed
        })
    }
}

impl Reloadable for ServerTls {
    fn name(&self) -> &'static str {
        self.0.files.name
    }

    fn files(&self) -> Vec<PemFile> {
        self.0.files.all()
    }

    fn began(&self) -> Digest {
        self.0.began
    }

    fn reload(&self) -> Result<(), TlsError> {
        let (config, validity) = build(&self.0.files)?;
        self.0.config.store(config);
        self.0.expiry.store(validity.not_after, Ordering::Relaxed);
        Ok(())
    }
}

/// How a handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Done,
    Failed,
    Late,
    CrowdedOut,
    PlainHttp,
}

impl Ended {
    const ALL: [Self; 5] = [
        Self::Done,
        Self::Failed,
        Self::Late,
        Self::CrowdedOut,
        Self::PlainHttp,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Late => "late",
            Self::CrowdedOut => "crowded_out",
            Self::PlainHttp => "plain_http",
        }
    }
}

fn count(metrics: &Metrics, ended: Ended, n: u64) {
    metrics.add(Counter::TlsHandshakes, n, &[("outcome", ended.label())]);
}

#[expect(clippy::cast_precision_loss, reason = "a time in seconds is far below 2^52")]
fn seconds(unix: i64) -> f64 {
    unix as f64
}

/// A new config has a session store of its own, so what the old one vouched for is not resumed under it.
fn build(files: &ServerFiles) -> Result<(Arc<ServerConfig>, Validity), TlsError> {
    let identity = Identity::read(&files.cert, &files.key)?;
    if let Some(warning) = identity.validity.warning(SystemClock.now_ms()) {
        tracing::warn!(certificate = files.name, path = %files.cert.path.display(), "the certificate {warning}; write a new one");
    }
    let builder = ServerConfig::builder_with_provider(super::provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has suites of both versions");
    let (builder, asks) = match &files.clients {
        Clients::Anyone => (builder.with_no_client_auth(), false),
        Clients::MayShow(ca) => (builder.with_client_cert_verifier(verifier(ca, true)?), true),
        Clients::MustShow(ca) => (builder.with_client_cert_verifier(verifier(ca, false)?), true),
    };
    let validity = identity.validity;
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if asks {
        // A resumed session is not verified again: its certificate may have expired meanwhile.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok((Arc::new(config), validity))
}

fn verifier(
    ca: &PemFile,
    may_be_none: bool,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let roots = Arc::new(ca.roots()?);
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, super::provider());
    if may_be_none {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|error| ca.unusable_roots(&error))
}

/// Answers a request that was sent without TLS, so that a person sees what is wrong.
async fn direct_to_https(stream: &mut TcpStream) -> io::Result<()> {
    let detail = "this port speaks TLS: send the request to https://";
    let problem = Problem::new(StatusCode::BAD_REQUEST, "tls_required", detail);
    let id = RequestId::random().to_string();
    let body = problem.to_json(&id);
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         x-request-id: {id}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.shutdown().await?;
    // Closed with bytes unread, the socket would be reset and the answer lost.
    let mut rest = stream.take(REFUSAL_DRAIN_BYTES as u64);
    let mut nowhere = tokio::io::sink();
    let drain = tokio::io::copy(&mut rest, &mut nowhere);
    tokio::time::timeout(REFUSAL_DRAIN_DEADLINE, drain).await.ok();
    Ok(())
}
