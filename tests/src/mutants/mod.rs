//! Mutants: what each rule R1 to R20, and each control of overload, is kept by is switched off in the source, and a
//! named test must fail without it. A test that nothing can make fail shows nothing.
//!
//! - `tests/mutants.yaml`: the list. A mutant replaces a text that is in its file once, or once after a marker.
//! - [`run`]: applies each to a copy of the tree, and runs its tests there (`make mutants`).
//!
//! A build for each mutant takes too long for every change; that each still applies, that its tests are there and
//! that each rule has one is a test of this module.

pub mod copy;
pub mod run;

use serde::Deserialize;
use std::fmt;
use std::path::Path;

/// The list, below the root of the tree.
pub const LIST: &str = "tests/mutants.yaml";

/// What is switched off, where, and who must notice.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// `R1` to `R20`, or `overload`.
    pub rule: String,
    /// What is switched off, a sentence.
    pub off: String,
    /// Below the root of the tree.
    pub file: String,
    /// The text is looked for after the first place of this one.
    #[serde(default)]
    pub after: Option<String>,
    pub from: String,
    pub to: String,
    /// Whose tests must fail.
    pub package: String,
    /// A file of tests in the package's `tests/`; none for those in the source.
    #[serde(default)]
    pub target: Option<String>,
    /// Names of functions; each must fail.
    pub tests: Vec<String>,
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("{LIST}: {0}")]
    Read(#[from] std::io::Error),
    #[error("{LIST}: {0}")]
    Parse(#[from] serde_saphyr::Error),
}

/// Why a mutant does not apply: the source has changed, and the list has to follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unapplied {
    #[error("the marker `{0}` is not in the file")]
    NoMarker(String),
    #[error("the text to be replaced is there {0} times, not once")]
    NotOnce(usize),
    #[error("it replaces a text by the same")]
    Same,
}

/// Reads the list of the tree at `root`.
///
/// # Errors
/// [`ListError`].
pub fn list(root: &Path) -> Result<Vec<Mutant>, ListError> {
    let text = std::fs::read_to_string(root.join(LIST))?;
    Ok(serde_saphyr::from_str(&text)?)
}

impl Mutant {
    /// The source with the safety switched off.
    ///
    /// # Errors
    /// [`Unapplied`].
    pub fn apply(&self, source: &str) -> Result<String, Unapplied> {
        if self.from == self.to {
            return Err(Unapplied::Same);
        }
        let begin = match &self.after {
            None => 0,
            Some(marker) => source
                .find(marker)
                .map(|at| at + marker.len())
                .ok_or_else(|| Unapplied::NoMarker(marker.clone()))?,
        };
        let (before, rest) = source.split_at(begin);
        match rest.matches(&self.from).count() {
            1 => Ok(format!("{before}{}", rest.replacen(&self.from, &self.to, 1))),
            count => Err(Unapplied::NotOnce(count)),
        }
    }

    /// The folder of the package whose tests must fail.
    #[must_use]
    pub fn folder(&self) -> &str {
        match &*self.package {
            "sluice-kafka" => "common/kafka",
            package => package.strip_prefix("sluice-").unwrap_or(package),
        }
    }

    /// Whether its rule, its sentence or one of its tests contains `word`; a rule in full, so that `R1` is not `R10`.
    #[must_use]
    pub fn is_about(&self, word: &str) -> bool {
        let is_rule = word
            .strip_prefix('R')
            .is_some_and(|rest| rest.parse::<u8>().is_ok());
        if is_rule {
            return self.rule == word;
        }
        let mut texts = [&self.rule, &self.off, &self.file].into_iter().chain(&self.tests);
        texts.any(|text| text.contains(word))
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.off)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    fn mutant(after: Option<&str>, from: &str) -> Mutant {
        Mutant {
            rule: "R7".into(),
            off: "nothing".into(),
            file: String::new(),
            after: after.map(Into::into),
            from: from.into(),
            to: "x".into(),
            package: "sluice-common".into(),
            target: None,
            tests: Vec::new(),
        }
    }

    /// All sources below a folder, in one text.
    fn sources(folder: &Path) -> String {
        let entries =
            std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut all = String::new();
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                all.push_str(&sources(&path));
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                all.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
        all
    }

    #[test]
    fn a_mutant_applies_where_its_text_is_once_and_only_there() {
        let source = "a b a c";
        assert_eq!(mutant(None, "b").apply(source).unwrap(), "a x a c");
        assert_eq!(mutant(Some("b"), "a").apply(source).unwrap(), "a b x c");
        assert_eq!(mutant(None, "a").apply(source), Err(Unapplied::NotOnce(2)));
        assert_eq!(mutant(None, "d").apply(source), Err(Unapplied::NotOnce(0)));
        assert_eq!(mutant(None, "x").apply(source), Err(Unapplied::Same));
        assert_eq!(
            mutant(Some("d"), "a").apply(source),
            Err(Unapplied::NoMarker("d".into()))
        );
    }

    #[test]
    fn a_rule_is_asked_for_in_full_and_anything_else_by_a_word() {
        let mut one = mutant(None, "a");
        one.rule = "R10".into();
        assert!(one.is_about("R10") && one.is_about("noth") && !one.is_about("R1"));
    }

    #[test]
    fn every_mutant_still_applies_and_its_tests_are_there() {
        let mut wrong = Vec::new();
        for one in list(&root()).unwrap() {
            let source = std::fs::read_to_string(root().join(&one.file));
            match source.map(|source| one.apply(&source)) {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => wrong.push(format!("{one} ({}): {error}", one.file)),
                Err(error) => wrong.push(format!("{one} ({}): {error}", one.file)),
            }
            let folder = root().join(one.folder());
            let all = sources(&match &one.target {
                None => folder.join("src"),
                Some(_) => folder.join("tests"),
            });
            let missing = one
                .tests
                .iter()
                .filter(|test| !all.contains(&format!("fn {test}(")));
            wrong.extend(missing.map(|test| format!("{one}: {} has no test {test}", one.package)));
            if one.tests.is_empty() {
                wrong.push(format!("{one}: no test"));
            }
        }
        assert!(wrong.is_empty(), "bring {LIST} up to date:\n{}", wrong.join("\n"));
    }

    /// Most of R18's tests need a broker and whole services.
    #[test]
    fn every_rule_has_a_mutant_and_each_is_named_once() {
        let list = list(&root()).unwrap();
        let rules: BTreeSet<String> = list.iter().map(|one| one.rule.clone()).collect();
        let of_log = (1..=20).map(|n| format!("R{n}"));
        let expected: BTreeSet<String> = of_log.chain(["overload".to_owned()]).collect();
        assert_eq!(rules, expected);
        let sentences: BTreeSet<&str> = list.iter().map(|one| one.off.as_str()).collect();
        assert_eq!(sentences.len(), list.len(), "two say the same");
    }
}
