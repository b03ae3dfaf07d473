//! What clients may rely on, over real processes and a real ClickHouse: values, refusals, identities,
//! and bodies made to hurt.

mod corpus;
mod identity;
mod mistakes;
mod openapi;
mod rows;
mod shared;
mod values;
