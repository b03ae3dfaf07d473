//! How much a tenant may send: rates with a burst, and how many requests at once.

use super::{ByteSize, Count, Period, Tenant};
use crate::ids::Name;
use crate::limits::{MAX_QUOTA_BURST, MIN_QUOTA_BURST};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a tenant may send; what is absent is not limited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Events: lines, or elements of an array, the rejected ones included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_per_second: Option<Count>,
    /// Bytes of bodies after decompression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<ByteSize>,
    /// Requests, whatever is in them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<Count>,
    /// Requests that are not answered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_requests: Option<Count>,
    /// What may come at once, as the time in which the rates give it: 1s to 1h.
    pub burst: Period,
    /// What is over is counted and logged, and taken all the same.
    pub dry_run: bool,
    /// Limits of single datasets, which hold besides the tenant's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub datasets: BTreeMap<Name, Rates>,
}

/// Rates of one dataset; what is absent is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// Events: lines, or elements of an array, the rejected ones included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_per_second: Option<Count>,
    /// Bytes of bodies after decompression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<ByteSize>,
    /// Requests, whatever is in them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<Count>,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            events_per_second: None,
            bytes_per_second: None,
            requests_per_second: None,
            concurrent_requests: None,
            burst: Period::millis(2_000),
            dry_run: false,
            datasets: BTreeMap::new(),
        }
    }
}

impl Quota {
    /// The tenant's own rates.
    #[must_use]
    pub fn rates(&self) -> Rates {
        Rates {
            events_per_second: self.events_per_second,
            bytes_per_second: self.bytes_per_second,
            requests_per_second: self.requests_per_second,
        }
    }

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        let none = |rates: Rates| rates == Rates::default();
        none(self.rates()) && self.concurrent_requests.is_none() && self.datasets.values().copied().all(none)
    }

    /// What is wrong with it, each a sentence that begins with the key.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        if !(MIN_QUOTA_BURST..=MAX_QUOTA_BURST).contains(&self.burst.ms()) {
            found.push("quota.burst must be 1s to 1h: within it a whole request must fit".into());
        }
        if self.concurrent_requests == Some(Count(0)) {
            found.push("quota.concurrent_requests is 0: no request could be taken".into());
        }
        check_rates("quota", self.rates(), self.burst, &mut found);
        for (name, rates) in &self.datasets {
            check_rates(&format!("quota.datasets.{name}"), *rates, self.burst, &mut found);
        }
        found
    }
}

impl Rates {
    /// Each with its key.
    #[must_use]
    pub fn named(self) -> [(&'static str, Option<u64>); 3] {
        [
            ("events_per_second", self.events_per_second.map(|rate| rate.0)),
            ("bytes_per_second", self.bytes_per_second.map(|rate| rate.0)),
            ("requests_per_second", self.requests_per_second.map(|rate| rate.0)),
        ]
    }
}

/// What may come at once at `rate` a second; at most what a bucket can count.
///
/// # Errors
/// Where it is more than that.
pub fn burst_of(rate: u64, burst: Period) -> Result<u32, TooMuch> {
    let all = u128::from(rate) * u128::from(burst.ms()) / 1_000;
    u32::try_from(all).map_err(|_| TooMuch)
}

/// A rate times its burst that no bucket can count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("times `burst` this is over 4294967295: lower one of them")]
pub struct TooMuch;

fn check_rates(at: &str, rates: Rates, burst: Period, found: &mut Vec<String>) {
    for (key, rate) in rates.named() {
        match rate.map(|rate| (rate, burst_of(rate, burst))) {
            Some((0, _)) => found.push(format!(
                "{at}.{key} is 0: nothing could be taken; leave it out where there is no limit, or revoke the tenant"
            )),
            Some((_, Err(error))) => found.push(format!("{at}.{key}: {error}")),
            Some((_, Ok(_))) | None => {}
        }
    }
}

/// What is wrong with a tenant's quota beside the datasets that there are.
pub(super) fn problems(tenant: &Tenant, exists: impl Fn(&Name) -> bool, found: &mut Vec<String>) {
    let mut add = |text: String| found.push(format!("tenants: {}: {text}", tenant.id));
    tenant.quota.problems().into_iter().for_each(&mut add);
    for name in tenant.quota.datasets.keys() {
        if !exists(name) {
            add(format!(
                "quota.datasets.{name} is not defined: add it under `datasets`, or take it out"
            ));
        } else if tenant.datasets.as_ref().is_some_and(|list| !list.contains(name)) {
            add(format!(
                "quota.datasets.{name} is none of the tenant's `datasets`: it limits nothing"
            ));
        }
    }
}

/// Which part of every quota one edge gives: `50%`, or a whole number of percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(u8);

impl Share {
    /// 1 to 100 percent.
    #[must_use]
    pub fn percent(percent: u8) -> Option<Self> {
        (1..=100).contains(&percent).then_some(Self(percent))
    }

