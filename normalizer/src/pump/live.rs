//! What of the pump is shown: its counts, for gauges of all partitions together, and zeros of all that it may count.

use sluice_common::classify::{QUARANTINE_CODES, letter_code};
use sluice_common::fates::Fates;
use sluice_common::ids::Offset;
use sluice_common::metrics::{Counter, Histogram, Metrics};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Counts shared with whoever shows them.
#[derive(Debug, Default)]
pub struct Live {
    /// Every record below is settled.
    pub committed: AtomicU64,
    pub dedup_keys: AtomicU64,
    pub dedup_disk_bytes: AtomicU64,
    /// Events by which the books missed what was proven, since the start.
    pub imbalance: AtomicU64,
    /// Up while the declared range is in trouble.
    pub in_trouble: Arc<AtomicBool>,
}

impl Live {
    /// Nothing is counted yet: exports zeros of all that a pump may count.
    #[must_use]
    pub fn announced(metrics: &Metrics, committed: Offset) -> Arc<Self> {
        for outcome in ["kept", "duplicate", "conflict"] {
            metrics.add(Counter::Events, 0, &[("stage", "dedup"), ("outcome", outcome)]);
        }
        for outcome in ["stored", "dead_lettered", "parked"] {
            metrics.add(Counter::Events, 0, &[("stage", "sink"), ("outcome", outcome)]);
        }
        metrics.announce(Histogram::Freshness, &[]);
        metrics.add(Counter::GenerationBumps, 0, &[]);
        for reason in ["idempotency_conflict", "rejected"] {
            metrics.add(Counter::DeadLetters, 0, &[("reason", reason)]);
        }
        for code in QUARANTINE_CODES {
            metrics.add(Counter::DeadLetters, 0, &[("reason", &letter_code(code))]);
        }
        for reason in ["unsettled_range", "dedup_state", "parked_table"] {
            metrics.add(Counter::Alarms, 0, &[("reason", reason)]);
        }
        Arc::new(Self {
            committed: AtomicU64::new(committed),
            ..Self::default()
        })
    }
}

/// Counts what dedup decided of one record.
pub fn count_fates(metrics: &Metrics, fates: &Fates) {
    let count = |outcome, n: usize| {
        let labels = [("stage", "dedup"), ("outcome", outcome)];
        metrics.add(Counter::Events, n as u64, &labels);
    };
    count("kept", fates.kept() as usize);
    count("duplicate", fates.dropped().len());
    count("conflict", fates.conflicts().len());
}
