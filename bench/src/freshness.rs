//! Freshness, as a reader sees it: events are sent at chance moments, and asked for until they are there.

use crate::latency::Latency;
use bytes::Bytes;
use ingestctl::http::Http;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use sluice_common::process::Failure;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The service of the probes: with tenant and service first in the table's order, looking for one
/// reads one granule.
pub const SERVICE: &str = "bench-probe";
/// Between two questions, for all that is not there yet: each costs ClickHouse some milliseconds, so that several askers, or
/// more often, would take the processor from what is measured.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// At most, between two events. A chance pause, so that they come at any moment of a batch's age: one that always followed
/// what was found would wait for a whole batch each time.
const PAUSE: Duration = Duration::from_millis(200);
/// Events that are asked for at once.
const MAX_PENDING: usize = 1_000;

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
        let (pending, all_sent) = (RefCell::new(HashMap::new()), Cell::new(false));
        let sending = async {
            let mut dice = SmallRng::from_os_rng();
            for number in 0_u32.. {
                if over.get() {
                    break;
                }
                if pending.borrow().len() < MAX_PENDING {
                    let id = format!("probe-{:08x}-{number}", self.run);
                    if let Some(acknowledged) = self.send(&http, &id).await? {
                        pending.borrow_mut().insert(id, acknowledged);
                    }
                }
                sleep(dice.random_range(Duration::ZERO..PAUSE)).await;
            }
            all_sent.set(true);
            Ok::<_, Failure>(())
        };
        let finding = async {
            let mut latency = Latency::default();
            // Bounded by the run: the drain's deadline ends it.
            while !all_sent.get() || !pending.borrow().is_empty() {
                let asked: Vec<String> = pending.borrow().keys().cloned().collect();
                if !asked.is_empty() {
                    let found = self.found(&http, &asked).await?;
                    let now = Instant::now();
                    let acknowledged = found.lines().filter_map(|id| pending.borrow_mut().remove(id));
                    acknowledged.for_each(|at| latency.record(now.saturating_duration_since(at)));
                }
                sleep(ASK_EVERY).await;
            }
            Ok::<_, Failure>(latency)
        };
        let ((), latency) = tokio::try_join!(sending, finding)?;
        Ok(latency)
    }

    /// Sends one; when it was acknowledged.
    async fn send(&self, http: &Http, id: &str) -> Result<Option<Instant>, Failure> {
        let url = format!("http://{}/v1/events/events", self.edge);
        let event = format!(
            r#"{{"event_id":"{id}","timestamp":{},"service":"{SERVICE}"}}"#,
            self.now_ms
        );
        let (status, _) = http.post(&url, Some(&self.key), Bytes::from(event)).await?;
        Ok((status == http::StatusCode::ACCEPTED).then(Instant::now))
    }

    /// Which of them are there, one in a line.
    async fn found(&self, http: &Http, asked: &[String]) -> Result<String, Failure> {
        let sql = format!(
            "SELECT event_id FROM telemetry.events WHERE tenant = 'bench' \
             AND service = '{SERVICE}' AND event_id IN ('{}')",
            asked.join("', '")
        );
        http.query(&self.clickhouse, &sql).await
    }
}
