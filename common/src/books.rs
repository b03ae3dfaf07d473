//! The books (R20): what became of the events of one tenant, dataset and minute.
//!
//! `received = stored + duplicate + dead_lettered + rejected + parked` holds within the rows of any
//! whole set of ranges. A range's own row is a function of its records, and goes out with them; what
//! only ClickHouse's answers tell (refused rows, a table set aside) follows as a correction, whose
//! numbers sum to zero against the outcome that the range's row had claimed.

use crate::ids::{LogId, Name, TenantId};
use crate::wire::sink::Range;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The table of the books.
pub const LEDGER: &str = "ledger";
/// The table of dead letters.
pub const DEAD_LETTERS: &str = "dead_letters";
/// Length of the intervals that are counted apart.
pub const MINUTE_MS: u64 = 60_000;

/// What a row of the books stands for. Each kind has its own space of provenance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// A range, as its records and dedup's decisions have it: what is kept counts as stored.
    Range,
    /// Rows that ClickHouse refused: stored → dead-lettered.
    Quarantined,
    /// Rows set aside because their table is broken: stored → parked.
    Parked,
    /// Rows that were set aside and are settled: parked → stored or dead-lettered.
    Unparked,
    /// A dead letter that was stored after all: dead-lettered → stored.
    Retried,
}

impl Entry {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Range,
        Self::Quarantined,
        Self::Parked,
        Self::Unparked,
        Self::Retried,
    ];

    /// The value of the column `entry`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Range => "range",
            Self::Quarantined => "quarantined",
            Self::Parked => "parked",
            Self::Unparked => "unparked",
            Self::Retried => "retried",
        }
    }
}

/// One row of the table `ledger`. Counts are of events and may be negative in corrections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRow {
    pub entry: Entry,
    pub tenant: TenantId,
    pub dataset: Name,
    /// Begin of the minute in which the events were appended, in seconds since 1970.
    pub minute_s: u64,
    /// Provenance: that of the first event that is counted. A record without rows counts as its first.
    pub source_o: u64,
    pub received: i64,
    pub stored: i64,
    pub duplicate: i64,
    pub dead_lettered: i64,
    pub rejected: i64,
    pub parked: i64,
}

impl LedgerRow {
    /// A row without counts. `append_ms` is the append time of its events.
    #[must_use]
    pub fn new(entry: Entry, tenant: TenantId, dataset: Name, append_ms: u64, source_o: u64) -> Self {
        Self {
            entry,
            tenant,
            dataset,
            minute_s: append_ms / MINUTE_MS * (MINUTE_MS / 1_000),
            source_o,
            received: 0,
            stored: 0,
            duplicate: 0,
            dead_lettered: 0,
            rejected: 0,
            parked: 0,
        }
    }

    /// Received minus all outcomes; parked counts as one.
    #[must_use]
    pub fn imbalance(&self) -> i64 {
        self.received - self.stored - self.duplicate - self.dead_lettered - self.rejected - self.parked
    }
}

/// Which sums of the books are asked for: rows of other logs, and of this one's partitions below an offset of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BooksQuery {
    pub log: LogId,
    /// Of this log's partitions that are asked about here; all rows of others count.
    pub settled: Vec<SettledPart>,
    /// First minute, in seconds since 1970.
    pub since_s: u64,
    /// None: all.
    pub tenant: Option<TenantId>,
    /// Most lines; the newest are told.
    pub limit: u32,
    pub timeout: Duration,
}

/// What of a partition's rows counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledPart {
    pub partition: u16,
    /// Those count whose provenance is below: `committed << 16`.
    pub below_o: u64,
    /// Of these, ranges whose rows of the books are set aside: what of them is there counts elsewhere.
    pub without: Vec<Range>,
}

/// The books of one tenant, dataset and minute, summed. Counts are of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BooksLine {
    pub tenant: TenantId,
    pub dataset: Name,
    /// Begin of the minute in which the events were appended, in seconds since 1970.
    pub minute_s: u64,
    pub received: i64,
    pub stored: i64,
    pub duplicate: i64,
    pub dead_lettered: i64,
    pub rejected: i64,
    /// Appended and not settled, or set aside with a broken table.
    pub in_flight: i64,
}

impl BooksLine {
    /// A line without counts.
    #[must_use]
    pub fn new(tenant: TenantId, dataset: Name, minute_s: u64) -> Self {
        Self {
            tenant,
            dataset,
            minute_s,
            received: 0,
            stored: 0,
            duplicate: 0,
            dead_lettered: 0,
            rejected: 0,
            in_flight: 0,
        }
    }

    /// Adds another line's counts.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.stored += other.stored;
        self.duplicate += other.duplicate;
        self.dead_lettered += other.dead_lettered;
        self.rejected += other.rejected;
        self.in_flight += other.in_flight;
    }

    /// Received minus all outcomes: 0 where the books balance.
    #[must_use]
    pub fn imbalance(&self) -> i64 {
        self.received - self.stored - self.duplicate - self.dead_lettered - self.rejected - self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_belongs_to_the_minute_of_its_append() {
        let tenant = TenantId::new("acme").expect("valid");
        let dataset = Name::new("events").expect("valid");
        let row = LedgerRow::new(Entry::Range, tenant, dataset, 1_795_231_859_999, 7);
        assert_eq!(row.minute_s, 1_795_231_800);
        assert_eq!(row.imbalance(), 0);
    }
}
