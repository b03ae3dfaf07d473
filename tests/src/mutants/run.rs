//! Makes each mutant in a copy of the tree, builds the tests that must notice, and runs them there.
//!
//! Before any mutant, its tests must be green: what is red anyway notices nothing.

use super::copy::copy;
use super::{Mutant, list};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

/// A test that takes longer hangs, which CI would notice too. The longest takes half a minute.
const TEST_DEADLINE: Duration = Duration::from_secs(180);

/// Of the simulation, which is slow in a build that is not optimised: a mutant that it is to notice shows early.
const SIMULATION_SEEDS: &str = "400";

/// What became of a mutant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Each of its tests failed.
    Red,
    /// These tests did not: the rule can be broken unseen.
    Survived(Vec<String>),
    /// These are not there, or more than once.
    NotFound(Vec<String>),
    /// These fail without the mutant too.
    RedBefore(Vec<String>),
    NotBuilt(String),
    NotApplied(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Red => write!(f, "red"),
            Self::Survived(tests) => write!(f, "SURVIVED {}", tests.join(", ")),
            Self::NotFound(tests) => write!(f, "NO SUCH TEST {}", tests.join(", ")),
            Self::RedBefore(tests) => write!(f, "RED BEFORE {}", tests.join(", ")),
            Self::NotBuilt(error) => write!(f, "DOES NOT BUILD {error}"),
            Self::NotApplied(error) => write!(f, "DOES NOT APPLY {error}"),
        }
    }
}

/// Why mutants cannot be made at all.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    List(#[from] super::ListError),
    #[error("{doing}: {source}")]
    Io { doing: String, source: io::Error },
    #[error("no mutant is about `{0}`")]
    None(String),
}

/// A package's tests: those in its source, or a file of its `tests/`.
type Suite = (String, Option<String>);

/// Where mutants are made and built.
struct Place {
    root: PathBuf,
    tree: PathBuf,
    target: PathBuf,
}

/// Makes the mutants that are about `word`, or all, and runs their tests. `say` gets how many there are, and then
/// each with its verdict.
///
/// # Errors
/// [`RunError`].
pub async fn run(
    root: &Path,
    word: Option<&str>,
    mut say: impl FnMut(usize, &Mutant, &Verdict),
) -> Result<Vec<(Mutant, Verdict)>, RunError> {
    let mut mutants = list(root)?;
    mutants.retain(|one| word.is_none_or(|word| one.is_about(word)));
    if mutants.is_empty() {
        return Err(RunError::None(word.unwrap_or_default().to_owned()));
    }
    let place = Place::of(root);
    place.fresh()?;
    let mut suites: BTreeMap<Suite, Vec<Mutant>> = BTreeMap::new();
    let all = mutants.len();
    for one in mutants {
        let suite = (one.package.clone(), one.target.clone());
        suites.entry(suite).or_default().push(one);
    }
    let mut judged = Vec::with_capacity(all);
    for (suite, mutants) in suites {
        let tests = mutants.iter().flat_map(|one| one.tests.iter().cloned()).collect();
        let before = place.look(&suite, &tests).await?;
        for one in mutants {
            let verdict = match place.mutated(&one)? {
                Err(error) => Verdict::NotApplied(error),
                Ok(()) => {
                    let seen = place.look(&suite, &one.tests.iter().cloned().collect()).await?;
                    judge(&one, &before, &seen)
                }
            };
            place.fresh()?;
            say(all, &one, &verdict);
            judged.push((one, verdict));
        }
    }
    Ok(judged)
}

/// What some tests said: whether each passed; without those that are not there.
type Seen = Result<BTreeMap<String, bool>, String>;

fn judge(one: &Mutant, before: &Seen, seen: &Seen) -> Verdict {
    let (before, seen) = match (before, seen) {
        (Ok(before), Ok(seen)) => (before, seen),
        (Err(error), _) | (_, Err(error)) => return Verdict::NotBuilt(error.clone()),
    };
    let those = |is: &dyn Fn(&String) -> bool| -> Vec<String> {
        one.tests.iter().filter(|test| is(test)).cloned().collect()
    };
    let missing = those(&|test| !before.contains_key(test) || !seen.contains_key(test));
    let red_before = those(&|test| before.get(test) == Some(&false));
    let survived = those(&|test| seen.get(test) == Some(&true));
    if !missing.is_empty() {
        Verdict::NotFound(missing)
    } else if !red_before.is_empty() {
        Verdict::RedBefore(red_before)
    } else if survived.is_empty() {
        Verdict::Red
    } else {
        Verdict::Survived(survived)
    }
}

impl Place {
    fn of(root: &Path) -> Self {
        let built = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let here = built.join("mutants");
        Self {
            root: root.to_owned(),
            tree: here.join("tree"),
            target: here.join("target"),
        }
    }

    /// The copy without any mutant.
    fn fresh(&self) -> Result<(), RunError> {
        std::fs::create_dir_all(&self.tree)
            .and_then(|()| copy(&self.root, &self.tree))
            .map_err(|source| RunError::Io {
                doing: format!("copying the tree to {}", self.tree.display()),
                source,
            })
    }

