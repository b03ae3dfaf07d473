//! The listener loop of every service: HTTP/1.1 and HTTP/2 on one port, bounded in connections,
//! streams, header bytes and time, ended gracefully.

use crate::limits::{HEADER_DEADLINE, MAX_CONNECTIONS, MAX_H2_STREAMS, MAX_HEADER_BYTES};
use crate::shutdown::Stop;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Who is at the other end of a connection; in each request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddress(pub SocketAddr);

/// A port that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}; choose another address, or stop what holds it")]
pub struct ListenError {
    pub address: String,
    pub error: std::io::Error,
}

/// How much one listener takes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub connections: usize,
    pub h2_streams: u32,
    /// HTTP/2 flow-control window of a stream, and a quarter of a connection's.
    pub h2_window_bytes: u32,
}

impl Bounds {
    /// For clients from outside.
    pub const PUBLIC: Self = Self {
        connections: MAX_CONNECTIONS,
        h2_streams: MAX_H2_STREAMS,
        h2_window_bytes: 1024 * 1024,
    };
    /// For our own services: few connections, many calls on each.
    pub const INNER: Self = Self {
        connections: 1_024,
        h2_streams: 4_096,
        h2_window_bytes: 16 * 1024 * 1024,
    };
    /// For probes and metrics.
    pub const ADMIN: Self = Self {
        connections: 64,
        h2_streams: 16,
        h2_window_bytes: 64 * 1024,
    };
}

/// Takes an address.
///
/// # Errors
/// [`ListenError`] naming it.
pub async fn listen(address: &str) -> Result<TcpListener, ListenError> {
    let failed = |error| ListenError {
        address: address.to_owned(),
        error,
    };
    TcpListener::bind(address).await.map_err(failed)
}

/// Serves `router` until `stop`; then finishes the requests that are under way. The caller bounds
/// the time that this may take.
pub async fn serve(listener: TcpListener, router: Router, bounds: Bounds, stop: Stop) {
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(bounds.connections));
    let server = Arc::new(server(bounds));
    loop {
        let permit = tokio::select! {
            () = stop.cancelled() => break,
            permit = Arc::clone(&room).acquire_owned() => permit,
        };
        let Ok(permit) = permit else { break };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: give others time to close theirs.
                tracing::warn!(%error, "a connection could not be accepted; raise LimitNOFILE if this goes on");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (server, router, watcher) = (Arc::clone(&server), router.clone(), graceful.watcher());
        let stop = stop.clone();
        tokio::spawn(async move {
            let spoke = tokio::select! {
                spoke = speaks(&stream) => spoke,
                () = stop.cancelled() => false,
            };
            let connection = spoke.then(|| connection(&server, stream, peer, router)).flatten();
            if let Some(connection) = connection
                && let Err(error) = watcher.watch(connection).await
            {
                tracing::debug!(%peer, %error, "connection ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// Whether the client says, in time, which version of HTTP it speaks. Until then nothing else bounds how
/// long it holds its connection.
async fn speaks(stream: &TcpStream) -> bool {
    let version = async {
        let mut head = [0; H2_PREFACE.len()];
        loop {
            match stream.peek(&mut head).await {
                Ok(0) | Err(_) => return false,
                Ok(all) if all == H2_PREFACE.len() => return true,
                Ok(some) if head[..some] != H2_PREFACE[..some] => return true,
                // Part of a preface: the socket stays readable, so look again a little later.
                Ok(_) => tokio::time::sleep(PREFACE_PAUSE).await,
            }
        }
    };
    tokio::time::timeout(HEADER_DEADLINE, version)
        .await
        .unwrap_or(false)
}

const H2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PREFACE_PAUSE: Duration = Duration::from_millis(20);

type Service = TowerToHyperService<axum::middleware::AddExtension<Router, PeerAddress>>;
type Connection = auto::Connection<'static, TokioIo<TcpStream>, Service, TokioExecutor>;

fn connection(
    server: &auto::Builder<TokioExecutor>,
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
) -> Option<Connection> {
    // A socket without TCP_NODELAY still works; one that is already closed is not worth a line.
    stream.set_nodelay(true).ok()?;
    let service = tower::Layer::layer(&axum::Extension(PeerAddress(peer)), router);
    let service = TowerToHyperService::new(service);
    Some(
        server
            .serve_connection(TokioIo::new(stream), service)
            .into_owned(),
    )
}

fn server(bounds: Bounds) -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(MAX_HEADER_BYTES.max(64 * 1024))
        .half_close(false);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(bounds.h2_streams)
        .initial_stream_window_size(bounds.h2_window_bytes)
        .initial_connection_window_size(bounds.h2_window_bytes.saturating_mul(4))
        .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    server
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_told_with_its_address() {
        let first = listen("127.0.0.1:0").await.expect("a port");
        let address = first.local_addr().expect("an address").to_string();
        let error = listen(&address).await.expect_err("taken").to_string();
        assert!(error.contains(&address), "{error}");
    }
}
