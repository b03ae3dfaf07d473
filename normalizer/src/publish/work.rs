//! What of a range goes to which topic.

use crate::progress::Marks;
use crate::progress::closing::{self, Work};
use sluice_common::books::DEAD_LETTERS;
use sluice_common::config::Config;
use sluice_common::config::kafka::TENANT;
use sluice_common::ids::Name;
use sluice_common::record::Holds;
use sluice_common::wire::sink::RangeRecord;
use std::collections::{BTreeMap, BTreeSet};

/// Where a dataset's events go, or dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPlan {
    pub topic: String,
    /// Columns of a message's key.
    pub key: Vec<Name>,
}

/// A share of a range.
#[derive(Debug, Clone)]
pub(super) struct Lot {
    /// What it waits behind, where it has to: the dataset, of events.
    pub line: Name,
    pub plan: TopicPlan,
    pub work: Work,
}

/// The topics of a config, by dataset.
#[must_use]
pub fn topics_of(config: &Config) -> BTreeMap<Name, TopicPlan> {
    let plan = |dataset: &sluice_common::config::Dataset| {
        let publish = dataset.publish.as_ref()?;
        let plan = TopicPlan {
            topic: publish.topic.clone(),
            key: dataset.message_key(publish),
        };
        Some((dataset.name.clone(), plan))
    };
    config.datasets.iter().filter_map(plan).collect()
}

/// The topic of a config's dead letters: those of a tenant lie together, in order.
#[must_use]
pub fn letters_topic_of(config: &Config) -> Option<TopicPlan> {
    let topic = config.dead_letters.topic.clone()?;
    let key = Name::new(TENANT).into_iter().collect();
    Some(TopicPlan { topic, key })
}

/// The shares of a range: copies of rejected rows are no events, and repeats go nowhere.
pub(super) fn lots(records: &[RangeRecord], topics: &BTreeMap<Name, TopicPlan>) -> Vec<Lot> {
    let mut lots: BTreeMap<&Name, Lot> = BTreeMap::new();
    let events = records
        .iter()
        .filter(|one| one.record.meta.holds == Holds::Events && one.fates.kept() > 0);
    for one in events {
        let dataset = &one.record.meta.dataset;
        let Some(plan) = topics.get(dataset) else { continue };
        let lot = lots.entry(dataset).or_insert_with(|| Lot {
            line: dataset.clone(),
            plan: plan.clone(),
            work: Work::default(),
        });
        lot.work.records.push(one.clone());
    }
    lots.into_values().collect()
}

/// All that a range writes to `dead_letters`, once it is known what it tells last.
pub(super) fn letters_of_range(records: &[RangeRecord], told: &Work) -> Work {
    let offset = |one: &RangeRecord| one.record.place.offset;
    let refused: BTreeSet<u64> = told.records.iter().map(offset).collect();
    let has_letters = |one: &&RangeRecord| {
        let copies = one.record.meta.holds == Holds::RejectedCopies;
        copies || !one.fates.conflicts().is_empty() || refused.contains(&offset(one))
    };
    let records: Vec<RangeRecord> = records.iter().filter(has_letters).cloned().collect();
    closing::of_own(DEAD_LETTERS, &records, &[], told)
}

/// The refused rows of what was set aside.
pub(super) fn letters_of_unit(records: &[RangeRecord], marks: &Marks) -> Work {
    Work {
        ledger: Vec::new(),
        ..closing::of_unit(records, marks)
    }
}

/// How many events these are.
pub(super) fn events(records: &[RangeRecord]) -> u64 {
    records.iter().map(|one| u64::from(one.fates.kept())).sum()
}
