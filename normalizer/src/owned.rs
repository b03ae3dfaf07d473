//! The partitions that this process works on, for those who ask about them: an embedded log's only one, or those that
//! the group has given us at the moment.

use crate::log::Partition;
use crate::parked::shelf::Shelf;
use crate::progress::store::Store;
use crate::publish::{self, Outbox};
use crate::pump::batching::SharedSettings;
use crate::pump::live::Live;
use parking_lot::{Mutex, RwLock};
use sluice_common::books::{DEAD_LETTERS, LEDGER};
use sluice_common::config::Dataset;
use sluice_common::ids::{Name, Offset};
use sluice_common::metrics::{Gauge, Metrics, Values};
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
