//! One Sluice for all tests of this binary: the last test that uses it takes it down.

use sluice_common::config::DEFAULT_YAML;
use sluice_tests::{Client, Deployment, Shape, eventually};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Mutex;

static RUNNING: Mutex<Weak<Deployment>> = Mutex::const_new(Weak::new());

/// The key of the tenant that may write `loose` only.
pub const LIMITED_KEY: &str = "slc_limited_0123456789abcdef0123456789abcdef";

/// As many events it may send at once.
pub const LIMITED_EVENTS: usize = 10_000;

/// The running Sluice; the first caller starts it.
pub async fn sluice() -> Arc<Deployment> {
    let mut running = RUNNING.lock().await;
    if let Some(deployment) = running.upgrade() {
        return deployment;
    }
    let deployment = Arc::new(Deployment::start_with(Shape::AllInOne, &config()).await);
    *running = Arc::downgrade(&deployment);
    deployment
}

/// The rest of the list of tenants, and the datasets.
pub fn config() -> String {
    let hash = ingestctl::demo::hash(LIMITED_KEY);
    let limited = format!(
        "  - {{id: limited, keys: [{{sha256: \"{hash}\"}}], datasets: [loose], quota: {{events_per_second: 1000, burst: 10s}}}}\n"
    );
    let defaults = DEFAULT_YAML.split_once("datasets:\n").expect("datasets").1;
    // The corpus has times of its own, which grow old.
    let timeless: String = defaults
        .lines()
        .filter(|line| !line.trim_start().starts_with("ttl:"))
        .map(|line| line.replace("max_past: 7d", "max_past: 36500d") + "\n")
        .collect();
    assert!(timeless.contains("36500d"));
    let timeless = timeless
        .replace("name: events", "name: corpus")
        .replace("table: events", "table: corpus");
    format!("{limited}datasets:\n{defaults}{timeless}{DATASETS}")
}

const DATASETS: &str = r#"  - name: loose
    fields:
      - {name: id, type: string}
      - {name: n, type: nullable(uint64)}
    unknown_fields: drop
  - name: hourly
    fields:
      - {name: at, type: datetime, required: true}
    partition_by: toStartOfHour(at)
    time: {field: at, max_past: 3650d}
  - name: everything
    fields:
      - {name: id, type: string, required: true}
      - {name: at, type: datetime64(3), required: true}
      - {name: s, type: string}
      - {name: lc, type: low_cardinality(string)}
      - {name: b, type: bool}
      - {name: i8, type: int8}
      - {name: i16, type: int16}
      - {name: i32, type: int32}
      - {name: i64, type: int64}
      - {name: u8, type: uint8}
      - {name: u16, type: uint16}
      - {name: u32, type: uint32}
      - {name: u64, type: uint64}
      - {name: f32, type: float32}
      - {name: f64, type: float64}
      - {name: dt, type: datetime, epoch: s}
      - {name: d0, type: datetime64(0)}
      - {name: d3, type: datetime64(3), epoch: ms}
      - {name: d6, type: datetime64(6), epoch: us}
      - {name: d9, type: datetime64(9), epoch: ns}
      - {name: m, type: "map(string, string)"}
      - {name: n_s, type: nullable(string)}
      - {name: n_lc, type: nullable(low_cardinality(string))}
      - {name: n_b, type: nullable(bool)}
      - {name: n_i64, type: nullable(int64)}
      - {name: n_u8, type: nullable(uint8)}
      - {name: n_f64, type: nullable(float64)}
      - {name: n_dt, type: nullable(datetime)}
      - {name: n_d3, type: nullable(datetime64(3))}
      - {name: def_s, type: string, default: "as default"}
      - {name: def_u, type: uint32, default: 7}
      - {name: def_b, type: bool, default: true}
      - {name: def_m, type: "map(string, string)", default: {k: v}}
      - {name: renamed, type: string, from: "the.old-Name"}
      - {name: size, type: nullable(uint64), from: size_kib, unit: {from: KiBy, to: By}}
      - {name: took_s, type: nullable(float64), from: took_ms, unit: {from: ms, to: s}}
      - {name: dec, type: "nullable(decimal(9, 2))"}
      - {name: day, type: nullable(date)}
      - {name: uid, type: nullable(uuid)}
      - {name: ip, type: nullable(ipv4)}
      - {name: en, type: "nullable(enum('a', 'b'))"}
      - {name: fs, type: nullable(fixed_string(4))}
      - {name: limited, type: nullable(int32), min: 1, max: 5}
      - {name: texted, type: nullable(string), min_length: 2, max_length: 3, pattern: "^[a-z]+$"}
      - {name: listed, type: nullable(string), values: [x, y]}
      - {name: sized, type: nullable(uint64), unit: {unit_from: sized_unit, to: By}}
    unknown_fields: reject
    dedup: {key: [id], window: 1h}
    time: {field: at, max_past: 7d, max_future: 5m}
    order_by: [tenant, id]
"#;

/// The answer of a query, once it is not empty.
pub async fn rows(clickhouse: &Client, sql: &str) -> String {
    let found = eventually("a row in ClickHouse", Duration::from_secs(20), async || {
        clickhouse.query(sql).await.ok().filter(|rows| !rows.is_empty())
    });
    found.await
}
