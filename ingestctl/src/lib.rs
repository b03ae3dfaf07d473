//! The command line of Sluice, as a library: one verb a file, and what verbs share.

pub mod check;
pub mod clickhouse;
pub mod demo;
pub mod http;
pub mod pipeline;
pub mod sample;
pub mod up;
