//! Everything that the page tells, measured in turn.

use super::PerformanceArgs;
use super::machine::Machine;
use super::storm::{self, Storm};
use crate::live_keys::{self, LiveKeys};
use crate::load::Load;
use crate::report::{Report, middle};
use crate::run::{self, Way};
use crate::system::{Shape, System};
use ingestctl::http::Http;
use serde::{Deserialize, Serialize};
use sluice_bench::stages::{STAGES, Stage};
use sluice_common::clock::{Clock as _, SystemClock, UnixMs};
use sluice_common::moment;
use sluice_common::process::Failure;
use std::time::{Duration, Instant};

/// Of the main load.
const EVENTS: usize = 1_000;
const CONNECTIONS: u32 = 16;
/// Of the loads of small requests.
const SMALL_CONNECTIONS: u32 = 64;
/// The last is for the main load alone.
const WAYS: [Way; 3] = [Way::Sluice(Shape::AllInOne), Way::AsyncInsert, Way::PlainInsert];
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
/// Keys that dedup knows, in millions: the first and the last are what goals speak of.
const LIVE_MILLIONS: [u64; 4] = [1, 25, 50, 100];
/// Rounds of each stage alone, of which the one in the middle is shown.
const STAGE_ROUNDS: usize = 31;
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
    /// The main load before dedup's state of so many keys; none in what was measured before there was this.
    #[serde(default)]
    pub live: Vec<LiveKeys>,
    /// Each stage of an event's way alone, on one thread: µs an event, a quota's a request. None as above.
    #[serde(default)]
    pub stages: Vec<(String, f64)>,
    /// Three times what can be taken. None as above.
    #[serde(default)]
    pub storm: Option<Storm>,
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
    let (long, short) = (
        Duration::from_secs(args.seconds),
        Duration::from_secs(args.seconds / LONGER),
    );
    let most = Load::new((EVENTS, CONNECTIONS), long);
    let main = stand.beside(&WAYS, most).await?;
    // Freshness is of the main load: with small requests, who asks for it would be part of what they cost.
    let unprobed = |events, connections| Load {
        probed: false,
        ..Load::new((events, connections), short)
    };
    let small = |events| unprobed(events, SMALL_CONNECTIONS);
    let tens = stand.beside(&WAYS[..2], small(10)).await?;
    let ones = stand.beside(&WAYS[..2], small(1)).await?;
    let mut sizes = Vec::new();
    for events in SIZES {
        sizes.push(stand.beside(&WAYS[..2], unprobed(events, CONNECTIONS)).await?);
    }
    let shorter = Load { time: short, ..most };
    let apart = stand.once(Shape::ThreeProcesses, shorter).await?;
    let peak = main.sluice.stored_per_second;
    let mut rising = Vec::new();
    for percent in SHARES {
        // Goals speak of this one.
        let load = if percent == HALF { most } else { shorter };
        let rate = Some(whole(peak * f64::from(percent) / 100.0));
        let report = stand.once(Shape::AllInOne, Load { rate, ..load }).await?;
        rising.push(Rising { percent, report });
    }
    // What is kept of them must not grow.
    let repeating = Load {
        time: Duration::from_secs(args.repeat_seconds),
        rate: Some(whole(peak * REPEATING_SHARE)),
        distinct: Some(DISTINCT),
        ..most
    };
    let repeating = stand.once(Shape::AllInOne, repeating).await?;
    let live = live_keys::each(&LIVE_MILLIONS, (args.seconds / LONGER, args.rounds), &args.dir).await?;
    let stages = STAGES.iter().map(|stage| (stage.name.to_owned(), alone(stage)));
    let stages = stages.collect();
    let storm = Some(storm::measured(args.seconds, &args.dir).await?);
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
        live,
        stages,
        storm,
    })
}

/// What a stage takes alone, in µs of an item.
#[expect(clippy::cast_precision_loss, reason = "a small count")]
fn alone(stage: &Stage) -> f64 {
    let rounds = (0..STAGE_ROUNDS).map(|_| {
        let mut round = stage.ready(1);
        let begun = Instant::now();
        round();
        begun.elapsed().as_secs_f64()
    });
    let middle = middle(rounds.collect(), |seconds| *seconds).unwrap_or_default();
    middle * 1e6 / stage.items as f64
}

struct Stand<'a> {
    args: &'a PerformanceArgs,
}

impl Stand<'_> {
    /// A load through each way, in turn; the middle of the rounds.
    async fn beside(&self, ways: &[Way], load: Load) -> Result<Beside, Failure> {
        let mut reports = run::in_turn(ways, load, self.args.rounds, &self.args.dir)
            .await?
            .into_iter();
        let none = || Failure::new("no round was run");
        Ok(Beside {
            sluice: reports.next().ok_or_else(none)?,
            async_insert: reports.next().ok_or_else(none)?,
            plain_insert: reports.next(),
        })
    }

    /// One load through Sluice, once.
    async fn once(&self, shape: Shape, load: Load) -> Result<Report, Failure> {
        let reports = run::in_turn(&[Way::Sluice(shape)], load, 1, &self.args.dir).await?;
        reports
            .into_iter()
            .next()
            .ok_or_else(|| Failure::new("no round was run"))
    }

    async fn version_of_clickhouse(&self) -> Result<String, Failure> {
        let system = System::start(None, &[], &self.args.dir).await?;
        let version = Http::default()
            .query(&system.clickhouse(), "SELECT version()")
            .await;
        system.stop().await;
        Ok(version?.trim().to_owned())
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
fn whole(rate: f64) -> u32 {
    rate.clamp(1.0, f64::from(u32::MAX)) as u32
}

/// The day of a moment, UTC.
fn day(ms: UnixMs) -> String {
    moment::text(ms).chars().take_while(|c| *c != 'T').collect()
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
