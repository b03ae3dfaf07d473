//! A whole Sluice on directories and ports of its own, in either shape.

use crate::client::Client;
use crate::eventually;
use crate::plan::{Hop, Part, Plan, Shape, TENANTS};
use crate::ports;
use crate::proxy::Proxy;
use crate::service::{Service, Started, executable, places, tail};
use crate::volume::Volume;
use ingestctl::clickhouse::{ClickHouse, Options};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// A tenant's id and key, and its quota as the config has it.
#[derive(Debug, Clone)]
pub struct Tenant {
    pub id: String,
    pub key: String,
    /// YAML; empty: not limited. Changed, it counts from the next [`Deployment::reload`].
    pub quota: String,
}

/// A Sluice under test. Dropping it kills everything and removes its directory.
#[derive(Debug)]
pub struct Deployment {
    pub shape: Shape,
    pub tenants: Vec<Tenant>,
    /// What runs of ours.
    services: HashMap<Part, Service>,
    clickhouse: Option<ClickHouse>,
    proxies: HashMap<Hop, Proxy>,
    plan: Plan,
    ports: Ports,
    clients: AtomicUsize,
    // Unmounted once nobody uses them, and before the directory is removed.
    data_volume: Option<Volume>,
    server_volume: Option<Volume>,
    dir: TempDir,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    edge: u16,
    edge_admin: u16,
    normalizer: u16,
    normalizer_admin: u16,
    sink: u16,
    sink_admin: u16,
    clickhouse: u16,
    second_edge: u16,
    second_edge_admin: u16,
    second_sink: u16,
    second_sink_admin: u16,
    second_normalizer: u16,
    second_normalizer_admin: u16,
    third_normalizer: u16,
    third_normalizer_admin: u16,
}

impl Ports {
    fn free() -> Self {
        Self {
            edge: ports::one(),
            edge_admin: ports::one(),
            normalizer: ports::one(),
            normalizer_admin: ports::one(),
            sink: ports::one(),
            sink_admin: ports::one(),
            clickhouse: ports::one(),
            second_edge: ports::one(),
            second_edge_admin: ports::one(),
            second_sink: ports::one(),
            second_sink_admin: ports::one(),
            second_normalizer: ports::one(),
            second_normalizer_admin: ports::one(),
            third_normalizer: ports::one(),
            third_normalizer_admin: ports::one(),
        }
    }

    /// Where a hop ends.
    fn behind(self, hop: Hop) -> u16 {
        match hop {
            Hop::EdgeToNormalizer => self.normalizer,
            Hop::NormalizerToSinkWriter => self.sink,
            Hop::ToClickHouse => self.clickhouse,
        }
    }
}

impl Tenant {
    fn new(n: usize) -> Self {
        Self {
            id: format!("t{n}"),
            key: format!("slc_t{n}_{:032x}", rand::random::<u128>()),
            quota: String::new(),
        }
    }

    fn yaml(&self) -> String {
        let hash = ingestctl::demo::hash(&self.key);
        let quota = match self.quota.as_str() {
            "" => String::new(),
            quota => format!(", quota: {quota}"),
        };
        format!("  - {{id: {}, keys: [{{sha256: \"{hash}\"}}]{quota}}}\n", self.id)
    }
}

impl Deployment {
    /// Starts one with the default datasets.
    ///
    /// # Panics
    /// Where a part does not get ready.
    pub async fn start(shape: Shape) -> Self {
        Self::start_with(shape, "").await
    }

    /// Starts one; `extra` is YAML added to the top level of its config (`log`, `datasets`, …).
    ///
    /// # Panics
    /// Where a part does not get ready.
    pub async fn start_with(shape: Shape, extra: &str) -> Self {
        Self::start_for(TENANTS, shape, extra).await
    }

    /// The same with so many tenants.
    ///
    /// # Panics
    /// Where a part does not get ready.
    pub async fn start_for(tenants: usize, shape: Shape, extra: &str) -> Self {
        Self::start_prepared(tenants, shape, extra, |_| {}).await
    }

    /// The same; `prepare` is given the directory of everything before the first process starts.
    ///
    /// # Panics
    /// Where a part does not get ready.
    pub async fn start_prepared(
        tenants: usize,
        shape: Shape,
        extra: &str,
        prepare: impl FnOnce(&Path),
    ) -> Self {
        let plan = Plan::new(shape).tenants(tenants).extra(extra);
        plan.start_prepared(prepare).await
    }

    pub(crate) async fn of(plan: Plan, prepare: impl FnOnce(&Path)) -> Self {
        let small_files = plan.small_files;
        let deployment = Self::prepared(plan).await;
        if small_files {
            shrink_files(deployment.path());
        }
        prepare(deployment.path());
        deployment.brought_up().await
    }

