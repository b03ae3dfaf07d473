//! How a Kafka is reached: brokers, TLS, and who we are there.

use super::{Loaded, Text};
use crate::secret::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A Kafka beside the one under `kafka`, that a dataset is fed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Brokers {
    /// Brokers to begin with, `host:port`.
    pub brokers: Vec<String>,
    /// TLS is spoken; `tls: {}` trusts whom this machine trusts.
    #[serde(default)]
    pub tls: Option<KafkaTls>,
    /// Who we are.
    #[serde(default)]
    pub sasl: Option<Sasl>,
}

/// Who we are, with all references followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Name or id.
    pub name: String,
    pub secret: Secret,
    /// Where a token is fetched for them, and for what.
    pub token: Option<(String, Option<String>)>,
}

impl Loaded {
    /// Who we are where the config says this.
    #[must_use]
    pub fn login(&self, sasl: Option<&Sasl>) -> Option<&Login> {
        let sasl = sasl?;
        let (_, login) = self.kafka_logins.iter().find(|(told, _)| told == sasl)?;
        Some(login)
    }
}

/// Files of TLS, relative to the data directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaTls {
    /// Whom the brokers' certificates must be signed by; absent: whom this machine trusts.
    pub ca: Option<PathBuf>,
    /// Our certificate, where brokers ask for one; with `key`.
    pub cert: Option<PathBuf>,
    /// Its private key, not encrypted.
    pub key: Option<PathBuf>,
}

/// Name and password, or a token that is fetched for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    /// How we show who we are.
    pub mechanism: SaslMechanism,
    /// Who; with `password`.
    #[serde(default)]
    pub username: Option<Text>,
    /// Its password.
    #[serde(default)]
    pub password: Option<Text>,
    /// `oauthbearer`: where tokens are fetched (the token endpoint of OAuth 2.0's client credentials).
    #[serde(default)]
    pub token_url: Option<Text>,
    /// `oauthbearer`: who; with `client_secret`.
    #[serde(default)]
    pub client_id: Option<Text>,
    /// `oauthbearer`: its secret.
    #[serde(default)]
    pub client_secret: Option<Text>,
    /// `oauthbearer`: what the token is asked for.
    #[serde(default)]
    pub scope: Option<Text>,
    /// `oauthbearer`: whom the certificate of `token_url` must be signed by, relative to the data directory; absent: whom
    /// this machine trusts.
    #[serde(default)]
    pub token_ca: Option<PathBuf>,
}

impl Sasl {
    /// Who we are, whatever the mechanism calls it.
    #[must_use]
    pub fn name(&self) -> Option<&Text> {
        self.username.as_ref().or(self.client_id.as_ref())
    }

    /// The keys of both.
    pub(super) fn keys(&self) -> (&'static str, &'static str) {
        match self.mechanism == SaslMechanism::OauthBearer {
            true => ("client_id", "client_secret"),
            false => ("username", "password"),
        }
    }

    /// What shows it.
    #[must_use]
    pub fn secret(&self) -> Option<&Text> {
        self.password.as_ref().or(self.client_secret.as_ref())
    }

    fn problems(&self, at: &str, found: &mut Vec<String>) {
        let with_password = [
            ("username", self.username.is_some()),
            ("password", self.password.is_some()),
        ];
        let with_token = [
            ("token_url", self.token_url.is_some()),
            ("client_id", self.client_id.is_some()),
            ("client_secret", self.client_secret.is_some()),
        ];
        let rest = [
            ("scope", self.scope.is_some()),
            ("token_ca", self.token_ca.is_some()),
        ];
        let is_token = self.mechanism == SaslMechanism::OauthBearer;
        let (needed, others): (&[_], Vec<_>) = match is_token {
            true => (&with_token, with_password.to_vec()),
            false => (&with_password, [with_token.as_slice(), &rest].concat()),
        };
        let name = self.mechanism.name().to_lowercase();
        for (key, _) in needed.iter().filter(|(_, there)| !there) {
            found.push(format!("{at}.sasl: mechanism {name} needs `{key}`"));
        }
        for (key, _) in others.iter().filter(|(_, there)| *there) {
            found.push(format!("{at}.sasl: mechanism {name} takes no `{key}`"));
        }
    }
}

