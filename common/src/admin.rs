//! The admin listener: probes and metrics, never on the public one.

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
struct Admin {
    metrics: Metrics,
    ready: Readiness,
}

/// The admin routes.
pub fn router(metrics: Metrics, ready: Readiness) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(Admin { metrics, ready })
}

/// Serves the admin routes until `stop`.
pub async fn run(listener: TcpListener, metrics: Metrics, ready: Readiness, stop: Stop) {
    serve(listener, router(metrics, ready), Bounds::ADMIN, stop).await;
}

async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    match (admin.ready)() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

async fn render(State(admin): State<Admin>) -> impl IntoResponse {
    let text = tokio::task::spawn_blocking(move || admin.metrics.render())
        .await
        .unwrap_or_default();
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
}
