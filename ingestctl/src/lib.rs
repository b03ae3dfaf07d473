//! The command line of Sluice, as a library: one verb a file, and what verbs share.

pub mod check;
pub mod clickhouse;
pub mod completions;
pub mod demo;
pub mod exit;
pub mod http;
pub mod man;
pub mod output;
pub mod pipeline;
pub mod remote;
pub mod sample;
pub mod self_signed;
pub mod up;
