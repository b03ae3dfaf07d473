//! One round: a deployment of its own, a load, its faults one after the other, a drain, and the oracle's verdict.

use super::draw::{Disk, Draw, Fault, Full, Network};
use super::figures::Figures;
use super::letters::Retries;
use crate::kafka::Kafka;
use crate::oracle::copies::LogTopic;
use crate::oracle::request::DATASETS;
use crate::oracle::verdict::Verdict;
use crate::oracle::{self, Oracle, Refusal};
use crate::{Deployment, Hop, Part, Plan, Shape, finally};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use tokio::task::block_in_place;

/// From a restart to the first acknowledged event and an answer of ClickHouse.
const READY_DEADLINE: Duration = Duration::from_secs(10);
/// After it, nobody waits any longer for what is late already.
const GIVEN_UP: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(20);
/// Of the ClickHouse beside Sluice: a table that is away is set aside within a round.
const PARK_AFTER: &str = "park_after: 1s";
/// Volumes that are to be filled: ClickHouse without data needs about 60 MiB and keeps 64 MiB free, the log what [`LOG`]
/// says.
const VOLUME_BYTES: u64 = 640 << 20;
const LOG: &str = "log: {max_bytes: 256MiB, reserve: 128MiB}\n";
/// A round under way.
struct Round {
    deployment: Deployment,
    oracle: Oracle,
    figures: Figures,
    retries: Option<Retries>,
    /// Last, so that it outlives who needs it.
    kafka: Option<Kafka>,
}

/// Plays a round to its end; what it did, and the verdict.
///
/// # Panics
/// Where a part does not get ready, is not asked to end in vain, or nothing drains.
pub async fn play(draw: &Draw) -> (Figures, Verdict) {
    let kafka = match draw.kafka {
        true => Some(Kafka::start().await),
        false => None,
    };
    let deployment = plan(draw, kafka.as_ref()).start().await;
    let mut oracle = Oracle::new(&deployment, draw.seed);
    oracle.log_topic = kafka.as_ref().map(|kafka| LogTopic {
        brokers: kafka.brokers(),
        topic: TOPIC,
    });
    oracle.style = draw.style.clone();
    let mut round = Round {
        deployment,
        oracle,
        figures: Figures::default(),
        retries: None,
        kafka,
    };
    round.figures.twins = u64::from(draw.twins);
    let load = round.oracle.load(&round.deployment);
    for (pause, fault) in &draw.faults {
        tokio::time::sleep(*pause).await;
        round.suffer(fault).await;
    }
    load.stop().await;
    if let Some(retries) = round.retries.take() {
        // Letters of what is in flight are left alone until then.
        oracle::drained(&round.deployment).await;
        retries.finish().await;
    }
    let verdict = round.oracle.drained_verdict(&round.deployment).await;
    round.count_letters().await;
    round.figures.end(&verdict, round.oracle.peak_mib());
    (round.figures, verdict)
}

fn plan(draw: &Draw, kafka: Option<&Kafka>) -> Plan {
    let log = match (kafka, draw.disk) {
        (Some(kafka), _) => kafka_log(kafka),
        (None, Some(Disk::Data)) => LOG.to_owned(),
        (None, Some(Disk::ClickHouse) | None) => String::new(),
    };
    let mut plan = Plan::new(draw.shape)
        .tenants(draw.tenants)
        .small_files(draw.small_files)
        .twins(draw.twins)
        .extra(&format!("{log}{}", oracle::CONFIG));
    if kafka.is_some() && draw.twins {
        plan = plan.twin_normalizers();
    }
    if draw.proxied {
        plan = hops(draw.shape).iter().fold(plan, |plan, hop| plan.proxied(*hop));
        plan = plan.clickhouse(PARK_AFTER);
    }
    match draw.disk {
        Some(Disk::Data) => plan.data_volume(VOLUME_BYTES),
        Some(Disk::ClickHouse) => plan.clickhouse_volume(VOLUME_BYTES),
        None => plan,
    }
}

/// The topic of a log in Kafka.
const TOPIC: &str = "torture";

