//! What all services share. Knows no service.

pub mod clock;
pub mod config;
pub mod error;
pub mod fates;
pub mod ids;
pub mod limits;
pub mod record;
pub mod secret;
pub mod trace;
pub mod wire;
