//! A body that is read on for a moment when it is dropped unread.
//!
//! An early refusal leaves a client in the middle of its sending. If the connection were closed at
//! once, the bytes on their way would reset it and the client would lose the answer. So the answer
//! goes out at once, and what still comes is read and dropped: a body of any size that is allowed, for at most
//! [`LONG_DRAIN_DEADLINE`], and while it comes within [`LONG_DRAIN_IDLE`]. Clients that look at answers while they send stop by themselves; those that do not get to
//! see it all the same. It costs no memory, but a connection and reading; so at most [`LONG_DRAINS`] are under way on a
//! listener, and beyond that, or for a body that is too long by its own account, it ends after
//! [`REFUSAL_DRAIN_BYTES`] and [`REFUSAL_DRAIN_DEADLINE`]. A short body that ends within these leaves the connection fit
//! for the next request; after a longer one it is closed.

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use sluice_common::limits::{
    LONG_DRAIN_DEADLINE, LONG_DRAIN_IDLE, LONG_DRAINS, MAX_BODY_BYTES, REFUSAL_DRAIN_BYTES,
    REFUSAL_DRAIN_DEADLINE,
};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// The long drains of one listener.
#[derive(Debug, Clone)]
pub struct Drains(Arc<Semaphore>);

impl Default for Drains {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LONG_DRAINS)))
    }
}

impl Drains {
    /// Reads on, as long as may be, and drops what comes.
    async fn drain(self, mut body: Body) -> usize {
        let too_long = body.size_hint().lower() > MAX_BODY_BYTES as u64;
        let place = self.0.try_acquire().ok().filter(|_| !too_long);
        let (bytes, time) = match place {
            Some(_) => (MAX_BODY_BYTES, LONG_DRAIN_DEADLINE),
            None => (REFUSAL_DRAIN_BYTES, REFUSAL_DRAIN_DEADLINE),
        };
        let mut dropped = 0;
        let end = Instant::now() + time;
        while dropped < bytes {
            let next = end.min(Instant::now() + LONG_DRAIN_IDLE);
            let Ok(Some(Ok(frame))) = timeout_at(next, body.frame()).await else {
                break;
            };
            dropped += frame.data_ref().map_or(0, Bytes::len);
        }
        drop(place);
        dropped
    }
}

/// A request's body that lingers.
#[derive(Debug)]
struct LingeringBody {
    body: Body,
    drains: Drains,
    /// The client waits for `100 Continue`: as long as nothing was read, nothing comes.
    waits: bool,
    ended: Arc<AtomicBool>,
}

impl LingeringBody {
    fn new(body: Body, drains: Drains, waits: bool) -> Self {
        let ended = Arc::new(AtomicBool::new(body.is_end_stream()));
        Self {
            body,
            drains,
            waits,
            ended,
        }
    }
}

impl http_body::Body for LingeringBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.waits = false;
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let over = matches!(frame, Poll::Ready(None | Some(Err(_)))) || self.body.is_end_stream();
        if over {
            self.ended.store(true, Ordering::Release);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for LingeringBody {
    fn drop(&mut self) {
        if self.waits || self.ended.load(Ordering::Acquire) {
            return;
        }
        let body = std::mem::take(&mut self.body);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(self.drains.clone().drain(body));
        }
    }
}

/// Layer: makes the request's body linger, and says `Connection: close` where an answer leaves more
/// unread than a short drain takes.
pub async fn layer(drains: Drains, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let waits = parts.headers.contains_key(header::EXPECT);
    let fits = body
        .size_hint()
        .upper()
        .is_some_and(|bytes| bytes <= REFUSAL_DRAIN_BYTES as u64);
    let http1 = parts.version < Version::HTTP_2;
    let body = LingeringBody::new(body, drains, waits);
    let ended = Arc::clone(&body.ended);
    let mut response = next.run(Request::from_parts(parts, Body::new(body))).await;
    if http1 && !fits && !ended.load(Ordering::Acquire) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use std::convert::Infallible;
    use std::sync::atomic::AtomicUsize;

    /// A gigabyte, and how much of it was read.
    fn endless() -> (Body, Arc<AtomicUsize>) {
        let read = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&read);
        let pieces = stream::repeat_with(move || {
            counted.fetch_add(16 * 1024, Ordering::SeqCst);
            Ok::<_, Infallible>(Bytes::from_static(&[0; 16 * 1024]))
        });
        (Body::from_stream(pieces), read)
    }

    #[tokio::test]
    async fn a_body_that_never_ends_costs_no_more_than_the_drain() {
        let (drains, (body, read)) = (Drains::default(), endless());
        let dropped = drains.clone().drain(body).await;
        assert_eq!(
            (dropped, read.load(Ordering::SeqCst)),
            (MAX_BODY_BYTES, MAX_BODY_BYTES)
        );
        assert_eq!(drains.0.available_permits(), LONG_DRAINS);
    }

    #[tokio::test]
    async fn beyond_the_long_drains_of_a_listener_they_are_short() {
        let drains = Drains::default();
        let silent = || Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let held: Vec<_> = (0..LONG_DRAINS)
            .map(|_| tokio::spawn(drains.clone().drain(silent())))
            .collect();
        while drains.0.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(drains.clone().drain(endless().0).await, REFUSAL_DRAIN_BYTES);
        let started = Instant::now();
        assert_eq!(drains.drain(silent()).await, 0);
        assert!(started.elapsed() < LONG_DRAIN_IDLE);
        held.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
