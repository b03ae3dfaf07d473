//! Who may be read now: bytes are taken before a body is read, of what its tenant may hold ([`shares`](crate::shares)),
//! and nothing is read for a normalizer that has had no room for a while ([`gate`](crate::gate)).

use crate::gate::Gate;
use crate::respond::Refusal;
use crate::shares::{Bounds, Shares, Short};
use parking_lot::Mutex;
use sluice_common::config::Weight;
use sluice_common::ids::TenantId;
use sluice_common::limits::{EDGE_BODY_BYTES, EDGE_BORROW_BYTES, EDGE_GUARANTEED_BYTES};
use sluice_common::metrics::{Gauge, Metrics};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Taken for every body, however short: what a request costs besides its bytes.
pub const LEAST_CHARGE: usize = 4 * 1024;

const BOUNDS: Bounds = Bounds {
    guaranteed: EDGE_GUARANTEED_BYTES,
    lent: EDGE_BODY_BYTES - EDGE_GUARANTEED_BYTES,
    borrow: EDGE_BORROW_BYTES,
};

/// What outlives a change of the tenant: whose bytes are counted, and the gate that remembers "busy" for it alone.
#[derive(Debug)]
pub struct TenantAdmission {
    tenant: TenantId,
    pub gate: Gate,
}

impl TenantAdmission {
    /// Of `tenant`.
    #[must_use]
    pub fn of(tenant: &TenantId) -> Self {
        Self {
            tenant: tenant.clone(),
            gate: Gate::default(),
        }
    }
}

/// The bytes that all bodies of this edge may take together, and the gate for all. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Admission {
    shares: Arc<Mutex<Shares>>,
    gate: Arc<Gate>,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            shares: Arc::new(Mutex::new(Shares::new(BOUNDS))),
            gate: Arc::default(),
        }
    }
}

impl Admission {
    /// Shows the bytes as `sluice_queue_bytes` and `sluice_queue_limit_bytes`.
    #[expect(clippy::cast_precision_loss, reason = "gauges of bytes")]
    pub fn show(&self, metrics: &Metrics) {
        let held = self.clone();
        metrics.watch(Gauge::QueueBytes, &[("queue", "edge")], move || {
            held.held() as f64
        });
        let limit = self.shares.lock().limit() as f64;
        metrics.watch(Gauge::QueueLimitBytes, &[("queue", "edge")], move || limit);
    }

    /// Shut where the normalizer has had no room for anybody.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Shares the guaranteed bytes out among all tenants there are.
    pub fn share_out<'a>(&self, tenants: impl Iterator<Item = (&'a TenantId, Weight)>) {
        let weights: Vec<_> = tenants.map(|(id, weight)| (id.clone(), weight.get())).collect();
        self.shares.lock().share_out(&weights);
    }

    /// Bytes held by all bodies now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.shares.lock().held()
    }

    /// Takes room for a body of `bytes`, before any of it is read.
    ///
    /// # Errors
    /// [`Shed`]: nothing was taken.
    pub fn enter(&self, tenant: &TenantAdmission, bytes: usize, now: Instant) -> Result<BodyPermit, Shed> {
        tenant.gate.enter(now)?;
        self.gate.enter(now)?;
        let mut permit = BodyPermit {
            shares: Arc::clone(&self.shares),
            tenant: tenant.tenant.clone(),
            bytes: 0,
        };
        permit.grow_to(bytes.max(LEAST_CHARGE))?;
        Ok(permit)
    }
}

/// Bytes held for one body.
#[derive(Debug)]
pub struct BodyPermit {
    shares: Arc<Mutex<Shares>>,
    tenant: TenantId,
    bytes: usize,
}

impl BodyPermit {
    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes room until `bytes` are held.
    ///
    /// # Errors
    /// [`Shed`]: the body cannot be read on.
    pub fn grow_to(&mut self, bytes: usize) -> Result<(), Shed> {
        let more = bytes.saturating_sub(self.bytes);
        let taken = self.shares.lock().take(&self.tenant, more);
        taken.map_err(|short| match short {
            Short::Tenant => Shed::TenantBytes,
            Short::All => Shed::EdgeBytes,
        })?;
        self.bytes += more;
        Ok(())
    }
}

impl Drop for BodyPermit {
    fn drop(&mut self) {
        self.shares.lock().give_back(&self.tenant, self.bytes);
    }
}

