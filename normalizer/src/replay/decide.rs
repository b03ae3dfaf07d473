//! Which rows of a record were kept, as dedup decided when they came.
//!
//! | | how | exact, because |
//! |---|---|---|
//! | [`Decisions::Provenance`] | the rows that the live table has | as many are there as the books say were stored |
//! | [`Decisions::Anew`] | a dedup state of the replay's own reads the log from one window earlier on | a decision is a function of one window of log (R7) |
//! | [`Decisions::All`] | all | the books of these minutes know of no repeats |
//!
//! Where rows are missing from the live table, those that are dead letters are told apart by these, and rows that are set
//! aside are left out: they are in flight. A row that the live table has was kept, whatever speaks against it.

use super::Source;
use super::file::{self, Leg};
use super::sink::{Sink, SinkTrouble};
use crate::dedup::{Dedup, DedupError, DedupOpenError, DedupOptions};
use crate::log::{Partition, ReadError};
use crate::parked::shelf::Shelf;
use crate::runtime::block_in_place;
use sluice_common::clock::UnixMs;
use sluice_common::disk::Dir;
use sluice_common::fates::{Fate, Fates};
use sluice_common::gentle::{Undone, gently};
use sluice_common::ids::{Name, Offset};
use sluice_common::limits::LOG_READ_BYTES;
use sluice_common::record::Record;
use sluice_common::replay::{Decisions, KeptRows};
use sluice_common::shutdown::Stop;
use sluice_common::wire::sink::{Range, RangeRecord};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Ranges whose provenance is asked for at once.
const RANGES_AHEAD: u64 = 8;
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
    #[error("told to stop")]
    Told,
    #[error(
        "the log no longer reaches back one dedup window: which rows are repeats cannot be decided any more; plan anew"
    )]
    WindowLost,
    #[error("{0}")]
    Directory(#[from] std::io::Error),
    #[error("{0}; resume it")]
    Undone(#[from] Undone),
}

/// Decides records of a partition in their order.
pub struct Decider {
    log: Arc<dyn Partition>,
    sink: Sink,
    decisions: BTreeMap<Name, Decisions>,
    anew: Option<Anew>,
    /// By live table.
    ahead: HashMap<Name, Ahead>,
    /// Records are asked for up to here.
    end: Offset,
    /// Live tables without rows.
    empty: BTreeSet<Name>,
    /// What waits in it is in flight, and goes in by itself.
    shelf: Shelf,
    told: Stop,
    /// The widest of the records that are replayed.
    window_ms: u64,
    /// For [`Decisions::Anew`]: where its state is kept.
    dir: Dir,
    dedup_at: DedupAt,
}

/// Rows that a live table has of some records.
struct Ahead {
    span: Range,
    rows: HashMap<Offset, KeptRows>,
}

/// A dedup state of the replay's own.
struct Anew {
    dedup: Dedup,
    next: Offset,
}

impl Decider {
    /// Nothing is read yet; `dir` is the replays'.
    #[must_use]
    pub fn new(source: Source, leg: &Leg, (dir, dedup_at): (&Dir, DedupAt), told: Stop) -> Self {
        let Source { log, sink, shelf } = source;
        let dir = file::dedup_dir(dir, sink.id);
        Self {
            empty: leg.empty.clone(),
            shelf,
            told,
            log,
            sink,
            decisions: leg.decisions.clone(),
            anew: None,
            ahead: HashMap::new(),
            end: leg.end,
            window_ms: leg.window_ms,
            dir,
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
        records: &[Record],
    ) -> Result<Vec<RangeRecord>, DecideError> {
        let anew = self.tables_of(records, |how| how != Decisions::Provenance);
        for table in self.tables_of(records, |_| true) {
            if !anew.contains(&table) || !self.empty.contains(&table) {
                self.look_ahead(table, range).await?;
            }
        }
        let mut refused = HashMap::new();
        if !anew.is_empty() {
            let letters = self.sink.letters(range).await?;
            refused.extend(letters.into_iter().map(|rows| (rows.offset, rows)));
        }
        let anew = self.anew(range, records).await?;
        let aside = self.shelf.units();
        let decided = records.iter().map(|record| {
            let (offset, table) = (record.place.offset, &record.meta.table);
            let how = self.decisions.get(table);
            let live = self.ahead.get(table).and_then(|ahead| ahead.rows.get(&offset));
            let waits = aside
                .iter()
                .any(|(id, _)| id.table == *table && (id.a..id.b).contains(&offset));
            let found = |row: u16| match how {
                Some(Decisions::Provenance) | None => false,
                Some(_) if waits || has(&refused, offset, row) => false,
                Some(Decisions::Anew) => anew.get(&offset).is_some_and(|fates| fates.of(row) == Fate::Keep),
                Some(Decisions::All) => true,
            };
            // What is there was kept, whatever speaks against it.
            let fates = fates_of(record, |row| live.is_some_and(|rows| rows.has(row)) || found(row));
            let record = record.clone();
            RangeRecord { record, fates }
        });
        Ok(decided.collect())
    }

    /// Tables of some records that are decided in such a way.
    fn tables_of(&self, records: &[Record], is_so: impl Fn(Decisions) -> bool) -> Vec<Name> {
        let mut tables: Vec<Name> = records.iter().map(|record| record.meta.table.clone()).collect();
        tables.sort();
        tables.dedup();
        tables.retain(|table| self.decisions.get(table).is_some_and(|how| is_so(*how)));
        tables
    }

    /// Knows which rows of a range its live table has. A question costs the server a look at the whole column, so it
    /// is asked for several ranges at once, and for one where that is more than an answer holds.
    async fn look_ahead(&mut self, table: Name, range: Range) -> Result<(), SinkTrouble> {
        let knows = |ahead: &Ahead| ahead.span.a <= range.a && range.b <= ahead.span.b;
        if self.ahead.get(&table).is_some_and(knows) {
            return Ok(());
        }
        let far = range
            .a
            .saturating_add((range.b - range.a).saturating_mul(RANGES_AHEAD));
        let mut span = Range {
            a: range.a,
            b: far.min(self.end).max(range.b),
        };
        let rows = match self.sink.kept(table.clone(), span).await {
            Err(_) if span != range => {
                span = range;
                self.sink.kept(table.clone(), span).await?
            }
            rows => rows?,
        };
        let rows = rows.into_iter().map(|rows| (rows.offset, rows)).collect();
        self.ahead.insert(table, Ahead { span, rows });
        Ok(())
    }

    /// Fates of the records that are decided anew; what lies before them is read first.
    async fn anew(
        &mut self,
        range: Range,
        records: &[Record],
    ) -> Result<HashMap<Offset, Fates>, DecideError> {
        let wanted = self.tables_of(records, |how| how == Decisions::Anew);
        if wanted.is_empty() {
            return Ok(HashMap::new());
        }
        let mut state = match self.anew.take().filter(|state| state.next <= range.a) {
            Some(state) => state,
            None => self.open(records)?,
        };
        let mut fates = HashMap::new();
        while state.next < range.b {
            if self.told.is_cancelled() {
                return Err(DecideError::Told);
            }
            let (log, wanted) = (Arc::clone(&self.log), wanted.clone());
            let decided = gently(move || {
                let decided = state.goes_on(&*log, range, &wanted);
                (state, decided)
            });
            let (went_on, decided) = decided.await?;
            state = went_on;
            fates.extend(decided?);
        }
        self.anew = Some(state);
        Ok(fates)
    }

    fn open(&self, records: &[Record]) -> Result<Anew, DecideError> {
        let oldest = records.first().map_or(0, |record| record.place.append_ms);
        if !reaches_back(&*self.log, oldest, self.window_ms)? {
            return Err(DecideError::WindowLost);
        }
        match std::fs::remove_dir_all(&self.dir.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        let dedup = block_in_place(|| Dedup::open((self.dedup_at)(self.dir.clone())))?;
        let since = oldest.saturating_sub(self.window_ms);
        let next = block_in_place(|| self.log.appended_since(since))?;
        Ok(Anew { dedup, next })
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

impl Anew {
    /// Decides some more records, up to the end of a range; those of it in the tables that are wanted are told, and a
    /// window of others before it is not kept. Blocks for the disk, and until a bucket has been sealed.
    fn goes_on(
        &mut self,
        log: &dyn Partition,
        range: Range,
        wanted: &[Name],
    ) -> Result<Vec<(Offset, Fates)>, DecideError> {
        let mut decided = Vec::new();
        for record in log.read(self.next, LOG_READ_BYTES)? {
            let offset = record.place.offset;
            if offset >= range.b {
                break;
            }
            let fates = self.decide(&record)?;
            self.next = offset + 1;
            if offset >= range.a && wanted.contains(&record.meta.table) {
                decided.push((offset, fates));
            }
        }
        // Nothing of it is needed after a crash: all is as good as committed.
        self.dedup.committed(self.next)?;
        Ok(decided)
    }

    fn decide(&mut self, record: &Record) -> Result<Fates, DedupError> {
        loop {
            match self.dedup.decide(record) {
                Err(stalled @ DedupError::Stalled { .. }) => {
                    self.dedup.committed(record.place.offset)?;
                    if self.dedup.stats().over_limit {
                        return Err(stalled);
                    }
                    thread::sleep(SEAL_WAIT);
                }
                decided => return decided,
            }
        }
    }
}

/// Whether the log reaches back one window before records that were first appended at `first_ms`.
///
/// # Errors
/// The log's.
pub fn reaches_back(log: &dyn Partition, first_ms: UnixMs, window_ms: u64) -> Result<bool, ReadError> {
    // Where it begins is known anew by it.
    block_in_place(|| log.end())?;
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
