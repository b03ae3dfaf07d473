//! One run: start, send, drain, let merges end, check the ledger, report.

use crate::admin::Admin;
use crate::freshness::{Probe, SERVICE};
use crate::latency::Latency;
use crate::load::{self, Ledger, Load, Target};
use crate::report::{self, Process, Report};
use crate::system::{Shape, System, Tenant};
use crate::usage::Usage;
use indicatif::{ProgressBar, ProgressStyle};
use ingestctl::http::Http;
use sluice_common::clock::{Clock as _, SystemClock};
use sluice_common::process::Failure;
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// What was acknowledged is in ClickHouse within this time after the load, or the run fails.
const DRAIN_DEADLINE: Duration = Duration::from_secs(180);
/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long merges may go on; what they use until then counts.
const MERGES_DEADLINE: Duration = Duration::from_secs(30);

/// The tenant of a run, and the first one of a run with several.
pub const TENANT: &str = "bench";

/// So many tenants without limits.
#[must_use]
pub fn tenants(many: u32) -> Vec<Tenant> {
    let more = (1..many).map(|n| Tenant::free(format!("{TENANT}-{n}")));
    std::iter::once(Tenant::free(TENANT)).chain(more).collect()
}

/// What takes the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through Sluice.
    Sluice(Shape),
    /// JSONEachRow into ClickHouse, which gathers requests itself and answers once they are stored.
    AsyncInsert,
    /// JSONEachRow into ClickHouse, one block a request.
    PlainInsert,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Sluice(Shape::AllInOne) => "sluice all-in-one",
            Self::Sluice(Shape::ThreeProcesses) => "sluice three-processes",
            Self::AsyncInsert => "clickhouse async insert",
            Self::PlainInsert => "clickhouse plain insert",
        }
    }

    fn shape(self) -> Option<Shape> {
        match self {
            Self::Sluice(shape) => Some(shape),
            Self::AsyncInsert | Self::PlainInsert => None,
        }
    }
}

/// Blocks of a size that ClickHouse's documentation recommends, over a few connections.
const PLAIN_EVENTS: usize = 10_000;
const PLAIN_CONNECTIONS: u32 = 4;

/// A load through every way, `rounds` times in turn; the middle report of each.
///
/// # Errors
/// As [`run`].
pub async fn in_turn(ways: &[Way], load: Load, rounds: u32, dir: &Path) -> Result<Vec<Report>, Failure> {
    let mut reports: Vec<Vec<Report>> = vec![Vec::new(); ways.len()];
    for round in 0..rounds {
        for (way, reports) in ways.iter().zip(&mut reports) {
            let report = run(*way, through(*way, round, load), dir).await?;
            eprintln!(
                "{}: {:.0} stored events/s, {:.2} CPU s/million",
                report.system,
                report.stored_per_second,
                report.cpu()
            );
            reports.push(report);
        }
    }
    Ok(reports.into_iter().filter_map(report::median).collect())
}

/// A load of one round, as a way takes it best.
fn through(way: Way, round: u32, load: Load) -> Load {
    let (events_per_request, connections) = match way {
        Way::PlainInsert => (PLAIN_EVENTS, PLAIN_CONNECTIONS),
        Way::Sluice(_) | Way::AsyncInsert => (load.events_per_request, load.connections),
    };
    Load {
        run: round,
        events_per_request,
        connections,
        now_ms: SystemClock.now_ms(),
        ..load
    }
}

/// Runs `load` through `way`.
///
/// # Errors
/// Where something does not start, is not acknowledged, or ClickHouse holds anything but each
/// acknowledged event once.
pub async fn run(way: Way, load: Load, dir: &Path) -> Result<Report, Failure> {
    let system = System::start(way.shape(), &[Tenant::free(TENANT)], dir).await?;
    let outcome = measure(way, load, &system).await;
    system.stop().await;
    outcome
}

