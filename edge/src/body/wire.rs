//! The body's pieces as they come, under both deadlines and the cap on bytes.

use super::BodyError;
use axum::body::Body;
use bytes::Bytes;
use futures_util::Stream;
use http_body::Body as _;
use sluice_common::limits::{BODY_IDLE_DEADLINE, BODY_TOTAL_DEADLINE, MAX_BODY_BYTES};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a body may take.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// Between two pieces.
    pub idle: Duration,
    /// When it must be whole.
    pub end: Instant,
}

impl Deadlines {
    /// Those of a request whose head was read at `head`.
    #[must_use]
    pub fn from_head(head: Instant) -> Self {
        Self {
            idle: BODY_IDLE_DEADLINE,
            end: head + BODY_TOTAL_DEADLINE,
        }
    }
}

/// The body's pieces as they come, under both deadlines and the cap.
pub(super) struct Wire {
    body: Body,
    idle_deadline: Duration,
    idle: Pin<Box<Sleep>>,
    total: Pin<Box<Sleep>>,
    /// Bytes that came so far.
    pub(super) taken: Arc<AtomicUsize>,
}

impl Wire {
    pub(super) fn new(body: Body, deadlines: Deadlines) -> Self {
        Self {
            body,
            idle_deadline: deadlines.idle,
            idle: Box::pin(sleep_until(Instant::now() + deadlines.idle)),
            total: Box::pin(sleep_until(deadlines.end)),
            taken: Arc::default(),
        }
    }

    pub(super) async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    fn late(&mut self, cx: &mut Context<'_>) -> bool {
        self.idle.as_mut().poll(cx).is_ready() || self.total.as_mut().poll(cx).is_ready()
    }
}

impl Stream for Wire {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            // A drip of data buys no more time than this.
            if self.total.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Some(Err(BodyError::TimedOut)));
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                let late = self.late(cx);
                return if late {
                    Poll::Ready(Some(Err(BodyError::TimedOut)))
                } else {
                    Poll::Pending
                };
            };
            let data = match ready_frame(frame) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(data)) if data.is_empty() => continue,
                Some(Ok(data)) => data,
            };
            let next = Instant::now() + self.idle_deadline;
            self.idle.as_mut().reset(next);
            let taken = self.taken.fetch_add(data.len(), Ordering::Relaxed) + data.len();
            let piece = if taken > MAX_BODY_BYTES {
                Err(BodyError::TooLarge)
            } else {
                Ok(data)
            };
            return Poll::Ready(Some(piece));
        }
    }
}

type Piece = Result<http_body::Frame<Bytes>, axum::Error>;

/// A frame's data; trailers are as empty data.
fn ready_frame(frame: Option<Piece>) -> Option<Result<Bytes, BodyError>> {
    match frame? {
        Ok(frame) => Some(Ok(frame.into_data().unwrap_or_default())),
        Err(_) => Some(Err(BodyError::Cut)),
    }
}
