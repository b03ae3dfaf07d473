//! How a call travels between processes: HTTP/2 with prior knowledge, one POST a call, JSON answers,
//! a shared token or mutual TLS where it is configured. No hop sends a call twice by itself (R13).

use super::peers::{Names, Peer, Peers};
use crate::limits::MAX_INNER_ANSWER_BYTES;
use crate::secret::Secret;
use crate::tls::client::ClientTls;
use crate::trace::TraceContext;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use serde::{Serialize, de::DeserializeOwned};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tower::{Service, ServiceExt, util::BoxCloneSyncService};

/// A request that can travel.
pub trait Call: Send + Sized + 'static {
    /// Where it is posted.
    const PATH: &'static str;
    /// Largest body that the receiver reads.
    const MAX_BODY_BYTES: usize;
    /// What answers it.
    type Reply: Answer;

    /// How long the caller waits.
    fn timeout(&self) -> Duration;
    /// The trace it belongs to.
    fn trace(&self) -> TraceContext;
    /// Takes it apart for the wire.
    fn into_parts(self, headers: &mut HeaderMap) -> Bytes;
    /// Puts it together again.
    ///
    /// # Errors
    /// [`BadMessage`] where the peer sent something else.
    fn from_parts(headers: &HeaderMap, timeout: Duration, body: Bytes) -> Result<Self, BadMessage>;
}

/// An answer that can travel.
pub trait Answer: Serialize + DeserializeOwned + From<Failure> + Send + 'static {
    /// The HTTP status that says the same.
    fn status(&self) -> StatusCode;
}

/// The seam between two services, in process or not. It never fails: failures are answers.
pub type Seam<C> = BoxCloneSyncService<C, <C as Call>::Reply, Infallible>;

/// A message that is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a message of this release: {0}")]
pub struct BadMessage(pub String);

/// A call without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// False only where it is certain that the peer never saw the call.
    pub maybe_sent: bool,
    pub reason: String,
}

/// Reads a header that must be there.
///
/// # Errors
/// [`BadMessage`] naming the header.
pub fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, BadMessage> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.ok_or_else(|| BadMessage(format!("header {name} is missing")))
}

const TIMEOUT: &str = "sluice-timeout-ms";
/// How much longer the caller waits than it tells its peer, so that the peer's own answer wins.
const ANSWER_GRACE: Duration = Duration::from_millis(500);

/// The other side of a seam, over the network: one peer of several, in turn. A call that one certainly never saw, because
/// nobody listens there, goes to the next one; a call is never sent twice (R13).
#[derive(Debug, Clone)]
pub struct PeerClient {
    peers: Arc<Peers>,
    next: Arc<AtomicUsize>,
    token: Option<Secret>,
}

impl PeerClient {
    /// A client of `peers` (`http://host:port`, or `https://` with `tls`), taken in turn. A name with several addresses is
    /// as many peers, looked up again every few seconds.
    #[must_use]
    pub fn new(peers: &[String], token: Option<Secret>, tls: Option<ClientTls>) -> Self {
        Self::of(Peers::new(peers, tls, Some(Names::of_this_machine())), token)
    }

    /// The same where a name is one peer, whatever its addresses: two would not know of each other's calls.
    #[must_use]
    pub fn of_one(peer: &str, token: Option<Secret>, tls: Option<ClientTls>) -> Self {
        Self::of(Peers::new(&[peer.to_owned()], tls, None), token)
    }

    fn of(peers: Arc<Peers>, token: Option<Secret>) -> Self {
        Self {
            peers,
            next: Arc::default(),
            token,
        }
    }

    /// This client as a seam.
    #[must_use]
    pub fn seam<C: Call>(self) -> Seam<C> {
        BoxCloneSyncService::new(self)
    }

    async fn call<C: Call>(self, call: C) -> Result<C::Reply, Failure> {
        let wait = call.timeout() + ANSWER_GRACE;
        tokio::time::timeout(wait, self.to_one(call))
            .await
            .unwrap_or_else(|_| {
                Err(Failure {
                    maybe_sent: true,
                    reason: format!("no answer within {wait:?}"),
                })
            })
    }

