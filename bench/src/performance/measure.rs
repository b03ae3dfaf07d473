//! Everything that the page tells, measured in turn.

use super::PerformanceArgs;
use super::machine::Machine;
use crate::load::Load;
use crate::report::{self, Report};
use crate::run::{self, Way};
use crate::system::Shape;
use crate::{PLAIN_CONNECTIONS, PLAIN_EVENTS};
use ingestctl::http::Http;
use serde::{Deserialize, Serialize};
use sluice_common::clock::{Clock as _, SystemClock};
use sluice_common::process::Failure;
use std::path::Path;
use std::time::Duration;

/// Of the main load.
const EVENTS: usize = 1_000;
const CONNECTIONS: u32 = 16;
/// Of the loads of small requests.
const SMALL_CONNECTIONS: u32 = 64;
/// Events of a request, for the plot of throughput.
const SIZES: [usize; 5] = [1, 10, 100, 1_000, 10_000];
/// Shares of the peak at which latencies are measured, in percent.
const SHARES: [u32; 6] = [10, 25, 50, 75, 90, 100];
/// The share that goals speak of.
pub const HALF: u32 = 50;
/// Requests of a connection that differ where the same events are sent again and again.
const DISTINCT: u64 = 50;
/// And what of the peak is sent so: memory is looked at, not speed.
const REPEATING_SHARE: f64 = 0.5;
/// The main load is that many times as long as the others.
const LONGER: u64 = 6;

/// All that was measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    pub machine: Machine,
    pub clickhouse: String,
    pub version: String,
    /// `YYYY-MM-DD`, UTC.
    pub day: String,
    pub seconds: u64,
    pub rounds: u32,
    /// The main load.
    pub main: Beside,
    /// Ten events a request, and one.
    pub tens: Beside,
    pub ones: Beside,
    pub sizes: Vec<Beside>,
    /// The main load through three processes.
    pub apart: Report,
    pub rising: Vec<Rising>,
    /// The same events again and again.
    pub repeating: Report,
}

/// One load, through Sluice and straight into ClickHouse.
#[derive(Debug, Serialize, Deserialize)]
pub struct Beside {
    pub sluice: Report,
    pub async_insert: Report,
    /// Bodies of 10,000 events, whatever the load's are.
    pub plain_insert: Option<Report>,
}

/// The main load at a share of what is taken at most.
#[derive(Debug, Serialize, Deserialize)]
pub struct Rising {
    pub percent: u32,
    pub report: Report,
}

/// Measures for as long as it takes.
///
/// # Errors
/// What did not start, or was not stored as it was acknowledged.
pub async fn all(args: &PerformanceArgs) -> Result<Measured, Failure> {
    let stand = Stand { args };
    let clickhouse = stand.version_of_clickhouse().await?;
    let main = stand
        .beside((EVENTS, CONNECTIONS), args.seconds, Plain::Too)
        .await?;
    let short = args.seconds / LONGER;
    let tens = stand
        .beside((10, SMALL_CONNECTIONS), short, Plain::Without)
        .await?;
    let ones = stand
        .beside((1, SMALL_CONNECTIONS), short, Plain::Without)
        .await?;
    let mut sizes = Vec::new();
    for events in SIZES {
        let beside = stand.beside((events, CONNECTIONS), short, Plain::Without).await?;
        sizes.push(beside);
    }
    let apart = stand.apart(short).await?;
    let peak = main.sluice.stored_per_second;
    let mut rising = Vec::new();
    for percent in SHARES {
        // Goals speak of this one.
        let seconds = if percent == HALF { args.seconds } else { short };
        let report = stand.paced(peak * f64::from(percent) / 100.0, seconds).await?;
        rising.push(Rising { percent, report });
    }
    let repeating = stand.repeating(peak * REPEATING_SHARE).await?;
    Ok(Measured {
        machine: Machine::here(&args.dir),
        clickhouse,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        day: day(SystemClock.now_ms()),
        seconds: args.seconds,
        rounds: args.rounds,
        main,
        tens,
        ones,
        sizes,
        apart,
        rising,
        repeating,
    })
}

