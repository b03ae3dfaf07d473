//! The operator's commands, as an operator runs them: real executables, their output and exit codes.

mod command;
mod frame;
