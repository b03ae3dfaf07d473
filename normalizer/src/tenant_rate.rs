//! A token bucket for each tenant, which may go into debt by one taking: the average rate is exact and
//! any single thing fits.

use parking_lot::Mutex;
use sluice_common::clock::UnixMs;
use sluice_common::ids::TenantId;
use std::collections::HashMap;

/// Tenants kept at once; the idle ones, whose buckets are full, are forgotten first, then all.
const MAX_TENANTS: usize = 10_000;

/// What each tenant may take a second, with a second's worth at once.
#[derive(Debug)]
pub struct TenantRate {
    per_second: i64,
    buckets: Mutex<HashMap<TenantId, Bucket>>,
}

/// Thousandths, so that no time is lost to rounding.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    thousandths: i64,
    at_ms: UnixMs,
}

impl Bucket {
    fn refill(&mut self, per_second: i64, now: UnixMs) {
        let passed = i64::try_from(now.saturating_sub(self.at_ms)).unwrap_or(i64::MAX);
        let full = per_second.saturating_mul(1_000);
        let more = passed.saturating_mul(per_second);
        self.thousandths = self.thousandths.saturating_add(more).min(full);
        self.at_ms = now;
    }
}

impl TenantRate {
    /// Full buckets of `per_second`.
    #[must_use]
    pub fn new(per_second: u64) -> Self {
        Self {
            per_second: i64::try_from(per_second).unwrap_or(i64::MAX),
            buckets: Mutex::default(),
        }
    }

    /// Takes `amount`; false where the tenant has nothing left.
    pub fn take(&self, tenant: &TenantId, amount: u64, now: UnixMs) -> bool {
        let full = Bucket {
            thousandths: self.per_second.saturating_mul(1_000),
            at_ms: now,
        };
        let mut buckets = self.buckets.lock();
        if buckets.len() >= MAX_TENANTS && !buckets.contains_key(tenant) {
            self.forget_idle(&mut buckets, now);
        }
        let bucket = buckets.entry(tenant.clone()).or_insert(full);
        bucket.refill(self.per_second, now);
        if bucket.thousandths <= 0 {
            return false;
        }
        let amount = i64::try_from(amount).unwrap_or(i64::MAX).saturating_mul(1_000);
        bucket.thousandths = bucket.thousandths.saturating_sub(amount);
        true
    }

    fn forget_idle(&self, buckets: &mut HashMap<TenantId, Bucket>, now: UnixMs) {
        let full = self.per_second.saturating_mul(1_000);
        buckets.retain(|_, bucket| {
            bucket.refill(self.per_second, now);
            bucket.thousandths < full
        });
        if buckets.len() >= MAX_TENANTS {
            buckets.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_takes_its_rate_on_average_and_hurts_no_other() {
        let rate = TenantRate::new(100);
        let (a, b) = (
            TenantId::new("a").expect("valid"),
            TenantId::new("b").expect("valid"),
        );
        assert!(rate.take(&a, 250, 1_000), "one taking may go into debt");
        assert!(!rate.take(&a, 1, 1_000));
        assert!(rate.take(&b, 1, 1_000));
        assert!(!rate.take(&a, 1, 2_500), "the debt is paid first");
        assert!(rate.take(&a, 1, 2_510));
        assert!(
            !TenantRate::new(0).take(&a, 1, 5_000),
            "nothing a second is nothing"
        );
    }

    #[test]
    fn any_number_of_tenants_takes_bounded_memory() {
        let rate = TenantRate::new(1);
        for n in 0..2 * MAX_TENANTS {
            assert!(rate.take(&TenantId::new(&format!("t{n}")).expect("valid"), 1, 0));
        }
        assert!(rate.buckets.lock().len() <= MAX_TENANTS);
    }
}
