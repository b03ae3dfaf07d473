//! A client's side of TLS: whom it trusts, what it shows, and connections for hyper's pools.

use super::material::{Identity, PemFile, TlsError};
use super::reload::{Digest, Reloadable, digest};
use crate::clock::{Clock as _, SystemClock};
use arc_swap::ArcSwap;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;

/// The files behind a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    /// Names it in metrics and log lines: `internal`, `clickhouse`.
    pub name: &'static str,
    /// Who must have signed the server's certificate; absent: whom this machine trusts.
    pub ca: Option<PemFile>,
    /// The certificate that it shows, and its key.
    pub shows: Option<(PemFile, PemFile)>,
    /// The one protocol that it speaks.
    pub alpn: &'static str,
}

impl ClientFiles {
    fn all(&self) -> Vec<PemFile> {
        let shown = self.shows.iter().flat_map(|(cert, key)| [cert, key]);
        self.ca.iter().chain(shown).cloned().collect()
    }
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientTlsError {
    #[error(transparent)]
    File(#[from] TlsError),
    #[error(
        "this machine trusts no certificate authority: install `ca-certificates`, or set `clickhouse.ca`"
    )]
    NoRoots,
}

/// TLS of one kind of client. Cloning shares it.
#[derive(Clone)]
pub struct ClientTls(Arc<Inner>);

struct Inner {
    files: ClientFiles,
    began: Digest,
    config: ArcSwap<ClientConfig>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ClientTls").field(&self.0.files).finish()
    }
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`ClientTlsError`] saying what to do.
    pub fn open(files: ClientFiles) -> Result<Self, ClientTlsError> {
        let began = digest(&files.all());
        let roots = match &files.ca {
            Some(ca) => ca.roots()?,
            None => roots_of_this_machine()?,
        };
        let config = ArcSwap::new(build(&files, roots)?);
        Ok(Self(Arc::new(Inner { files, began, config })))
    }
}

impl Reloadable for ClientTls {
    fn name(&self) -> &'static str {
        self.0.files.name
    }

    fn files(&self) -> Vec<PemFile> {
        self.0.files.all()
    }

    fn began(&self) -> Digest {
        self.0.began
    }

    /// A client without files has nothing that could change.
    fn reload(&self) -> Result<(), TlsError> {
        if let Some(ca) = &self.0.files.ca {
            self.0.config.store(build(&self.0.files, ca.roots()?)?);
        }
        Ok(())
    }
}

fn roots_of_this_machine() -> Result<RootCertStore, ClientTlsError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a certificate authority of this machine cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        return Err(ClientTlsError::NoRoots);
    }
    Ok(roots)
}

fn build(files: &ClientFiles, roots: RootCertStore) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(super::provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has suites of both versions")
        .with_root_certificates(roots);
    let mut config = match &files.shows {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let identity = Identity::read(cert, key)?;
            if let Some(warning) = identity.validity.warning(SystemClock.now_ms()) {
                tracing::warn!(certificate = files.name, path = %cert.path.display(), "the certificate {warning}; write a new one");
            }
            let shown = rustls::sign::SingleCertAndKey::from(identity.certified);
            builder.with_client_cert_resolver(Arc::new(shown))
        }
    };
    config.alpn_protocols = vec![files.alpn.as_bytes().to_vec()];
    Ok(Arc::new(config))
}

/// Connects for a pool: over TLS where the address says https://, else without.
#[derive(Debug, Clone)]
pub struct Dialer {
    tcp: HttpConnector<Resolver>,
    tls: Option<ClientTls>,
    deadline: Duration,
}

impl Dialer {
    /// A dialer whose TCP connection and whose handshake may each take `deadline`.
    #[must_use]
    pub fn new(tls: Option<ClientTls>, deadline: Duration) -> Self {
        Self::with(tls, deadline, Resolver(None))
    }

    /// The same, of connections to one address, whatever the name.
    #[must_use]
    pub fn to(address: IpAddr, tls: Option<ClientTls>, deadline: Duration) -> Self {
        Self::with(tls, deadline, Resolver(Some(address)))
    }

    fn with(tls: Option<ClientTls>, deadline: Duration, resolver: Resolver) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(resolver);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(deadline));
        tcp.enforce_http(false);
        Self { tcp, tls, deadline }
    }

    /// Counts as sent nothing, whatever went wrong: no request goes out before the handshake is done.
    async fn secure(self, stream: TcpStream, host: String) -> io::Result<Link> {
        let Some(tls) = self.tls else {
            let reason = "an https:// address, and no TLS is set up for it";
            return Err(io::Error::other(reason));
        };
        let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        let connect = TlsConnector::from(tls.0.config.load_full()).connect(name, stream);
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake was not done in time");
        let stream = tokio::time::timeout(self.deadline, connect)
            .await
            .map_err(late)??;
        Ok(Link::Tls(Box::new(TokioIo::new(stream))))
    }
}

/// Where a name leads: to all its addresses, or to the one that was chosen.
#[derive(Debug, Clone)]
struct Resolver(Option<IpAddr>);

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let chosen = self.0;
        Box::pin(async move {
            // The port is that of the URL.
            let addresses: Vec<SocketAddr> = match chosen {
                Some(address) => vec![SocketAddr::new(address, 0)],
                None => tokio::net::lookup_host((name.as_str(), 0)).await?.collect(),
            };
            Ok(addresses.into_iter())
        })
    }
}

impl Service<Uri> for Dialer {
    type Response = Link;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Link, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let secure = address.scheme_str() == Some("https");
        let host = address.host().unwrap_or_default().to_owned();
        let connecting = self.tcp.call(address);
        let dialer = self.clone();
        Box::pin(async move {
            let stream = connecting.await?;
            if secure {
                return Ok(dialer.secure(stream.into_inner(), host).await?);
            }
            Ok(Link::Plain(stream))
        })
    }
}

/// A connection to a server.
#[derive(Debug)]
pub enum Link {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        match self {
            Self::Plain(stream) => stream.connected(),
            Self::Tls(stream) => {
                let (tcp, tls) = stream.inner().get_ref();
                let connected = tcp.connected();
                if tls.alpn_protocol() == Some(b"h2") {
                    connected.negotiated_h2()
                } else {
                    connected
                }
            }
        }
    }
}

impl Read for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl Write for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }
}
