//! Planning: which records exactly, which tables, and how it is known which rows are repeats. Nothing is touched.

use super::Replays;
use super::decide::reaches_back;
use super::orders::{bad, conflict, missing, unreachable};
use super::scan::{Wanted, touch, walk};
use super::sink::{Sink, SinkTrouble};
use crate::log::ReadError;
use crate::log::embedded::PARTITION;
use sluice_common::admin::Refused;
use sluice_common::books::{LEDGER, MINUTE_MS};
use sluice_common::clock::UnixMs;
use sluice_common::ids::{Name, Offset, TenantId};
use sluice_common::limits::REPLAY_EVENTS_PER_SECOND;
use sluice_common::replay::{Beside, Decisions, End, Facts, ReplayAsk, ReplayId, ReplayPlan, Touched};
use std::collections::{BTreeMap, BTreeSet};

/// Tenants that an error names.
const MAX_NAMED: usize = 10;

/// A plan with what is needed to run it.
#[derive(Debug, Clone)]
pub struct Planned {
    pub plan: ReplayPlan,
    /// By live table; empty where the plan cannot be run.
    pub decisions: BTreeMap<Name, Decisions>,
    pub empty: BTreeSet<Name>,
    pub window_ms: u64,
}

/// What was found in a span of the log.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub touched: Touched,
    pub window_ms: u64,
    /// Datasets by table.
    written_by: BTreeMap<Name, BTreeSet<Name>>,
    /// Of all records of the span, wanted or not.
    tenants: BTreeSet<TenantId>,
    datasets: BTreeSet<Name>,
}

/// What decides whose rows are repeats.
pub(super) struct Decided {
    pub by_table: BTreeMap<Name, Decisions>,
    /// Tables without a row of these minutes.
    pub empty: BTreeSet<Name>,
    pub notes: Vec<String>,
}

impl Replays {
    /// Plans a replay.
    ///
    /// # Errors
    /// A refusal that says what to do.
    pub async fn plan(&self, ask: &ReplayAsk) -> Result<Planned, Refused> {
        if ask.partition.is_some_and(|partition| partition != PARTITION) {
            return Err(bad(format!("the embedded log has one partition: {PARTITION}")));
        }
        let mut notes = Vec::new();
        let (from, to) = self.span(ask, &mut notes).await?;
        let wanted = Wanted {
            tenant: ask.tenant.clone(),
            dataset: ask.dataset.clone(),
        };
        let found = self
            .look((from, to), &wanted)
            .await
            .map_err(|error| unreadable(&error))?;
        self.check_found(&found, &wanted)?;
        let id = ReplayId(random());
        let sink = self.sink(id);
        let decided = self.decisions(&sink, &found).await;
        let decided = decided.map_err(|error| unreachable(&error))?;
        notes.extend(decided.notes);
        let tables: Vec<Name> = found.touched.tables.keys().cloned().collect();
        let worst = tables.iter().map(|table| decided.by_table.get(table).copied());
        let plan = ReplayPlan {
            id,
            shadow_tables: tables
                .iter()
                .map(|table| id.table(table, Beside::Shadow))
                .collect(),
            partitions: vec![found.touched],
            from,
            to,
            tenant: wanted.tenant,
            dataset: wanted.dataset,
            decisions: worst.min_by_key(rank).flatten(),
            events_per_second: REPLAY_EVENTS_PER_SECOND,
            notes,
        };
        Ok(Planned {
            plan,
            decisions: decided.by_table,
            empty: decided.empty,
            window_ms: found.window_ms,
        })
    }

    /// The records that are asked for, as far as they are stored and the log has them.
    async fn span(&self, ask: &ReplayAsk, notes: &mut Vec<String>) -> Result<(Offset, Offset), Refused> {
        let first = self.log().first_offset();
        let committed = self.committed();
        let from = match ask.from {
            End::Earliest => first,
            End::Latest => committed,
            End::Offset(from) => from,
        };
        let to = match ask.to {
            End::Earliest => first,
            End::Latest => committed,
            End::Offset(to) => to,
        };
        if from > to {
            return Err(bad(format!(
                "`--from` {from} lies past `--to` {to}, which is exclusive; the log has {first}..{committed}"
            )));
        }
        if from < first {
            return Err(conflict(
                "replay_out_of_reach",
                format!(
                    "record {from} is no longer in the log, which begins at {first} (`log.retain` says how long stored \
                     records are kept): replay from {first} or `earliest` on"
                ),
            ));
        }
        if first > 0 && ask.from == End::Earliest {
            notes.push(format!("records below {first} are no longer in the log"));
        }
        if to > committed {
            notes.push(format!(
                "records from {committed} on are not stored yet: it ends there, not at {to}"
            ));
        }
        let (from, to) = (from.min(committed), to.min(committed));
        let from = match ask.since_ms {
            Some(since) => self.first_at((from, to), since).await?,
            None => from,
        };
        let to = match ask.until_ms {
            Some(until) => self.first_at((from, to), until).await?,
            None => to,
        };
        Ok((from, to))
    }

