//! Tables in trouble (R16): their rows wait on a [`shelf`] in [`file`]s of their own, and are sent by
//! one [`driver`] a table once the table takes rows again. [`routes`] show
//! them, and take the order to mend what does not heal by itself.

pub mod driver;
pub mod file;
mod held;
pub mod lines;
pub mod mirror;
pub mod routes;
pub mod shelf;
