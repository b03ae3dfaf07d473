//! The partitions that this process works on, for those who ask about them: an embedded log's only one, or those that
//! the group has given us at the moment.

use crate::log::Partition;
use crate::parked::shelf::Shelf;
use crate::progress::store::{Store, StoreError};
use crate::progress::{Held, Progress};
use crate::publish::{self, Outbox};
use crate::pump::batching::SharedSettings;
use crate::pump::live::Live;
use parking_lot::{Mutex, RwLock};
use sluice_common::books::{DEAD_LETTERS, LEDGER};
use sluice_common::config::Dataset;
use sluice_common::ids::{Name, Offset};
use sluice_common::metrics::{Gauge, Metrics, Values};
use sluice_common::replay::ReplayId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What may be asked of one partition.
#[derive(Clone)]
pub struct Work {
    pub log: Arc<dyn Partition>,
    pub shelf: Shelf,
    pub outbox: Outbox,
    pub progress: Arc<Mutex<Store>>,
    pub live: Arc<Live>,
}

impl Work {
    /// Every record below is settled.
    #[must_use]
    pub fn committed(&self) -> Offset {
        self.live.committed.load(Ordering::Acquire)
    }

    /// From now on rows of some tables are set aside, and where the partition may go to another, by that one too. The end of
    /// what is declared: rows below it may still be on their way to the tables. Blocks, for as long as brokers do not answer.
    ///
    /// # Errors
    /// [`NotHeld`]; what was held before is as it was.
    pub fn hold(&self, held: Held) -> Result<Offset, NotHeld> {
        let mut store = self.progress.lock();
        let state = store.state().clone();
        if let Some(other) = state.held.as_ref().filter(|other| other.by != held.by) {
            return Err(NotHeld::By(other.by));
        }
        let (end, before) = (state.end(), state.held.clone());
        self.shelf.hold(&held.tables);
        if store.is_shared() && before.as_ref() != Some(&held) {
            let tables = held.tables.clone();
            let held = Some(held);
            if let Err(error) = store.write(Progress { held, ..state }) {
                if before.is_none() {
                    self.shelf.release(&tables);
                }
                return Err(error.into());
            }
        }
        Ok(end)
    }

    /// What a replay holds of it, where that is known beyond this process.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        self.progress.lock().state().held.clone()
    }

    /// Whether others are told what is held.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.progress.lock().is_shared()
    }

    /// The tables that a replay holds take rows again, if it `is_over` still at that moment. Where another one holds
    /// tables, that one's stay. Blocks.
    ///
    /// # Errors
    /// [`StoreError`]: they are held as before.
    pub fn release(
        &self,
        by: ReplayId,
        tables: &[Name],
        is_over: impl FnOnce() -> bool,
    ) -> Result<(), StoreError> {
        let mut store = self.progress.lock();
        if !is_over() {
            return Ok(());
        }
        if !store.is_shared() {
            self.shelf.release(tables);
            return Ok(());
        }
        let state = store.state().clone();
        let Some(held) = state.held.clone().filter(|held| held.by == by) else {
            return Ok(());
        };
        store.write(Progress { held: None, ..state })?;
        self.shelf.release(&held.tables);
        Ok(())
    }
}

/// Why tables are not held.
#[derive(Debug, thiserror::Error)]
pub enum NotHeld {
    #[error(
        "replay {0} holds tables of this partition: wait for it, or, if nobody has it any more, discard it"
    )]
    By(ReplayId),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All of them, by number. Cloning shares them.
#[derive(Clone, Default)]
pub struct Owned(Arc<RwLock<BTreeMap<u16, Work>>>);

impl Owned {
    /// A partition is worked on from now on.
    pub fn add(&self, work: Work) {
        self.0.write().insert(work.log.number(), work);
    }

    /// It is not any more.
    pub fn remove(&self, partition: u16) {
        self.0.write().remove(&partition);
    }

    /// All, in order.
    #[must_use]
    pub fn all(&self) -> Vec<Work> {
        self.0.read().values().cloned().collect()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, partition: u16) -> Option<Work> {
        self.0.read().get(&partition).cloned()
    }

