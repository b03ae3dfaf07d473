//! The normalizer: intake before the log, dedup and the pump behind it.

pub mod dedup;
pub mod intake;
pub mod log;
