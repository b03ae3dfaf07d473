//! `ingestctl config diff`: what a new config file would change.

use super::consequence::{Judged, judge};
use crate::exit::{EXIT_CODES, Exit};
use crate::output::{OutputArgs, TextTable};
use clap::Args;
use serde_json::{Value, json};
use sluice_common::config::diff::{When, changes};
use sluice_common::config::history::History;
use sluice_common::config::{ConfigError, Loaded};
use sluice_common::process::Failure;
use sluice_normalizer::start::compile;
use sluice_sink_writer::alter;
use std::path::{Path, PathBuf};

/// Says what a new config file would change, key by key, without changing anything.
///
/// Each change says whether it takes effect at once or at the next start, and what else to know. Statements
/// that ClickHouse needs are printed, never run. Exit codes: 0 no change, 1 the file is invalid, 2 changes.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub(super) struct DiffArgs {
    /// The new file.
    file: PathBuf,
    /// What it is compared with [default: the newest of the history, else the default config].
    #[arg(long, value_name = "RUNNING")]
    config: Option<PathBuf>,
    /// The data directory with the history; relative paths of configs are taken from here.
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data_dir: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

impl DiffArgs {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let after = match self.checked() {
            Ok(after) => after,
            Err(error) => return self.invalid(&error),
        };
        let before = self.before()?;
        let found = judge(
            changes(&before.config, &after.config),
            &before.config,
            &after.config,
        );
        let database = &after.config.clickhouse.database;
        let ddl = alter::statements(&before.config.datasets, &after.config.datasets, database);
        let result = if found.is_empty() { "none" } else { "changes" };
        let document = json!({"result": result, "changes": found, "ddl": ddl});
        self.output.print(&document, || text(&found, &ddl))?;
        Ok(if found.is_empty() {
            Exit::Good
        } else {
            Exit::Attention
        })
    }

    fn checked(&self) -> Result<Loaded, ConfigError> {
        let loaded = Loaded::read(Some(&self.file), &self.data_dir)?;
        compile(&loaded)?;
        Ok(loaded)
    }

    fn invalid(&self, error: &ConfigError) -> Result<Exit, Failure> {
        let problems: Vec<Value> = match error {
            ConfigError::Invalid { problems, .. } => problems
                .iter()
                .map(|one| json!({"line": one.line, "place": one.place, "message": one.message}))
                .collect(),
            ConfigError::Read { .. } | ConfigError::TooLarge { .. } => {
                vec![json!({"message": error.to_string()})]
            }
        };
        let document = json!({"result": "invalid", "problems": problems});
        self.output.print(&document, || error.to_string())?;
        Ok(Exit::Failed)
    }

    fn before(&self) -> Result<Loaded, Failure> {
        if self.config.is_some() {
            return Ok(Loaded::read(self.config.as_deref(), &self.data_dir)?);
        }
        let history = History::of(&self.data_dir);
        match history.list()?.last() {
            Some(newest) => {
                let text = history.text(newest.number)?;
                let name = format!("(config {} of the history)", newest.number);
                Ok(Loaded::parse(&text, Path::new(&name), &self.data_dir)?)
            }
            None => Ok(Loaded::read(None, &self.data_dir)?),
        }
    }
}

fn text(found: &[Judged], ddl: &[String]) -> String {
    if found.is_empty() {
        return "no change".to_owned();
    }
    let mut table = TextTable::new(&["TAKES EFFECT", "KEY", "BEFORE", "AFTER"]);
    for one in found {
        let when = match one.change.when {
            When::Now => "now",
            When::AtRestart => "at restart",
        };
        table.row([
            when.to_owned(),
            one.change.key.clone(),
            short(&one.change.before),
            short(&one.change.after),
        ]);
    }
    let mut text = table.to_string();
    let mut notes: Vec<String> = found.iter().filter_map(|one| one.consequence.clone()).collect();
    notes.dedup();
    for note in notes {
        text += &format!("\n! {note}");
    }
    if !ddl.is_empty() {
        text += "\n\nRun in ClickHouse, before the config is changed:\n";
        ddl.iter().for_each(|sql| text += &format!("\n{sql};"));
    }
    text
}

/// Most characters of a value in a table; JSON has all of it.
const MAX_SHOWN: usize = 60;

fn short(value: &Value) -> String {
    let whole = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    };
    if whole.chars().count() <= MAX_SHOWN {
        return whole;
    }
    whole.chars().take(MAX_SHOWN - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: DiffArgs,
    }

    fn run(before: &str, after: &str) -> Exit {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("before"), before).expect("written");
        std::fs::write(path("after"), after).expect("written");
        let line = Line::parse_from([
            "x",
            &path("after"),
            "--config",
            &path("before"),
            "--data-dir",
            &path("data"),
        ]);
        line.args.run().expect("printed")
    }

    #[test]
    fn the_exit_code_tells_no_change_from_changes_and_from_an_invalid_file() {
        assert_eq!(run("{}", "log: {dir: log}"), Exit::Good);
        assert_eq!(run("{}", "log: {dir: other}"), Exit::Attention);
        assert_eq!(run("{}", "log: {dirr: other}"), Exit::Failed);
        let unit = "datasets: [{name: a, fields: [{name: x, type: string, unit: {from: KiBy, to: By}}]}]";
        assert_eq!(
            run("{}", unit),
            Exit::Failed,
            "what intake would refuse is invalid too"
        );
    }
}