    async fn to_one<C: Call>(&self, call: C) -> Result<C::Reply, Failure> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let until = Instant::now() + call.timeout();
        let mut headers = HeaderMap::new();
        call.trace().write(&mut headers);
        if let Some(token) = &self.token {
            headers.insert(header::AUTHORIZATION, token.bearer());
        }
        let body = call.into_parts(&mut headers);
        let mut failed = Failure {
            maybe_sent: false,
            reason: "no peer is configured".into(),
        };
        for peer in self.peers.in_turn(turn) {
            // Of what is left: one that does not answer may have taken some.
            let left = until.saturating_duration_since(Instant::now());
            let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            headers.insert(TIMEOUT, HeaderValue::from(left));
            match peer.exchange(C::PATH, &headers, body.clone()).await {
                Err(failure) if !failure.maybe_sent => {
                    peer.rest();
                    failed = failure;
                }
                answered => return answered,
            }
        }
        Err(failed)
    }
}

impl Peer {
    async fn exchange<R: Answer>(&self, path: &str, headers: &HeaderMap, body: Bytes) -> Result<R, Failure> {
        let peer = self.name();
        let request = Request::post(format!("{}{path}", self.url)).body(Full::new(body));
        let mut request = request.map_err(|error| Failure {
            maybe_sent: false,
            reason: error.to_string(),
        })?;
        request.headers_mut().clone_from(headers);
        let response = self.client.request(request).await.map_err(|error| Failure {
            maybe_sent: !error.is_connect(),
            reason: format!("{peer}: {}", crate::error::chain(&error)),
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_INNER_ANSWER_BYTES)
            .collect()
            .await;
        let body = body.map_err(|error| Failure {
            maybe_sent: true,
            reason: format!("{peer}: {error}"),
        })?;
        serde_json::from_slice(&body.to_bytes()).map_err(|_| Failure {
            maybe_sent: status != StatusCode::UNAUTHORIZED && status != StatusCode::NOT_FOUND,
            reason: format!("{peer} answered {status}, which is not an answer of this release"),
        })
    }
}

impl<C: Call> Service<C> for PeerClient {
    type Response = C::Reply;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<C::Reply, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: C) -> Self::Future {
        let client = self.clone();
        Box::pin(async move { Ok(client.call(call).await.unwrap_or_else(C::Reply::from)) })
    }
}

struct Receiver<C: Call> {
    seam: Seam<C>,
    token: Option<Secret>,
}

impl<C: Call> Clone for Receiver<C> {
    fn clone(&self) -> Self {
        Self {
            seam: self.seam.clone(),
            token: self.token.clone(),
        }
    }
}

/// The routes by which a service takes calls from other processes.
pub fn receive<C: Call>(seam: Seam<C>, token: Option<Secret>) -> Router {
    Router::new()
        .route(C::PATH, post(take::<C>))
        .with_state(Receiver { seam, token })
}

async fn take<C: Call>(State(receiver): State<Receiver<C>>, request: Request<Body>) -> Response {
    if receiver
        .token
        .as_ref()
        .is_some_and(|token| !token.admits(request.headers()))
    {
        return (
            StatusCode::UNAUTHORIZED,
            "the shared token is missing or wrong: see `internal.token`",
        )
            .into_response();
    }
    match read_call::<C>(request).await {
        Ok(call) => answer(run_detached(receiver.seam, call).await),
        Err(bad) => (StatusCode::BAD_REQUEST, bad.to_string()).into_response(),
    }
}

/// Runs the call to its end even where the caller goes away: an append outlives its client (R4).
async fn run_detached<C: Call>(seam: Seam<C>, call: C) -> C::Reply {
    let task = tokio::spawn(async move { seam.oneshot(call).await });
    match task.await {
        Ok(Ok(reply)) => reply,
        Ok(Err(never)) => match never {},
        Err(panic) => Failure {
            maybe_sent: true,
            reason: format!("the call failed inside: {panic}"),
        }
        .into(),
    }
}

async fn read_call<C: Call>(request: Request<Body>) -> Result<C, BadMessage> {
    let (parts, body) = request.into_parts();
    let timeout = header_text(&parts.headers, TIMEOUT)?
        .parse()
        .map(Duration::from_millis);
    let timeout = timeout.map_err(|error| BadMessage(format!("{TIMEOUT}: {error}")))?;
    let body = Limited::new(body, C::MAX_BODY_BYTES).collect();
    let body = tokio::time::timeout(timeout, body).await;
    let body = body.map_err(|_| BadMessage("the body did not come in time".into()))?;
    let body = body.map_err(|error| BadMessage(error.to_string()))?;
    C::from_parts(&parts.headers, timeout, body.to_bytes())
}

fn answer<R: Answer>(reply: R) -> Response {
    let body = serde_json::to_vec(&reply).unwrap_or_default();
    (reply.status(), [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests;
