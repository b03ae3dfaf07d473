//! The listener loop of every service: HTTP/1.1 and HTTP/2 on one port, bounded in connections,
//! streams, header bytes and time, ended gracefully.

pub mod connections;
mod preface;

use crate::limits::{
    FAREWELL_DEADLINE, H2_IDLE_DEADLINE, H2_PING_DEADLINE, H2_PING_INTERVAL, HEADER_DEADLINE,
    MAX_CONNECTIONS, MAX_CONNECTIONS_PER_ADDRESS, MAX_CONNECTIONS_PER_TENANT, MAX_H2_RESETS, MAX_H2_STREAMS,
    MAX_HEADER_BYTES,
};
use crate::shutdown::Stop;
use crate::tls::{ClientCertificate, ServerTls};
use axum::Router;
use connections::{Caps, Connections, Place};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::error::Error;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

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
    pub connections: Caps,
    pub h2_streams: u32,
    /// HTTP/2 flow-control window of a stream, and a quarter of a connection's.
    pub h2_window_bytes: u32,
    pub quiet: Quiet,
}

/// What becomes of connections on which nothing happens. One of HTTP/1 has [`HEADER_DEADLINE`] for its next request.
#[derive(Debug, Clone, Copy)]
pub struct Quiet {
    /// From this time without a request on one of HTTP/2 is ended by GOAWAY. None: never.
    pub h2_idle: Option<Duration>,
    /// A peer that says nothing for so long is pinged, of HTTP/2.
    pub h2_ping: Duration,
    /// One that does not answer a ping for so long is gone.
    pub h2_pong: Duration,
    /// One that was told to go, and does not for so long after its last request, is left.
    pub farewell: Duration,
}

impl Quiet {
    const CLIENTS: Self = Self {
        h2_idle: Some(H2_IDLE_DEADLINE),
        h2_ping: H2_PING_INTERVAL,
        h2_pong: H2_PING_DEADLINE,
        farewell: FAREWELL_DEADLINE,
    };
    /// Of our own services, which keep their connections.
    const INNER: Self = Self {
        h2_idle: None,
        ..Self::CLIENTS
    };
}

impl Bounds {
    /// For clients from outside.
    pub const PUBLIC: Self = Self {
        connections: Caps {
            total: MAX_CONNECTIONS,
            per_address: MAX_CONNECTIONS_PER_ADDRESS,
            per_tenant: MAX_CONNECTIONS_PER_TENANT,
        },
        h2_streams: MAX_H2_STREAMS,
        h2_window_bytes: 1024 * 1024,
        quiet: Quiet::CLIENTS,
    };
    /// For our own services: few connections, many calls on each.
    pub const INNER: Self = Self {
        connections: Caps {
            total: 1_024,
            per_address: 1_024,
            per_tenant: 1_024,
        },
        h2_streams: 4_096,
        h2_window_bytes: 16 * 1024 * 1024,
        quiet: Quiet::INNER,
    };
    /// For probes and metrics.
    pub const ADMIN: Self = Self {
        connections: Caps {
            total: 64,
            per_address: 64,
            per_tenant: 64,
        },
        h2_streams: 16,
        h2_window_bytes: 64 * 1024,
        quiet: Quiet::CLIENTS,
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

/// A port, and whether TLS is spoken on it.
#[derive(Debug)]
pub struct Door {
    pub listener: TcpListener,
    pub tls: Option<ServerTls>,
}

impl From<TcpListener> for Door {
    fn from(listener: TcpListener) -> Self {
        Self { listener, tls: None }
    }
}

/// Serves `router` until `stop`; then finishes the requests that are under way. The caller bounds
/// the time that this may take.
pub async fn serve(door: impl Into<Door>, router: Router, bounds: Bounds, stop: Stop) {
    serve_among(Connections::new(bounds.connections), door, router, bounds, stop).await;
}

/// [`serve`], where the connections of several listeners are bounded together.
pub async fn serve_among(
    connections: Connections,
    door: impl Into<Door>,
    router: Router,
    bounds: Bounds,
    stop: Stop,
) {
    let Door { listener, tls } = door.into();
    let tasks = TaskTracker::new();
    let host = Arc::new(Host {
        server: server(bounds),
        router,
        tls,
        quiet: bounds.quiet,
    });
    loop {
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
        let Ok(place) = connections.enter(peer.ip(), Instant::now()) else {
            continue;
        };
        let (host, stop) = (Arc::clone(&host), stop.clone());
        let place = Arc::new(place);
        tasks.spawn(async move {
            tokio::select! {
                () = host.receive(stream, (peer, Arc::clone(&place)), stop) => {}
                () = place.taken() => tracing::debug!(%peer, "an idle connection gave way"),
            }
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// What every connection of one listener is served with.
struct Host {
    server: auto::Builder<TokioExecutor>,
    router: Router,
    tls: Option<ServerTls>,
    quiet: Quiet,
}

impl Host {
    /// One connection, from its first byte to its last.
    async fn receive(&self, stream: TcpStream, (peer, place): (SocketAddr, Arc<Place>), stop: Stop) {
        // A socket without TCP_NODELAY still works; one that is already closed is not worth a line.
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let Some(tls) = &self.tls else {
            let nobody = ClientCertificate::default();
            return self.converse(stream, (peer, nobody, place), stop).await;
        };
        let shaken = tokio::select! {
            shaken = tls.accept(stream, peer) => shaken,
            () = stop.cancelled() => None,
        };
        if let Some((stream, certificate)) = shaken {
            self.converse(stream, (peer, certificate, place), stop).await;
        }
    }

    async fn converse<IO>(
        &self,
        io: IO,
        (peer, certificate, place): (SocketAddr, ClientCertificate, Arc<Place>),
        stop: Stop,
    ) where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let spoken = tokio::select! {
            spoken = preface::spoken(io) => spoken,
            () = stop.cancelled() => None,
        };
        let Some(io) = spoken else { return };
        let carrier = Arc::clone(&place);
        let service = tower::ServiceBuilder::new()
            .layer(axum::Extension(PeerAddress(peer)))
            .layer(axum::Extension(certificate))
            .layer(axum::Extension(Arc::clone(&place)))
            .map_future(move |answer| Arc::clone(&carrier).carry(answer))
            .service(self.router.clone());
        let service = TowerToHyperService::new(service);
        let connection = self.server.serve_connection(TokioIo::new(io), service);
        let mut connection = pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return log(peer, ended),
            () = self.reason_to_end(&place, &stop) => {}
        }
        // Requests under way are finished; a peer that does not go by itself is left.
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            ended = connection => log(peer, ended),
            () = place.quiet(self.quiet.farewell) => tracing::debug!(%peer, "a connection was left"),
        }
    }

    async fn reason_to_end(&self, place: &Place, stop: &Stop) {
        let idle = async {
            match self.quiet.h2_idle {
                Some(time) => place.quiet(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = place.ending() => {}
            () = idle => {}
        }
    }
}

fn log(peer: SocketAddr, ended: Result<(), Box<dyn Error + Send + Sync>>) {
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended");
    }
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
        .max_pending_accept_reset_streams(MAX_H2_RESETS)
        .max_local_error_reset_streams(MAX_H2_RESETS)
        .initial_stream_window_size(bounds.h2_window_bytes)
        .initial_connection_window_size(bounds.h2_window_bytes.saturating_mul(4))
        .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(bounds.quiet.h2_ping)
        .keep_alive_timeout(bounds.quiet.h2_pong);
    server
}

#[cfg(test)]
mod tests;
