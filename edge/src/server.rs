//! The edge as a server: its listeners, and the process that is nothing but an edge.

use crate::{Edge, NotInForce, stack, tenants_routes};
use serde::Serialize;
use sluice_common::admin::{self, Control};
use sluice_common::clock::{SharedClock, SystemClock};
use sluice_common::config::{Loaded, LogKind};
use sluice_common::error;
use sluice_common::metrics::{Metrics, MetricsError};
use sluice_common::reload::Reloader;
use sluice_common::serve::connections::Connections;
use sluice_common::serve::{Bounds, Door, ListenError, listen, serve_among};
use sluice_common::shutdown::{Stop, asked_to_stop, within_deadline};
use sluice_common::tls::client::{ClientTls, ClientTlsError};
use sluice_common::tls::{ServerTls, TlsError, reload};
use sluice_common::wire::transport::PeerClient;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// An edge with its listeners.
#[derive(Debug)]
pub struct EdgeServer {
    edge: Edge,
    tls: Option<ServerTls>,
    listeners: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
}

impl EdgeServer {
    /// Takes the addresses (`edge.listen`); port 0 picks one. With `tls` nothing else is spoken there.
    ///
    /// # Errors
    /// [`ListenError`] naming the address that could not be had.
    pub async fn bind(edge: Edge, addresses: &[String], tls: Option<ServerTls>) -> Result<Self, ListenError> {
        let mut server = Self {
            edge,
            tls,
            listeners: Vec::new(),
            addresses: Vec::new(),
        };
        for address in addresses {
            let listener = listen(address).await?;
            let failed = |error| ListenError {
                address: address.clone(),
                error,
            };
            server.addresses.push(listener.local_addr().map_err(failed)?);
            server.listeners.push(listener);
        }
        Ok(server)
    }

    /// Where it listens, in the order of the config.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The first of them as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let first = self.addresses.first();
        first.map_or_else(String::new, |address| format!("{scheme}://{address}"))
    }

    /// Serves until `stop`, then finishes what was taken. The caller bounds the time that this takes.
    pub async fn run(self, stop: Stop) {
        let mut running = JoinSet::new();
        let connections = Connections::new(self.edge.connections).shown(&self.edge.metrics);
        for listener in self.listeners {
            let router = stack::service(self.edge.clone());
            let door = Door {
                listener,
                tls: self.tls.clone(),
            };
            let among = connections.clone();
            running.spawn(serve_among(among, door, router, Bounds::PUBLIC, stop.clone()));
        }
        running.join_all().await;
        self.edge.drained().await;
    }
}

/// Why an edge could not be run.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    ClientTls(#[from] ClientTlsError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Tenants(#[from] NotInForce),
    #[error("cannot watch for signals, or write to stdout: {0}")]
    Io(#[from] io::Error),
}

/// Runs an edge as a process of its own until SIGTERM or SIGINT: the normalizers of the config behind
/// it, its admin listener beside it. With `json` the first line on stdout says where it listens.
///
/// # Errors
/// [`EdgeError`].
pub async fn run_alone(config: &Loaded, json: bool) -> Result<(), EdgeError> {
    let own = &config.config.edge;
    let metrics = Metrics::new("sluice-edge", &config.config)?;
    let inner = config.inner_client_tls().map(ClientTls::open).transpose()?;
    // Each embedded log has a dedup of its own: there is one.
    let is_one = config.config.log.kind == LogKind::Embedded;
    let peer = |one: &String| {
        let (token, tls) = (config.internal_token.clone(), inner.clone());
        match is_one {
            true => PeerClient::of_one(one, token, tls),
            false => PeerClient::new(std::slice::from_ref(one), token, tls),
        }
    };
    let seams = own.normalizer.iter().map(|one| peer(one).seam()).collect();
    let edge = Edge::before(&config.config, seams, metrics.clone());
    let filed = edge.follow_tenants_file(config.tenants_file())?;
    let tls = config
        .edge_tls()
        .map(|files| ServerTls::open(files, &metrics))
        .transpose()?;
    let server = EdgeServer::bind(edge.clone(), &own.listen, tls.clone()).await?;
    let admin = listen(&own.admin).await?;
    let (stop, probing) = (Stop::new(), Stop::new());
    let clock: SharedClock = Arc::new(SystemClock);
    let reloader = Reloader::new(config, &metrics, &clock).with(edge.part());
    let control = Control::new(config.admin_token.clone()).with(tenants_routes(Arc::clone(&filed)));
    let control = reloader.mount(control);
    let reloading = reloader.start(stop.clone())?;
    let asked = asked_to_stop()?;
    say_ready(&server, admin.local_addr()?, json)?;
    let admin = tokio::spawn(admin::run(
        admin,
        metrics.clone(),
        edge.readiness(),
        control,
        probing.clone(),
    ));
    let watched = tls
        .map(reload::target)
        .into_iter()
        .chain(inner.map(reload::target));
    tokio::spawn(reload::watch(watched.collect(), metrics.clone(), stop.clone()));
    tokio::spawn(filed.watch(stop.clone()));
    let watch = tokio::spawn(watch_peers(edge, own.normalizer.clone(), stop.clone()));
    let serving = tokio::spawn(server.run(stop.clone()));
    asked.await;
    tracing::info!("stopping: no new requests are taken, those under way are finished");
    stop.cancel();
    let drained = within_deadline(async {
        log_panic(serving.await);
        log_panic(watch.await);
        log_panic(reloading.await);
    });
    if !drained.await {
        tracing::warn!("not all requests were finished in time; their clients will retry");
    }
    // The probes answer until the end, so that an operator sees the draining.
    probing.cancel();
    within_deadline(async { log_panic(admin.await) }).await;
    tokio::task::spawn_blocking(move || metrics.shutdown()).await.ok();
    Ok(())
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(
            error = error::chain(&error),
            "a part of the edge failed inside: report this line"
        );
    }
}

/// The first line on stdout, its members in the order that CONTRACT.md shows.
#[derive(Serialize)]
struct Ready {
    ready: bool,
    edge: String,
    admin: String,
}

fn say_ready(server: &EdgeServer, admin: SocketAddr, json: bool) -> io::Result<()> {
    for address in server.addresses() {
        tracing::info!(%address, %admin, "the edge listens");
    }
    if !json {
        return Ok(());
    }
    let ready = Ready {
        ready: true,
        edge: server.url(),
        admin: format!("http://{admin}"),
    };
    let line = serde_json::to_string(&ready)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Tries every second whether any normalizer takes connections: an edge without traffic must know.
async fn watch_peers(edge: Edge, peers: Vec<String>, stop: Stop) {
    while !stop.is_cancelled() {
        let mut any = false;
        for peer in &peers {
            any = any || reachable(peer).await;
        }
        edge.health.reached(any);
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(PROBE_INTERVAL) => {}
        }
    }
}

async fn reachable(peer: &str) -> bool {
    let authority = peer
        .split_once("://")
        .map_or(peer, |(_, rest)| rest)
        .trim_end_matches('/');
    let connected = tokio::time::timeout(PROBE_INTERVAL, TcpStream::connect(authority)).await;
    matches!(connected, Ok(Ok(_)))
}
