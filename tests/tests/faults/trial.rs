//! A deployment with its witness, as each of these tests has one.

use sluice_tests::oracle::request::Outcome;
use sluice_tests::oracle::{self, Oracle};
use sluice_tests::{Deployment, Plan, eventually};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Deployments that run at once: more would starve each other.
static TURNS: Semaphore = Semaphore::const_new(3);
/// For what must happen soon.
pub const SOON: Duration = Duration::from_secs(30);

pub struct Trial {
    pub deployment: Deployment,
    pub oracle: Oracle,
    _turn: SemaphorePermit<'static>,
}

impl Trial {
    pub async fn start(plan: Plan) -> Self {
        let turn = TURNS.acquire().await.expect("never closed");
        let thread = std::thread::current();
        let seed = oracle::seed(thread.name().unwrap_or_default());
        let deployment = plan.start().await;
        let oracle = Oracle::new(&deployment, seed);
        Self {
            deployment,
            oracle,
            _turn: turn,
        }
    }

    /// One request of new events of a tenant, which must be acknowledged.
    pub async fn acked(&self, tenant: usize, count: usize) {
        let (_, outcome) = self.oracle.send(&self.deployment, tenant, count).await;
        assert_eq!(outcome, Outcome::Acked, "{}", self.deployment.last_words());
    }

    pub async fn rows(&self) -> Option<u64> {
        let sql = "SELECT count() FROM telemetry.events";
        let told = self.deployment.clickhouse().query(sql).await.ok()?;
        told.parse().ok()
    }

    pub async fn until_rows(&self, rows: u64) {
        eventually("all rows", SOON, async || {
            (self.rows().await? == rows).then_some(())
        })
        .await;
    }

    /// Drains, and holds every promise to what is stored.
    pub async fn verdict(&mut self) {
        let verdict = self.oracle.drained_verdict(&self.deployment).await;
        println!("{verdict}");
        verdict.assert_clean();
    }
}
