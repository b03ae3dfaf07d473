//! The sample configs of `deploy/sample`: they run as they are, but for ports and keys, and each part
//! ends with 0 when it is asked to.

use ingestctl::clickhouse::ClickHouse;
use serde_json::json;
use sluice_common::config::Loaded;
use sluice_tests::service::{Service, clickhouse};
use sluice_tests::{Client, eventually, now_ms, ports};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const KEY: &str = "slc_acme_8f14e45fceea167a5a36dedd4bea2543";
/// Stands in the samples where the hash of a key belongs.
const SAMPLE_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000001";

fn sample(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/sample")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The ports that the samples name, and free ones in their places.
fn free_ports() -> Vec<(u16, u16)> {
    let named = [4318, 4320, 4321, 8123, 9464, 9465, 9466];
    named.into_iter().zip(ports::free::<7>()).collect()
}

/// A sample in a directory of its own.
struct Place {
    dir: TempDir,
    ports: Vec<(u16, u16)>,
}

impl Place {
    fn of(name: &str) -> Self {
        let place = Self {
            dir: TempDir::new().expect("a directory"),
            ports: free_ports(),
        };
        let mut text = sample(name);
        assert!(text.contains(SAMPLE_HASH));
        for (port, free) in &place.ports {
            text = text.replace(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:{free}"));
        }
        let text = text.replace(SAMPLE_HASH, &ingestctl::demo::hash(KEY));
        std::fs::write(place.config(), text).expect("written");
        std::fs::create_dir_all(place.data()).expect("made");
        std::fs::write(place.data().join("internal.token"), "a-token-of-the-tests\n").expect("written");
        place
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("sluice.yaml")
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn port(&self, of: u16) -> u16 {
        self.ports
            .iter()
            .find(|(port, _)| *port == of)
            .expect("one of the samples'")
            .1
    }

    fn client(&self, of: u16) -> Client {
        Client::new(format!("http://127.0.0.1:{}", self.port(of)))
    }

    async fn start(&self, name: &'static str, more: &[&str]) -> Service {
        let paths = [
            "--config".into(),
            self.config().display().to_string(),
            "--data-dir".into(),
            self.data().display().to_string(),
        ];
        let args: Vec<String> = more.iter().map(|one| (*one).to_owned()).chain(paths).collect();
        let log = self.dir.path().join(format!("{name}.log"));
        let started = tokio::task::spawn_blocking(move || Service::start(name, &args, &log)).await;
        started
            .expect("no panic")
            .unwrap_or_else(|error| panic!("{error}"))
    }

    async fn clickhouse(&self) -> ClickHouse {
        clickhouse(&self.dir.path().join("server"), self.port(8123)).await
    }

    /// One event through the edge into the table.
    async fn expect_a_row(&self, dataset: &str, event: serde_json::Value, clickhouse: &Client) {
        let edge = self.client(4318).with_key(KEY);
        let answer = edge
            .post(&format!("/v1/events/{dataset}"), event.to_string())
            .await
            .expect("an answer");
        assert_eq!(answer.status, 202, "{}", answer.text());
        let sql = format!("SELECT count() FROM telemetry.{dataset} WHERE tenant = 'acme' FORMAT TSV");
        eventually("the row", Duration::from_secs(20), async || {
            clickhouse.query(&sql).await.ok().filter(|rows| rows == "1")
        })
        .await;
    }
}

fn event() -> serde_json::Value {
    json!({"event_id": "first", "timestamp": now_ms(), "service": "shell", "size_kib": 2})
}

#[test]
fn the_samples_are_valid_and_the_first_shows_the_default_dataset() {
    let dir = TempDir::new().expect("a directory");
    std::fs::write(dir.path().join("internal.token"), "a-token").expect("written");
    for name in ["sluice.yaml", "up.yaml"] {
        let loaded = Loaded::parse(&sample(name), Path::new(name), dir.path());
        let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
        let events = loaded.config.dataset("events").expect("the dataset events");
        let default = Loaded::parse("{}", Path::new("default"), dir.path()).expect("valid");
        let default = default
            .config
            .dataset("events")
            .expect("the default dataset")
            .clone();
        assert_eq!(format!("{events:?}"), format!("{default:?}"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_of_three_processes_takes_events_and_each_ends_with_0() {
    let place = Place::of("sluice.yaml");
    let server = place.clickhouse().await;
    let sink = place.start("sluice-sink-writer", &[]).await;
    let normalizer = place.start("sluice-normalizer", &[]).await;
    let edge = place.start("sluice-edge", &[]).await;
    let clickhouse = place.client(8123);
    place.expect_a_row("events", event(), &clickhouse).await;
    let request = json!({"at": now_ms() * 1_000, "path": "/", "status": 200, "took_ms": 12.5});
    place.expect_a_row("requests", request, &clickhouse).await;
    let took = clickhouse
        .query("SELECT took_s FROM telemetry.requests FORMAT TSV")
        .await;
    assert_eq!(took.as_deref(), Ok("0.0125"));
    for admin in [9464, 9465, 9466] {
        for probe in ["/livez", "/readyz"] {
            let answer = place.client(admin).get(probe).await.expect("an answer");
            assert_eq!(answer.status, 200, "{admin}{probe}: {}", answer.text());
        }
    }
    for (name, service) in [("edge", edge), ("normalizer", normalizer), ("sink-writer", sink)] {
        let status = tokio::task::spawn_blocking(move || service.terminate())
            .await
            .expect("no panic");
        assert_eq!(status.code(), Some(0), "{name}");
    }
    server.stop(Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_of_one_process_takes_events_and_ends_with_0() {
    let place = Place::of("up.yaml");
    let port = place.port(8123).to_string();
    let up = place
        .start("ingestctl", &["up", "--clickhouse-port", &port])
        .await;
    place.expect_a_row("events", event(), &place.client(8123)).await;
    let status = tokio::task::spawn_blocking(move || up.terminate())
        .await
        .expect("no panic");
    assert_eq!(status.code(), Some(0));
}
