//! Which tenants get a label of their own in metrics.
//!
//! Label sets must be bounded, and a counter must never fall. So a tenant gets its label when it first
//! sends and keeps it as long as the process lives; from the 201st on all are `other`.

use parking_lot::Mutex;
use sluice_common::ids::TenantId;
use sluice_common::limits::TENANT_LABELS;
use sluice_common::metrics::{Counter, Metrics};
use std::collections::HashSet;

/// The label of the rest; a tenant of that name is counted with them.
const OTHER: &str = "other";

/// Labels that were given.
#[derive(Debug, Default)]
pub struct TenantLabels {
    given: Mutex<HashSet<TenantId>>,
}

impl TenantLabels {
    /// Counts what became of one request's rows and bytes.
    pub fn count(&self, metrics: &Metrics, tenant: &TenantId, (accepted, rejected): (u64, u64), bytes: u64) {
        let label = self.label(tenant);
        for (outcome, events) in [("accepted", accepted), ("rejected", rejected)] {
            metrics.add(
                Counter::TenantEvents,
                events,
                &[("tenant", label), ("outcome", outcome)],
            );
        }
        metrics.add(Counter::TenantBytes, bytes, &[("tenant", label)]);
    }

    /// The tenant's label, if it has sent before; else that of the rest.
    pub fn known<'a>(&self, tenant: &'a TenantId) -> &'a str {
        if self.given.lock().contains(tenant) {
            tenant.as_str()
        } else {
            OTHER
        }
    }

    /// The tenant's label, its own if there still is one to give.
    pub fn label<'a>(&self, tenant: &'a TenantId) -> &'a str {
        let mut given = self.given.lock();
        if given.contains(tenant) {
            return tenant.as_str();
        }
        if given.len() >= TENANT_LABELS {
            return OTHER;
        }
        given.insert(tenant.clone());
        tenant.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labels_are_bounded_and_the_rest_is_other() {
        let labels = TenantLabels::default();
        let id = |n: usize| TenantId::new(&format!("t{n}")).expect("valid");
        for n in 0..TENANT_LABELS {
            assert_eq!(labels.label(&id(n)), format!("t{n}"));
        }
        assert_eq!(labels.label(&id(TENANT_LABELS)), OTHER);
        assert_eq!(labels.label(&id(3)), "t3", "a label stays with its tenant");
    }
}
