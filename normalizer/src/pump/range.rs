//! Building a range: records join until it is full or old enough (R11: once declared it is never cut).

use super::batching::Batching;
use super::books::Books;
use crate::progress::Proof;
use sluice_common::books::LedgerRow;
use sluice_common::clock::UnixMs;
use sluice_common::fates::Fate;
use sluice_common::ids::{Name, Offset, source_o};
use sluice_common::limits::{
    MAX_BLOCK_ROWS, MAX_RANGE_BYTES, MAX_RANGE_ENTRIES, MAX_RANGE_FRAME_BYTES, MAX_RANGE_LETTERS,
    ROWLESS_RANGE_AGE,
};
use sluice_common::record::{Holds, Record};
use sluice_common::wire::sink::{Range, RangeRecord};
use std::collections::BTreeMap;

/// How old a range grows for the sake of a table with many parts, where its datasets do not say longer.
const MAX_PACED_AGE_MS: u64 = 10_000;
/// How much older than configured it grows at most while other partitions' inserts go first: so many times what is
/// configured, and so many milliseconds.
const MAX_TURNS: u64 = 3;
const MAX_TURN_MS: u64 = 1_500;

/// Records `[a, b)` with their fates, not yet declared.
#[derive(Debug)]
pub struct OpenRange {
    range: Range,
    records: Vec<RangeRecord>,
    proof: Proof,
    books: Books,
    column_bytes: usize,
    frame_bytes: usize,
    letters: usize,
    tables: BTreeMap<Name, Load>,
    /// When the range must close, by the most impatient dataset in it.
    ripe_at: UnixMs,
    /// That dataset's patience: a wait longer than it shows that the clock was stepped back.
    max_age: u64,
    /// Until then it grows on, for the sake of a table with many parts.
    hold_until: UnixMs,
    /// By how much it may grow larger and older than configured.
    pace: f64,
    /// When it goes out, once it is ripe; whoever gives turns says it.
    pub turn: Option<UnixMs>,
    full: bool,
}

/// How long a range may grow on, in ms.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From now on: not at all where it is full, or where the clock was stepped back.
    pub left: u64,
    /// The age at which it was ripe, or what counts of it.
    pub age: u64,
    /// How old it may grow.
    pub oldest: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Load {
    rows: u64,
    bytes: u64,
}

/// A range that grows no more.
#[derive(Debug)]
pub struct ClosedRange {
    pub range: Range,
    pub records: Vec<RangeRecord>,
    pub proof: Proof,
    /// The range's rows of the books.
    pub ledger: Vec<LedgerRow>,
    /// Of the rows, those that are copies of rejected ones.
    pub copies: u64,
    /// Whether it was closed because it could not grow: what is behind it had to wait.
    pub full: bool,
}

impl OpenRange {
    /// An empty range that begins at `a`.
    #[must_use]
    pub fn at(a: Offset) -> Self {
        Self {
            range: Range { a, b: a },
            records: Vec::new(),
            proof: Proof::default(),
            books: Books::default(),
            column_bytes: 0,
            frame_bytes: 0,
            letters: 0,
            tables: BTreeMap::new(),
            ripe_at: UnixMs::MAX,
            max_age: u64::MAX,
            hold_until: 0,
            pace: 1.0,
            turn: None,
            full: false,
        }
    }

    /// The offset that the next record must have.
    #[must_use]
    pub fn end(&self) -> Offset {
        self.range.b
    }

    /// Count and sums of the rows that it sends.
    #[must_use]
    pub fn proof(&self) -> Proof {
        self.proof
    }

    /// Whether no record has joined.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether another record may join. One record always may.
    #[must_use]
    pub fn has_room_for(&self, record: &Record) -> bool {
        let rows = self.proof.rows + u64::from(record.rows());
        let bytes = self.column_bytes + record.column_bytes();
        let frames = self.frame_bytes + record.frame().len();
        let fits =
            rows <= MAX_BLOCK_ROWS as u64 && bytes <= MAX_RANGE_BYTES && frames <= MAX_RANGE_FRAME_BYTES;
        self.is_empty() || (!self.full && fits)
    }

    /// Closes it to further records: the next one does not fit.
    pub fn fill_up(&mut self) {
        self.full = true;
    }

    /// Lets a decided record join. Its age counts from its append; where the clock was stepped back since,
    /// from `now`, because append times never decrease.
    ///
    /// # Panics
    /// Where the record is not the next one: the reader promised the log's order.
    pub fn push(&mut self, one: RangeRecord, (batching, pace): (&Batching, f64), now: UnixMs) {
        let record = &one.record;
        assert_eq!(record.place.offset, self.range.b, "records come in log order");
        self.range.b += 1;
        self.column_bytes += record.column_bytes();
        self.frame_bytes += record.frame().len();
        self.letters += one.fates.conflicts().len();
        if record.meta.holds == Holds::RejectedCopies {
            self.letters += record.rows() as usize;
        }
        prove(&mut self.proof, &one);
        self.books.add(&one);
        let policy = batching.of(&record.meta.dataset);
        let load = self.tables.entry(record.meta.table.clone()).or_default();
        load.rows += u64::from(one.fates.kept());
        load.bytes += record.column_bytes() as u64;
        self.pace = self.pace.max(pace);
        let longer = |bound: u64| scaled(bound, self.pace);
        self.full |= load.rows >= longer(policy.max_rows.0) || load.bytes >= longer(policy.max_bytes.0);
        let begun = record.place.append_ms.min(now);
        let max_age = if sends(&one) {
            policy.max_age.ms()
        } else {
            policy.max_age.ms().max(ROWLESS_RANGE_AGE.as_secs() * 1_000)
        };
        if pace > 1.0 && sends(&one) {
            // From the first record of such a table on.
            let age = scaled(max_age, pace).min(MAX_PACED_AGE_MS.max(max_age));
            self.hold_until = match self.hold_until {
                0 => begun + age,
                held => held.min(begun + age),
            };
        }
        self.ripe_at = self.ripe_at.min(begun + max_age);
        self.max_age = self.max_age.min(max_age);
        self.records.push(one);
    }

