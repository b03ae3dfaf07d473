//! `ingestctl up`: all three services in one process, with a ClickHouse of their own where no URL is
//! given.

use crate::clickhouse::{ClickHouse, Options, Places};
use crate::demo;
use crate::http::Http;
use crate::pipeline::{Given, Pipeline};
use crate::sample::Sample;
use crate::self_signed::{NAMES, SelfSigned, TlsFrom};
use clap::Args;
use rustix::fs::{FlockOperation, flock};
use serde_json::json;
use sluice_common::clock::{Clock as _, SharedClock, SystemClock};
use sluice_common::config::Loaded;
use sluice_common::metrics::Metrics;
use sluice_common::process::{self, Failure};
use sluice_common::shutdown::{asked_to_stop, within_deadline};
use sluice_common::telemetry::{self, LogFormat};
use sluice_common::tls::ClientTls;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Runs edge, normalizer and sink-writer in one process.
///
/// Without --clickhouse-url (or clickhouse.url in the config) a ClickHouse is started as a child that
/// dies with this process. Without --config there is one tenant, `demo`, whose key is printed and kept
/// in DIR/demo.key. Exit codes: 0 after SIGTERM or Ctrl-C, 1 where it could not start or had to stop.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// The config file; without it the default config counts.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where log, progress, dedup state and the own ClickHouse's data live.
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data_dir: PathBuf,
    /// Where events are taken; port 0 picks one [default: edge.listen, 127.0.0.1:4318].
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where probes and metrics are [default: edge.admin, 127.0.0.1:9464].
    #[arg(long, value_name = "ADDR")]
    admin_listen: Option<String>,
    /// A ClickHouse that is there already, http://host:port.
    #[arg(long, value_name = "URL")]
    clickhouse_url: Option<String>,
    /// The port of the own ClickHouse; 0 picks one.
    #[arg(long, value_name = "N", default_value_t = 8123)]
    clickhouse_port: u16,
    /// Speak TLS where events are taken, without a config: a certificate is made and kept in DIR/tls.
    #[arg(long, value_name = "FROM")]
    tls: Option<TlsFrom>,
    /// Start though the dedup state is lost and the log does not reach back one window.
    #[arg(long)]
    accept_window_loss: bool,
    /// Log lines as JSON, and one line on stdout once ready.
    #[arg(long)]
    json: bool,
    /// Send a small sample once ready, and show it out of ClickHouse.
    #[arg(long)]
    sample: bool,
}

/// What `up` holds as long as it runs.
struct Ground {
    loaded: Loaded,
    /// The first key of the demo tenant; none where the config has tenants of its own.
    demo_key: Option<String>,
    clickhouse: Option<ClickHouse>,
    certificate: Option<SelfSigned>,
    url: String,
    _lock: File,
}

impl UpArgs {
    /// Runs until SIGTERM or Ctrl-C.
    ///
    /// # Errors
    /// [`Failure`] saying what to do.
    pub async fn run(self) -> Result<(), Failure> {
        let mut loaded = Loaded::read(self.config.as_deref(), &self.data_dir)?;
        if let Some(listen) = &self.listen {
            loaded.config.edge.listen = vec![listen.clone()];
        }
        if let Some(admin) = &self.admin_listen {
            loaded.config.edge.admin = admin.clone();
        }
        let certificate = self.certificate(&loaded)?;
        if let Some(made) = &certificate {
            loaded.config.edge.tls = Some(made.edge_tls());
        }
        let format = if self.json {
            LogFormat::Json
        } else {
            LogFormat::Human
        };
        let telemetry = telemetry::begin("sluice", &loaded.config, format)?;
        let metrics = Metrics::new("sluice", &loaded.config)?;
        let mut ground = self.ground(loaded).await?;
        ground.certificate = certificate;
        let given = Given {
            clickhouse_url: ground.url.clone(),
            wait_for_tables: ground.clickhouse.is_some(),
            clock: Arc::new(SystemClock),
            metrics: metrics.clone(),
            accept_window_loss: self.accept_window_loss,
        };
        let outcome = self.serve(&ground, given).await;
        if let Some(clickhouse) = ground.clickhouse.take() {
            clickhouse.stop(Duration::from_secs(10)).await;
        }
        process::flush(telemetry, metrics).await;
        outcome
    }

    /// The data directory, locked; the demo tenant; a ClickHouse.
    async fn ground(&self, mut loaded: Loaded) -> Result<Ground, Failure> {
        let lock = lock(&self.data_dir)?;
        let demo_key = match self.config {
            None => {
                let key = demo::key(&self.data_dir)?;
                loaded.config.tenants = vec![demo::tenant(&key)];
                Some(key)
            }
            Some(_) => None,
        };
        let given = self
            .clickhouse_url
            .clone()
            .or_else(|| loaded.clickhouse_url.clone());
        let (clickhouse, url) = match given {
            Some(url) => (None, url.trim_end_matches('/').to_owned()),
            None => {
                let clickhouse = self.start_clickhouse().await?;
                let url = clickhouse.url();
                (Some(clickhouse), url)
            }
        };
        Ok(Ground {
            loaded,
            demo_key,
            clickhouse,
            certificate: None,
            url,
            _lock: lock,
        })
    }

