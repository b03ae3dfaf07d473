//! `sluice-bench`: events per second, CPU per event, latencies and memory of the whole of Sluice on
//! this machine, beside those of ClickHouse fed directly. See README.md for how to read them.

mod admin;
mod client;
mod cores;
mod drip;
mod freshness;
mod instructions;
mod latency;
mod live_keys;
mod load;
mod neighbour;
mod overload;
mod partitions;
mod performance;
mod refusal;
mod replay;
mod report;
mod run;
mod system;
mod usage;

use clap::{Args, Parser, Subcommand, ValueEnum};
use load::Load;
use report::Report;
use run::Way;
use sluice_bench::body;
use sluice_common::process::{self, Failure};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use system::Shape;

/// That of the services: stages are measured with it.
#[global_allocator]
static ALLOCATOR: process::Allocator = process::Allocator;

#[derive(Debug, Parser)]
#[command(
    name = "sluice-bench",
    version,
    about = "Measures Sluice on this machine, end to end"
)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Sends events through Sluice into a ClickHouse of its own.
    Run(RunArgs),
    /// Sends the same bodies straight into ClickHouse: async inserts, then blocks of 10,000 events.
    Direct(RunArgs),
    /// Runs both in turn and prints the ratios.
    Compare(RunArgs),
    /// Holds many slow connections open; loadtest/slow-client.js measures a healthy client beside them.
    Drip(drip::DripArgs),
    /// What a refused request costs the edge: CPU, and bytes written.
    Refusal(refusal::RefusalArgs),
    /// How much slower quiet tenants get beside one that sends 50 times its quota. Needs two cores.
    Neighbour(neighbour::NeighbourArgs),
    /// What is left of the peak at three times as much, memory, answers, and the time until all is as before. Needs
    /// two cores.
    Overload(overload::OverloadArgs),
    /// A replay beside a live load: its speed, what senders and readers notice, and whether the shadow is equal.
    Replay(replay::ReplayArgs),
    /// A log in Kafka of one, two and four partitions, beside the embedded one: what an event costs. Starts a broker of
    /// its own.
    Partitions(partitions::PartitionsArgs),
    /// The main load before dedup's state of 1, 25, 50 and 100 million keys that live.
    LiveKeys(live_keys::LiveKeysArgs),
    /// The whole table of goals, beside ClickHouse fed directly: writes docs/performance.md with its plots. About an hour.
    Performance(performance::PerformanceArgs),
    /// Instructions that each stage takes, counted by valgrind and held to those of before: fails where they are more.
    Instructions(instructions::InstructionsArgs),
    /// One stage alone, for so many rounds: what `instructions` counts.
    #[command(hide = true)]
    Stage(instructions::StageArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    events_per_request: u32,
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    connections: u32,
    /// How long events are sent.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Events per second over all connections; without it, as many as are taken.
    #[arg(long)]
    rate: Option<u32>,
    /// Without the reader that measures freshness, which takes ClickHouse a share of a core: it is what Sluice says itself.
    #[arg(long)]
    no_probes: bool,
    #[arg(long, value_enum, default_value = "all-in-one")]
    shape: Shape,
    /// Each measurement so often, in turn with the others; the middle one is shown.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Where the data is written, on a disk: on tmpfs an fsync costs nothing.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Json,
    Table,
}

fn main() -> ExitCode {
    let (ways, args) = match CommandLine::parse().verb {
        Verb::Run(args) => (vec![Way::Sluice(args.shape)], args),
        Verb::Direct(args) => (vec![Way::AsyncInsert, Way::PlainInsert], args),
        Verb::Compare(args) => (
            vec![Way::Sluice(args.shape), Way::AsyncInsert, Way::PlainInsert],
            args,
        ),
        Verb::Refusal(args) => return finish(on_one_thread(args.run()), |()| ExitCode::SUCCESS),
        Verb::Neighbour(args) => return finish(on_one_thread(args.run()), |()| ExitCode::SUCCESS),
        Verb::Overload(args) => return finish(on_one_thread(args.run()), |()| ExitCode::SUCCESS),
        Verb::Replay(args) => return finish(on_one_thread(args.run()), |()| ExitCode::SUCCESS),
        Verb::Partitions(args) => return finish(on_one_thread(args.run()), |()| ExitCode::SUCCESS),
        Verb::LiveKeys(args) => return finish(on_one_thread(args.run()), |()| ExitCode::SUCCESS),
        Verb::Performance(args) => return finish(on_one_thread(args.run()), |()| ExitCode::SUCCESS),
        Verb::Instructions(args) => return finish(args.run(), |()| ExitCode::SUCCESS),
        Verb::Stage(args) => return finish(args.run(), |()| ExitCode::SUCCESS),
        Verb::Drip(args) => return finish(on_one_thread(args.run()), |()| ExitCode::SUCCESS),
    };
    finish(on_one_thread(all(&ways, &args)), |reports| {
        show(&reports, args.output)
    })
}

/// One thread: the generator has little to do, and must not take cores from what is measured.
pub(crate) fn on_one_thread<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

fn finish<T>(outcome: Result<T, Failure>, then: impl FnOnce(T) -> ExitCode) -> ExitCode {
    match outcome {
        Ok(done) => then(done),
        Err(failure) => {
            eprintln!("sluice-bench: {failure:?}");
            ExitCode::FAILURE
        }
    }
}

async fn all(ways: &[Way], args: &RunArgs) -> Result<Vec<Report>, Failure> {
    let events = args.events_per_request as usize;
    let load = Load {
        rate: args.rate,
        probed: !args.no_probes,
        ..Load::new((events, args.connections), Duration::from_secs(args.seconds))
    };
    run::in_turn(ways, load, args.rounds, &args.dir).await
}

fn show(reports: &[Report], output: Output) -> ExitCode {
    match output {
        Output::Table => {
            for report in reports {
                println!("{}", report.table());
            }
            print!("{}", report::ratios(reports));
        }
        Output::Json => match serde_json::to_string_pretty(reports) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("sluice-bench: {error}");
                return ExitCode::FAILURE;
            }
        },
    }
    ExitCode::SUCCESS
}
