//! What all services share. Knows no service.

pub mod clock;
pub mod fates;
pub mod ids;
pub mod limits;
pub mod record;
