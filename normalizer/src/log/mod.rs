//! The durable log between intake and dedup: what is in it was acknowledged, or may have been.
//!
//! It stores records ([`sluice_common::record`]) as they are and knows nothing of the columns inside.

pub mod embedded;

pub use embedded::{AppendError, EmbeddedLog, LogOptions, OpenError, ReadError};
