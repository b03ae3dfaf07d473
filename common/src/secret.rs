//! Secrets: never in logs, argv, metrics, traces or errors.

use http::{HeaderMap, HeaderValue, header};
use std::fmt;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// A secret text. `Debug` and `Display` show nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a secret; surrounding white space (a file's last newline) does not belong to it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.trim().into())
    }

    /// The secret itself, for the one place that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// As an `Authorization` header, marked sensitive.
    ///
    /// # Panics
    /// Never for a secret that config validation let through: it checks that it is visible ASCII.
    #[must_use]
    pub fn bearer(&self) -> HeaderValue {
        let mut value =
            HeaderValue::from_str(&format!("Bearer {}", self.0)).expect("checked when it was read");
        value.set_sensitive(true);
        value
    }

    /// Whether the request carries this secret as its bearer token; compared in constant time.
    #[must_use]
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let given = given
            .and_then(|value| value.strip_prefix("Bearer "))
            .unwrap_or_default();
        given.as_bytes().ct_eq(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
