//! The books of one range (R20): what its records say, and what dedup decided of their rows.
//!
//! # What is counted
//! One row a tenant, dataset and minute of append. Counts are taken record by record: a record's rows
//! are received, and so are the rejected rows of each request that has its first record here (its span
//! says how many). The totals that a span has of its whole request are not used: a request whose
//! records fall into two ranges, or into two minutes, is counted where each of its rows lies, so every
//! row of the books balances by itself, and so does any set of them.
//!
//! # Why the same again after a crash
//! All of it is a function of the records `[a, b)` and their fates, which are the same again (R8). The
//! row's provenance is that of the first record it counts, which no other row of the range has.
//!
//! Copies of rejected rows are no events and are not counted: their event is counted as rejected.
//!
//! # What is only claimed
//! Kept rows count as stored, because the range's row goes out together with them. What ClickHouse
//! refuses is corrected by further entries. [`Evidence`] holds what was claimed against what was proven.

use sluice_common::books::{DEAD_LETTERS, Entry, LEDGER, LedgerRow};
use sluice_common::ids::{Name, TenantId, source_o};
use sluice_common::record::Holds;
use sluice_common::wire::sink::{RangeRecord, SubKey, SubReport, Verdict};
use std::collections::BTreeMap;

/// The books of a range that may still grow.
#[derive(Debug, Default)]
pub struct Books {
    rows: BTreeMap<(TenantId, Name, u64), LedgerRow>,
    copies: u64,
}

impl Books {
    /// Counts a decided record.
    pub fn add(&mut self, one: &RangeRecord) {
        let (record, fates) = (&one.record, &one.fates);
        let meta = &record.meta;
        if meta.holds == Holds::RejectedCopies {
            self.copies += u64::from(record.rows());
            return;
        }
        let fresh = LedgerRow::new(
            Entry::Range,
            meta.tenant.clone(),
            meta.dataset.clone(),
            record.place.append_ms,
            source_o(record.place.offset, 0),
        );
        let key = (meta.tenant.clone(), meta.dataset.clone(), fresh.minute_s);
        let row = self.rows.entry(key).or_insert(fresh);
        for span in record.spans() {
            row.received += i64::from(span.rows) + i64::from(span.rejected);
            row.rejected += i64::from(span.rejected);
        }
        row.stored += i64::from(fates.kept());
        row.duplicate += count(fates.dropped());
        row.dead_lettered += count(fates.conflicts());
    }

    /// Rows so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Copies of rejected rows so far: they go to dead letters and are in no book.
    #[must_use]
    pub fn copies(&self) -> u64 {
        self.copies
    }

    /// All rows, by tenant, dataset and minute.
    #[must_use]
    pub fn close(self) -> Vec<LedgerRow> {
        self.rows.into_values().collect()
    }
}

fn count(rows: &[u16]) -> i64 {
    i64::try_from(rows.len()).unwrap_or(i64::MAX)
}

/// What the sink-writer proved of one range's sub-batches.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Evidence {
    proven: BTreeMap<SubKey, u64>,
}

impl Evidence {
    /// Takes the reports of one call; `all` where it asked for every sub-batch, whose names may have
    /// changed since.
    pub fn note(&mut self, all: bool, reports: &[SubReport]) {
        if all {
            self.proven.clear();
        }
        let done = reports.iter().filter(|report| report.verdict == Verdict::Done);
        self.proven
            .extend(done.map(|report| (report.sub.clone(), report.rows)));
    }

    /// A table was set aside, with what was proven of it: all of it is proven again there.
    pub fn forget(&mut self, table: &Name) {
        self.proven.retain(|sub, _| sub.table != *table);
    }

