//! What an event costs where the log is a Kafka topic: of one partition, of several, and of none, in turn.
//!
//! Two cores cannot show that more partitions are faster; they show whether each event gets dearer by them.

use crate::Output;
use crate::load::{Load, Target, send};
use crate::report::{Report, median, middle};
use crate::run::{self, TENANT, Way};
use crate::system::{Shape, System, Tenant};
use crate::usage;
use clap::Args;
use ingestctl::http::Http;
use ingestctl::output::TextTable;
use serde::Serialize;
use sluice_common::clock::{Clock as _, SystemClock};
use sluice_common::config::{Loaded, Period};
use sluice_common::process::Failure;
use sluice_tests::kafka::Kafka;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// Runs of events that are sent after the measured ones.
const ONE_MORE: u32 = 1_000;

#[derive(Debug, Clone, Args)]
pub struct PartitionsArgs {
    /// Partitions of the log; the first is what the others are held against.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4], value_parser = clap::value_parser!(u16).range(1..=64))]
    partitions: Vec<u16>,
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    events_per_request: u32,
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: u32,
    /// Of so many tenants, whose connections take turns.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    tenants: u32,
    /// `log.tenant_partitions`, where there are as many partitions; without it, the default.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    tenant_partitions: Option<u16>,
    /// `batch.max_age` for each partition, so that ranges of several hold as many events as those of one: 500ms makes it 2 s
    /// with four. Without it, it is the default with any number.
    #[arg(long)]
    max_age_each: Option<Period>,
    /// Events a second that are offered; without it, as many as are taken.
    #[arg(long)]
    rate: Option<u32>,
    /// How long events are sent, each time.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Each so often, in turn; the middle one is shown.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Fails where an event costs so many times what it does with the first number of partitions: Sluice, broker and
    /// ClickHouse together.
    #[arg(long, default_value_t = 1.1)]
    ratio: f64,
    #[arg(long, value_enum, default_value = "all-in-one")]
    shape: Shape,
    /// Where the data is written, on a disk: on tmpfs an fsync costs nothing. The broker's is in the directory for
    /// temporary files.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

/// One log, and what an event through it costs, in CPU seconds a million.
#[derive(Debug, Serialize)]
struct Line {
    /// None: the embedded log.
    partitions: Option<u16>,
    stored_per_second: f64,
    ack_p50_ms: Option<f64>,
    ack_p99_ms: Option<f64>,
    freshness_p95_ms: Option<f64>,
    sluice: f64,
    broker: f64,
    clickhouse: f64,
    all: f64,
    /// Of all, to that of the first number of partitions.
    ratio: f64,
    /// Seconds that a start takes longer for each million of keys where dedup's state is gone and is made anew from the log.
    rebuild: Option<f64>,
}

/// A report, with what the broker used meanwhile.
struct Measured {
    report: Report,
    broker: f64,
    rebuild: Option<f64>,
}

impl PartitionsArgs {
    /// Measures, prints, and holds the figures to what they must be.
    ///
    /// # Errors
    /// What did not start, or was not as it must be.
    pub async fn run(self) -> Result<(), Failure> {
        let kafka = Kafka::start().await;
        let logs: Vec<Option<u16>> = std::iter::once(None)
            .chain(self.partitions.iter().copied().map(Some))
            .collect();
        let mut measured: Vec<Vec<Measured>> = logs.iter().map(|_| Vec::new()).collect();
        for round in 0..self.rounds {
            for (log, measured) in logs.iter().zip(&mut measured) {
                let one = self.one(*log, round, &kafka).await?;
                eprintln!(
                    "{}: {:.0} stored events/s",
                    name(*log),
                    one.report.stored_per_second
                );
                measured.push(one);
            }
        }
        let lines = lines(&logs, measured);
        match self.output {
            Output::Table => print!("{}", table(&lines)),
            Output::Json => println!("{}", serde_json::to_string_pretty(&lines)?),
        }
        let dear = lines
            .iter()
            .filter(|line| line.partitions.is_some() && line.ratio > self.ratio);
        let dear: Vec<String> = dear
            .map(|line| format!("{}: {:.2} times", name(line.partitions), line.ratio))
            .collect();
        if dear.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "events cost more than {} times: {}",
            self.ratio,
            dear.join(", ")
        )))
    }

    /// The config of a log with so many partitions.
    fn config(&self, partitions: u16, round: u32, kafka: &Kafka) -> Result<String, Failure> {
        let datasets = match self.max_age_each {
            Some(each) => aged(each.ms() * u64::from(partitions))?,
            None => String::new(),
        };
        let of_a_tenant = self.tenant_partitions.map_or_else(String::new, |some| {
            format!(", tenant_partitions: {}", some.min(partitions))
        });
        Ok(format!(
            "kafka: {{brokers: [\"{}\"]}}\nlog: {{kind: kafka, topic: log-{partitions}-{round}, group: group-{partitions}-{round}, \
             partitions: {partitions}{of_a_tenant}}}\n{datasets}",
            kafka.brokers()
        ))
    }

    async fn one(&self, log: Option<u16>, round: u32, kafka: &Kafka) -> Result<Measured, Failure> {
        let extra = log.map_or(Ok(String::new()), |partitions| {
            self.config(partitions, round, kafka)
        })?;
        let tenants = run::tenants(self.tenants);
        let mut system = System::start_with(Some(self.shape), &tenants, &self.dir, &extra).await?;
        let used = || kafka.pid().map(usage::of_tree).unwrap_or_default().cpu;
        let before = used();
        let events = self.events_per_request as usize;
        let load = Load {
            run: round,
            rate: self.rate,
            now_ms: SystemClock.now_ms(),
            // A reader that asks all the time costs ClickHouse more the longer it waits for an event.
            probed: false,
            tenants: self.tenants,
            ..Load::new((events, self.connections), Duration::from_secs(self.seconds))
        };
        let report = run::measure(Way::Sluice(self.shape), load, &system).await;
        let took = used().saturating_sub(before);
        let rebuild = match &report {
            Ok(report) if log.is_some() => rebuild(&mut system, report.events).await.map(Some),
            Ok(_) | Err(_) => Ok(None),
        };
        system.stop().await;
        let (report, rebuild) = (report?, rebuild?);
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let broker = match log {
            Some(_) => took.as_secs_f64() / report.events as f64 * 1e6,
            None => 0.0,
        };
        Ok(Measured {
            report,
            broker,
            rebuild,
        })
    }
}

