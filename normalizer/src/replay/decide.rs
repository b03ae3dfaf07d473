//! Which rows of a record were kept, as dedup decided when they came.
//!
//! | | how | exact, because |
//! |---|---|---|
//! | [`Decisions::Provenance`] | the rows that the live table has | as many are there as the books say were stored |
//! | [`Decisions::Anew`] | a dedup state of the replay's own reads the log from one window earlier on | a decision is a function of one window of log (R7) |
//! | [`Decisions::All`] | all | the books of these minutes know of no repeats |
//!
//! Where rows are missing from the live table, those that ClickHouse refused are told apart by their dead letters.

use super::file::{self, State};
use super::sink::{Sink, SinkTrouble};
use crate::dedup::{Dedup, DedupError, DedupOpenError, DedupOptions};
use crate::log::{EmbeddedLog, ReadError};
use crate::runtime::{block_in_place, sleep};
use sluice_common::clock::UnixMs;
use sluice_common::disk::Dir;
use sluice_common::fates::{Fate, Fates};
use sluice_common::ids::{Name, Offset};
use sluice_common::record::Record;
use sluice_common::replay::{Decisions, KeptRows};
use sluice_common::wire::sink::{Range, RangeRecord};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Record bytes read from the log at once.
const READ_BYTES: usize = 4 * 1024 * 1024;
/// Between two looks whether a bucket has been sealed.
const SEAL_WAIT: Duration = Duration::from_millis(20);

/// Makes the options of a dedup state in another directory.
pub type DedupAt = Arc<dyn Fn(Dir) -> DedupOptions + Send + Sync>;

