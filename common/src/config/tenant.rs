//! Who may send: a tenant, its keys, and its part of what is short.

use super::{CertificateName, Expiry, Quota};
use crate::ids::{Name, TenantId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A tenant and its keys.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// In the column `tenant` of every row.
    pub id: TenantId,
    /// Its API keys; several are valid at once.
    pub keys: Vec<KeyHash>,
    /// Names of client certificates that are this tenant's; needs `edge.tls.client_ca`.
    #[serde(default)]
    pub certificates: Vec<CertificateName>,
    /// Datasets it may write; absent: all.
    pub datasets: Option<Vec<Name>>,
    /// How much it may send; absent: as much as is taken.
    #[serde(default)]
    pub quota: Quota,
    /// Its part of what is short, beside the weights of others: 1 to 1,000.
    #[serde(default)]
    pub weight: Weight,
}

/// An API key, stored as its hash only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyHash {
    /// SHA-256 of the whole key (`slc_ID_SECRET`), 64 hex digits.
    pub sha256: String,
    /// From then on it is not known any more; absent: it does not end.
    #[serde(default)]
    pub until: Option<Expiry>,
}

impl KeyHash {
    /// A key that does not end.
    #[must_use]
    pub fn lasting(sha256: impl Into<String>) -> Self {
        Self {
            sha256: sha256.into(),
            until: None,
        }
    }

    /// Has it end at `ms`, unless it ends sooner.
    pub fn end_by(&mut self, ms: u64) {
        let until = Expiry::at(ms);
        self.until = Some(self.until.map_or(until, |sooner| sooner.min(until)));
    }
}

/// How much of what is short a tenant gets beside others; they all have 1 where nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Weight(u32);

impl Weight {
    /// Above it a tenant of weight 1 would wait for minutes beside one that has all.
    pub const MAX: u32 = 1_000;

    /// 1 to [`Weight::MAX`].
    #[must_use]
    pub fn new(weight: u32) -> Option<Self> {
        (1..=Self::MAX).contains(&weight).then_some(Self(weight))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(1)
    }
}

impl From<Weight> for u32 {
    fn from(weight: Weight) -> Self {
        weight.0
    }
}

impl TryFrom<u32> for Weight {
    type Error = String;

    fn try_from(weight: u32) -> Result<Self, String> {
        Self::new(weight).ok_or_else(|| format!("{weight} is no weight: it is 1 to {}", Self::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_one_to_a_thousand_and_one_where_nothing_is_said() {
        let read = |text: &str| serde_json::from_str::<Weight>(text).ok().map(Weight::get);
        assert_eq!((read("1"), read("1000")), (Some(1), Some(1_000)));
        for bad in ["0", "1001", "-1", "1.5"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(Weight::default().get(), 1);
    }
}
