//! All units that are set aside: their files, and what is known of them in memory (heads only).

use super::file::{self, FileError, Head, UnitId};
use super::held::State;
use super::mirror::Mirror;
use crate::progress::closing::{self, Aside, Work, in_flight, of_table};
use crate::progress::plan::Trouble;
use crate::progress::{Marks, Proof};
use parking_lot::Mutex;
use sluice_common::books::BooksLine;
use sluice_common::clock::UnixMs;
use sluice_common::disk::Dir;
use sluice_common::ids::{LogId, Name, Offset};
use sluice_common::servers::ServerId;
use sluice_common::wire::sink::{Range, RangeRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use tokio::sync::Notify;

/// Why a held table's rows are set aside.
const HELD: &str = "a replay is being promoted: its partitions are replaced";
/// What a row of the books weighs here: its share of the head.
const BOOKS_ROW_BYTES: u64 = 256;

/// The shelf of one log's partition. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Shelf(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: Dir,
    log: LogId,
    partition: u16,
    /// What one dataset may have here.
    max_bytes: u64,
    state: Mutex<State>,
    changed: Notify,
    copies: Option<Copies>,
}

/// Where copies of the shelf's files are, and what their names begin with.
#[derive(Clone)]
pub struct Copies {
    pub prefix: &'static str,
    pub mirror: Arc<dyn Mirror>,
}

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Copies of {}", self.prefix)
    }
}

/// What waits in one line: units of a server, by name, and table. Empty for what names no server.
pub type Line = (String, Name);

/// One table's share of a range.
#[derive(Debug, Clone)]
pub struct Share {
    pub range: Range,
    /// Where its rows belong.
    pub server: ServerId,
    pub table: Name,
    /// What was decided of them.
    pub marks: Marks,
    pub since_ms: UnixMs,
}

/// What is known of one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    pub server: Option<ServerId>,
    pub why: String,
    pub reason: String,
    pub heals: bool,
    pub since_ms: UnixMs,
    pub rows: u64,
    pub file_bytes: u64,
    pub bytes: BTreeMap<Name, u64>,
    /// An operator has said that what is absent is to be inserted, and what is there stays.
    pub mend: bool,
    /// Of our own tables: what the books count as in flight with it.
    pub in_flight: Vec<BooksLine>,
}

impl Shelf {
    /// Finds what an earlier process set aside.
    ///
    /// # Errors
    /// [`FileError`]; also where a file is of another log.
    pub fn open(dir: Dir, of: (LogId, u16), max_bytes: u64, committed: Offset) -> Result<Self, FileError> {
        Self::open_copied(dir, of, (max_bytes, committed), None)
    }