/// Runs `load` through a system that stands.
///
/// # Errors
/// As [`run`].
pub async fn measure(way: Way, load: Load, system: &System) -> Result<Report, Failure> {
    let http = Http::default();
    let targets = match &system.edge {
        Some(edge) => tenants(load.tenants)
            .iter()
            .map(|tenant| Target::events(edge, tenant.key()))
            .collect(),
        None => vec![direct(way, system, &http).await?],
    };
    let over = Rc::new(Cell::new(false));
    let probe = system.edge.clone().filter(|_| load.probed).map(|edge| {
        let probe = Probe {
            edge,
            key: Tenant::free(TENANT).key(),
            clickhouse: system.clickhouse(),
            run: load.run,
            now_ms: load.now_ms,
        };
        tokio::task::spawn_local(probe.run(Rc::clone(&over)))
    });
    let before = system.usage();
    let begun = Instant::now();
    let (ledger, seen) = send(way, load, &targets, system).await?;
    let stored = load.stored(&ledger);
    if load.distinct.is_some() || !load.probed {
        // Before ClickHouse is asked: each question reads all rows, and is paid with its CPU.
        decided(system).await?;
    }
    drain(&http, system, stored.iter().sum()).await?;
    let stored_after = begun.elapsed();
    over.set(true);
    let freshness = match probe {
        Some(probe) => Freshness::seen(&timeout(DRAIN_DEADLINE, probe).await???),
        None => Freshness::told(system).await?,
    };
    let merging = merges_end(&http, system).await?;
    let after = system.usage();
    check(&http, system, &stored).await?;
    if merging {
        eprintln!("  merges still ran after {} s", MERGES_DEADLINE.as_secs());
    }
    Ok(told(
        way,
        load,
        &ledger,
        &Found {
            stored_after,
            freshness,
            before,
            after,
            ready: system.ready().to_vec(),
            seen,
        },
    ))
}

/// What our services held while events were sent: seconds since the beginning, MiB.
#[derive(Debug, Default)]
struct Seen {
    resident: Vec<(f64, f64)>,
    backlog: Vec<(f64, f64)>,
}

