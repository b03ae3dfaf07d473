//! A pipeline inside the test's process, so that its clock can be stepped, with a real ClickHouse.

use ingestctl::clickhouse::ClickHouse;
use ingestctl::demo;
use ingestctl::pipeline::{Given, Pipeline};
use sluice_common::clock::SharedClock;
use sluice_common::config::{DEFAULT_YAML, Loaded};
use sluice_common::metrics::Metrics;
use sluice_common::process::Failure;
use sluice_tests::service::clickhouse;
use sluice_tests::{Client, eventually};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const KEY: &str = "slc_demo_00000000000000000000000000000000";
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// A pipeline, its ClickHouse and its directory.
pub struct InProcess {
    pipeline: Option<Pipeline>,
    clickhouse: ClickHouse,
    clock: SharedClock,
    yaml: String,
    /// Where log, progress and dedup state are.
    pub data: PathBuf,
    dir: TempDir,
}

impl InProcess {
    /// Starts one whose `events` have a dedup window of one hour.
    pub async fn start(clock: SharedClock) -> Self {
        Self::start_with(clock, "max_bytes: 8GiB, retain: 24h").await
    }

    /// The same with other keys of `log`.
    pub async fn start_with(clock: SharedClock, log: &str) -> Self {
        let dir = TempDir::new().expect("a directory");
        let clickhouse = clickhouse(&dir.path().join("server"), 0).await;
        let yaml = DEFAULT_YAML
            .replace("127.0.0.1:4318", "127.0.0.1:0")
            .replace("127.0.0.1:9464", "127.0.0.1:0")
            .replace("window: 24h", "window: 1h")
            .replace("max_bytes: 8GiB, retain: 24h", log);
        let mut this = Self {
            pipeline: None,
            clickhouse,
            clock,
            yaml,
            data: dir.path().join("data"),
            dir,
        };
        this.bring_up(false).await.expect("started");
        this
    }

    /// Starts the pipeline on what its directory holds.
    pub async fn bring_up(&mut self, accept_window_loss: bool) -> Result<(), Failure> {
        let mut loaded = Loaded::parse(&self.yaml, Path::new("(test)"), &self.data).expect("a valid config");
        loaded.config.tenants = vec![demo::tenant(KEY)];
        let given = Given {
            clickhouse_url: self.clickhouse.url(),
            wait_for_tables: true,
            clock: self.clock.clone(),
            metrics: Metrics::detached(),
            accept_window_loss,
        };
        self.pipeline = Some(Pipeline::start(&loaded, given).await?);
        Ok(())
    }

    /// Stops the pipeline: what it took is settled.
    pub async fn stop(&mut self) {
        let pipeline = self.pipeline.take().expect("it runs");
        tokio::time::timeout(STOP_DEADLINE, pipeline.stop())
            .await
            .expect("it stops");
    }

    /// Stops and starts it.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.bring_up(false).await.expect("started again");
    }

    /// Why the pipeline ended by itself.
    pub async fn ended(&mut self) -> Failure {
        let pipeline = self.pipeline.as_mut().expect("it was started");
        tokio::time::timeout(STOP_DEADLINE, pipeline.ended())
            .await
            .expect("it ends")
    }

    /// A copy of the data directory, taken while the pipeline is stopped.
    pub fn copy_data(&self) -> PathBuf {
        let copy = self.dir.path().join("copy");
        let copied = Command::new("cp").arg("-r").args([&self.data, &copy]).status();
        assert!(copied.is_ok_and(|status| status.success()), "cp failed");
        copy
    }

    /// Where events go, with the tenant's key.
    pub fn client(&self) -> Client {
        let edge = &self.pipeline.as_ref().expect("it runs").edge;
        Client::new(edge.as_str()).with_key(KEY)
    }

    /// ClickHouse's answer.
    pub async fn ask(&self, sql: &str) -> String {
        Client::new(self.clickhouse.url()).query(sql).await.expect(sql)
    }

    /// Waits until `telemetry.events` has `rows` rows.
    pub async fn has_rows(&self, rows: u64) {
        let what = format!("{rows} rows");
        eventually(&what, Duration::from_secs(30), async || {
            let now = self.ask("SELECT count() FROM telemetry.events").await;
            (now == rows.to_string()).then_some(())
        })
        .await;
    }

    /// Sends one event; it must be taken.
    pub async fn send(&self, id: &str) {
        let event = event(id, self.clock.now_ms());
        let answer = self.client().post("/v1/events/events", event).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
}

/// One event as JSON.
pub fn event(id: &str, timestamp: u64) -> String {
    format!(r#"{{"event_id":"{id}","timestamp":{timestamp},"service":"test"}}"#)
}