    /// The same, of which there are copies: what is in `dir` was made of them.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_copied(
        dir: Dir,
        (log, partition): (LogId, u16),
        (max_bytes, committed): (u64, Offset),
        copies: Option<Copies>,
    ) -> Result<Self, FileError> {
        let mut state = State {
            committed,
            ..State::default()
        };
        for id in file::list(&dir)? {
            let (head, file_bytes) = file::read_head(&dir, &id)?;
            if (head.log, head.partition) != (log, partition) {
                return Err(FileError::Damaged {
                    path: dir.path,
                    reason: format!("it holds rows of log {}, and the log is {log}", head.log),
                });
            }
            state.add(id, Unit::new(&head, file_bytes));
        }
        let shelf = Self(Arc::new(Inner {
            dir,
            log,
            partition,
            max_bytes,
            state: Mutex::new(state),
            changed: Notify::new(),
            copies,
        }));
        shelf.0.state.lock().weigh(max_bytes);
        Ok(shelf)
    }

    /// The tables whose share of `range` is here.
    #[must_use]
    pub fn tables_of(&self, range: Range) -> Aside {
        let state = self.0.state.lock();
        let of_range = state.units.keys().filter(|id| id.range() == range);
        of_range.map(|id| id.table.clone()).collect()
    }

    /// Tables that take nothing at a server, each with the reason that was told last.
    #[must_use]
    pub fn broken(&self, server: &ServerId) -> BTreeMap<Name, String> {
        let state = self.0.state.lock();
        let reason = |line: &Line| {
            let mut units = state.units.iter().filter(|(id, unit)| unit.line(id) == *line);
            units
                .next_back()
                .map_or(String::new(), |(_, unit)| unit.reason.clone())
        };
        let here = state.broken.iter().filter(|(name, _)| *name == server.name);
        let mut broken: BTreeMap<Name, String> = here.map(|line| (line.1.clone(), reason(line))).collect();
        let held = state.held.iter().map(|table| (table.clone(), HELD.to_owned()));
        broken.extend(held);
        broken
    }

    /// From now on nothing is written to these tables: what comes for them is set aside, and nothing of it goes in.
    pub fn hold(&self, tables: &[Name]) {
        self.0.state.lock().held.extend(tables.iter().cloned());
    }

    /// They take rows again.
    pub fn release(&self, tables: &[Name]) {
        self.0.state.lock().held.retain(|table| !tables.contains(table));
        self.0.changed.notify_one();
    }

    /// Whether a table is held.
    #[must_use]
    pub fn is_held(&self, table: &Name) -> bool {
        self.0.state.lock().held.contains(table)
    }

    /// Whether anything of a table is here.
    #[must_use]
    pub fn has(&self, table: &Name) -> bool {
        self.0.state.lock().of_tables.contains_key(table)
    }

    /// Whether a unit of one of these tables is being worked on.
    #[must_use]
    pub fn is_driven(&self, tables: &[Name]) -> bool {
        let state = self.0.state.lock();
        state.driven.iter().any(|(_, table)| tables.contains(table))
    }

    /// Work on the oldest unit of a line begins: `None` where there is none, or its table is held. It ends with
    /// [`Self::worked`].
    #[must_use]
    pub fn take(&self, line: &Line) -> Option<(UnitId, Unit)> {
        let mut state = self.0.state.lock();
        let mut of_line = state.drivable().filter(|(id, unit)| unit.line(id) == *line);
        let taken = of_line.next().map(|(id, unit)| (id.clone(), unit.clone()));
        drop(of_line);
        if taken.is_some() {
            state.driven.insert(line.clone());
        }
        taken
    }

    /// Work on a line's unit has ended, for now.
    pub fn worked(&self, line: &Line) {
        self.0.state.lock().driven.remove(line);
    }

    /// Makes one table's share of a range durable here. Blocks for the disk.
    ///
    /// # Errors
    /// [`FileError`], as [`file::write`] says.
    pub fn set_aside(
        &self,
        share: &Share,
        trouble: &Trouble,
        records: &[RangeRecord],
    ) -> Result<(), FileError> {
        let records = of_table(records, &share.table);
        let head = self.head(share, trouble, &records);
        self.keep(&head, &records)
    }

    /// The same of what a range writes to one of our own tables. What was there of it before is replaced.
    ///
    /// # Errors
    /// As [`Self::set_aside`].
    pub fn set_aside_own(&self, share: &Share, trouble: &Trouble, work: &Work) -> Result<(), FileError> {
        let head = Head {
            ledger: work.ledger.clone(),
            quarantined: work.quarantined.clone(),
            in_flight: in_flight(share.table.as_str(), work),
            ..self.head(share, trouble, &work.records)
        };
        self.keep(&head, &work.records)
    }

    fn head(&self, share: &Share, trouble: &Trouble, records: &[RangeRecord]) -> Head {
        let (mut rows, mut bytes) = (BTreeMap::new(), BTreeMap::new());
        for one in records {
            let dataset = &one.record.meta.dataset;
            *rows.entry(dataset.clone()).or_default() += u64::from(one.fates.kept());
            *bytes.entry(dataset.clone()).or_default() += one.record.frame().len() as u64;
        }
        Head {
            log: self.0.log,
            partition: self.0.partition,
            range: share.range,
            table: share.table.clone(),
            server: Some(share.server.clone()),
            why: trouble.why.label().to_owned(),
            reason: trouble.reason.clone(),
            heals: trouble.why.heals(),
            since_ms: share.since_ms,
            marks: share.marks.clone(),
            fates: records.iter().map(|one| one.fates.clone()).collect(),
            rows,
            bytes,
            ledger: Vec::new(),
            quarantined: Vec::new(),
            in_flight: Vec::new(),
        }
    }

    fn keep(&self, head: &Head, records: &[RangeRecord]) -> Result<(), FileError> {
        let id = UnitId::new(head.range, head.table.clone());
        file::write(&self.0.dir, &id, head, records)?;
        self.copy(&id, "unit")?;
        let file_bytes = head.bytes.values().sum();
        let mut state = self.0.state.lock();
        state.add(id, Unit::new(head, file_bytes));
        state.weigh(self.0.max_bytes);
        // Its range may be committed already: dead letters of a unit are.
        self.0.changed.notify_one();
        Ok(())
    }

    /// Ranges below `committed` are: their units may be settled.
    pub fn committed(&self, committed: Offset) {
        let mut state = self.0.state.lock();
        state.committed = committed;
        if !state.units.is_empty() {
            self.0.changed.notify_one();
        }
    }

    /// Resolves when something was set aside, committed or ordered.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Lines with a unit that can be worked on.
    #[must_use]
    pub fn lines_to_drive(&self) -> BTreeSet<Line> {
        let state = self.0.state.lock();
        state.drivable().map(|(id, unit)| unit.line(id)).collect()
    }

    /// Reads a unit with what was decided of it. Blocks for the disk.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read(&self, id: &UnitId) -> Result<(Work, Marks), FileError> {
        let (head, records) = file::read(&self.0.dir, id)?;
        let marks = file::read_marks(&self.0.dir, id, &head)?;
        let mut work = closing::rows(&records, &Aside::new());
        // Of its own records, those that only refused rows stand in count too.
        work.records = records;
        let refused = head.quarantined.iter().flat_map(|one| &one.rows);
        refused.for_each(|o| work.proof.add(*o));
        work.books = Proof::of(head.ledger.iter().map(|row| row.source_o));
        (work.ledger, work.quarantined) = (head.ledger, head.quarantined);
        Ok((work, marks))
    }

    /// Makes a unit's marks durable. Blocks for the disk.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn keep_marks(&self, id: &UnitId, marks: &Marks) -> Result<(), FileError> {
        file::write_marks(&self.0.dir, id, marks)?;
        self.copy(id, "marks")
    }

    /// A file of a unit was written.
    fn copy(&self, id: &UnitId, extension: &str) -> Result<(), FileError> {
        let Some(Copies { prefix, mirror }) = &self.0.copies else {
            return Ok(());
        };
        let name = id.name(extension);
        let path = self.0.dir.join(&name);
        let put = mirror.put(&format!("{prefix}/{name}"), &path);
        put.map_err(|error| FileError::Io { path, error })
    }

    /// A unit is no more. Where a copy stays, whoever finds it sees that its rows are there.
    fn forget(&self, id: &UnitId) {
        let Some(Copies { prefix, mirror }) = &self.0.copies else {
            return;
        };
        for extension in ["unit", "marks"] {
            if let Err(error) = mirror.remove(&format!("{prefix}/{}", id.name(extension))) {
                tracing::warn!(%error, table = %id.table, "a copy of what was set aside could not be removed");
            }
        }
    }

    /// Takes note of what a unit suffers from now.
    pub fn note(&self, id: &UnitId, trouble: &Trouble) {
        let mut state = self.0.state.lock();
        if let Some(unit) = state.units.get_mut(id) {
            trouble.why.label().clone_into(&mut unit.why);
            unit.reason.clone_from(&trouble.reason);
            unit.heals = trouble.why.heals();
            // An order is for one attempt: what it meets may be something else.
            unit.mend = false;
        }
        state.unbreak(id);
    }

    /// Takes note of why a unit waits, where its table is not at fault.
    pub fn note_reason(&self, id: &UnitId, reason: &str) {
        if let Some(unit) = self.0.state.lock().units.get_mut(id) {
            reason.clone_into(&mut unit.reason);
        }
    }

    /// A unit is settled: its file goes, and its table takes rows again. Blocks for the disk.
    ///
    /// # Errors
    /// [`FileError::InDoubt`].
    pub fn remove(&self, id: &UnitId) -> Result<(), FileError> {
        file::remove(&self.0.dir, id)?;
        self.forget(id);
        let mut state = self.0.state.lock();
        if let Some(unit) = state.take_out(id) {
            state.broken.remove(&unit.line(id));
        }
        state.weigh(self.0.max_bytes);
        Ok(())
    }

    /// Has units of a table that wait for a person mended: what is absent is inserted, what is there
    /// stays. How many there are.
    #[must_use]
    pub fn mend(&self, table: &Name) -> usize {
        let mut state = self.0.state.lock();
        let waits = |id: &UnitId, unit: &Unit| id.table == *table && !unit.heals;
        let mut ordered = 0;
        for (_, unit) in state.units.iter_mut().filter(|(id, unit)| waits(id, unit)) {
            unit.mend = true;
            ordered += 1;
        }
        self.0.changed.notify_one();
        ordered
    }

    /// Bytes that are here, by dataset.
    #[must_use]
    pub fn bytes(&self) -> BTreeMap<Name, u64> {
        let state = self.0.state.lock();
        state
            .of_datasets
            .iter()
            .map(|(name, held)| (name.clone(), held.bytes))
            .collect()
    }

    /// Everything here, oldest first.
    #[must_use]
    pub fn units(&self) -> Vec<(UnitId, Unit)> {
        let state = self.0.state.lock();
        state
            .units
            .iter()
            .map(|(id, unit)| (id.clone(), unit.clone()))
            .collect()
    }

    /// Datasets that have so much here that no more is taken for them.
    #[must_use]
    pub fn full(&self) -> Vec<Name> {
        self.0.state.lock().full.iter().cloned().collect()
    }

    /// Whether a dataset has so much here that no more is taken for it.
    #[must_use]
    pub fn is_full(&self, dataset: &str) -> bool {
        let state = self.0.state.lock();
        !state.full.is_empty() && state.full.iter().any(|one| one.as_str() == dataset)
    }

    /// Units that are here, by table.
    #[must_use]
    pub fn units_of_tables(&self) -> BTreeMap<Name, usize> {
        self.0.state.lock().of_tables.clone()
    }
}

