//! The sink-writer: a stateless executor between the normalizer's pump and ClickHouse.
//!
//! The path of one call: [`service`] takes it within its byte budget ([`admit`]); [`servers`] finds the
//! ClickHouse that it names; [`tables`] knows what the
//! tables are; [`block`] reads the records' columns, splits the range's rows by (table, ClickHouse partition) with [`place`], and builds
//! each block's columns with [`assemble`] as far as they fit ([`adapt`]); [`settle`] works each sub-batch to
//! one verdict with [`insert`] and [`verify`], as many at once as the server bears ([`limiter`]). [`client`] alone speaks to ClickHouse.
//!
//! `publish` sends what dedup kept of a range to a Kafka topic, where its dataset asks for it, and dead letters to theirs.
//!
//! Beside that path, `replay` makes shadow tables, compares them with live ones, and puts one in the other's place.

pub mod adapt;
pub mod admit;
pub mod alter;
pub mod assemble;
pub mod block;
pub mod client;
mod columns;
pub mod ddl;
mod dead_letters;
pub mod horizon;
pub mod insert;
mod json;
mod ledger;
mod letters;
pub mod limiter;
pub mod observe;
pub mod pace;
pub mod place;
pub mod publish;
mod replay;
pub mod report;
mod route;
pub mod servers;
pub mod service;
pub mod settle;
pub mod survey;
pub mod tables;
pub mod verify;

pub use client::{ServerError, Target};
pub use service::SinkWriter;
