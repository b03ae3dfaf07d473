//! Where calls may go: the peers of the config, and of a name with several addresses each of these.

use crate::limits::{ABSENT_REST, RESOLVE_EVERY};
use crate::tls::client::{ClientTls, Dialer};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const H2_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// All peers, as they are known now.
#[derive(Debug)]
pub(super) struct Peers {
    tls: Option<ClientTls>,
    /// By URL of the config, in its order.
    known: ArcSwap<Vec<Vec<Arc<Peer>>>>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Peer {
    /// Without a slash at its end.
    pub(super) url: String,
    /// One of the addresses of its name; none: whatever the name leads to.
    address: Option<IpAddr>,
    pub(super) client: Client<Dialer, Full<Bytes>>,
    /// Nobody listened there lately.
    rests_until: Mutex<Option<Instant>>,
}

impl Peer {
    fn new(url: &str, address: Option<IpAddr>, tls: Option<ClientTls>) -> Arc<Self> {
        let dialer = match address {
            Some(address) => Dialer::to(address, tls, CONNECT_DEADLINE),
            None => Dialer::new(tls, CONNECT_DEADLINE),
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http2_only(true)
            .http2_initial_stream_window_size(H2_WINDOW_BYTES)
            .http2_initial_connection_window_size(H2_WINDOW_BYTES)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .http2_keep_alive_timeout(Duration::from_secs(20))
            .retry_canceled_requests(false)
            .build(dialer);
        Arc::new(Self {
            url: url.trim_end_matches('/').to_owned(),
            address,
            client,
            rests_until: Mutex::default(),
        })
    }

    /// For messages.
    pub(super) fn name(&self) -> String {
        let uri: Option<Uri> = self.url.parse().ok();
        let authority = uri.as_ref().and_then(Uri::authority);
        let name = authority.map_or(self.url.as_str(), |authority| authority.as_str());
        match self.address {
            Some(address) => format!("{name} ({address})"),
            None => name.to_owned(),
        }
    }

    /// Others go first for a while.
    pub(super) fn rest(&self) {
        *self.rests_until.lock() = Some(Instant::now() + ABSENT_REST);
    }

    fn rests(&self, now: Instant) -> bool {
        self.rests_until.lock().is_some_and(|until| now < until)
    }
}

impl Peers {
    /// Those of the config. Names are looked up as long as the answer lives.
    pub(super) fn new(urls: &[String], tls: Option<ClientTls>, looks_up: bool) -> Arc<Self> {
        let by_name = urls.iter().map(|url| vec![Peer::new(url, None, tls.clone())]);
        let peers = Arc::new(Self {
            known: ArcSwap::from_pointee(by_name.collect()),
            tls,
        });
        let names: Vec<(usize, String, u16)> = urls
            .iter()
            .enumerate()
            .filter_map(|(at, url)| name_of(url).map(|(host, port)| (at, host, port)))
            .collect();
        if looks_up && !names.is_empty() && tokio::runtime::Handle::try_current().is_ok() {
            let known = Arc::downgrade(&peers);
            tokio::spawn(async move {
                while let Some(peers) = known.upgrade() {
                    for (at, host, port) in &names {
                        match tokio::net::lookup_host((host.as_str(), *port)).await {
                            Ok(found) => peers.found(*at, &of_one_family(found.map(|address| address.ip()))),
                            // What was known stays.
                            Err(error) => tracing::debug!(host, %error, "a peer's name is not known now"),
                        }
                    }
                    drop(peers);
                    tokio::time::sleep(RESOLVE_EVERY).await;
                }
            });
        }
        peers
    }

    /// A name has these addresses. Connections to those that it had stay.
    fn found(&self, at: usize, addresses: &BTreeSet<IpAddr>) {
        let known = self.known.load_full();
        let Some(former) = known.get(at) else { return };
        let had: BTreeSet<IpAddr> = former.iter().filter_map(|peer| peer.address).collect();
        let Some(url) = former.first().map(|peer| peer.url.clone()) else {
            return;
        };
        // One address is whatever the name leads to: it is asked at each connection.
        let now: Vec<Arc<Peer>> = match addresses.len() {
            0 => return,
            1 if had.is_empty() => return,
            1 => vec![Peer::new(&url, None, self.tls.clone())],
            _ if had == *addresses => return,
            _ => {
                let one = |address: &IpAddr| {
                    let kept = former.iter().find(|peer| peer.address == Some(*address));
                    let new = || Peer::new(&url, Some(*address), self.tls.clone());
                    kept.map_or_else(new, Arc::clone)
                };
                addresses.iter().map(one).collect()
            }
        };
        tracing::info!(url, ?addresses, "a peer's name has these addresses now");
        let mut all = Vec::clone(&known);
        all[at] = now;
        self.known.store(Arc::new(all));
    }