    async fn brought_up(mut self) -> Self {
        for part in self.parts() {
            self.bring_up(part).await.expect("ready");
        }
        self
    }

    async fn prepared(plan: Plan) -> Self {
        let dir = TempDir::new().expect("a directory");
        let ports = Ports::free();
        let mut proxies = HashMap::new();
        for hop in &plan.hops {
            proxies.insert(*hop, Proxy::start(ports.behind(*hop)).await);
        }
        let mount = |name: &str, bytes| Volume::mount(&dir.path().join(name), bytes);
        let deployment = Self {
            shape: plan.shape,
            tenants: (0..plan.tenants).map(Tenant::new).collect(),
            services: HashMap::new(),
            clickhouse: None,
            proxies,
            ports,
            clients: AtomicUsize::new(0),
            data_volume: plan.data_bytes.map(|bytes| mount("data", bytes)),
            server_volume: plan.server_bytes.map(|bytes| mount("server", bytes)),
            dir,
            plan,
        };
        std::fs::create_dir_all(deployment.data()).expect("made");
        std::fs::write(deployment.config(), deployment.yaml(&deployment.plan.extra)).expect("written");
        if deployment.plan.twins {
            let text = deployment.of_the_second(&deployment.plan.extra);
            std::fs::write(deployment.second_config(), text).expect("written");
        }
        if deployment.plan.third_normalizer {
            let text = deployment.of_the_third(&deployment.plan.extra);
            std::fs::write(deployment.third_config(), text).expect("written");
        }
        for data in [
            deployment.data(),
            deployment.second_data(),
            deployment.third_data(),
        ] {
            std::fs::create_dir_all(&data).expect("made");
            std::fs::write(data.join("internal.token"), "a-token-of-the-tests\n").expect("written");
        }
        deployment
    }