    /// Events by which the rows of the books miss what was proven, or do not balance in themselves.
    /// `copies` of rejected rows are proven with the range and counted nowhere; `None` where letters are set
    /// aside, so that none of them are proven.
    #[must_use]
    pub fn imbalance(&self, books: &[LedgerRow], copies: Option<u64>) -> u64 {
        let proven = copies.unwrap_or_default();
        let (mut stored, mut dead, mut uneven) = (0, i64::try_from(proven).unwrap_or(i64::MAX), 0);
        for row in books {
            stored += row.stored;
            dead += row.dead_lettered;
            uneven += row.imbalance().unsigned_abs();
        }
        for (sub, rows) in &self.proven {
            let rows = i64::try_from(*rows).unwrap_or(i64::MAX);
            match sub.table.as_str() {
                LEDGER => {}
                DEAD_LETTERS => dead -= rows,
                _ => stored -= rows,
            }
        }
        if copies.is_none() {
            dead = 0;
        }
        // An event that went elsewhere than claimed is missing here and too many there.
        uneven + stored.unsigned_abs().max(dead.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use sluice_common::fates::{Fate, Fates};
    use sluice_common::ids::{LogId, RequestId};
    use sluice_common::record::{Identity, Placement, Record, RecordContent, RecordMeta, RequestSpan};

    /// A record's tenant and dataset, its minute, and for each request the fates of its rows and how many
    /// were rejected.
    type Drawn = (u8, u8, u8, Vec<(Vec<Fate>, u32)>);

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![3 => Just(Fate::Keep), 1 => Just(Fate::Drop), 1 => Just(Fate::Conflict)]
    }

    fn records() -> impl Strategy<Value = Vec<Drawn>> {
        let request = (prop::collection::vec(fate(), 0..5), 0u32..3);
        let drawn = (0u8..3, 0u8..2, 0u8..3, prop::collection::vec(request, 1..4));
        prop::collection::vec(drawn, 1..20)
    }

    fn decided(offset: u64, (tenant, dataset, minute, requests): &Drawn) -> RangeRecord {
        let name = |text: String| Name::new(&text).expect("valid");
        let meta = RecordMeta {
            tenant: TenantId::new(&format!("t{tenant}")).expect("valid"),
            dataset: name(format!("d{dataset}")),
            table: name(format!("d{dataset}")),
            schema_version: 1,
            identity: Identity::Key,
            window_ms: 1_000,
            holds: Holds::Events,
        };
        let (mut spans, mut fates, mut rows) = (Vec::new(), Fates::new(), 0);
        for (row_fates, rejected) in requests {
            row_fates.iter().for_each(|fate| fates.push(*fate));
            let of_span = u32::try_from(row_fates.len()).expect("few");
            spans.push(RequestSpan {
                request: RequestId(1),
                first_row: rows,
                rows: of_span,
                // Of the whole request: more may lie in other records.
                taken: of_span + 7,
                rejected: *rejected,
                trace_id: 0,
                span_id: 0,
            });
            rows += of_span;
        }
        let content = RecordContent {
            meta: serde_json::to_vec(&meta).expect("json").into(),
            spans,
            keys: (0..u128::from(rows)).collect(),
            fingerprints: Vec::new(),
            column_bytes: 0,
            body: Bytes::new(),
        };
        let place = Placement {
            log: LogId(1),
            offset,
            append_ms: 1_795_231_800_000 + u64::from(*minute) * 60_000,
            durable_below: offset,
        };
        let mut frame = Vec::new();
        content.write(place, &mut frame);
        let record = Record::read(&frame.into()).expect("a record");
        RangeRecord { record, fates }
    }

    fn books(records: &[RangeRecord]) -> Vec<LedgerRow> {
        let mut books = Books::default();
        records.iter().for_each(|one| books.add(one));
        books.close()
    }

    fn reports(records: &[RangeRecord]) -> Vec<SubReport> {
        let report = |table: &str, rows| SubReport {
            sub: SubKey::whole(Name::new(table).expect("valid"), "all"),
            rows,
            sum_o: 0,
            sum_o2: 0,
            verdict: Verdict::Done,
        };
        let kept = records.iter().map(|one| u64::from(one.fates.kept())).sum();
        let dead = records.iter().map(|one| one.fates.conflicts().len() as u64).sum();
        vec![report("d0", kept), report(DEAD_LETTERS, dead), report(LEDGER, 3)]
    }

    proptest! {
        #[test]
        fn the_books_of_any_records_balance_however_they_are_cut_into_ranges(drawn in records(), cut in 0usize..20) {
            let all: Vec<_> = (0u64..).zip(&drawn).map(|(offset, one)| decided(offset, one)).collect();
            let cut = cut.min(all.len());
            let mut sums: BTreeMap<_, [i64; 5]> = BTreeMap::new();
            for part in [&all[..cut], &all[cut..]] {
                let mut provenance = Vec::new();
                for row in books(part) {
                    prop_assert_eq!(row.imbalance(), 0);
                    provenance.push(row.source_o);
                    let sum = sums.entry((row.tenant.clone(), row.dataset.clone(), row.minute_s)).or_default();
                    let counts = [row.received, row.stored, row.duplicate, row.dead_lettered, row.rejected];
                    sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
                }
                let rows = provenance.len();
                provenance.sort_unstable();
                provenance.dedup();
                prop_assert_eq!(provenance.len(), rows, "each row of the books has a provenance of its own");
            }
            let mut whole: BTreeMap<_, [i64; 5]> = BTreeMap::new();
            for row in books(&all) {
                let counts = [row.received, row.stored, row.duplicate, row.dead_lettered, row.rejected];
                whole.insert((row.tenant, row.dataset, row.minute_s), counts);
            }
            prop_assert_eq!(sums, whole);
        }

        #[test]
        fn the_books_count_every_row_and_every_rejected_one_once(drawn in records()) {
            let all: Vec<_> = (0u64..).zip(&drawn).map(|(offset, one)| decided(offset, one)).collect();
            let rows = books(&all);
            let of_append = |row: &LedgerRow| {
                let record = all.iter().find(|one| one.record.place.offset == row.source_o >> 16).expect("its first");
                record.record.place.append_ms / 60_000 * 60
            };
            prop_assert!(rows.iter().all(|row| row.minute_s == of_append(row)), "minutes are those of the append");
            let requests = || drawn.iter().flat_map(|one| &one.3);
            let with = |fate: Fate| requests().flat_map(|one| &one.0).filter(|one| **one == fate).count() as i64;
            prop_assert_eq!(rows.iter().map(|row| row.stored).sum::<i64>(), with(Fate::Keep));
            prop_assert_eq!(rows.iter().map(|row| row.duplicate).sum::<i64>(), with(Fate::Drop));
            prop_assert_eq!(rows.iter().map(|row| row.dead_lettered).sum::<i64>(), with(Fate::Conflict));
            let rejected: i64 = requests().map(|one| i64::from(one.1)).sum();
            prop_assert_eq!(rows.iter().map(|row| row.rejected).sum::<i64>(), rejected);
            let mut evidence = Evidence::default();
            evidence.note(true, &reports(&all));
            prop_assert_eq!(evidence.imbalance(&rows, Some(0)), 0);
        }
    }

    #[test]
    fn an_event_that_went_elsewhere_than_the_books_say_is_an_imbalance_of_one() {
        let one = decided(5, &(0, 0, 0, vec![(vec![Fate::Keep, Fate::Conflict], 2)]));
        let rows = books(std::slice::from_ref(&one));
        let mut reports = reports(&[one]);
        let mut evidence = Evidence::default();
        evidence.note(true, &reports);
        assert_eq!(evidence.imbalance(&rows, Some(0)), 0);
        // The kept row was found to be a dead letter after all.
        (reports[0].rows, reports[1].rows) = (0, 2);
        evidence.note(true, &reports);
        assert_eq!(evidence.imbalance(&rows, Some(0)), 1);
        let mut wrong = rows.clone();
        wrong[0].received += 3;
        reports[1].rows = 1;
        reports[0].rows = 1;
        evidence.note(false, &reports);
        assert_eq!(evidence.imbalance(&wrong, Some(0)), 3);
    }
}
