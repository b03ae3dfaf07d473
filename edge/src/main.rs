//! `sluice-edge`: the edge as a process of its own.

use clap::Parser;
use sluice_common::config::Loaded;
use sluice_common::process;
use sluice_common::telemetry::{self, LogFormat};
use std::path::PathBuf;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: process::Allocator = process::Allocator;

/// Takes events over HTTP and answers once they are durable.
#[derive(Debug, Parser)]
#[command(name = "sluice-edge", version)]
struct Options {
    /// The config file; without it, the default config.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Relative paths of the config are taken from here.
    #[arg(long, default_value = "data")]
    data_dir: PathBuf,
    /// One JSON line on stdout once ready, and JSON log lines.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    process::tell_panics();
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-edge: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let config = Loaded::read(options.config.as_deref(), &options.data_dir)?;
    let format = if options.json {
        LogFormat::Json
    } else {
        LogFormat::Human
    };
    let telemetry = telemetry::begin("sluice-edge", &config.config, format)?;
    let runtime = process::runtime()?;
    let ended = runtime.block_on(sluice_edge::run_alone(&config, options.json));
    // What is still running after the deadline is not waited for.
    runtime.shutdown_background();
    telemetry.end();
    Ok(ended?)
}
