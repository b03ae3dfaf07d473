//! Freshness, as a reader sees it: one event at a time is sent, and asked for until it is there.

use crate::latency::Latency;
use bytes::Bytes;
use ingestctl::http::Http;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use sluice_common::process::Failure;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The service of the probes: with tenant and service first in the table's order, looking for one
/// reads one granule.
pub const SERVICE: &str = "bench-probe";
/// Between two questions: each costs ClickHouse about a millisecond, so asking more often would show
/// in its CPU time.
const ASK_EVERY: Duration = Duration::from_millis(25);
/// At most, before the next one: a chance pause, so that events come at any moment of a batch's age. One that always
/// followed what was found would wait for a whole batch each time.
const PAUSE: Duration = Duration::from_millis(500);

/// What the probes need.
#[derive(Debug, Clone)]
pub struct Probe {
    pub edge: String,
    pub key: String,
    pub clickhouse: String,
    pub run: u32,
    pub now_ms: u64,
}

impl Probe {
    /// Sends probes until `over`; from the answer to the moment the row is found.
    ///
    /// # Errors
    /// Where ClickHouse refuses the question.
    pub async fn run(self, over: Rc<Cell<bool>>) -> Result<Latency, Failure> {
        let http = Http::default();
        let url = format!("http://{}/v1/events/events", self.edge);
        let mut latency = Latency::default();
        let mut number = 0;
        let mut dice = SmallRng::from_os_rng();
        while !over.get() {
            let id = format!("probe-{:08x}-{number}", self.run);
            number += 1;
            let event = format!(
                r#"{{"event_id":"{id}","timestamp":{},"service":"{SERVICE}"}}"#,
                self.now_ms
            );
            let (status, _) = http.post(&url, Some(&self.key), Bytes::from(event)).await?;
            if status == http::StatusCode::ACCEPTED {
                let acknowledged = Instant::now();
                self.found(&http, &id).await?;
                latency.record(acknowledged.elapsed());
            }
            sleep(dice.random_range(Duration::ZERO..PAUSE)).await;
        }
        Ok(latency)
    }

    async fn found(&self, http: &Http, id: &str) -> Result<(), Failure> {
        let sql = format!(
            "SELECT count() FROM telemetry.events WHERE tenant = 'bench' \
             AND service = '{SERVICE}' AND event_id = '{id}'"
        );
        // Bounded by the run: the drain's deadline ends it.
        while http.query(&self.clickhouse, &sql).await?.trim() == "0" {
            sleep(ASK_EVERY).await;
        }
        Ok(())
    }
}
