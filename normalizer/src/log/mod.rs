//! The durable log between intake and dedup: what is in it was acknowledged, or may have been.
//!
//! It stores records ([`sluice_common::record`]) as they are and knows nothing of the columns inside. There are two: one
//! of this machine's own ([`embedded`]), and one that is a Kafka topic ([`kafka`]).

pub mod embedded;
mod face;
pub mod kafka;

pub use embedded::{AppendError, EmbeddedLog, FullReason, LogOptions, OpenError, ReadError};
pub use face::{Backlog, Closed, Log, Partition, Standing};
