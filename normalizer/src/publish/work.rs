//! What of a range goes to which topic.

use sluice_common::config::Config;
use sluice_common::ids::Name;
use sluice_common::record::Holds;
use sluice_common::wire::sink::RangeRecord;
use std::collections::BTreeMap;

/// Where a dataset's events go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPlan {
    pub topic: String,
    /// Columns of a message's key.
    pub key: Vec<Name>,
}

/// A dataset's share of a range.
#[derive(Debug, Clone)]
pub(super) struct Lot {
    pub dataset: Name,
    pub plan: TopicPlan,
    pub records: Vec<RangeRecord>,
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
            dataset: dataset.clone(),
            plan: plan.clone(),
            records: Vec::new(),
        });
        lot.records.push(one.clone());
    }
    lots.into_values().collect()
}

/// How many events these are.
pub(super) fn events(records: &[RangeRecord]) -> u64 {
    records.iter().map(|one| u64::from(one.fates.kept())).sum()
}