    /// Whether it is so of any.
    pub fn any(&self, is: impl Fn(&Work) -> bool) -> bool {
        self.0.read().values().any(is)
    }

    /// Shows what all of them have, by configured dataset and table.
    #[expect(clippy::cast_precision_loss, reason = "gauges")]
    pub fn show(&self, metrics: &Metrics, datasets: &[Dataset], settings: &SharedSettings) {
        let sum = |gauge, of: fn(&Live) -> &AtomicU64| {
            let owned = self.clone();
            metrics.watch(gauge, &[], move || {
                let of = |work: &Work| of(&work.live).load(Ordering::Relaxed);
                owned.all().iter().map(of).sum::<u64>() as f64
            });
        };
        sum(Gauge::LedgerImbalance, |live| &live.imbalance);
        sum(Gauge::DedupKeys, |live| &live.dedup_keys);
        sum(Gauge::DedupDiskBytes, |live| &live.dedup_disk_bytes);
        let owned = self.clone();
        metrics.watch_all(Gauge::Unsettled, move || {
            let one = |work: &Work| {
                let labels = vec![("partition", work.log.number().to_string())];
                (
                    labels,
                    f64::from(u8::from(work.live.in_trouble.load(Ordering::Relaxed))),
                )
            };
            owned.all().iter().map(one).collect()
        });
        let names: BTreeSet<Name> = datasets.iter().map(|one| one.name.clone()).collect();
        self.show_sums(metrics, (Gauge::ParkedBytes, "dataset"), names, |work| {
            work.shelf.bytes()
        });
        let own = [DEAD_LETTERS, LEDGER].into_iter().flat_map(Name::new);
        let tables = datasets.iter().map(|one| one.table().clone()).chain(own);
        self.show_sums(metrics, (Gauge::ParkedUnits, "table"), tables.collect(), |work| {
            let units = work.shelf.units_of_tables().into_iter();
            units.map(|(table, units)| (table, units as u64)).collect()
        });
        for (gauge, letters) in [
            (Gauge::PublishWaitingBytes, false),
            (Gauge::LettersWaitingBytes, true),
        ] {
            let (owned, settings) = (self.clone(), Arc::clone(settings));
            metrics.watch_all(gauge, move || {
                let all = owned.all();
                let waiting =
                    publish::waiting(letters, &settings.load(), all.iter().map(|work| &work.outbox));
                levels("dataset", waiting)
            });
        }
    }

