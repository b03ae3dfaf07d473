//! The pump: reads its partition in log order, has dedup decide, cuts ranges, declares them, has them
//! settled, commits.
//!
//! Two stages overlap: while one range is being settled the next one is decided and grows. The pump
//! therefore never runs more than two ranges ahead of what is committed, which bounds memory and the
//! dedup state that is not yet on disk.

mod aside;
pub mod batching;
mod books;
pub mod call;
mod count;
pub mod drive;
mod leave;
pub mod live;
pub mod pacing;
mod parts;
mod range;
mod recover;
pub mod retries;
mod room;
pub mod servers;
mod turns;
mod under_way;

use crate::dedup::{Dedup, DedupError};
use crate::grant::{Load, Meter};
use crate::log::Partition;
use crate::owned::Work;
use crate::parked::driver::Drivers;
use crate::progress::Progress;
use crate::progress::store::Store;
use crate::publish::Publisher;
use crate::runtime::{block_in_place, sleep};
use batching::{Settings, SharedSettings};
use call::Caller;
use drive::{Driver, Start};
use leave::end;
use live::Live;
use pacing::Pace;
use parking_lot::Mutex;
use range::{ClosedRange, OpenRange, sends};
use retries::Retries;
use servers::Servers;
use sluice_common::clock::SharedClock;
use sluice_common::failpoint::Point;
use sluice_common::ids::{Name, Offset};
use sluice_common::limits::{LOG_READ_BYTES, VERIFY_ONE_IN};
use sluice_common::metrics::{Counter, Histogram, Metrics};
use sluice_common::record::Record;
use sluice_common::shutdown::Stop;
use sluice_common::wire::sink::RangeRecord;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use under_way::{Settled, UnderWay};

pub use parts::{Leave, Parts, PumpError};

/// A backlog is late at so many times the age to which ranges grow: one grows, one is settled.
const LATE_AGES: u64 = 3;
/// How long the pump sleeps at most before it looks around again.
const IDLE: Duration = Duration::from_secs(1);
/// How long a pump that is to leave its partition waits for the range under way. Whoever works on it next verifies what
/// was not settled by then.
const LEAVE_PATIENCE: Duration = Duration::from_secs(3);
/// The running pump of one partition.
pub struct Pump {
    log: Arc<dyn Partition>,
    dedup: Dedup,
    driver: Driver,
    publisher: Publisher,
    meter: Meter,
    store: Arc<Mutex<Store>>,
    settings: SharedSettings,
    /// Of the settings in force, those that were taken.
    taken: Arc<Settings>,
    /// Tables that the config has or had, and those that records name.
    tables: Vec<Name>,
    metrics: Metrics,
    clock: SharedClock,
    stop: Stop,
    leave: Leave,
    left_at: Option<Instant>,
    accept_window_loss: bool,
    live: Arc<Live>,
    next: OpenRange,
    under_way: Option<UnderWay>,
    pace: Pace,
    ranges: u64,
    /// The last trouble of the dedup state that was logged.
    told: Option<String>,
}

