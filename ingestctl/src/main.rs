//! `ingestctl`: runs, checks and inspects Sluice.
//!
//! Each verb lives in a file of its own in the library. A verb that needs an async runtime builds it
//! itself: the hidden verb must run before any other thread exists.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ingestctl::{check, clickhouse, up};
use sluice_common::process;

#[derive(Debug, Parser)]
#[command(name = "ingestctl", version, about = "Runs, checks and inspects Sluice")]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Up(up::UpArgs),
    Check(check::CheckArgs),
    /// Becomes the ClickHouse of the process that calls it.
    #[command(name = clickhouse::VERB, hide = true)]
    ClickhouseChild(clickhouse::ChildArgs),
}

fn main() -> ExitCode {
    match CommandLine::parse().verb {
        Verb::Up(args) => process::run(args.run()),
        Verb::Check(args) => check(args),
        Verb::ClickhouseChild(args) => finish(clickhouse::run_child(&args)),
    }
}

fn check(args: check::CheckArgs) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(args.run()),
        Err(error) => finish(Err(error)),
    }
}

/// Errors go to stderr and into the exit code.
fn finish<E: std::error::Error>(outcome: Result<(), E>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ingestctl: {error}");
            ExitCode::FAILURE
        }
    }
}
