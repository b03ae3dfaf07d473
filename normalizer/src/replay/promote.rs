//! Promoting: the shadow's partitions take the places of the live ones, and no row is lost or doubled by it.
//!
//! | step | why |
//! |---|---|
//! | orders about dead letters wait | `dlq retry` writes to live tables |
//! | the shadow catches up, and both are compared for those who watch | so that the next steps are short |
//! | the tables' rows are set aside, what is under way is settled | nothing is written to a live table from here on |
//! | the shadow catches up to what was settled | a plain swap would lose the rows past `--to` |
//! | every live row of the shadow's partitions is in the shadow, by provenance; or is copied there (`--row-wise`) | rows of before `--from`, of other logs or of none |
//! | partition by partition: the live one is kept beside its table, then replaced | each replacement is atomic in ClickHouse, and can be repeated |
//! | the shadows are dropped | a replacement whose answer was lost, and that arrives late, finds nothing to put there |
//! | rows that were set aside go in | each is verified first, as ever |
//!
//! Until the first partition is kept, trouble ends it, and everything is as before. From then on it is tried for
//! `REPLAY_PATIENCE` of trouble, over restarts too; then it is given up: the shadows are dropped first, so that the
//! rows that were set aside can go in safely, and what is replaced by then is told.

use super::file::{Leg, Promotion, State};
use super::run::RunError;
use super::sink::{Part, Sink, SinkTrouble};
use super::{Elsewhere, Replays, Running};
use crate::owned::{NotHeld, Work};
use crate::progress::Held;
use crate::runtime::{Instant, timeout};
use sluice_common::ids::{Name, Offset};
use sluice_common::limits::{REPLAY_PATIENCE, RETRY_BACKOFF_MAX};
use sluice_common::replay::{DiffLine, PartCover, Phase, TableDiff};
use std::collections::BTreeMap;
use std::time::Duration;

/// Others look every second what is held.
const SEEN: Duration = Duration::from_secs(3);
/// Between two looks whether what was under way is settled.
const LOOK: Duration = Duration::from_millis(50);

/// Why nothing was promoted: a sentence.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(
        "rows that were under way to the tables are not settled within {patience} s (partition {0} of the log): is ClickHouse in \
         trouble, or is dedup's state still being rebuilt?",
        patience = REPLAY_PATIENCE.as_secs()
    )]
    Unsettled(String),
    #[error(
        "the brokers do not keep within {patience} s that rows of partition {0} are set aside",
        patience = REPLAY_PATIENCE.as_secs()
    )]
    Untold(u16),
    #[error("the shadow cannot catch up: {0}")]
    Behind(String),
    #[error("catching up: {0}")]
    Run(#[from] RunError),
    #[error("whoever works on a partition of the log writes to the tables: {0}")]
    NotAllHere(#[from] Elsewhere),
    #[error("setting rows of the tables aside: {0}")]
    NotHeld(#[from] NotHeld),
    #[error("{0}")]
    Sink(#[from] SinkTrouble),
    #[error(
        "table {table}: its shadow does not have {rows} of the live rows in its partitions (of before `--from`, of another \
         partition or log, or without provenance): `--row-wise` copies them into the shadow first, so that they stay"
    )]
    Uncovered { table: Name, rows: u64 },
    #[error(
        "table {table}: its shadow has {rows} rows more than once: discard this replay and begin another"
    )]
    Doubled { table: Name, rows: u64 },
    #[error(
        "table {table}: {rows} rows of the shadow are in live partitions that it would not replace (the columns of the \
         partition key were changed): they would be there twice. Repair them by hand, or leave them"
    )]
    Elsewhere { table: Name, rows: u64 },
    #[error("keeping its state: {0}")]
    State(#[from] std::io::Error),
}

/// How a promotion ended.
enum Ended {
    Promoted,
    /// Nothing was replaced.
    Refused(Refusal),
    /// Some partitions were replaced, and the rest will not be.
    GivenUp(Refusal),
    /// The process stops: the next one goes on.
    Stopped,
}