    fn certificate(&self, loaded: &Loaded) -> Result<Option<SelfSigned>, Failure> {
        match self.tls {
            None => Ok(None),
            Some(TlsFrom::SelfSigned) if loaded.config.edge.tls.is_some() => Err(Failure::new(
                "the config has `edge.tls`: take it out, or leave out --tls self-signed",
            )),
            Some(TlsFrom::SelfSigned) => {
                let made = SelfSigned::of(&self.data_dir, SystemClock.now_ms())?;
                Ok(Some(made))
            }
        }
    }

    async fn start_clickhouse(&self) -> Result<ClickHouse, Failure> {
        let options = Options {
            data_dir: self.data_dir.clone(),
            port: self.clickhouse_port,
            engine: Places::of_this_process().locate()?,
            launcher: None,
        };
        Ok(ClickHouse::start(options).await?)
    }

    async fn serve(&self, ground: &Ground, given: Given) -> Result<(), Failure> {
        let clock = Arc::clone(&given.clock);
        let mut pipeline = Pipeline::start(&ground.loaded, given).await?;
        let edge = pipeline.edge.clone();
        let asked = asked_to_stop()?;
        self.announce(ground, &edge, &format!("http://{}", pipeline.admin));
        let sample = if self.sample {
            Some(sample(ground, edge, clock)?)
        } else {
            None
        };
        tokio::select! {
            () = asked => {}
            failure = pipeline.ended() => return Err(failure),
            failed = show(sample) => return Err(failed),
        }
        tracing::info!("stopping: finishing what was taken");
        process::stopped(within_deadline(pipeline.stop()).await);
        Ok(())
    }

    fn announce(&self, ground: &Ground, edge: &str, admin: &str) {
        let (key, certificate) = (ground.demo_key.as_deref(), ground.certificate.as_ref());
        if self.json {
            let tenant = key.map(|_| demo::TENANT);
            let certificate = certificate.map(|made| json!({"path": made.path, "sha256": made.fingerprint}));
            println!(
                "{}",
                json!({
                    "ready": true, "edge": edge, "admin": admin, "clickhouse": ground.url,
                    "tenant": tenant, "api_key": key, "certificate": certificate,
                })
            );
            return;
        }
        println!("Sluice is ready.\n  events      {edge}/v1/events/events\n  metrics     {admin}/metrics");
        println!("  clickhouse  {}", ground.url);
        if let Some(key) = key {
            println!("  tenant      {}\n  api key     {key}", demo::TENANT);
        }
        if let Some(made) = certificate {
            let (path, names) = (made.path.display(), NAMES.join(", "));
            println!("  certificate {path}, self-signed, for {names}; for development only");
            println!("  SHA-256     {}", made.fingerprint);
            println!(
                "  to trust it curl --cacert {path} -H 'X-Api-Key: …' \
                 -H 'Content-Type: application/json' -d @events.json {edge}/v1/events/events"
            );
        }
        println!("Ctrl-C stops it; nothing that was acknowledged is lost.");
    }
}

fn sample(ground: &Ground, edge: String, clock: SharedClock) -> Result<Sample, Failure> {
    let edge_tls = ground.certificate.as_ref().map(SelfSigned::client);
    let clickhouse_tls = ground.loaded.clickhouse_tls(&ground.url);
    Ok(Sample {
        edge,
        edge_client: Http::over(edge_tls.map(ClientTls::open).transpose()?),
        clickhouse: ground.url.clone(),
        clickhouse_client: Http::over(clickhouse_tls.map(ClientTls::open).transpose()?),
        database: ground.loaded.config.clickhouse.database.to_string(),
        key: ground.demo_key.clone().unwrap_or_default(),
        clock,
    })
}

/// Sends the sample, if there is one, and then stays; returns only where it fails.
async fn show(sample: Option<Sample>) -> Failure {
    if let Some(sample) = sample
        && let Err(failure) = sample.run().await
    {
        return failure;
    }
    std::future::pending().await
}

/// One `up` a directory: a second one would take its log and its ClickHouse away.
fn lock(dir: &Path) -> Result<File, Failure> {
    let cannot = |error: std::io::Error| {
        Failure::new(format!(
            "cannot use the data directory {}: {error}",
            dir.display()
        ))
    };
    std::fs::create_dir_all(dir).map_err(cannot)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("up.lock"))
        .map_err(cannot)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        Failure::new(format!(
            "another `ingestctl up` uses {}: stop it, or pass another --data-dir",
            dir.display()
        ))
    })?;
    Ok(file)
}
