//! Control routes: what a running service can be asked and told under `/admin/v1/`.
//!
//! A service mounts its routes with [`Control::with`]; all stand behind the [`Guard`], a cap on bodies and
//! a deadline, and every refusal is a problem document, those of extractors and of the router included.

use super::Guard;
use crate::error::Problem;
use crate::ids::RequestId;
use crate::limits::{ADMIN_BODY_BYTES, ADMIN_DEADLINE};
use crate::secret::Secret;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri, header};
use http_body_util::Limited;
use std::net::IpAddr;

/// Control routes and the service that has them; for directions in a 404.
const HOMES: [(&str, &str); 6] = [
    ("tenants", "the edge (`edge.admin`, 127.0.0.1:9464)"),
    ("schema", "the normalizer (`normalizer.admin`, 127.0.0.1:9465)"),
    ("parked", "the normalizer (`normalizer.admin`, 127.0.0.1:9465)"),
    ("dlq", "the normalizer (`normalizer.admin`, 127.0.0.1:9465)"),
    ("replay", "the normalizer (`normalizer.admin`, 127.0.0.1:9465)"),
    ("ledger", "the normalizer (`normalizer.admin`, 127.0.0.1:9465)"),
];
/// Of an answer that is made into a problem document, what is read.
const MAX_REASON_BYTES: usize = 4 * 1024;

/// The control routes of one process.
#[derive(Debug, Default)]
pub struct Control {
    routes: Router,
    token: Option<Secret>,
}

impl Control {
    /// No routes yet; `token` is the config's `admin_token`.
    #[must_use]
    pub fn new(token: Option<Secret>) -> Self {
        Self {
            routes: Router::new(),
            token,
        }
    }

    /// Adds routes, with their whole paths: `/admin/v1/…`.
    ///
    /// # Panics
    /// Where a route is there already: a mistake in the program, seen at its first start.
    #[must_use]
    pub fn with(mut self, routes: Router) -> Self {
        self.routes = self.routes.merge(routes);
        self
    }

    /// The routes behind their guard, for a listener bound to `bound`.
    pub fn router(self, bound: IpAddr) -> Router {
        let guard = Guard {
            bound,
            token: self.token,
        };
        self.routes
            .fallback(unknown)
            .layer(DefaultBodyLimit::max(ADMIN_BODY_BYTES))
            .layer(from_fn_with_state(guard, guarded))
    }
}

/// A request that a control route does not fulfil: a problem document.
#[derive(Debug, Clone)]
pub struct Refused(Problem);

impl Refused {
    /// A refusal. `code` is stable and in `docs/errors.md`; `detail` says what to do.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self(Problem::new(status, code, detail))
    }

    /// The answer's status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.status()
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let id = RequestId::random().to_string();
        let document = [(header::CONTENT_TYPE, PROBLEM)];
        (self.status(), document, self.0.to_json(&id)).into_response()
    }
}

const PROBLEM: &str = "application/problem+json";

async fn guarded(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    if !request.uri().path().starts_with("/admin/") {
        return unknown(request.uri().clone()).await.into_response();
    }
    let (parts, body) = request.into_parts();
    if let Err(refused) = guard.check(&parts) {
        return refused.into_response();
    }
    let body = Body::new(Limited::new(body, ADMIN_BODY_BYTES));
    let work = next.run(Request::from_parts(parts, body));
    let late = || {
        let detail = "it took too long and may still be under way: look at its state before asking again";
        Refused::new(StatusCode::GATEWAY_TIMEOUT, "admin_deadline", detail).into_response()
    };
    let response = tokio::time::timeout(ADMIN_DEADLINE, work).await;
    as_problem(response.unwrap_or_else(|_| late())).await
}

/// Errors that axum itself answers, as problem documents.
async fn as_problem(response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    let kind = response.headers().get(header::CONTENT_TYPE);
    if !is_error || kind.is_some_and(|kind| kind.as_bytes() == PROBLEM.as_bytes()) {
        return response;
    }
    let reason = to_bytes(response.into_body(), MAX_REASON_BYTES).await;
    let reason = reason.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let reason = reason.ok().filter(|text| !text.is_empty());
    let detail = reason.unwrap_or_else(|| "the request is not one of this route's".into());
    Refused::new(status, "bad_admin_request", detail).into_response()
}

async fn unknown(uri: Uri) -> Refused {
    let path = uri.path();
    let home = HOMES.iter().find(|(name, _)| {
        let rest = path
            .strip_prefix("/admin/v1/")
            .and_then(|rest| rest.strip_prefix(name));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    });
    let hint = home.map_or_else(
        || "probes are /livez, /readyz and /metrics; control routes are under /admin/v1/".to_owned(),
        |(_, home)| format!("it is a route of {home}: ask there, with `--admin URL`"),
    );
    let shown: String = path.chars().take(crate::limits::MAX_QUOTED_BYTES).collect();
    let detail = format!("{shown:?} is not a route of this listener: {hint}");
    Refused::new(StatusCode::NOT_FOUND, "unknown_admin_route", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::PeerAddress;
    use axum::Json;
    use axum::routing::post;
    use serde_json::Value;
    use tower::ServiceExt as _;

    async fn ask(method: &str, path: &str, body: Vec<u8>) -> (u16, Value) {
        let echo = Router::new().route(
            "/admin/v1/echo",
            post(|Json(body): Json<Value>| async { Json(body) }),
        );
        let router = Control::new(None)
            .with(echo)
            .router(std::net::Ipv4Addr::LOCALHOST.into());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .extension(PeerAddress(([127, 0, 0, 1], 9).into()));
        let request = request.body(Body::from(body)).expect("a request");
        let response = router.oneshot(request).await.expect("never fails");
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 20).await.expect("a body");
        (status, serde_json::from_slice(&body).expect("json"))
    }

    #[tokio::test]
    async fn a_route_is_answered_and_every_error_is_a_problem_document() {
        assert_eq!(
            ask("POST", "/admin/v1/echo", b"[1]".to_vec()).await,
            (200, serde_json::json!([1]))
        );
        let large = vec![b' '; ADMIN_BODY_BYTES + 1];
        for (method, path, body, status, code) in [
            ("GET", "/admin/v1/echo", vec![], 405, "bad_admin_request"),
            ("POST", "/admin/v1/echo", b"{".to_vec(), 400, "bad_admin_request"),
            ("POST", "/admin/v1/echo", large, 413, "bad_admin_request"),
            ("GET", "/admin/v1/nothing", vec![], 404, "unknown_admin_route"),
            ("GET", "/nothing", vec![], 404, "unknown_admin_route"),
        ] {
            let (got, problem) = ask(method, path, body).await;
            assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{problem}");
        }
    }

    #[tokio::test]
    async fn the_route_of_another_service_is_pointed_to() {
        let (status, problem) = ask("GET", "/admin/v1/tenants/acme", vec![]).await;
        assert_eq!(status, 404);
        assert!(
            problem["detail"].as_str().expect("text").contains("edge.admin"),
            "{problem}"
        );
    }
}
