//! What is measured: a ClickHouse on a directory of its own, and in front of it a Sluice in either
//! shape, or nothing.

use crate::usage::{self, Usage};
use clap::ValueEnum;
use ingestctl::clickhouse::{ClickHouse, Options, Places};
use ingestctl::demo;
use sluice_common::process::Failure;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

const READY_DEADLINE: Duration = Duration::from_secs(60);

/// How Sluice runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// `ingestctl up`.
    AllInOne,
    /// `sluice-edge`, `sluice-normalizer`, `sluice-sink-writer`.
    ThreeProcesses,
}

/// A tenant of a Sluice that is measured.
#[derive(Debug, Clone)]
pub struct Tenant {
    pub id: String,
    /// YAML; none: not limited.
    pub quota: Option<String>,
}

impl Tenant {
    /// One without limits.
    #[must_use]
    pub fn free(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            quota: None,
        }
    }

    /// Its API key, which lives as long as this run.
    #[must_use]
    pub fn key(&self) -> String {
        format!("slc_{}_{:032}", self.id, 0)
    }

    fn yaml(&self) -> String {
        let (id, hash) = (&self.id, demo::hash(&self.key()));
        let quota = self.quota.as_ref().map(|quota| format!(", quota: {quota}"));
        format!(
            "  - {{id: {id}, keys: [{{sha256: \"{hash}\"}}]{}}}\n",
            quota.unwrap_or_default()
        )
    }
}

/// Everything that runs. Dropping it kills all and removes the directory.
#[derive(Debug)]
pub struct System {
    services: Vec<(&'static str, Child)>,
    /// From start to ready, of each.
    ready: Vec<Duration>,
    clickhouse: ClickHouse,
    /// Where events go, `host:port`; absent without Sluice.
    pub edge: Option<String>,
    /// Admin listeners, `http://host:port`: all that have metrics.
    pub admin: Vec<String>,
    dir: TempDir,
}

impl System {
    /// Starts a ClickHouse, and Sluice with these tenants before it where there is a `shape`; all files below
    /// `parent`. What is started inherits the caller's cores.
    ///
    /// # Errors
    /// What did not start, and where it says why.
    pub async fn start(shape: Option<Shape>, tenants: &[Tenant], parent: &Path) -> Result<Self, Failure> {
        Self::start_with(shape, tenants, parent, "").await
    }

    /// The same, with these keys of the config besides.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(
        shape: Option<Shape>,
        tenants: &[Tenant],
        parent: &Path,
        extra: &str,
    ) -> Result<Self, Failure> {
        let dir = tempfile::Builder::new()
            .prefix("sluice-bench-")
            .tempdir_in(parent)?;
        let engine = places().locate()?;
        let options = Options {
            data_dir: dir.path().join("server"),
            port: 0,
            engine,
            launcher: Some(beside("ingestctl")?),
        };
        let mut system = Self {
            services: Vec::new(),
            ready: Vec::new(),
            clickhouse: ClickHouse::start(options).await?,
            edge: None,
            admin: Vec::new(),
            dir,
        };
        if let Some(shape) = shape {
            system.start_sluice(shape, tenants, extra).await?;
        }
        Ok(system)
    }

    async fn start_sluice(&mut self, shape: Shape, tenants: &[Tenant], extra: &str) -> Result<(), Failure> {
        let [edge, edge_admin, inner, inner_admin, sink, sink_admin] = free_ports()?;
        let url = self.clickhouse();
        let tenants: String = tenants.iter().map(Tenant::yaml).collect();
        let config = format!(
            "edge: {{listen: [\"127.0.0.1:{edge}\"], admin: \"127.0.0.1:{edge_admin}\", normalizer: [\"http://127.0.0.1:{inner}\"]}}\n\
             normalizer: {{listen: \"127.0.0.1:{inner}\", admin: \"127.0.0.1:{inner_admin}\", sink_writer: [\"http://127.0.0.1:{sink}\"]}}\n\
             sink_writer: {{listen: \"127.0.0.1:{sink}\", admin: \"127.0.0.1:{sink_admin}\"}}\n\
             internal: {{token: \"file:internal.token\"}}\nclickhouse: {{url: \"{url}\"}}\ntenants:\n{tenants}{extra}"
        );
        let path = self.dir.path().join("sluice.yaml");
        std::fs::write(&path, config)?;
        std::fs::create_dir_all(self.data())?;
        std::fs::write(self.data().join("internal.token"), "a-token-of-this-run\n")?;
        let path = path.display().to_string();
        let admin: &[u16] = match shape {
            Shape::AllInOne => {
                self.start_service("ingestctl", &["up", "--config", &path])
                    .await?;
                &[edge_admin]
            }
            Shape::ThreeProcesses => {
                for name in ["sluice-sink-writer", "sluice-normalizer", "sluice-edge"] {
                    self.start_service(name, &["--config", &path]).await?;
                }
                &[edge_admin, inner_admin, sink_admin]
            }
        };
        self.admin = admin
            .iter()
            .map(|port| format!("http://127.0.0.1:{port}"))
            .collect();
        self.edge = Some(format!("127.0.0.1:{edge}"));
        Ok(())
    }

