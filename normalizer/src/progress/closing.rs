//! What a range sends, and what it tells last: dead letters of refused rows, and corrections of its books.
//!
//! A range's own row of the books claims that all it keeps is stored. Once each row has its outcome, the
//! rest is told: every byte is a function of the records and of the durable [`Marks`], so that a crash
//! repeats it under the same tokens.

use super::{DeadRow, Marks, Proof, is_data};
use sluice_common::books::{BooksLine, DEAD_LETTERS, Entry, LEDGER, LedgerRow, MINUTE_MS};
use sluice_common::classify::letter_code;
use sluice_common::fates::{Fate, Fates};
use sluice_common::ids::{Name, TenantId, source_o};
use sluice_common::record::{Holds, Record};
use sluice_common::wire::sink::{RangeRecord, RefusedRows};
use std::collections::{BTreeMap, BTreeSet};

/// The content of calls.
#[derive(Debug, Clone, Default)]
pub struct Work {
    pub records: Vec<RangeRecord>,
    pub ledger: Vec<LedgerRow>,
    pub quarantined: Vec<RefusedRows>,
    /// Of rows and letters.
    pub proof: Proof,
    /// Of rows of the books.
    pub books: Proof,
}

impl Work {
    /// Whether nothing is to be sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.ledger.is_empty() && self.quarantined.is_empty()
    }

    /// The same without what goes to tables that were set aside; told last, it goes to our own tables only.
    #[must_use]
    pub fn without(&self, aside: &Aside) -> Self {
        let is_aside = |table: &str| aside.iter().any(|one| one.as_str() == table);
        let mut work = self.clone();
        if is_aside(LEDGER) {
            (work.ledger, work.books) = (Vec::new(), Proof::default());
        }
        if is_aside(DEAD_LETTERS) {
            (work.records, work.quarantined) = (Vec::new(), Vec::new());
            work.proof = Proof::default();
        }
        work
    }

    /// Whether it tells of refused rows and tables set aside, and is not the rows themselves.
    #[must_use]
    pub fn is_told(&self) -> bool {
        let corrects = |row: &LedgerRow| row.entry != Entry::Range;
        !self.quarantined.is_empty() || self.ledger.iter().any(corrects)
    }
}

/// Tables that were set aside.
pub type Aside = BTreeSet<Name>;

/// The rows of a range: what is kept, but of tables that were set aside, and the conflicts, unless letters
/// were.
#[must_use]
pub fn rows(records: &[RangeRecord], aside: &Aside) -> Work {
    let mut work = Work::default();
    let letters_aside = aside.iter().any(|table| table.as_str() == DEAD_LETTERS);
    for one in records {
        let mut fates = one.fates.clone();
        if aside.contains(&one.record.meta.table) {
            fates = fates.without_kept();
        }
        if letters_aside {
            fates = fates.without_conflicts();
        }
        if fates.kept() == 0 && fates.conflicts().is_empty() {
            continue;
        }
        let record = one.record.clone();
        sources(&record, &fates, |fate| fate != Fate::Drop).for_each(|o| work.proof.add(o));
        work.records.push(RangeRecord { record, fates });
    }
    work
}

/// All that a range writes to one of our own tables, told what it tells last: what is set aside where that
/// table is in trouble.
#[must_use]
pub fn of_own(table: &str, records: &[RangeRecord], ledger: &[LedgerRow], told: &Work) -> Work {
    if table == LEDGER {
        let ledger: Vec<LedgerRow> = ledger.iter().chain(&told.ledger).cloned().collect();
        return Work {
            books: Proof::of(ledger.iter().map(|row| row.source_o)),
            ledger,
            ..Work::default()
        };
    }
    let refused: BTreeSet<u64> = told.quarantined.iter().flat_map(|one| one.rows.clone()).collect();
    let with_refused: BTreeSet<u64> = refused.iter().map(|o| o >> 16).collect();
    let mut work = Work {
        quarantined: told.quarantined.clone(),
        proof: Proof::of(refused.iter().copied()),
        ..Work::default()
    };
    for one in records {
        let fates = match one.record.meta.holds {
            Holds::RejectedCopies => one.fates.clone(),
            Holds::Events => one.fates.without_kept(),
        };
        let letters = fates.kept() > 0 || !fates.conflicts().is_empty();
        if letters || with_refused.contains(&one.record.place.offset) {
            let record = one.record.clone();
            sources(&record, &fates, |fate| fate != Fate::Drop).for_each(|o| work.proof.add(o));
            work.records.push(RangeRecord { record, fates });
        }
    }
    work
}

