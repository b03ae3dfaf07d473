//! What of a settled range is counted, and whether its books balance.

use super::Pump;
use super::books::Evidence;
use super::drive::{self, Outcome};
use super::range::ClosedRange;
use crate::progress::is_data;
use sluice_common::books::{DEAD_LETTERS, LedgerRow};
use sluice_common::metrics::Counter;
use std::sync::atomic::Ordering;

impl Pump {
    /// Counts what became of a settled range's events.
    pub(super) fn count(&self, closed: &ClosedRange, outcome: &Outcome) {
        let conflicts: usize = closed.records.iter().map(|one| one.fates.conflicts().len()).sum();
        let aside = closed
            .records
            .iter()
            .filter(|one| is_data(&one.record.meta.table) && outcome.aside.contains(&one.record.meta.table));
        let parked: u64 = aside.map(|one| u64::from(one.fates.kept())).sum();
        let (conflicts, dead) = (conflicts as u64, outcome.marks.dead.len() as u64);
        let stored = closed.proof.rows - conflicts - closed.copies - parked - dead;
        for (outcome, n) in [
            ("stored", stored),
            ("dead_lettered", conflicts + dead),
            ("parked", parked),
        ] {
            let labels = [("stage", "sink"), ("outcome", outcome)];
            self.metrics.add(Counter::Events, n, &labels);
        }
        let letters = |reason: &str, n| self.metrics.add(Counter::DeadLetters, n, &[("reason", reason)]);
        letters("idempotency_conflict", conflicts);
        letters("rejected", closed.copies);
        for (reason, n) in drive::dead_by_code(&outcome.marks) {
            letters(&reason, n);
        }
    }

    /// Holds what the books say of the range against what was proven.
    pub(super) fn balance(&self, closed: &ClosedRange, outcome: &Outcome, evidence: &Evidence) {
        let corrections = &outcome.told.ledger;
        let books: Vec<LedgerRow> = closed.ledger.iter().chain(corrections).cloned().collect();
        // Letters that are set aside are proven later, and in flight until then.
        let letters = !outcome.aside.iter().any(|table| table.as_str() == DEAD_LETTERS);
        let events = evidence.imbalance(&books, letters.then_some(closed.copies));
        if events == 0 {
            return;
        }
        let (a, b) = (closed.range.a, closed.range.b);
        tracing::error!(
            a,
            b,
            events,
            "the books of this range say something else than was proven of its rows: compare `ledger` with the tables \
             by _src_o, and report it"
        );
        self.live.imbalance.fetch_add(events, Ordering::Relaxed);
    }
}