    /// Starts a service of ours and reads its first line. Its log goes to a file of the directory.
    async fn start_service(&mut self, name: &'static str, args: &[&str]) -> Result<(), Failure> {
        let log = self.dir.path().join(format!("{name}.log"));
        let begun = Instant::now();
        let mut child = Command::new(beside(name)?)
            .args(args)
            .arg("--json")
            .arg("--data-dir")
            .arg(self.data())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .kill_on_drop(true)
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut stdout = BufReader::new(stdout);
            // Where this is late or fails, the line is empty, which is refused below.
            tokio::time::timeout(READY_DEADLINE, stdout.read_line(&mut line))
                .await
                .ok();
        }
        self.services.push((name, child));
        if line.starts_with('{') {
            self.ready.push(begun.elapsed());
            return Ok(());
        }
        let words = std::fs::read_to_string(&log).unwrap_or_default();
        let last: Vec<&str> = words.lines().rev().take(5).collect();
        Err(Failure::new(format!(
            "{name} did not get ready: {}",
            last.join(" | ")
        )))
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Kills whoever has dedup's state, and starts it again after what is done to the data directory. Returns once it is
    /// ready.
    ///
    /// # Errors
    /// What could not be done, or did not start.
    pub async fn restart(
        &mut self,
        between: impl FnOnce(&Path) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let has_it = |name: &str| ["ingestctl", "sluice-normalizer"].contains(&name);
        let Some(at) = self.services.iter().position(|(name, _)| has_it(name)) else {
            return Ok(());
        };
        let (name, mut child) = self.services.remove(at);
        // It may have ended by itself.
        child.kill().await.ok();
        between(&self.data())?;
        let path = self.dir.path().join("sluice.yaml").display().to_string();
        let args: &[&str] = match name {
            "ingestctl" => &["up", "--config", &path],
            _ => &["--config", &path],
        };
        self.start_service(name, args).await
    }

    /// ClickHouse's URL.
    #[must_use]
    pub fn clickhouse(&self) -> String {
        self.clickhouse.url()
    }

    /// ClickHouse's `host:port`.
    #[must_use]
    pub fn clickhouse_address(&self) -> String {
        format!("127.0.0.1:{}", self.clickhouse.port())
    }

    /// What each process used so far, the generator included.
    #[must_use]
    pub fn usage(&self) -> Vec<(&'static str, Usage)> {
        let ours = self.services.iter();
        let ours = ours.filter_map(|(name, child)| Some((*name, usage::of_tree(child.id()?))));
        let clickhouse = self.clickhouse.pid().map(usage::of_tree).unwrap_or_default();
        ours.chain([("clickhouse", clickhouse), ("generator", usage::of_self())])
            .collect()
    }

    /// How long each of our services took to be ready, in the order of [`Self::usage`].
    #[must_use]
    pub fn ready(&self) -> &[Duration] {
        &self.ready
    }

    /// Bytes that our services hold now.
    #[must_use]
    pub fn resident(&self) -> u64 {
        let pids = self.services.iter().filter_map(|(_, child)| child.id());
        pids.map(usage::rss_of).sum()
    }

    /// Stops everything; a killed Sluice loses nothing that matters here.
    pub async fn stop(mut self) {
        for (_, mut child) in self.services.drain(..) {
            // It may have ended by itself.
            child.kill().await.ok();
        }
        self.clickhouse.stop(Duration::from_secs(10)).await;
    }
}

fn places() -> Places {
    Places::of_this_process().and_above(env!("CARGO_MANIFEST_DIR"))
}

/// An executable of ours, beside this one.
pub(crate) fn beside(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()?;
    let path = own.with_file_name(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::new(format!(
        "{} is not there: run `make bench`, or build it with the same profile",
        path.display()
    )))
}

/// Free ones, held together while they are chosen so that no two are the same.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N], Failure> {
    let held: Vec<TcpListener> = (0..N)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