/// What the books say of a range while its rows of them, or its letters, are set aside: in flight.
#[must_use]
pub fn in_flight(table: &str, work: &Work) -> Vec<BooksLine> {
    let mut lines: BTreeMap<(TenantId, Name, u64), BooksLine> = BTreeMap::new();
    let mut of = |tenant: &TenantId, dataset: &Name, minute_s: u64, add: &dyn Fn(&mut BooksLine)| {
        let fresh = BooksLine::new(tenant.clone(), dataset.clone(), minute_s);
        let key = (tenant.clone(), dataset.clone(), minute_s);
        add(lines.entry(key).or_insert(fresh));
    };
    if table == LEDGER {
        for row in work.ledger.iter().filter(|row| row.entry == Entry::Range) {
            of(&row.tenant, &row.dataset, row.minute_s, &|line| {
                line.received += row.received;
                line.rejected += row.rejected;
                line.in_flight += row.received - row.rejected;
            });
        }
        return lines.into_values().collect();
    }
    for one in work
        .records
        .iter()
        .filter(|one| one.record.meta.holds == Holds::Events)
    {
        let (meta, offset) = (&one.record.meta, one.record.place.offset);
        let refused = work.quarantined.iter().flat_map(|one| &one.rows);
        let refused = refused.filter(|o| **o >> 16 == offset).count();
        let letters = i64::try_from(one.fates.conflicts().len() + refused).unwrap_or(i64::MAX);
        let minute_s = one.record.place.append_ms / MINUTE_MS * (MINUTE_MS / 1_000);
        of(&meta.tenant, &meta.dataset, minute_s, &|line| {
            line.dead_lettered -= letters;
            line.in_flight += letters;
        });
    }
    lines.into_values().collect()
}

/// One table's kept rows of a range: what is set aside.
#[must_use]
pub fn of_table(records: &[RangeRecord], table: &Name) -> Vec<RangeRecord> {
    let of_table = records.iter().filter(|one| one.record.meta.table == *table);
    let kept = of_table.filter(|one| one.fates.kept() > 0);
    let without = |one: &RangeRecord| RangeRecord {
        record: one.record.clone(),
        fates: one.fates.without_conflicts(),
    };
    kept.map(without).collect()
}

/// What a range tells last. Empty where every row is stored.
#[must_use]
pub fn of_range(records: &[RangeRecord], marks: &Marks, aside: &Aside) -> Work {
    let dead = marks.dead.iter().filter(|one| !aside.contains(&one.table));
    let dead: Vec<&DeadRow> = dead.collect();
    let mut books = Books::default();
    for (record, o) in with_records(records, &dead) {
        let row = books.row(Entry::Quarantined, record, o);
        row.stored -= 1;
        row.dead_lettered += 1;
    }
    let is_aside = |table: &Name| is_data(table) && aside.contains(table);
    let set_aside = records.iter().filter(|one| is_aside(&one.record.meta.table));
    for one in set_aside {
        for o in sources(&one.record, &one.fates, |fate| fate == Fate::Keep) {
            let row = books.row(Entry::Parked, &one.record, o);
            row.stored -= 1;
            row.parked += 1;
        }
    }
    telling(records, &dead, books)
}

