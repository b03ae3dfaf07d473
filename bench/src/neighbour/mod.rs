//! The noisy neighbour: one tenant at many times its quota, others at half of theirs. How much slower are these
//! than without it?
//!
//! Product and ClickHouse are on one core, all clients on another. *Alone* is the same load in all, but the noisy
//! tenant's goes to a listener on the clients' core that does nothing with it: so both sides have generators that are
//! equally busy, and what differs is the product. Both sides are of one run, in turn, several times.

mod noisy;
mod quiet;
pub mod report;
mod schedule;

use crate::Output;
use crate::cores::Cores;
use crate::system::{Shape, System, Tenant};
use crate::usage::Usage;
use clap::Args;
use noisy::{Flood, Noise};
use quiet::{Pace, Round};
use report::{Process, Rates, Report};
use schedule::{Schedule, Side};
use sluice_common::clock::{Clock as _, SystemClock};
use sluice_common::process::Failure;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Of each phase, not counted: longer than the quotas' burst.
const SETTLE: Duration = Duration::from_secs(3);
/// From the last process's start to the first phase.
const BEFORE: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Args)]
pub struct NeighbourArgs {
    /// Of each phase, what is counted.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Rounds of two phases, alone and together; medians are shown.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Quiet tenants; each sends half of its quota.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=64))]
    quiet: u32,
    /// Each tenant's quota, events a second.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(10..))]
    quota: u32,
    /// Times its quota that the noisy tenant sends.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    times: u32,
    /// Events of a quiet tenant's request.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    events: u32,
    /// Events of the noisy tenant's request.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    noisy_events: u32,
    /// Fails where a quiet tenant's p99 together is above so many times its p99 alone.
    #[arg(long, default_value_t = 1.5)]
    ratio: f64,
    #[arg(long, value_enum, default_value = "all-in-one")]
    shape: Shape,
    /// Where the data is written, on a disk: on tmpfs an fsync costs nothing.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

/// CPU by process, at the begin and the end of what is counted of each phase.
type Uses = Vec<(Side, Vec<(&'static str, Usage)>, Vec<(&'static str, Usage)>)>;

impl NeighbourArgs {
    /// Measures, prints, and holds the figures to what they must be.
    ///
    /// # Errors
    /// What did not start; a quiet tenant that was refused or is too slow.
    pub async fn run(self) -> Result<(), Failure> {
        let cores = Cores::split()?;
        let quota = format!("{{events_per_second: {}}}", self.quota);
        let tenant = |id: String| Tenant {
            id,
            quota: Some(quota.clone()),
        };
        let tenants: Vec<Tenant> = ["noisy".to_owned()]
            .into_iter()
            .chain((1..=self.quiet).map(|number| format!("quiet{number}")))
            .map(tenant)
            .collect();
        let system = System::start(Some(self.shape), &tenants, &self.dir).await?;
        cores.to_generators()?;
        let outcome = self.measure(&system, &tenants, cores).await;
        system.stop().await;
        let report = outcome?;
        match self.output {
            Output::Table => print!("{}", report.table()),
            Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        }
        let complaints = report.complaints(self.ratio);
        if complaints.is_empty() {
            return Ok(());
        }
        Err(Failure::new(complaints.join("; ")))
    }

    async fn measure(&self, system: &System, tenants: &[Tenant], cores: Cores) -> Result<Report, Failure> {
        let address = system.edge.clone().unwrap_or_default();
        let schedule = Schedule {
            begun: Instant::now() + BEFORE,
            settle: SETTLE,
            counted: Duration::from_secs(self.seconds),
            rounds: self.rounds as usize,
        };
        let [noisy, quiet @ ..] = tenants else {
            return Err(Failure::new("no tenants"));
        };
        let flood = Flood {
            address: address.clone(),
            key: noisy.key(),
            events_per_request: self.noisy_events as usize,
            events_per_second: f64::from(self.quota) * f64::from(self.times),
            now_ms: SystemClock.now_ms(),
            schedule,
        };
        let flood = std::thread::spawn(move || flood.run(&cores));
        let senders: Vec<_> = quiet
            .iter()
            .enumerate()
            .map(|(number, tenant)| self.send_of(tenant, number, &address, schedule))
            .collect();
        let uses = watch(system, schedule).await;
        let mut rounds = Vec::new();
        for sender in senders {
            rounds.push(sender.await??);
        }
        let noise = flood
            .join()
            .map_err(|_| Failure::new("the noisy tenant's thread panicked"))??;
        Ok(self.report(quiet, &rounds, &noise, &uses))
    }

