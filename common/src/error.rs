//! Errors as a client sees them: RFC 9457 problem documents.

use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;

/// One refusal: what is wrong, machine-readable, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    status: u16,
    /// Stable, machine-readable: `unknown_dataset`, `unsupported_media_type`, …
    pub code: Cow<'static, str>,
    /// What is wrong here and what to do, for a person.
    pub detail: String,
    /// Seconds until a retry makes sense, where that is known.
    #[serde(default)]
    pub retry_after_s: Option<u32>,
    /// The limit that it is about, for the headers of limits.
    #[serde(default)]
    pub limit: Option<Box<Limit>>,
}

/// One limit and what is left of it, as `RateLimit-Policy` and `RateLimit` tell it
/// (draft-ietf-httpapi-ratelimit-headers).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Its name: `tenant-keys`.
    pub policy: Cow<'static, str>,
    /// What is counted: `events`.
    pub unit: Cow<'static, str>,
    /// How many may come within the window.
    pub most: u64,
    /// Seconds that the window lasts.
    pub window_s: u64,
    /// How many more may come now.
    pub left: u64,
}

impl Problem {
    /// A refusal with `status`.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status: status.as_u16(),
            code: Cow::Borrowed(code),
            detail: detail.into(),
            retry_after_s: None,
            limit: None,
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The document's body.
    #[must_use]
    pub fn to_json(&self, request_id: &str) -> Vec<u8> {
        self.to_json_with(request_id, None, &[])
    }

    /// The same of a registered type, and with members of its own.
    #[must_use]
    pub fn to_json_with(&self, request_id: &str, kind: Option<&str>, members: &[(&str, Value)]) -> Vec<u8> {
        let title = self.status().canonical_reason().unwrap_or("Error");
        let mut document = serde_json::json!({
            "type": kind.map_or_else(|| format!("urn:sluice:problem:{}", self.code), str::to_owned),
            "title": title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        });
        for (name, value) in members {
            document[*name] = value.clone();
        }
        document.to_string().into_bytes()
    }
}

/// An error with its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let part = next.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = next.source();
    }
    text
}