/// The default config's datasets, whose ranges grow so old.
fn aged(ms: u64) -> Result<String, Failure> {
    let loaded = Loaded::read(None, Path::new("."))?;
    let mut datasets = loaded.config.datasets;
    for dataset in &mut datasets {
        dataset.batch.max_age = Period::millis(ms);
    }
    Ok(format!("datasets: {}\n", serde_json::to_string(&datasets)?))
}

/// How much longer it takes, for each million of keys, until an event is stored after a restart without dedup's state than
/// after one with it.
async fn rebuild(system: &mut System, stored: u64) -> Result<f64, Failure> {
    let mut took = [Duration::ZERO; 2];
    for (n, took) in (0..).zip(&mut took) {
        let begun = Instant::now();
        let without = |data: &Path| match n {
            0 => Ok(()),
            _ => Ok(std::fs::remove_dir_all(data.join("dedup"))?),
        };
        system.restart(without).await?;
        let target = [Target::events(
            system.edge.clone().unwrap_or_default(),
            Tenant::free(TENANT).key(),
        )];
        let one = Load {
            run: ONE_MORE + n,
            ..Load::new((1, 1), Duration::from_millis(1))
        };
        let sent = send(one, &target, Rc::default()).await?;
        run::drain(&Http::default(), system, stored + u64::from(n) + sent.events()).await?;
        *took = begun.elapsed();
    }
    let [with, without] = took;
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    Ok(without.saturating_sub(with).as_secs_f64() / stored as f64 * 1e6)
}

/// Of each log the round in the middle by what an event costs.
fn lines(logs: &[Option<u16>], measured: Vec<Vec<Measured>>) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for (partitions, rounds) in logs.iter().zip(measured) {
        let cost = |one: &Measured| one.report.cpu() + one.broker;
        let speeds = median(rounds.iter().map(|one| one.report.clone()).collect());
        let (Some(one), Some(speeds)) = (middle(rounds, cost), speeds) else {
            continue;
        };
        let sluice = one.report.own_cpu();
        lines.push(Line {
            partitions: *partitions,
            stored_per_second: speeds.stored_per_second,
            ack_p50_ms: speeds.ack_p50_ms,
            ack_p99_ms: speeds.ack_p99_ms,
            freshness_p95_ms: speeds.freshness_p95_ms,
            sluice,
            broker: one.broker,
            clickhouse: one.report.cpu() - sluice,
            all: cost(&one),
            ratio: 0.0,
            rebuild: one.rebuild,
        });
    }
    let first = lines
        .iter()
        .find(|line| line.partitions.is_some())
        .map_or(f64::NAN, |line| line.all);
    for line in &mut lines {
        line.ratio = line.all / first;
    }
    lines
}

fn name(log: Option<u16>) -> String {
    log.map_or_else(
        || "embedded".to_owned(),
        |partitions| format!("{partitions} in Kafka"),
    )
}

/// For people: CPU in microseconds an event.
fn table(lines: &[Line]) -> String {
    let mut table = TextTable::new(&[
        "LOG",
        ">STORED/S",
        ">ACK P50 MS",
        ">ACK P99 MS",
        ">FRESH P95 MS",
        ">SLUICE US",
        ">BROKER US",
        ">CLICKHOUSE US",
        ">ALL US",
        ">RATIO",
        ">REBUILD S/MILLION",
    ]);
    let ms = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
    for line in lines {
        table.row([
            name(line.partitions),
            format!("{:.0}", line.stored_per_second),
            ms(line.ack_p50_ms),
            ms(line.ack_p99_ms),
            ms(line.freshness_p95_ms),
            format!("{:.2}", line.sluice),
            format!("{:.2}", line.broker),
            format!("{:.2}", line.clickhouse),
            format!("{:.2}", line.all),
            format!("{:.2}", line.ratio),
            line.rebuild
                .map_or_else(|| "-".to_owned(), |rebuild| format!("{rebuild:.2}")),
        ]);
    }
    table.to_string()
}
