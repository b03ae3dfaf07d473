//! What the edge has lately seen of the normalizer: for `/readyz`, and for one log line a change.

use crate::gate::Gate;
use parking_lot::Mutex;
use sluice_common::wire::intake::{BusyScope, IntakeReply};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How long one failure unreadies an edge that hears nothing more.
const FAILURE_MEMORY: Duration = Duration::from_secs(5);

/// The evidence.
#[derive(Debug, Default)]
pub struct Health {
    gate: Gate,
    failure: Mutex<Option<Failure>>,
    /// No normalizer could be reached when it was last tried.
    unreachable: AtomicBool,
}

#[derive(Debug)]
struct Failure {
    at: Instant,
    reason: String,
}

impl Health {
    /// Notes an answer.
    pub fn saw(&self, reply: &IntakeReply, now: Instant) {
        match reply {
            IntakeReply::Rows(_) | IntakeReply::Refused(_) => {
                self.gate.open();
                if self.failure.lock().take().is_some() {
                    tracing::info!("the normalizer answers again");
                }
            }
            IntakeReply::Busy {
                scope: BusyScope::All,
                retry_after_ms,
                ..
            } => self.gate.busy(now, Duration::from_millis(*retry_after_ms)),
            // One tenant's matter: the others' requests are taken.
            IntakeReply::Busy {
                scope: BusyScope::Tenant,
                ..
            } => {}
            IntakeReply::Unavailable { reason, .. } | IntakeReply::Unreached { reason } => {
                self.failed(reason, now);
            }
        }
    }

    fn failed(&self, reason: &str, now: Instant) {
        let reason = reason.to_owned();
        let before = self.failure.lock().replace(Failure {
            at: now,
            reason: reason.clone(),
        });
        if before.is_none_or(|before| before.reason != reason) {
            tracing::error!(
                reason,
                "the normalizer cannot take requests: clients get 503 and retry; look at its log and /readyz"
            );
        }
    }

    /// Notes whether any normalizer could be reached.
    pub fn reached(&self, any: bool) {
        let before = self.unreachable.swap(!any, Ordering::AcqRel);
        match (before, !any) {
            (false, true) => {
                tracing::error!("no normalizer can be reached: start it, or correct `edge.normalizer`");
            }
            (true, false) => tracing::info!("a normalizer can be reached"),
            (false, false) | (true, true) => {}
        }
    }

    /// Why requests cannot be acknowledged at `now`, if they cannot.
    ///
    /// # Errors
    /// The reason, for an operator.
    pub fn ready(&self, now: Instant) -> Result<(), String> {
        if self.unreachable.load(Ordering::Acquire) {
            return Err("no normalizer can be reached".into());
        }
        if self.gate.is_shut(now) {
            return Err("the normalizer has no room".into());
        }
        let failure = self.failure.lock();
        let recent = failure
            .as_ref()
            .filter(|failure| now < failure.at + FAILURE_MEMORY);
        recent.map_or(Ok(()), |failure| Err(failure.reason.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_common::wire::intake::RowsAnswer;

    #[test]
    fn an_edge_is_ready_as_long_as_requests_can_be_acknowledged() {
        let (health, now) = (Health::default(), Instant::now());
        let rows = IntakeReply::Rows(RowsAnswer::default());
        let down = IntakeReply::Unavailable {
            unknown: true,
            reason: "log".into(),
            retry_after_ms: 1,
        };
        let busy = IntakeReply::Busy {
            scope: BusyScope::All,
            reason: "full".into(),
            retry_after_ms: 1_000,
        };
        assert_eq!(health.ready(now), Ok(()));
        health.saw(&down, now);
        assert_eq!(health.ready(now), Err("log".into()));
        assert_eq!(
            health.ready(now + FAILURE_MEMORY),
            Ok(()),
            "one failure is not for ever"
        );
        health.saw(&rows, now);
        assert_eq!(health.ready(now), Ok(()));
        health.saw(&busy, now);
        assert_eq!(health.ready(now), Ok(()), "the queue takes a moment's fullness");
        assert!(health.ready(now + Duration::from_millis(1_500)).is_err());
        health.saw(&rows, now);
        health.reached(false);
        assert!(health.ready(now).is_err());
        health.reached(true);
        assert_eq!(health.ready(now), Ok(()));
    }
}
