//! The moment at which a key ends.

use crate::clock::UnixMs;
use serde::Deserialize;
use std::fmt;

/// A moment, written as RFC 3339 with an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Expiry(UnixMs);

impl Expiry {
    /// The moment so many milliseconds after 1970.
    #[must_use]
    pub const fn at(ms: UnixMs) -> Self {
        Self(ms)
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub const fn ms(self) -> UnixMs {
        self.0
    }
}

impl TryFrom<String> for Expiry {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let moment: Result<jiff::Timestamp, _> = text.parse();
        let ms = moment
            .ok()
            .and_then(|moment| UnixMs::try_from(moment.as_millisecond()).ok());
        ms.map(Self)
            .ok_or_else(|| format!("{text:?} is not a moment: write it as 2026-11-21T07:00:00Z"))
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = i64::try_from(self.0).unwrap_or(i64::MAX);
        // Beyond the year 9999 a key does not end.
        let moment = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX);
        write!(f, "{moment}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_reads_back_as_it_is_written() {
        for ms in [0, 9, 1_763_712_000_123] {
            assert_eq!(Expiry::try_from(Expiry::at(ms).to_string()), Ok(Expiry::at(ms)));
        }
        assert!(Expiry::try_from("tomorrow".to_owned()).is_err());
    }
}
