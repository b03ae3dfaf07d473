//! Text that may stand elsewhere: `${NAME}` in it is an environment variable, `file:PATH` a file.

use crate::ids::RequestId;
use crate::secret::Secret;
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, Serializer};
use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

/// The newtype under which a [`Text`] asks for what was written, references unresolved.
pub(super) const UNRESOLVED: &str = "$sluice::config::Text";
/// Most bytes of a file that a text refers to: a key or a password, not a document.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A text as the config has it, not yet resolved. `Debug` and `Serialize` show references, never what
/// they hold.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(String);

/// A reference that leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum BadReference {
    #[error("environment variable {0} is not set: set it, or write the value itself")]
    Variable(String),
    #[error(
        "`${{` is not followed by the name of an environment variable and `}}`: write `$${{` for the text itself"
    )]
    Syntax,
    #[error("cannot read {path}: {error}: create it, readable by this user only")]
    File { path: String, error: std::io::Error },
    #[error("{path} is larger than {MAX_FILE_BYTES} bytes: it must hold the value and nothing else")]
    TooLarge { path: String },
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
        let text = expand(&self.0)?;
        let Some(path) = text.strip_prefix("file:") else {
            return Ok(text);
        };
        let path = base.join(path);
        let shown = path.display().to_string();
        let failed = |error| BadReference::File {
            path: shown.clone(),
            error,
        };
        if std::fs::metadata(&path).map_err(failed)?.len() > MAX_FILE_BYTES {
            return Err(BadReference::TooLarge { path: shown });
        }
        let text = std::fs::read_to_string(&path).map_err(failed)?;
        Ok(text.trim().to_owned())
    }

    /// The secret that this leads to, fit for an HTTP header.
    ///
    /// # Errors
    /// [`BadReference`], also for a secret that is empty or not visible ASCII.
    pub fn resolve_secret(&self, base: &Path) -> Result<Secret, BadReference> {
        let text = self.resolve(base)?;
        if text.is_empty() || !text.bytes().all(|c| c.is_ascii_graphic()) {
            return Err(BadReference::Unusable(
                self.source().unwrap_or("the value").to_owned(),
            ));
        }
        Ok(Secret::new(&text))
    }

    /// The reference, where it is nothing but one: what can be shown.
    fn source(&self) -> Option<&str> {
        let variable = self.0.starts_with("${") && self.0.find('}') == Some(self.0.len() - 1);
        (variable || self.0.starts_with("file:")).then_some(self.0.as_str())
    }
}

/// Puts environment variables in the place of `${NAME}`, and `${` in that of `$${`.
///
/// # Errors
/// [`BadReference`] naming the variable.
pub(super) fn expand(text: &str) -> Result<String, BadReference> {
    expand_from(text, |name| std::env::var(name).ok())
}

fn expand_from(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, BadReference> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        if let Some(escaped) = before.strip_suffix('$') {
            out.push_str(escaped);
            out.push_str("${");
            rest = after;
            continue;
        }
        let name = after.split_once('}').filter(|(name, _)| is_variable(name));
        let (name, after) = name.ok_or(BadReference::Syntax)?;
        let value = variable(name).ok_or_else(|| BadReference::Variable(name.to_owned()))?;
        out.push_str(before);
        out.push_str(&value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn is_variable(name: &str) -> bool {
    let first = |c: u8| c.is_ascii_alphabetic() || c == b'_';
    name.bytes().next().is_some_and(first) && name.bytes().all(|c| first(c) || c.is_ascii_digit())
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(UNRESOLVED, TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, ${NAME} or file:PATH")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
        Ok(Text(text.to_owned()))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Text, D::Error> {
        String::deserialize(deserializer).map(Text)
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.source() {
            Some(source) => serializer.serialize_str(source),
            None => serializer.serialize_str(&format!("(hidden, {:08x})", mark(&self.0))),
        }
    }
}

/// Tells two hidden texts apart within this process, and nothing else: the seed is random.
fn mark(text: &str) -> u32 {
    static SEED: OnceLock<u64> = OnceLock::new();
    let random = || {
        u64::from_le_bytes(
            RequestId::random().0.to_le_bytes()[..8]
                .try_into()
                .unwrap_or_default(),
        )
    };
    let hash = xxhash_rust::xxh3::xxh3_64_with_seed(text.as_bytes(), *SEED.get_or_init(random));
    u32::try_from(hash >> 32).unwrap_or_default()
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Text({})", self.source().unwrap_or("the value"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_stand_anywhere_in_a_text_and_can_be_escaped() {
        let expand = |text: &str| {
            expand_from(text, |name| (name == "HOST").then(|| "h${X}".to_owned()))
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            expand("http://${HOST}:8123/${HOST}").as_deref(),
            Ok("http://h${X}:8123/h${X}")
        );
        assert_eq!(expand("a$${HOST}b$c$$d").as_deref(), Ok("a${HOST}b$c$$d"));
        assert!(expand("${NOPE}").is_err_and(|e| e.contains("NOPE")));
        for broken in ["${HOST", "${}", "${1}", "${A B}", "x${"] {
            assert!(expand(broken).is_err_and(|e| e.contains("$${")), "{broken}");
        }
    }

    #[test]
    fn a_text_is_never_shown_but_its_reference_is() {
        for (text, shown) in [
            ("${PASS}", true),
            ("file:pass", true),
            ("canary", false),
            ("x${PASS}canary", false),
        ] {
            let text = Text::literal(text);
            let json = serde_json::to_string(&text).expect("JSON");
            for out in [format!("{text:?}"), json] {
                assert_eq!(out.contains(&text.0), shown, "{out}");
                assert!(!out.contains("canary"), "{out}");
            }
        }
    }
}
