//! All three services in one process, joined by in-process calls through the same seams that carry
//! HTTP/2 between processes.

use sluice_common::admin::{self, Control, Readiness};
use sluice_common::clock::SharedClock;
use sluice_common::config::Loaded;
use sluice_common::limits::SERVER_DEADLINE;
use sluice_common::metrics::Metrics;
use sluice_common::process::Failure;
use sluice_common::reload::Reloader;
use sluice_common::serve::listen;
use sluice_common::servers::{EMBEDDED, name_of};
use sluice_common::shutdown::Stop;
use sluice_common::tls::client::ClientTlsError;
use sluice_common::tls::{ServerTls, reload};
use sluice_edge::{Edge, EdgeServer, tenants_routes};
use sluice_normalizer::start::{Environment, Running};
use sluice_sink_writer::{SinkWriter, Target, publish};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long the start waits for ClickHouse to have its tables; after it, inserts create them.
const TABLES_DEADLINE: Duration = Duration::from_secs(10);

/// What a pipeline is given besides its config.
#[derive(Debug, Clone)]
pub struct Given {
    /// `http://host:port` of ClickHouse; of the first, where the config has several.
    pub clickhouse_url: String,
    /// Whether the start waits for the tables: a ClickHouse of our own is there, a remote one may not be.
    pub wait_for_tables: bool,
    pub clock: SharedClock,
    pub metrics: Metrics,
    pub accept_window_loss: bool,
}

/// A running pipeline.
pub struct Pipeline {
    /// Where events are taken, the first address as a URL.
    pub edge: String,
    /// Where probes and metrics are.
    pub admin: SocketAddr,
    taking: Stop,
    pumping: Stop,
    server: JoinHandle<()>,
    running: Running,
}

impl Pipeline {
    /// Starts sink-writer, normalizer and edge, in this order, and the admin listener.
    ///
    /// # Errors
    /// [`Failure`] saying what to do; nothing is left running.
    pub async fn start(loaded: &Loaded, given: Given) -> Result<Self, Failure> {
        let config = &loaded.config;
        let tls = loaded
            .edge_tls()
            .map(|files| ServerTls::open(files, &given.metrics));
        let tls = tls.transpose()?;
        let probes = listen(&config.edge.admin).await?;
        let targets = targets(loaded, &given)?;
        let sink = SinkWriter::new(&targets, &config.datasets, &given.metrics)
            .publishing(publish::Target::of(loaded));
        make_tables(&sink, given.wait_for_tables).await;
        let (taking, pumping) = (Stop::new(), Stop::new());
        let environment = Environment {
            sink: sink.clone().seam(),
            metrics: given.metrics.clone(),
            clock: given.clock,
            stop: pumping.clone(),
            accept_window_loss: given.accept_window_loss,
        };
        let following = Reloader::new(loaded, &given.metrics, &environment.clock).with(sink.part());
        let running = tokio::task::block_in_place(|| Running::start(loaded, environment))?;
        let edge = Edge::new(config, running.intake.clone(), given.metrics.clone());
        let filed = edge.follow_tenants_file(loaded.tenants_file())?;
        // The edge is the last to take a config: what it lets in, the others know.
        let reloader = following.with(running.part()).with(edge.part());
        let control = Control::new(loaded.admin_token.clone())
            .with(running.control.clone())
            .with(tenants_routes(Arc::clone(&filed)));
        let control = reloader.mount(control);
        reloader.start(taking.clone())?;
        let ready = both(edge.readiness(), Arc::clone(&running.ready));
        let server = EdgeServer::bind(edge, &config.edge.listen, tls.clone()).await?;
        let admin = probes.local_addr()?;
        tokio::spawn(admin::run(
            probes,
            given.metrics.clone(),
            ready,
            control,
            pumping.clone(),
        ));
        tokio::spawn(filed.watch(taking.clone()));
        let edge = server.url();
        let watched = tls.map(reload::target).into_iter().chain(
            targets
                .into_iter()
                .filter_map(|target| target.tls)
                .map(reload::target),
        );
        tokio::spawn(reload::watch(watched.collect(), given.metrics, pumping.clone()));
        let server = tokio::spawn(server.run(taking.clone()));
        Ok(Self {
            edge,
            admin,
            taking,
            pumping,
            server,
            running,
        })
    }

    /// Waits until the pump ends by itself, which it must not.
    pub async fn ended(&mut self) -> Failure {
        Failure::ended("the pump", (&mut self.running.pump).await)
    }

    /// Stops taking, finishes what was taken, settles what is in the log as far as ClickHouse allows.
    /// The caller bounds the time.
    pub async fn stop(mut self) {
        self.taking.cancel();
        // A panic of the server task was logged where it happened; the rest still has to stop.
        // A client that drips its body must not keep the rest from ending in order.
        tokio::time::timeout(SERVER_DEADLINE, self.server).await.ok();
        self.running.close().await;
        self.pumping.cancel();
        if let Ok(Err(error)) = (&mut self.running.pump).await {
            tracing::error!(%error, "the pump ended with an error while stopping");
        }
    }
}

/// The servers of a config, with the first one at `url`. The ClickHouse of our own has another port at each
/// start, and is the same.
fn targets(loaded: &Loaded, given: &Given) -> Result<Vec<Target>, ClientTlsError> {
    let url = given.clickhouse_url.as_str();
    let name = if given.wait_for_tables {
        EMBEDDED.to_owned()
    } else {
        name_of(url)
    };
    Target::all(loaded, (name, url))
}

async fn make_tables(sink: &SinkWriter, wait: bool) {
    let sink = sink.clone();
    let making = async move {
        if let Err(error) = sink.create_missing(TABLES_DEADLINE).await {
            tracing::warn!(%error, "tables could not be made yet; inserts try again, events are taken meanwhile");
        }
    };
    if wait {
        making.await;
    } else {
        tokio::spawn(making);
    }
}

fn both(first: Readiness, second: Readiness) -> Readiness {
    Arc::new(move || first().and_then(|()| second()))
}
