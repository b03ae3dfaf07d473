//! What `check` found, and how bad it is.

use serde::Serialize;

/// How bad it is; the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Good,
    Degraded,
    Unusable,
}

impl Level {
    /// As text and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Degraded => "degraded",
            Self::Unusable => "unusable",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// What it is about: `config`, `clock`, `table events`, …
    pub what: String,
    /// What is so, and what to do.
    pub message: String,
}

/// All that was found.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// All is well here.
    pub fn good(&mut self, what: &str, message: impl Into<String>) {
        self.add(Level::Good, what, message.into());
    }

    /// Usable, with less than was promised.
    pub fn degraded(&mut self, what: &str, message: impl Into<String>) {
        self.add(Level::Degraded, what, message.into());
    }

    /// Not usable.
    pub fn unusable(&mut self, what: &str, message: impl Into<String>) {
        self.add(Level::Unusable, what, message.into());
    }

    /// The worst of all.
    #[must_use]
    pub fn worst(&self) -> Level {
        self.0.iter().map(|one| one.level).max().unwrap_or(Level::Good)
    }

    /// In the order found.
    #[must_use]
    pub fn all(&self) -> &[Finding] {
        &self.0
    }

    fn add(&mut self, level: Level, what: &str, message: String) {
        self.0.push(Finding {
            level,
            what: what.to_owned(),
            message,
        });
    }
}