/// How we show who we are; `oauthbearer`: by a token of OAuth 2.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SaslMechanism {
    #[serde(rename = "plain")]
    Plain,
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
    #[serde(rename = "oauthbearer")]
    OauthBearer,
}

impl SaslMechanism {
    /// Kafka's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::OauthBearer => "OAUTHBEARER",
        }
    }
}

/// What may be wrong with the way to brokers, each a sentence that begins with `at`.
pub(super) fn problems(
    at: &str,
    (brokers, tls, sasl): (&[String], Option<&KafkaTls>, Option<&Sasl>),
    found: &mut Vec<String>,
) {
    for broker in brokers {
        let port = broker
            .rsplit_once(':')
            .map(|(host, port)| (host, port.parse::<u16>()));
        if !matches!(port, Some((host, Ok(1..))) if !host.is_empty() && !broker.contains([',', '/', ' '])) {
            found.push(format!("{at}.brokers: {broker:?} must be host:port"));
        }
    }
    if tls.is_some_and(|tls| tls.cert.is_some() != tls.key.is_some()) {
        found.push(format!("{at}.tls: `cert` and `key` belong together"));
    }
    if let Some(sasl) = sasl {
        sasl.problems(at, found);
    }
}

/// A secret is sent there.
pub(super) fn token_problem(at: &str, url: &str) -> Option<String> {
    let uri: Option<http::Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let is_here = ["localhost", "127.0.0.1", "[::1]"].contains(&host);
    let is_fine = match uri.as_ref().and_then(http::Uri::scheme_str) {
        Some("https") => !host.is_empty(),
        Some("http") => is_here,
        Some(_) | None => false,
    };
    (!is_fine).then(|| {
        format!("{at}.sasl.token_url: the client's secret is sent there: take https://, or http:// of this machine")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn told(yaml: &str) -> String {
        let read = Loaded::parse(yaml, Path::new("x"), Path::new("/"));
        read.map_or_else(|error| error.to_string(), |_| "in force".into())
    }

    #[test]
    fn each_mechanism_says_what_it_needs_and_what_it_does_not_take() {
        for (yaml, wanted) in [
            (
                "kafka: {sasl: {mechanism: plain, username: u}}".to_owned(),
                "kafka.sasl: mechanism plain needs `password`",
            ),
            (
                "kafka: {sasl: {mechanism: oauthbearer, client_id: c, client_secret: s}}".to_owned(),
                "kafka.sasl: mechanism oauthbearer needs `token_url`",
            ),
            (
                "kafka: {sasl: {mechanism: oauthbearer, token_url: \"https://a\", client_id: c, client_secret: s, username: u}}".to_owned(),
                "kafka.sasl: mechanism oauthbearer takes no `username`",
            ),
            (
                "kafka: {sasl: {mechanism: plain, username: u, password: p, scope: s}}".to_owned(),
                "kafka.sasl: mechanism plain takes no `scope`",
            ),
        ] {
            let told = told(&yaml);
            assert!(told.contains(wanted), "{yaml}: {told}");
        }
        for url in ["http://login.example/token", "ftp://a", "nowhere"] {
            let yaml = format!(
                "kafka: {{sasl: {{mechanism: oauthbearer, token_url: \"{url}\", client_id: c, client_secret: s}}}}"
            );
            assert!(
                told(&yaml).contains("kafka.sasl.token_url: the client's secret"),
                "{url}"
            );
        }
        let token = "kafka: {sasl: {mechanism: oauthbearer, token_url: \"https://a\", client_id: c, client_secret: s}}";
        assert_eq!(told(token), "in force");
    }
}