impl Unit {
    fn new(head: &Head, file_bytes: u64) -> Self {
        let mut bytes = head.bytes.clone();
        for row in &head.ledger {
            *bytes.entry(row.dataset.clone()).or_default() += BOOKS_ROW_BYTES;
        }
        Self {
            server: head.server.clone(),
            in_flight: head.in_flight.clone(),
            why: head.why.clone(),
            reason: head.reason.clone(),
            heals: head.heals,
            since_ms: head.since_ms,
            rows: head.rows.values().sum::<u64>() + head.ledger.len() as u64 + refused(head),
            file_bytes,
            bytes,
            mend: false,
        }
    }

    pub(super) fn line(&self, id: &UnitId) -> Line {
        let server = self.server.as_ref();
        (
            server.map_or_else(String::new, |server| server.name.clone()),
            id.table.clone(),
        )
    }
}

/// Rows that go out as letters of a unit.
fn refused(head: &Head) -> u64 {
    let refused: usize = head.quarantined.iter().map(|one| one.rows.len()).sum();
    let conflicts: usize = head.fates.iter().map(|fates| fates.conflicts().len()).sum();
    (refused + conflicts) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::plan::Why;
    use crate::sim::append::kept;
    use std::time::Duration;

    /// A shelf that holds the rows of table `a` of records `[0, 3)`.
    fn shelf(max_bytes: u64) -> (tempfile::TempDir, Shelf) {
        let root = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(root.path().into(), (LogId(1), 0), max_bytes, 0).unwrap();
        let share = Share {
            range: Range { a: 0, b: 3 },
            server: ServerId {
                name: "a:8123".into(),
                uuid: None,
            },
            table: Name::new("a").unwrap(),
            marks: Marks::default(),
            since_ms: 0,
        };
        let trouble = Trouble {
            since: Duration::ZERO,
            why: Why::Unsettled,
            reason: "code 60".into(),
        };
        let records: Vec<RangeRecord> = (0..3).map(|offset| kept((offset, 0), 5)).collect();
        shelf.set_aside(&share, &trouble, &records).unwrap();
        (root, shelf)
    }

    #[test]
    fn what_is_set_aside_is_settled_only_once_its_whole_range_is_committed() {
        let (_root, shelf) = shelf(1 << 20);
        for committed in [0, 2] {
            shelf.committed(committed);
            assert!(shelf.lines_to_drive().is_empty(), "{committed} of 3");
        }
        shelf.committed(3);
        assert_eq!(shelf.lines_to_drive().len(), 1);
    }

    #[test]
    fn of_a_held_table_nothing_goes_in_and_what_comes_is_set_aside() {
        let (_root, shelf) = shelf(1 << 20);
        shelf.committed(3);
        let (a, b) = (Name::new("a").unwrap(), Name::new("b").unwrap());
        let line = shelf.lines_to_drive().pop_first().unwrap();
        let driven = |table: &Name| shelf.is_driven(std::slice::from_ref(table));
        let taken = shelf.take(&line);
        assert!(taken.is_some() && driven(&a) && !driven(&b));
        shelf.hold(&[a.clone(), b.clone()]);
        assert!(driven(&a), "it is waited for");
        shelf.worked(&line);
        assert!(!driven(&a));
        assert!(shelf.take(&line).is_none() && shelf.lines_to_drive().is_empty());
        let other = ServerId {
            name: "z:8123".into(),
            uuid: None,
        };
        assert!(shelf.broken(&other).keys().eq([&a, &b]), "at any server");
        shelf.release(&[a, b]);
        assert!(shelf.take(&line).is_some() && shelf.broken(&other).is_empty());
    }

    #[test]
    fn a_dataset_that_has_set_aside_as_much_as_it_may_is_full_and_no_other() {
        assert!(!shelf(1 << 20).1.is_full("a"));
        let (_root, small) = shelf(100);
        assert!(small.is_full("a") && !small.is_full("b"));
    }
}
