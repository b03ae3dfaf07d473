//! Overload: several times what Sluice can take, from clients that do not wait when they are told to, beside some that
//! do. What is still served, what it costs in memory, whether each request is answered, and how soon all is as before.
//!
//! The peak is found in the same run, by clients that send as soon as they are answered. Product and ClickHouse are on
//! one core and the clients on another, so that the flood itself takes nothing from what is measured.

mod crowd;
mod report;

use crate::Output;
use crate::admin::Admin;
use crate::cores::Cores;
use crate::system::{Shape, System, Tenant};
use clap::Args;
use crowd::{Crowd, Kind, Manners, Pace, Tally};
use ingestctl::http::Http;
pub use report::Memory;
use report::{Bounds, Figures, Report, Shed};
use sluice_common::clock::{Clock as _, SystemClock};
use sluice_common::limits::MEMORY_BYTES;
use sluice_common::process::Failure;
use std::cell::Cell;
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Those that storm and those that wait are of other tenants: half of these each.
const TENANTS: usize = 8;
/// Of the clients that find the peak.
const PEAK_CLIENTS: u32 = 32;
/// Of those that wait; together they send half of the peak.
const WAITING_CLIENTS: u32 = 64;
/// Parts of the peak that come after the overload.
const NORMAL: f64 = 0.5;
/// Between two looks at the backlog.
const LOOK: Duration = Duration::from_millis(250);
/// A backlog of this age is young: no share of it is granted.
const YOUNG_S: f64 = 2.0;
/// How long a log may take to become empty.
const EMPTY_DEADLINE: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Args)]
pub struct OverloadArgs {
    /// How long it is overloaded.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// How long the peak is looked for; the first third is not counted. Long enough to be one that is sustained:
    /// for some seconds the backlog may grow.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(3..=3_600))]
    peak_seconds: u64,
    /// How long half the peak comes afterwards.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    after_seconds: u64,
    /// Times the peak that is offered.
    #[arg(long, default_value_t = 3.0)]
    times: f64,
    /// Clients that do not wait.
    #[arg(long, default_value_t = 800, value_parser = clap::value_parser!(u32).range(1..=900))]
    clients: u32,
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    events: u32,
    /// Fails where less than this part of so many times the peak was offered: then nothing was shown.
    #[arg(long, default_value_t = 0.9)]
    offered: f64,
    /// Fails where goodput is under this part of the peak.
    #[arg(long, default_value_t = 0.8)]
    goodput: f64,
    /// Fails where a request is refused later than this after the overload, in seconds.
    #[arg(long, default_value_t = 10)]
    refusals: u64,
    /// Fails where the log is not empty so long after the end of all load, in seconds.
    #[arg(long, default_value_t = 60.0)]
    drain: f64,
    #[arg(long, value_enum, default_value = "all-in-one")]
    shape: Shape,
    /// Where the data is written, on a disk: on tmpfs an fsync costs nothing.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

/// The three crowds.
struct Crowds {
    peak: Crowd,
    storming: Crowd,
    waiting: Crowd,
}

/// What the overload and the time after it were.
struct Phases {
    peak: f64,
    storming: Tally,
    waiting: Tally,
    after: Tally,
    backlog_bytes: f64,
    drained_after: Duration,
    empty_after: Duration,
}

impl OverloadArgs {
    /// Measures, prints, and holds the figures to what they must be.
    ///
    /// # Errors
    /// What did not start, or was not as it must be.
    pub async fn run(self) -> Result<(), Failure> {
        let cores = Cores::split()?;
        let tenants: Vec<Tenant> = (0..TENANTS).map(|n| Tenant::free(format!("t{n}"))).collect();
        let system = System::start(Some(self.shape), &tenants, &self.dir).await?;
        cores.to_generators()?;
        let outcome = self.measure(&system, &tenants).await;
        system.stop().await;
        let report = outcome?;
        match self.output {
            Output::Table => print!("{}", report.table()),
            Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        }
        let complaints = report.complaints(&Bounds {
            offered: self.offered,
            goodput: self.goodput,
            refusals: self.refusals,
            drain: self.drain,
        });
        if complaints.is_empty() {
            return Ok(());
        }
        Err(Failure::new(complaints.join("; ")))
    }

    async fn measure(&self, system: &System, tenants: &[Tenant]) -> Result<Report, Failure> {
        let admin = Admin::new(&system.admin);
        let mut crowds = self.crowds(system, tenants);
        let phases = self.phases(&mut crowds, &admin).await?;
        let all = [&crowds.peak, &crowds.storming, &crowds.waiting].map(Crowd::stored);
        let sum = |of: fn(&(u64, u64)) -> u64| all.iter().map(of).sum();
        let stored = stored(system).await?;
        let metrics = admin.metrics().await?;
        let seconds = self.seconds as f64;
        let events = f64::from(self.events);
        let goodput = (phases.storming.acknowledged + phases.waiting.acknowledged) as f64 / seconds;
        let refused = phases.after.seconds.iter().rposition(|(_, refused)| *refused > 0);
        Ok(Report {
            shape: format!("{:?}", self.shape),
            events_per_request: self.events as usize,
            peak: phases.peak,
            seconds: self.seconds,
            times: self.times,
            offered: phases.storming.attempts as f64 * events / seconds,
            goodput,
            goodput_of_peak: goodput / phases.peak,
            storming: Figures::from(phases.storming),
            waiting: Figures::from(phases.waiting),
            after: Figures::from(phases.after),
            last_refusal_after_s: refused.map_or(0, |second| second as u64 + 1),
            drained_after_s: phases.drained_after.as_secs_f64(),
            empty_after_s: phases.empty_after.as_secs_f64(),
            backlog_mib: phases.backlog_bytes / f64::from(1 << 20),
            memory: memory(system),
            memory_budget_mib: MEMORY_BYTES as f64 / f64::from(1 << 20),
            retries: metrics.sum("sluice_retries_total", ""),
            acknowledged: sum(|(acknowledged, _)| *acknowledged),
            stored,
            open: sum(|(_, open)| *open),
            shed: metrics
                .samples("sluice_shed_total")
                .filter(|(_, requests)| *requests > 0.0)
                .map(|(labels, requests)| Shed {
                    reason: labels.to_owned(),
                    requests,
                })
                .collect(),
        })
    }

