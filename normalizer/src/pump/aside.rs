//! A range that parts with a table, or with its server: what cannot be settled now is made durable
//! elsewhere, so that the partition goes on (R16).

use super::drive::{DriveError, Driver, Stage, Way};
use crate::parked::file::FileError;
use crate::parked::shelf::Share;
use crate::progress::closing::{self, Aside, Work};
use crate::progress::plan::{Trouble, Why};
use crate::progress::settle::Settling;
use crate::progress::store::StoreError;
use crate::progress::{Intent, Marks, Progress, is_data};
use crate::runtime::block_in_place;
use sluice_common::books::{DEAD_LETTERS, LEDGER};
use sluice_common::ids::Name;
use sluice_common::limits::RETRY_BACKOFF_MAX;
use sluice_common::metrics::Counter;
use sluice_common::servers::ServerId;
use std::collections::BTreeMap;
use std::time::Duration;

impl Driver {
    /// A range of which nothing was sent goes to another server, if its own does not answer; one that may
    /// have been sent stays bound to it, and is set aside for it once it is lost.
    pub(super) fn part_from_server(
        &self,
        way: &mut Way<'_>,
        stage: &Stage<'_>,
        settling: &mut Settling,
    ) -> Result<bool, DriveError> {
        let server = way.occasion.server.clone();
        let Some(other) = self.servers.other(&server) else {
            return Ok(false);
        };
        if way.declared && settling.untouched() {
            tracing::warn!(from = %server, to = %other, "nothing of the range was sent: it goes to another ClickHouse");
            block_in_place(|| self.bind(&other))?;
            way.occasion.server = other;
            return Ok(false);
        }
        let lost = self.servers.lost_for(&server);
        if lost.is_none_or(|lost| lost < self.park_after) {
            return Ok(false);
        }
        let all = || stage.tables(way);
        let tables: Aside = settling.unsettled().unwrap_or_else(all);
        let trouble = Trouble {
            since: Duration::ZERO,
            why: Why::ServerLost,
            reason: format!("the ClickHouse {server} does not answer, and {other} takes what comes"),
        };
        let tables = tables.into_iter().map(|table| (table, trouble.clone())).collect();
        self.park(way, stage, &tables, settling)?;
        Ok(true)
    }

    /// Takes tables out of a settling: their rows are durable elsewhere, or will be before the commit.
    pub(super) fn park(
        &self,
        way: &mut Way<'_>,
        stage: &Stage<'_>,
        tables: &BTreeMap<Name, Trouble>,
        settling: &mut Settling,
    ) -> Result<(), DriveError> {
        for (table, trouble) in tables {
            if is_data(table) {
                let kept = settling.marks().clone();
                if let Err(error) = block_in_place(|| self.set_aside(way, &kept, table, trouble)) {
                    settling.not_set_aside(only_io(error)?.to_string());
                    continue;
                }
            } else {
                self.say_aside(table, trouble);
                way.own.insert(table.clone(), trouble.clone());
            }
            way.aside.insert(table.clone());
            way.evidence.forget(table);
            let work = stage.work(way);
            settling.set_aside(std::iter::once(table), (work.proof, work.books));
        }
        Ok(())
    }

    /// Our own tables of which an earlier process has set this range's share aside: it is written anew,
    /// because what the range tells may have grown since.
    pub(super) fn own_found(&self, way: &mut Way<'_>) {
        let own = way.aside.iter().filter(|table| !is_data(table)).cloned();
        let trouble = Trouble {
            since: Duration::ZERO,
            why: Why::Unsettled,
            reason: "it was set aside before the stop".into(),
        };
        way.own.extend(own.map(|table| (table, trouble.clone())));
    }

