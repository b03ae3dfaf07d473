//! Tables in trouble (R16): their rows wait on a [`shelf`] in [`file`]s of their own, and are sent by
//! one [`driver`] a table once the table takes rows again.

pub mod driver;
pub mod file;
pub mod shelf;