/// Why there was no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Shed {
    #[error("this tenant's requests hold all the memory that one tenant may have here")]
    TenantBytes,
    #[error("the edge's memory for request bodies is used up, but for what is guaranteed to other tenants")]
    EdgeBytes,
    #[error("the service behind the edge has had no room for this tenant")]
    Closed { retry_after: Duration },
    #[error("as many of this tenant's requests as may wait are waiting")]
    QueueFull { retry_after: Duration },
    #[error("this tenant's requests come faster than they can be taken, and this one waited too long")]
    QueueTarget { retry_after: Duration },
    #[error("there was no room for this request for as long as it may wait")]
    QueueDeadline { retry_after: Duration },
}

impl Shed {
    /// All values of the metric's label.
    pub const REASONS: [&str; 6] = [
        "tenant_bytes",
        "edge_bytes",
        "gate",
        "queue_full",
        "queue_target",
        "queue_deadline",
    ];

    /// [`Shed::QueueFull`].
    #[must_use]
    pub fn queue_full(retry_after: Duration) -> Self {
        Self::QueueFull { retry_after }
    }

    /// [`Shed::QueueTarget`].
    #[must_use]
    pub fn queue_target(retry_after: Duration) -> Self {
        Self::QueueTarget { retry_after }
    }

    /// [`Shed::QueueDeadline`].
    #[must_use]
    pub fn queue_deadline(retry_after: Duration) -> Self {
        Self::QueueDeadline { retry_after }
    }

    /// The metric's label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TenantBytes => "tenant_bytes",
            Self::EdgeBytes => "edge_bytes",
            Self::Closed { .. } => "gate",
            Self::QueueFull { .. } => "queue_full",
            Self::QueueTarget { .. } => "queue_target",
            Self::QueueDeadline { .. } => "queue_deadline",
        }
    }

    fn retry_after(&self) -> Duration {
        match self {
            Self::TenantBytes | Self::EdgeBytes => Duration::from_secs(1),
            Self::Closed { retry_after }
            | Self::QueueFull { retry_after }
            | Self::QueueTarget { retry_after }
            | Self::QueueDeadline { retry_after } => *retry_after,
        }
    }
}

impl From<Shed> for Refusal {
    fn from(shed: Shed) -> Self {
        Self::overloaded(shed.reason(), &shed.to_string(), shed.retry_after())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: &str) -> TenantAdmission {
        TenantAdmission::of(&TenantId::new(id).unwrap())
    }

    #[test]
    fn one_tenant_cannot_take_what_is_guaranteed_to_another() {
        let admission = Admission::default();
        let (loud, quiet) = (tenant("loud"), tenant("quiet"));
        let tenants = [&loud, &quiet].map(|one| (&one.tenant, Weight::default()));
        admission.share_out(tenants.into_iter());
        let now = Instant::now();
        let guarantee = EDGE_GUARANTEED_BYTES / 2;
        let most = guarantee + EDGE_BORROW_BYTES;
        let mut held = admission.enter(&loud, most / 2, now).unwrap();
        held.grow_to(most).unwrap();
        assert_eq!(held.grow_to(most + 1), Err(Shed::TenantBytes));
        assert_eq!(admission.enter(&loud, 1, now).unwrap_err(), Shed::TenantBytes);
        let lendable = EDGE_BODY_BYTES - EDGE_GUARANTEED_BYTES - EDGE_BORROW_BYTES;
        let mut other = admission.enter(&quiet, guarantee, now).unwrap();
        other.grow_to(guarantee + lendable).unwrap();
        assert_eq!(other.grow_to(guarantee + lendable + 1), Err(Shed::EdgeBytes));
        assert_eq!(
            admission.enter(&tenant("new"), 1, now).unwrap_err(),
            Shed::EdgeBytes
        );
        assert_eq!(admission.held(), EDGE_BODY_BYTES);
        drop((held, other));
        assert_eq!(admission.held(), 0);
    }

    #[test]
    fn a_shut_gate_refuses_before_bytes_are_taken() {
        let (admission, one, now) = (Admission::default(), tenant("a"), Instant::now());
        let second = Duration::from_secs(1);
        for at in [now, now + second] {
            admission.gate().busy(at, second);
        }
        let late = now + second + Duration::from_millis(100);
        assert!(matches!(admission.enter(&one, 1, late), Err(Shed::Closed { .. })));
        assert_eq!(admission.held(), 0);
    }
}
