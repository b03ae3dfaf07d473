//! Dead letters, as people look through them and settle them by hand.

use crate::ids::{LogId, Name, TenantId};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Stage of a copy of a row that intake rejected: no acknowledged event.
pub const INTAKE: &str = "intake";
/// Stage of an acknowledged event whose identity is taken by another content.
pub const DEDUP: &str = "dedup";

/// Which letter: the provenance of the row that it stands for. As text `LOG-PARTITION-O`, the log in hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LetterId {
    pub log: LogId,
    pub partition: u16,
    /// `_src_o`.
    pub source_o: u64,
}

/// A text that names no letter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no id of a dead letter: `ingestctl dlq list` shows them")]
pub struct BadLetterId(String);

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.log, self.partition, self.source_o)
    }
}

impl FromStr for LetterId {
    type Err = BadLetterId;

    fn from_str(text: &str) -> Result<Self, BadLetterId> {
        let mut parts = text.split('-');
        let mut id = || {
            let log = parts.next().filter(|part| part.len() == 16)?;
            let id = Self {
                log: LogId(u64::from_str_radix(log, 16).ok()?),
                partition: parts.next()?.parse().ok()?,
                source_o: parts.next()?.parse().ok()?,
            };
            // One text a letter: no signs, no zeros in front.
            (parts.next().is_none() && id.to_string() == text).then_some(id)
        };
        id().ok_or_else(|| BadLetterId(text.chars().take(64).collect()))
    }
}

impl TryFrom<String> for LetterId {
    type Error = BadLetterId;

    fn try_from(text: String) -> Result<Self, BadLetterId> {
        text.parse()
    }
}

impl From<LetterId> for String {
    fn from(id: LetterId) -> Self {
        id.to_string()
    }
}

/// Which letters are asked for. All of it has been checked: none of it needs escaping.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetterFilter {
    pub tenant: Option<TenantId>,
    pub dataset: Option<Name>,
    /// The column `code`.
    pub reason: Option<Name>,
    pub stage: Option<Name>,
    /// Bounds of the append time, in ms since 1970: from, and before.
    pub since_ms: Option<u64>,
    pub until_ms: Option<u64>,
}

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    pub id: LetterId,
    /// When its event was appended, in ms since 1970.
    pub time_ms: u64,
    pub tenant: String,
    pub dataset: String,
    pub stage: String,
    pub code: String,
    /// Cut in lists.
    pub message: String,
    pub field: String,
    /// What lists leave out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
}

/// The rest of a letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    pub request_id: String,
    pub event_index: Option<u32>,
    /// The event as JSON, or as it was sent.
    pub payload: String,
}

/// A letter to settle, and the table that its row belongs to; none where there is no such row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetterTask {
    pub id: LetterId,
    pub table: Option<Name>,
}

/// What became of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its row is stored now, and the letter gone.
    Stored,
    /// Its row was stored already, by a retry that was cut short; the letter is gone now.
    WasThere,
    /// A copy of a rejected row was taken as a new event; the letter is gone.
    Accepted,
    /// It is deleted.
    Discarded,
    /// There is no such letter any more.
    Gone,
    /// It stays; `code` and `message` say why.
    Refused,
    /// Nothing can be said: ask again, which does no harm.
    Unknown,
}

impl Outcome {
    /// As it is printed.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::WasThere => "was there",
            Self::Accepted => "accepted",
            Self::Discarded => "discarded",
            Self::Gone => "gone",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the letter may still be there.
    #[must_use]
    pub fn is_open(self) -> bool {
        match self {
            Self::Refused | Self::Unknown => true,
            Self::Stored | Self::WasThere | Self::Accepted | Self::Discarded | Self::Gone => false,
        }
    }
}

/// What became of one letter, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    pub id: LetterId,
    pub outcome: Outcome,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Settled {
    /// An outcome that needs no words.
    #[must_use]
    pub fn plain(id: LetterId, outcome: Outcome) -> Self {
        Self {
            id,
            outcome,
            code: String::new(),
            message: String::new(),
        }
    }

    /// It stays, for a reason.
    #[must_use]
    pub fn refused(id: LetterId, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            id,
            outcome: Outcome::Refused,
            code: code.into(),
            message: message.into(),
        }
    }

    /// Nobody knows.
    #[must_use]
    pub fn unknown(id: LetterId, message: impl Into<String>) -> Self {
        Self {
            id,
            outcome: Outcome::Unknown,
            code: "uncertain".into(),
            message: message.into(),
        }
    }
}

/// What is asked of the sink-writer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LettersAsk {
    /// Heads, newest first.
    List { filter: LetterFilter, limit: u32 },
    /// Heads of these, where they are there.
    Heads(Vec<LetterId>),
    /// One with its content.
    Show(LetterId),
    /// Stores the rows of refused and conflicting events, books them, deletes the letters.
    Retry(Vec<LetterTask>),
    /// Deletes letters; one whose row is stored stays, because it is booked by a retry only.
    Discard(Vec<LetterTask>),
}

/// A question with its deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LettersCall {
    pub ask: LettersAsk,
    pub timeout: Duration,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LettersTold {
    Letters(Vec<Letter>),
    Settled(Vec<Settled>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_its_provenance_and_no_other_text_is_one() {
        let id = LetterId {
            log: LogId(0xab),
            partition: 3,
            source_o: 65_537,
        };
        assert_eq!(id.to_string(), "00000000000000ab-3-65537");
        assert_eq!("00000000000000ab-3-65537".parse(), Ok(id));
        for bad in [
            "",
            "ab-3-65537",
            "00000000000000ab-3",
            "00000000000000ab-3-65537-1",
            "00000000000000AB-3-65537",
            "00000000000000ab-+3-65537",
            "00000000000000ab-3-065537",
            "00000000000000ab-3-1 OR 1=1",
        ] {
            bad.parse::<LetterId>().expect_err(bad);
        }
        let text = format!("\"{id}\"");
        assert_eq!(serde_json::to_string(&id).expect("json"), text);
        assert_eq!(serde_json::from_str::<LetterId>(&text).expect("an id"), id);
    }
}
