//! What dedup kept of a range, to the Kafka topics of its datasets; and dead letters, to theirs.
//!
//! # Design note
//! *What is owed.* Every event that dedup keeps is in its dataset's topic, in log order, at least once: a crash
//! repeats at most the range under way, and whatever was not certain is sent again. A consumer tells a copy by the
//! headers, which are the provenance of the event's row. The topic follows dedup's decision, not ClickHouse's: an
//! event that ClickHouse refuses is in its topic and in `dead_letters`. Where dead letters have a topic, every row of
//! that table is in it, at least once too.
//!
//! *How.* A range is published while it is written to ClickHouse, and committed once both are done (R17). Its dead
//! letters are known once every row has its outcome: they go out between that and the commit; those of a table that
//! was set aside, between its unit's last word and the end of its file. So nothing of them has to be remembered: a
//! crash before that finds range or unit, decides nothing anew, and sends them again.
//!
//! A topic that does not take what is sent by [`PUBLISH_DEADLINE`](sluice_common::limits::PUBLISH_DEADLINE) parts with
//! the range, as a table in trouble does (R16): its share is made durable in the outbox, and what comes after it lines
//! up there, so that order holds and nobody waits. One task a line sends it later, the oldest first ([`lane`]). The
//! outbox is bounded for each dataset, events and letters apart; a full one is that dataset's 503.
//!
//! *Files.* `outbox/*.unit`, as [`parked::file`](crate::parked::file) has them; a unit's table is the dataset. Dead
//! letters are in `outbox/dead_letters/*.unit`, where it is the table whose rows they were, of a unit, or
//! `dead_letters`, of a range: no name meets a dataset's, and a range's units none of another's.
//! A unit of a range that is not committed yet waits for that: a start finds it, and does not send its share twice.

mod lane;
#[cfg(test)]
mod tests;
mod work;

use crate::parked::file::{FileError, UnitId};
use crate::parked::mirror::Mirror;
use crate::parked::shelf::{Copies, Shelf};
use crate::progress::Marks;
use crate::progress::closing::Work;
use crate::pump::batching::{Settings, SharedSettings};
use crate::pump::retries::Retries;
use futures_util::future::{try_join, try_join_all};
use lane::{Lane, Shared, What};
use sluice_common::books::DEAD_LETTERS;
use sluice_common::clock::SharedClock;
use sluice_common::disk::Dir;
use sluice_common::ids::{LogId, Name, Offset};
use sluice_common::limits::PUBLISH_UNITS;
use sluice_common::metrics::Metrics;
use sluice_common::wire::sink::{Range, RangeRecord, SinkRequest};
use sluice_common::wire::transport::Seam;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::Semaphore;

use work::{Lot, lots};
pub use work::{TopicPlan, letters_topic_of, topics_of};

/// What names of copies begin with: the outbox, and where letters lie in it.
pub const OUTBOX_PREFIX: &str = "outbox";
const LETTERS_PREFIX: &str = "outbox/dead_letters";

/// What waits for its topic. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Outbox {
    pub events: Shelf,
    pub letters: Shelf,
}

impl Outbox {
    /// Finds what an earlier process left in `dir`. One dataset may have `max_bytes` of either.
    ///
    /// # Errors
    /// As [`Shelf::open`].
    pub fn open(dir: Dir, of: (LogId, u16), max_bytes: u64, committed: Offset) -> Result<Self, FileError> {
        Self::open_copied(dir, of, (max_bytes, committed), None)
    }

    /// The same, of which there are copies: what is in `dir` was made of them.
    ///
    /// # Errors
    /// As [`Shelf::open`].
    pub fn open_copied(
        dir: Dir,
        of: (LogId, u16),
        bounds: (u64, Offset),
        mirror: Option<Arc<dyn Mirror>>,
    ) -> Result<Self, FileError> {
        let letters = Dir {
            disk: dir.disk.clone(),
            path: dir.join(DEAD_LETTERS),
        };
        let copies = |prefix| {
            let mirror = mirror.clone()?;
            Some(Copies { prefix, mirror })
        };
        Ok(Self {
            events: Shelf::open_copied(dir, of, bounds, copies(OUTBOX_PREFIX))?,
            letters: Shelf::open_copied(letters, of, bounds, copies(LETTERS_PREFIX))?,
        })
    }

    /// Ranges below `committed` are: what waits of them may be sent.
    pub fn committed(&self, committed: Offset) {
        self.events.committed(committed);
        self.letters.committed(committed);
    }
}

