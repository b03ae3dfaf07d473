//! `ingestctl check`: is the config valid, is ClickHouse there, what is degraded.

mod capacity;
mod ddl;
mod finding;
mod kafka;
mod production;
mod server;

use crate::exit::{EXIT_CODES, Exit};
use crate::output::OutputArgs;
use clap::Args;
use finding::{Findings, Level};
use serde_json::json;
use sluice_common::clock::{Clock as _, SystemClock};
use sluice_common::config::{Loaded, schema};
use sluice_common::ids::Name;
use sluice_common::process::Failure;
use sluice_common::tenants_file::{self, TenantsFile};
use sluice_normalizer::start::compile;
use std::io::Write as _;
use std::path::PathBuf;

/// Validates the config, asks ClickHouse, and says what is degraded.
///
/// Of each table it says whether rows are stored exactly once, and if not, why: another engine, no provenance
/// columns, no token window, views that run at each insert, a TTL shorter than events wait. Of Kafka: whether its
/// topics are there. Of the config:
/// whether what it allows fits into memory and disk; with --production also what is fit for development only.
/// Exit codes: 0 good, 1 unusable, 2 usable but degraded.
///
/// Examples:
///
///   ingestctl check --config sluice.yaml --production
///
///   ingestctl check --config sluice.yaml --ddl --replicated --on-cluster main
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
    /// Say too what is fit for development only: no TLS, no internal token, the demo tenant, unsynced tables.
    #[arg(long)]
    production: bool,
    /// Print the tables' DDL, each part with its reason, and end.
    #[arg(long)]
    ddl: bool,
    /// With --ddl: for replicas, with the macros {shard} and {replica}. At-least-once until that is tested.
    #[arg(long, requires = "ddl")]
    replicated: bool,
    /// With --ddl: on every server of this cluster.
    #[arg(long, value_name = "NAME", requires = "ddl", value_parser = cluster)]
    on_cluster: Option<Name>,
    /// Print the JSON Schema of config files and end.
    #[arg(long)]
    schema: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl CheckArgs {
    /// Checks, prints, and says how bad it is.
    ///
    /// # Errors
    /// Where stdout cannot be written.
    pub async fn run(self) -> Result<Exit, Failure> {
        if self.schema {
            return print_schema();
        }
        let mut findings = Findings::default();
        match Loaded::read(self.config.as_deref(), &self.data_dir) {
            Err(error) => findings.unusable("config", error.to_string()),
            Ok(loaded) if self.ddl => return self.print_ddl(&loaded),
            Ok(loaded) => self.look(&loaded, &mut findings).await,
        }
        let worst = findings.worst();
        self.print(&findings, worst)?;
        Ok(match worst {
            Level::Good => Exit::Good,
            Level::Unusable => Exit::Failed,
            Level::Degraded => Exit::Attention,
        })
    }

    async fn look(&self, loaded: &Loaded, findings: &mut Findings) {
        match compile(loaded) {
            Ok(datasets) => findings.good("config", format!("valid; {datasets} datasets")),
            Err(error) => findings.unusable("config", error.to_string()),
        }
        self.tenants(loaded, findings);
        capacity::look(loaded, findings);
        if self.production {
            production::look(loaded, self.config.is_some(), findings);
        }
        certificates(loaded, findings);
        kafka::find(loaded, findings).await;
        let url = self.clickhouse_url.as_ref().or(loaded.clickhouse_url.as_ref());
        match url {
            Some(url) => server::look(loaded, url, self.production, findings).await,
            None => findings.good(
                "clickhouse",
                "no url: `ingestctl up` starts one; pass --clickhouse-url to have its tables checked",
            ),
        }
    }

    fn tenants(&self, loaded: &Loaded, findings: &mut Findings) {
        let filed = match TenantsFile::at(loaded.tenants_file()).read() {
            Ok(filed) => filed.tenants,
            Err(error) => return findings.unusable("tenants", error.to_string()),
        };
        let problems = tenants_file::problems(&filed, &loaded.config.tenants);
        if !problems.is_empty() {
            return findings.unusable("tenants", problems.join("; "));
        }
        if loaded.config.tenants.is_empty() && filed.is_empty() && self.config.is_some() {
            findings.degraded(
                "tenants",
                "no tenant: every request will be answered 401; `ingestctl tenants add` makes one",
            );
        }
    }

    fn print(&self, findings: &Findings, worst: Level) -> Result<(), Failure> {
        let document = json!({"result": worst, "findings": findings.all()});
        self.output.print(&document, || {
            let lines = findings
                .all()
                .iter()
                .map(|one| format!("{:<9} {:<24} {}\n", one.level.name(), one.what, one.message));
            lines.collect::<String>() + worst.name()
        })
    }

    fn print_ddl(&self, loaded: &Loaded) -> Result<Exit, Failure> {
        let style = ddl::Style {
            replicated: self.replicated,
            cluster: self.on_cluster.clone(),
        };
        let text = ddl::text(loaded, &style);
        self.output.print(&json!({"ddl": text}), || text.clone())?;
        Ok(Exit::Good)
    }
}

/// Whether the certificates and keys of the config can be used, and how long.
fn certificates(loaded: &Loaded, findings: &mut Findings) {
    let listeners = [loaded.edge_tls(), loaded.inner_listener_tls()];
    for files in listeners.into_iter().flatten() {
        let (what, name) = (files.cert.key, files.name);
        let validity = files.check();
        match validity.map(|validity| validity.warning(SystemClock.now_ms())) {
            Err(error) => findings.unusable(what, error.to_string()),
            Ok(Some(warning)) => findings.degraded(what, format!("the certificate {warning}")),
            Ok(None) => findings.good(what, format!("certificate and key of `{name}` belong together")),
        }
    }
}

fn cluster(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|error| error.to_string())
}

fn print_schema() -> Result<Exit, Failure> {
    let schema = serde_json::to_string_pretty(&schema::json())?;
    match writeln!(std::io::stdout().lock(), "{schema}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(Exit::Good),
    }
}
