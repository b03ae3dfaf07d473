//! Keys of TLS: PEM files, by paths relative to the data directory, and the names by which a
//! certificate is a tenant's.

use super::{Config, Loaded};
use crate::tls::client::ClientFiles;
use crate::tls::server::{Clients, ServerFiles};
use crate::tls::{ClientName, PemFile};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// What the public listeners show.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EdgeTls {
    /// The certificate, then those that signed it.
    pub cert: PathBuf,
    /// Its private key, not encrypted.
    pub key: PathBuf,
    /// Clients are asked for a certificate, and one that they show must be signed by these.
    pub client_ca: Option<PathBuf>,
}

/// What every service shows to the others, and whom it lets in.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InternalTls {
    /// For both sides of a connection: its names are those in the peers' addresses.
    pub cert: PathBuf,
    /// Its private key, not encrypted.
    pub key: PathBuf,
    /// Who signs our services' certificates, and nothing else: each of them is let in.
    pub ca: PathBuf,
}

/// A name that a client's certificate may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CertificateName {
    /// A DNS name among its subject alternative names.
    Dns(String),
    /// A URI among its subject alternative names, as SPIFFE ids are.
    Uri(String),
    /// Its subject's common name, where it has no alternative names.
    Cn(String),
}

impl CertificateName {
    /// As it is compared.
    #[must_use]
    pub fn client_name(&self) -> ClientName {
        match self {
            Self::Dns(name) => ClientName::dns(name),
            Self::Uri(name) => ClientName::Uri(name.clone()),
            Self::Cn(name) => ClientName::Cn(name.clone()),
        }
    }
}

impl Loaded {
    /// The files of `edge.tls`, if it is set.
    #[must_use]
    pub fn edge_tls(&self) -> Option<ServerFiles> {
        let tls = self.config.edge.tls.as_ref()?;
        let ca = tls.client_ca.as_ref();
        Some(ServerFiles {
            name: "edge",
            cert: self.pem("edge.tls.cert", &tls.cert),
            key: self.pem("edge.tls.key", &tls.key),
            clients: ca.map_or(Clients::Anyone, |ca| {
                Clients::MayShow(self.pem("edge.tls.client_ca", ca))
            }),
        })
    }

    /// The files of an inner listener, if `internal.tls` is set.
    #[must_use]
    pub fn inner_listener_tls(&self) -> Option<ServerFiles> {
        let tls = self.config.internal.tls.as_ref()?;
        Some(ServerFiles {
            name: "internal",
            cert: self.pem("internal.tls.cert", &tls.cert),
            key: self.pem("internal.tls.key", &tls.key),
            clients: Clients::MustShow(self.pem("internal.tls.ca", &tls.ca)),
        })
    }

    /// The files of a client of an inner listener, if `internal.tls` is set.
    #[must_use]
    pub fn inner_client_tls(&self) -> Option<ClientFiles> {
        let tls = self.config.internal.tls.as_ref()?;
        Some(ClientFiles {
            name: "internal",
            ca: Some(self.pem("internal.tls.ca", &tls.ca)),
            shows: Some((
                self.pem("internal.tls.cert", &tls.cert),
                self.pem("internal.tls.key", &tls.key),
            )),
            alpn: "h2",
        })
    }

    /// Whom a client of the ClickHouse at `url` trusts, if TLS is spoken there.
    #[must_use]
    pub fn clickhouse_tls(&self, url: &str) -> Option<ClientFiles> {
        let ca = self.config.clickhouse.ca.as_ref();
        url.starts_with("https://").then(|| ClientFiles {
            name: "clickhouse",
            ca: ca.map(|ca| self.pem("clickhouse.ca", ca)),
            shows: None,
            alpn: "http/1.1",
        })
    }

    fn pem(&self, key: &'static str, path: &Path) -> PemFile {
        PemFile {
            key,
            path: self.data_dir.join(path),
        }
    }
}

/// What may be wrong with these keys, each a sentence that names its place.
pub(super) fn problems(config: &Config, found: &mut Vec<String>) {
    let (scheme, why) = if config.internal.tls.is_some() {
        ("https://", "`internal.tls` is set")
    } else {
        ("http://", "`internal.tls` is not set")
    };
    let peers = [
        ("edge.normalizer", &config.edge.normalizer),
        ("normalizer.sink_writer", &config.normalizer.sink_writer),
    ];
    for (key, peers) in peers {
        for peer in peers.iter().filter(|peer| !peer.starts_with(scheme)) {
            found.push(format!("{key}: {peer:?} must be {scheme}host:port, since {why}"));
        }
    }
    certificates(config, found);
}