impl Replays {
    /// Promotes; returns when it is over, or the process stops.
    pub(super) async fn promote(&self, running: &Running) {
        let tables = running.tables();
        // Orders of dead letters and promotions take turns.
        let Ok(_letters) = self.letters_gate().acquire_owned().await else {
            return;
        };
        let (phase, reason) = match self.until_swapped(running, &tables).await {
            Ended::Stopped => return,
            Ended::Promoted => (Phase::Promoted, None),
            Ended::Refused(refusal) => self.refused(running, &tables, &refusal).await,
            Ended::GivenUp(refusal) => {
                let promotion = running.promotion();
                let (swapped, all) = (promotion.swapped, promotion.parts.len());
                let said = format!(
                    "{swapped} of {all} partitions are replaced, then it was given up: {refusal}; discard it, and plan anew"
                );
                (Phase::Failed, Some(said))
            }
        };
        let ended = |state: &mut State| {
            (state.told.phase, state.told.reason) = (phase, reason.clone());
            if phase == Phase::Done {
                state.promotion = None;
            }
        };
        let told = running.promotion().told;
        // Rows stay aside until it is durable that nothing is to be replaced any more.
        let mut state = loop {
            match self.written(running, ended) {
                Ok(state) => break state,
                Err(error) => {
                    tracing::error!(%error, "a promotion is over, and its state cannot be kept: it is tried again");
                    crate::runtime::sleep(RETRY_BACKOFF_MAX).await;
                }
            }
        };
        let released = self.release(running.id(), &tables).await;
        if told && !released && phase == Phase::Done {
            // It was refused, and a partition went away before it was let go of.
            let (phase, reason) = self
                .given_up(running, &tables, "its rows could not be let go of everywhere")
                .await;
            let failed = |state: &mut State| (state.told.phase, state.told.reason) = (phase, Some(reason));
            match self.written(running, failed) {
                Ok(failed) => state = failed,
                Err(error) => tracing::error!(%error, "the state of a replay cannot be kept"),
            }
        }
        self.show(running, state);
    }

    /// Nothing was replaced. Where a partition that says that the tables are held is not here, whoever has it sees by the
    /// shadows that it is over: they go.
    async fn refused(
        &self,
        running: &Running,
        tables: &[Name],
        refusal: &Refusal,
    ) -> (Phase, Option<String>) {
        let elsewhere = self.all_here().err().filter(|_| running.promotion().told);
        let Some(elsewhere) = elsewhere else {
            return (Phase::Done, Some(refusal.to_string()));
        };
        let why = format!("{refusal}; and meanwhile it was so that {elsewhere}");
        let (phase, reason) = self.given_up(running, tables, &why).await;
        (phase, Some(reason))
    }

    async fn given_up(&self, running: &Running, tables: &[Name], why: &str) -> (Phase, String) {
        let dropped = self.tables_sink(running).fence(tables.to_vec()).await;
        let shadows = match dropped {
            Ok(()) => "are dropped".to_owned(),
            Err(error) => format!("could not be dropped: {error}"),
        };
        let said = format!(
            "{why}. Nothing was replaced, and the shadows {shadows}, so that rows of the tables wait nowhere: discard it, and plan \
             anew"
        );
        (Phase::Failed, said)
    }

    async fn until_swapped(&self, running: &Running, tables: &[Name]) -> Ended {
        let sink = self.tables_sink(running);
        let mut begun = running.promotion().saved > 0;
        if !begun && let Err(refusal) = self.made_ready(running, &sink, tables).await {
            return if self.stopping() {
                Ended::Stopped
            } else {
                Ended::Refused(refusal)
            };
        }
        // After a restart. Where the log is shared, each partition's progress says so, whoever has it.
        for work in self.0.parts.owned.all() {
            if !work.is_shared() {
                work.shelf.hold(tables);
            }
        }
        let since = Instant::now();
        loop {
            let refusal = match self.swap_all(running, &sink, tables).await {
                Ok(()) => return Ended::Promoted,
                Err(refusal) => refusal,
            };
            if self.stopping() {
                return Ended::Stopped;
            }
            begun |= running.promotion().saved > 0;
            if !begun {
                return Ended::Refused(refusal);
            }
            tracing::error!(%refusal, "a promotion is half done: it is tried again, and the tables' rows wait");
            running.change(|state| state.told.reason = Some(refusal.to_string()));
            if since.elapsed() > REPLAY_PATIENCE && sink.fence(tables.to_vec()).await.is_ok() {
                return Ended::GivenUp(refusal);
            }
            if running.wait(RETRY_BACKOFF_MAX / 2).await.is_err() {
                return Ended::Stopped;
            }
        }
    }

    /// The shadows hold all that the live tables do, and nothing is written to these.
    async fn made_ready(&self, running: &Running, sink: &Sink, tables: &[Name]) -> Result<(), Refusal> {
        self.all_awaited(running).await?;
        let all = self.all_here()?;
        let ends = all.iter().map(|work| (work.log.number(), work.committed()));
        self.catch_up(running, &ends.collect()).await?;
        for table in tables {
            let diff = sink.compare(table.clone(), None, Vec::new()).await?;
            running.step(compared(table, &diff));
        }
        let ends = self.settled(running, tables).await?;
        self.catch_up(running, &ends).await?;
        running.promoted(|promotion| promotion.parts.clear());
        for table in tables {
            self.cover(running, sink, table).await?;
        }
        Ok(())
    }

