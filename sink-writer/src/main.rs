//! `sluice-sink-writer`: the sink-writer as a process of its own.

use clap::Parser;
use sluice_common::admin::Control;
use sluice_common::clock::{SharedClock, SystemClock};
use sluice_common::config::Loaded;
use sluice_common::metrics::Metrics;
use sluice_common::reload::Reloader;
use sluice_common::serve::{Bounds, Door, listen, serve};
use sluice_common::servers::name_of;
use sluice_common::shutdown::{Stop, asked_to_stop, within_deadline};
use sluice_common::telemetry::{self, LogFormat};
use sluice_common::tls::{ServerTls, reload};
use sluice_common::wire::transport::receive;
use sluice_common::{admin, process};
use sluice_sink_writer::{SinkWriter, Target, publish};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: process::Allocator = process::Allocator;

/// Sluice's sink-writer: builds blocks, inserts them into ClickHouse and proves that they are there.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// The config file that all services share; without it the default config counts.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Relative paths of the config are taken from here.
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data_dir: PathBuf,
    /// Log lines as JSON, and one line on stdout once ready.
    #[arg(long)]
    json: bool,
}

/// How long the start tries to make the tables; after it, calls do.
const TABLES_DEADLINE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    process::run(run(Args::parse()))
}

async fn run(args: Args) -> Result<(), process::Failure> {
    let loaded = Loaded::read(args.config.as_deref(), &args.data_dir)?;
    let format = if args.json {
        LogFormat::Json
    } else {
        LogFormat::Human
    };
    let telemetry = telemetry::begin("sluice-sink-writer", &loaded.config, format)?;
    let metrics = Metrics::new("sluice-sink-writer", &loaded.config)?;
    let inner = &loaded.config.sink_writer;
    let (calls, probes) = (listen(&inner.listen).await?, listen(&inner.admin).await?);
    let targets = targets(&loaded)?;
    let tls = loaded
        .inner_listener_tls()
        .map(|files| ServerTls::open(files, &metrics));
    let tls = tls.transpose()?;
    let sink =
        SinkWriter::new(&targets, &loaded.config.datasets, &metrics).publishing(publish::Target::of(&loaded));
    let (taking, probing) = (Stop::new(), Stop::new());
    let clock: SharedClock = Arc::new(SystemClock);
    let reloader = Reloader::new(&loaded, &metrics, &clock).with(sink.part());
    let control = reloader.mount(Control::new(loaded.admin_token.clone()));
    reloader.start(taking.clone())?;
    let asked = asked_to_stop()?;
    process::ready(
        args.json,
        "sink_writer",
        (calls.local_addr()?, tls.is_some()),
        probes.local_addr()?,
    );
    let watched = tls.clone().map(reload::target).into_iter();
    let trusted = targets.into_iter().filter_map(|target| target.tls);
    let watched = watched.chain(trusted.map(reload::target)).collect();
    tokio::spawn(reload::watch(watched, metrics.clone(), probing.clone()));
    tokio::spawn(make_tables(sink.clone()));
    let router = receive(sink.seam(), loaded.internal_token.clone());
    let door = Door { listener: calls, tls };
    let server = tokio::spawn(serve(door, router, Bounds::INNER, taking.clone()));
    tokio::spawn(admin::run(
        probes,
        metrics.clone(),
        Arc::new(|| Ok(())),
        control,
        probing.clone(),
    ));
    asked.await;
    tracing::info!("stopping: finishing the calls under way");
    taking.cancel();
    let in_time = within_deadline(async {
        // A panic of the server task was logged where it happened.
        server.await.ok();
    });
    process::stopped(in_time.await);
    probing.cancel();
    process::flush(telemetry, metrics).await;
    Ok(())
}

fn targets(loaded: &Loaded) -> Result<Vec<Target>, process::Failure> {
    let missing =
        || process::Failure::new("clickhouse.url is missing: the sink-writer must know where rows go");
    let url = loaded.clickhouse_url.as_deref().ok_or_else(missing)?;
    Ok(Target::all(loaded, (name_of(url), url))?)
}

async fn make_tables(sink: SinkWriter) {
    if let Err(error) = sink.create_missing(TABLES_DEADLINE).await {
        tracing::warn!(%error, "tables could not be made yet; calls try again");
    }
}
