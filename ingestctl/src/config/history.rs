//! `ingestctl config history|show|rollback`.

use crate::exit::{EXIT_CODES, Exit};
use crate::output::{OutputArgs, TextTable};
use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use sluice_common::config::Loaded;
use sluice_common::config::history::{History, Kept, replace_file};
use sluice_common::process::Failure;
use sluice_normalizer::start::compile;
use std::path::PathBuf;

/// Lists the configs that were in force, the newest last.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub(super) struct HistoryArgs {
    /// The data directory of the service that took them.
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data_dir: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Prints a config that was in force, as it was written.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub(super) struct ShowArgs {
    /// Its number, from `ingestctl config history`.
    number: u64,
    /// The data directory of the service that took it.
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data_dir: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Puts a config that was in force back into the config file.
///
/// The file is replaced at once and keeps its permissions; running services take it by themselves. It is
/// checked before: one that this release would refuse is not written.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub(super) struct RollbackArgs {
    /// Its number, from `ingestctl config history`.
    number: u64,
    /// The config file, which must be there.
    #[arg(long, value_name = "FILE", default_value = "sluice.yaml")]
    config: PathBuf,
    /// The data directory of the service that took it.
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data_dir: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

impl HistoryArgs {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let kept = History::of(&self.data_dir).list()?;
        let documents: Vec<_> = kept.iter().map(document).collect();
        self.output.print(&documents, || {
            let mut table = TextTable::new(&[">NUMBER", "IN FORCE SINCE", "SHA256"]);
            for one in &kept {
                let hash = one.sha256.chars().take(16).collect();
                table.row([one.number.to_string(), time(one), hash]);
            }
            table.to_string()
        })?;
        Ok(Exit::Good)
    }
}

impl ShowArgs {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let history = History::of(&self.data_dir);
        let text = history.text(self.number)?;
        let kept = history.list()?.into_iter().find(|one| one.number == self.number);
        let mut shown = kept.as_ref().map(document).unwrap_or_default();
        shown["text"] = text.as_str().into();
        self.output.print(&shown, || text)?;
        Ok(Exit::Good)
    }
}

impl RollbackArgs {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let text = History::of(&self.data_dir).text(self.number)?;
        let loaded = Loaded::parse(&text, &self.config, &self.data_dir)?;
        compile(&loaded)?;
        replace_file(&self.config, &text)?;
        let file = self.config.display().to_string();
        self.output
            .print(&json!({"number": self.number, "config": file}), || {
                format!(
                    "{file} is config {} again; running services take it within two seconds",
                    self.number
                )
            })?;
        Ok(Exit::Good)
    }
}

fn document(kept: &Kept) -> serde_json::Value {
    json!({
        "number": kept.number, "applied_at": time(kept), "applied_at_ms": kept.applied_ms, "sha256": kept.sha256,
    })
}

fn time(kept: &Kept) -> String {
    let ms = i64::try_from(kept.applied_ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).map_or_else(|_| "?".to_owned(), |time| time.to_string())
}