    /// Makes durable what the range writes to our own tables, as far as they are in trouble. Tried until
    /// there is room: nothing of it is anywhere else.
    pub(super) async fn set_aside_own(
        &self,
        way: &mut Way<'_>,
        marks: &Marks,
        told: &Work,
    ) -> Result<(), DriveError> {
        for (table, trouble) in std::mem::take(&mut way.own) {
            let work = closing::of_own(table.as_str(), &way.closed.records, &way.closed.ledger, told);
            if work.is_empty() {
                way.aside.remove(&table);
                continue;
            }
            let share = Share {
                range: way.closed.range,
                server: way.occasion.server.clone(),
                table: table.clone(),
                marks: marks.of(&table),
                since_ms: self.clock.now_ms(),
            };
            while let Err(error) = block_in_place(|| self.shelf.set_aside_own(&share, &trouble, &work)) {
                let reason = only_io(error)?.to_string();
                self.wait(way, RETRY_BACKOFF_MAX, &reason, true).await;
            }
        }
        Ok(())
    }

    /// What comes for tables that take nothing is set aside without being tried.
    pub(super) async fn set_aside_broken(
        &self,
        way: &mut Way<'_>,
        marks: &mut Marks,
    ) -> Result<(), DriveError> {
        for (table, reason) in self.shelf.broken(&way.occasion.server) {
            let is_here = |table: &Name| {
                let mut records = way.closed.records.iter();
                records.any(|one| one.record.meta.table == *table && one.fates.kept() > 0)
            };
            let trouble = Trouble {
                since: Duration::ZERO,
                why: Why::Unsettled,
                reason,
            };
            if way.aside.contains(&table) {
                continue;
            }
            if !is_data(&table) {
                way.own.insert(table.clone(), trouble);
                way.aside.insert(table);
                continue;
            }
            if !is_here(&table) {
                continue;
            }
            loop {
                match block_in_place(|| self.set_aside(way, &*marks, &table, &trouble)) {
                    Ok(()) => {
                        marks.forget(&table);
                        way.aside.insert(table);
                        break;
                    }
                    // No room: then it is tried like any other, but for a table to which nothing may be written.
                    Err(error) => {
                        let reason = only_io(error)?.to_string();
                        if !self.shelf.is_held(&table) {
                            break;
                        }
                        self.wait(way, RETRY_BACKOFF_MAX, &reason, true).await;
                    }
                }
            }
        }
        Ok(())
    }

    fn set_aside(
        &self,
        way: &Way<'_>,
        marks: &Marks,
        table: &Name,
        trouble: &Trouble,
    ) -> Result<(), FileError> {
        self.say_aside(table, trouble);
        let share = Share {
            range: way.closed.range,
            server: way.occasion.server.clone(),
            table: table.clone(),
            marks: marks.of(table),
            since_ms: self.clock.now_ms(),
        };
        self.shelf.set_aside(&share, trouble, &way.closed.records)
    }

    fn say_aside(&self, table: &Name, trouble: &Trouble) {
        let (why, reason) = (trouble.why.label(), &trouble.reason);
        if self.shelf.is_held(table) {
            tracing::info!(%table, reason, "the table's rows are set aside for a moment");
            return;
        }
        tracing::error!(
            %table, why, reason,
            "the table's rows are set aside, and others go on: mend the cause (`ingestctl parked list`)"
        );
        self.metrics
            .add(Counter::Alarms, 1, &[("reason", "parked_table")]);
    }

    /// Binds the declared range to another server, durably: before anything is sent there.
    fn bind(&self, server: &ServerId) -> Result<(), StoreError> {
        let mut store = self.store.lock();
        let state = store.state().clone();
        let Some(intent) = state.intent else { return Ok(()) };
        store.write(Progress {
            intent: Some(Intent {
                server: Some(server.clone()),
                ..intent
            }),
            ..state
        })
    }
}

pub(super) fn own_tables() -> impl Iterator<Item = Name> {
    [LEDGER, DEAD_LETTERS].into_iter().flat_map(Name::new)
}

/// An error that left nothing behind; any other ends the process.
fn only_io(error: FileError) -> Result<FileError, FileError> {
    match error {
        FileError::Io { .. } => Ok(error),
        FileError::InDoubt { .. } | FileError::Damaged { .. } => Err(error),
    }
}
