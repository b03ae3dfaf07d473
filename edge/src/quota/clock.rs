//! Time as quotas see it: how long this edge runs. It never steps, whatever becomes of the machine's clock.

use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A source of time that only goes forward.
pub trait Uptime: Send + Sync + std::fmt::Debug {
    /// Since a moment that stays the same.
    fn now(&self) -> Duration;
}

/// The form in which it is handed around.
pub type SharedUptime = Arc<dyn Uptime>;

/// Counts from when it was made.
#[derive(Debug)]
pub struct SinceStart(Instant);

impl Default for SinceStart {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Uptime for SinceStart {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A clock that stands still until it is told otherwise.
#[cfg(test)]
#[derive(Debug, Default)]
pub struct Stepped(std::sync::atomic::AtomicU64);

#[cfg(test)]
impl Stepped {
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap();
        self.0.fetch_add(nanos, std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(test)]
impl Uptime for Stepped {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(std::sync::atomic::Ordering::SeqCst))
    }
}
