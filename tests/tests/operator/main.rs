//! The operator's commands, as an operator runs them: real executables, their output and exit codes.

mod check;
mod command;
mod config;
mod drift;
mod frame;
mod picture;
mod tenants;