    /// This part of `whole`, and at least 1.
    #[must_use]
    pub fn of(self, whole: u64) -> u64 {
        let part = u128::from(whole) * u128::from(self.0) / 100;
        u64::try_from(part).unwrap_or(u64::MAX).max(1)
    }
}

impl Default for Share {
    fn default() -> Self {
        Self(100)
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl std::str::FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim().trim_end_matches('%').trim_end();
        let percent = number.parse().ok().and_then(Self::percent);
        percent.ok_or_else(|| format!("{text:?} is not understood: write it like 50%, from 1% to 100%"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loaded;
    use std::path::Path;

    fn problems(quota: &str) -> String {
        let yaml = format!("tenants:\n- id: acme\n  keys: []\n  datasets: [events]\n  quota: {quota}\n");
        match Loaded::parse(&yaml, Path::new("x"), Path::new("/")) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_quota_is_read_as_people_write_it() {
        let good = "{events_per_second: 50k, bytes_per_second: 64MiB, burst: 2s, concurrent_requests: 64, \
                    dry_run: true, datasets: {events: {requests_per_second: 5}}}";
        assert_eq!(problems(good), "");
        assert_eq!(problems("{}"), "");
        assert!(Quota::default().is_unlimited());
        let read: Quota =
            serde_json::from_str(r#"{"events_per_second": 5, "bytes_per_second": "1MiB"}"#).unwrap();
        assert_eq!(read.bytes_per_second, Some(ByteSize::mib(1)));
        assert!(!read.is_unlimited());
        let again = serde_json::from_value(serde_json::to_value(&read).unwrap());
        assert_eq!(again.ok(), Some(read));
    }

    #[test]
    fn a_quota_that_cannot_be_meant_is_told_with_its_place() {
        for (bad, said) in [
            ("{events_per_second: 0}", "quota.events_per_second is 0"),
            ("{requests_per_second: 0}", "quota.requests_per_second is 0"),
            ("{concurrent_requests: 0}", "quota.concurrent_requests is 0"),
            (
                "{events_per_second: 5, burst: 500ms}",
                "quota.burst must be 1s to 1h",
            ),
            (
                "{events_per_second: 5, burst: 2h}",
                "quota.burst must be 1s to 1h",
            ),
            (
                "{bytes_per_second: 1TiB}",
                "quota.bytes_per_second: times `burst` this is over",
            ),
            (
                "{events_per_second: 18446744073709551615}",
                "this is over 4294967295",
            ),
            (
                "{datasets: {nowhere: {events_per_second: 5}}}",
                "quota.datasets.nowhere is not defined",
            ),
            (
                "{datasets: {events: {bytes_per_second: 0}}}",
                "quota.datasets.events.bytes_per_second is 0",
            ),
            ("{events_per_minute: 5}", "`events_per_minute` is not a key here"),
            ("{events_per_second: many}", "write it like"),
        ] {
            let found = problems(bad);
            assert!(found.contains(said), "{bad}: {found}");
            assert!(found.contains("tenants[0].quota"), "{bad}: {found}");
        }
    }

    #[test]
    fn a_share_is_one_to_a_hundred_percent() {
        for (text, percent) in [
            ("50%", Some(50)),
            ("100", Some(100)),
            (" 1 %", Some(1)),
            ("0%", None),
            ("101", None),
            ("half", None),
        ] {
            assert_eq!(
                text.parse::<Share>().ok(),
                percent.and_then(Share::percent),
                "{text}"
            );
        }
        let share = Share::percent(33).unwrap();
        assert_eq!(
            (share.of(10), share.of(1), share.of(u64::MAX / 50)),
            (3, 1, u64::MAX / 50 / 100 * 33 + 10)
        );
    }
}
