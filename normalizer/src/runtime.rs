//! What the pump asks of its runtime: to wait, to tell the time, to block. In tests a simulation takes its
//! place, so that a run is a function of its seed.

#[cfg(test)]
pub use crate::sim::time::{Instant, block_in_place, sleep, timeout};
#[cfg(not(test))]
pub use tokio::task::block_in_place;
#[cfg(not(test))]
pub use tokio::time::{Instant, sleep, timeout};