    /// All of them, from one on; those at which nobody listened lately come last.
    pub(super) fn in_turn(&self, turn: usize) -> Vec<Arc<Peer>> {
        let known = self.known.load();
        let mut all: Vec<Arc<Peer>> = known.iter().flatten().cloned().collect();
        if !all.is_empty() {
            let first = turn % all.len();
            all.rotate_left(first);
        }
        let now = Instant::now();
        all.sort_by_key(|peer| peer.rests(now));
        all
    }
}

/// Those of the family that the machine prefers: the other one often leads nowhere.
fn of_one_family(found: impl Iterator<Item = IpAddr>) -> BTreeSet<IpAddr> {
    let mut found = found.peekable();
    let is_v4 = found.peek().is_some_and(IpAddr::is_ipv4);
    found.filter(|address| address.is_ipv4() == is_v4).collect()
}

/// Host and port of a URL whose host is a name.
fn name_of(url: &str) -> Option<(String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let host = uri.host()?;
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    (!is_address).then(|| (host.to_owned(), uri.port_u16().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(peers: &Peers, turn: usize) -> Vec<String> {
        peers.in_turn(turn).iter().map(|peer| peer.name()).collect()
    }

    fn addresses(all: &[&str]) -> BTreeSet<IpAddr> {
        all.iter().map(|one| one.parse().unwrap()).collect()
    }

    #[test]
    fn peers_come_in_turn_and_those_that_rest_last() {
        let urls = ["http://127.0.0.1:1/", "http://127.0.0.1:2", "http://127.0.0.1:3"].map(str::to_owned);
        let peers = Peers::new(&urls, None, false);
        assert_eq!(named(&peers, 1), ["127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:1"]);
        peers.in_turn(1)[0].rest();
        assert_eq!(named(&peers, 1), ["127.0.0.1:3", "127.0.0.1:1", "127.0.0.1:2"]);
        assert!(Peers::new(&[], None, false).in_turn(7).is_empty());
    }

    #[test]
    fn a_name_is_as_many_peers_as_it_has_addresses_and_those_that_stay_keep_their_connections() {
        let urls = ["http://one:1", "http://10.0.0.9:2"].map(str::to_owned);
        let peers = Peers::new(&urls, None, false);
        peers.found(0, &addresses(&["10.0.0.1"]));
        assert_eq!(named(&peers, 0), ["one:1", "10.0.0.9:2"]);
        peers.found(0, &addresses(&["10.0.0.1", "10.0.0.2"]));
        assert_eq!(
            named(&peers, 0),
            ["one:1 (10.0.0.1)", "one:1 (10.0.0.2)", "10.0.0.9:2"]
        );
        let second = Arc::clone(&peers.in_turn(0)[1]);
        peers.found(0, &BTreeSet::new());
        peers.found(0, &addresses(&["10.0.0.2", "10.0.0.3"]));
        assert_eq!(
            named(&peers, 0),
            ["one:1 (10.0.0.2)", "one:1 (10.0.0.3)", "10.0.0.9:2"]
        );
        assert!(Arc::ptr_eq(&second, &peers.in_turn(0)[0]));
        peers.found(0, &addresses(&["10.0.0.4"]));
        assert_eq!(named(&peers, 0), ["one:1", "10.0.0.9:2"]);
    }

    #[test]
    fn addresses_are_those_of_the_family_that_comes_first() {
        let found = ["::1", "127.0.0.1", "::2"].map(|one| one.parse().unwrap());
        assert_eq!(of_one_family(found.into_iter()), addresses(&["::1", "::2"]));
        assert!(of_one_family([].into_iter()).is_empty());
    }

    #[test]
    fn only_names_are_looked_up() {
        assert_eq!(
            name_of("http://normalizer:4320"),
            Some(("normalizer".to_owned(), 4320))
        );
        for other in ["http://127.0.0.1:4320", "https://[::1]:4320", "nothing at all"] {
            assert_eq!(name_of(other), None, "{other}");
        }
    }
}
