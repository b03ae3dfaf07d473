//! The edge: the public listener. Stateless; it knows tenants and the names of datasets, and nothing
//! of schemas.
//!
//! The path of a request is in [`stack`]: head → checks → byte permit → body → forward → answer. It
//! answers 2xx only when the normalizer says that the rows are durable. Memory is bounded by byte
//! permits that are taken before a body is read and held until the normalizer has answered; a
//! request that waits for room behind the edge keeps its permit, so the permits of a tenant are its
//! bounded queue.

mod admission;
mod auth;
mod body;
mod connection_cap;
mod forward;
mod gate;
mod handlers;
mod health;
mod linger;
mod queue;
pub mod quota;
mod respond;
mod routes;
mod server;
mod shares;
mod stack;
mod tenant_labels;
mod tenants_file;

pub use auth::Tenants;
pub use handlers::tenants::routes as tenants_routes;
pub use server::{EdgeError, EdgeServer, run_alone};

pub use tenants_file::{FiledTenants, NotInForce};

use admission::{Admission, Shed};
use forward::Forwarder;
use health::Health;
use queue::FairQueue;
use sluice_common::admin::Readiness;
use sluice_common::clock::SystemClock;
use sluice_common::config::Config;
use sluice_common::metrics::{Counter, Gauge, Histogram, Metrics};
use sluice_common::reload::Part;
use sluice_common::serve::connections::Caps;
use sluice_common::tenants_file::TenantsFile;
use sluice_common::wire::intake::IntakeRequest;
use sluice_common::wire::transport::Seam;
use std::path::PathBuf;
use std::sync::Arc;
use tenant_labels::TenantLabels;

/// What all requests of one edge share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Edge {
    tenants: Arc<Tenants>,
    admission: Admission,
    forwarder: Forwarder,
    health: Arc<Health>,
    metrics: Metrics,
    tenant_labels: Arc<TenantLabels>,
    connections: Caps,
}

impl Edge {
    /// An edge that hands what it takes to `seam`.
    #[must_use]
    pub fn new(config: &Config, seam: Seam<IntakeRequest>, metrics: Metrics) -> Self {
        Self::before(config, vec![seam], metrics)
    }

    /// An edge before several normalizers, of which any takes any request.
    #[must_use]
    pub fn before(config: &Config, seams: Vec<Seam<IntakeRequest>>, metrics: Metrics) -> Self {
        show_zeros(&metrics);
        let health = Arc::new(Health::default());
        let tenant_labels = Arc::<TenantLabels>::default();
        let report = quota::Report::new(metrics.clone(), Arc::clone(&tenant_labels));
        let tenants = Arc::new(Tenants::new(config, report));
        show_used_quotas(&metrics, &tenants, &tenant_labels);
        let admission = tenants.admission().clone();
        admission.show(&metrics);
        let gate = Arc::clone(admission.gate());
        let queue = FairQueue::new(seams.len(), gate, metrics.clone());
        Self {
            admission,
            forwarder: Forwarder::new(seams, queue, Arc::clone(&health), Arc::clone(&tenants)),
            tenants,
            health,
            metrics,
            tenant_labels,
            connections: caps(config),
        }
    }

    /// The tenants in force; [`Tenants::replace`] changes them while requests run.
    #[must_use]
    pub fn tenants(&self) -> &Arc<Tenants> {
        &self.tenants
    }

    /// Puts the tenants file at `path` in force beside the config's tenants; it need not exist. The caller
    /// has it watched ([`FiledTenants::watch`]) and mounts [`tenants_routes`].
    ///
    /// # Errors
    /// [`NotInForce`] where it is broken, or cannot stand beside the config.
    pub fn follow_tenants_file(&self, path: PathBuf) -> Result<Arc<FiledTenants>, NotInForce> {
        let (tenants, metrics) = (Arc::clone(&self.tenants), self.metrics.clone());
        FiledTenants::open(TenantsFile::at(path), tenants, metrics, Arc::new(SystemClock))
    }

    /// Follows the config: its tenants and the names of its datasets.
    #[must_use]
    pub fn part(&self) -> Part {
        let tenants = Arc::clone(&self.tenants);
        Box::new(move |loaded| {
            let (tenants, config) = (Arc::clone(&tenants), loaded.config.clone());
            Ok(Box::new(move || tenants.replace(&config)))
        })
    }

    /// Whether requests can be acknowledged, for `/readyz`. A ClickHouse outage alone does not
    /// unready an edge: the log still takes rows.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let health = Arc::clone(&self.health);
        Arc::new(move || health.ready(tokio::time::Instant::now()))
    }

    /// Body bytes that are held now: 0 when no request is under way.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.admission.held()
    }

    /// Waits until everything that was handed on is answered.
    pub async fn drained(&self) {
        self.forwarder.drained().await;
    }
}

/// Tenants that have not sent yet have no label of their own; they have used nothing.
fn show_used_quotas(metrics: &Metrics, tenants: &Arc<Tenants>, labels: &Arc<TenantLabels>) {
    let (tenants, labels) = (Arc::downgrade(tenants), Arc::clone(labels));
    metrics.watch_all(Gauge::QuotaUsedRatio, move || {
        let tenants = tenants.upgrade();
        let ratios = tenants.map(|tenants| tenants.used_ratios(|id| labels.known(id).to_owned()));
        let ratios = ratios.into_iter().flatten();
        ratios
            .map(|(tenant, ratio)| (vec![("tenant", tenant)], ratio))
            .collect()
    });
}

fn caps(config: &Config) -> Caps {
    let number = |limit: std::num::NonZeroU32| usize::try_from(limit.get()).unwrap_or(usize::MAX);
    Caps {
        total: number(config.edge.connections.total),
        per_address: number(config.edge.connections.per_address),
        per_tenant: number(config.edge.connections.per_tenant),
    }
}

fn show_zeros(metrics: &Metrics) {
    for reason in Shed::REASONS {
        metrics.zeros(Counter::Shed, &[&[("where", "edge"), ("reason", reason)]]);
    }
    for reason in quota::REASONS {
        metrics.zeros(Counter::Shed, &[&[("where", "edge"), ("reason", reason)]]);
    }
    let connections = ("reason", connection_cap::REASON);
    metrics.zeros(Counter::Shed, &[&[("where", "edge"), connections]]);
    for outcome in ["accepted", "rejected"] {
        metrics.zeros(Counter::Events, &[&[("stage", "edge"), ("outcome", outcome)]]);
    }
    metrics.zeros(Counter::Bytes, &[&[("stage", "edge")]]);
    let route = ("route", routes::EVENTS);
    metrics.zeros(Counter::HttpRequests, &[&[route, ("code", "202")]]);
    metrics.announce(Histogram::RequestDuration, &[route]);
    metrics.announce(Histogram::AckDuration, &[]);
}