    /// Shows sums over all partitions, zeros of `names` among them.
    fn show_sums(
        &self,
        metrics: &Metrics,
        (gauge, label): (Gauge, &'static str),
        names: BTreeSet<Name>,
        of: fn(&Work) -> BTreeMap<Name, u64>,
    ) {
        let owned = self.clone();
        metrics.watch_all(gauge, move || {
            let mut sums: BTreeMap<Name, u64> = names.iter().map(|name| (name.clone(), 0)).collect();
            for work in owned.all() {
                for (name, count) in of(&work) {
                    // Labels are those that the config names: others could be many.
                    if let Some(sum) = sums.get_mut(&name) {
                        *sum += count;
                    }
                }
            }
            levels(label, sums)
        });
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges")]
fn levels(label: &'static str, sums: BTreeMap<Name, u64>) -> Values {
    let level = |(name, count): (Name, u64)| (vec![(label, name.to_string())], count as f64);
    sums.into_iter().map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::embedded::Whole;
    use crate::log::{EmbeddedLog, LogOptions};
    use crate::progress::store::{Keep, NotKept};
    use sluice_common::clock::ManualClock;
    use sluice_common::disk::Dir;
    use sluice_common::servers::ServerId;
    use std::sync::atomic::AtomicBool;
    use tempfile::TempDir;

    /// Keeps progress with a log, as long as it is let.
    struct Kept {
        last: Arc<Mutex<Option<Progress>>>,
        fails: Arc<AtomicBool>,
    }

    impl Keep for Kept {
        fn keep(&mut self, state: &Progress) -> Result<(), NotKept> {
            if self.fails.load(Ordering::Relaxed) {
                return Err(NotKept::Fenced);
            }
            *self.last.lock() = Some(state.clone());
            Ok(())
        }
    }

    struct Stand {
        work: Work,
        last: Arc<Mutex<Option<Progress>>>,
        fails: Arc<AtomicBool>,
        _dir: TempDir,
    }

    fn stand() -> Stand {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions {
            dir: dir.path().join("log"),
            max_bytes: 64 << 20,
            retain_ms: u64::MAX,
            reserve_bytes: Some(0),
            segment_bytes: 1 << 20,
            tail_cache_bytes: 1 << 20,
            queue_bytes: 8 << 20,
            known_durable: 0,
        };
        let log = EmbeddedLog::open(options, Arc::new(ManualClock::at(1))).unwrap();
        let id = log.id();
        let at = |name: &str| Dir::from(dir.path().join(name).as_path());
        let (last, fails) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let keep = Kept {
            last: Arc::clone(&last),
            fails: Arc::clone(&fails),
        };
        let store = Store::shared(Box::new(keep), Progress::new(id, None));
        let work = Work {
            log: Arc::new(Whole(log)),
            shelf: Shelf::open(at("parked"), (id, 0), 1 << 20, 0).unwrap(),
            outbox: Outbox::open(at("outbox"), (id, 0), 1 << 20, 0).unwrap(),
            progress: Arc::new(Mutex::new(store)),
            live: Arc::default(),
        };
        Stand {
            work,
            last,
            fails,
            _dir: dir,
        }
    }

    fn held(by: u32, tables: &[&str]) -> Held {
        Held {
            by: ReplayId(by),
            tables: tables.iter().map(|table| Name::new(table).unwrap()).collect(),
            server: ServerId::named("a:8123"),
        }
    }

    #[test]
    fn what_one_replay_holds_no_other_lets_go_and_none_takes_over() {
        let Stand { work, last, .. } = stand();
        let (ours, theirs) = (held(1, &["a", "b"]), held(2, &["b", "c"]));
        let [a, b, c] = ["a", "b", "c"].map(|table| Name::new(table).unwrap());
        work.hold(ours.clone()).unwrap();
        assert_eq!(last.lock().clone().unwrap().held, Some(ours.clone()));
        assert!(matches!(work.hold(theirs.clone()), Err(NotHeld::By(ReplayId(1)))));
        work.release(theirs.by, &theirs.tables, || true).unwrap();
        assert!(work.shelf.is_held(&a) && work.shelf.is_held(&b) && !work.shelf.is_held(&c));
        work.release(ours.by, &ours.tables, || false).unwrap();
        assert!(work.shelf.is_held(&a), "it is not over");
        work.release(ours.by, &[], || true).unwrap();
        assert!(
            !work.shelf.is_held(&a) && !work.shelf.is_held(&b),
            "as it was held"
        );
        assert_eq!(last.lock().clone().unwrap().held, None);
        work.hold(theirs).unwrap();
    }

    #[test]
    fn what_cannot_be_told_to_others_is_not_held_and_what_was_stays_held() {
        let Stand { work, fails, .. } = stand();
        let first = held(1, &["a"]);
        fails.store(true, Ordering::Relaxed);
        work.hold(first.clone()).unwrap_err();
        assert!(!work.shelf.is_held(&first.tables[0]));
        fails.store(false, Ordering::Relaxed);
        work.hold(first.clone()).unwrap();
        fails.store(true, Ordering::Relaxed);
        work.hold(held(1, &["a", "b"])).unwrap_err();
        work.release(first.by, &first.tables, || true).unwrap_err();
        assert!(work.shelf.is_held(&first.tables[0]) && work.held() == Some(first));
    }

    #[test]
    fn progress_of_a_partition_that_is_worked_on_no_more_is_not_written() {
        let Stand { work, last, .. } = stand();
        let first = held(1, &["a"]);
        work.hold(first.clone()).unwrap();
        work.progress.lock().end();
        work.release(first.by, &first.tables, || true).unwrap_err();
        work.hold(held(1, &["a", "b"])).unwrap_err();
        assert_eq!(last.lock().clone().unwrap().held, Some(first));
    }
}
