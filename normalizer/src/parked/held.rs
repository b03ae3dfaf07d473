//! What is known of a shelf's units, and what they weigh.

use super::file::UnitId;
use super::shelf::{Line, Unit};
use crate::progress::plan::Why;
use sluice_common::ids::{Name, Offset};
use sluice_common::limits::WATERMARK_REOPEN_PERCENT;
use std::collections::{BTreeMap, BTreeSet};

/// What a unit weighs at least towards its dataset's cap: its head is in memory, and its file takes whole blocks.
const LEAST_WEIGHT: u64 = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) units: BTreeMap<UnitId, Unit>,
    /// Of the units, by table and by dataset.
    pub(super) of_tables: BTreeMap<Name, usize>,
    pub(super) of_datasets: BTreeMap<Name, Held>,
    /// Tables that take nothing, by server: what comes for them is set aside at once.
    pub(super) broken: BTreeSet<Line>,
    /// Datasets over their cap.
    pub(super) full: BTreeSet<Name>,
    /// Units of ranges below are committed, and may be settled.
    pub(super) committed: Offset,
    /// Tables whose partitions are being replaced: nothing is written to them meanwhile.
    pub(super) held: BTreeSet<Name>,
    /// Lines of which a unit is being worked on.
    pub(super) driven: BTreeSet<Line>,
}

/// What a dataset has on the shelf.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Held {
    pub(super) bytes: u64,
    /// Towards the cap.
    pub(super) weight: u64,
    pub(super) units: usize,
}

impl State {
    /// Committed units that may settle by being sent, or were ordered to.
    pub(super) fn drivable(&self) -> impl Iterator<Item = (&UnitId, &Unit)> {
        let committed = self.committed;
        self.units.iter().filter(move |(id, unit)| {
            id.b <= committed && (unit.heals || unit.mend) && !self.held.contains(&id.table)
        })
    }

    /// A unit whose server is lost says nothing of its table.
    pub(super) fn add(&mut self, id: UnitId, unit: Unit) {
        if unit.heals && unit.why != Why::ServerLost.label() {
            self.broken.insert(unit.line(&id));
        }
        self.take_out(&id);
        *self.of_tables.entry(id.table.clone()).or_default() += 1;
        for (dataset, bytes) in &unit.bytes {
            let held = self.of_datasets.entry(dataset.clone()).or_default();
            held.bytes += bytes;
            held.weight += bytes.max(&LEAST_WEIGHT);
            held.units += 1;
        }
        self.units.insert(id, unit);
    }

    pub(super) fn take_out(&mut self, id: &UnitId) -> Option<Unit> {
        let unit = self.units.remove(id)?;
        if let Some(count) = self.of_tables.get_mut(&id.table) {
            *count -= 1;
        }
        self.of_tables.retain(|_, count| *count > 0);
        for (dataset, bytes) in &unit.bytes {
            if let Some(held) = self.of_datasets.get_mut(dataset) {
                held.bytes -= bytes;
                held.weight -= bytes.max(&LEAST_WEIGHT);
                held.units -= 1;
            }
        }
        self.of_datasets.retain(|_, held| held.units > 0);
        Some(unit)
    }

    /// A table is broken only while units of it may heal: one that waits for a person says nothing of
    /// the table.
    pub(super) fn unbreak(&mut self, id: &UnitId) {
        let Some(line) = self.units.get(id).map(|unit| unit.line(id)) else {
            return;
        };
        let heals = |(id, unit): (&UnitId, &Unit)| unit.heals && unit.line(id) == line;
        if !self.units.iter().any(heals) {
            self.broken.remove(&line);
        }
    }

    /// Which datasets have as much as they may; one that was full is until it is well below.
    pub(super) fn weigh(&mut self, max_bytes: u64) {
        let reopen = max_bytes / 100 * WATERMARK_REOPEN_PERCENT;
        let is_full = |(name, held): &(&Name, &Held)| {
            let limit = if self.full.contains(*name) {
                reopen
            } else {
                max_bytes
            };
            held.weight >= limit
        };
        let full = self.of_datasets.iter().filter(is_full);
        self.full = full.map(|(name, _)| name.clone()).collect();
    }
}
