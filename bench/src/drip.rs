//! A crowd of slow clients, from many addresses: each holds a connection open and sends a byte a second, half of
//! them of a request's head and half of its body. Over TLS there may be some besides that never get on with their
//! handshake. One that the server ends is opened anew, so that the crowd stays as large as it was asked to be.

use clap::Args;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use sluice_common::process::Failure;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;

/// Between two bytes of a connection: far within the server's idle deadlines, so that only its total ones end it.
const BYTE_EVERY: Duration = Duration::from_secs(1);
/// Before a connection that failed or was ended is opened again.
const PAUSE: Duration = Duration::from_millis(250);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How a handshake that goes no further begins: a record of a hello of 512 bytes.
const HALF_A_HELLO: &str = "\u{16}\u{3}\u{1}\u{2}\u{0}";
/// What a slow body claims to be.
const BODY_BYTES: usize = 4096;
/// Connections from one loopback address, so that no cap by address decides.
const CONNECTIONS_PER_ADDRESS: u32 = 16;

#[derive(Debug, Args)]
pub struct DripArgs {
    /// Where to connect, host:port; on loopback, each few connections come from an address of their own.
    #[arg(long, value_name = "ADDR")]
    address: SocketAddr,
    /// The API key of the tenant that is slow.
    #[arg(long)]
    key: String,
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    connections: u32,
    /// Talk TLS, and trust who has signed with this certificate (PEM).
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Connections besides that send nothing, or half a hello, instead of a handshake.
    #[arg(long, default_value_t = 0, requires = "ca", value_parser = clap::value_parser!(u32).range(0..=50_000))]
    handshakes: u32,
    /// Wait so long before the first.
    #[arg(long, default_value_t = 0)]
    after: u64,
    /// How long they stay.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// What became of the crowd.
#[derive(Debug, Default, Serialize)]
struct Crowd {
    /// Open at once, at most.
    open_at_most: u32,
    /// Open when the time was over.
    open_at_end: u32,
    connected: u32,
    /// Could not connect.
    failed: u32,
    /// Ended by the server without an answer.
    closed: u32,
    /// Ended by the server with one, by status.
    answered: BTreeMap<String, u32>,
    bytes: u64,
    #[serde(skip)]
    open: u32,
}

impl DripArgs {
    /// Holds the crowd for its time, and prints what became of it as one line of JSON.
    ///
    /// # Errors
    /// [`Failure`] where not one connection could be made.
    pub async fn run(&self) -> Result<(), Failure> {
        sleep(Duration::from_secs(self.after)).await;
        let until = Instant::now() + Duration::from_secs(self.seconds);
        let crowd = Rc::new(RefCell::new(Crowd::default()));
        let tls = self.ca.as_deref().map(trusting).transpose()?;
        let client = |number: u32, sent: Slow, tls: Option<TlsConnector>| {
            let client = Client {
                address: self.address,
                from: source(self.address, number),
                tls,
                sent,
                until,
                crowd: Rc::clone(&crowd),
            };
            tokio::task::spawn_local(client.run())
        };
        let slow =
            (0..self.connections).map(|number| client(number, request(&self.key, number), tls.clone()));
        let idle = (self.connections..self.connections + self.handshakes)
            .map(|number| client(number, handshake(number), None));
        let clients: Vec<_> = slow.chain(idle).collect();
        for client in clients {
            client.await?;
        }
        let crowd = crowd.borrow();
        println!("{}", serde_json::to_string(&*crowd)?);
        if crowd.connected == 0 {
            return Err(Failure::new(format!("nobody could connect to {}", self.address)));
        }
        Ok(())
    }
}

/// The head and, for every other client, the first byte of a body; the rest follows slowly.
#[derive(Debug)]
struct Slow {
    /// At once.
    first: String,
    /// Byte by byte, for as long as the connection lives.
    rest: &'static str,
}

fn request(key: &str, number: u32) -> Slow {
    let head = format!(
        "POST /v1/events/events HTTP/1.1\r\nHost: slow\r\nAuthorization: Bearer {key}\r\nContent-Type: application/x-ndjson\r\n"
    );
    if number.is_multiple_of(2) {
        Slow {
            first: format!("{head}X-Slow: "),
            rest: "a",
        }
    } else {
        Slow {
            first: format!("{head}Content-Length: {BODY_BYTES}\r\n\r\n{{"),
            rest: " ",
        }
    }
}

/// Nothing for half of them.
fn handshake(number: u32) -> Slow {
    let first = if number.is_multiple_of(2) {
        ""
    } else {
        HALF_A_HELLO
    };
    Slow {
        first: first.to_owned(),
        rest: "",
    }
}

fn trusting(ca: &Path) -> Result<TlsConnector, Failure> {
    let unusable = |error: &dyn std::fmt::Display| Failure::new(format!("{}: {error}", ca.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| unusable(&error))? {
        let certificate = certificate.map_err(|error| unusable(&error))?;
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    let config = ClientConfig::builder_with_provider(sluice_common::tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// An address of 127.1.0.0/16 for each few connections; any, where the server is not on loopback.
fn source(server: SocketAddr, number: u32) -> SocketAddr {
    let host = number / CONNECTIONS_PER_ADDRESS + 1;
    let ip = match server.ip() {
        IpAddr::V4(ip) if ip.is_loopback() && cfg!(target_os = "linux") => {
            let [_, _, high, low] = host.to_be_bytes();
            IpAddr::V4(Ipv4Addr::new(127, 1, high, low))
        }
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(ip, 0)
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

struct Client {
    address: SocketAddr,
    from: SocketAddr,
    tls: Option<TlsConnector>,
    sent: Slow,
    until: Instant,
    crowd: Rc<RefCell<Crowd>>,
}

impl Client {
    async fn run(self) {
        while Instant::now() < self.until {
            match self.connect().await {
                Some(stream) => {
                    self.opened();
                    let ended = self.drip(stream).await;
                    self.closed(ended);
                }
                None => self.crowd.borrow_mut().failed += 1,
            }
            sleep_until(self.until.min(Instant::now() + PAUSE)).await;
        }
    }

    async fn connect(&self) -> Option<Box<dyn Stream>> {
        let stream = timeout(CONNECT_DEADLINE, self.reach()).await.ok()??;
        let Some(tls) = &self.tls else {
            return Some(Box::new(stream));
        };
        let name = ServerName::from(self.address.ip());
        let stream = timeout(CONNECT_DEADLINE, tls.connect(name, stream)).await.ok()?;
        Some(Box::new(stream.ok()?))
    }

    async fn reach(&self) -> Option<TcpStream> {
        let socket = match self.from {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        let socket = socket.ok()?;
        socket.bind(self.from).ok()?;
        socket.connect(self.address).await.ok()
    }

    fn opened(&self) {
        let mut crowd = self.crowd.borrow_mut();
        crowd.connected += 1;
        crowd.open += 1;
        crowd.open_at_most = crowd.open_at_most.max(crowd.open);
    }

    fn closed(&self, ended: Ended) {
        let mut crowd = self.crowd.borrow_mut();
        crowd.open -= 1;
        match ended {
            Ended::Open => crowd.open_at_end += 1,
            Ended::Closed => crowd.closed += 1,
            Ended::Answered(status) => *crowd.answered.entry(status).or_default() += 1,
        }
    }

    /// Sends a byte at a time until the server ends it or the time is over.
    async fn drip(&self, mut stream: Box<dyn Stream>) -> Ended {
        let mut answer = [0; 64];
        let mut next = self.sent.first.as_bytes();
        while Instant::now() < self.until {
            if stream.write_all(next).await.is_err() || stream.flush().await.is_err() {
                return Ended::Closed;
            }
            self.crowd.borrow_mut().bytes += next.len() as u64;
            next = self.sent.rest.as_bytes();
            let pause = self
                .until
                .saturating_duration_since(Instant::now())
                .min(BYTE_EVERY);
            match timeout(pause, stream.read(&mut answer)).await {
                Err(_) => {}
                Ok(Ok(0) | Err(_)) => return Ended::Closed,
                Ok(Ok(bytes)) => return Ended::Answered(status(&answer[..bytes])),
            }
        }
        Ended::Open
    }
}

/// How a connection ended.
#[derive(Debug)]
enum Ended {
    Open,
    Closed,
    Answered(String),
}

/// `408` of `HTTP/1.1 408 Request Timeout`.
fn status(answer: &[u8]) -> String {
    let line = String::from_utf8_lossy(answer);
    line.split(' ')
        .nth(1)
        .unwrap_or("no HTTP")
        .chars()
        .take(8)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_comes_from_many_addresses_of_loopback_and_is_half_heads_half_bodies() {
        let server = "127.0.0.1:4318".parse().unwrap();
        let addresses: std::collections::BTreeSet<_> =
            (0..2_000).map(|number| source(server, number)).collect();
        assert_eq!(addresses.len(), 125);
        assert!(addresses.iter().all(|from| from.ip().is_loopback()));
        let far = source("192.0.2.1:443".parse().unwrap(), 7);
        assert!(far.ip().is_unspecified());
        let heads = (0..100).filter(|number| !request("k", *number).first.contains("\r\n\r\n"));
        assert_eq!(heads.count(), 50);
    }

    #[test]
    fn the_status_of_an_answer_is_read_off_its_first_line() {
        assert_eq!(status(b"HTTP/1.1 408 Request Timeout\r\n"), "408");
        assert_eq!(status(b""), "no HTTP");
    }
}
