//! Where the keeper leaves the next segment and the writer takes it.

use super::errors::AppendError;
use super::files::LogFile;
use parking_lot::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// How long the writer waits for a segment before it refuses what waits for it. Zeroing one takes well
/// under a second; a disk that needs longer cannot take appends either.
const TAKE_DEADLINE: Duration = Duration::from_secs(30);
/// Pause of the keeper between two looks at what there is to do.
const IDLE: Duration = Duration::from_secs(1);
/// The same while a segment is wanted and there is no room for it.
const RETRY: Duration = Duration::from_millis(200);

/// At most one segment made ahead.
#[derive(Default)]
pub struct SpareSlot {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    ready: Option<LogFile>,
    wanted: bool,
    refused: Option<AppendError>,
    nudged: bool,
    closed: bool,
}

impl SpareSlot {
    /// Asks for a segment, without waiting.
    pub fn want(&self) {
        let mut inner = self.inner.lock();
        if !inner.wanted {
            inner.wanted = true;
            inner.nudged = true;
            self.changed.notify_all();
        }
    }

    /// Takes the segment made ahead, or waits until one is made.
    ///
    /// # Errors
    /// Why none can be made now.
    pub fn take(&self) -> Result<LogFile, AppendError> {
        let deadline = Instant::now() + TAKE_DEADLINE;
        let mut inner = self.inner.lock();
        (inner.wanted, inner.nudged, inner.refused) = (true, true, None);
        self.changed.notify_all();
        loop {
            if let Some(ready) = inner.ready.take() {
                inner.wanted = false;
                return Ok(ready);
            }
            if let Some(refused) = inner.refused.take() {
                return Err(refused);
            }
            if self.changed.wait_until(&mut inner, deadline).timed_out() {
                return Err(AppendError::WriteFailed(
                    "no segment could be made in time".to_owned(),
                ));
            }
        }
    }

    /// Whether a segment is wanted and none is there.
    pub fn is_missing(&self) -> bool {
        let inner = self.inner.lock();
        inner.wanted && inner.ready.is_none()
    }

    /// Whether a segment is there.
    pub fn is_ready(&self) -> bool {
        self.inner.lock().ready.is_some()
    }

    /// Leaves a segment, or says why there is none.
    pub fn put(&self, made: Result<LogFile, AppendError>) {
        let mut inner = self.inner.lock();
        match made {
            Ok(file) => (inner.ready, inner.refused) = (Some(file), None),
            Err(refused) => inner.refused = Some(refused),
        }
        self.changed.notify_all();
    }

    /// Wakes the keeper.
    pub fn nudge(&self) {
        self.inner.lock().nudged = true;
        self.changed.notify_all();
    }

    /// Waits until there may be something to do; `false` once closed.
    pub fn wait_for_work(&self) -> bool {
        let mut inner = self.inner.lock();
        let pause = if inner.wanted && inner.ready.is_none() {
            RETRY
        } else {
            IDLE
        };
        let deadline = Instant::now() + pause;
        while !inner.nudged && !inner.closed {
            if self.changed.wait_until(&mut inner, deadline).timed_out() {
                break;
            }
        }
        inner.nudged = false;
        !inner.closed
    }

    /// Ends the keeper.
    pub fn close(&self) {
        self.inner.lock().closed = true;
        self.changed.notify_all();
    }
}