    fn crowds(&self, system: &System, tenants: &[Tenant]) -> Crowds {
        let keys: Vec<String> = tenants.iter().map(Tenant::key).collect();
        let (half, other_half) = keys.split_at(TENANTS / 2);
        let now_ms = SystemClock.now_ms();
        let crowd = |run, keys, clients, manners| {
            Crowd::new(&Kind {
                address: system.edge.as_deref().unwrap_or_default(),
                keys,
                clients,
                manners,
                events_per_request: self.events as usize,
                run,
                now_ms,
            })
        };
        Crowds {
            peak: crowd(1, &keys, PEAK_CLIENTS, Manners::Waits),
            storming: crowd(2, half, self.clients, Manners::Storms),
            waiting: crowd(3, other_half, WAITING_CLIENTS, Manners::Waits),
        }
    }

    async fn phases(&self, crowds: &mut Crowds, admin: &Admin) -> Result<Phases, Failure> {
        let pace = |rate: Option<f64>, skip: Duration, seconds: u64| Pace {
            rate: rate.map(|events| events / f64::from(self.events)),
            from: Instant::now() + skip,
            until: Instant::now() + Duration::from_secs(seconds),
        };
        eprintln!("  the peak");
        let skip = Duration::from_secs(self.peak_seconds) / 3;
        let found = crowds.peak.send(pace(None, skip, self.peak_seconds)).await?;
        let counted = Duration::from_secs(self.peak_seconds) - skip;
        let peak = found.acknowledged as f64 / counted.as_secs_f64();
        empty(admin).await?;

        eprintln!("  {} times {peak:.0} events/s", self.times);
        let storm = pace(Some(peak * self.times), Duration::ZERO, self.seconds);
        let gentle = pace(Some(peak * NORMAL), Duration::ZERO, self.seconds);
        let sending = async { tokio::try_join!(crowds.storming.send(storm), crowds.waiting.send(gentle)) };
        let backlog_bytes = Cell::new(0.0);
        let (storming, waiting) = tokio::select! {
            sent = sending => sent?,
            never = highest(admin, &backlog_bytes) => match never {},
        };

        eprintln!("  half of it");
        let begun = Instant::now();
        let normal = pace(Some(peak * NORMAL / 2.0), Duration::ZERO, self.after_seconds);
        let sending = async { tokio::try_join!(crowds.storming.send(normal), crowds.waiting.send(normal)) };
        let young = async {
            while admin.metrics().await?.sum("sluice_log_backlog_age_seconds", "") > YOUNG_S {
                sleep(LOOK).await;
            }
            Ok::<_, Failure>(begun.elapsed())
        };
        let (sent, drained_after) = tokio::join!(sending, timeout(EMPTY_DEADLINE, young));
        let (mut after, others) = sent?;
        after.add(&others);
        Ok(Phases {
            peak,
            storming,
            waiting,
            after,
            backlog_bytes: backlog_bytes.get(),
            drained_after: drained_after??,
            empty_after: empty(admin).await?,
        })
    }
}

/// Waits until nothing in the log waits to be stored; how long that took.
async fn empty(admin: &Admin) -> Result<Duration, Failure> {
    let begun = Instant::now();
    while admin.backlog_bytes().await? > 0.0 {
        if begun.elapsed() > EMPTY_DEADLINE {
            return Err(Failure::new("the log did not become empty"));
        }
        sleep(LOOK).await;
    }
    Ok(begun.elapsed())
}

/// Looks at the backlog for as long as it is let.
async fn highest(admin: &Admin, seen: &Cell<f64>) -> Infallible {
    loop {
        if let Ok(bytes) = admin.backlog_bytes().await {
            seen.set(seen.get().max(bytes));
        }
        sleep(LOOK).await;
    }
}

/// Each event is there once, or the run fails.
async fn stored(system: &System) -> Result<u64, Failure> {
    let sql = "SELECT count(), uniqExact(tenant, event_id) FROM telemetry.events FORMAT TSV";
    let told = Http::default().query(&system.clickhouse(), sql).await?;
    let mut counts = told.split_whitespace().map(str::parse::<u64>);
    match (counts.next(), counts.next()) {
        (Some(Ok(rows)), Some(Ok(events))) if rows == events => Ok(rows),
        _ => Err(Failure::new(format!("rows and distinct events: {told}"))),
    }
}

fn memory(system: &System) -> Vec<Memory> {
    let ours = system.usage().into_iter();
    ours.filter(|(name, _)| !["clickhouse", "generator"].contains(name))
        .map(|(name, usage)| Memory {
            name: name.to_owned(),
            peak_mib: usage.peak_rss_bytes as f64 / f64::from(1 << 20),
        })
        .collect()
}
