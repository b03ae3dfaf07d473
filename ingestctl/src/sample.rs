//! The sample of `make run`: this machine's own readings as events, then a burst of generated ones,
//! then a query's answer.

use crate::http::Http;
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use sluice_common::clock::SharedClock;
use sluice_common::ids::RequestId;
use sluice_common::process::Failure;
use std::fmt::Write as _;
use std::time::Duration;

/// Where the sample goes.
#[derive(Debug, Clone)]
pub struct Sample {
    pub edge: String,
    pub edge_client: Http,
    pub clickhouse: String,
    pub clickhouse_client: Http,
    pub database: String,
    pub key: String,
    pub clock: SharedClock,
}

const BURST: u64 = 100_000;
const EVENTS_A_REQUEST: u64 = 1_000;
const ROUNDS: usize = 5;
const QUERY_DEADLINE: Duration = Duration::from_secs(30);

impl Sample {
    /// Sends the sample and prints what ClickHouse has of it.
    ///
    /// # Errors
    /// Where an event is not taken, or not found again in time.
    pub async fn run(&self) -> Result<(), Failure> {
        let (http, asking) = (&self.edge_client, &self.clickhouse_client);
        let id = RequestId::random().to_string();
        let mut sent = 0;
        for _ in 0..ROUNDS {
            let readings = self.readings(&id, sent);
            sent += readings.len() as u64;
            self.send(http, &readings).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        println!("sent {sent} readings of this machine (CPU, memory, disk, processes)");
        let bar = ProgressBar::new(BURST);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} events  {per_sec}") {
            bar.set_style(style);
        }
        let mut random: StdRng = StdRng::from_os_rng();
        for first in (0..BURST).step_by(usize::try_from(EVENTS_A_REQUEST).unwrap_or(1)) {
            let events: Vec<Value> = (first..first + EVENTS_A_REQUEST)
                .map(|n| self.generated(&id, n, &mut random))
                .collect();
            self.send(http, &events).await?;
            bar.inc(EVENTS_A_REQUEST);
        }
        bar.finish();
        self.found(asking, &id, sent + BURST).await?;
        println!("{}", asking.query(&self.clickhouse, &self.report()).await?);
        Ok(())
    }

    fn readings(&self, id: &str, from: u64) -> Vec<Value> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let now = self.clock.now_ms();
        let readings = machine_readings().into_iter().zip(from..);
        readings
            .map(|((name, kib, attributes), n)| {
                json!({
                    "event_id": format!("{id}-m{n}"), "timestamp": now, "service": "this-machine",
                    "host": host.trim(), "name": name, "size_kib": kib, "attributes": attributes,
                })
            })
            .collect()
    }

    fn generated(&self, id: &str, n: u64, random: &mut StdRng) -> Value {
        let service = ["checkout", "search", "catalog", "payments"]
            .choose(random)
            .copied();
        let status = if random.random_bool(0.02) { 503 } else { 200 };
        json!({
            "event_id": format!("{id}-{n}"),
            "timestamp": self.clock.now_ms(),
            "service": service,
            "host": format!("web-{}", random.random_range(1..9)),
            "name": "http.request",
            "duration_ms": f64::from(random.random_range(1..40_000)) / 100.0,
            "status": status,
            "size_kib": random.random_range(1..512),
            "attributes": {"http.method": "GET", "http.route": "/api/v1/items"},
        })
    }

    async fn send(&self, http: &Http, events: &[Value]) -> Result<(), Failure> {
        let mut body = String::new();
        for event in events {
            // Writing to a String cannot fail.
            writeln!(body, "{event}").ok();
        }
        let url = format!("{}/v1/events/events", self.edge);
        for _ in 0..20 {
            let (status, answer) = http
                .post(&url, Some(&self.key), Bytes::from(body.clone()))
                .await?;
            match status.as_u16() {
                202 => return Ok(()),
                // The same events again end in one row each: their ids tell.
                429 | 503 => tokio::time::sleep(Duration::from_secs(1)).await,
                _ => {
                    return Err(Failure::new(format!(
                        "{url} answered {status}: {}",
                        String::from_utf8_lossy(&answer)
                    )));
                }
            }
        }
        Err(Failure::new(format!(
            "{url} is overloaded for too long; see the log lines above"
        )))
    }

    async fn found(&self, http: &Http, id: &str, expected: u64) -> Result<(), Failure> {
        let sql = format!(
            "SELECT count() FROM {}.events WHERE startsWith(event_id, '{id}-')",
            self.database
        );
        let mut count = 0;
        let wait = async {
            loop {
                count = http
                    .query(&self.clickhouse, &sql)
                    .await?
                    .trim()
                    .parse()
                    .unwrap_or_default();
                if count == expected {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let outcome: Result<Result<(), Failure>, _> = tokio::time::timeout(QUERY_DEADLINE, wait).await;
        outcome.unwrap_or_else(|_| {
            Err(Failure::new(format!(
                "{count} of {expected} events are in ClickHouse so far"
            )))
        })
    }

    fn report(&self) -> String {
        format!(
            "SELECT service, count() AS events, uniqExact(event_id) AS distinct_ids, \
             round(quantile(0.95)(duration_ms), 1) AS p95_ms, countIf(status >= 500) AS errors, \
             formatReadableSize(avg(size_bytes)) AS avg_size, max(timestamp) AS newest \
             FROM {}.events GROUP BY service ORDER BY events DESC FORMAT PrettyCompactMonoBlock",
            self.database
        )
    }
}

/// Name, KiB where it is a size, and attributes of each reading, from `/proc`.
fn machine_readings() -> Vec<(&'static str, Option<u64>, Value)> {
    let mut readings = Vec::new();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split(' ').collect();
    if let [one, five, fifteen, processes, ..] = load.as_slice() {
        readings.push(("cpu.load", None, json!({"1m": one, "5m": five, "15m": fifteen})));
        readings.push(("processes", None, json!({"running/all": processes})));
    }
    for line in std::fs::read_to_string("/proc/meminfo")
        .unwrap_or_default()
        .lines()
        .take(5)
    {
        let Some((name, rest)) = line.split_once(':') else {
            continue;
        };
        let kib = rest.trim().trim_end_matches(" kB").parse().ok();
        readings.push(("memory", kib, json!({"kind": name})));
    }
    for line in std::fs::read_to_string("/proc/diskstats")
        .unwrap_or_default()
        .lines()
        .take(4)
    {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [_, _, device, reads, _, _, _, writes, ..] = fields.as_slice() {
            readings.push((
                "disk",
                None,
                json!({"device": device, "reads": reads, "writes": writes}),
            ));
        }
    }
    readings
}
