//! One round: a deployment of its own, a load, its faults one after the other, a drain, and the oracle's verdict.

use super::draw::{Draw, Fault, Network};
use super::figures::Figures;
use crate::oracle::Oracle;
use crate::oracle::request::DATASETS;
use crate::oracle::verdict::Verdict;
use crate::{Deployment, Hop, Part, Plan, Shape, finally};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// From a restart to the first acknowledged event and an answer of ClickHouse.
const READY_DEADLINE: Duration = Duration::from_secs(10);
/// After it, nobody waits any longer for what is late already.
const GIVEN_UP: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(20);
/// Of the ClickHouse beside Sluice: a table that is away is set aside within a round.
const PARK_AFTER: &str = "park_after: 1s";
/// The oracle's datasets: the default one, and one with other partitions and another batch.
const CONFIG: &str = "datasets:
- &events {name: events, unknown_fields: attributes, time: {field: timestamp}, partition_by: toDate(timestamp),
   fields: [{name: event_id, type: string, required: true}, {name: timestamp, type: datetime64(3), required: true, epoch: ms},
     {name: service, type: low_cardinality(string)}, {name: attributes, type: \"map(string, string)\"},
     {name: size_bytes, type: nullable(uint64), from: size_kib, unit: {from: KiBy, to: By}}],
   dedup: {key: [event_id], window: 24h}, batch: {max_age: 200ms}}
- {name: more_events, unknown_fields: attributes, time: {field: timestamp}, partition_by: toYYYYMM(timestamp),
   fields: [{name: event_id, type: string, required: true}, {name: timestamp, type: datetime64(3), required: true, epoch: ms},
     {name: service, type: low_cardinality(string)}, {name: attributes, type: \"map(string, string)\"},
     {name: size_bytes, type: nullable(uint64), from: size_kib, unit: {from: KiBy, to: By}}],
   dedup: {key: [event_id], window: 24h}, batch: {max_age: 500ms, max_rows: 5000}}
";

/// A round under way.
struct Round {
    deployment: Deployment,
    oracle: Oracle,
    figures: Figures,
}

/// Plays a round to its end; what it did, and the verdict.
///
/// # Panics
/// Where a part does not get ready, is not asked to end in vain, or nothing drains.
pub async fn play(draw: &Draw) -> (Figures, Verdict) {
    let mut plan = Plan::new(draw.shape)
        .tenants(draw.tenants)
        .small_files(draw.small_files)
        .extra(CONFIG);
    if draw.proxied {
        plan = hops(draw.shape).iter().fold(plan, |plan, hop| plan.proxied(*hop));
        plan = plan.clickhouse(PARK_AFTER);
    }
    let deployment = plan.start().await;
    let mut oracle = Oracle::new(&deployment, draw.seed);
    oracle.style = draw.style.clone();
    let mut round = Round {
        deployment,
        oracle,
        figures: Figures::default(),
    };
    let load = round.oracle.load(&round.deployment);
    for (pause, fault) in &draw.faults {
        tokio::time::sleep(*pause).await;
        round.suffer(fault).await;
    }
    load.stop().await;
    let verdict = round.oracle.drained_verdict(&round.deployment).await;
    round.figures.end(&verdict, round.oracle.peak_mib());
    (round.figures, verdict)
}

fn hops(shape: Shape) -> &'static [Hop] {
    match shape {
        Shape::AllInOne => &[Hop::ToClickHouse],
        Shape::ThreeProcesses => &[
            Hop::EdgeToNormalizer,
            Hop::NormalizerToSinkWriter,
            Hop::ToClickHouse,
        ],
    }
}

impl Round {
    async fn suffer(&mut self, fault: &Fault) {
        self.oracle.weigh(&self.deployment);
        match fault {
            Fault::Kill { part, outage } => {
                let before = self.deployment.clickhouse_pid();
                self.kill(*part);
                tokio::time::sleep(*outage).await;
                self.back(*part, before).await;
            }
            Fault::Stop { part, time } => {
                self.figures.stops += 1;
                self.deployment.signal(*part, Signal::STOP);
                tokio::time::sleep(*time).await;
                self.deployment.signal(*part, Signal::CONT);
            }
            Fault::Restart { part } => self.restart(*part).await,
            Fault::Network(network) => self.network(network).await,
            Fault::Table { dataset, time } => self.table(DATASETS[*dataset], *time).await,
        }
    }

    /// Renames a table away and back.
    async fn table(&mut self, table: &str, time: Duration) {
        self.figures.tables += 1;
        let away = format!("telemetry.{table}_away");
        let table = format!("telemetry.{table}");
        self.rename(&table, &away).await;
        tokio::time::sleep(time).await;
        self.rename(&away, &table).await;
    }

    async fn rename(&self, from: &str, to: &str) {
        let sql = format!("RENAME TABLE {from} TO {to}");
        finally(&sql, GIVEN_UP, async || {
            self.deployment.clickhouse().query(&sql).await
        })
        .await;
    }

    fn kill(&mut self, part: Part) {
        *self.figures.kills.entry(format!("{part:?}")).or_default() += 1;
        self.deployment.kill(part);
    }

    /// Brings a killed part back, and waits until all is well. `before` is the ClickHouse of before the kill.
    async fn back(&mut self, part: Part, before: Option<rustix::process::Pid>) {
        let begun = Instant::now();
        if part != Part::ClickHouse {
            self.deployment.bring_up(part).await.expect("ready");
        } else if self.deployment.parts().contains(&Part::ClickHouse) {
            self.deployment.stop_clickhouse().await;
            self.deployment.bring_up(part).await.expect("ready");
        } else {
            while self
                .deployment
                .clickhouse_pid()
                .is_none_or(|now| Some(now) == before)
            {
                self.in_time(part, begun);
                tokio::time::sleep(ASK_EVERY).await;
            }
        }
        self.until_ready(part, begun).await;
    }

    async fn restart(&mut self, part: Part) {
        self.figures.restarts += 1;
        let before = self.deployment.clickhouse_pid();
        if part == Part::ClickHouse {
            // Its keeper starts it again, as after a kill.
            self.deployment.signal(part, Signal::TERM);
        } else {
            let well = tokio::task::block_in_place(|| self.deployment.terminate(part));
            assert!(
                well,
                "{part:?} did not end with 0\n{}",
                self.deployment.last_words()
            );
        }
        self.back(part, before).await;
    }

    async fn network(&mut self, network: &Network) {
        self.figures.network += 1;
        self.deployment.proxy(network.hop).set(network.rule.clone());
        tokio::time::sleep(network.time / 2).await;
        if network.leaves_clients {
            self.deployment.proxy(network.hop).leave_clients();
        }
        let before = self.deployment.clickhouse_pid();
        if let Some(part) = network.kills {
            self.oracle.weigh(&self.deployment);
            self.kill(part);
        }
        tokio::time::sleep(network.time / 2).await;
        let proxy = self.deployment.proxy(network.hop);
        if network.loses {
            proxy.cut(crate::proxy::Ending::Reset);
        }
        proxy.pass();
        if let Some(part) = network.kills {
            self.back(part, before).await;
        }
    }

    /// Waits until an event is acknowledged and ClickHouse answers.
    async fn until_ready(&mut self, part: Part, begun: Instant) {
        loop {
            let answers = self.deployment.clickhouse().query("SELECT 1").await.is_ok();
            if answers && self.oracle.probe(&self.deployment).await {
                break;
            }
            self.in_time(part, begun);
            tokio::time::sleep(ASK_EVERY).await;
        }
        let took = begun.elapsed();
        self.figures.slowest_ready = self.figures.slowest_ready.max(took);
        if took > READY_DEADLINE {
            self.figures
                .late
                .push(format!("{part:?} was ready again after {took:.1?}"));
        }
    }

    fn in_time(&self, part: Part, begun: Instant) {
        assert!(
            begun.elapsed() < GIVEN_UP,
            "{part:?} was not ready again within {GIVEN_UP:?}\n{}",
            self.deployment.last_words()
        );
    }
}
