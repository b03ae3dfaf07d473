//! Planning: which records exactly, which tables, and how it is known which rows are repeats. Nothing is touched.

use super::decide::reaches_back;
use super::file::Leg;
use super::orders::{bad, conflict, elsewhere, missing, unreachable, unreadable};
use super::scan::{Wanted, touch, walk};
use super::sink::SinkTrouble;
use super::{Replays, Source};
use crate::log::{Partition, ReadError};
use crate::runtime::block_in_place;
use sluice_common::admin::Refused;
use sluice_common::books::{LEDGER, MINUTE_MS};
use sluice_common::clock::UnixMs;
use sluice_common::ids::{Name, Offset, TenantId};
use sluice_common::limits::REPLAY_EVENTS_PER_SECOND;
use sluice_common::replay::{Beside, Decisions, End, Facts, ReplayAsk, ReplayId, ReplayPlan, Span, Touched};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Tenants that an error names.
const MAX_NAMED: usize = 10;

/// A plan with what is needed to run it.
#[derive(Debug, Clone)]
pub struct Planned {
    pub plan: ReplayPlan,
    pub legs: Vec<Leg>,
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
        let id = ReplayId(random());
        let wanted = Wanted {
            tenant: ask.tenant.clone(),
            dataset: ask.dataset.clone(),
        };
        let (mut notes, mut looked, mut reach) = (Vec::new(), Vec::new(), Vec::new());
        for partition in self.asked(ask)? {
            let source = self.source(id, partition).map_err(|error| elsewhere(&error))?;
            let of = self.name_of(partition);
            let span = self.span(&source, ask, (&of, &mut notes)).await?;
            let (first, committed) = self.reach(&source)?;
            reach.push(format!("{of}{first}..{committed}"));
            let found = self.look(&source, (span.from, span.to), &wanted).await;
            looked.push((source, span, found.map_err(|error| unreadable(&error))?));
        }
        self.check_found(looked.iter().map(|(.., found)| found), &wanted, &reach)?;
        let mut planned = self.nothing(id, wanted, notes);
        let mut worst = Some(Decisions::Provenance);
        for (source, span, found) in looked {
            let decided = self.decisions(&source, &found).await;
            let decided = decided.map_err(|error| unreachable(&error))?;
            planned.plan.notes.extend(decided.notes);
            for table in found.touched.tables.keys() {
                let decided = decided.by_table.get(table).copied();
                worst = [worst, decided].into_iter().min_by_key(rank).flatten();
            }
            planned.plan.spans.push(span);
            planned.plan.partitions.push(found.touched);
            planned.legs.push(Leg {
                partition: span.partition,
                next: span.from,
                end: span.to,
                decisions: decided.by_table,
                window_ms: found.window_ms,
                needs: span.from,
                empty: decided.empty,
            });
        }
        let touched = &planned.plan.partitions;
        let tables: BTreeSet<&Name> = touched.iter().flat_map(|one| one.tables.keys()).collect();
        let shadow = |table: &&Name| id.table(table, Beside::Shadow);
        planned.plan.shadow_tables = tables.iter().map(shadow).collect();
        planned.plan.decisions = worst;
        Ok(planned)
    }

    fn nothing(&self, id: ReplayId, wanted: Wanted, notes: Vec<String>) -> Planned {
        let plan = ReplayPlan {
            id,
            shadow_tables: Vec::new(),
            partitions: Vec::new(),
            spans: Vec::new(),
            tenant: wanted.tenant,
            dataset: wanted.dataset,
            decisions: None,
            events_per_second: REPLAY_EVENTS_PER_SECOND,
            notes,
        };
        Planned {
            plan,
            legs: Vec::new(),
        }
    }

    /// The partitions that are asked for.
    fn asked(&self, ask: &ReplayAsk) -> Result<Vec<u16>, Refused> {
        let partitions = self.partitions();
        if let Some(partition) = ask.partition {
            if partition >= partitions {
                return Err(bad(format!(
                    "the log has no partition {partition}: it has {}",
                    all_of(partitions)
                )));
            }
            return Ok(vec![partition]);
        }
        let is_offset = |end| matches!(end, End::Offset(_));
        if partitions > 1 && (is_offset(ask.from) || is_offset(ask.to)) {
            return Err(bad(format!(
                "offsets are those of one partition, and the log has {}: name one (`--partition`), or take `earliest`, \
                 `latest`, `--since` and `--until`",
                all_of(partitions)
            )));
        }
        self.all_here().map_err(|error| elsewhere(&error))?;
        Ok((0..partitions).collect())
    }

    /// What a sentence about one of several partitions begins with.
    fn name_of(&self, partition: u16) -> String {
        match self.partitions() {
            1 => String::new(),
            _ => format!("partition {partition}: "),
        }
    }

    /// Where a partition begins, and where what is stored of it ends.
    fn reach(&self, source: &Source) -> Result<(Offset, Offset), Refused> {
        let work = self
            .here(source.log.number())
            .map_err(|error| elsewhere(&error))?;
        Ok((source.log.first_offset(), work.committed()))
    }

    /// The records of a partition that are asked for, as far as they are stored and the log has them.
    async fn span(
        &self,
        source: &Source,
        ask: &ReplayAsk,
        (of, notes): (&str, &mut Vec<String>),
    ) -> Result<Span, Refused> {
        // Where it begins is known anew by it.
        block_in_place(|| source.log.end()).map_err(|error| unreadable(&error))?;
        let (first, committed) = self.reach(source)?;
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
                "{of}`--from` {from} lies past `--to` {to}, which is exclusive; the log has {first}..{committed}"
            )));
        }
        if from < first {
            return Err(conflict(
                "replay_out_of_reach",
                format!(
                    "{of}record {from} is no longer in the log, which begins at {first} (`log.retain` says how long stored \
                     records are kept): replay from {first} or `earliest` on"
                ),
            ));
        }
        if first > 0 && ask.from == End::Earliest {
            notes.push(format!("{of}records below {first} are no longer in the log"));
        }
        if to > committed {
            notes.push(format!(
                "{of}records from {committed} on are not stored yet: it ends there, not at {to}"
            ));
        }
        let (from, to) = (from.min(committed), to.min(committed));
        let from = match ask.since_ms {
            Some(since) => first_at(&source.log, (from, to), since).await?,
            None => from,
        };
        let to = match ask.until_ms {
            Some(until) => first_at(&source.log, (from, to), until).await?,
            None => to,
        };
        Ok(Span {
            partition: source.log.number(),
            from,
            to: to.max(from),
        })
    }

    pub(super) async fn look(
        &self,
        source: &Source,
        span: (Offset, Offset),
        wanted: &Wanted,
    ) -> Result<Found, ReadError> {
        let mut found = Found {
            touched: Touched {
                partition: source.log.number(),
                ..Touched::default()
            },
            ..Found::default()
        };
        walk(&source.log, span, |record| {
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

    fn check_found<'f>(
        &self,
        all: impl Iterator<Item = &'f Found>,
        wanted: &Wanted,
        reach: &[String],
    ) -> Result<(), Refused> {
        let mut found = Found::default();
        for one in all {
            found.touched.records += one.touched.records;
            let tables = one.touched.tables.keys().map(|table| (table.clone(), 0));
            found.touched.tables.extend(tables);
            found.tenants.extend(one.tenants.iter().cloned());
            found.datasets.extend(one.datasets.iter().cloned());
        }
        if found.touched.records > 0 {
            return self.check_shared(&found, wanted);
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
        let reach = reach.join(", ");
        Err(conflict(
            "replay_nothing",
            format!("no stored event lies in that span; the log has stored records {reach}"),
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
    pub(super) async fn decisions(&self, source: &Source, found: &Found) -> Result<Decided, SinkTrouble> {
        let of = self.name_of(source.log.number());
        let (mut by_table, mut notes, mut empty) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        let touched = &found.touched;
        if touched.records == 0 {
            return Ok(Decided {
                by_table,
                empty,
                notes,
            });
        }
        let first_ms = touched.first_append_ms.unwrap_or_default();
        let reaches = reaches_back(&*source.log, first_ms, found.window_ms);
        let reaches = reaches.map_err(|error| SinkTrouble(format!("reading the log: {error}")))?;
        for (table, events) in &touched.tables {
            let facts = self.facts(source, table, found).await?;
            if facts.live == Some(0) {
                empty.insert(table.clone());
            }
            if facts.servers > 1 && !facts.shared {
                notes.push(format!(
                    "{of}rows of table {table} may be on several ClickHouse servers, each with rows of its own: it cannot be \
                     replayed beside them"
                ));
                continue;
            }
            let whole = facts.live.and_then(|live| i64::try_from(live).ok()) == Some(facts.stored);
            let booked = facts.stored + facts.duplicate + facts.dead_lettered + facts.parked;
            // Books that were lost with the rows would agree with anything.
            let books =
                !books_are_aside(source) && u64::try_from(booked).is_ok_and(|booked| booked >= *events);
            let decisions = if whole && books {
                Decisions::Provenance
            } else if reaches {
                Decisions::Anew
            } else if books && facts.duplicate == 0 {
                Decisions::All
            } else {
                notes.push(of.clone() + &cannot(table, &facts));
                continue;
            };
            if decisions != Decisions::Provenance {
                notes.push(of.clone() + &differs(table, &facts, decisions));
            }
            by_table.insert(table.clone(), decisions);
        }
        Ok(Decided {
            by_table,
            empty,
            notes,
        })
    }

    async fn facts(&self, source: &Source, table: &Name, found: &Found) -> Result<Facts, SinkTrouble> {
        let touched = &found.touched;
        let minute = |ms: UnixMs| ms / MINUTE_MS * (MINUTE_MS / 1_000);
        let since_s = minute(touched.first_append_ms.unwrap_or_default());
        let until_s = minute(touched.last_append_ms.unwrap_or_default()) + MINUTE_MS / 1_000;
        let mut datasets = self.datasets_of(table);
        datasets.extend(found.written_by.get(table).into_iter().flatten().cloned());
        datasets.sort();
        datasets.dedup();
        let oldest = block_in_place(|| none_older(&*source.log, since_s * 1_000));
        let oldest = oldest.map_err(|error| SinkTrouble(format!("reading the log: {error}")))?;
        let work = self.here(source.log.number());
        let work = work.map_err(|error| SinkTrouble(error.to_string()))?;
        let records = (oldest, work.committed());
        let of = (table.clone(), datasets);
        source.sink.facts(of, (since_s, until_s), records).await
    }
}

/// The first record of a span that was appended at `ms` or later: append times never decrease, but for what the clocks of
/// several brokers differ.
async fn first_at(
    log: &Arc<dyn Partition>,
    (from, to): (Offset, Offset),
    ms: UnixMs,
) -> Result<Offset, Refused> {
    if from < to {
        let last = block_in_place(|| log.read(to - 1, 1)).map_err(|error| unreadable(&error))?;
        if last.first().is_some_and(|last| last.place.append_ms < ms) {
            return Ok(to);
        }
    }
    let near = block_in_place(|| log.appended_since(ms)).map_err(|error| unreadable(&error))?;
    let near = near.max(from).min(to);
    let mut at = near;
    let found = walk(log, (near, to), |record| {
        let before = record.place.append_ms < ms;
        if before {
            at = record.place.offset + 1;
        }
        before
    });
    found.await.map_err(|error| unreadable(&error))?;
    Ok(at)
}

/// An offset at or below every record that was ever appended at `ms` or later.
fn none_older(log: &dyn Partition, ms: UnixMs) -> Result<Offset, ReadError> {
    // First this: what is deleted meanwhile makes it no higher.
    let first = log.first_offset();
    let near = log.appended_since(ms)?;
    // The log does not tell how old the records were that it has no more.
    Ok(if near <= first { 0 } else { near })
}

/// Rows of the books that wait elsewhere: then they say too little.
fn books_are_aside(source: &Source) -> bool {
    let units = source.shelf.units();
    units.iter().any(|(id, _)| id.table.as_str() == LEDGER)
}

fn all_of(partitions: u16) -> String {
    match partitions {
        1 => "one, 0".to_owned(),
        several => format!("0 to {}", several - 1),
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

fn random() -> u32 {
    let random = sluice_common::ids::RequestId::random().0 >> 96;
    u32::try_from(random).unwrap_or(u32::MAX)
}
