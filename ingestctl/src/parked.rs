//! `ingestctl parked`: what is set aside because its table is in trouble, and how to mend it.

use crate::exit::{EXIT_CODES, Exit};
use crate::output::{OutputArgs, TextTable};
use crate::remote::AdminArgs;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sluice_common::process::Failure;

/// Shows rows that are set aside because their table is in trouble, and mends what does not heal by itself.
///
/// A table that ClickHouse does not write to does not hold up others: its rows wait in files of the
/// normalizer, and go in by themselves once the table takes rows again. Where only some rows of a batch
/// are in the table, nobody but you can say what is right: `parked repair`.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub struct ParkedArgs {
    #[command(subcommand)]
    verb: ParkedVerb,
}

#[derive(Debug, Subcommand)]
enum ParkedVerb {
    /// Lists what is set aside, the oldest first. Exit code 2 where something is.
    #[command(after_long_help = EXIT_CODES)]
    List {
        #[command(flatten)]
        admin: AdminArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Has what waits for a person settled: rows that are absent are inserted, what is there stays.
    ///
    /// Row by row where it must be, each verified by its provenance before it is sent. Where you deleted
    /// rows on purpose, and rows of the same batch still wait, this brings them back.
    #[command(after_long_help = EXIT_CODES)]
    Repair {
        /// The table.
        table: String,
        #[command(flatten)]
        admin: AdminArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
}

impl ParkedArgs {
    /// Asks the normalizer.
    ///
    /// # Errors
    /// Where it does not answer, or refuses.
    pub async fn run(self) -> Result<Exit, Failure> {
        match self.verb {
            ParkedVerb::List { admin, output } => {
                let listed = admin.remote()?.get("/admin/v1/parked").await?;
                output.print(&listed, || table(&listed))?;
                let empty = units(&listed).is_empty();
                Ok(if empty { Exit::Good } else { Exit::Attention })
            }
            ParkedVerb::Repair { table, admin, output } => {
                let order = json!({ "table": table });
                let mended = admin.remote()?.post("/admin/v1/parked/repair", &order).await?;
                let said = || {
                    format!(
                        "{} of table {table} are mended; see `parked list`",
                        mended["units"]
                    )
                };
                output.print(&mended, said)?;
                Ok(Exit::Good)
            }
        }
    }
}

fn units(listed: &Value) -> &[Value] {
    listed["units"].as_array().map_or(&[], Vec::as_slice)
}

fn table(listed: &Value) -> String {
    if units(listed).is_empty() {
        return "nothing is set aside".into();
    }
    let mut table = TextTable::new(&[
        "TABLE",
        "SERVER",
        "RECORDS",
        ">ROWS",
        "WHY",
        "NEEDS REPAIR",
        "REASON",
    ]);
    for unit in units(listed) {
        let text = |name: &str| unit[name].as_str().unwrap_or_default().to_owned();
        let repair = if unit["needs_repair"] == json!(true) {
            "yes"
        } else {
            "no"
        };
        table.row([
            text("table"),
            text("server"),
            format!("{}..{}", unit["from"], unit["to"]),
            unit["rows"].to_string(),
            text("why"),
            repair.to_owned(),
            text("reason"),
        ]);
    }
    table.to_string()
}