    /// The first record of a span that was appended at `ms` or later: append times never decrease.
    async fn first_at(&self, (from, to): (Offset, Offset), ms: UnixMs) -> Result<Offset, Refused> {
        let near = self.log().first_offset_appended_at_or_after(ms).max(from).min(to);
        let mut at = near;
        let found = walk(self.log(), (near, to), |record| {
            let before = record.place.append_ms < ms;
            if before {
                at = record.place.offset + 1;
            }
            before
        });
        found.await.map_err(|error| unreadable(&error))?;
        Ok(at)
    }

    pub(super) async fn look(&self, span: (Offset, Offset), wanted: &Wanted) -> Result<Found, ReadError> {
        let mut found = Found {
            touched: Touched {
                partition: PARTITION,
                ..Touched::default()
            },
            ..Found::default()
        };
        walk(self.log(), span, |record| {
            let meta = &record.meta;
            if found.tenants.len() <= MAX_NAMED && !found.tenants.contains(&meta.tenant) {
                found.tenants.insert(meta.tenant.clone());
            }
            if found.datasets.len() <= MAX_NAMED && !found.datasets.contains(&meta.dataset) {
                found.datasets.insert(meta.dataset.clone());
            }
            if wanted.has(&record) {
                touch(&mut found.touched, &record);
                let of_table = found.written_by.entry(meta.table.clone()).or_default();
                if !of_table.contains(&meta.dataset) {
                    of_table.insert(meta.dataset.clone());
                }
                found.window_ms = found.window_ms.max(meta.window_ms);
            }
            true
        })
        .await?;
        Ok(found)
    }

    fn check_found(&self, found: &Found, wanted: &Wanted) -> Result<(), Refused> {
        if found.touched.records > 0 {
            return self.check_shared(found, wanted);
        }
        if let Some(tenant) = wanted
            .tenant
            .as_ref()
            .filter(|tenant| !found.tenants.contains(tenant))
        {
            let there = named(found.tenants.iter().map(TenantId::as_str));
            let detail = format!("no record of tenant {tenant} is in that span; it has records of {there}");
            return Err(missing("replay_no_such_tenant", detail));
        }
        if let Some(dataset) = wanted
            .dataset
            .as_ref()
            .filter(|dataset| !found.datasets.contains(dataset))
        {
            let there = named(found.datasets.iter().map(Name::as_str));
            let detail = format!("no record of dataset {dataset} is in that span; it has records of {there}");
            return Err(missing("replay_no_such_dataset", detail));
        }
        let (first, committed) = (self.log().first_offset(), self.committed());
        Err(conflict(
            "replay_nothing",
            format!("no stored event lies in that span; the log has stored records {first}..{committed}"),
        ))
    }

    /// Rows do not tell their dataset: of a table that several write, one alone cannot be held against the live
    /// rows.
    fn check_shared(&self, found: &Found, wanted: &Wanted) -> Result<(), Refused> {
        let Some(dataset) = &wanted.dataset else {
            return Ok(());
        };
        for table in found.touched.tables.keys() {
            if let Some(other) = self.datasets_of(table).iter().find(|other| *other != dataset) {
                return Err(bad(format!(
                    "datasets {dataset} and {other} both write table {table}, and its rows do not tell which: leave \
                     `--dataset` away"
                )));
            }
        }
        Ok(())
    }

