//! `ingestctl check`: is the config valid, is ClickHouse there, what is degraded.

use crate::exit::{EXIT_CODES, Exit};
use crate::output::OutputArgs;
use crate::pipeline::target;
use clap::Args;
use serde_json::json;
use sluice_common::clock::{Clock as _, SharedClock, SystemClock};
use sluice_common::config::Loaded;
use sluice_common::metrics::Metrics;
use sluice_common::process::Failure;
use sluice_normalizer::start::compile;
use sluice_sink_writer::report::TableState;
use sluice_sink_writer::{SinkWriter, ddl};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Validates the config, asks ClickHouse, and says what is degraded.
///
/// Exit codes: 0 good, 1 unusable, 2 usable but degraded.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub struct CheckArgs {
    /// The config file; without it the default config counts.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Relative paths of the config are taken from here.
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data_dir: PathBuf,
    /// A ClickHouse to ask, instead of clickhouse.url.
    #[arg(long, value_name = "URL")]
    clickhouse_url: Option<String>,
    /// Print the tables' DDL and end.
    #[arg(long)]
    ddl: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// How bad it is; the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Good,
    Degraded,
    Unusable,
}

struct Finding {
    level: Level,
    what: String,
    message: String,
}

const DEADLINE: Duration = Duration::from_secs(10);
/// Clocks further apart than this make freshness and age bounds wrong.
const MAX_SKEW_MS: u64 = 2_000;
/// Upper estimate of what one remembered key costs on disk, filter included.
const DEDUP_BYTES_A_KEY: u64 = 40;

impl CheckArgs {
    /// Checks, prints, and says how bad it is.
    ///
    /// # Errors
    /// Where stdout cannot be written.
    pub async fn run(self) -> Result<Exit, Failure> {
        let mut findings = Vec::new();
        match Loaded::read(self.config.as_deref(), &self.data_dir) {
            Err(error) => findings.push(finding(Level::Unusable, "config", error.to_string())),
            Ok(loaded) if self.ddl => return print_ddl(&loaded),
            Ok(loaded) => self.look(&loaded, &mut findings).await,
        }
        let worst = findings.iter().map(|one| one.level).max().unwrap_or(Level::Good);
        self.print(&findings, worst)?;
        Ok(match worst {
            Level::Good => Exit::Good,
            Level::Unusable => Exit::Failed,
            Level::Degraded => Exit::Attention,
        })
    }

    async fn look(&self, loaded: &Loaded, findings: &mut Vec<Finding>) {
        match compile(loaded) {
            Ok(schemas) => findings.push(finding(
                Level::Good,
                "config",
                format!("valid; {} datasets", schemas.len()),
            )),
            Err(error) => findings.push(finding(Level::Unusable, "config", error.to_string())),
        }
        if loaded.config.tenants.is_empty() && self.config.is_some() {
            findings.push(finding(
                Level::Degraded,
                "tenants",
                "no tenant: every request will be answered 401".into(),
            ));
        }
        certificates(loaded, findings);
        dedup_fits(loaded, findings);
        let url = self
            .clickhouse_url
            .clone()
            .or_else(|| loaded.clickhouse_url.clone());
        match url {
            Some(url) => ask(loaded, &url, findings).await,
            None => findings.push(finding(
                Level::Good,
                "clickhouse",
                "no url: `ingestctl up` starts one; pass --clickhouse-url to have its tables checked".into(),
            )),
        }
    }

    fn print(&self, findings: &[Finding], worst: Level) -> Result<(), Failure> {
        let list = findings
            .iter()
            .map(|one| json!({"level": name(one.level), "what": one.what, "message": one.message}));
        let document = json!({"result": name(worst), "findings": list.collect::<Vec<_>>()});
        self.output.print(&document, || {
            let lines = findings
                .iter()
                .map(|one| format!("{:<9} {:<24} {}\n", name(one.level), one.what, one.message));
            lines.collect::<String>() + name(worst)
        })
    }
}