    /// All connections of one quiet tenant.
    fn send_of(
        &self,
        tenant: &Tenant,
        number: usize,
        address: &str,
        schedule: Schedule,
    ) -> tokio::task::JoinHandle<Result<Vec<Round>, Failure>> {
        let between = Duration::from_secs_f64(f64::from(self.events) * 2.0 / f64::from(self.quota));
        // Tenants take turns instead of all sending at once.
        let turn = between.mul_f64(number as f64 / f64::from(self.quiet));
        let pace = |connection: u32| Pace {
            address: address.to_owned(),
            key: tenant.key(),
            events_per_request: self.events as usize,
            between,
            offset: turn + between * connection,
            now_ms: SystemClock.now_ms(),
            schedule,
        };
        let connections: Vec<_> = (0..quiet::CONNECTIONS)
            .map(|connection| tokio::task::spawn_local(pace(connection).run(connection)))
            .collect();
        let rounds = self.rounds as usize;
        tokio::task::spawn_local(async move {
            let mut sum = vec![Round::default(); rounds];
            for connection in connections {
                for (sum, round) in sum.iter_mut().zip(&connection.await?) {
                    sum.merge(round);
                }
            }
            Ok(sum)
        })
    }

    fn report(&self, tenants: &[Tenant], rounds: &[Vec<Round>], noise: &Noise, uses: &Uses) -> Report {
        let mut all = vec![Round::default(); self.rounds as usize];
        for of_one in rounds {
            all.iter_mut()
                .zip(of_one)
                .for_each(|(sum, round)| sum.merge(round));
        }
        let named = tenants.iter().zip(rounds);
        Report {
            shape: format!("{:?}", self.shape),
            rounds: self.rounds as usize,
            seconds_a_phase: self.seconds,
            quota: self.quota,
            times: self.times,
            tenants: named
                .map(|(tenant, rounds)| report::Tenant::of(tenant.id.clone(), rounds))
                .collect(),
            all: report::Tenant::of("all".to_owned(), &all),
            noisy: Rates::of(noise, Duration::from_secs(self.seconds * u64::from(self.rounds))),
            processes: processes(uses, self.seconds as f64 * f64::from(self.rounds)),
        }
    }
}

/// Notes what each process has used, at each begin and end of what is counted.
async fn watch(system: &System, schedule: Schedule) -> Uses {
    let mut uses = Uses::new();
    for (from, to) in schedule.windows() {
        sleep_until(from).await;
        let before = system.usage();
        let Some(moment) = schedule.at(from) else { break };
        eprintln!(
            "  round {} of {}: {:?}",
            moment.round + 1,
            schedule.rounds,
            moment.side
        );
        sleep_until(to).await;
        uses.push((moment.side, before, system.usage()));
    }
    uses
}

fn processes(uses: &Uses, seconds: f64) -> Vec<Process> {
    let names = uses
        .first()
        .map(|(_, before, _)| before.as_slice())
        .unwrap_or_default();
    let of = |place: usize, wanted: Side| {
        let phases = uses.iter().filter(|(side, _, _)| *side == wanted);
        let used: f64 = phases
            .map(|(_, before, after)| {
                after[place]
                    .1
                    .cpu
                    .saturating_sub(before[place].1.cpu)
                    .as_secs_f64()
            })
            .sum();
        used / seconds
    };
    let processes = names.iter().enumerate().map(|(place, (name, _))| Process {
        name: (*name).to_owned(),
        alone: of(place, Side::Alone),
        together: of(place, Side::Together),
    });
    processes.collect()
}
