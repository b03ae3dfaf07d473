//! The command line of Sluice, as a library: one verb a file, and what verbs share.

pub mod clickhouse;
