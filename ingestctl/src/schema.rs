//! `ingestctl schema drift`: what events have and their datasets do not, and what could be done.

use crate::exit::{EXIT_CODES, Exit};
use crate::output::{OutputArgs, TextTable};
use crate::remote::AdminArgs;
use clap::{Args, Subcommand};
use sluice_common::process::Failure;
use sluice_normalizer::intake::{DatasetDrift, DriftReport};
use std::fmt::Write as _;

/// What events show of the datasets' schemas.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub struct SchemaArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Drift(DriftArgs),
}

/// Members that no field reads and rows that were rejected, since the normalizer started; with a field
/// that could be added and its ALTER. Nothing is changed.
///
/// To add a column: run the ALTER, then add the field to the config.
///
/// Exit codes: 0 no drift, 2 some.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub struct DriftArgs {
    /// Only this dataset.
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl SchemaArgs {
    /// Asks, prints, and says whether there is any.
    ///
    /// # Errors
    /// Where the normalizer does not answer, or has no such dataset.
    pub async fn run(self) -> Result<Exit, Failure> {
        let Verb::Drift(args) = self.verb;
        let answer = args.admin.remote()?.get("/admin/v1/schema/drift").await?;
        let mut report: DriftReport = serde_json::from_value(answer)?;
        if let Some(wanted) = &args.dataset {
            report.datasets.retain(|one| one.dataset == *wanted);
            if report.datasets.is_empty() {
                return Err(Failure::new(format!("there is no dataset {wanted:?}")));
            }
        }
        args.output.print(&report, || text(&report))?;
        Ok(if report.datasets.iter().all(is_clean) {
            Exit::Good
        } else {
            Exit::Attention
        })
    }
}

fn is_clean(dataset: &DatasetDrift) -> bool {
    dataset.unknown.is_empty() && dataset.unknown_others == 0 && dataset.rejected.is_empty()
}

fn text(report: &DriftReport) -> String {
    let mut text = String::new();
    for dataset in &report.datasets {
        let _ = writeln!(text, "dataset {}, table {}", dataset.dataset, dataset.table);
        if is_clean(dataset) {
            text.push_str("  no drift\n");
        }
        if !dataset.unknown.is_empty() {
            let mut table = TextTable::new(&["unknown member", "looks like", ">events", "field to add"]);
            for one in &dataset.unknown {
                let field = one.proposal.as_ref().map_or("-", |proposal| &proposal.field);
                let shape = format!("{:?}", one.shape).to_lowercase();
                // A sender chose the name.
                let name = one.name.escape_debug().to_string();
                table.row([name, shape, one.count.to_string(), field.to_owned()]);
            }
            let _ = writeln!(text, "{table}");
        }
        if dataset.unknown_others > 0 {
            let _ = writeln!(text, "and {} further unknown members", dataset.unknown_others);
        }
        if !dataset.rejected.is_empty() {
            let mut table = TextTable::new(&["rejected field", "code", ">rows"]);
            for one in &dataset.rejected {
                table.row([one.field.clone(), one.code.clone(), one.count.to_string()]);
            }
            let _ = writeln!(text, "{table}");
        }
        for proposal in dataset.unknown.iter().filter_map(|one| one.proposal.as_ref()) {
            let _ = writeln!(text, "{};", proposal.alter);
        }
        text.push('\n');
    }
    text
}
