//! Which cores run what: with product and generators apart, a generator cannot slow down what it measures.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use sluice_common::process::Failure;

/// The two sides' cores. This thread, and what it starts, is on the product's until it is told otherwise.
#[derive(Debug)]
pub struct Cores {
    product: usize,
    generators: usize,
}

impl Cores {
    /// Takes the first two that this process may use, and goes to the product's.
    ///
    /// # Errors
    /// Where there is only one, or the kernel refuses.
    pub fn split() -> Result<Self, Failure> {
        let allowed = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let (Some(product), Some(generators)) = (cores.next(), cores.next()) else {
            return Err(Failure::new(
                "this needs two cores: one for what is measured, one for its clients",
            ));
        };
        let cores = Self { product, generators };
        stay_on(cores.product)?;
        Ok(cores)
    }

    /// Moves this thread, and what it starts from now on, to the generators' core.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn to_generators(&self) -> Result<(), Failure> {
        stay_on(self.generators)
    }
}

fn stay_on(core: usize) -> Result<(), Failure> {
    let mut only = CpuSet::new();
    only.set(core);
    Ok(sched_setaffinity(None, &only)?)
}