fn certificates(config: &Config, found: &mut Vec<String>) {
    let asks = config
        .edge
        .tls
        .as_ref()
        .is_some_and(|tls| tls.client_ca.is_some());
    let mut names = HashSet::new();
    for tenant in &config.tenants {
        if !asks && !tenant.certificates.is_empty() {
            found.push(format!(
                "tenants: {}: `certificates` needs `edge.tls.client_ca`: without it no client is asked for one",
                tenant.id
            ));
        }
        for name in tenant.certificates.iter().map(CertificateName::client_name) {
            let (ClientName::Dns(text) | ClientName::Uri(text) | ClientName::Cn(text)) = &name;
            if text.trim().is_empty() {
                found.push(format!(
                    "tenants: {}: a name in `certificates` is empty",
                    tenant.id
                ));
            }
            let shown = name.to_string();
            if !names.insert(name) {
                found.push(format!(
                    "tenants: {}: the certificate {shown} is listed twice",
                    tenant.id
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(yaml: &str) -> String {
        let loaded = Loaded::parse(yaml, Path::new("test.yaml"), Path::new("/data"));
        loaded.expect_err("must be refused").to_string()
    }

    #[test]
    fn paths_are_taken_from_the_data_directory_and_what_is_absolute_stays() {
        let yaml = "edge: {tls: {cert: tls/a.crt, key: /etc/a.key, client_ca: ca.crt}, normalizer: [\"https://a:1\"]}\n\
                    normalizer: {sink_writer: [\"https://a:2\"]}\n\
                    internal: {tls: {cert: i.crt, key: i.key, ca: i.ca}}\n\
                    clickhouse: {url: \"https://c:8443\", ca: c.ca}\n\
                    tenants: [{id: acme, keys: [], certificates: [{dns: Agent.Acme.Example}, {uri: \"spiffe://x/a\"}, {cn: a}]}]\n";
        let loaded = Loaded::parse(yaml, Path::new("x"), Path::new("/data")).expect("valid");
        let edge = loaded.edge_tls().expect("set");
        assert_eq!(edge.cert.path, Path::new("/data/tls/a.crt"));
        assert_eq!(edge.key.path, Path::new("/etc/a.key"));
        assert!(matches!(edge.clients, Clients::MayShow(ca) if ca.path == Path::new("/data/ca.crt")));
        let inner = loaded.inner_listener_tls().expect("set");
        assert!(matches!(inner.clients, Clients::MustShow(ca) if ca.path == Path::new("/data/i.ca")));
        assert!(
            loaded
                .inner_client_tls()
                .is_some_and(|files| files.shows.is_some())
        );
        assert!(loaded.clickhouse_tls("http://c:8123").is_none());
        assert!(
            loaded
                .clickhouse_tls("https://c:8443")
                .is_some_and(|files| files.ca.is_some())
        );
        let names = &loaded.config.tenants[0].certificates;
        assert_eq!(
            names[0].client_name(),
            ClientName::Dns("agent.acme.example".into())
        );
    }

    #[test]
    fn what_would_not_work_is_refused_with_the_remedy() {
        let inner = "internal: {tls: {cert: a, key: b, ca: c}}";
        for (yaml, part) in [
            (inner, "must be https://host:port, since `internal.tls` is set"),
            (
                "edge: {normalizer: [\"https://a:1\"]}",
                "must be http://host:port, since `internal.tls` is not set",
            ),
            ("edge: {tls: {cert: a}}", "key"),
            (
                "tenants: [{id: a, keys: [], certificates: [{dns: a}]}]",
                "needs `edge.tls.client_ca`",
            ),
            (
                "edge: {tls: {cert: a, key: b, client_ca: c}}\n\
                 tenants: [{id: a, keys: [], certificates: [{dns: A.b}]}, {id: b, keys: [], certificates: [{dns: a.B}]}]",
                "the certificate dns a.b is listed twice",
            ),
            (
                "edge: {tls: {cert: a, key: b, client_ca: c}}\ntenants: [{id: a, keys: [], certificates: [{cn: \" \"}]}]",
                "is empty",
            ),
            (
                "clickhouse: {url: \"http://a:1\", ca: c}",
                "`clickhouse.ca` is for https://",
            ),
            (
                "sink_writer: {listen: \"0.0.0.0:1\"}",
                "`internal.token` or `internal.tls`",
            ),
        ] {
            let text = refusal(yaml);
            assert!(text.contains(part), "{yaml}: {text}");
        }
    }

    #[test]
    fn an_inner_listener_beyond_loopback_is_let_in_with_mutual_tls_alone() {
        let yaml = "edge: {normalizer: [\"https://a:1\"]}\n\
                    normalizer: {listen: \"0.0.0.0:1\", sink_writer: [\"https://a:2\"]}\n\
                    internal: {tls: {cert: i.crt, key: i.key, ca: i.ca}}\n";
        Loaded::parse(yaml, Path::new("x"), Path::new("/data")).expect("valid");
    }
}
