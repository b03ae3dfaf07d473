//! The command line of Sluice, as a library: one verb a file, and what verbs share.

pub mod check;
pub mod clickhouse;
pub mod completions;
pub mod config;
pub mod confirm;
pub mod demo;
pub mod dlq;
pub mod exit;
pub mod http;
pub mod keys;
pub mod ledger;
pub mod man;
pub mod output;
pub mod parked;
pub mod picture;
pub mod pipeline;
pub mod remote;
pub mod replay;
pub mod sample;
pub mod schema;
pub mod self_signed;
pub mod status;
pub mod tenants;
pub mod top;
pub mod up;
