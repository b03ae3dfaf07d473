//! How large and how old a range grows, by dataset. Addresses the present, not the past: it decides
//! nothing about what a record means.

use sluice_common::config::{Batch, Config};
use sluice_common::ids::Name;
use std::collections::HashMap;

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

    /// The settings of a dataset; the default ones where the config no longer has it.
    #[must_use]
    pub fn of(&self, dataset: &Name) -> &Batch {
        self.datasets.get(dataset).unwrap_or(&self.otherwise)
    }
}
