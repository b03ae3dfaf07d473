//! Text that may stand elsewhere: `${ENV}` or `file:PATH`.

use crate::secret::Secret;
use serde::Deserialize;
use std::path::Path;

/// A text as the config has it, not yet resolved. `Debug` shows references, never what they hold.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Text(String);

/// A reference that leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum BadReference {
    #[error("environment variable {0} is not set: set it, or write the value itself")]
    Variable(String),
    #[error("cannot read {path}: {error}: create it, readable by this user only")]
    File { path: String, error: std::io::Error },
    #[error("{0} is empty, or has characters that cannot stand in an HTTP header")]
    Unusable(String),
}

impl Text {
    /// A literal text.
    #[must_use]
    pub fn literal(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text that this leads to. A relative `file:` path is taken from `base`.
    ///
    /// # Errors
    /// [`BadReference`] naming the variable or file.
    pub fn resolve(&self, base: &Path) -> Result<String, BadReference> {
        if let Some(name) = self.0.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
            return std::env::var(name).map_err(|_| BadReference::Variable(name.to_owned()));
        }
        let Some(path) = self.0.strip_prefix("file:") else {
            return Ok(self.0.clone());
        };
        let path = base.join(path);
        let text = std::fs::read_to_string(&path).map_err(|error| BadReference::File {
            path: path.display().to_string(),
            error,
        })?;
        Ok(text.trim().to_owned())
    }

    /// The secret that this leads to, fit for an HTTP header.
    ///
    /// # Errors
    /// [`BadReference`], also for a secret that is empty or not visible ASCII.
    pub fn resolve_secret(&self, base: &Path) -> Result<Secret, BadReference> {
        let text = self.resolve(base)?;
        if text.is_empty() || !text.bytes().all(|c| c.is_ascii_graphic()) {
            return Err(BadReference::Unusable(self.source()));
        }
        Ok(Secret::new(&text))
    }

    fn source(&self) -> String {
        let is_reference = self.0.starts_with("file:") || self.0.starts_with("${");
        if is_reference {
            self.0.clone()
        } else {
            "the value".into()
        }
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Text({})", self.source())
    }
}
