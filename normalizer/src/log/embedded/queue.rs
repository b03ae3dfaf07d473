//! The bounded queue between callers and the writer: bytes are taken before a batch is queued, and given
//! back when it was answered, so they also bound what is in the writer's hands.

use super::errors::AppendError;
use super::writer::AppendedAt;
use parking_lot::{Condvar, Mutex};
use sluice_common::record::RecordContent;
use std::collections::VecDeque;
use tokio::sync::oneshot;

/// Batches that may wait: a bound for batches too small to reach the bound in bytes.
const QUEUE_BATCHES: usize = 65_536;

/// A batch that waits, and whom to tell.
#[derive(Debug)]
pub struct Pending {
    pub records: Vec<RecordContent>,
    /// Bytes of the records' frames.
    pub bytes: usize,
    pub reply: Reply,
}

/// Where the outcome of a batch goes. A caller that went away does not change what is written.
pub type Reply = oneshot::Sender<Result<AppendedAt, AppendError>>;

/// The queue.
#[derive(Debug)]
pub struct Queue {
    limit: usize,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Pending>,
    /// Bytes waiting or in the writer's hands.
    bytes: usize,
    closed: bool,
}

impl Queue {
    /// A queue of at most `limit` bytes of frames.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            inner: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Queues a batch.
    ///
    /// # Errors
    /// `Busy` where it does not fit now, `TooLarge` where it never will, `Closed` after [`Self::close`].
    pub fn push(&self, batch: Pending) -> Result<(), AppendError> {
        if batch.bytes > self.limit {
            return Err(AppendError::TooLarge {
                bytes: batch.bytes,
                limit: self.limit,
            });
        }
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(AppendError::Closed);
        }
        if inner.bytes + batch.bytes > self.limit || inner.waiting.len() >= QUEUE_BATCHES {
            return Err(AppendError::Busy);
        }
        inner.bytes += batch.bytes;
        inner.waiting.push_back(batch);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for work and takes what is there, up to `max_bytes` but at least one batch. `None` once the
    /// queue is closed and empty.
    pub fn take(&self, max_bytes: usize) -> Option<Vec<Pending>> {
        let mut inner = self.inner.lock();
        while inner.waiting.is_empty() {
            if inner.closed {
                return None;
            }
            self.changed.wait(&mut inner);
        }
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(next) = inner.waiting.front() {
            if !taken.is_empty() && bytes + next.bytes > max_bytes {
                break;
            }
            bytes += next.bytes;
            taken.extend(inner.waiting.pop_front());
        }
        Some(taken)
    }

    /// Gives back the bytes of batches that were answered.
    pub fn release(&self, bytes: usize) {
        self.inner.lock().bytes -= bytes;
    }

    /// Whether no batch waits.
    pub fn is_idle(&self) -> bool {
        self.inner.lock().waiting.is_empty()
    }

    /// Bytes waiting or in the writer's hands.
    pub fn bytes(&self) -> usize {
        self.inner.lock().bytes
    }

    /// Takes no more; what waits can still be taken out.
    pub fn close(&self) {
        self.inner.lock().closed = true;
        self.changed.notify_all();
    }
}
