//! What dedup costs by the keys that it knows. Its state is filled with so many, spread over the window, while its Sluice is
//! away; then that one starts, and takes the main load, whose own keys come on top.

use crate::Output;
use crate::load::{Load, Target, send};
use crate::report::middle;
use crate::run::{self, TENANT, Way};
use crate::system::{Shape, System, Tenant};
use clap::Args;
use indicatif::ProgressBar;
use ingestctl::http::Http;
use ingestctl::output::TextTable;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use sluice_common::clock::{Clock as _, SystemClock};
use sluice_common::disk::Dir;
use sluice_common::ids::{LogId, Name, Offset, RequestId, TenantId};
use sluice_common::limits::{
    ACTIVE_BUCKET_KEYS, LOG_QUEUE_BYTES, MAX_SEALED_BUCKETS, SEGMENT_BYTES, TAIL_CACHE_BYTES,
};
use sluice_common::process::Failure;
use sluice_common::record::{Holds, Identity, Placement, Record, RecordContent, RecordMeta, RequestSpan};
use sluice_normalizer::dedup::{Dedup, DedupError, DedupOptions, DedupStats, Workers};
use sluice_normalizer::log::{EmbeddedLog, LogOptions};
use sluice_normalizer::secret_check;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MILLION: u64 = 1_000_000;
const WINDOW_MS: u64 = 24 * 3_600_000;
/// Keys of a record, and of a place in the log.
const ROWS: u32 = 50_000;
/// The oldest keys are so much younger than the window, that all of them live until it was measured.
const SPARE_MS: u64 = 30 * 60_000;
/// `dedup.memory` and `dedup.max_bytes`: the config's defaults.
const MEMORY_BYTES: u64 = 256 << 20;
const MAX_BYTES: u64 = 100 << 30;
/// How long the state may take to be on disk once all keys are in it.
const SETTLE_DEADLINE: Duration = Duration::from_secs(300);
/// The load whose requests make room in the log for what is filled in.
const BEFORE: u32 = 1_000;

#[derive(Debug, Clone, Args)]
pub struct LiveKeysArgs {
    /// Millions of keys, spread over 24 hours; the first is what the others are held against.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 25, 50, 100], value_parser = clap::value_parser!(u64).range(1..=1_000))]
    millions: Vec<u64>,
    /// How long events are sent, each time.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Each so often; the middle one is shown.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Where the data is written, on a disk: on tmpfs an fsync costs nothing. 100 million keys take 2.6 GB, and as much again while
    /// they are merged.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

/// The main load before so many keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LiveKeys {
    pub millions: u64,
    pub stored_per_second: f64,
    /// Of all processes but the generator, in seconds a million events.
    pub cpu: f64,
    pub own_cpu: f64,
    /// Bytes of a sealed key, on disk and in memory.
    pub disk_bytes: f64,
    pub memory_bytes: f64,
    /// From the start of the process with that state, all of it sealed, until it is ready.
    pub ready_s: f64,
}

impl LiveKeysArgs {
    /// Measures and prints.
    ///
    /// # Errors
    /// What did not start, or was not stored as it was acknowledged.
    pub async fn run(self) -> Result<(), Failure> {
        let lines = each(&self.millions, (self.seconds, self.rounds), &self.dir).await?;
        match self.output {
            Output::Table => print!("{}", table(&lines)),
            Output::Json => println!("{}", serde_json::to_string_pretty(&lines)?),
        }
        Ok(())
    }
}