/// Sends under a progress bar, and looks at our services meanwhile.
async fn send(way: Way, load: Load, targets: &[Target], system: &System) -> Result<(Ledger, Seen), Failure> {
    let bar = ProgressBar::new(load.time.as_secs());
    if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:30} {elapsed}/{len}s {msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(way.name());
    let acknowledged = Rc::new(Cell::new(0));
    let mut seen = Seen::default();
    let admin = system.edge.as_ref().map(|_| Admin::new(&system.admin));
    let sending = load::send(load, targets, Rc::clone(&acknowledged));
    tokio::pin!(sending);
    let ledger = loop {
        match timeout(LOOK_EVERY, &mut sending).await {
            Ok(ledger) => break ledger,
            Err(_) => {
                bar.set_position(bar.elapsed().as_secs());
                bar.set_message(format!("{} events", acknowledged.get()));
                let at = bar.elapsed().as_secs_f64();
                seen.resident.push((at, mib(system.resident())));
                if let Some(admin) = &admin {
                    // The load goes on while its answer is waited for.
                    tokio::select! {
                        biased;
                        ledger = &mut sending => break ledger,
                        bytes = admin.backlog_bytes() => seen.backlog.push((at, bytes? / f64::from(1 << 20))),
                    }
                }
            }
        }
    };
    bar.finish_and_clear();
    Ok((ledger?, seen))
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A table like Sluice's without provenance, and the statement that fills it.
async fn direct(way: Way, system: &System, http: &Http) -> Result<Target, Failure> {
    let table = "CREATE TABLE telemetry.events (event_id String, timestamp DateTime64(3, 'UTC'), \
        service LowCardinality(String), host LowCardinality(String), name LowCardinality(String), \
        duration_ms Nullable(Float64), status Nullable(UInt16), size_kib Nullable(UInt64), \
        attributes Map(LowCardinality(String), String)) ENGINE = MergeTree \
        PARTITION BY toDate(timestamp) ORDER BY (service, timestamp)";
    http.query(&system.clickhouse(), "CREATE DATABASE IF NOT EXISTS telemetry")
        .await?;
    http.query(&system.clickhouse(), table).await?;
    let settings = match way {
        Way::AsyncInsert => "async_insert=1&wait_for_async_insert=1",
        Way::PlainInsert | Way::Sluice(_) => "async_insert=0",
    };
    Ok(Target {
        address: system.clickhouse_address(),
        path: format!("/?query=INSERT%20INTO%20telemetry.events%20FORMAT%20JSONEachRow&{settings}"),
        key: None,
    })
}

/// Waits until so many events are in ClickHouse.
///
/// # Errors
/// Where they are not in time.
pub async fn drain(http: &Http, system: &System, events: u64) -> Result<(), Failure> {
    let sql = format!("SELECT count() FROM telemetry.events WHERE service != '{SERVICE}'");
    let until = Instant::now() + DRAIN_DEADLINE;
    let bar = ProgressBar::new(events);
    bar.set_prefix("draining");
    loop {
        let count: u64 = http.query(&system.clickhouse(), &sql).await?.trim().parse()?;
        bar.set_position(count);
        if count >= events {
            bar.finish_and_clear();
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(Failure::new(format!(
                "{count} of {events} acknowledged events are stored"
            )));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until all that was acknowledged is out of the log, repeats too: they must not be stored later.
///
/// # Errors
/// Where it is not in time.
pub async fn decided(system: &System) -> Result<(), Failure> {
    let (admin, until) = (Admin::new(&system.admin), Instant::now() + DRAIN_DEADLINE);
    while admin.backlog_bytes().await? > 0.0 {
        if Instant::now() >= until {
            return Err(Failure::new("the log does not get empty"));
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Waits for a second without merges; whether they still ran at the deadline.
async fn merges_end(http: &Http, system: &System) -> Result<bool, Failure> {
    let until = Instant::now() + MERGES_DEADLINE;
    let mut quiet = 0;
    while quiet < 5 {
        let running = http
            .query(&system.clickhouse(), "SELECT count() FROM system.merges")
            .await?;
        quiet = if running.trim() == "0" { quiet + 1 } else { 0 };
        if Instant::now() >= until {
            return Ok(true);
        }
        sleep(Duration::from_millis(200)).await;
    }
    Ok(false)
}

/// Every connection's ids are there, each once, none missing and none besides.
async fn check(http: &Http, system: &System, stored: &[u64]) -> Result<(), Failure> {
    let sql = format!(
        "SELECT substring(event_id, 9, 8) AS connection, count(), uniqExact(event_id), max(substring(event_id, 17)) \
         FROM telemetry.events WHERE service != '{SERVICE}' GROUP BY connection ORDER BY connection FORMAT TSV"
    );
    let answer = http.query(&system.clickhouse(), &sql).await?;
    let numbered = (0..).zip(stored);
    let expected: String = numbered
        .filter(|(_, events)| **events > 0)
        .map(|(connection, events): (u32, _)| {
            format!("{connection:08x}\t{events}\t{events}\t{:016x}\n", events - 1)
        })
        .collect();
    if answer == expected {
        return Ok(());
    }
    Err(Failure::new(format!(
        "ClickHouse holds something else than what was acknowledged once\nexpected\n{expected}found\n{answer}"
    )))
}

/// From an acknowledgement to the moment a row can be queried, in milliseconds.
#[derive(Debug)]
struct Freshness {
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    probes: u64,
}

impl Freshness {
    /// As a reader saw it.
    fn seen(probes: &Latency) -> Self {
        Self {
            p50_ms: probes.percentile_ms(50),
            p95_ms: probes.percentile_ms(95),
            probes: probes.count(),
        }
    }

    /// As Sluice says, from the append on; nothing without one.
    async fn told(system: &System) -> Result<Self, Failure> {
        let all = Admin::new(&system.admin)
            .histogram("sluice_freshness_seconds")
            .await?;
        let ms = |quantile| all.quantile(quantile).map(|seconds| seconds * 1e3);
        Ok(Self {
            p50_ms: ms(0.5),
            p95_ms: ms(0.95),
            probes: 0,
        })
    }
}

struct Found {
    stored_after: Duration,
    freshness: Freshness,
    before: Vec<(&'static str, Usage)>,
    after: Vec<(&'static str, Usage)>,
    ready: Vec<Duration>,
    seen: Seen,
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn told(way: Way, load: Load, ledger: &Ledger, found: &Found) -> Report {
    let events = ledger.events() as f64;
    // Our services come first.
    let ready = found.ready.iter().map(|took| Some(took.as_secs_f64() * 1e3));
    let ready = ready.chain(std::iter::repeat(None));
    let processes = found.before.iter().zip(&found.after).zip(ready);
    let processes = processes.map(|(((name, before), (_, after)), ready_ms)| Process {
        name: (*name).to_owned(),
        cpu_seconds_per_million: after.cpu.saturating_sub(before.cpu).as_secs_f64() / events * 1e6,
        peak_rss_mib: mib(after.peak_rss_bytes),
        ready_ms,
    });
    Report {
        system: way.name().to_owned(),
        events_per_request: load.events_per_request,
        connections: load.connections,
        events: ledger.events(),
        acknowledged_per_second: events / ledger.took.as_secs_f64(),
        stored_per_second: events / found.stored_after.as_secs_f64(),
        processes: processes.collect(),
        ack_p50_ms: ledger.latency.percentile_ms(50),
        ack_p99_ms: ledger.latency.percentile_ms(99),
        freshness_p50_ms: found.freshness.p50_ms,
        freshness_p95_ms: found.freshness.p95_ms,
        probes: found.freshness.probes,
        refused: ledger.refused,
        resident: found.seen.resident.clone(),
        backlog: found.seen.backlog.clone(),
    }
}
