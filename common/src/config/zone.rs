//! Time zones by their IANA name, from the database that is built in: none of the system's is needed.

use jiff::tz::TimeZone;
use serde::de::{Deserialize, Deserializer, Error};
use std::fmt;
use std::sync::Arc;

/// A time zone that is known; UTC by default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Zone(Option<Arc<str>>);

impl Zone {
    /// The zone of that name, in whatever case.
    ///
    /// # Errors
    /// A sentence, where no zone has that name.
    pub fn new(name: &str) -> Result<Self, String> {
        let zone = TimeZone::get(name)
            .map_err(|_| format!("time zone {name:?} is not known: use an IANA name like Europe/Berlin"))?;
        let name = zone.iana_name().unwrap_or("UTC");
        Ok(Self((name != "UTC").then(|| name.into())))
    }

    /// Whether it is UTC.
    #[must_use]
    pub fn is_utc(&self) -> bool {
        self.0.is_none()
    }

    /// Its IANA name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.as_deref().unwrap_or("UTC")
    }

    /// Its rules.
    #[must_use]
    pub fn rules(&self) -> TimeZone {
        TimeZone::get(self.name()).unwrap_or(TimeZone::UTC)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_known_without_the_system_s_database() {
        let berlin = Zone::new("europe/berlin").expect("known");
        assert_eq!(berlin.name(), "Europe/Berlin");
        assert_eq!(berlin.rules().iana_name(), Some("Europe/Berlin"));
        assert!(Zone::new("UTC").is_ok_and(|zone| zone.is_utc()));
        assert!(Zone::new("Europe/Atlantis").is_err_and(|why| why.contains("IANA")));
        assert!(Zone::new("").is_err());
    }
}
