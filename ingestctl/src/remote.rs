//! A running Sluice, as verbs speak to it: over the admin listeners of its services.
//!
//! One address is enough for `ingestctl up`. Of three processes each has a listener of its own: name
//! all of them, and a control route is asked for until one of them has it.

use crate::http::{Ask, Http};
use bytes::Bytes;
use clap::Args;
use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::Value;
use sluice_common::limits::ADMIN_DEADLINE;
use sluice_common::process::Failure;
use sluice_common::secret::Secret;
use std::path::PathBuf;
use std::time::Duration;

/// The environment variable that holds the token: never an argument, which others on the machine can read.
pub const TOKEN_VARIABLE: &str = "SLUICE_ADMIN_TOKEN";
/// For probes and metrics.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// For control routes: they answer within their own deadline.
const CONTROL_DEADLINE: Duration = ADMIN_DEADLINE.saturating_add(Duration::from_secs(5));

/// The options of all verbs that speak to a running Sluice: `#[command(flatten)]` them.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// Admin listeners to ask. For services in processes of their own name each, separated by commas.
    #[arg(
        long,
        env = "SLUICE_ADMIN",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:9464"
    )]
    pub admin: Vec<String>,
    /// A file with `admin_token`, for listeners beyond loopback; else SLUICE_ADMIN_TOKEN has it.
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
}

impl AdminArgs {
    /// The Sluice that these options lead to. Nothing is sent yet.
    ///
    /// # Errors
    /// An address that is none, or a token that cannot be read.
    pub fn remote(&self) -> Result<Remote, Failure> {
        let mut addresses = Vec::with_capacity(self.admin.len());
        for address in &self.admin {
            let address = address.trim().trim_end_matches('/');
            if !address.starts_with("http://") {
                return Err(Failure::new(format!(
                    "--admin {address:?} must be http://host:port"
                )));
            }
            addresses.push(address.to_owned());
        }
        Ok(Remote {
            http: Http::default(),
            addresses,
            token: self.token()?,
        })
    }

    fn token(&self) -> Result<Option<Secret>, Failure> {
        let text =
            match &self.admin_token_file {
                Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
                    Failure::new(format!("--admin-token-file {}: {error}", path.display()))
                })?),
                None => std::env::var(TOKEN_VARIABLE).ok(),
            };
        let text = text.filter(|text| !text.trim().is_empty());
        match text {
            Some(text) if !text.trim().bytes().all(|c| c.is_ascii_graphic()) => Err(Failure::new(
                "the admin token has characters that cannot stand in an HTTP header",
            )),
            text => Ok(text.map(|text| Secret::new(&text))),
        }
    }
}

/// A running Sluice. Cloning shares connections.
#[derive(Debug, Clone)]
pub struct Remote {
    http: Http,
    addresses: Vec<String>,
    token: Option<Secret>,
}

/// Why a Sluice did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error(
        "Sluice does not answer at {address}: {reason}; start it, or name its admin listener with --admin URL"
    )]
    Unreachable { address: String, reason: String },
    /// A problem document.
    #[error("{detail} ({code})")]
    Refused {
        status: StatusCode,
        code: String,
        detail: String,
    },
    #[error("what answers at {address} is not Sluice's admin listener: {reason}")]
    NotSluice { address: String, reason: String },
}

impl RemoteError {
    /// The problem's code, where Sluice refused.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            Self::Unreachable { .. } | Self::NotSluice { .. } => None,
        }
    }
}

impl Remote {
    /// The admin listeners, in the order given.
    #[must_use]
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Asks a control route of whichever service has it.
    ///
    /// # Errors
    /// [`RemoteError`]; where no listener has the route, the first one's directions.
    pub async fn get(&self, path: &str) -> Result<Value, RemoteError> {
        self.anywhere(Method::GET, path, Bytes::new()).await
    }

    /// Posts a document to a control route of whichever service has it.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post(&self, path: &str, body: &impl Serialize) -> Result<Value, RemoteError> {
        let body = serde_json::to_vec(body).map_err(|error| RemoteError::NotSluice {
            address: path.to_owned(),
            reason: error.to_string(),
        })?;
        self.anywhere(Method::POST, path, body.into()).await
    }

    /// Asks a control route of one listener.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn get_at(&self, address: &str, path: &str) -> Result<Value, RemoteError> {
        self.control(address, Method::GET, path, Bytes::new()).await
    }

    /// A probe's or metrics' status and text, of one listener.
    ///
    /// # Errors
    /// [`RemoteError::Unreachable`].
    pub async fn text(&self, address: &str, path: &str) -> Result<(StatusCode, String), RemoteError> {
        let (status, body) = self
            .exchange(address, Method::GET, path, (Bytes::new(), PROBE_DEADLINE))
            .await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    async fn anywhere(&self, method: Method, path: &str, body: Bytes) -> Result<Value, RemoteError> {
        let mut first = None;
        for address in &self.addresses {
            match self.control(address, method.clone(), path, body.clone()).await {
                Err(error) if error.code() == Some("unknown_admin_route") => {
                    first.get_or_insert(error);
                }
                answer => return answer,
            }
        }
        Err(first.unwrap_or_else(|| RemoteError::Unreachable {
            address: "(none)".into(),
            reason: "no address was given".into(),
        }))
    }

    async fn control(
        &self,
        address: &str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Value, RemoteError> {
        let (status, body) = self
            .exchange(address, method, path, (body, CONTROL_DEADLINE))
            .await?;
        let odd = |reason: String| RemoteError::NotSluice {
            address: address.to_owned(),
            reason,
        };
        let answer: Value = serde_json::from_slice(&body)
            .map_err(|_| odd(format!("it answered {status} without a JSON document")))?;
        if status.is_success() {
            return Ok(answer);
        }
        let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
        let code = text("code").ok_or_else(|| odd(format!("it answered {status}")))?;
        Err(RemoteError::Refused {
            status,
            code,
            detail: text("detail").unwrap_or_default(),
        })
    }

    async fn exchange(
        &self,
        address: &str,
        method: Method,
        path: &str,
        (body, deadline): (Bytes, Duration),
    ) -> Result<(StatusCode, Bytes), RemoteError> {
        let url = format!("{address}{path}");
        let ask = Ask {
            method,
            url: &url,
            bearer: self.token.as_ref().map(Secret::expose),
            content_type: (!body.is_empty()).then_some("application/json"),
            body,
            deadline,
        };
        self.http
            .send(ask)
            .await
            .map_err(|failure| RemoteError::Unreachable {
                address: address.to_owned(),
                reason: failure.to_string().replacen(&format!("{url}: "), "", 1),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(admin: &[&str]) -> AdminArgs {
        AdminArgs {
            admin: admin.iter().map(|&one| one.to_owned()).collect(),
            admin_token_file: None,
        }
    }

    #[test]
    fn an_address_that_is_none_is_told() {
        let failure = args(&["localhost:9464"])
            .remote()
            .expect_err("no scheme")
            .to_string();
        assert!(failure.contains("http://host:port"), "{failure}");
        let remote = args(&["http://a:1/", " http://b:2"]).remote().expect("addresses");
        assert_eq!(remote.addresses(), ["http://a:1", "http://b:2"]);
    }

    #[tokio::test]
    async fn nobody_there_is_told_with_what_to_do() {
        let remote = args(&["http://127.0.0.1:1"]).remote().expect("an address");
        let error = remote
            .get("/admin/v1/tenants")
            .await
            .expect_err("nobody")
            .to_string();
        assert!(
            error.contains("127.0.0.1:1") && error.contains("--admin"),
            "{error}"
        );
    }
}
