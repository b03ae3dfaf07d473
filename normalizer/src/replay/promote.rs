//! Promoting: the shadow's partitions take the places of the live ones, and no row is lost or doubled by it.
//!
//! | step | why |
//! |---|---|
//! | orders about dead letters wait | `dlq retry` writes to live tables |
//! | the tables' rows are set aside, what is under way is settled | nothing is written to a live table from here on |
//! | the shadow catches up to what is committed | a plain swap would lose the rows past `--to` |
//! | every live row of the shadow's partitions is in the shadow, by provenance; or is copied there (`--row-wise`) | rows of before `--from`, of other logs or of none |
//! | partition by partition: the live one is kept beside its table, then replaced | each replacement is atomic in ClickHouse, and can be repeated |
//! | the shadows are dropped | a replacement whose answer was lost, and that arrives late, finds nothing to put there |
//! | rows that were set aside go in | each is verified first, as ever |
//!
//! Until the first partition is replaced, trouble ends it, and everything is as before. From then on it is tried until
//! it is done, over restarts too: the state file says what was kept and replaced.

use super::file::{Promotion, State};
use super::run::RunError;
use super::sink::{Sink, SinkTrouble};
use super::{Replays, Running};
use crate::runtime::Instant;
use sluice_common::ids::Name;
use sluice_common::limits::{REPLAY_PATIENCE, RETRY_BACKOFF_MAX};
use sluice_common::replay::{PartCover, Phase, Touched};
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

impl Replays {
    /// Promotes; returns when it is done, refused or told to stop.
    pub(super) async fn promote(&self, running: &Running) {
        let tables: Vec<Name> = running.state.lock().tables().cloned().collect();
        // Orders of dead letters and promotions take turns.
        let Ok(_letters) = self.letters_gate().acquire_owned().await else {
            return;
        };
        self.shelf().hold(&tables);
        let refused = self.until_swapped(running, &tables).await;
        let (phase, reason) = match refused {
            Ok(()) => (Phase::Promoted, None),
            Err(Refusal::Run(RunError::Told)) if self.stopping() => return,
            Err(refusal) => (Phase::Done, Some(refusal.to_string())),
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

    async fn until_swapped(&self, running: &Running, tables: &[Name]) -> Result<(), Refusal> {
        let id = running.state.lock().told.id;
        let sink = self.sink(id);
        let mut begun = running.promotion().saved.len() + running.promotion().swapped.len() > 0;
        if !begun {
            self.settled(running, tables).await?;
            self.catch_up(running, &sink).await?;
            running.promoted(|promotion| promotion.parts.clear());
            for table in tables {
                self.cover(running, &sink, table).await?;
            }
        }
        loop {
            let trouble = match self.swap_all(running, &sink, tables).await {
                Ok(()) => return Ok(()),
                Err(trouble) => trouble,
            };
            begun |= !running.promotion().saved.is_empty();
            if !begun || self.stopping() {
                return Err(trouble);
            }
            tracing::error!(%trouble, "a promotion is half done: it is tried again, and the tables' rows wait");
            running.change(|state| state.told.reason = Some(trouble.to_string()));
            running.wait(RETRY_BACKOFF_MAX).await?;
        }
    }

    /// What was declared before the tables were held is settled, and no rows of them are on their way.
    async fn settled(&self, running: &Running, tables: &[Name]) -> Result<(), Refusal> {
        let (begun, end) = (Instant::now(), self.declared_end());
        while self.committed() < end || self.shelf().is_driven(tables) {
            if begun.elapsed() > REPLAY_PATIENCE {
                return Err(Refusal::Unsettled);
            }
            running.wait(LOOK).await?;
        }
        running.step(format!("rows from record {} on are set aside", self.committed()));
        Ok(())
    }

    /// The shadow takes what was committed since.
    async fn catch_up(&self, running: &Running, sink: &Sink) -> Result<(), Refusal> {
        let (from, to) = (running.state.lock().end, self.committed());
        let wanted = running.wanted();
        let mut touched = Touched::default();
        let mut window_ms = 0;
        let known = running.state.lock().decisions.clone();
        super::scan::walk(self.log(), (from, to), |record| {
            if wanted.has(&record) && known.contains_key(&record.meta.table) {
                super::scan::touch(&mut touched, &record);
                window_ms = record.meta.window_ms.max(window_ms);
            }
            true
        })
        .await
        .map_err(|error| Refusal::Behind(error.to_string()))?;
        if touched.records > 0 {
            let decided = self.decisions(sink, &touched, window_ms).await?;
            let lacking = touched
                .tables
                .keys()
                .find(|table| !decided.by_table.contains_key(*table));
            if lacking.is_some() {
                return Err(Refusal::Behind(decided.notes.join("; ")));
            }
            running.change(|state| {
                state.decisions.extend(decided.by_table);
                state.window_ms = state.window_ms.max(window_ms);
            });
        }
        running.change(|state| state.end = to);
        self.keep(running)?;
        self.run(running).await?;
        running.step(format!(
            "the shadow is caught up to record {to}: {} events more",
            touched.events
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
                let keys = shown.map(|part| (table.clone(), part.part.clone()));
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
        for key in running.promotion().parts {
            let (table, part) = key.clone();
            if !running.promotion().saved.contains(&key) {
                sink.save(table.clone(), part.clone()).await?;
                // Durable before it is replaced: what is kept must never be kept again from then on.
                running.promoted(|promotion| promotion.saved.insert(key.clone()));
                self.keep(running)?;
            }
            if !running.promotion().swapped.contains(&key) {
                sink.swap(table.clone(), part.clone()).await?;
                running.promoted(|promotion| promotion.swapped.insert(key.clone()));
                running.step(format!("table {table}: partition {part} is replaced"));
                self.keep(running)?;
            }
        }
        sink.fence(tables.to_vec()).await?;
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
