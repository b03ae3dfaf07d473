//! `sluice-normalizer`: the normalizer as a process of its own.

use clap::Parser;
use sluice_common::admin::Control;
use sluice_common::clock::{SharedClock, SystemClock};
use sluice_common::config::Loaded;
use sluice_common::limits::SERVER_DEADLINE;
use sluice_common::metrics::Metrics;
use sluice_common::reload::Reloader;
use sluice_common::serve::{Bounds, Door, listen, serve};
use sluice_common::shutdown::{Stop, asked_to_stop, within_deadline};
use sluice_common::telemetry::{self, LogFormat};
use sluice_common::tls::{ClientTls, ServerTls, reload};
use sluice_common::wire::transport::{PeerClient, receive};
use sluice_common::{admin, process};
use sluice_normalizer::start::{Environment, Running};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: process::Allocator = process::Allocator;

/// Sluice's normalizer: validates events, makes them durable, drops repeats, and drives the writing.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// The config file that all services share; without it the default config counts.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the log, the progress and the dedup state live.
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data_dir: PathBuf,
    /// Start though the dedup state is lost and the log does not reach back one window.
    #[arg(long)]
    accept_window_loss: bool,
    /// Log lines as JSON, and one line on stdout once ready.
    #[arg(long)]
    json: bool,
}

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
    let telemetry = telemetry::begin("sluice-normalizer", &loaded.config, format)?;
    let metrics = Metrics::new("sluice-normalizer", &loaded.config)?;
    let (inner, own) = (&loaded.config.normalizer, loaded.internal_token.clone());
    let (calls, probes) = (listen(&inner.listen).await?, listen(&inner.admin).await?);
    let tls = loaded
        .inner_listener_tls()
        .map(|files| ServerTls::open(files, &metrics));
    let tls = tls.transpose()?;
    let peer = loaded.inner_client_tls().map(ClientTls::open).transpose()?;
    let (taking, pumping) = (Stop::new(), Stop::new());
    let environment = Environment {
        sink: PeerClient::new(&inner.sink_writer, own.clone(), peer.clone()).seam(),
        metrics: metrics.clone(),
        clock: Arc::new(SystemClock),
        stop: pumping.clone(),
        accept_window_loss: args.accept_window_loss,
    };
    let clock: SharedClock = Arc::new(SystemClock);
    let mut running = Running::start(&loaded, environment)?;
    let reloader = Reloader::new(&loaded, &metrics, &clock).with(running.part());
    let control = reloader.mount(Control::new(loaded.admin_token.clone()).with(running.control.clone()));
    reloader.start(taking.clone())?;
    let asked = asked_to_stop()?;
    process::ready(
        args.json,
        "normalizer",
        (calls.local_addr()?, tls.is_some()),
        probes.local_addr()?,
    );
    let watched = tls.clone().map(reload::target).into_iter();
    let watched = watched.chain(peer.map(reload::target)).collect();
    tokio::spawn(reload::watch(watched, metrics.clone(), pumping.clone()));
    let router = receive(running.intake.clone(), own);
    let door = Door { listener: calls, tls };
    let server = tokio::spawn(serve(door, router, Bounds::INNER, taking.clone()));
    tokio::spawn(admin::run(
        probes,
        metrics.clone(),
        Arc::clone(&running.ready),
        control,
        pumping.clone(),
    ));
    tokio::select! {
        () = asked => {}
        ended = &mut running.pump => return Err(process::Failure::ended("the pump", ended)),
    }
    tracing::info!("stopping: finishing what was taken");
    taking.cancel();
    let in_time = within_deadline(async {
        // A client that drips its body must not keep the rest from ending in order.
        tokio::time::timeout(SERVER_DEADLINE, server).await.ok();
        running.close().await;
        pumping.cancel();
        if let Ok(Err(error)) = (&mut running.pump).await {
            tracing::error!(%error, "the pump ended with an error while stopping");
        }
    });
    process::stopped(in_time.await);
    process::flush(telemetry, metrics).await;
    Ok(())
}
