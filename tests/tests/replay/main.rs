//! Replay on a real ClickHouse: what is planned is read, what was lost or damaged comes back, and nothing else changes.

mod hard;
mod kafka;
mod kills;
mod orders;
mod promote;
mod run;

use serde_json::{Value, json};
use sluice_tests::Plan;
use sluice_tests::oracle;
use sluice_tests::{Deployment, Part, Shape, finally, now_ms};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Deployments that run at once.
static TURNS: Semaphore = Semaphore::const_new(2);
const DEADLINE: Duration = Duration::from_secs(60);

/// Every row of the live table: how many, how many of them apart, and a sum over all that they hold.
const ROWS: &str =
    "SELECT count(), uniqExact(_src_l, _src_p, _src_o), sum(cityHash64(*)) FROM telemetry.events FORMAT TSV";

/// A deployment, and the way to its replays.
struct Stand {
    deployment: Deployment,
}

impl Stand {
    async fn start(extra: &str) -> Self {
        Self::of(Plan::new(Shape::AllInOne).extra(extra)).await
    }

    async fn of(plan: Plan) -> Self {
        Self {
            deployment: plan.start().await,
        }
    }

    /// Sends events of a tenant with these numbers; all are taken.
    async fn send(&self, tenant: usize, numbers: impl IntoIterator<Item = u64>) {
        self.offer(tenant, numbers).await.expect("taken");
    }

    /// The same, or what was answered.
    async fn offer(&self, tenant: usize, numbers: impl IntoIterator<Item = u64>) -> Result<(), String> {
        let event = |n: u64| {
            json!({
                "event_id": n.to_string(), "timestamp": now_ms(), "service": format!("s{}", n % 7), "name": "sent",
                "duration_ms": n, "odd": n % 2,
            })
        };
        let events: Vec<Value> = numbers.into_iter().map(event).collect();
        let client = self.deployment.tenant(tenant);
        let answer = client.post("/v1/events/events", json!(events).to_string()).await;
        let answer = answer.expect("an answer");
        match answer.status.into() {
            202 => Ok(()),
            status => Err(format!("{status}: {}", answer.text())),
        }
    }

    async fn drained(&self) {
        oracle::drained(&self.deployment).await;
    }

    async fn sql(&self, sql: &str) -> String {
        self.deployment.clickhouse().query(sql).await.expect(sql)
    }

    async fn ask(&self, path: &str, body: &Value) -> (u16, Value) {
        let admin = self.deployment.admin(Part::Normalizer);
        let admin = admin
            .with("content-type", "application/json")
            .with_timeout(DEADLINE);
        let answer = admin.post(path, body.to_string()).await.expect("an answer");
        (answer.status.into(), answer.json())
    }

    /// An order that is carried out.
    async fn order(&self, path: &str, body: &Value) -> Value {
        let (status, told) = self.ask(path, body).await;
        assert_eq!(status, 200, "{path} {body}: {told}");
        told
    }

    /// An order that is refused: its status, and its code.
    async fn refused(&self, path: &str, body: &Value) -> (u16, String) {
        let (status, told) = self.ask(path, body).await;
        assert_ne!(status, 200, "{path} {body}: {told}");
        assert!(!told["detail"].as_str().unwrap_or_default().is_empty(), "{told}");
        (status, told["code"].as_str().unwrap_or_default().to_owned())
    }

    async fn plan(&self, ask: &Value) -> Value {
        self.order("/admin/v1/replay/plan", ask).await
    }

    async fn everything(&self) -> Value {
        let all = json!({"from": "earliest", "to": "latest"});
        finally("a plan of everything", DEADLINE, async || {
            let (status, told) = self.ask("/admin/v1/replay/plan", &all).await;
            match status {
                200 => Ok(told),
                // Partitions come back some time after a restart.
                409 if told["code"] == "replay_elsewhere" => Err(told.to_string()),
                _ => panic!("{status} {told}"),
            }
        })
        .await
    }

    /// Runs a plan to its end.
    async fn run(&self, plan: &Value) -> Value {
        let id = self.begin(plan, &json!({})).await;
        self.until(&id, "done").await
    }

    /// Begins to run a plan; its id.
    async fn begin(&self, plan: &Value, more: &Value) -> String {
        let mut order = json!({"plan": plan["id"], "who": "somebody@somewhere"});
        for (key, value) in more.as_object().expect("an object") {
            order[key] = value.clone();
        }
        let told = self.order("/admin/v1/replay", &order).await;
        told["id"].as_str().expect("an id").to_owned()
    }

    async fn show(&self, id: &str) -> Value {
        let admin = self.deployment.admin(Part::Normalizer);
        let answer = admin
            .get(&format!("/admin/v1/replay/{id}"))
            .await
            .expect("an answer");
        answer.json()
    }

    /// Waits until a replay is in a phase, which no trouble may come before.
    async fn until(&self, id: &str, phase: &str) -> Value {
        finally(&format!("replay {id} {phase}"), DEADLINE, async || {
            let told = self.show(id).await;
            if told["phase"] == phase {
                return Ok(told);
            }
            assert_ne!(
                told["phase"],
                "failed",
                "{told}\n{}",
                self.deployment.last_words()
            );
            Err(told.to_string())
        })
        .await
    }

    /// Waits until it is in a phase, whatever comes before.
    async fn comes_to(&self, id: &str, phase: &str, deadline: Duration) -> Value {
        finally(&format!("replay {id} {phase}"), deadline, async || {
            let told = self.show(id).await;
            if told["phase"] == phase {
                Ok(told)
            } else {
                Err(told.to_string())
            }
        })
        .await
    }

    async fn on(&self, id: &str, verb: &str, body: &Value) -> Value {
        self.order(&format!("/admin/v1/replay/{id}/{verb}"), body).await
    }

    /// The sums of a comparison of one table.
    async fn diff(&self, id: &str) -> Sums {
        self.on(id, "diff", &json!({})).await;
        let told = finally("a comparison", DEADLINE, async || {
            let told = self.show(id).await;
            if told["comparing"] == false {
                Ok(told)
            } else {
                Err(told.to_string())
            }
        })
        .await;
        let tables = told["diff"].as_array().unwrap_or_else(|| panic!("{told}"));
        assert_eq!(tables.len(), 1, "{told}");
        let lines = tables[0]["lines"].as_array().expect("lines");
        let sum = |name: &str| {
            lines
                .iter()
                .map(|line| line[name].as_u64().expect("a number"))
                .sum()
        };
        Sums {
            live: sum("live"),
            shadow: sum("shadow"),
            only_live: sum("only_live"),
            only_shadow: sum("only_shadow"),
            differing: sum("differing"),
            doubled: sum("doubled"),
            same_sums: lines.iter().all(|line| line["live_sum"] == line["shadow_sum"]),
        }
    }

    /// Promotes, and sees it through.
    async fn promote(&self, id: &str, row_wise: bool) -> Value {
        self.on(id, "promote", &json!({ "row_wise": row_wise })).await;
        self.until(id, "promoted").await
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Sums {
    live: u64,
    shadow: u64,
    only_live: u64,
    only_shadow: u64,
    differing: u64,
    doubled: u64,
    same_sums: bool,
}

impl Sums {
    /// So many rows, on both sides the same.
    fn equal(rows: u64) -> Self {
        Self {
            live: rows,
            shadow: rows,
            only_live: 0,
            only_shadow: 0,
            differing: 0,
            doubled: 0,
            same_sums: true,
        }
    }
}
