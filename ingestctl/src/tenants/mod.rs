//! `ingestctl tenants`: who may send, and with which keys.
//!
//! A key is made here and shown once; only its hash goes to the edge ([`running`]) or into the tenants
//! file ([`offline`]).

mod limits;
mod offline;
mod quota;
mod running;

use crate::exit::{EXIT_CODES, Exit};
use crate::keys;
use crate::output::{OutputArgs, TextTable};
use crate::remote::AdminArgs;
use clap::{Args, Subcommand};
use limits::{LimitArgs, in_words};
use offline::OfflineArgs;
use serde_json::{Value, json};
use sluice_common::config::{Period, Quota, Weight};
use sluice_common::ids::{Name, TenantId};
use sluice_common::process::Failure;

pub use quota::QuotaArgs;

/// Adds, lists and removes tenants, and changes their keys.
///
/// Keys are `slc_ID_SECRET`, shown once and stored only as hashes, in the tenants file (`tenants_file`,
/// default DIR/tenants.yaml), which every edge watches. A change returns when it is in force at every edge
/// that --admin names. Tenants that stand in the config file are listed, and changed there. Where Sluice
/// does not run, --offline changes the file for its next start.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub struct TenantsArgs {
    #[command(subcommand)]
    verb: TenantsVerb,
}

#[derive(Debug, Subcommand)]
enum TenantsVerb {
    Add(AddArgs),
    List(ListArgs),
    Rotate(RotateArgs),
    Revoke(RevokeArgs),
}

/// Adds a tenant and shows its key, once.
///
/// Examples:
///
///   ingestctl tenants add acme --datasets orders,clicks --events-per-second 50k --bytes-per-second 64MiB
///
///   KEY=$(ingestctl tenants add acme --output json | jq -r .api_key)
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
struct AddArgs {
    /// The tenant's id: a-z 0-9 _ -, beginning with a letter or digit.
    #[arg(value_parser = tenant_id)]
    id: TenantId,
    /// Datasets that it may write; without this, all.
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',', value_parser = dataset)]
    datasets: Option<Vec<Name>>,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    to: Place,
}

/// Lists tenants, and their keys by the beginning of their hashes.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
struct ListArgs {
    #[command(flatten)]
    to: Place,
}

/// Gives a tenant a new key, shown once. The old ones end at once, or live on for --keep-old.
///
/// Examples:
///
///   ingestctl tenants rotate acme --keep-old 24h
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
struct RotateArgs {
    #[arg(value_parser = tenant_id)]
    id: TenantId,
    /// How long the old keys are still good: a whole number with s, m, h or d.
    #[arg(long, value_name = "TIME", value_parser = period)]
    keep_old: Option<Period>,
    #[command(flatten)]
    to: Place,
}

/// Ends one key of a tenant, or all of them, and the tenant with them. What it has sent stays.
///
/// Examples:
///
///   ingestctl tenants revoke acme
///
///   ingestctl tenants revoke acme --key 603f92ba
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
struct RevokeArgs {
    #[arg(value_parser = tenant_id)]
    id: TenantId,
    /// Only the key whose hash begins so, as `tenants list` shows it.
    #[arg(long, value_name = "BEGINNING", value_parser = beginning)]
    key: Option<String>,
    #[command(flatten)]
    to: Place,
}

/// Where a change goes, and how it is told.
#[derive(Debug, Args)]
struct Place {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    offline: OfflineArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What is asked of the tenants; a key only as its hash.
#[derive(Debug)]
enum Change<'a> {
    Add {
        id: &'a TenantId,
        datasets: Option<&'a [Name]>,
        quota: Quota,
        weight: Weight,
        sha256: String,
    },
    Rotate {
        id: &'a TenantId,
        sha256: String,
        keep_old_ms: u64,
    },
    Revoke {
        id: &'a TenantId,
        key: Option<&'a str>,
    },
    /// `quota`: what is to be changed of it, as in RFC 7396.
    Quota {
        id: &'a TenantId,
        quota: &'a Value,
        weight: Option<Weight>,
    },
}

impl Place {
    /// Makes the change, and says whether it is in force.
    async fn make(&self, change: Change<'_>) -> Result<Value, Failure> {
        if self.offline.offline {
            return self.offline.make(change);
        }
        running::make(&self.admin.remote()?, change).await
    }

    async fn list(&self) -> Result<Value, Failure> {
        if self.offline.offline {
            return self.offline.list();
        }
        Ok(self.admin.remote()?.get(running::ROUTE).await?)
    }

    /// When it counts, in words.
    fn counts(&self) -> &'static str {
        if self.offline.offline {
            "written; it counts within two seconds where Sluice runs on this file, else from its next start"
        } else {
            "in force"
        }
    }
}