    /// The copy with this mutant, or why it does not apply.
    fn mutated(&self, one: &Mutant) -> Result<Result<(), String>, RunError> {
        let path = self.tree.join(&one.file);
        let source = match std::fs::read_to_string(&path) {
            Ok(source) => source,
            Err(error) => return Ok(Err(format!("{}: {error}", one.file))),
        };
        match one.apply(&source) {
            Ok(mutated) => std::fs::write(&path, mutated)
                .map(Ok)
                .map_err(|source| RunError::Io {
                    doing: format!("writing {}", path.display()),
                    source,
                }),
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    /// Builds a suite and runs some of its tests. The inner error: it does not build.
    async fn look(&self, suite: &Suite, tests: &BTreeSet<String>) -> Result<Seen, RunError> {
        let binary = match self.build(suite).await? {
            Ok(binary) => binary,
            Err(error) => return Ok(Err(error)),
        };
        let folder = self
            .tree
            .join(suite.0.strip_prefix("sluice-").unwrap_or(&suite.0));
        let paths = paths(&binary).await?;
        let mut seen = BTreeMap::new();
        for name in tests {
            let mut found = paths.iter().filter(|path| path.rsplit("::").next() == Some(name));
            if let (Some(path), None) = (found.next(), found.next()) {
                seen.insert(name.clone(), passes(&binary, &folder, path).await?);
            }
        }
        Ok(Ok(seen))
    }

    async fn build(&self, (package, target): &Suite) -> Result<Result<PathBuf, String>, RunError> {
        let mut cargo = Command::new("cargo");
        cargo.args([
            "test",
            "--locked",
            "--features",
            "failpoints",
            "--no-run",
            "--package",
            package,
        ]);
        cargo.arg("--message-format=json-render-diagnostics");
        match target {
            None => cargo.arg("--lib"),
            Some(target) => cargo.args(["--test", target]),
        };
        let output = cargo
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            // A build for each mutant: quick to make, and nobody looks into them.
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_INCREMENTAL", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(trouble("cargo"))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let error = text.lines().find(|line| line.starts_with("error"));
            return Ok(Err(error.unwrap_or("cargo failed").to_owned()));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let binary = text.lines().find_map(test_binary);
        Ok(binary.ok_or_else(|| "cargo built no tests".to_owned()))
    }
}

fn trouble(what: &str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::Io {
        doing: format!("running {what}"),
        source,
    }
}

/// The binary of which a line of cargo's tells, where it is one of tests.
fn test_binary(line: &str) -> Option<PathBuf> {
    let told: Value = serde_json::from_str(line).ok()?;
    let is_test = told.get("profile")?.get("test")?.as_bool()?;
    let path = told.get("executable")?.as_str()?;
    is_test.then(|| PathBuf::from(path))
}

/// All tests of a binary, by their paths.
async fn paths(binary: &Path) -> Result<Vec<String>, RunError> {
    let output = Command::new(binary)
        .args(["--list", "--format", "terse"])
        .output()
        .await;
    let output = output.map_err(trouble("a binary of tests"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let tests = text.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(tests.map(str::to_owned).collect())
}

/// Whether a test passes. One that ends its process, or does not end, does not.
async fn passes(binary: &Path, folder: &Path, path: &str) -> Result<bool, RunError> {
    let mut child = Command::new(binary)
        .args(["--exact", path])
        .current_dir(folder)
        .env("SLUICE_SEEDS", SIMULATION_SEEDS)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(trouble("a test"))?;
    match timeout(TEST_DEADLINE, child.wait()).await {
        Ok(status) => Ok(status.map_err(trouble("a test"))?.success()),
        Err(_) => {
            child.kill().await.map_err(trouble("a test"))?;
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant() -> Mutant {
        Mutant {
            rule: "R7".into(),
            off: "nothing".into(),
            file: String::new(),
            after: None,
            from: "a".into(),
            to: "b".into(),
            package: "sluice-common".into(),
            target: None,
            tests: vec!["first".into(), "second".into()],
        }
    }

    fn seen(tests: &[(&str, bool)]) -> Seen {
        Ok(tests
            .iter()
            .map(|(name, passed)| ((*name).to_owned(), *passed))
            .collect())
    }

    #[test]
    fn only_tests_that_all_turn_red_make_a_mutant_red() {
        let green = seen(&[("first", true), ("second", true)]);
        let judged = |after: &[(&str, bool)]| judge(&mutant(), &green, &seen(after));
        assert_eq!(judged(&[("first", false), ("second", false)]), Verdict::Red);
        let survived = Verdict::Survived(vec!["second".into()]);
        assert_eq!(judged(&[("first", false), ("second", true)]), survived);
        assert_eq!(
            judged(&[("first", false)]),
            Verdict::NotFound(vec!["second".into()])
        );
        let before = seen(&[("first", false), ("second", true)]);
        let red = seen(&[("first", false), ("second", false)]);
        assert_eq!(
            judge(&mutant(), &before, &red),
            Verdict::RedBefore(vec!["first".into()])
        );
        let broken = Err("error: no".to_owned());
        assert_eq!(
            judge(&mutant(), &green, &broken),
            Verdict::NotBuilt("error: no".into())
        );
    }

    #[test]
    fn the_binary_of_tests_is_the_one_that_cargo_tells_of() {
        let line = |test, path| format!(r#"{{"profile":{{"test":{test}}},"executable":{path}}}"#);
        assert_eq!(test_binary(&line(true, r#""/x""#)), Some("/x".into()));
        assert_eq!(test_binary(&line(false, r#""/x""#)), None);
        assert_eq!(test_binary(&line(true, "null")), None);
        assert_eq!(test_binary("no JSON"), None);
    }
}
