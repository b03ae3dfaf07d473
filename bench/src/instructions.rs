//! Instructions that each stage takes of an item, counted by valgrind's callgrind, which no neighbour on the machine
//! disturbs; held against counts that were kept before a change. Counts hang on the compiler, its profile and features,
//! and a little on what the processor can do. So the compiler is kept with them: counts of another one are held to a wider
//! bound.

use clap::Args;
use serde::{Deserialize, Serialize};
use sluice_bench::stages::{STAGES, Stage, measured_round};
use sluice_common::process::Failure;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Rounds of each stage: hash seeds differ from run to run, and so do tables' growths.
const ROUNDS: usize = 3;
/// What another compiler makes of the same code, in percent.
const OTHER_COMPILER: f64 = 30.0;
/// An item's allocations are a little dearer in one run than in another: so few instructions more are none, whatever
/// part of a small stage they are.
const SLACK: f64 = 8.0;
/// Counts with the assertions and overflow checks of CI's profile are not those of a release.
const CHECKED: bool = cfg!(debug_assertions);
/// Where callgrind counts: within [`measured_round`] alone.
const WITHIN: &str = "--toggle-collect=*measured_round*";

#[derive(Debug, Args)]
pub struct InstructionsArgs {
    /// Counts of before, in JSON.
    #[arg(long, default_value = "bench/instructions.json")]
    kept: PathBuf,
    /// Fails where a stage takes so many percent more; at least 30 where they were counted with another compiler.
    #[arg(long, default_value_t = 5.0)]
    percent: f64,
    /// Keeps what is counted now.
    #[arg(long)]
    write: bool,
    /// These stages only.
    stages: Vec<String>,
}

/// What was counted.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// As `rustc -V` says it.
    compiler: String,
    /// Whether assertions and overflow checks were compiled in: counts with and without are not to be compared.
    checked: bool,
    /// Instructions of an item, by stage.
    stages: BTreeMap<String, f64>,
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
        let compiler = compiler()?;
        let percent = self.bound(&kept, &compiler)?;
        let mut more = Vec::new();
        println!("{:<14} {:>12} {:>12} {:>9}", "stage", "before", "now", "change");
        for stage in asked {
            let found = count(&stage)?;
            let before = kept.stages.get(stage.name).copied();
            let change = before.map(|before| (found / before - 1.0) * 100.0);
            println!(
                "{:<14} {:>12} {found:>12.1} {:>9}",
                stage.name,
                before.map_or("-".into(), |before| format!("{before:.1}")),
                change.map_or("-".into(), |change| format!("{change:+.1} %")),
            );
            let is_more = |before: f64| found - before > (before * percent / 100.0).max(SLACK);
            if before.is_none_or(is_more) {
                more.push(stage.name);
            }
            kept.stages.insert(stage.name.into(), tenths(found));
        }
        if self.write {
            (kept.compiler, kept.checked) = (compiler, CHECKED);
            let text = serde_json::to_string_pretty(&kept)? + "\n";
            std::fs::write(&self.kept, text)?;
            return Ok(());
        }
        if more.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{} take over {percent} % more instructions than {} says, or are not in it (`--write` keeps those of now)",
            more.join(", "),
            self.kept.display()
        )))
    }

    /// By how many percent a stage may take more than what was kept.
    fn bound(&self, kept: &Kept, compiler: &str) -> Result<f64, Failure> {
        if kept.stages.is_empty() {
            return Ok(self.percent);
        }
        if kept.checked != CHECKED {
            let profile = |checked| if checked { "CI" } else { "release" };
            return Err(Failure::new(format!(
                "this was built with the profile of {}, and {} is of {}: name another file (--kept)",
                profile(CHECKED),
                self.kept.display(),
                profile(kept.checked)
            )));
        }
        if kept.compiler == compiler {
            return Ok(self.percent);
        }
        if self.write && !self.stages.is_empty() {
            return Err(Failure::new(
                "the others were counted with another compiler: write all stages",
            ));
        }
        eprintln!("counted before with {}, now with {compiler}", kept.compiler);
        Ok(self.percent.max(OTHER_COMPILER))
    }
}

fn named(name: &str) -> Result<Stage, Failure> {
    let found = STAGES.iter().find(|stage| stage.name == name).copied();
    let names = STAGES.map(|stage| stage.name).join(", ");
    found.ok_or_else(|| Failure::new(format!("there is no stage {name:?}; there are {names}")))
}

fn read(path: &Path) -> Result<Kept, Failure> {
    match std::fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Kept::default()),
        Err(error) => Err(error.into()),
    }
}

/// The one that is here, which built what is counted.
fn compiler() -> Result<String, Failure> {
    let said = Command::new("rustc").arg("-V").output();
    let said = said.map_err(|error| Failure::new(format!("rustc cannot be run ({error})")))?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
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
