//! Replay: what of the log is written again beside a live table, as people order it, as the normalizer tells
//! of it, and as the sink-writer is asked for it.

use crate::clock::UnixMs;
use crate::ids::{LogId, Name, Offset, TenantId};
use crate::servers::ServerId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// Which replay: `r` and eight hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReplayId(pub u32);

/// A text that names no replay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no id of a replay: `ingestctl replay list` shows them")]
pub struct BadReplayId(String);

impl fmt::Display for ReplayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{:08x}", self.0)
    }
}

impl FromStr for ReplayId {
    type Err = BadReplayId;

    fn from_str(text: &str) -> Result<Self, BadReplayId> {
        let number = text.strip_prefix('r').filter(|digits| digits.len() == 8);
        let number = number.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let id = number.map(Self).filter(|id| id.to_string() == text);
        id.ok_or_else(|| BadReplayId(text.chars().take(64).collect()))
    }
}

impl TryFrom<String> for ReplayId {
    type Error = BadReplayId;
    fn try_from(text: String) -> Result<Self, BadReplayId> {
        text.parse()
    }
}

impl From<ReplayId> for String {
    fn from(id: ReplayId) -> Self {
        id.to_string()
    }
}

/// Tables that a replay has beside a live one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// What is replayed.
    Shadow,
    /// What the live table held before the shadow's partitions took their places.
    Before,
}

impl Beside {
    fn label(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Before => "before",
        }
    }
}

impl ReplayId {
    /// The name of a table beside `live`: `events_shadow_r00c0ffee`. Of a long name its beginning and a hash of it.
    ///
    /// # Panics
    /// Never: what is cut from a valid name, and what is added, is valid.
    #[must_use]
    pub fn table(self, live: &Name, beside: Beside) -> Name {
        const LONGEST: usize = 63;
        let end = format!("_{}_{self}", beside.label());
        let mut begin = live.as_str().to_owned();
        if begin.len() + end.len() > LONGEST {
            let hash = format!("_{:08x}", xxh3_64(live.as_str().as_bytes()) >> 32);
            begin.truncate(LONGEST - end.len() - hash.len());
            begin.push_str(&hash);
        }
        Name::new(&(begin + &end)).expect("a valid name with more of its characters")
    }

    /// Whether a table is one of this replay's, and no other: what may be dropped.
    #[must_use]
    pub fn owns(self, table: &Name) -> bool {
        [Beside::Shadow, Beside::Before]
            .iter()
            .any(|beside| table.as_str().ends_with(&format!("_{}_{self}", beside.label())))
    }
}

/// One end of what is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    Offset(Offset),
    /// The oldest record that the log has.
    Earliest,
    /// The end of what is committed.
    Latest,
}

/// What is asked to be replayed. Of the conditions, all must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayAsk {
    pub from: End,
    /// Exclusive.
    pub to: End,
    /// Append times: records at or after `since_ms`, and before `until_ms`.
    #[serde(default)]
    pub since_ms: Option<UnixMs>,
    #[serde(default)]
    pub until_ms: Option<UnixMs>,
    #[serde(default)]
    pub partition: Option<u16>,
    #[serde(default)]
    pub tenant: Option<TenantId>,
    #[serde(default)]
    pub dataset: Option<Name>,
}

/// Records of one partition that a replay reads. What was planned and what was read are told in this same
/// shape.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    pub partition: u16,
    /// Offsets of the first and the last record, both touched; none where nothing is.
    pub first: Option<Offset>,
    pub last: Option<Offset>,
    pub records: u64,
    /// Rows of the records, repeats included.
    pub events: u64,
    /// Of the records, as the log holds them.
    pub bytes: u64,
    pub first_append_ms: Option<UnixMs>,
    pub last_append_ms: Option<UnixMs>,
    /// Events by tenant, dataset and live table.
    pub tenants: BTreeMap<TenantId, u64>,
    pub datasets: BTreeMap<Name, u64>,
    pub tables: BTreeMap<Name, u64>,
}

/// How it is known which rows are repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decisions {
    /// By the provenance of the live table's rows: as many are there as the books say.
    Provenance,
    /// Rows are missing from the live table: dedup decides anew, from one window earlier on.
    Anew,
    /// Rows are missing, and the books know of no repeats: all are kept.
    All,
}

/// Records of one partition that are read, repeats and other tenants' included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub partition: u16,
    pub from: Offset,
    /// Exclusive, and committed.
    pub to: Offset,
}

/// What a replay will touch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayPlan {
    pub id: ReplayId,
    pub shadow_tables: Vec<Name>,
    pub partitions: Vec<Touched>,
    /// What is read, partition by partition in this order.
    pub spans: Vec<Span>,
    #[serde(default)]
    pub tenant: Option<TenantId>,
    #[serde(default)]
    pub dataset: Option<Name>,
    /// `None`: nobody can tell any more which rows are repeats, and why is in the notes. It cannot be run.
    pub decisions: Option<Decisions>,
    /// Events a second that are written at most.
    pub events_per_second: u64,
    /// What is outside the log's reach, clamped, or to be known before it is run; each a sentence.
    pub notes: Vec<String>,
}