impl Pump {
    /// A pump that has not begun.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts {
            log,
            dedup,
            store,
            shelf,
            outbox,
            grant,
            sink,
            metrics,
            clock,
            stop,
            leave,
            accept_window_loss,
            settings,
            pace,
            park_after,
            dice,
        } = parts;
        let taken = settings.load_full();
        let next = OpenRange::at(store.state().end());
        let committed = store.state().committed;
        let store = Arc::new(Mutex::new(store));
        let live = Live::announced(&metrics, committed);
        let of = (log.log(), log.number());
        let caller = Caller {
            log: of.0,
            partition: of.1,
            sink,
            instead: BTreeMap::new(),
        };
        let driver = Driver {
            servers: Servers::new(caller.sink.clone()),
            caller,
            store: Arc::clone(&store),
            shelf,
            park_after,
            clock: Arc::clone(&clock),
            metrics: metrics.clone(),
            in_trouble: Arc::clone(&live.in_trouble),
            retries: Retries::new(Arc::clone(&clock), metrics.clone(), dice),
        };
        let publisher = Publisher::new(
            (driver.caller.sink.clone(), Arc::clone(&settings)),
            of,
            outbox,
            (metrics.clone(), Arc::clone(&clock), driver.retries.clone()),
        );
        Self {
            log,
            dedup,
            driver,
            publisher,
            meter: grant.meter(of.1),
            store,
            settings,
            tables: taken.tables.clone(),
            taken,
            metrics,
            clock,
            stop,
            leave,
            left_at: None,
            accept_window_loss,
            live,
            next,
            under_way: None,
            pace,
            ranges: 0,
            told: None,
        }
    }

    /// What may be asked of its partition.
    #[must_use]
    pub fn work(&self) -> Work {
        Work {
            log: Arc::clone(&self.log),
            shelf: self.driver.shelf.clone(),
            outbox: self.publisher.outbox.clone(),
            progress: Arc::clone(&self.store),
            live: Arc::clone(&self.live),
        }
    }

    /// Runs until it is told to stop: recover, then read, decide, declare, settle, commit.
    ///
    /// # Errors
    /// [`PumpError`]: the partition must not go on.
    pub async fn run(mut self) -> Result<(), PumpError> {
        match self.recover().await {
            Ok(Some(())) => {}
            Ok(None) | Err(PumpError::Stopped) => return Ok(()),
            Err(error) => return Err(error),
        }
        let driver = &self.driver;
        let drivers = Drivers::new(
            (driver.caller.clone(), driver.servers.clone()),
            driver.shelf.clone(),
            self.publisher.clone(),
            (self.metrics.clone(), driver.retries.clone()),
        );
        let following = tokio::spawn(driver.servers.clone().follow());
        let mut drivers = tokio::spawn(drivers.run());
        let mut drain = tokio::spawn(self.publisher.clone().drain());
        let (sink, settings) = (self.driver.caller.sink.clone(), Arc::clone(&self.settings));
        let watch = self.pace.clone().watch(sink, settings, self.metrics.clone());
        let watch = tokio::spawn(watch);
        let ended = tokio::select! {
            biased;
            pumped = self.pump() => pumped,
            failed = &mut drivers => failed?.map_err(Into::into),
            failed = &mut drain => failed?.map_err(Into::into),
        };
        // As a crash would end them: what they sent is verified before it is sent again. What of them blocks goes on for
        // a moment: it is over before others are told that the partition is theirs.
        watch.abort();
        following.abort();
        let settling = self.under_way.take().map(|(_, task)| task);
        settling.iter().for_each(JoinHandle::abort);
        for task in [drivers, drain] {
            task.abort();
            end(task).await;
        }
        if let Some(settling) = settling {
            end(settling).await;
        }
        ended?;
        self.dedup.close()?;
        Ok(())
    }

    async fn pump(&mut self) -> Result<(), PumpError> {
        let mut durable = self.log.durable_end();
        while !self.is_drained(&durable) {
            self.log.usable()?;
            self.follow_config();
            self.tell_late();
            self.fill(&mut durable)?;
            self.send_if_ripe()?;
            self.make_room()?;
            self.wait(&mut durable).await?;
        }
        Ok(())
    }

    /// Takes settings that were changed. Before anything is decided or committed: what a wider window asks
    /// for must not be deleted any more.
    fn follow_config(&mut self) {
        let settings = self.settings.load();
        if Arc::ptr_eq(&settings, &self.taken) {
            return;
        }
        self.taken = Arc::clone(&settings);
        self.dedup.widen(self.taken.max_window_ms);
        let added = self
            .taken
            .tables
            .iter()
            .filter(|name| !self.tables.contains(name));
        let added: Vec<Name> = added.cloned().collect();
        self.tables.extend(added);
    }

    /// Ranges that grow long, as configured or for a slower pace, are no lateness.
    fn tell_late(&self) {
        let longest = range::scaled(self.taken.batching.max_age_ms(), self.pace.slowest());
        self.meter.set_late(LATE_AGES * longest);
    }

    /// After a stop: everything durable is settled, or the rest is in trouble and stays in the log.
    fn is_drained(&mut self, durable: &watch::Receiver<Offset>) -> bool {
        if self.leaves() {
            let since = *self.left_at.get_or_insert_with(Instant::now);
            return self.under_way.is_none() || since.elapsed() >= LEAVE_PATIENCE;
        }
        let all = self.next.is_empty() && self.next.end() >= *durable.borrow() && self.under_way.is_none();
        let in_trouble = || self.driver.in_trouble.load(Ordering::Relaxed) || self.publisher.is_stuck();
        self.stop.is_cancelled() && (all || in_trouble())
    }

    /// Reads and decides until the next range is full or the log's end is reached.
    fn fill(&mut self, durable: &mut watch::Receiver<Offset>) -> Result<(), PumpError> {
        while !self.leaves() && !self.next.is_full() && self.next.end() < *durable.borrow_and_update() {
            let from = self.next.end();
            let records = block_in_place(|| self.log.read(from, LOG_READ_BYTES))?;
            for record in records {
                if !self.next.has_room_for(&record) {
                    self.next.fill_up();
                    return Ok(());
                }
                let Some(one) = self.decide(record)? else {
                    return Ok(());
                };
                let pace = if sends(&one) {
                    self.pace.of(&one.record.meta.table)
                } else {
                    1.0
                };
                let batching = (&self.taken.batching, pace);
                self.next.push(one, batching, self.clock.now_ms());
                if self.next.is_full() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Has dedup decide the next record. `None`: its memory is full until something is sealed, which
    /// is tried again here; the record has to be asked again later.
    fn decide(&mut self, record: Record) -> Result<Option<RangeRecord>, PumpError> {
        let committed = self.store.lock().state().committed;
        let fates = match block_in_place(|| self.dedup.decide(&record)) {
            Err(DedupError::Stalled { .. }) => {
                block_in_place(|| self.dedup.committed(committed))?;
                return Ok(None);
            }
            decided => decided?,
        };
        live::count_fates(&self.metrics, &fates);
        Ok(Some(RangeRecord { record, fates }))
    }

    /// Open → declared, where the range is due and none is under way. A range of repeats alone sends its
    /// rows of the books.
    fn send_if_ripe(&mut self) -> Result<(), PumpError> {
        if self.under_way.is_some() || self.leaves() {
            return Ok(());
        }
        let stopping = self.stop.is_cancelled();
        if !self.due_in().is_some_and(|wait| wait.is_zero() || stopping) {
            return Ok(());
        }
        // Known since the recovery.
        let Some(server) = self.driver.servers.chosen() else {
            return Ok(());
        };
        let mut closed = std::mem::replace(&mut self.next, OpenRange::at(0)).close();
        self.next = OpenRange::at(closed.range.b);
        // Dedup may wait for room: then it is not full, and more stands behind it all the same.
        closed.full |= closed.range.b < *self.log.durable_end().borrow();
        self.declare(&closed, &server)?;
        let (number, rows) = (self.log.number(), closed.proof.rows);
        self.pace.turns.begin(number, self.clock.now_ms(), rows);
        let sent = closed.records.iter().filter(|one| sends(one));
        self.pace.written(sent.map(|one| &one.record.meta.table));
        let verify = is_verified(self.ranges);
        self.ranges += 1;
        self.settle(Arc::new(closed), Start::Declared { verify }, server);
        Ok(())
    }

    /// How long until the next range has to go out, where there is one: until it is old enough, and has its turn among
    /// those of other partitions.
    fn due_in(&mut self) -> Option<Duration> {
        let now = self.clock.now_ms();
        let wait = match self.next.ripe_in(now)? {
            0 => {
                let (patience, turns) = (self.next.patience(now), &self.pace.turns);
                let number = self.log.number();
                let turn = *self
                    .next
                    .turn
                    .get_or_insert_with(|| turns.take(number, now, patience));
                turn.saturating_sub(now).min(patience.left)
            }
            wait => wait,
        };
        Some(Duration::from_millis(wait))
    }

    /// Waits for whatever comes first: more records, the range's age, its settling, the stop.
    async fn wait(&mut self, durable: &mut watch::Receiver<Offset>) -> Result<(), PumpError> {
        let stopping = self.stop.is_cancelled();
        let room = !self.next.is_full();
        if let Some((_, task)) = &mut self.under_way {
            let settled = tokio::select! {
                biased;
                done = task => Some(done),
                _ = durable.changed(), if room => None,
                () = self.stop.cancelled(), if !stopping => None,
                () = sleep(IDLE) => None,
            };
            let Some(done) = settled else { return Ok(()) };
            let outcome = done??;
            return self.settled(&outcome);
        }
        if stopping {
            return Ok(());
        }
        let due = self.due_in().unwrap_or(IDLE);
        tokio::select! {
            biased;
            _ = durable.changed() => {}
            () = self.stop.cancelled() => {}
            () = sleep(due.min(IDLE)) => {}
        }
        Ok(())
    }

    /// Settled → committed.
    fn settled(&mut self, (outcome, now): &Settled) -> Result<(), PumpError> {
        let Some((closed, _)) = self.under_way.take() else {
            return Ok(());
        };
        let here = closed
            .records
            .iter()
            .filter(|one| sends(one) && !outcome.aside.contains(&one.record.meta.table));
        for one in here {
            let age = Duration::from_millis(now.saturating_sub(one.record.place.append_ms));
            self.metrics.record(Histogram::Freshness, age.as_secs_f64(), &[]);
        }
        self.count(&closed, outcome);
        if let Some(evidence) = &outcome.evidence {
            self.balance(&closed, outcome, evidence);
        }
        self.commit(&closed)
    }

    /// R17: progress is made durable first; only then may anything be deleted behind it.
    fn commit(&mut self, closed: &ClosedRange) -> Result<(), PumpError> {
        let committed = closed.range.b;
        block_in_place(|| -> Result<(), PumpError> {
            {
                let mut store = self.store.lock();
                store.pass(Point::CommitPersist)?;
                let state = self.for_others(&store, closed);
                store.write(Progress {
                    committed,
                    intent: None,
                    ..state
                })?;
                self.live.committed.store(committed, Ordering::Release);
                store.pass(Point::CommitPersisted)?;
            }
            self.dedup.committed(committed)?;
            self.log.set_progress(committed, self.dedup.sealed());
            Ok(self.store.lock().pass(Point::CommitTold)?)
        })?;
        let records = closed.records.iter().map(|one| {
            let (record, place) = (&one.record, one.record.place);
            let load = Load::of(record.frame().len(), record.rows() as usize);
            (place.offset, place.append_ms, &record.meta.tenant, load)
        });
        self.meter.committed(records, closed.full);
        self.driver.shelf.committed(committed);
        self.publisher.outbox.committed(committed);
        self.note_dedup();
        Ok(())
    }

    fn note_dedup(&mut self) {
        let stats = self.dedup.stats();
        let over_limit = stats.over_limit.then(|| "dedup.max_bytes is reached".to_owned());
        if let Some(error) = stats
            .last_error
            .or(over_limit)
            .filter(|error| self.told.as_ref() != Some(error))
        {
            tracing::error!(
                error,
                "the dedup state cannot be sealed; it is tried again, and the pump waits once memory is full: mend the cause"
            );
            self.metrics.add(Counter::Alarms, 1, &[("reason", "dedup_state")]);
            self.told = Some(error);
        }
        self.live
            .dedup_keys
            .store(stats.keys_active + stats.keys_sealed, Ordering::Relaxed);
        self.live
            .dedup_disk_bytes
            .store(stats.disk_bytes, Ordering::Relaxed);
    }
}

/// R14: the first range after a start, and one in [`VERIFY_ONE_IN`].
fn is_verified(range: u64) -> bool {
    range.is_multiple_of(VERIFY_ONE_IN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_range_after_a_start_is_verified_and_one_in_a_thousand() {
        let verified: Vec<u64> = (0..2_500).filter(|range| is_verified(*range)).collect();
        assert_eq!(verified, [0, 1_000, 2_000]);
    }
}