/// Each so many millions, in turn, round after round; the middle one of each.
///
/// # Errors
/// As [`LiveKeysArgs::run`].
pub async fn each(
    millions: &[u64],
    (seconds, rounds): (u64, u32),
    dir: &Path,
) -> Result<Vec<LiveKeys>, Failure> {
    let mut found: Vec<Vec<LiveKeys>> = vec![Vec::new(); millions.len()];
    for round in 0..rounds {
        for (millions, found) in millions.iter().zip(&mut found) {
            let load = Load {
                run: round,
                probed: false,
                ..Load::new((1_000, 16), Duration::from_secs(seconds))
            };
            let line = one(*millions, load, dir).await?;
            eprintln!(
                "{} million keys: {:.0} stored events/s, {:.2} CPU s/million",
                line.millions, line.stored_per_second, line.cpu
            );
            found.push(line);
        }
    }
    let stored = |line: &LiveKeys| line.stored_per_second;
    let found = found.into_iter();
    Ok(found.filter_map(|lines| middle(lines, stored)).collect())
}

async fn one(millions: u64, load: Load, dir: &Path) -> Result<LiveKeys, Failure> {
    let mut system = System::start(Some(Shape::AllInOne), &[Tenant::free(TENANT)], dir).await?;
    let outcome = on(&mut system, millions, load).await;
    system.stop().await;
    outcome
}

async fn on(system: &mut System, millions: u64, load: Load) -> Result<LiveKeys, Failure> {
    let records = millions * MILLION / u64::from(ROWS);
    make_room(system, records).await?;
    let mut filled = None;
    system
        .restart(|data| {
            filled = Some(fill(data, records)?);
            Ok(())
        })
        .await?;
    let ready = system.ready().last().copied().unwrap_or_default();
    let filled = filled.ok_or_else(|| Failure::new("no service has the state"))?;
    empty(system).await?;
    let report = run::measure(Way::Sluice(Shape::AllInOne), load, system).await?;
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let a_key = |bytes: u64| bytes as f64 / filled.keys_sealed as f64;
    Ok(LiveKeys {
        millions,
        stored_per_second: report.stored_per_second,
        cpu: report.cpu(),
        own_cpu: report.own_cpu(),
        disk_bytes: a_key(filled.disk_bytes),
        memory_bytes: a_key(filled.memory_bytes),
        ready_s: ready.as_secs_f64(),
    })
}

/// Sends until the log has so many records: a state that knows keys has decided as many.
async fn make_room(system: &System, records: u64) -> Result<(), Failure> {
    let target = [Target::events(
        system.edge.clone().unwrap_or_default(),
        Tenant::free(TENANT).key(),
    )];
    let (mut run, mut stored) = (BEFORE, 0);
    while stored < records {
        let load = Load {
            run,
            ..Load::new((1, 1), Duration::from_secs(2))
        };
        stored += send(load, &target, Rc::default()).await?.events();
        run += 1;
    }
    run::drain(&Http::default(), system, stored).await?;
    run::decided(system).await
}

async fn empty(system: &System) -> Result<(), Failure> {
    let sql = "TRUNCATE TABLE telemetry.events";
    Http::default().query(&system.clickhouse(), sql).await.map(drop)
}

