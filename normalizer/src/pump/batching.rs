//! What the pump takes from the config: how large and how old a range grows, by dataset, which tables there
//! are and how far back dedup must remember. It addresses the present, not the past, and decides nothing
//! about what a record means; so it may change at any moment.

use crate::publish::{TopicPlan, letters_topic_of, topics_of};
use arc_swap::ArcSwap;
use sluice_common::config::{Batch, Config};
use sluice_common::ids::Name;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The settings in force, replaced whole when the config changes.
pub type SharedSettings = Arc<ArcSwap<Settings>>;

/// All that the pump takes from the config.
#[derive(Debug)]
pub struct Settings {
    pub batching: Batching,
    pub tables: Vec<Name>,
    /// Each dataset with its table.
    pub datasets: Vec<(Name, Name)>,
    /// The widest dedup window of all datasets.
    pub max_window_ms: u64,
    /// Kafka topics by dataset.
    pub topics: BTreeMap<Name, TopicPlan>,
    /// That of dead letters.
    pub letters_topic: Option<TopicPlan>,
}

impl Settings {
    /// Takes them from the config.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            batching: Batching::new(config),
            tables: config.datasets.iter().map(|one| one.table().clone()).collect(),
            datasets: config
                .datasets
                .iter()
                .map(|one| (one.name.clone(), one.table().clone()))
                .collect(),
            max_window_ms: config.max_window_ms(),
            topics: topics_of(config),
            letters_topic: letters_topic_of(config),
        }
    }
}

/// The batch settings of all datasets.
#[derive(Debug, Clone, Default)]
pub struct Batching {
    datasets: HashMap<Name, Batch>,
    otherwise: Batch,
}

impl Batching {
    /// Takes them from the config.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let datasets = config
            .datasets
            .iter()
            .map(|one| (one.name.clone(), one.batch.clone()))
            .collect();
        Self {
            datasets,
            otherwise: Batch::default(),
        }
    }

    /// The greatest age that a range of any dataset may reach.
    #[must_use]
    pub fn max_age_ms(&self) -> u64 {
        let ages = self.datasets.values().map(|one| one.max_age.ms());
        ages.max().unwrap_or_else(|| self.otherwise.max_age.ms())
    }

    /// The settings of a dataset; the default ones where the config no longer has it.
    #[must_use]
    pub fn of(&self, dataset: &Name) -> &Batch {
        self.datasets.get(dataset).unwrap_or(&self.otherwise)
    }
}