/// Why nothing could be decided.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    #[error("reading the log: {0}")]
    Log(#[from] ReadError),
    #[error("deciding anew: {0}")]
    Dedup(#[from] DedupError),
    #[error("a dedup state of the replay's own: {0}")]
    Open(#[from] DedupOpenError),
    #[error("{0}")]
    Sink(#[from] SinkTrouble),
    #[error("{0}")]
    Directory(#[from] std::io::Error),
}

/// Decides records in log order.
pub struct Decider {
    log: Arc<EmbeddedLog>,
    sink: Sink,
    decisions: BTreeMap<Name, Decisions>,
    anew: Option<Anew>,
    /// The widest of the records that are replayed.
    window_ms: u64,
    /// For [`Decisions::Anew`]: where its state is kept.
    dir: Dir,
    dedup_at: DedupAt,
}

/// A dedup state of the replay's own.
struct Anew {
    dedup: Dedup,
    next: Offset,
}

impl Decider {
    /// Nothing is read yet; `dir` is the replays'.
    #[must_use]
    pub fn new((log, sink): (Arc<EmbeddedLog>, Sink), state: &State, dir: &Dir, dedup_at: DedupAt) -> Self {
        Self {
            log,
            sink,
            decisions: state.decisions.clone(),
            anew: None,
            window_ms: state.window_ms,
            dir: file::dedup_dir(dir, state.told.id),
            dedup_at,
        }
    }

    /// The same rows as were kept, of records of one range, in order; all of the range's records that are replayed
    /// are among them.
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn decide(
        &mut self,
        range: Range,
        records: Vec<Record>,
    ) -> Result<Vec<RangeRecord>, DecideError> {
        let mut kept = HashMap::new();
        for table in self.tables_of(&records, Decisions::Provenance) {
            let rows = self.sink.kept(table, range).await?;
            kept.extend(rows.into_iter().map(|rows| (rows.offset, rows)));
        }
        let mut refused = HashMap::new();
        let without = [Decisions::Anew, Decisions::All].map(|how| self.tables_of(&records, how).is_empty());
        if without.contains(&false) {
            let letters = self.sink.letters(range).await?;
            refused.extend(letters.into_iter().map(|rows| (rows.offset, rows)));
        }
        let anew = self.anew(range, &records).await?;
        let decided = records.into_iter().map(|record| {
            let (offset, how) = (record.place.offset, self.decisions.get(&record.meta.table));
            let stays = |row: u16| match how {
                Some(Decisions::Provenance) => has(&kept, offset, row),
                Some(Decisions::Anew) => {
                    let keeps = |fates: &Fates| fates.of(row) == Fate::Keep;
                    anew.get(&offset).is_some_and(keeps) && !has(&refused, offset, row)
                }
                Some(Decisions::All) => !has(&refused, offset, row),
                None => false,
            };
            let fates = fates_of(&record, stays);
            RangeRecord { record, fates }
        });
        Ok(decided.collect())
    }

    fn tables_of(&self, records: &[Record], how: Decisions) -> Vec<Name> {
        let mut tables: Vec<Name> = records.iter().map(|record| record.meta.table.clone()).collect();
        tables.sort();
        tables.dedup();
        tables.retain(|table| self.decisions.get(table) == Some(&how));
        tables
    }

    /// Fates of the records that are decided anew; what lies before them is read first.
    async fn anew(
        &mut self,
        range: Range,
        records: &[Record],
    ) -> Result<HashMap<Offset, Fates>, DecideError> {
        let wanted = self.tables_of(records, Decisions::Anew);
        if wanted.is_empty() {
            return Ok(HashMap::new());
        }
        let mut state = match self.anew.take().filter(|state| state.next <= range.a) {
            Some(state) => state,
            None => self.open(records)?,
        };
        let mut fates = HashMap::new();
        while state.next < range.b {
            let read = block_in_place(|| self.log.read(state.next, READ_BYTES))?;
            for record in read {
                let offset = record.place.offset;
                if offset >= range.b {
                    break;
                }
                let of_record = loop {
                    match block_in_place(|| state.dedup.decide(&record)) {
                        Err(DedupError::Stalled { .. }) => {
                            block_in_place(|| state.dedup.committed(offset))?;
                            sleep(SEAL_WAIT).await;
                        }
                        decided => break decided?,
                    }
                };
                state.next = offset + 1;
                if offset >= range.a && wanted.contains(&record.meta.table) {
                    fates.insert(offset, of_record);
                }
            }
            // Nothing of it is needed after a crash: all is as good as committed.
            block_in_place(|| state.dedup.committed(state.next))?;
        }
        self.anew = Some(state);
        Ok(fates)
    }

    fn open(&self, records: &[Record]) -> Result<Anew, DecideError> {
        let oldest = records.first().map_or(0, |record| record.place.append_ms);
        match std::fs::remove_dir_all(&self.dir.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        let dedup = block_in_place(|| Dedup::open((self.dedup_at)(self.dir.clone())))?;
        Ok(Anew {
            dedup,
            next: self
                .log
                .first_offset_appended_at_or_after(oldest.saturating_sub(self.window_ms)),
        })
    }

    /// Ends it; its state on disk goes.
    pub fn close(mut self) {
        self.anew = None;
        if let Err(error) = std::fs::remove_dir_all(&self.dir.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, dir = %self.dir.path.display(), "a replay's dedup state stays until the next start");
        }
    }
}

/// Whether the log reaches back one window before records that were first appended at `first_ms`.
///
/// # Errors
/// The log's.
pub fn reaches_back(log: &EmbeddedLog, first_ms: UnixMs, window_ms: u64) -> Result<bool, ReadError> {
    let first = log.first_offset();
    if first == 0 {
        return Ok(true);
    }
    let oldest = block_in_place(|| log.read(first, 1))?;
    let oldest = oldest.first().map(|record| record.place.append_ms);
    Ok(oldest.is_some_and(|oldest| oldest <= first_ms.saturating_sub(window_ms)))
}

fn has(rows: &HashMap<Offset, KeptRows>, offset: Offset, row: u16) -> bool {
    rows.get(&offset).is_some_and(|rows| rows.has(row))
}

fn fates_of(record: &Record, stays: impl Fn(u16) -> bool) -> Fates {
    let mut fates = Fates::new();
    for row in 0..record.rows() {
        let row = u16::try_from(row).unwrap_or(u16::MAX);
        fates.push(if stays(row) { Fate::Keep } else { Fate::Drop });
    }
    fates
}