    /// Waits for partitions that may be on their way to us.
    async fn all_awaited(&self, running: &Running) -> Result<(), Refusal> {
        let begun = Instant::now();
        while self.all_here().is_err() && begun.elapsed() < REPLAY_PATIENCE {
            running.wait(LOOK).await?;
        }
        Ok(())
    }

    /// Has rows of the tables be set aside, whoever works on a partition from now on. What was declared before is settled
    /// then, and no rows of them are on their way: records below the answer may be in them, and none at or past it.
    async fn settled(&self, running: &Running, tables: &[Name]) -> Result<BTreeMap<u16, Offset>, Refusal> {
        let (begun, all) = (Instant::now(), self.all_here()?);
        self.note(running, |promotion, _| promotion.told = true)?;
        let mut ends = BTreeMap::new();
        for work in &all {
            let held = Held {
                by: running.id(),
                tables: tables.to_vec(),
                server: running.state.lock().server.clone(),
            };
            // Durably: with a partition that goes to another, this goes along. And ours it is, or it fails.
            let (holds, number) = (work.clone(), work.log.number());
            let held = tokio::task::spawn_blocking(move || holds.hold(held));
            let end = match timeout(REPLAY_PATIENCE, held).await {
                Ok(Ok(held)) => held?,
                // If it is held all the same, that is let go when it is known.
                Ok(Err(_)) | Err(_) => return Err(Refusal::Untold(number)),
            };
            ends.insert(number, end);
        }
        if all.iter().any(Work::is_shared) {
            // Others see it when they look: until then they may write dead letters to the tables.
            running.wait(SEEN).await?;
        }
        let is_open =
            |work: &&Work| work.committed() < ends[&work.log.number()] || work.shelf.is_driven(tables);
        while all.iter().any(|work| is_open(&work)) {
            if begun.elapsed() > REPLAY_PATIENCE {
                // Where one has gone, what is here says nothing of it.
                self.all_here()?;
                let open = all
                    .iter()
                    .filter(is_open)
                    .map(|work| work.log.number().to_string());
                return Err(Refusal::Unsettled(open.collect::<Vec<_>>().join(", ")));
            }
            running.wait(LOOK).await?;
        }
        running.step(format!("rows from {} on are set aside", places(&ends)));
        Ok(ends)
    }

    /// The shadow takes what was committed since, up to these records.
    async fn catch_up(&self, running: &Running, ends: &BTreeMap<u16, Offset>) -> Result<(), Refusal> {
        // What was begun is decided as it was.
        self.run(running).await?;
        let known = running.tables();
        let legs = running.state.lock().legs.clone();
        let (mut longer, mut events) = (BTreeMap::new(), 0);
        for leg in legs {
            let to = ends.get(&leg.partition).copied().unwrap_or(leg.end);
            if leg.next < to {
                events += self.lengthen(running, &leg, &known, to).await?;
                longer.insert(leg.partition, to);
            }
        }
        if longer.is_empty() {
            return Ok(());
        }
        self.keep(running)?;
        self.run(running).await?;
        running.step(format!(
            "the shadow is caught up to {}: {events} events more",
            places(&longer)
        ));
        Ok(())
    }

    /// One leg goes on up to `to`; how many events that are.
    async fn lengthen(
        &self,
        running: &Running,
        leg: &Leg,
        known: &[Name],
        to: Offset,
    ) -> Result<u64, Refusal> {
        let source = self.source_of(running, leg.partition)?;
        let found = self.look(&source, (leg.next, to), &running.wanted()).await;
        let mut found = found.map_err(RunError::Log)?;
        found.touched.tables.retain(|table, _| known.contains(table));
        let events: u64 = found.touched.tables.values().sum();
        let decided = if events > 0 {
            let decided = self.decisions(&source, &found).await?;
            let is_decided = |table| decided.by_table.contains_key(table);
            if !found.touched.tables.keys().all(is_decided) {
                return Err(Refusal::Behind(decided.notes.join("; ")));
            }
            Some(decided)
        } else {
            None
        };
        running.change(|state| {
            let Some(leg) = state.leg_of(leg.partition) else {
                return;
            };
            leg.end = to;
            if let Some(decided) = decided {
                leg.decisions.extend(decided.by_table);
                leg.empty = decided.empty;
                leg.window_ms = leg.window_ms.max(found.window_ms);
            }
        });
        Ok(events)
    }