/// Whether the best direct insert is measured too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plain {
    Too,
    Without,
}

struct Stand<'a> {
    args: &'a PerformanceArgs,
}

impl Stand<'_> {
    /// A load through each way, in turn; the middle of the rounds.
    async fn beside(
        &self,
        (events, connections): (usize, u32),
        seconds: u64,
        plain: Plain,
    ) -> Result<Beside, Failure> {
        let load = |round| Load {
            run: round,
            events_per_request: events,
            connections,
            time: Duration::from_secs(seconds.max(1)),
            rate: None,
            now_ms: SystemClock.now_ms(),
            distinct: None,
        };
        let (mut sluice, mut gathered, mut plainly) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..self.args.rounds {
            sluice.push(self.run(Way::Sluice(Shape::AllInOne), load(round)).await?);
            gathered.push(self.run(Way::AsyncInsert, load(round)).await?);
            if plain == Plain::Too {
                let load = Load {
                    events_per_request: PLAIN_EVENTS,
                    connections: PLAIN_CONNECTIONS,
                    ..load(round)
                };
                plainly.push(self.run(Way::PlainInsert, load).await?);
            }
        }
        let none = || Failure::new("no round was run");
        Ok(Beside {
            sluice: report::median(sluice).ok_or_else(none)?,
            async_insert: report::median(gathered).ok_or_else(none)?,
            plain_insert: report::median(plainly),
        })
    }

    /// The main load through three processes: what each of them costs.
    async fn apart(&self, seconds: u64) -> Result<Report, Failure> {
        self.run(Way::Sluice(Shape::ThreeProcesses), main_load(seconds))
            .await
    }

    /// The main load, no faster than this.
    async fn paced(&self, rate: f64, seconds: u64) -> Result<Report, Failure> {
        let load = Load {
            rate: Some(whole(rate)),
            ..main_load(seconds)
        };
        self.run(Way::Sluice(Shape::AllInOne), load).await
    }

    /// The same events again and again: what is kept of them must not grow.
    async fn repeating(&self, rate: f64) -> Result<Report, Failure> {
        let load = Load {
            rate: Some(whole(rate)),
            distinct: Some(DISTINCT),
            ..main_load(self.args.repeat_seconds)
        };
        self.run(Way::Sluice(Shape::AllInOne), load).await
    }

    async fn run(&self, way: Way, load: Load) -> Result<Report, Failure> {
        let report = run::run(way, load, &self.args.dir).await?;
        eprintln!(
            "{:<26} {:>6} events a request: {:>9.0} stored events/s, {:.2} CPU s/million",
            report.system,
            report.events_per_request,
            report.stored_per_second,
            report.cpu()
        );
        Ok(report)
    }

    async fn version_of_clickhouse(&self) -> Result<String, Failure> {
        let dir: &Path = &self.args.dir;
        let system = crate::system::System::start(None, &[], dir).await?;
        let version = Http::default()
            .query(&system.clickhouse(), "SELECT version()")
            .await;
        system.stop().await;
        Ok(version?.trim().to_owned())
    }
}

fn main_load(seconds: u64) -> Load {
    Load {
        run: 0,
        events_per_request: EVENTS,
        connections: CONNECTIONS,
        time: Duration::from_secs(seconds.max(1)),
        rate: None,
        now_ms: SystemClock.now_ms(),
        distinct: None,
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
fn whole(rate: f64) -> u32 {
    rate.clamp(1.0, f64::from(u32::MAX)) as u32
}

/// The day of a moment, UTC.
fn day(ms: u64) -> String {
    let moment = i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    moment
        .map(|moment| moment.strftime("%Y-%m-%d").to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_utc() {
        assert_eq!(day(0), "1970-01-01");
        assert_eq!(day(1_763_856_000_000), "2025-11-23");
    }
}
