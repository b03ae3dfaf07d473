//! One handler a kind of request.

pub mod events;
pub mod tenants;
