//! ClickHouse servers, as a range is pinned to one: rows are sent to a server and proven on that server,
//! and on no other (R14).

use serde::{Deserialize, Serialize};
use std::fmt;

/// Servers that one config may name: each is asked every second while one of them is down.
pub const MAX_SERVERS: usize = 8;
/// The name of the ClickHouse that `ingestctl up` runs itself: its port may be another at each start.
pub const EMBEDDED: &str = "embedded";

/// One server, the same whatever its place in the config.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServerId {
    /// Host and port of its URL, or [`EMBEDDED`].
    pub name: String,
    /// What it calls itself (`serverUUID()`), where it has told that and it is not all zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

impl ServerId {
    /// A server of which no more is known than its name.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        let name = name.into();
        Self { name, uuid: None }
    }

    /// Whether both are one server, as far as is known: what it calls itself counts before its name.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        match (&self.uuid, &other.uuid) {
            (Some(one), Some(other)) => one == other,
            (None, _) | (_, None) => self.name == other.name,
        }
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The name of the server behind a URL: host and port, the scheme's port where it names none.
#[must_use]
pub fn name_of(url: &str) -> String {
    let (rest, port) = match url.split_once("://") {
        Some(("https", rest)) => (rest, 8_443),
        Some((_, rest)) => (rest, 8_123),
        None => (url, 8_123),
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.to_ascii_lowercase();
    let has_port = host
        .rsplit_once(':')
        .is_some_and(|(before, port)| !port.is_empty() && !before.is_empty() && !port.ends_with(']'));
    if has_port { host } else { format!("{host}:{port}") }
}

/// What is known of one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSeen {
    pub id: ServerId,
    /// It answered lately.
    pub up: bool,
    /// For so many ms it has been up, or down.
    pub for_ms: u64,
}

/// All servers, in the config's order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServersSeen {
    pub servers: Vec<ServerSeen>,
    /// Which one new ranges go to.
    pub chosen: usize,
}

impl ServersSeen {
    /// Where new ranges go.
    #[must_use]
    pub fn chosen(&self) -> Option<&ServerSeen> {
        self.servers.get(self.chosen)
    }

    /// What is known of one server; the first where none is named, because there was one only once.
    #[must_use]
    pub fn of(&self, id: Option<&ServerId>) -> Option<&ServerSeen> {
        match id {
            None => self.servers.first(),
            Some(id) => self.servers.iter().find(|seen| seen.id.is(id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_host_and_port_whatever_else_its_url_says() {
        for (url, name) in [
            ("http://A:8123", "a:8123"),
            ("http://a:8123/", "a:8123"),
            ("http://a", "a:8123"),
            ("https://a/x?y", "a:8443"),
            ("http://u:p@a:9", "a:9"),
            ("http://[::1]:8123", "[::1]:8123"),
            ("http://[::1]", "[::1]:8123"),
        ] {
            assert_eq!(name_of(url), name, "{url}");
        }
    }

    #[test]
    fn what_a_server_calls_itself_counts_before_its_name() {
        let id = |name: &str, uuid: Option<&str>| ServerId {
            name: name.into(),
            uuid: uuid.map(Into::into),
        };
        assert!(
            id("a:1", Some("x")).is(&id("b:1", Some("x"))),
            "two ways to one server"
        );
        assert!(
            !id("a:1", Some("x")).is(&id("a:1", Some("y"))),
            "another server behind the name"
        );
        assert!(id("a:1", None).is(&id("a:1", Some("y"))));
        assert!(!id("a:1", None).is(&id("b:1", None)));
    }
}