impl TenantsArgs {
    /// Does what was asked.
    ///
    /// # Errors
    /// [`Failure`] with what to do; then nothing has changed, unless it says so.
    pub async fn run(&self) -> Result<Exit, Failure> {
        match &self.verb {
            TenantsVerb::Add(args) => args.run().await,
            TenantsVerb::List(args) => args.run().await,
            TenantsVerb::Rotate(args) => args.run().await,
            TenantsVerb::Revoke(args) => args.run().await,
        }
    }
}

impl AddArgs {
    async fn run(&self) -> Result<Exit, Failure> {
        let key = keys::fresh(self.id.as_str())?;
        let change = Change::Add {
            id: &self.id,
            datasets: self.datasets.as_deref(),
            quota: self.limits.quota()?,
            weight: self.limits.weight.unwrap_or_default(),
            sha256: keys::hash(&key),
        };
        self.to.make(change).await?;
        let in_force = !self.to.offline.offline;
        let document = json!({"tenant": self.id, "api_key": key, "in_force": in_force});
        let text = || {
            format!(
                "tenant   {}\napi key  {key}\n\nIt is {}. The key is not shown again.",
                self.id,
                self.to.counts()
            )
        };
        self.to.output.print(&document, text)?;
        Ok(Exit::Good)
    }
}

impl RotateArgs {
    async fn run(&self) -> Result<Exit, Failure> {
        let key = keys::fresh(self.id.as_str())?;
        let keep_old_ms = self.keep_old.map_or(0, Period::ms);
        let change = Change::Rotate {
            id: &self.id,
            sha256: keys::hash(&key),
            keep_old_ms,
        };
        let done = self.to.make(change).await?;
        let kept = done["old_keys_kept"].as_u64().unwrap_or(0);
        let in_force = !self.to.offline.offline;
        let document =
            json!({"tenant": self.id, "api_key": key, "old_keys_kept": kept, "in_force": in_force});
        let old = if kept > 0 {
            format!("{kept} old keys are good for {} s more.", keep_old_ms / 1_000)
        } else {
            "The old keys have ended.".into()
        };
        let text = || {
            format!(
                "tenant   {}\napi key  {key}\n\nIt is {}. {old} The key is not shown again.",
                self.id,
                self.to.counts()
            )
        };
        self.to.output.print(&document, text)?;
        Ok(Exit::Good)
    }
}

impl RevokeArgs {
    async fn run(&self) -> Result<Exit, Failure> {
        let change = Change::Revoke {
            id: &self.id,
            key: self.key.as_deref(),
        };
        let done = self.to.make(change).await?;
        let ended = done["keys_ended"].as_u64().unwrap_or(0);
        let in_force = !self.to.offline.offline;
        let document = json!({"tenant": self.id, "keys_ended": ended, "in_force": in_force});
        let what = if self.key.is_some() {
            "key"
        } else {
            "tenant and its keys"
        };
        let text = || {
            format!(
                "{} of {} revoked: {ended} keys ended. It is {}.",
                what,
                self.id,
                self.to.counts()
            )
        };
        self.to.output.print(&document, text)?;
        Ok(Exit::Good)
    }
}

impl ListArgs {
    async fn run(&self) -> Result<Exit, Failure> {
        let listed = self.to.list().await?;
        let refused = listed["refused"].as_str();
        if let Some(reason) = refused {
            eprintln!("the tenants file on disk is not in force: {reason}");
        }
        self.to.output.print(&listed["tenants"], || table(&listed))?;
        Ok(if refused.is_some() {
            Exit::Attention
        } else {
            Exit::Good
        })
    }
}

fn table(listed: &Value) -> String {
    let mut table = TextTable::new(&["TENANT", "SOURCE", "DATASETS", ">WEIGHT", "QUOTA", "KEYS"]);
    for one in listed["tenants"].as_array().into_iter().flatten() {
        let keys = one["keys"].as_array().into_iter().flatten().map(|key| {
            let beginning = key["key"].as_str().unwrap_or_default();
            let until = key["until"].as_str().map(|until| format!(" (until {until})"));
            beginning.to_owned() + &until.unwrap_or_default()
        });
        let keys: Vec<String> = keys.collect();
        let datasets = one["datasets"].as_array().map_or_else(
            || "all".to_owned(),
            |names| {
                names
                    .iter()
                    .filter_map(Value::as_str)
                    .collect::<Vec<_>>()
                    .join(",")
            },
        );
        let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
        let (weight, quota) = (one["weight"].to_string(), in_words(&one["quota"]));
        let keys = keys.join(", ");
        table.row([text("tenant"), text("source"), datasets, weight, quota, keys]);
    }
    table.to_string()
}

fn tenant_id(text: &str) -> Result<TenantId, String> {
    TenantId::new(text).map_err(|error| error.to_string())
}

fn dataset(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|error| error.to_string())
}

fn period(text: &str) -> Result<Period, String> {
    text.parse()
}

fn beginning(text: &str) -> Result<String, String> {
    let sound = (4..=64).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_hexdigit());
    if sound {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("4 to 64 hex digits, as `tenants list` shows them: never the key itself".into())
    }
}
