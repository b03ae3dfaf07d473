//! Who gives out tokens: OAuth 2.0's client credentials over TLS, and JSON Web Tokens that a broker verifies.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;
use sluice_common::clock::{Clock as _, SystemClock};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The client that gets tokens: its id and its secret.
pub const CLIENT: (&str, &str) = ("sluice-client", "a-client-s-secret");
/// Whom tokens are for.
pub const AUDIENCE: &str = "kafka-of-the-tests";
/// Who gives them out.
pub const ISSUER: &str = "https://identity.test";
/// What they must be asked for.
pub const SCOPE: &str = "log";
const KEY_ID: &str = "of-the-tests";
const PATIENCE: Duration = Duration::from_secs(10);

/// Signs tokens.
#[derive(Debug, Clone)]
pub struct Signer(Arc<EcdsaKeyPair>);

impl Default for Signer {
    fn default() -> Self {
        Self::new()
    }
}

impl Signer {
    /// With a key of its own.
    ///
    /// # Panics
    /// Where there is no randomness.
    #[must_use]
    pub fn new() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random);
        Self(Arc::new(key.expect("a key")))
    }

    /// The key that its tokens are verified with, as a JSON Web Key Set.
    #[must_use]
    pub fn public_keys(&self) -> String {
        let point = self.0.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        let [x, y] = [x, y].map(|half| URL_SAFE_NO_PAD.encode(half));
        let key =
            json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": KEY_ID, "x": x, "y": y});
        json!({ "keys": [key] }).to_string()
    }

    fn token(&self, seconds: u64) -> String {
        let now = SystemClock.now_ms() / 1_000;
        let head = json!({"alg": "ES256", "typ": "JWT", "kid": KEY_ID});
        let claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": CLIENT.0, "scope": SCOPE, "iat": now, "exp": now + seconds,
        });
        let [head, claims] = [head, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let text = format!("{head}.{claims}");
        let signature = self
            .0
            .sign(&SystemRandom::new(), text.as_bytes())
            .expect("signed");
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// A token endpoint. Dropping it ends it.
#[derive(Debug)]
pub struct Identity {
    port: u16,
    told: Arc<Told>,
}

#[derive(Debug, Default)]
struct Told {
    given: AtomicU64,
    refused: AtomicU64,
    over: AtomicBool,
}

impl Identity {
    /// With the certificate `identity.crt` of a directory.
    ///
    /// # Panics
    /// Where it cannot listen, or has no certificate.
    #[must_use]
    pub(crate) fn start(dir: &Path, signer: Signer, seconds: u64) -> Self {
        let chain = CertificateDer::from_pem_file(dir.join("identity.crt")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(dir.join("identity.key")).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![chain], key);
        let config = Arc::new(config.expect("they fit"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let told = Arc::new(Told::default());
        let counted = Arc::clone(&told);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if counted.over.load(Ordering::Relaxed) {
                    return;
                }
                let answered =
                    stream.and_then(|stream| answer(stream, &config, (&signer, seconds), &counted));
                if let Err(error) = answered {
                    eprintln!("identity: {error}");
                }
            }
        });
        Self { port, told }
    }

    /// Where tokens are fetched.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}/token", self.port)
    }

    /// How many tokens were given out.
    #[must_use]
    pub fn given(&self) -> u64 {
        self.told.given.load(Ordering::Relaxed)
    }

    /// How often none was.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.told.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.told.over.store(true, Ordering::Relaxed);
        // So that it looks.
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

fn answer(
    stream: TcpStream,
    config: &Arc<ServerConfig>,
    (signer, seconds): (&Signer, u64),
    told: &Told,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
    let mut reader = BufReader::new(StreamOwned::new(connection, stream));
    let (mut length, mut shown, mut line) = (0, String::new(), String::new());
    loop {
        line.clear();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        let (name, value) = line.trim_end().split_once(": ").unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().map_err(io::Error::other)?,
            "authorization" => value.clone_into(&mut shown),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = String::from_utf8_lossy(&body);
    let expected = format!("Basic {}", STANDARD.encode(format!("{}:{}", CLIENT.0, CLIENT.1)));
    let asks = |what: &str| body.split('&').any(|pair| pair == what);
    let is_well =
        shown == expected && asks("grant_type=client_credentials") && asks(&format!("scope={SCOPE}"));
    let (status, answer) = if is_well {
        told.given.fetch_add(1, Ordering::Relaxed);
        let token = signer.token(seconds);
        (
            "200 OK",
            json!({"access_token": token, "token_type": "Bearer", "expires_in": seconds}),
        )
    } else {
        told.refused.fetch_add(1, Ordering::Relaxed);
        ("401 Unauthorized", json!({"error": "invalid_client"}))
    };
    let answer = answer.to_string();
    let stream = reader.get_mut();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
        answer.len()
    )?;
    stream.conn.send_close_notify();
    stream.flush()
}