/// How far a replay is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It reads and writes.
    Running,
    /// It was told to stop, and can be resumed.
    Paused,
    /// It stopped by itself; `reason` says why. It can be resumed once that is mended.
    Failed,
    /// All is in the shadow tables.
    Done,
    /// The live tables' rows are set aside while the shadow's partitions take their places.
    Promoting,
    Promoted,
    Discarded,
}

/// A replay, as the normalizer tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayTold {
    pub id: ReplayId,
    /// Who ordered it, as they said.
    pub who: String,
    pub begun_ms: UnixMs,
    pub changed_ms: UnixMs,
    pub phase: Phase,
    /// What it waits for, or why it stopped.
    #[serde(default)]
    pub reason: Option<String>,
    pub plan: ReplayPlan,
    /// What was read so far. Once it is done: the plan's partitions, exactly.
    pub read: Vec<Touched>,
    /// The next record to be read, by partition.
    pub next: BTreeMap<u16, Offset>,
    /// Rows that are proven to be in shadow tables.
    pub written: u64,
    /// Rows that were left out: repeats, and rows that are dead letters.
    pub left_out: u64,
    /// A comparison is under way.
    pub comparing: bool,
    /// The last comparison.
    #[serde(default)]
    pub diff: Option<Vec<TableDiff>>,
    /// What promoting has done so far, one line a step.
    #[serde(default)]
    pub steps: Vec<String>,
}

/// An order to run a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayOrder {
    /// Of a plan that was asked for before: what a person saw is what is run.
    pub plan: ReplayId,
    /// For the list: `user@host`.
    #[serde(default)]
    pub who: String,
    /// At most, in place of the plan's.
    #[serde(default)]
    pub events_per_second: Option<u64>,
}

/// An order to put the shadow's rows in the live table's place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromoteOrder {
    /// For the list: `user@host`.
    #[serde(default)]
    pub who: String,
    /// Live rows that the shadow does not have are copied into it first, and stay.
    #[serde(default)]
    pub row_wise: bool,
}

/// A live table and its shadow, held against each other by provenance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDiff {
    pub table: String,
    pub shadow: String,
    /// By hour of append and tenant, in this order.
    pub lines: Vec<DiffLine>,
    /// Lines that are not told.
    pub omitted: u64,
    /// Rows that are on one side only or not the same; some of them.
    pub examples: Vec<DiffRow>,
}

/// Rows of one hour and tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffLine {
    pub hour_s: u64,
    pub tenant: String,
    pub live: u64,
    pub shadow: u64,
    pub only_live: u64,
    pub only_shadow: u64,
    /// On both sides with other content.
    pub differing: u64,
    /// More than once on one side.
    pub doubled: u64,
    /// Sums, wrapping, of a hash of each row's columns, in hex: equal where all rows are.
    pub live_sum: String,
    pub shadow_sum: String,
}

impl DiffLine {
    /// Whether both sides have the same rows.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.live == self.shadow
            && self.live_sum == self.shadow_sum
            && self.only_live + self.only_shadow + self.differing + self.doubled == 0
    }
}

/// One row that is not the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffRow {
    /// `only_live`, `only_shadow`, `differing` or `doubled`.
    pub what: String,
    pub tenant: String,
    pub log: LogId,
    pub partition: u16,
    pub source_o: u64,
}

/// What the sink-writer is asked for a replay. All of it happens at one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayCall {
    pub id: ReplayId,
    pub log: LogId,
    /// The log's partition that is asked about, where it is about records.
    pub partition: u16,
    /// Where all of it happens; none: at the server that new ranges go to.
    pub server: Option<ServerId>,
    pub ask: SinkAsk,
    pub timeout: Duration,
}

