//! `ingestctl`: runs, checks and inspects Sluice.
//!
//! Each verb lives in a file of its own in the library. A verb that needs an async runtime builds it
//! itself: the hidden verb must run before any other thread exists.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use ingestctl::{
    check, clickhouse, completions, config, dlq, exit, ledger, man, parked, replay, schema, status, tenants,
    top, up,
};
use sluice_common::process::{self, Failure};

#[global_allocator]
static ALLOCATOR: process::Allocator = process::Allocator;

/// Runs, checks and inspects Sluice.
///
/// `up` runs everything in one process; `check` says whether a config and its ClickHouse are fit. The
/// other verbs speak to a Sluice that runs, over its admin listeners (--admin URL). Results go to
/// stdout, as text or, with `--output json`, as one document; progress and errors go to stderr.
#[derive(Debug, Parser)]
#[command(name = "ingestctl", version, after_long_help = exit::EXIT_CODES)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Up(up::UpArgs),
    Check(check::CheckArgs),
    Schema(schema::SchemaArgs),
    Ledger(ledger::LedgerArgs),
    Status(status::StatusArgs),
    Top(top::TopArgs),
    Tenants(tenants::TenantsArgs),
    Quota(tenants::QuotaArgs),
    Config(config::ConfigArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
    Parked(parked::ParkedArgs),
    Dlq(dlq::DlqArgs),
    Replay(replay::ReplayArgs),
    /// Becomes the ClickHouse of the process that calls it.
    #[command(name = clickhouse::VERB, hide = true)]
    ClickhouseChild(clickhouse::ChildArgs),
}

fn main() -> ExitCode {
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => return told(&error),
    };
    match line.verb {
        Verb::Up(args) => process::run(args.run()),
        Verb::Check(args) => exit::run(args.run()),
        Verb::Schema(args) => exit::run(args.run()),
        Verb::Ledger(args) => exit::run(args.run()),
        Verb::Status(args) => exit::run(args.run()),
        Verb::Top(args) => exit::run(args.run()),
        Verb::Tenants(args) => exit::run(args.run()),
        Verb::Quota(args) => exit::run(args.run()),
        Verb::Config(args) => exit::finish(args.run()),
        Verb::Parked(args) => exit::run(args.run()),
        Verb::Dlq(args) => exit::run(args.run()),
        Verb::Replay(args) => match args.checked() {
            Ok(args) => exit::run(args.run()),
            Err(error) => told(&error),
        },
        Verb::Completions(args) => exit::finish(args.run(CommandLine::command())),
        Verb::Man(args) => exit::finish(args.run(CommandLine::command())),
        Verb::ClickhouseChild(args) => exit::finish(
            clickhouse::run_child(&args)
                .map(|()| exit::Exit::Good)
                .map_err(Failure::from),
        ),
    }
}

/// `--help` and `--version` are answers; anything else that clap says is a wrong command line.
fn told(answer: &clap::Error) -> ExitCode {
    // Nobody reads it any more where this fails.
    answer.print().ok();
    if answer.use_stderr() {
        ExitCode::from(exit::USAGE)
    } else {
        ExitCode::SUCCESS
    }
}
