//! What of the pump is shown: its counts as gauges, and zeros of all that it may count.

use sluice_common::classify::{QUARANTINE_CODES, letter_code};
use sluice_common::fates::Fates;
use sluice_common::metrics::{Counter, Gauge, Histogram, Metrics};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counts shared with whoever shows them.
#[derive(Debug, Default)]
pub struct Live {
    pub dedup_keys: AtomicU64,
    pub dedup_disk_bytes: AtomicU64,
    /// Events by which the books missed what was proven, since the start.
    pub imbalance: AtomicU64,
}

/// Exports them.
#[expect(clippy::cast_precision_loss, reason = "gauges")]
pub fn show(metrics: &Metrics, live: &Arc<Live>, in_trouble: &Arc<AtomicBool>) {
    let books = Arc::clone(live);
    metrics.watch(Gauge::LedgerImbalance, &[], move || {
        books.imbalance.load(Ordering::Relaxed) as f64
    });
    let (keys, disk, trouble) = (Arc::clone(live), Arc::clone(live), Arc::clone(in_trouble));
    metrics.watch(Gauge::DedupKeys, &[], move || {
        keys.dedup_keys.load(Ordering::Relaxed) as f64
    });
    metrics.watch(Gauge::DedupDiskBytes, &[], move || {
        disk.dedup_disk_bytes.load(Ordering::Relaxed) as f64
    });
    let read = move || f64::from(u8::from(trouble.load(Ordering::Relaxed)));
    metrics.watch(Gauge::Unsettled, &[("partition", "0")], read);
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
