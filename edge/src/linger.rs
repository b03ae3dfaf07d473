//! A body that is read on for a moment when it is dropped unread.
//!
//! An early refusal leaves a client in the middle of its sending. If the connection were closed at
//! once, the bytes on their way would reset it and the client would lose the answer. So the answer
//! goes out at once, and what still comes is read and dropped: at most
//! [`REFUSAL_DRAIN_BYTES`] and for at most [`REFUSAL_DRAIN_DEADLINE`]. A body that ends within both
//! leaves the connection fit for the next request.

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use sluice_common::limits::{REFUSAL_DRAIN_BYTES, REFUSAL_DRAIN_DEADLINE};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

/// A request's body that lingers.
#[derive(Debug)]
struct LingeringBody {
    body: Body,
    /// The client waits for `100 Continue`: as long as nothing was read, nothing comes.
    waits: bool,
    ended: Arc<AtomicBool>,
}

impl LingeringBody {
    fn new(body: Body, waits: bool) -> Self {
        let ended = Arc::new(AtomicBool::new(body.is_end_stream()));
        Self { body, waits, ended }
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
            runtime.spawn(tokio::time::timeout(REFUSAL_DRAIN_DEADLINE, drain(body)));
        }
    }
}

/// Reads on until the end, an error, or enough.
async fn drain(mut body: Body) -> usize {
    let mut dropped = 0;
    while dropped < REFUSAL_DRAIN_BYTES {
        let Some(Ok(frame)) = body.frame().await else {
            break;
        };
        dropped += frame.data_ref().map_or(0, Bytes::len);
    }
    dropped
}

/// Layer: makes the request's body linger, and says `Connection: close` where an answer leaves more
/// unread than will be drained.
pub async fn layer(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let waits = parts.headers.contains_key(header::EXPECT);
    let fits = body
        .size_hint()
        .upper()
        .is_some_and(|bytes| bytes <= REFUSAL_DRAIN_BYTES as u64);
    let http1 = parts.version < Version::HTTP_2;
    let body = LingeringBody::new(body, waits);
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

    #[tokio::test]
    async fn a_gigabyte_nobody_wants_costs_no_more_than_the_drain() {
        let read = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&read);
        let pieces = stream::repeat_with(move || {
            counted.fetch_add(16 * 1024, Ordering::SeqCst);
            Ok::<_, Infallible>(Bytes::from_static(&[0; 16 * 1024]))
        });
        let dropped = drain(Body::from_stream(pieces)).await;
        assert_eq!(
            (dropped, read.load(Ordering::SeqCst)),
            (REFUSAL_DRAIN_BYTES, REFUSAL_DRAIN_BYTES)
        );
    }
}