    /// How it is known which rows are repeats; a table that is absent cannot be replayed.
    ///
    /// # Errors
    /// Where the sink-writer cannot be asked.
    pub(super) async fn decisions(&self, sink: &Sink, found: &Found) -> Result<Decided, SinkTrouble> {
        let (mut by_table, mut notes, mut empty) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        let touched = &found.touched;
        let first_ms = touched.first_append_ms.unwrap_or_default();
        let reaches = reaches_back(self.log(), first_ms, found.window_ms);
        let reaches = reaches.map_err(|error| SinkTrouble(format!("reading the log: {error}")))?;
        for (table, events) in &touched.tables {
            let facts = self.facts(sink, table, found).await?;
            if facts.live == Some(0) {
                empty.insert(table.clone());
            }
            if facts.servers > 1 && !facts.shared {
                notes.push(format!(
                    "rows of table {table} may be on several ClickHouse servers, each with rows of its own: it cannot be \
                     replayed beside them"
                ));
                continue;
            }
            let whole = facts.live.and_then(|live| i64::try_from(live).ok()) == Some(facts.stored);
            let booked = facts.stored + facts.duplicate + facts.dead_lettered + facts.parked;
            // Books that were lost with the rows would agree with anything.
            let books =
                !self.books_are_aside() && u64::try_from(booked).is_ok_and(|booked| booked >= *events);
            let decisions = if whole && books {
                Decisions::Provenance
            } else if reaches {
                Decisions::Anew
            } else if books && facts.duplicate == 0 {
                Decisions::All
            } else {
                notes.push(cannot(table, &facts));
                continue;
            };
            if decisions != Decisions::Provenance {
                notes.push(differs(table, &facts, decisions));
            }
            by_table.insert(table.clone(), decisions);
        }
        Ok(Decided {
            by_table,
            empty,
            notes,
        })
    }

    async fn facts(&self, sink: &Sink, table: &Name, found: &Found) -> Result<Facts, SinkTrouble> {
        let touched = &found.touched;
        let minute = |ms: UnixMs| ms / MINUTE_MS * (MINUTE_MS / 1_000);
        let since_s = minute(touched.first_append_ms.unwrap_or_default());
        let until_s = minute(touched.last_append_ms.unwrap_or_default()) + MINUTE_MS / 1_000;
        let mut datasets = self.datasets_of(table);
        datasets.extend(found.written_by.get(table).into_iter().flatten().cloned());
        datasets.sort();
        datasets.dedup();
        let records = (self.none_older(since_s * 1_000), self.committed());
        sink.facts((table.clone(), datasets), (since_s, until_s), records)
            .await
    }

    /// An offset at or below every record that was ever appended at `ms` or later.
    fn none_older(&self, ms: UnixMs) -> Offset {
        // First this: what is deleted meanwhile makes it no higher.
        let first = self.log().first_offset();
        let near = self.log().first_offset_appended_at_or_after(ms);
        // The log does not tell how old the records were that it has no more.
        if near <= first { 0 } else { near }
    }

    /// Rows of the books that wait elsewhere: then they say too little.
    fn books_are_aside(&self) -> bool {
        let units = self.shelf().units();
        units.iter().any(|(id, _)| id.table.as_str() == LEDGER)
    }
}

/// The less is known, the lower.
fn rank(decisions: &Option<Decisions>) -> u8 {
    match decisions {
        None => 0,
        Some(Decisions::All) => 1,
        Some(Decisions::Anew) => 2,
        Some(Decisions::Provenance) => 3,
    }
}

fn differs(table: &Name, facts: &Facts, decisions: Decisions) -> String {
    let live = live(facts);
    let how = match decisions {
        Decisions::Anew => "dedup decides anew, from one window earlier on",
        Decisions::All | Decisions::Provenance => "the books know of no repeats, so all rows are replayed",
    };
    format!(
        "of these minutes table {table} has {live} rows and the books say {} stored: {how}",
        facts.stored
    )
}

fn live(facts: &Facts) -> String {
    let told = facts.live.map(|live| live.to_string());
    told.unwrap_or_else(|| "an unknown number of".to_owned())
}

fn cannot(table: &Name, facts: &Facts) -> String {
    format!(
        "of these minutes table {table} has {} rows and the books say {} stored and {} repeats: which rows are repeats \
         could only be decided anew, and the log does not reach back one dedup window. A later `--from`, or minutes that \
         are whole, can be replayed",
        live(facts),
        facts.stored,
        facts.duplicate
    )
}

fn named<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.take(MAX_NAMED).collect();
    if names.is_empty() {
        "nobody".into()
    } else {
        names.join(", ")
    }
}

fn unreadable(error: &ReadError) -> Refused {
    conflict(
        "replay_out_of_reach",
        format!("the log cannot be read there: {error}"),
    )
}

fn random() -> u32 {
    let random = sluice_common::ids::RequestId::random().0 >> 96;
    u32::try_from(random).unwrap_or(u32::MAX)
}
