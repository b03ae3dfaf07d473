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

use super::file::{Promotion, State};
use super::run::RunError;
use super::sink::{Part, Sink, SinkTrouble};
use super::{Replays, Running};
use crate::runtime::Instant;
use sluice_common::ids::{Name, Offset};
use sluice_common::limits::{REPLAY_PATIENCE, RETRY_BACKOFF_MAX};
use sluice_common::replay::{DiffLine, PartCover, Phase, TableDiff};
use std::time::Duration;

/// Between two looks whether what was under way is settled.
const LOOK: Duration = Duration::from_millis(50);

/// Why nothing was promoted: a sentence.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("rows that were under way to the tables are not settled within {} s: is ClickHouse in trouble?", REPLAY_PATIENCE.as_secs())]
    Unsettled,
    #[error("the shadow cannot catch up: {0}")]
    Behind(String),
    #[error("catching up: {0}")]
    Run(#[from] RunError),
    #[error("{0}")]
    Sink(#[from] SinkTrouble),
    #[error(
        "table {table}: its shadow does not have {rows} of the live rows in its partitions (of before `--from`, of another \
         log, or without provenance): `--row-wise` copies them into the shadow first, so that they stay"
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
            Ended::Refused(refusal) => (Phase::Done, Some(refusal.to_string())),
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
        // Rows stay aside until it is durable that nothing is to be replaced any more.
        while let Err(error) = self.end(running, ended) {
            tracing::error!(%error, "a promotion is over, and its state cannot be kept: it is tried again");
            crate::runtime::sleep(RETRY_BACKOFF_MAX).await;
        }
        self.shelf().release(&tables);
    }

    async fn until_swapped(&self, running: &Running, tables: &[Name]) -> Ended {
        let sink = self.sink(running.id());
        let mut begun = running.promotion().saved > 0;
        if !begun && let Err(refusal) = self.made_ready(running, &sink, tables).await {
            return if self.stopping() {
                Ended::Stopped
            } else {
                Ended::Refused(refusal)
            };
        }
        self.shelf().hold(tables);
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
        self.catch_up(running, sink, self.committed()).await?;
        for table in tables {
            let diff = sink.compare(table.clone(), None, (0, 0), true).await?;
            running.step(compared(table, &diff));
        }
        self.shelf().hold(tables);
        let end = self.settled(running, tables).await?;
        self.catch_up(running, sink, end).await?;
        running.promoted(|promotion| promotion.parts.clear());
        for table in tables {
            self.cover(running, sink, table).await?;
        }
        Ok(())
    }

    /// What was declared before the tables were held is settled, and no rows of them are on their way.
    /// Records below the answer may be in them, and none at or past it.
    async fn settled(&self, running: &Running, tables: &[Name]) -> Result<Offset, Refusal> {
        let (begun, end) = (Instant::now(), self.declared_end());
        while self.committed() < end || self.shelf().is_driven(tables) {
            if begun.elapsed() > REPLAY_PATIENCE {
                return Err(Refusal::Unsettled);
            }
            running.wait(LOOK).await?;
        }
        running.step(format!("rows from record {end} on are set aside"));
        Ok(end)
    }

    /// The shadow takes what was committed since, up to `to`.
    async fn catch_up(&self, running: &Running, sink: &Sink, to: Offset) -> Result<(), Refusal> {
        // What was begun is decided as it was.
        self.run(running).await?;
        let from = running.state.lock().told.next;
        if from >= to {
            return Ok(());
        }
        let known = running.state.lock().decisions.clone();
        let mut found = self
            .look((from, to), &running.wanted())
            .await
            .map_err(RunError::Log)?;
        found.touched.tables.retain(|table, _| known.contains_key(table));
        let events: u64 = found.touched.tables.values().sum();
        if events > 0 {
            let decided = self.decisions(sink, &found).await?;
            let is_decided = |table| decided.by_table.contains_key(table);
            if !found.touched.tables.keys().all(is_decided) {
                return Err(Refusal::Behind(decided.notes.join("; ")));
            }
            running.change(|state| {
                state.decisions.extend(decided.by_table);
                state.empty = decided.empty;
                state.window_ms = state.window_ms.max(found.window_ms);
            });
        }
        running.change(|state| state.end = to);
        self.keep(running)?;
        self.run(running).await?;
        running.step(format!(
            "the shadow is caught up to record {to}: {events} events more"
        ));
        Ok(())
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
