//! `ingestctl quota`: how much tenants may send.

use super::limits::{LimitArgs, in_words};
use super::{Change, Place, dataset, tenant_id};
use crate::exit::{EXIT_CODES, Exit};
use crate::output::TextTable;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sluice_common::ids::{Name, TenantId};
use sluice_common::process::Failure;

/// Shows and changes how much tenants may send.
///
/// A change returns when it is in force at every edge that --admin names; nothing is restarted, and a bucket
/// keeps the part that is left. It is for tenants of the tenants file: one in the config file is changed there.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub struct QuotaArgs {
    #[command(subcommand)]
    verb: QuotaVerb,
}

#[derive(Debug, Subcommand)]
enum QuotaVerb {
    Set(SetArgs),
    Show(ShowArgs),
}

/// Changes limits of a tenant. What is not named stays; `none` takes a limit away.
///
/// Examples:
///
///   ingestctl quota set acme --events-per-second 50k --bytes-per-second 64MiB
///
///   ingestctl quota set acme --dataset clicks --events-per-second 5k
///
///   ingestctl quota set acme --requests-per-second none --dry-run
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
struct SetArgs {
    #[arg(value_parser = tenant_id)]
    tenant: TenantId,
    /// The rates are of this dataset, and hold besides the tenant's own.
    #[arg(long, value_name = "NAME", value_parser = dataset,
        conflicts_with_all = ["burst", "concurrent_requests", "dry_run", "weight"])]
    dataset: Option<Name>,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    to: Place,
}

/// Shows the limits of all tenants, or of one.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
struct ShowArgs {
    #[arg(value_parser = tenant_id)]
    tenant: Option<TenantId>,
    #[command(flatten)]
    to: Place,
}

impl QuotaArgs {
    /// Does what was asked.
    ///
    /// # Errors
    /// [`Failure`] with what to do; then nothing has changed, unless it says so.
    pub async fn run(&self) -> Result<Exit, Failure> {
        match &self.verb {
            QuotaVerb::Set(args) => args.run().await,
            QuotaVerb::Show(args) => args.run().await,
        }
    }
}

impl SetArgs {
    async fn run(&self) -> Result<Exit, Failure> {
        let members = self.limits.patch(self.dataset.as_ref());
        if self.limits.names_nothing() {
            return Err(Failure::new(
                "nothing is to be changed: name a limit, as --events-per-second 50k; --help lists them",
            ));
        }
        let change = Change::Quota {
            id: &self.tenant,
            quota: &Value::Object(members),
            weight: self.limits.weight,
        };
        let done = self.to.make(change).await?;
        let in_force = !self.to.offline.offline;
        let document = json!({"tenant": self.tenant, "quota": done["quota"], "in_force": in_force});
        let text = || {
            let now = in_words(&done["quota"]);
            format!("{}: {now}\n\nIt is {}.", self.tenant, self.to.counts())
        };
        self.to.output.print(&document, text)?;
        Ok(Exit::Good)
    }
}

impl ShowArgs {
    async fn run(&self) -> Result<Exit, Failure> {
        let listed = self.to.list().await?;
        let asked = |one: &&Value| self.tenant.as_ref().is_none_or(|id| one["tenant"] == id.as_str());
        let tenants = listed["tenants"].as_array().map_or(&[][..], Vec::as_slice);
        let found: Vec<&Value> = tenants.iter().filter(asked).collect();
        if let (Some(id), true) = (&self.tenant, found.is_empty()) {
            return Err(Failure::new(format!(
                "there is no tenant {id}: `tenants list` shows all"
            )));
        }
        let documents = found
            .iter()
            .map(|one| json!({"tenant": one["tenant"], "weight": one["weight"], "quota": one["quota"]}));
        let documents: Vec<Value> = documents.collect();
        self.to.output.print(&documents, || table(&documents))?;
        Ok(Exit::Good)
    }
}

fn table(tenants: &[Value]) -> String {
    let mut table = TextTable::new(&["TENANT", ">WEIGHT", "QUOTA"]);
    for one in tenants {
        let id = one["tenant"].as_str().unwrap_or_default().to_owned();
        table.row([id, one["weight"].to_string(), in_words(&one["quota"])]);
    }
    table.to_string()
}
