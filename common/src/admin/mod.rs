//! The admin listener: probes, metrics, and control routes ([`Control`]), never on the public one.

mod control;
mod guard;

pub use control::{Control, Refused};
pub use guard::Guard;

use crate::metrics::Metrics;
use crate::serve::{Bounds, serve};
use crate::shutdown::Stop;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Says why the service is not ready, or nothing where it is.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

#[derive(Clone)]
struct Probes {
    metrics: Metrics,
    ready: Readiness,
}

/// Probes and metrics.
pub fn router(metrics: Metrics, ready: Readiness) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(Probes { metrics, ready })
}

/// Serves probes, metrics and `control` until `stop`.
pub async fn run(listener: TcpListener, metrics: Metrics, ready: Readiness, control: Control, stop: Stop) {
    let bound = listener.local_addr().map(|address| address.ip());
    // A listener whose address cannot be told is taken for one that the world reaches.
    let bound = bound.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into());
    let router = router(metrics, ready).fallback_service(control.router(bound));
    serve(listener, router, Bounds::ADMIN, stop).await;
}

async fn readyz(State(probes): State<Probes>) -> impl IntoResponse {
    match (probes.ready)() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

async fn render(State(probes): State<Probes>) -> impl IntoResponse {
    let text = tokio::task::spawn_blocking(move || probes.metrics.render())
        .await
        .unwrap_or_default();
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
}
