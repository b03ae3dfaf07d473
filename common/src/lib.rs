//! What all services share. Knows no service.

pub mod admin;
pub mod books;
pub mod classify;
pub mod clock;
pub mod config;
pub mod dictionary;
pub mod error;
pub mod fates;
pub mod ids;
pub mod letters;
pub mod limits;
pub mod metered;
pub mod metrics;
pub mod process;
pub mod record;
pub mod reload;
pub mod replace;
pub mod secret;
pub mod serve;
pub mod servers;
pub mod shutdown;
pub mod telemetry;
pub mod tenants_file;
pub mod tls;
pub mod trace;
pub mod wire;
