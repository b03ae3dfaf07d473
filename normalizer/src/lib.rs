//! The normalizer: intake before the log, dedup and the pump behind it.
//!
//! An event's way: [`service`] admits a request within its tenant's share ([`grant`]), [`intake`] turns its bytes into checked columns,
//! [`append`] groups them into records, [`log`] makes them durable (the ack waits here), the [`pump`]
//! reads them in order, [`dedup`] decides which are repeats, [`progress`] declares a range, has the
//! sink-writer write it, and commits it when it is proven. [`start`] puts it all together.

pub mod admin;
pub mod append;
pub mod cluster;
pub mod dedup;
mod dlq;
mod framed;
pub mod grant;
pub mod intake;
pub mod key_cap;
mod ledger;
pub mod log;
pub mod owned;
pub mod parked;
pub mod progress;
pub mod publish;
pub mod pump;
mod replay;
mod runtime;
pub mod service;
#[cfg(test)]
mod sim;
mod slots;
pub mod source;
pub mod start;
mod state;
mod tenant_rate;

pub use state::secret_check;
