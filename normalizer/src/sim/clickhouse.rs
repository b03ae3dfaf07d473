//! A model of ClickHouse: tables, tokens, and all that makes an insert's answer worth nothing.

use sluice_common::books::{Entry, LedgerRow};
use sluice_common::ids::Name;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One row of an insert.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// An event: its provenance, and which one it is.
    Event {
        o: u64,
        key: u128,
    },
    /// A dead letter of a row; whether ClickHouse had refused it, else dedup.
    Letter {
        o: u64,
        refused: bool,
    },
    Books(LedgerRow),
}

/// Where a row lies among those of its table.
pub type Slot = (u64, Option<Entry>, bool);

impl Row {
    pub fn slot(&self) -> Slot {
        match self {
            Self::Event { o, .. } => (*o, None, false),
            Self::Letter { o, refused } => (*o, None, *refused),
            Self::Books(row) => (row.source_o, Some(row.entry), false),
        }
    }
}

/// One insert on its way.
#[derive(Debug, Clone)]
pub struct Insert {
    pub table: Name,
    pub token: String,
    pub query_id: String,
    pub rows: Vec<Row>,
}

/// What becomes of an insert that arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Clean,
    Error(u32),
}

/// One server.
#[derive(Debug, Default)]
pub struct Server {
    pub down_until: Duration,
    pub changed: Duration,
    stored: BTreeMap<Name, BTreeMap<Slot, Vec<Row>>>,
    tokens: BTreeSet<String>,
    /// Recorded without their rows.
    poisoned: BTreeSet<String>,
    /// When they are carried out, and whether the server works at them already.
    held: Vec<(Duration, Insert, bool)>,
}

impl Server {
    pub fn is_up(&self, now: Duration) -> bool {
        now >= self.down_until
    }

    /// Down for a time; what is on its way arrives all the same once it is up.
    pub fn stop(&mut self, now: Duration, until: Duration) {
        (self.changed, self.down_until) = (now, until);
        // What it was at work on is gone with it.
        self.held.retain(|(_, _, works)| !works);
    }

    /// Carries out what was held until now.
    pub fn catch_up(&mut self, now: Duration, bad: &BTreeSet<u128>) {
        if !self.is_up(now) {
            return;
        }
        let held = std::mem::take(&mut self.held);
        let (mut due, later): (Vec<_>, Vec<_>) = held.into_iter().partition(|one| one.0 <= now);
        self.held = later;
        due.sort_by_key(|one| one.0);
        for (_, insert, _) in due {
            self.insert(&insert, bad);
        }
    }

    /// It arrives at a later time.
    pub fn hold(&mut self, until: Duration, insert: Insert, works: bool) {
        self.held.push((until, insert, works));
    }

    /// Whether an attempt under the same id is under way.
    pub fn runs(&self, query_id: &str) -> bool {
        self.held
            .iter()
            .any(|(_, insert, works)| *works && insert.query_id == query_id)
    }

    /// Stores a block, or refuses it; a token that is known stores nothing and is answered clean.
    pub fn insert(&mut self, insert: &Insert, bad: &BTreeSet<u128>) -> Answer {
        let is_bad = |row: &Row| matches!(row, Row::Event { key, .. } if bad.contains(key));
        if insert.rows.iter().any(is_bad) {
            return Answer::Error(469);
        }
        if self.tokens.insert(insert.token.clone()) {
            let table = self.stored.entry(insert.table.clone()).or_default();
            for row in &insert.rows {
                table.entry(row.slot()).or_default().push(row.clone());
            }
        }
        Answer::Clean
    }

    /// A crash between the token's record and the rows; whether it did any harm.
    pub fn poison(&mut self, token: &str) -> bool {
        let new = self.tokens.insert(token.to_owned());
        if new {
            self.poisoned.insert(token.to_owned());
        }
        new
    }

    pub fn is_poisoned(&self, token: &str) -> bool {
        self.poisoned.contains(token)
    }

    /// The rows that are there of these places, each by its place.
    pub fn count<'a>(
        &'a self,
        table: &Name,
        slots: impl Iterator<Item = &'a Slot>,
    ) -> impl Iterator<Item = &'a Slot> {
        let stored = self.stored.get(table);
        slots.flat_map(move |slot| {
            let rows = stored.and_then(|stored| stored.get(slot));
            std::iter::repeat_n(slot, rows.map_or(0, Vec::len))
        })
    }

    pub fn highest(&self, table: &Name) -> Option<u64> {
        let (slot, _) = self.stored.get(table)?.last_key_value()?;
        Some(slot.0)
    }

    pub fn rows(&self) -> impl Iterator<Item = (&Name, &Row)> {
        let tables = self.stored.iter();
        tables.flat_map(|(table, slots)| slots.values().flatten().map(move |row| (table, row)))
    }

    /// When the last of what is held arrives.
    pub fn last_held(&self) -> Duration {
        self.held.iter().map(|(at, ..)| *at).max().unwrap_or_default()
    }
}