fn kafka_log(kafka: &Kafka) -> String {
    let brokers = kafka.brokers();
    format!("kafka: {{brokers: [\"{brokers}\"]}}\nlog: {{kind: kafka, topic: {TOPIC}}}\n")
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
            Fault::Kill { part, outage, again } => {
                let before = self.deployment.clickhouse_pid();
                self.kill(*part);
                tokio::time::sleep(*outage).await;
                for after in again {
                    self.kill_in_recovery(*part, *after).await;
                }
                self.back(*part, before).await;
            }
            Fault::KillAll { outage } => self.kill_all(*outage).await,
            Fault::Stop { part, time } => {
                self.figures.stops += 1;
                self.deployment.signal(*part, Signal::STOP);
                tokio::time::sleep(*time).await;
                self.deployment.signal(*part, Signal::CONT);
            }
            Fault::Restart { part } => self.restart(*part).await,
            Fault::Network(network) => self.network(network).await,
            Fault::Table { dataset, time } => self.table(DATASETS[*dataset], *time).await,
            Fault::Full(full) => self.full(full).await,
            Fault::Broker { time, stands } => self.broker(*time, *stands).await,
            Fault::Refuse(refusal) => self.refuse(*refusal).await,
            Fault::Lift(refusal) => self.lift(*refusal).await,
        }
    }

    /// Takes the broker away, and brings it back.
    async fn broker(&mut self, time: Duration, stands: bool) {
        let kafka = self.kafka.as_mut().expect("the log is Kafka's");
        match stands {
            true => {
                self.figures.stops += 1;
                kafka.signal(Signal::STOP);
                // The fault lasts so long.
                tokio::time::sleep(time).await;
                kafka.signal(Signal::CONT);
            }
            false => {
                *self.figures.kills.entry("Kafka".to_owned()).or_default() += 1;
                kafka.kill();
                // So does this one.
                tokio::time::sleep(time).await;
                kafka.bring_up().await;
            }
        }
        self.until_ready(self.deployment.parts()[0], Instant::now()).await;
    }

    /// Fills a volume, and gives the room back.
    async fn full(&mut self, full: &Full) {
        let (name, volume, part) = match (full.disk, self.deployment.shape) {
            (Disk::ClickHouse, _) => (
                "ClickHouse's",
                self.deployment.clickhouse_volume(),
                Part::ClickHouse,
            ),
            (Disk::Data, Shape::AllInOne) => ("data", self.deployment.data_volume(), Part::Up),
            (Disk::Data, Shape::ThreeProcesses) => ("data", self.deployment.data_volume(), Part::Normalizer),
        };
        *self.figures.full.entry(name.to_owned()).or_default() += 1;
        let has_clickhouse =
            full.disk == Disk::ClickHouse || !self.deployment.parts().contains(&Part::ClickHouse);
        let ballast = match has_clickhouse {
            true => {
                volume
                    .fill_around(&self.deployment.clickhouse(), full.spare)
                    .await
            }
            false => block_in_place(|| volume.fill(full.spare)),
        };
        // The fault lasts so long.
        tokio::time::sleep(full.time / 2).await;
        let before = self.deployment.clickhouse_pid();
        if let Some(part) = full.kills {
            self.oracle.weigh(&self.deployment);
            self.kill(part);
        }
        tokio::time::sleep(full.time / 2).await;
        drop(ballast);
        match full.kills {
            Some(part) => self.back(part, before).await,
            None => self.until_ready(part, Instant::now()).await,
        }
    }

    async fn refuse(&mut self, refusal: Refusal) {
        self.oracle.refusal = Some(refusal);
        self.change(&refusal.begins()).await;
    }

    /// Has rows taken again, and the letters of those that were not tried again from now on.
    async fn lift(&mut self, refusal: Refusal) {
        self.change(&refusal.ends()).await;
        self.retries = Some(Retries::start(self.deployment.admin(Part::Normalizer)));
    }

    /// What the books say of rows that were refused.
    async fn count_letters(&mut self) {
        let sql = "SELECT sumIf(dead_lettered, entry = 'quarantined'), countIf(entry = 'retried') \
                   FROM telemetry.ledger FORMAT TSV";
        let told = finally(sql, GIVEN_UP, async || {
            self.deployment.clickhouse().query(sql).await
        });
        let told = told.await;
        let mut counts = told
            .split('\t')
            .map(|count| count.parse::<u64>().expect("a count"));
        self.figures.letters = counts.next().expect("letters");
        self.figures.retried = counts.next().expect("retries");
    }

    /// Takes a table away and brings it back. Detached, not renamed: nobody can make another one of its name meanwhile,
    /// and a ClickHouse that starts again has it back by itself.
    async fn table(&mut self, table: &str, time: Duration) {
        self.figures.tables += 1;
        self.change(&format!("DETACH TABLE telemetry.{table}")).await;
        // The fault lasts so long.
        tokio::time::sleep(time).await;
        self.change(&format!("ATTACH TABLE IF NOT EXISTS telemetry.{table}"))
            .await;
    }

    async fn change(&self, sql: &str) {
        finally(sql, GIVEN_UP, async || {
            self.deployment.clickhouse().query(sql).await
        })
        .await;
    }

    fn kill(&mut self, part: Part) {
        self.count_kill(part);
        self.deployment.kill(part);
    }

    fn count_kill(&mut self, part: Part) {
        *self.figures.kills.entry(format!("{part:?}")).or_default() += 1;
    }

    /// Starts a part, and kills it soon after, ready or not.
    async fn kill_in_recovery(&mut self, part: Part, after: Duration) {
        self.figures.recoveries += 1;
        self.count_kill(part);
        let started = self.deployment.start_without_waiting(part).expect("started");
        // It recovers for so long.
        tokio::time::sleep(after).await;
        drop(started);
    }

    /// Once the last of all is started again they have as long as any one to be ready.
    async fn kill_all(&mut self, outage: Duration) {
        let before = self.deployment.clickhouse_pid();
        let parts = self.deployment.parts();
        parts.iter().for_each(|part| self.count_kill(*part));
        self.deployment.kill_at_once(&parts);
        // The fault lasts so long.
        tokio::time::sleep(outage).await;
        for part in &parts {
            self.start_again(*part, before, Instant::now()).await;
        }
        self.until_ready(parts[0], Instant::now()).await;
    }

    /// Brings a killed part back, and waits until all is well. `before` is the ClickHouse of before the kill.
    async fn back(&mut self, part: Part, before: Option<rustix::process::Pid>) {
        let begun = Instant::now();
        self.start_again(part, before, begun).await;
        self.until_ready(part, begun).await;
    }

    async fn start_again(&mut self, part: Part, before: Option<rustix::process::Pid>, begun: Instant) {
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
    }

    async fn restart(&mut self, part: Part) {
        self.figures.restarts += 1;
        let before = self.deployment.clickhouse_pid();
        if part == Part::ClickHouse {
            // Its keeper starts it again, as after a kill.
            self.deployment.signal(part, Signal::TERM);
        } else {
            let well = block_in_place(|| self.deployment.terminate(part));
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

    /// Waits until an event is acknowledged, by each edge, and ClickHouse answers.
    async fn until_ready(&mut self, part: Part, begun: Instant) {
        let mut answered = None;
        loop {
            let mut is_ready = self.deployment.clickhouse().query("SELECT 1").await.is_ok();
            if is_ready {
                answered.get_or_insert_with(|| begun.elapsed());
            }
            for _ in 0..self.deployment.edges() {
                is_ready = is_ready && self.oracle.probe(&self.deployment).await;
            }
            if is_ready {
                break;
            }
            self.in_time(part, begun);
            tokio::time::sleep(ASK_EVERY).await;
        }
        let took = begun.elapsed();
        self.figures.slowest_ready = self.figures.slowest_ready.max(took);
        if took > READY_DEADLINE {
            self.figures.late.push(format!(
                "{part:?} was ready again after {took:.1?}, ClickHouse answered after {:.1?}\n{}",
                answered.unwrap_or(took),
                self.deployment.last_words()
            ));
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
