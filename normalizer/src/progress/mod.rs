//! All progress of a partition: what is committed, and the one range that is declared.
//!
//! A range is declared before any byte of it goes out (R11), settled sub-batch by sub-batch
//! ([`settle`]), and committed when all are proven (R17). [`store`] keeps both facts durable. Rows that
//! are refused are found by a [`walk`] (R15), and told in what [`closing`] sends last.

pub mod closing;
#[cfg(test)]
mod model;
pub mod plan;
pub mod settle;
pub mod store;
mod sub;
pub mod walk;

pub use sub::is_data;

use serde::{Deserialize, Serialize};
use sluice_common::clock::UnixMs;
use sluice_common::ids::{LogId, Name, Offset};
use sluice_common::replay::ReplayId;
use sluice_common::servers::ServerId;
use sluice_common::wire::sink::{Piece, Range, SubKey, SubTask};
use std::collections::BTreeSet;

/// Count and sums over the provenance of the rows that a range sends (R11): kept rows and conflicts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    pub rows: u64,
    /// Wrapping sum of `_src_o`.
    pub sum_o: u64,
    /// Wrapping sum of `_src_o` squared.
    pub sum_o2: u64,
}

impl Proof {
    /// Adds one row.
    pub fn add(&mut self, source_o: u64) {
        self.rows += 1;
        self.sum_o = self.sum_o.wrapping_add(source_o);
        self.sum_o2 = self.sum_o2.wrapping_add(source_o.wrapping_mul(source_o));
    }

    /// Of rows with this provenance.
    #[must_use]
    pub fn of(rows: impl IntoIterator<Item = u64>) -> Self {
        let mut proof = Self::default();
        rows.into_iter().for_each(|source_o| proof.add(source_o));
        proof
    }

    /// Adds another proof's rows.
    pub fn merge(&mut self, rows: u64, sum_o: u64, sum_o2: u64) {
        self.rows += rows;
        self.sum_o = self.sum_o.wrapping_add(sum_o);
        self.sum_o2 = self.sum_o2.wrapping_add(sum_o2);
    }
}

/// A declared range. It is never cut again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub range: Range,
    pub proof: Proof,
    /// The ClickHouse that all attempts go to, and are verified on. None: it was declared when there was one
    /// only, which the config names first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerId>,
    #[serde(flatten)]
    pub marks: Marks,
}

/// What is durable of a settling beyond its declaration: a start goes on from here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Sub-batches whose token was poisoned, with the generation that replaces it (R14).
    #[serde(default)]
    pub bumped: Vec<SubTask>,
    /// Sub-batches that were refused for their rows' sake and are walked: never sent whole again (R15).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub split: Vec<SubKey>,
    /// Rows that were refused alone: their one outcome is a dead letter, whatever the table takes later.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dead: Vec<DeadRow>,
    /// Every row has its outcome; what is left is to tell it. Nothing above changes any more but for
    /// generations.
    #[serde(default, skip_serializing_if = "is_false")]
    pub closing: bool,
}

impl Marks {
    /// Places of the dead rows of a sub-batch.
    #[must_use]
    pub fn dead_in(&self, root: &SubKey) -> Vec<u32> {
        let of_root = |one: &&DeadRow| one.table == root.table && one.part == root.part;
        let rows = self.dead.iter().filter(of_root).map(|one| one.row);
        // Rows of the books and letters are never refused one by one.
        rows.filter(|_| root.piece == Piece::Whole).collect()
    }

    /// The sub-batches that must not be sent whole.
    #[must_use]
    pub fn roots(&self) -> BTreeSet<SubKey> {
        let dead = self.dead.iter();
        let of_dead = dead.map(|one| SubKey::whole(one.table.clone(), one.part.clone()));
        self.split.iter().cloned().chain(of_dead).collect()
    }

    /// What matters to what is told last: generations alone.
    #[must_use]
    pub fn telling(&self) -> Self {
        Self {
            bumped: self.bumped.clone(),
            ..Self::default()
        }
    }

    /// The same with the generations of `told`.
    #[must_use]
    pub fn with_bumped(&self, told: Self) -> Self {
        Self {
            bumped: told.bumped,
            ..self.clone()
        }
    }

    /// What concerns one table.
    #[must_use]
    pub fn of(&self, table: &Name) -> Self {
        let mut marks = self.clone();
        marks.bumped.retain(|one| one.sub.table == *table);
        marks.split.retain(|one| one.table == *table);
        marks.dead.retain(|one| one.table == *table);
        marks
    }

    /// Drops what concerns one table.
    pub fn forget(&mut self, table: &Name) {
        self.bumped.retain(|one| one.sub.table != *table);
        self.split.retain(|one| one.table != *table);
        self.dead.retain(|one| one.table != *table);
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A row that was refused alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadRow {
    pub table: Name,
    pub part: String,
    /// Its place among the sub-batch's rows.
    pub row: u32,
    /// Its provenance.
    pub o: u64,
    pub code: u32,
    /// At most [`MAX_DEAD_MESSAGE`](crate::progress::settle::MAX_DEAD_MESSAGE) bytes.
    pub message: String,
}

/// What the store holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub log: LogId,
    /// Every record below is settled.
    pub committed: Offset,
    pub intent: Option<Intent>,
    /// Tells whether keys were hashed with the secret at hand, without telling the secret (R3): until a first
    /// bucket is sealed nothing else on disk does. Absent in files of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_check: Option<u64>,
    /// Append time of the last committed record, where others want to know how old the next one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed_ms: Option<UnixMs>,
    /// The widest dedup window that its decisions were made with, for whoever has to make them again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<u64>,
    /// Datasets of which no more may be set aside: others take nothing for them either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub full: Vec<Name>,
    /// Tables whose rows are set aside, whoever works on the partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
}

/// Tables that a replay puts others in the places of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub by: ReplayId,
    pub tables: Vec<Name>,
    /// The ClickHouse that all of it happens at.
    pub server: ServerId,
}

impl Progress {
    /// That of a log that nothing was read of.
    #[must_use]
    pub fn new(log: LogId, secret_check: Option<u64>) -> Self {
        Self {
            log,
            committed: 0,
            intent: None,
            secret_check,
            committed_ms: None,
            window_ms: None,
            full: Vec::new(),
            held: None,
        }
    }

    /// The first offset that no declared range has reached.
    #[must_use]
    pub fn end(&self) -> Offset {
        self.intent
            .as_ref()
            .map_or(self.committed, |intent| intent.range.b)
    }
}
