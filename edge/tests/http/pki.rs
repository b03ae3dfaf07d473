//! A certificate authority of the tests, and a TLS client that trusts it.

use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion};
use sluice_common::tls::PemFile;
use sluice_common::tls::server::{Clients, ServerFiles};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate says.
pub struct Leaf(CertificateParams);

impl Leaf {
    pub fn server() -> Self {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Self(params)
    }

    pub fn client(cn: &str, names: Vec<SanType>) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, cn);
        params.subject_alt_names = names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Self(params)
    }

    pub fn expired(mut self) -> Self {
        self.0.not_before = date_time_ymd(2020, 1, 1);
        self.0.not_after = date_time_ymd(2021, 1, 1);
        self
    }
}

pub struct Signed {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Signed {
    pub fn write(&self, dir: &Path, name: &str) {
        std::fs::write(dir.join(format!("{name}.crt")), self.certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), self.key.serialize_pem()).unwrap();
    }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    pub fn leaf(&self, leaf: &Leaf) -> Signed {
        let key = KeyPair::generate().unwrap();
        Signed {
            certificate: leaf.0.signed_by(&key, &self.issuer).unwrap(),
            key,
        }
    }

    pub fn write(&self, dir: &Path, name: &str) {
        std::fs::write(dir.join(name), self.certificate.pem()).unwrap();
    }
}

/// `edge.crt` and `edge.key` of a directory, and who may show a certificate.
pub fn server_files(dir: &Path, client_ca: Option<&str>) -> ServerFiles {
    let file = |key, name: &str| PemFile {
        key,
        path: dir.join(name),
    };
    ServerFiles {
        name: "edge",
        cert: file("edge.tls.cert", "edge.crt"),
        key: file("edge.tls.key", "edge.key"),
        clients: client_ca.map_or(Clients::Anyone, |name| {
            Clients::MayShow(file("edge.tls.client_ca", name))
        }),
    }
}

/// A TLS client: each request on a connection of its own.
pub struct Caller {
    address: SocketAddr,
    roots: Arc<RootCertStore>,
    versions: Vec<&'static SupportedProtocolVersion>,
    alpn: Vec<Vec<u8>>,
    shows: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub version: Version,
    pub tls: Option<ProtocolVersion>,
    pub body: serde_json::Value,
}

impl Caller {
    pub fn trusting(authority: &Authority, address: SocketAddr) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.der().clone()).unwrap();
        Self {
            address,
            roots: Arc::new(roots),
            versions: rustls::ALL_VERSIONS.to_vec(),
            alpn: vec![b"h2".to_vec()],
            shows: None,
        }
    }

    pub fn speaking(mut self, version: &'static SupportedProtocolVersion) -> Self {
        self.versions = vec![version];
        self
    }

    pub fn offering(mut self, alpn: &[&[u8]]) -> Self {
        self.alpn = alpn.iter().map(|name| name.to_vec()).collect();
        self
    }

    pub fn showing(mut self, signed: &Signed) -> Self {
        let key = PrivateKeyDer::try_from(signed.key.serialize_der()).unwrap();
        self.shows = Some((signed.certificate.der().clone(), key));
        self
    }

    pub async fn connect(&self) -> Result<Connected, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.versions)
            .unwrap()
            .with_root_certificates(self.roots.clone());
        let mut config = match &self.shows {
            Some((certificate, key)) => builder
                .with_client_auth_cert(vec![certificate.clone()], key.clone_key())
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(|e| e.to_string())?;
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        Connected::over(stream.map_err(|error| error.to_string())?).await
    }

    pub async fn send(&self, request: Request<String>) -> Result<Answer, String> {
        self.connect().await?.send(request).await
    }
}

enum Sender {
    H1(http1::SendRequest<Full<Bytes>>),
    H2(http2::SendRequest<Full<Bytes>>),
}

pub struct Connected {
    sender: Sender,
    tls: Option<ProtocolVersion>,
    certificate: Vec<u8>,
}

impl Connected {
    async fn over(stream: tokio_rustls::client::TlsStream<TcpStream>) -> Result<Self, String> {
        let tls = stream.get_ref().1;
        let (version, h2) = (tls.protocol_version(), tls.alpn_protocol() == Some(b"h2"));
        let certificate = tls.peer_certificates().unwrap()[0].to_vec();
        let io = TokioIo::new(stream);
        let sender = if h2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
                .await
                .map_err(|error| error.to_string())?;
            tokio::spawn(connection);
            Sender::H2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await.map_err(|error| error.to_string())?;
            tokio::spawn(connection);
            Sender::H1(sender)
        };
        Ok(Self {
            sender,
            tls: version,
            certificate,
        })
    }

    pub fn certificate(&self) -> Vec<u8> {
        self.certificate.clone()
    }

    pub async fn send(&mut self, request: Request<String>) -> Result<Answer, String> {
        let request = request.map(|text| Full::from(Bytes::from(text)));
        let response = match &mut self.sender {
            Sender::H1(sender) => sender.send_request(request).await,
            Sender::H2(sender) => sender.send_request(request).await,
        };
        let (parts, body) = response.map_err(|error| format!("{error:?}"))?.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|error| error.to_string())?
            .to_bytes();
        Ok(Answer {
            status: parts.status,
            version: parts.version,
            tls: self.tls,
            body: serde_json::from_slice(&body).unwrap_or_default(),
        })
    }
}