/// Whether the certificates and keys of the config can be used, and how long.
fn certificates(loaded: &Loaded, findings: &mut Vec<Finding>) {
    let listeners = [loaded.edge_tls(), loaded.inner_listener_tls()];
    for files in listeners.into_iter().flatten() {
        let (what, name) = (files.cert.key, files.name);
        let validity = files.check();
        let warned = validity.map(|validity| validity.warning(SystemClock.now_ms()));
        findings.push(match warned {
            Err(error) => finding(Level::Unusable, what, error.to_string()),
            Ok(Some(warning)) => finding(Level::Degraded, what, format!("the certificate {warning}")),
            Ok(None) => finding(
                Level::Good,
                what,
                format!("certificate and key of `{name}` belong together"),
            ),
        });
    }
}

async fn ask(loaded: &Loaded, url: &str, findings: &mut Vec<Finding>) {
    let clock: SharedClock = Arc::new(SystemClock);
    let target = match target(loaded, url) {
        Ok(target) => target,
        Err(error) => {
            findings.push(finding(Level::Unusable, "clickhouse.ca", error.to_string()));
            return;
        }
    };
    let sink = SinkWriter::new(&target, &loaded.config.datasets, &Metrics::detached());
    let report = sink.describe_all(&clock, DEADLINE).await;
    match report.server {
        Err(error) => {
            findings.push(finding(Level::Unusable, "clickhouse", format!("{url}: {error}")));
            return;
        }
        Ok(facts) => {
            let skew = facts.clock_skew_ms;
            findings.push(finding(
                Level::Good,
                "clickhouse",
                format!("{url}: version {}", facts.version),
            ));
            if skew.unsigned_abs() > MAX_SKEW_MS {
                let message = format!("its clock is {skew} ms from ours: set both by NTP");
                findings.push(finding(Level::Degraded, "clock", message));
            }
        }
    }
    for table in report.tables {
        let what = format!("table {}", table.table);
        match table.state {
            TableState::Good => findings.push(finding(Level::Good, &what, "exactly once".into())),
            TableState::Missing => findings.push(finding(
                Level::Good,
                &what,
                "not there yet: it is created at start".into(),
            )),
            TableState::Degraded(notes) => findings.push(finding(Level::Degraded, &what, notes.join("; "))),
            TableState::Unusable(reasons) => {
                findings.push(finding(Level::Unusable, &what, reasons.join("; ")))
            }
            TableState::Unreachable(error) => {
                findings.push(finding(Level::Unusable, &what, error.to_string()))
            }
        }
    }
}

fn dedup_fits(loaded: &Loaded, findings: &mut Vec<Finding>) {
    let dedup = &loaded.config.dedup;
    let tenants = loaded.config.tenants.len().max(1) as u64;
    let need = dedup
        .keys_per_tenant
        .0
        .saturating_mul(tenants)
        .saturating_mul(DEDUP_BYTES_A_KEY);
    if need > dedup.max_bytes.0 {
        let message = format!(
            "{tenants} tenants x dedup.keys_per_tenant x {DEDUP_BYTES_A_KEY} B is up to {} GiB, over dedup.max_bytes: \
             lower keys_per_tenant to what you expect within the window",
            need >> 30
        );
        findings.push(finding(Level::Degraded, "dedup", message));
    }
}

fn print_ddl(loaded: &Loaded) -> Result<Exit, Failure> {
    let database = &loaded.config.clickhouse.database;
    println!("{};\n", ddl::database(database));
    for dataset in &loaded.config.datasets {
        println!("{};\n", ddl::table(dataset, database));
    }
    println!("{};", ddl::dead_letters(database));
    println!("{};", ddl::ledger(database));
    Ok(Exit::Good)
}

fn finding(level: Level, what: &str, message: String) -> Finding {
    Finding {
        level,
        what: what.to_owned(),
        message,
    }
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Good => "good",
        Level::Degraded => "degraded",
        Level::Unusable => "unusable",
    }
}
