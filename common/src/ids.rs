//! The names and numbers that identify things, each a type of its own.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// A tenant's id: `^[a-z0-9][a-z0-9_-]{0,62}$`, from the credentials only, never from a payload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Arc<str>);

/// A dataset's or table's name: `^[a-z_][a-z0-9_]{0,62}$`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// A name that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a valid {what}: {rule}")]
pub struct BadName {
    what: &'static str,
    rule: &'static str,
    name: String,
}

impl TenantId {
    /// Checks and wraps a tenant id.
    ///
    /// # Errors
    /// [`BadName`] where the id is empty, longer than 63 bytes or has other characters.
    pub fn new(id: &str) -> Result<Self, BadName> {
        let rule = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_' || c == b'-';
        let first = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        if matches_rule(id, first, rule) {
            return Ok(Self(id.into()));
        }
        Err(BadName {
            what: "tenant id",
            rule: "1 to 63 characters of a-z 0-9 _ -, beginning with a letter or digit",
            name: id.chars().take(80).collect(),
        })
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Name {
    /// Checks and wraps a dataset, table, field or database name.
    ///
    /// # Errors
    /// [`BadName`] where the name is empty, longer than 63 bytes or has other characters.
    pub fn new(name: &str) -> Result<Self, BadName> {
        let first = |c: u8| c.is_ascii_lowercase() || c == b'_';
        let rule = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
        if matches_rule(name, first, rule) {
            return Ok(Self(name.into()));
        }
        Err(BadName {
            what: "name",
            rule: "1 to 63 characters of a-z 0-9 _, beginning with a letter or _",
            name: name.chars().take(80).collect(),
        })
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TenantId {
    type Error = BadName;
    fn try_from(id: String) -> Result<Self, BadName> {
        Self::new(&id)
    }
}

impl TryFrom<String> for Name {
    type Error = BadName;
    fn try_from(name: String) -> Result<Self, BadName> {
        Self::new(&name)
    }
}

impl From<TenantId> for String {
    fn from(id: TenantId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().to_owned()
    }
}

fn matches_rule(text: &str, first: impl Fn(u8) -> bool, rest: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 63 && bytes.first().is_some_and(|c| first(*c)) && bytes.iter().all(|c| rest(*c))
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A request's own id: 128 random bits made by the edge, never taken from a client's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(pub u128);

impl RequestId {
    /// A fresh random id.
    ///
    /// # Panics
    /// Where the operating system gives no random bytes: nothing safe can be done without them.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes).expect("the operating system must give random bytes");
        Self(u128::from_le_bytes(bytes))
    }

    /// Reads the 32 hex digits that [`fmt::Display`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok().map(Self))?
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A log's id (R1): 64 random bits, never 0, made with the log and changed by a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogId(pub u64);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The place of a record in its partition's log, counted from 0. At most 2^48 - 1, because a row's
/// provenance is `offset << 16 | index`.
pub type Offset = u64;

/// `_src_o` of one row (R10).
#[must_use]
pub fn source_o(offset: Offset, index: u32) -> u64 {
    debug_assert!(offset < 1 << 48 && index < 1 << 16);
    offset << 16 | u64::from(index)
}

/// The record of a row, from its `_src_o`.
#[must_use]
pub fn offset_of(source_o: u64) -> Offset {
    source_o >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_rules() {
        assert!(Name::new("events_1").is_ok());
        assert!(Name::new("1events").is_err());
        assert!(Name::new("Events").is_err());
        assert!(Name::new("").is_err());
        assert!(Name::new(&"a".repeat(64)).is_err());
        assert!(TenantId::new("acme-1").is_ok());
        assert!(TenantId::new("-acme").is_err());
    }

    #[test]
    fn a_request_id_reads_back() {
        let id = RequestId::random();
        assert_eq!(RequestId::parse(&id.to_string()), Some(id));
        assert_eq!(RequestId::parse("zz"), None);
    }
}