    /// What runs, in the order of a start.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        let server = self.plan.has_server().then_some(Part::ClickHouse);
        let twins = match self.plan.twins {
            true => [Some(Part::SecondSinkWriter), Some(Part::SecondEdge)],
            false => [None, None],
        };
        let more = self.normalizers().into_iter().skip(1);
        let first = server.into_iter().chain(self.followers().iter().copied());
        first.chain(more).chain(twins.into_iter().flatten()).collect()
    }

    /// Those that work on the log.
    #[must_use]
    pub fn normalizers(&self) -> Vec<Part> {
        let second = self.plan.twin_normalizers.then_some(Part::SecondNormalizer);
        let third = self.plan.third_normalizer.then_some(Part::ThirdNormalizer);
        [Part::Normalizer]
            .into_iter()
            .chain(second)
            .chain(third)
            .collect()
    }

    /// The proxy on a hop.
    ///
    /// # Panics
    /// Where the plan had none.
    #[must_use]
    pub fn proxy(&self, hop: Hop) -> &Proxy {
        self.proxies.get(&hop).expect("a proxy on that hop")
    }

    /// The same, to be shut and opened.
    ///
    /// # Panics
    /// Where the plan had none.
    pub fn proxy_mut(&mut self, hop: Hop) -> &mut Proxy {
        self.proxies.get_mut(&hop).expect("a proxy on that hop")
    }

    /// The volume of the data directory.
    ///
    /// # Panics
    /// Where the plan had none.
    #[must_use]
    pub fn data_volume(&self) -> &Volume {
        self.data_volume.as_ref().expect("a volume of its own")
    }

    /// ClickHouse's volume.
    ///
    /// # Panics
    /// Where the plan had none.
    #[must_use]
    pub fn clickhouse_volume(&self) -> &Volume {
        self.server_volume.as_ref().expect("a volume of its own")
    }

    fn yaml(&self, extra: &str) -> String {
        self.yaml_at(self.ports, extra)
    }

    /// The config of the second edge and the second sink-writer: the same, with their listeners in place of the first's.
    fn of_the_second(&self, extra: &str) -> String {
        let ports = self.ports;
        let second = Ports {
            edge: ports.second_edge,
            edge_admin: ports.second_edge_admin,
            sink: ports.second_sink,
            sink_admin: ports.second_sink_admin,
            normalizer: ports.second_normalizer,
            normalizer_admin: ports.second_normalizer_admin,
            ..ports
        };
        self.yaml_at(second, extra)
    }

    /// The same of the third normalizer.
    fn of_the_third(&self, extra: &str) -> String {
        let ports = self.ports;
        let third = Ports {
            normalizer: ports.third_normalizer,
            normalizer_admin: ports.third_normalizer_admin,
            ..ports
        };
        self.yaml_at(third, extra)
    }

    /// The data directory of the second normalizer.
    #[must_use]
    pub fn second_data(&self) -> PathBuf {
        self.dir.path().join("second-data")
    }

    fn second_config(&self) -> PathBuf {
        self.dir.path().join("second.yaml")
    }

    fn third_data(&self) -> PathBuf {
        self.dir.path().join("third-data")
    }

    fn third_config(&self) -> PathBuf {
        self.dir.path().join("third.yaml")
    }

    fn yaml_at(&self, p: Ports, extra: &str) -> String {
        let second_sink = match self.plan.twins {
            true => format!(", \"http://127.0.0.1:{}\"", p.second_sink),
            false => String::new(),
        };
        let more = [
            (self.plan.twin_normalizers, self.ports.second_normalizer),
            (self.plan.third_normalizer, self.ports.third_normalizer),
        ];
        let more = more.into_iter().filter(|(is_there, _)| *is_there);
        let more_normalizers: String = more
            .map(|(_, port)| format!(", \"http://127.0.0.1:{port}\""))
            .collect();
        let tenants: String = self.tenants.iter().map(Tenant::yaml).collect();
        let clickhouse = match self.plan.has_server() {
            false => String::new(),
            true => format!(
                "clickhouse: {{url: \"http://127.0.0.1:{}\"{}}}\n",
                self.towards(Hop::ToClickHouse),
                self.plan.clickhouse
            ),
        };
        format!(
            "edge: {{listen: [\"127.0.0.1:{}\"], admin: \"127.0.0.1:{}\", normalizer: [\"http://127.0.0.1:{}\"{more_normalizers}]}}\n\
             normalizer: {{listen: \"127.0.0.1:{}\", admin: \"127.0.0.1:{}\", sink_writer: [\"http://127.0.0.1:{}\"{second_sink}]}}\n\
             sink_writer: {{listen: \"127.0.0.1:{}\", admin: \"127.0.0.1:{}\"}}\n\
             internal: {{token: \"file:internal.token\"}}\n{clickhouse}tenants:\n{tenants}{extra}\n",
            p.edge,
            p.edge_admin,
            self.towards(Hop::EdgeToNormalizer),
            p.normalizer,
            p.normalizer_admin,
            self.towards(Hop::NormalizerToSinkWriter),
            p.sink,
            p.sink_admin,
        )
    }

    /// The port that is spoken to on a hop.
    fn towards(&self, hop: Hop) -> u16 {
        let proxy = self.proxies.get(&hop);
        proxy.map_or(self.ports.behind(hop), Proxy::port)
    }

    /// The config file; rewrite it before a restart to change it.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("sluice.yaml")
    }

    /// Puts another config in the place of the file; `extra` as in [`Self::start_with`]. Its SHA-256.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn rewrite(&self, extra: &str) -> String {
        let (path, text) = (self.config(), self.yaml(extra));
        let new = path.with_extension("new");
        std::fs::write(&new, &text).expect("written");
        std::fs::rename(new, path).expect("renamed");
        hex::encode(Sha256::digest(text))
    }

    /// The parts that follow the config file.
    #[must_use]
    pub fn followers(&self) -> &'static [Part] {
        match self.shape {
            Shape::AllInOne => &[Part::Up],
            Shape::ThreeProcesses => &[Part::SinkWriter, Part::Normalizer, Part::Edge],
        }
    }

    /// SIGHUPs a part.
    ///
    /// # Panics
    /// Where it does not run.
    pub fn hang_up(&self, part: Part) {
        self.signal(part, Signal::HUP);
    }

    /// Signals the running process of a part: `STOP`, `CONT`, ….
    ///
    /// # Panics
    /// Where it does not run.
    pub fn signal(&self, part: Part, signal: Signal) {
        let pid = self.pid(part).expect("it runs");
        kill_process(pid, signal).expect("it runs");
    }

    fn pid(&self, part: Part) -> Option<Pid> {
        match self.service(part) {
            Some(service) => Some(service.pid()),
            None if part == Part::ClickHouse => self.clickhouse_pid(),
            None => None,
        }
    }

    /// What a part says of its config; null where it does not answer.
    pub async fn config_state(&self, part: Part) -> serde_json::Value {
        let answer = self.admin(part).get("/admin/v1/config").await;
        answer.map(|answer| answer.json()).unwrap_or_default()
    }

    /// Changes the config while everything runs, and waits until it is in force everywhere.
    ///
    /// # Panics
    /// Where it is not in time.
    pub async fn reload(&self, extra: &str) {
        let hash = self.rewrite(extra);
        for part in self.followers() {
            self.hang_up(*part);
        }
        for part in self.followers() {
            eventually("the config is in force", Duration::from_secs(20), async || {
                (self.config_state(*part).await["sha256"] == hash).then_some(())
            })
            .await;
        }
    }

    /// The data directory of the log and the dedup state.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The log lines of one part, over all its lives.
    #[must_use]
    pub fn log_file(&self, part: Part) -> PathBuf {
        self.dir.path().join(format!("{part:?}.log"))
    }

    /// Starts a part that does not run.
    ///
    /// # Errors
    /// Its last words.
    pub async fn bring_up(&mut self, part: Part) -> Result<(), String> {
        match self.command_of(part) {
            Some((program, args)) => {
                let service = start(program, args, self.log_file(part)).await?;
                self.services.insert(part, service);
            }
            None => self.clickhouse = Some(self.start_clickhouse().await?),
        }
        Ok(())
    }

    /// Starts a part, but ClickHouse, and does not wait until it is ready; it is killed when what is returned is dropped.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start_without_waiting(&self, part: Part) -> Result<Started, String> {
        let (program, args) = self.command_of(part).ok_or("ClickHouse has a keeper")?;
        Started::new(program, &args, &self.log_file(part))
    }

    /// What starts a part, with its arguments; none of ClickHouse.
    fn command_of(&self, part: Part) -> Option<(&'static str, Vec<String>)> {
        let (program, config) = match part {
            Part::Up => ("ingestctl", self.config()),
            Part::Edge => ("sluice-edge", self.config()),
            Part::Normalizer => ("sluice-normalizer", self.config()),
            Part::SinkWriter => ("sluice-sink-writer", self.config()),
            Part::SecondEdge => ("sluice-edge", self.second_config()),
            Part::SecondSinkWriter => ("sluice-sink-writer", self.second_config()),
            Part::SecondNormalizer => ("sluice-normalizer", self.second_config()),
            Part::ThirdNormalizer => ("sluice-normalizer", self.third_config()),
            Part::ClickHouse => return None,
        };
        let data = match part {
            Part::SecondNormalizer => self.second_data(),
            Part::ThirdNormalizer => self.third_data(),
            Part::Up
            | Part::Edge
            | Part::Normalizer
            | Part::SinkWriter
            | Part::ClickHouse
            | Part::SecondEdge
            | Part::SecondSinkWriter => self.data(),
        };
        let (config, data) = (config.display().to_string(), data.display().to_string());
        let mut args = ["--config", &config, "--data-dir", &data]
            .map(str::to_owned)
            .to_vec();
        if part == Part::Up {
            let port = self.ports.clickhouse.to_string();
            args.insert(0, "up".into());
            args.extend(["--clickhouse-port".into(), port]);
        }
        Some((program, args))
    }

    async fn start_clickhouse(&self) -> Result<ClickHouse, String> {
        let options = Options {
            data_dir: self.dir.path().join("server"),
            port: self.ports.clickhouse,
            engine: places().locate().map_err(|error| error.to_string())?,
            launcher: Some(executable("ingestctl")),
        };
        ClickHouse::start(options)
            .await
            .map_err(|error| error.to_string())
    }

    /// SIGKILLs a part. A killed ClickHouse comes back by itself; anything else needs [`Self::bring_up`].
    pub fn kill(&mut self, part: Part) {
        self.kill_at_once(&[part]);
    }

    /// SIGKILLs parts in one moment, and waits until those of ours are gone.
    pub fn kill_at_once(&mut self, parts: &[Part]) {
        for pid in parts.iter().filter_map(|part| self.pid(*part)) {
            // It may have died just now.
            kill_process(pid, Signal::KILL).ok();
        }
        for part in parts {
            self.services.remove(part);
        }
    }

    /// How a part ended, if it did so by itself; [`Self::bring_up`] starts it again.
    pub fn ended(&mut self, part: Part) -> Option<ExitStatus> {
        let status = self.services.get_mut(&part)?.ended()?;
        self.services.remove(&part);
        Some(status)
    }

    /// The running ClickHouse's process.
    #[must_use]
    pub fn clickhouse_pid(&self) -> Option<Pid> {
        let pid = match &self.clickhouse {
            Some(clickhouse) => clickhouse.pid()?,
            None => {
                let text = std::fs::read_to_string(self.data().join("clickhouse/clickhouse.pid")).ok()?;
                text.trim().parse().ok()?
            }
        };
        Pid::from_raw(i32::try_from(pid).ok()?)
    }

    /// Stops the ClickHouse that stands beside three processes; [`Self::bring_up`] starts it again.
    pub async fn stop_clickhouse(&mut self) {
        if let Some(clickhouse) = self.clickhouse.take() {
            clickhouse.stop(Duration::from_secs(20)).await;
        }
    }

    /// The running process of a part, but ClickHouse's.
    #[must_use]
    pub fn service(&self, part: Part) -> Option<&Service> {
        self.services.get(&part)
    }

    /// SIGTERMs a part; whether it ended with 0.
    ///
    /// # Panics
    /// Where it does not end in time, or is a ClickHouse.
    pub fn terminate(&mut self, part: Part) -> bool {
        let service = self.services.remove(&part);
        service.expect("it runs").terminate().success()
    }

    /// Where events go.
    #[must_use]
    pub fn edge(&self) -> Client {
        Client::new(format!("http://127.0.0.1:{}", self.ports.edge))
    }

    /// The edge's address, `host:port`.
    #[must_use]
    pub fn edge_address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.edge)
    }

    /// Where events go, with a tenant's key; of several edges each client is another's.
    #[must_use]
    pub fn tenant(&self, n: usize) -> Client {
        let turn = self.clients.fetch_add(1, Ordering::Relaxed) % self.edges();
        let port = [self.ports.edge, self.ports.second_edge][turn];
        Client::new(format!("http://127.0.0.1:{port}")).with_key(&self.tenants[n].key)
    }

    /// How many edges there are.
    #[must_use]
    pub fn edges(&self) -> usize {
        1 + usize::from(self.plan.twins)
    }

    /// Probes and metrics of a part (all in one: the edge's serve all).
    #[must_use]
    pub fn admin(&self, part: Part) -> Client {
        Client::new(self.admin_url(part))
    }

    /// The same listener's address, `http://host:port`.
    #[must_use]
    pub fn admin_url(&self, part: Part) -> String {
        let port = match (self.shape, part) {
            (Shape::AllInOne, _) | (_, Part::Edge | Part::Up | Part::ClickHouse) => self.ports.edge_admin,
            (Shape::ThreeProcesses, Part::Normalizer) => self.ports.normalizer_admin,
            (Shape::ThreeProcesses, Part::SinkWriter) => self.ports.sink_admin,
            (Shape::ThreeProcesses, Part::SecondEdge) => self.ports.second_edge_admin,
            (Shape::ThreeProcesses, Part::SecondSinkWriter) => self.ports.second_sink_admin,
            (Shape::ThreeProcesses, Part::SecondNormalizer) => self.ports.second_normalizer_admin,
            (Shape::ThreeProcesses, Part::ThirdNormalizer) => self.ports.third_normalizer_admin,
        };
        format!("http://127.0.0.1:{port}")
    }

    /// Where the sink-writer listens for normalizers, `http://host:port`.
    #[must_use]
    pub fn sink_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.sink)
    }

    /// ClickHouse over HTTP.
    #[must_use]
    pub fn clickhouse(&self) -> Client {
        Client::new(format!("http://127.0.0.1:{}", self.ports.clickhouse))
    }

    /// The sum of a metric's samples whose line contains `label`.
    pub async fn metric(&self, part: Part, name: &str, label: &str) -> f64 {
        self.level(part, name, label).await.unwrap_or_default()
    }

    /// The same; none where there is no such sample, or the part does not answer.
    pub async fn level(&self, part: Part, name: &str, label: &str) -> Option<f64> {
        let told = self.admin(part).get("/metrics").await.ok()?;
        told.level(name, label)
    }

    /// The last lines of every part's log, for messages.
    #[must_use]
    pub fn last_words(&self) -> String {
        let there = Part::OURS.iter().filter(|part| self.log_file(**part).exists());
        let words = there.map(|part| format!("--- {part:?}\n{}", tail(&self.log_file(*part))));
        words.collect::<Vec<_>>().join("\n")
    }

    /// The directory of everything.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

async fn start(name: &'static str, args: Vec<String>, log: PathBuf) -> Result<Service, String> {
    let started = tokio::task::spawn_blocking(move || Service::start(name, &args, &log)).await;
    started.unwrap_or_else(|panic| Err(panic.to_string()))
}

#[cfg(feature = "failpoints")]
fn shrink_files(deployment: &Path) {
    use crate::failpoints::{Failpoints, SMALL_FILES};
    Failpoints::below(deployment).shrink(&SMALL_FILES);
}

/// Of what benches build, which is what is released.
#[cfg(not(feature = "failpoints"))]
fn shrink_files(_: &Path) {
    panic!("files are shrunk by failpoints, which are not built here");
}