    /// Whether it must not grow any more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full
            || self.column_bytes >= MAX_RANGE_BYTES
            || self.frame_bytes >= MAX_RANGE_FRAME_BYTES
            || self.letters >= MAX_RANGE_LETTERS
            || self.books.len() >= MAX_RANGE_ENTRIES
    }

    /// Milliseconds from `now` until it has to go out; 0 where it is full or old enough; `None` where
    /// it is empty.
    #[must_use]
    pub fn ripe_in(&self, now: UnixMs) -> Option<u64> {
        (!self.is_empty()).then(|| {
            let wait = self.ripe_at.max(self.hold_until).saturating_sub(now);
            let longest = match self.hold_until {
                0 => self.max_age,
                _ => scaled(self.max_age, self.pace).max(MAX_PACED_AGE_MS),
            };
            if self.is_full() || wait > longest { 0 } else { wait }
        })
    }

    /// How long it may grow on once it is ripe, for the sake of larger inserts.
    #[must_use]
    pub fn patience(&self, now: UnixMs) -> Patience {
        let more = self.max_age.saturating_mul(MAX_TURNS).min(MAX_TURN_MS);
        let end = self.ripe_at.max(self.hold_until).saturating_add(more);
        let left = match end.saturating_sub(now) {
            wait if self.is_full() || wait > more => 0,
            wait => wait,
        };
        let age = self.max_age.min(MAX_TURN_MS);
        Patience {
            left,
            age,
            oldest: age + more,
        }
    }

    /// Closes it.
    #[must_use]
    pub fn close(self) -> ClosedRange {
        ClosedRange {
            full: self.is_full(),
            range: self.range,
            records: self.records,
            proof: self.proof,
            copies: self.books.copies(),
            ledger: self.books.close(),
        }
    }
}

/// A bound at a slower pace.
pub(super) fn scaled(bound: u64, pace: f64) -> u64 {
    if pace <= 1.0 {
        return bound;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a bound of the config, a few times; `as` saturates"
    )]
    let scaled = (bound as f64 * pace) as u64;
    scaled
}

/// Whether any row of the record goes out; a record of repeats alone stays here.
#[must_use]
pub fn sends(one: &RangeRecord) -> bool {
    one.fates.kept() > 0 || !one.fates.conflicts().is_empty()
}

fn prove(proof: &mut Proof, one: &RangeRecord) {
    let (record, fates) = (&one.record, &one.fates);
    let repeats = !fates.dropped().is_empty();
    for row in 0..record.rows() {
        let dropped = repeats && u16::try_from(row).is_ok_and(|row| fates.of(row) == Fate::Drop);
        if !dropped {
            proof.add(source_o(record.place.offset, row));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::append::kept;

    const BEGUN: UnixMs = 1_700_000_000_000;

    #[test]
    fn a_ripe_range_may_grow_on_for_a_while_and_a_full_one_may_not() {
        let mut range = OpenRange::at(0);
        range.push(kept((0, BEGUN), 60_000), (&Batching::default(), 1.0), BEGUN);
        let patience = |range: &OpenRange, age: u64| {
            let patience = range.patience(BEGUN + age);
            assert_eq!((patience.age, patience.oldest), (500, 2_000));
            patience.left
        };
        for (age, wait) in [(500, 1_500), (1_750, 250), (2_000, 0), (3_000, 0)] {
            assert_eq!(patience(&range, age), wait, "{age} ms old");
        }
        assert_eq!(range.patience(0).left, 0, "the clock was stepped back");
        range.push(kept((1, BEGUN), 60_000), (&Batching::default(), 1.0), BEGUN);
        assert_eq!(patience(&range, 500), 0, "it is full");
    }

    #[test]
    fn a_range_of_a_table_with_many_parts_grows_larger_and_older_and_never_too_old() {
        let batching = Batching::default();
        let begin = |pace| {
            let mut range = OpenRange::at(0);
            range.push(kept((0, BEGUN), 60_000), (&batching, pace), BEGUN);
            range
        };
        assert_eq!(begin(1.0).ripe_in(BEGUN), Some(500));
        assert_eq!(begin(4.0).ripe_in(BEGUN), Some(2_000));
        assert_eq!(begin(1_000.0).ripe_in(BEGUN), Some(MAX_PACED_AGE_MS));
        for (pace, full) in [(1.0, true), (4.0, false)] {
            let mut range = begin(pace);
            range.push(kept((1, BEGUN), 60_000), (&batching, pace), BEGUN);
            assert_eq!(range.is_full(), full, "120,000 rows at pace {pace}");
        }
    }
}
