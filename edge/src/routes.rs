//! What stands where, and what to do instead: 404 and 405 with directions.

use crate::Edge;
use crate::auth::Tenant;
use crate::body::quoted;
use crate::handlers::events;
use crate::respond::Refusal;
use axum::Router;
use axum::extract::MatchedPath;
use axum::routing::post;
use http::{Method, StatusCode, Uri};
use sluice_common::error::Problem;
use std::borrow::Cow;
use std::sync::Arc;

/// Where events are sent.
pub const EVENTS: &str = "/v1/events/{dataset}";

/// The public routes.
pub fn routes(edge: Arc<Edge>) -> Router {
    Router::new()
        .route(EVENTS, post(events::take))
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown)
        .with_state(edge)
}

/// The metric's label: a route of ours, or `other`.
#[must_use]
pub fn label(matched: Option<&MatchedPath>) -> Cow<'static, str> {
    match matched.map(MatchedPath::as_str) {
        Some(EVENTS) => EVENTS.into(),
        Some(other) => other.to_owned().into(),
        None => "other".into(),
    }
}

async fn wrong_method(method: Method) -> Refusal {
    let detail = format!(
        "{} is not answered here: send events with POST",
        quoted(method.as_str())
    );
    Refusal::new(Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        detail,
    ))
}

async fn unknown(uri: Uri) -> Refusal {
    let path = uri.path();
    let hint = match path.trim_end_matches('/') {
        "/v1/logs" | "/v1/traces" | "/v1/metrics" => {
            "OTLP is not there yet: send events to /v1/events/{dataset}"
        }
        "/livez" | "/readyz" | "/metrics" => "probes and metrics are on the admin listener, `edge.admin`",
        "/v1/events" => "name the dataset: /v1/events/{dataset}",
        _ => "send events to /v1/events/{dataset}",
    };
    let detail = format!("{:?} is not a route: {hint}", quoted(path));
    Refusal::new(Problem::new(StatusCode::NOT_FOUND, "unknown_route", detail))
}

/// Whether the tenant may write the dataset, and whether there is one: in this order, so that who
/// may not write it does not learn of it.
///
/// # Errors
/// 403 or 404.
pub fn check_dataset(edge: &Edge, tenant: &Tenant, dataset: &str) -> Result<(), Refusal> {
    let name = quoted(dataset);
    if !tenant.may_write(dataset) {
        let detail = format!(
            "tenant {} may not write dataset {name:?}: have it added to the tenant's `datasets`",
            tenant.id
        );
        return Err(Refusal::new(Problem::new(
            StatusCode::FORBIDDEN,
            "dataset_not_granted",
            detail,
        )));
    }
    if !edge.tenants.dataset_exists(dataset) {
        let detail = format!("there is no dataset {name:?}: check the name, or add it under `datasets`");
        return Err(Refusal::new(Problem::new(
            StatusCode::NOT_FOUND,
            "unknown_dataset",
            detail,
        )));
    }
    Ok(())
}
