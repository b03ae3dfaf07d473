//! All progress of a partition: what is committed, and the one range that is declared.
//!
//! A range is declared before any byte of it goes out (R11), settled sub-batch by sub-batch
//! ([`settle`]), and committed when all are proven (R17). [`store`] keeps both facts durable.

pub mod settle;
pub mod store;

use serde::{Deserialize, Serialize};
use sluice_common::ids::{LogId, Offset};
use sluice_common::wire::sink::{Range, SubTask};

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
    /// Sub-batches whose token was poisoned, with the generation that replaces it (R14).
    #[serde(default)]
    pub bumped: Vec<SubTask>,
}

/// What the store holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub log: LogId,
    /// Every record below is settled.
    pub committed: Offset,
    pub intent: Option<Intent>,
}

impl Progress {
    /// The first offset that no declared range has reached.
    #[must_use]
    pub fn end(&self) -> Offset {
        self.intent
            .as_ref()
            .map_or(self.committed, |intent| intent.range.b)
    }
}