/// What waits for its topic, by dataset, in several outboxes together: zeros of all that may wait among it.
#[must_use]
pub fn waiting<'a>(
    letters: bool,
    settings: &Settings,
    outboxes: impl Iterator<Item = &'a Outbox>,
) -> BTreeMap<Name, u64> {
    let what = if letters { What::Letters } else { What::Events };
    let mut waiting = what.none_waiting(settings);
    for outbox in outboxes {
        let shelf = if letters { &outbox.letters } else { &outbox.events };
        for (dataset, bytes) in shelf.bytes() {
            *waiting.entry(dataset).or_default() += bytes;
        }
    }
    waiting
}

/// Publishes a partition's ranges. Cloning shares it.
#[derive(Clone)]
pub struct Publisher {
    pub outbox: Outbox,
    settings: SharedSettings,
    events: Lane,
    letters: Lane,
}

impl Publisher {
    /// A publisher of one partition's ranges; nothing runs yet.
    #[must_use]
    pub fn new(
        (sink, settings): (Seam<SinkRequest>, SharedSettings),
        (log, partition): (LogId, u16),
        outbox: Outbox,
        (metrics, clock, retries): (Metrics, SharedClock, Retries),
    ) -> Self {
        let shared = Shared {
            sink,
            log,
            partition,
            settings: Arc::clone(&settings),
            metrics,
            clock,
            retries,
            room: [(); PUBLISH_UNITS].map(|()| Arc::new(Semaphore::new(1))),
            stuck: Arc::default(),
        };
        Self {
            events: Lane::new(What::Events, outbox.events.clone(), shared.clone()),
            letters: Lane::new(What::Letters, outbox.letters.clone(), shared),
            outbox,
            settings,
        }
    }

    /// Whether a range waits for a share that can neither be sent nor be set aside.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.events.shared.stuck.load(Ordering::Relaxed) > 0
    }

    /// Publishes a range's events: once this returns, each share is in its topic or in the outbox.
    ///
    /// # Errors
    /// [`FileError`] where nobody knows what is in the outbox: the process must end.
    pub async fn range(&self, range: Range, records: &[RangeRecord]) -> Result<(), FileError> {
        let settings = self.settings.load_full();
        if settings.topics.is_empty() {
            return Ok(());
        }
        // Set aside before a crash.
        let known = self.outbox.events.tables_of(range);
        let lots = lots(records, &settings.topics).into_iter();
        let left = lots.filter(|lot| !known.contains(&lot.line));
        try_join_all(left.map(|lot| self.events.lot(range, lot))).await?;
        Ok(())
    }

    /// The same of the dead letters of a range that is settled and `told` so.
    ///
    /// # Errors
    /// As [`Self::range`].
    pub async fn letters(&self, range: Range, records: &[RangeRecord], told: &Work) -> Result<(), FileError> {
        let Ok(line) = Name::new(DEAD_LETTERS) else {
            return Ok(());
        };
        match self.letters_lot(line, || work::letters_of_range(records, told)) {
            // Those that were set aside before a crash are so once more: that is the same file.
            Some(lot) => self.letters.lot(range, lot).await,
            None => Ok(()),
        }
    }

    /// The same of the refused rows of a unit that was set aside, and is settled. It waits for no disk: its table's
    /// other units, and other tables', wait for it.
    ///
    /// # Errors
    /// As [`Self::range`], and [`FileError::Io`] where letters can neither be sent nor be set aside now.
    pub async fn letters_of_unit(
        &self,
        id: &UnitId,
        records: &[RangeRecord],
        marks: &Marks,
    ) -> Result<(), FileError> {
        // Before a crash: its range is committed, so they may be on their way at this moment.
        if self.outbox.letters.tables_of(id.range()).contains(&id.table) {
            return Ok(());
        }
        match self.letters_lot(id.table.clone(), || work::letters_of_unit(records, marks)) {
            Some(lot) => self.letters.lot_once(id.range(), lot).await,
            None => Ok(()),
        }
    }

    fn letters_lot(&self, line: Name, work: impl FnOnce() -> Work) -> Option<Lot> {
        let plan = self.settings.load().letters_topic.clone()?;
        let work = work();
        (!work.is_empty()).then_some(Lot { line, plan, work })
    }

    /// Sends what waits in the outbox, for ever. Dropping it is as a crash.
    ///
    /// # Errors
    /// [`FileError`] where nobody knows what is on disk, or a unit is damaged: the process must end.
    pub async fn drain(self) -> Result<(), FileError> {
        try_join(self.events.drain(), self.letters.drain())
            .await
            .map(drop)
    }
}