/// What a table that was set aside tells once it is settled; `records` are [`of_table`].
#[must_use]
pub fn of_unit(records: &[RangeRecord], marks: &Marks) -> Work {
    let dead: Vec<&DeadRow> = marks.dead.iter().collect();
    let mut books = Books::default();
    for one in records {
        for o in sources(&one.record, &one.fates, |fate| fate == Fate::Keep) {
            let row = books.row(Entry::Unparked, &one.record, o);
            row.parked -= 1;
            row.stored += 1;
        }
    }
    for (record, o) in with_records(records, &dead) {
        let row = books.row(Entry::Unparked, record, o);
        row.stored -= 1;
        row.dead_lettered += 1;
    }
    telling(records, &dead, books)
}

fn telling(records: &[RangeRecord], dead: &[&DeadRow], books: Books) -> Work {
    let offsets: BTreeSet<u64> = dead.iter().map(|one| one.o >> 16).collect();
    let with_dead = records
        .iter()
        .filter(|one| offsets.contains(&one.record.place.offset));
    let nothing_else = |one: &RangeRecord| RangeRecord {
        record: one.record.clone(),
        fates: one.fates.without_kept().without_conflicts(),
    };
    let ledger: Vec<LedgerRow> = books.rows.into_values().collect();
    Work {
        records: with_dead.map(nothing_else).collect(),
        quarantined: refused(dead),
        proof: Proof::of(dead.iter().map(|one| one.o)),
        books: Proof::of(ledger.iter().map(|row| row.source_o)),
        ledger,
    }
}

fn refused(dead: &[&DeadRow]) -> Vec<RefusedRows> {
    let mut groups: BTreeMap<(u32, &str), Vec<u64>> = BTreeMap::new();
    for one in dead {
        groups.entry((one.code, &one.message)).or_default().push(one.o);
    }
    let group = |((code, message), mut rows): ((u32, &str), Vec<u64>)| {
        rows.sort_unstable();
        RefusedRows {
            code: letter_code(code),
            message: message.to_owned(),
            rows,
        }
    };
    groups.into_iter().map(group).collect()
}

/// Each dead row with its record.
fn with_records<'a>(
    records: &'a [RangeRecord],
    dead: &'a [&DeadRow],
) -> impl Iterator<Item = (&'a Record, u64)> {
    let by_offset: BTreeMap<u64, &Record> = records
        .iter()
        .map(|one| (one.record.place.offset, &one.record))
        .collect();
    dead.iter()
        .filter_map(move |one| Some((*by_offset.get(&(one.o >> 16))?, one.o)))
}

/// The provenance of a record's rows of some fates.
fn sources(record: &Record, fates: &Fates, wanted: impl Fn(Fate) -> bool) -> impl Iterator<Item = u64> {
    let (offset, all) = (
        record.place.offset,
        fates.dropped().is_empty() && fates.conflicts().is_empty(),
    );
    let is_wanted = move |row: u32| {
        let fate = if all {
            Fate::Keep
        } else {
            u16::try_from(row).map_or(Fate::Drop, |row| fates.of(row))
        };
        wanted(fate)
    };
    (0..record.rows())
        .filter(move |row| is_wanted(*row))
        .map(move |row| source_o(offset, row))
}

/// Which events are counted together.
type Group = (Entry, TenantId, Name, Name, u64);

#[derive(Default)]
struct Books {
    rows: BTreeMap<Group, LedgerRow>,
}

impl Books {
    /// The row that counts an event of this record.
    fn row(&mut self, entry: Entry, record: &Record, o: u64) -> &mut LedgerRow {
        let (meta, append_ms) = (&record.meta, record.place.append_ms);
        let (tenant, dataset, table) = (meta.tenant.clone(), meta.dataset.clone(), meta.table.clone());
        let group = (
            entry,
            tenant.clone(),
            dataset.clone(),
            table,
            append_ms / MINUTE_MS,
        );
        let row = self
            .rows
            .entry(group)
            .or_insert_with(|| LedgerRow::new(entry, tenant, dataset, append_ms, o));
        row.source_o = row.source_o.min(o);
        row
    }
}
