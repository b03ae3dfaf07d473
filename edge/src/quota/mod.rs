//! Quotas: how much a tenant may send. Each request is charged once, here, before anything of it is passed on.
//!
//! | when | what is charged | what is only looked at |
//! |---|---|---|
//! | its head is there | 1 request, 1 at a time; the bytes of a body of known length that is not packed | whether anything is left for bytes and events |
//! | its body comes | bytes as they are unpacked, in steps of [`charge::STEP`] | |
//! | its body is whole | events, counted without a schema | |
//!
//! A refusal gives everything back, its own and one for want of room further on, and so does a client that goes away
//! while its request waits in the queue; so that it costs the tenant
//! nothing and its `Retry-After` is true: at that time the same request, alone, finds all that it needs. Where it is not
//! known what it will need, because its body was not read, it is told to wait until the bucket is full.

mod bucket;
mod charge;
mod clock;
mod count;
mod refusal;
mod report;
#[cfg(test)]
pub mod tests;

pub use charge::Charge;
pub use count::events;
pub use refusal::Over;
pub use report::Report;

use bucket::Bucket;
use parking_lot::Mutex;
use sluice_common::config::{Period, Quota, Rates, Share, burst_of};
use sluice_common::ids::TenantId;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Events,
    Bytes,
    Requests,
}

/// One limit, and what is left of it.
#[derive(Debug)]
struct Policy {
    /// As in the headers: `tenant-events`.
    name: &'static str,
    /// As in metrics.
    reason: &'static str,
    kind: Kind,
    bucket: Bucket,
}

/// The name of the limit on requests at once, and its label in metrics.
const CONCURRENCY: &str = "tenant-concurrency";
const CONCURRENCY_REASON: &str = "quota_tenant_concurrency";

/// Labels in metrics of all refusals here.
pub const REASONS: [&str; 8] = [
    "quota_tenant_events",
    "quota_tenant_bytes",
    "quota_tenant_requests",
    CONCURRENCY_REASON,
    "quota_dataset_events",
    "quota_dataset_bytes",
    "quota_dataset_requests",
    "request_exceeds_burst",
];

/// All limits of one tenant. Lives as long as they do not change.
#[derive(Debug)]
pub struct TenantQuotas {
    tenant: TenantId,
    quota: Quota,
    share: Share,
    own: Vec<Arc<Policy>>,
    datasets: HashMap<String, Vec<Arc<Policy>>>,
    at_once: Option<usize>,
    /// Requests that are not answered yet; outlives a change of the limits.
    under_way: Arc<AtomicUsize>,
    /// When it was last logged that this tenant is over, and how often since.
    said: Mutex<(Option<Duration>, u64)>,
    report: Arc<Report>,
}

impl TenantQuotas {
    /// The limits that `quota` sets, of which this edge gives `share`. What is left of the `old` ones is carried over.
    #[must_use]
    pub fn new(
        (tenant, quota): (&TenantId, &Quota),
        share: Share,
        old: Option<&Arc<Self>>,
        report: &Arc<Report>,
    ) -> Arc<Self> {
        if let Some(same) = old.filter(|old| old.quota == *quota && old.share == share) {
            return Arc::clone(same);
        }
        let (burst, now) = (quota.burst, report.uptime.now());
        let make = |rates: Rates, names: [Names; 3], old: &[Arc<Policy>]| {
            let policies = limits(rates, share, burst).into_iter().zip(names);
            let policies = policies.filter_map(|(limit, names)| Some((limit?, names)));
            policies
                .map(|(limit, names)| Arc::new(policy(limit, names, old, now)))
                .collect::<Vec<_>>()
        };
        let of_dataset = |name: &str| {
            old.and_then(|old| old.datasets.get(name))
                .map_or(&[][..], Vec::as_slice)
        };
        let datasets = quota.datasets.iter().map(|(name, rates)| {
            let policies = make(*rates, OF_DATASET, of_dataset(name.as_str()));
            (name.as_str().to_owned(), policies)
        });
        let at_once = quota.concurrent_requests.map(|most| share.of(most.0));
        Arc::new(Self {
            tenant: tenant.clone(),
            quota: quota.clone(),
            share,
            own: make(quota.rates(), OF_TENANT, old.map_or(&[][..], |old| &old.own)),
            datasets: datasets.collect(),
            at_once: at_once.map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
            under_way: old.map_or_else(Arc::default, |old| Arc::clone(&old.under_way)),
            said: Mutex::default(),
            report: Arc::clone(report),
        })
    }

    /// The limits that hold for requests to a dataset.
    fn policies(&self, dataset: &str) -> Vec<Arc<Policy>> {
        let of_dataset = self.datasets.get(dataset).into_iter().flatten();
        self.own.iter().chain(of_dataset).cloned().collect()
    }

    /// The highest of its limits' used parts, evened out over some ten seconds.
    #[must_use]
    pub fn used_ratio(&self, now: Duration) -> f64 {
        let all = self.own.iter().chain(self.datasets.values().flatten());
        let rates = all
            .map(|policy| policy.bucket.used_ratio(now))
            .fold(0.0, f64::max);
        let under_way = self.under_way.load(std::sync::atomic::Ordering::Relaxed);
        let at_once = self.at_once.map_or(0.0, |most| under_way as f64 / most as f64);
        rates.max(at_once)
    }

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.quota.is_unlimited()
    }
}

type Names = (&'static str, &'static str);
/// A rate, its burst, and of what.
type Limit = (u64, u32, Kind);

const OF_TENANT: [Names; 3] = [
    ("tenant-events", "quota_tenant_events"),
    ("tenant-bytes", "quota_tenant_bytes"),
    ("tenant-requests", "quota_tenant_requests"),
];
const OF_DATASET: [Names; 3] = [
    ("dataset-events", "quota_dataset_events"),
    ("dataset-bytes", "quota_dataset_bytes"),
    ("dataset-requests", "quota_dataset_requests"),
];

fn limits(rates: Rates, share: Share, burst: Period) -> [Option<Limit>; 3] {
    let kinds = [Kind::Events, Kind::Bytes, Kind::Requests];
    let mut limits = rates.named().into_iter().zip(kinds).map(|((_, rate), kind)| {
        let rate = share.of(rate?);
        // Checked when the config was read; a share makes it smaller only.
        Some((rate, burst_of(rate, burst).unwrap_or(u32::MAX), kind))
    });
    std::array::from_fn(|_| limits.next().flatten())
}

fn policy(limit: Limit, (name, reason): Names, old: &[Arc<Policy>], now: Duration) -> Policy {
    let (rate, burst, kind) = limit;
    let before = old.iter().find(|old| old.kind == kind);
    let bucket = match before {
        Some(old) => old.bucket.resized(rate, burst, now),
        None => Bucket::full(rate, burst, now),
    };
    Policy {
        name,
        reason,
        kind,
        bucket,
    }
}