    /// Every live row that would go is in the shadow.
    async fn cover(&self, running: &Running, sink: &Sink, table: &Name) -> Result<(), Refusal> {
        let row_wise = running.promotion().row_wise;
        let mut parts = sink.covers(table.clone()).await?;
        if row_wise && sum(&parts, |part| part.uncovered) > 0 {
            let rows = sink.fill(table.clone()).await?;
            running.step(format!(
                "table {table}: {rows} live rows that the shadow had not are copied into it"
            ));
            parts = sink.covers(table.clone()).await?;
        }
        let table = table.clone();
        match (
            sum(&parts, |part| part.doubled),
            sum(&parts, |part| part.elsewhere),
            sum(&parts, |part| part.uncovered),
        ) {
            (0, 0, 0) => {
                let shown = parts.iter().filter(|part| part.shadow > 0);
                let keys = shown.map(|part| {
                    let (live, shadow) = (part.live, part.shadow);
                    (
                        table.clone(),
                        Part {
                            id: part.part.clone(),
                            live,
                            shadow,
                        },
                    )
                });
                running.promoted(|promotion| promotion.parts.extend(keys));
                let (live, shadow) = (sum(&parts, |part| part.live), sum(&parts, |part| part.shadow));
                running.step(format!(
                    "table {table}: {shadow} rows of the shadow cover all {live} live ones in {} partitions",
                    parts.len()
                ));
                Ok(())
            }
            (0, 0, rows) => Err(Refusal::Uncovered { table, rows }),
            (0, rows, _) => Err(Refusal::Elsewhere { table, rows }),
            (rows, _, _) => Err(Refusal::Doubled { table, rows }),
        }
    }

    async fn swap_all(&self, running: &Running, sink: &Sink, tables: &[Name]) -> Result<(), Refusal> {
        let Promotion {
            parts,
            saved,
            swapped,
            ..
        } = running.promotion();
        for (at, (table, part)) in parts.iter().enumerate() {
            if at >= saved {
                sink.save(table.clone(), part.id.clone()).await?;
                // Durable before it is replaced: what is kept must never be kept again from then on.
                self.note(running, |promotion, _| promotion.saved = at + 1)?;
            }
            if at >= swapped {
                sink.swap(table.clone(), part.clone()).await?;
                self.note(running, |promotion, steps| {
                    promotion.swapped = at + 1;
                    steps.push(format!("table {table}: partition {} is replaced", part.id));
                })?;
            }
        }
        sink.fence(tables.to_vec()).await?;
        Ok(())
    }

    /// Makes a step durable, and counts on it only then.
    fn note(
        &self,
        running: &Running,
        change: impl FnOnce(&mut Promotion, &mut Vec<String>),
    ) -> std::io::Result<()> {
        let state = self.written(running, |state| {
            change(state.promotion.get_or_insert_default(), &mut state.told.steps);
        })?;
        running.change(|shown| *shown = state);
        Ok(())
    }
}

impl Running {
    fn promotion(&self) -> Promotion {
        self.state.lock().promotion.clone().unwrap_or_default()
    }

    fn promoted<T>(&self, change: impl FnOnce(&mut Promotion) -> T) {
        self.change(|state| {
            change(state.promotion.get_or_insert_default());
        });
    }

    /// One line for those who watch.
    fn step(&self, line: String) {
        tracing::info!(id = %self.state.lock().told.id, "promotion: {line}");
        self.change(|state| state.told.steps.push(line));
    }
}

/// `record 12`, or `records 12 of partition 0, 7 of partition 1`.
fn places(ends: &BTreeMap<u16, Offset>) -> String {
    if let (1, Some((_, end))) = (ends.len(), ends.first_key_value()) {
        return format!("record {end}");
    }
    let one = |(partition, end): (&u16, &Offset)| format!("{end} of partition {partition}");
    let all: Vec<String> = ends.iter().map(one).collect();
    format!("records {}", all.join(", "))
}

fn sum(parts: &[PartCover], of: impl Fn(&PartCover) -> u64) -> u64 {
    parts.iter().map(of).sum()
}

fn compared(table: &Name, diff: &TableDiff) -> String {
    let sum = |of: fn(&DiffLine) -> u64| -> u64 { diff.lines.iter().map(of).sum() };
    let more = if diff.omitted > 0 {
        " (of the lines that differ most)"
    } else {
        ""
    };
    format!(
        "table {table}: {} live rows and {} of the shadow in the partitions that it has; {} only live, {} only in the shadow, {} \
         that differ{more}",
        sum(|line| line.live),
        sum(|line| line.shadow),
        sum(|line| line.only_live),
        sum(|line| line.only_shadow),
        sum(|line| line.differing)
    )
}
