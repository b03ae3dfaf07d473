//! `make torture`: seeded rounds of faults against real processes, and what became of every event.

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use sluice_tests::torture::{self, Options};
use std::process::ExitCode;
use std::time::Duration;

/// Kills, stops, restarts and cuts off a Sluice under load, round after round, until a promise is broken.
#[derive(Debug, Parser)]
struct Args {
    /// For how long rounds are begun, in seconds.
    #[arg(long)]
    secs: u64,
    /// The same seed draws the same rounds; a new one where it is absent.
    #[arg(long)]
    seed: Option<u64>,
    /// Begin with this round.
    #[arg(long, default_value_t = 1)]
    round: u64,
    /// Which log there is.
    #[arg(long, value_enum, default_value = "embedded")]
    log: Log,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Log {
    Embedded,
    /// A topic of a broker that has its faults as well.
    Kafka,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let options = Options {
        time: Duration::from_secs(args.secs),
        seed: args.seed.unwrap_or_else(rand::random),
        first: args.round,
        kafka: args.log == Log::Kafka,
    };
    let log = if options.kafka { "LOG=kafka " } else { "" };
    println!("{log}SEED={} make torture SECS={}", options.seed, args.secs);
    let bar = bar(args.secs);
    let rounds = torture::run(options, |line| {
        if bar.is_hidden() {
            println!("{line}");
        } else {
            bar.println(line);
        }
    });
    let clock = async {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        for second in 0.. {
            seconds.tick().await;
            bar.set_position(second);
        }
    };
    // Interrupted, it drops the round and with it all that the round started.
    let outcome = tokio::select! {
        outcome = rounds => Some(outcome),
        () = clock => None,
        _ = tokio::signal::ctrl_c() => None,
    };
    bar.finish_and_clear();
    let Some(outcome) = outcome else {
        return ExitCode::from(130);
    };
    println!("{outcome}");
    if outcome.breach.is_some() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn bar(seconds: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("torture [{bar:40}] {pos}/{len} s").expect("a template");
    ProgressBar::new(seconds).with_style(style)
}
