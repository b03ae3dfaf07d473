//! Instructions that each stage takes of an item, counted by valgrind's callgrind, which no neighbour on the machine
//! disturbs; held against counts that were kept before a change. Counts hang on the compiler, its profile and features,
//! and on what the processor can do: they are compared on one machine.

use clap::Args;
use serde_json::{Map, Value};
use sluice_bench::stages::{STAGES, Stage, measured_round};
use sluice_common::process::Failure;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Rounds of each stage: hash seeds differ from run to run, and so do tables' growths.
const ROUNDS: usize = 3;
/// Where callgrind counts: within [`measured_round`] alone.
const WITHIN: &str = "--toggle-collect=*measured_round*";

#[derive(Debug, Args)]
pub struct InstructionsArgs {
    /// Counts of before, in JSON.
    #[arg(long, default_value = "instructions.json")]
    kept: PathBuf,
    /// Fails where a stage takes so many percent more.
    #[arg(long, default_value_t = 5.0)]
    percent: f64,
    /// Keeps what is counted now.
    #[arg(long)]
    write: bool,
    /// These stages only.
    stages: Vec<String>,
}

/// What is counted: a stage, for so many rounds, in this process.
#[derive(Debug, Args)]
pub struct StageArgs {
    name: String,
    #[arg(long, default_value_t = 1)]
    rounds: usize,
}

impl StageArgs {
    /// Runs the stage.
    ///
    /// # Errors
    /// Where there is no such stage.
    pub fn run(&self) -> Result<(), Failure> {
        let stage = named(&self.name)?;
        let mut round = stage.ready(self.rounds);
        (0..self.rounds).for_each(|_| measured_round(&mut round));
        Ok(())
    }
}

impl InstructionsArgs {
    /// Counts, prints a table, and holds the counts to those of before, or keeps them.
    ///
    /// # Errors
    /// A stage that takes more, a stage that was never counted, no valgrind.
    pub fn run(&self) -> Result<(), Failure> {
        let named: Vec<Stage> = self
            .stages
            .iter()
            .map(|name| named(name))
            .collect::<Result<_, _>>()?;
        let asked = if named.is_empty() { STAGES.to_vec() } else { named };
        let mut kept = read(&self.kept)?;
        let mut more = Vec::new();
        println!("{:<14} {:>12} {:>12} {:>9}", "stage", "before", "now", "change");
        for stage in asked {
            let found = count(&stage)?;
            let before = kept.get(stage.name).and_then(Value::as_f64);
            let change = before.map(|before| (found / before - 1.0) * 100.0);
            println!(
                "{:<14} {:>12} {found:>12.1} {:>9}",
                stage.name,
                before.map_or("-".into(), |before| format!("{before:.1}")),
                change.map_or("-".into(), |change| format!("{change:+.1} %")),
            );
            if change.is_none_or(|change| change > self.percent) {
                more.push(stage.name);
            }
            kept.insert(stage.name.into(), tenths(found).into());
        }
        if self.write {
            let text = serde_json::to_string_pretty(&kept)? + "\n";
            std::fs::write(&self.kept, text)?;
            return Ok(());
        }
        if more.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{} take over {} % more instructions than {} says, or are not in it (`--write` keeps those of now)",
            more.join(", "),
            self.percent,
            self.kept.display()
        )))
    }
}

fn named(name: &str) -> Result<Stage, Failure> {
    let found = STAGES.iter().find(|stage| stage.name == name).copied();
    let names = STAGES.map(|stage| stage.name).join(", ");
    found.ok_or_else(|| Failure::new(format!("there is no stage {name:?}; there are {names}")))
}

fn read(path: &Path) -> Result<Map<String, Value>, Failure> {
    match std::fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Map::new()),
        Err(error) => Err(error.into()),
    }
}

/// Instructions of one item.
#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn count(stage: &Stage) -> Result<f64, Failure> {
    let output = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            "--collect-atstart=no",
        ])
        .arg(WITHIN)
        .arg(std::env::current_exe()?)
        .args(["stage", stage.name, "--rounds", &ROUNDS.to_string()])
        .output()
        .map_err(|error| Failure::new(format!("valgrind cannot be run ({error}): install it")))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let counted = collected(&said).filter(|_| output.status.success());
    let counted = counted.ok_or_else(|| Failure::new(format!("{} was not counted: {said}", stage.name)))?;
    Ok(counted as f64 / (ROUNDS as u64 * stage.items) as f64)
}

/// What callgrind says at its end: `==1== Collected : 123`; nothing where it counted nothing.
fn collected(said: &str) -> Option<u64> {
    let line = said.lines().find_map(|line| line.split_once("Collected :"));
    line.and_then(|(_, count)| count.trim().parse().ok())
        .filter(|count| *count > 0)
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_callgrind_counted_is_read_and_nothing_is_no_count() {
        let said = "==7== Events    : Ir\n==7== Collected : 123456\n==7== \n";
        assert_eq!(collected(said), Some(123_456));
        assert_eq!(
            collected("==7== Collected : 0\n"),
            None,
            "the function was not found"
        );
        assert_eq!(collected("valgrind: no such file"), None);
    }
}