/// Makes dedup's state anew, as if the last `records` of the log had been full of other keys.
fn fill(data: &Path, records: u64) -> Result<DedupStats, Failure> {
    let (log, secret_check, end) = log(&data.join("log"))?;
    let first = end
        .checked_sub(records)
        .ok_or_else(|| Failure::new("the log has too few records"))?;
    let dir = data.join("dedup");
    std::fs::remove_dir_all(&dir)?;
    let mut dedup = Dedup::open(DedupOptions {
        dir: Dir::from(dir.as_path()),
        log,
        secret_check,
        memory_bytes: MEMORY_BYTES,
        max_bytes: MAX_BYTES,
        active_keys: ACTIVE_BUCKET_KEYS,
        max_window_ms: WINDOW_MS,
        rotate_ms: WINDOW_MS / 6,
        workers: Workers::Threads,
    })?;
    let begins = SystemClock.now_ms() - WINDOW_MS + SPARE_MS;
    let mut dice = SmallRng::seed_from_u64(records);
    let bar = ProgressBar::new(records);
    bar.set_prefix("filling");
    for n in 0..records {
        let append_ms = begins + n * (WINDOW_MS - SPARE_MS) / records;
        let place = Placement {
            log,
            offset: first + n,
            append_ms,
            durable_below: 0,
        };
        absorb(&mut dedup, &record(place, &mut dice)?)?;
        bar.inc(1);
    }
    let until = Instant::now() + SETTLE_DEADLINE;
    let stats = loop {
        dedup.freeze();
        dedup.committed(end)?;
        let stats = dedup.stats();
        if (stats.frozen, stats.keys_active) == (0, 0) && stats.buckets <= MAX_SEALED_BUCKETS {
            break stats;
        }
        if Instant::now() >= until {
            return Err(Failure::new(format!("dedup's state does not settle: {stats:?}")));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    bar.finish_and_clear();
    // Buckets that are merged in place of others are named a commit later.
    dedup.committed(end)?;
    dedup.close()?;
    Ok(stats)
}

/// Its id, a hash of its secret, and where it ends.
fn log(dir: &Path) -> Result<(LogId, u64, Offset), Failure> {
    let options = LogOptions {
        dir: dir.to_owned(),
        max_bytes: 8 << 30,
        retain_ms: WINDOW_MS,
        reserve_bytes: None,
        segment_bytes: SEGMENT_BYTES as u64,
        tail_cache_bytes: TAIL_CACHE_BYTES,
        queue_bytes: LOG_QUEUE_BYTES,
        known_durable: 0,
    };
    let log = EmbeddedLog::open(options, Arc::new(SystemClock))?;
    let end = *log.durable_end().borrow();
    let told = (log.id(), secret_check(&log.hash_secret()), end);
    log.close();
    Ok(told)
}

fn absorb(dedup: &mut Dedup, record: &Record) -> Result<(), Failure> {
    loop {
        let absorbed = dedup.absorb(record);
        let stalled = matches!(absorbed, Err(DedupError::Stalled { .. }));
        dedup.committed(record.place.offset)?;
        if !stalled {
            return Ok(absorbed?);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A record of keys that nobody sends.
fn record(place: Placement, dice: &mut SmallRng) -> Result<Record, Failure> {
    let meta = RecordMeta {
        tenant: TenantId::new(TENANT)?,
        dataset: Name::new("events")?,
        table: Name::new("events")?,
        schema_version: 1,
        identity: Identity::Key,
        window_ms: WINDOW_MS,
        holds: Holds::Events,
    };
    let span = RequestSpan {
        request: RequestId(1),
        first_row: 0,
        rows: ROWS,
        taken: ROWS,
        rejected: 0,
        trace_id: 0,
        span_id: 0,
    };
    let content = RecordContent {
        column_bytes: 0,
        meta: serde_json::to_vec(&meta)?.into(),
        spans: vec![span],
        keys: (0..ROWS).map(|_| dice.random()).collect(),
        fingerprints: Vec::new(),
        body: bytes::Bytes::new(),
    };
    let mut frame = Vec::with_capacity(content.frame_bytes());
    content.write(place, &mut frame);
    Ok(Record::read(&frame.into())?)
}

fn table(lines: &[LiveKeys]) -> String {
    let mut table = TextTable::new(&[
        ">MILLION KEYS",
        ">STORED/S",
        ">RATIO",
        ">ALL US",
        ">SLUICE US",
        ">DISK B/KEY",
        ">MEMORY B/KEY",
        ">READY S",
    ]);
    let first = lines.first().map_or(f64::NAN, |line| line.stored_per_second);
    for line in lines {
        table.row([
            line.millions.to_string(),
            format!("{:.0}", line.stored_per_second),
            format!("{:.2}", line.stored_per_second / first),
            format!("{:.2}", line.cpu),
            format!("{:.2}", line.own_cpu),
            format!("{:.1}", line.disk_bytes),
            format!("{:.2}", line.memory_bytes),
            format!("{:.1}", line.ready_s),
        ]);
    }
    table.to_string()
}
