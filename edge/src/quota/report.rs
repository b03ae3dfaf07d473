//! What operators see of quotas: metrics, and log lines that do not flood.

use super::TenantQuotas;
use super::clock::{SharedUptime, SinceStart};
use super::refusal::Over;
use crate::tenant_labels::TenantLabels;
use sluice_common::metrics::{Counter, Metrics};
use std::sync::Arc;
use std::time::Duration;

/// At most one log line of a tenant in this time.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// Where refusals are counted, and the clock that quotas go by.
#[derive(Debug)]
pub struct Report {
    pub(super) uptime: SharedUptime,
    metrics: Metrics,
    labels: Arc<TenantLabels>,
}

impl Report {
    /// Counts in `metrics`.
    #[must_use]
    pub fn new(metrics: Metrics, labels: Arc<TenantLabels>) -> Arc<Self> {
        Arc::new(Self {
            uptime: Arc::new(SinceStart::default()),
            metrics,
            labels,
        })
    }

    /// Counts nowhere.
    #[must_use]
    pub fn quiet() -> Arc<Self> {
        Self::new(Metrics::detached(), Arc::default())
    }

    /// The same by another clock.
    #[cfg(test)]
    pub(crate) fn by(uptime: SharedUptime, metrics: Metrics) -> Arc<Self> {
        let labels = Arc::default();
        Arc::new(Self {
            uptime,
            metrics,
            labels,
        })
    }

    /// The time that quotas go by.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.uptime.now()
    }

    /// Counts and logs a request that is over, refused or not.
    pub(super) fn over(&self, quotas: &TenantQuotas, over: &Over) {
        let mode = if quotas.quota.dry_run {
            "dry_run"
        } else {
            "refused"
        };
        let tenant = self.labels.label(&quotas.tenant);
        let labels = [("tenant", tenant), ("policy", over.policy), ("mode", mode)];
        self.metrics.add(Counter::QuotaRefusals, 1, &labels);
        let Some(times) = quotas.is_time_to_say(self.now()) else {
            return;
        };
        let (tenant, policy) = (&quotas.tenant, over.policy);
        if quotas.quota.dry_run {
            tracing::warn!(%tenant, policy, times, "over its quota; taken all the same (`dry_run`)");
        } else {
            tracing::warn!(%tenant, policy, times, "over its quota: answered 429, or 413 where no wait helps");
        }
    }
}

impl TenantQuotas {
    /// How often it was over since it was last said, if it is time to say so again.
    fn is_time_to_say(&self, now: Duration) -> Option<u64> {
        let mut said = self.said.lock();
        said.1 += 1;
        let due = said.0.is_none_or(|last| now >= last + SAID_EVERY);
        due.then(|| std::mem::replace(&mut *said, (Some(now), 0)).1)
    }
}