/// One question or act. Acts may be repeated: the second time they find done what the first one did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SinkAsk {
    /// What books and table say of minutes `[since_s, until_s)` of append, of rows below an offset. No record of these
    /// minutes is below `from`: so much of the table need not be looked at.
    Facts {
        table: Name,
        datasets: Vec<Name>,
        since_s: u64,
        until_s: u64,
        from: Offset,
        below: Offset,
    },
    /// The provenance of the live table's rows of records `[from, to)`: at most 100,000 records and 200,000 rows
    /// fit an answer.
    Kept { table: Name, from: Offset, to: Offset },
    /// The same of dead letters of acknowledged events.
    Letters { from: Offset, to: Offset },
    /// Makes shadow tables like their live ones.
    Prepare { tables: Vec<Name> },
    /// Holds live rows of these records against the shadow's. Without spans, all live rows of the partitions that the
    /// shadow has, whatever their provenance.
    Compare {
        table: Name,
        tenant: Option<TenantId>,
        spans: Vec<Span>,
    },
    /// The shadow's partitions, and whether it covers the live table's rows in them.
    Covers { table: Name },
    /// Copies live rows that the shadow does not have into it, of the partitions that it has.
    Fill { table: Name },
    /// Keeps what a live partition holds beside it.
    Save { table: Name, part: String },
    /// Puts the shadow's partition in the place of the live one, if both have as many rows as when they were compared,
    /// or it has been done already.
    Swap {
        table: Name,
        part: String,
        live: u64,
        shadow: u64,
    },
    /// Drops the shadows of these tables and keeps what was set aside. After it no [`Self::Swap`] that is still on
    /// its way can happen, whenever it arrives: its source is gone. To be asked before rows are let into the live
    /// tables again.
    Fence { tables: Vec<Name> },
    /// Which of these have a shadow still.
    Shadows { tables: Vec<Name> },
    /// Drops the replay's own tables beside these.
    Drop { tables: Vec<Name> },
}

/// What it was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SinkTold {
    Facts(Facts),
    Kept(Vec<KeptRows>),
    Compared(TableDiff),
    Covers(Vec<PartCover>),
    /// Rows that were copied.
    Filled(u64),
    /// Live tables that have a shadow.
    Shadows(Vec<Name>),
    Done,
}

/// Counts of some minutes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Rows of the live table; `None` where it cannot be asked by append time.
    pub live: Option<u64>,
    /// Sums of the books.
    pub stored: i64,
    pub duplicate: i64,
    pub dead_lettered: i64,
    pub parked: i64,
    /// Whether other servers may show the same rows.
    pub shared: bool,
    /// Servers that rows may be on.
    pub servers: u32,
}

/// Rows of one record that are there. Sent as `[offset, last, rows]`: there are 100,000 in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(Offset, u16, Vec<u16>)", into = "(Offset, u16, Vec<u16>)")]
pub struct KeptRows {
    pub offset: Offset,
    /// All from 0 to this one, or those of `rows`.
    pub last: u16,
    /// Ascending; empty where all are there.
    pub rows: Vec<u16>,
}

impl From<(Offset, u16, Vec<u16>)> for KeptRows {
    fn from((offset, last, rows): (Offset, u16, Vec<u16>)) -> Self {
        Self { offset, last, rows }
    }
}

impl From<KeptRows> for (Offset, u16, Vec<u16>) {
    fn from(kept: KeptRows) -> Self {
        (kept.offset, kept.last, kept.rows)
    }
}

impl KeptRows {
    /// Whether a row is there.
    #[must_use]
    pub fn has(&self, row: u16) -> bool {
        if self.rows.is_empty() {
            row <= self.last
        } else {
            self.rows.binary_search(&row).is_ok()
        }
    }
}

/// One partition of a shadow table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartCover {
    pub part: String,
    pub shadow: u64,
    pub live: u64,
    /// Live rows of this partition that the shadow has nowhere.
    pub uncovered: u64,
    /// Rows of the shadow that are more than once in it.
    pub doubled: u64,
    /// Rows of the shadow's partition that the live table has in a partition that the shadow has not.
    pub elsewhere: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_text() {
        let id = ReplayId(0x00c0_ffee);
        assert_eq!(id.to_string(), "r00c0ffee");
        assert_eq!("r00c0ffee".parse(), Ok(id));
        for bad in ["", "r", "c0ffee", "r00C0FFEE", "r00c0ffee0", "r+0c0ffee"] {
            bad.parse::<ReplayId>().expect_err(bad);
        }
    }

    #[test]
    fn tables_beside_a_live_one_have_valid_names_of_their_own() {
        let id = ReplayId(7);
        let name = |text: &str| Name::new(text).expect("valid");
        let shadow = id.table(&name("events"), Beside::Shadow);
        assert_eq!(shadow.as_str(), "events_shadow_r00000007");
        assert!(id.owns(&shadow) && !ReplayId(8).owns(&shadow) && !id.owns(&name("events")));
        let (a, b) = ("a".repeat(63), format!("{}b", "a".repeat(62)));
        let tables = [&a, &b].map(|long| id.table(&name(long), Beside::Before));
        assert_ne!(tables[0], tables[1]);
        assert!(
            tables
                .iter()
                .all(|table| table.as_str().len() == 63 && id.owns(table))
        );
    }

    #[test]
    fn rows_are_there_one_by_one_or_all_of_them() {
        let all = KeptRows {
            offset: 1,
            last: 4,
            rows: Vec::new(),
        };
        let some = KeptRows {
            offset: 1,
            last: 4,
            rows: vec![0, 4],
        };
        assert_eq!([0, 2, 4, 5].map(|row| all.has(row)), [true, true, true, false]);
        assert_eq!([0, 2, 4, 5].map(|row| some.has(row)), [true, false, true, false]);
    }
}
