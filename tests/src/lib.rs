//! What the tests of the whole share: real processes, a real ClickHouse, a client, waits with deadlines.

pub mod balance;
pub mod client;
pub mod deployment;
#[cfg(feature = "failpoints")]
pub mod failpoints;
pub mod identity;
pub mod kafka;
pub mod mutants;
pub mod oracle;
pub mod payload;
pub mod pki;
pub mod plan;
pub mod ports;
pub mod proxy;
pub mod service;
pub mod torture;
pub mod volume;
pub mod wait;

pub use balance::books_balance;
pub use client::{Answer, Client};
pub use deployment::Deployment;
pub use plan::{Hop, Part, Plan, Shape};
pub use wait::{eventually, finally, within};

/// Our clock, in ms.
#[must_use]
pub fn now_ms() -> u64 {
    sluice_common::clock::Clock::now_ms(&sluice_common::clock::SystemClock)
}

/// How much of something a test does: what the variable `SLUICE_` and `name` says, in its long form, or `short`.
#[must_use]
pub fn long_form(name: &str, short: u64) -> u64 {
    let given = std::env::var(format!("SLUICE_{name}")).ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(short)
}
