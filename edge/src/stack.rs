//! The way of a request through the edge, as one ordered list. The order is CONTRACT.md's "Order of
//! checks", and each step stands where it does for a reason:
//!
//! | step | answers | why here |
//! |---|---|---|
//! | TLS | 400 | before all others, in `common::serve`: a client certificate can name a tenant |
//! | [`identify`] | — | every answer carries the request's id, refusals included; refusals are written here |
//! | [`span`] | — | all that follows is part of the request's trace |
//! | [`measure`] | — | counts what the client is really answered, panics included |
//! | [`catch_panic`] | 503 | a bug costs one request, not its connection; what it left behind is unknown |
//! | `linger` | — | a client in the middle of its sending still sees an early refusal |
//! | routing | 404, 405 | costs nothing and says nothing about tenants |
//! | authenticate | 401 | before anything is done for a stranger |
//! | [connections](crate::connection_cap) | 429 | known with the tenant; a connection too many is to end, whatever it asks for |
//! | dataset | 403, 404 | what the tenant may do, before what it sent |
//! | media type, encoding | 415 | from the head alone |
//! | length | 413 | from the head alone, before memory is taken |
//! | [quotas](crate::quota) | 429, 413 | a tenant over its quota must not take memory; from the head alone. What is only known later, bytes unpacked and events, is charged as it comes |
//! | admission | 503 | byte permits and the gate: the last thing before the body is read |
//! | body | 408, 413, 400 | read and unpacked within the permit |
//! | *fair queue* | 503 | its place: between a whole body and the normalizer, where requests wait for room |
//! | forward | 503 | waits for "durable", whatever the client does |
//! | answer | 202, 422, 4xx | only what the normalizer said |
//!
//! The first part are [`layers`]; the checks from the head are the list in
//! [`check`], so that what one of them finds (a tenant, a permit) is typed and cannot be missing.

use crate::Edge;
use crate::admission::BodyPermit;
use crate::auth::Tenant;
use crate::body::BodyPlan;
use crate::quota::Charge;
use crate::respond::{self, Outcome, Refusal};
use crate::{connection_cap, linger, routes};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Router};
use futures_util::FutureExt as _;
use http::{HeaderMap, Version};
use sluice_common::ids::RequestId;
use sluice_common::metrics::{Counter, Histogram, Metrics};
use sluice_common::serve::connections::Place;
use sluice_common::telemetry::set_parent;
use sluice_common::tls::ClientCertificate;
use sluice_common::trace::TraceContext;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::Instrument as _;

/// What is known of every request from its head on.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    pub id: RequestId,
    /// When the head was read.
    pub at: Instant,
    /// The client's trace, if it sent one.
    pub trace: TraceContext,
}

/// The public service: the layers around the routes.
pub fn service(edge: Edge) -> Router {
    let edge = Arc::new(edge);
    let shared = Shared {
        edge: Arc::clone(&edge),
        drains: linger::Drains::default(),
    };
    routes::routes(edge).layer(from_fn_with_state(shared, layers))
}

/// What the layers need.
#[derive(Debug, Clone)]
struct Shared {
    edge: Arc<Edge>,
    drains: linger::Drains,
}

/// The layers from the outermost to the routes. One layer to the router: it copies and boxes all that is within, layer by
/// layer, for each request.
async fn layers(State(shared): State<Shared>, mut request: Request, next: Next) -> Response {
    let head = identify(&mut request);
    let http1 = request.version() < Version::HTTP_2;
    let route = routes::label(request.extensions().get::<MatchedPath>());
    let answer = catch_panic(linger::layer(shared.drains, request, next));
    let counted = measure(&shared.edge.metrics, &route, answer).instrument(span(&head));
    respond::finish(counted.await, head.id, http1)
}

/// What the checks before the body found.
#[derive(Debug)]
pub struct Passed {
    pub tenant: Arc<Tenant>,
    pub plan: BodyPlan,
    /// What the request is charged of the tenant's quotas.
    pub charge: Charge,
    pub permit: BodyPermit,
}

/// What a connection says of its requests.
pub type Connection = (Extension<ClientCertificate>, Extension<Arc<Place>>);

/// The checks that need the head and the connection only, in their order.
///
/// # Errors
/// The first check that fails.
pub fn check(
    edge: &Edge,
    headers: &HeaderMap,
    (Extension(shown), Extension(place)): &Connection,
    dataset: &str,
) -> Result<Passed, Refusal> {
    let tenant = edge.tenants.authenticate(headers, shown)?;
    let span = tracing::Span::current();
    span.record("tenant", tenant.id.as_str());
    connection_cap::count(place, &tenant.id)?;
    routes::check_dataset(edge, &tenant, dataset)?;
    span.record("dataset", dataset);
    let plan = BodyPlan::of(headers)?;
    plan.check_length()?;
    let mut charge = tenant.quotas.enter(dataset, plan.whole_bytes())?;
    let entered = edge
        .admission
        .enter(&tenant.admission, plan.first_charge(), Instant::now());
    let permit = entered.inspect_err(|_| charge.give_back())?;
    Ok(Passed {
        tenant,
        plan,
        charge,
        permit,
    })
}

fn identify(request: &mut Request) -> Head {
    let head = Head {
        id: RequestId::random(),
        at: Instant::now(),
        trace: TraceContext::from_headers(request.headers()),
    };
    request.extensions_mut().insert(head);
    head
}

fn span(head: &Head) -> tracing::Span {
    let empty = tracing::field::Empty;
    let span = tracing::info_span!("request", request_id = %head.id, tenant = empty, dataset = empty);
    set_parent(&span, head.trace);
    span
}

async fn measure(metrics: &Metrics, route: &str, answer: impl Future<Output = Response>) -> Response {
    let started = Instant::now();
    let response = answer.await;
    let status = response.status();
    let seconds = started.elapsed().as_secs_f64();
    metrics.add(
        Counter::HttpRequests,
        1,
        &[("route", route), ("code", status.as_str())],
    );
    metrics.record(Histogram::RequestDuration, seconds, &[("route", route)]);
    if status.is_success() {
        metrics.record(Histogram::AckDuration, seconds, &[]);
    }
    if let Some(reason) = response.extensions().get().and_then(Refusal::shed) {
        metrics.add(Counter::Shed, 1, &[("where", "edge"), ("reason", reason)]);
    }
    response
}

async fn catch_panic(answer: impl Future<Output = Response>) -> Response {
    let caught = AssertUnwindSafe(answer).catch_unwind().await;
    caught.unwrap_or_else(|_| {
        tracing::error!("a request failed inside the edge: report the panic message above");
        let reason = "the request failed inside the edge";
        Refusal::unavailable(Outcome::Unknown, reason, Duration::from_secs(1)).into_response()
    })
}
