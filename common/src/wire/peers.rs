//! Where calls may go: the peers of the config, and of a name with several addresses each of these.

use crate::limits::{ABSENT_REST, RESOLVE_EVERY};
use crate::tls::client::{ClientTls, Dialer};
use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Uri;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io;
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
    known: ArcSwap<Vec<Known>>,
}

/// What is known of one URL.
#[derive(Debug, Clone)]
struct Known {
    /// What its name led to when that was last told; none before.
    addresses: BTreeSet<IpAddr>,
    peers: Vec<Arc<Peer>>,
}

/// Who tells the addresses of names, and how often it is asked.
#[derive(Clone)]
pub(super) struct Names {
    pub(super) lookup: Lookup,
    pub(super) every: Duration,
}

/// Of a host and a port.
pub(super) type Lookup =
    Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

impl Names {
    /// As this machine resolves them.
    pub(super) fn of_this_machine() -> Self {
        Self {
            lookup: Arc::new(|host, port| {
                Box::pin(async move {
                    let found = tokio::net::lookup_host((host, port)).await?;
                    Ok(found.map(|address| address.ip()).collect())
                })
            }),
            every: RESOLVE_EVERY,
        }
    }
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
    /// Those of the config. With `names`, names are looked up as long as the answer lives.
    pub(super) fn new(urls: &[String], tls: Option<ClientTls>, names: Option<Names>) -> Arc<Self> {
        let by_name = urls.iter().map(|url| Known {
            addresses: BTreeSet::new(),
            peers: vec![Peer::new(url, None, tls.clone())],
        });
        let peers = Arc::new(Self {
            known: ArcSwap::from_pointee(by_name.collect()),
            tls,
        });
        let hosts: Vec<(usize, String, u16)> = urls
            .iter()
            .enumerate()
            .filter_map(|(at, url)| name_of(url).map(|(host, port)| (at, host, port)))
            .collect();
        if let Some(names) = names.filter(|_| !hosts.is_empty())
            && tokio::runtime::Handle::try_current().is_ok()
        {
            let known = Arc::downgrade(&peers);
            tokio::spawn(async move {
                while let Some(peers) = known.upgrade() {
                    for (at, host, port) in &hosts {
                        match (names.lookup)(host.clone(), *port).await {
                            Ok(found) => peers.found(*at, of_one_family(found.into_iter())),
                            // What was known stays.
                            Err(error) => tracing::debug!(host, %error, "a peer's name is not known now"),
                        }
                    }
                    drop(peers);
                    tokio::time::sleep(names.every).await;
                }
            });
        }
        peers
    }

    /// A name has these addresses. Connections to those that it had stay, but where it had one alone.
    fn found(&self, at: usize, addresses: BTreeSet<IpAddr>) {
        let known = self.known.load_full();
        let Some(former) = known.get(at) else { return };
        let Some(url) = former.peers.first().map(|peer| peer.url.clone()) else {
            return;
        };
        if addresses.is_empty() || addresses == former.addresses {
            return;
        }
        let kept = |address: &IpAddr| {
            let mut peers = former.peers.iter();
            peers.find(|peer| peer.address == Some(*address)).map(Arc::clone)
        };
        let new = |address| Peer::new(&url, address, self.tls.clone());
        let one = addresses.first().filter(|_| addresses.len() == 1);
        let peers = match one {
            // One address is whatever the name leads to: it is asked at each connection.
            Some(_) if former.addresses.is_empty() => former.peers.clone(),
            // One that is another than before is connected to anew: whoever was there before may live on.
            Some(one) => vec![kept(one).unwrap_or_else(|| new(None))],
            None => {
                let each = |one: &IpAddr| kept(one).unwrap_or_else(|| new(Some(*one)));
                addresses.iter().map(each).collect()
            }
        };
        tracing::info!(url, ?addresses, "a peer's name has these addresses now");
        let mut all = Vec::clone(&known);
        all[at] = Known { addresses, peers };
        self.known.store(Arc::new(all));
    }

    /// All of them, from one on; those at which nobody listened lately come last.
    pub(super) fn in_turn(&self, turn: usize) -> Vec<Arc<Peer>> {
        let known = self.known.load();
        let mut all: Vec<Arc<Peer>> = known.iter().flat_map(|one| &one.peers).cloned().collect();
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
        let peers = Peers::new(&urls, None, None);
        assert_eq!(named(&peers, 1), ["127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:1"]);
        peers.in_turn(1)[0].rest();
        assert_eq!(named(&peers, 1), ["127.0.0.1:3", "127.0.0.1:1", "127.0.0.1:2"]);
        assert!(Peers::new(&[], None, None).in_turn(7).is_empty());
    }

    #[test]
    fn a_name_is_as_many_peers_as_it_has_addresses_and_those_that_stay_keep_their_connections() {
        let urls = ["http://one:1", "http://10.0.0.9:2"].map(str::to_owned);
        let peers = Peers::new(&urls, None, None);
        peers.found(0, addresses(&["10.0.0.1"]));
        assert_eq!(named(&peers, 0), ["one:1", "10.0.0.9:2"]);
        peers.found(0, addresses(&["10.0.0.1", "10.0.0.2"]));
        assert_eq!(
            named(&peers, 0),
            ["one:1 (10.0.0.1)", "one:1 (10.0.0.2)", "10.0.0.9:2"]
        );
        let second = Arc::clone(&peers.in_turn(0)[1]);
        peers.found(0, BTreeSet::new());
        peers.found(0, addresses(&["10.0.0.2", "10.0.0.3"]));
        assert_eq!(
            named(&peers, 0),
            ["one:1 (10.0.0.2)", "one:1 (10.0.0.3)", "10.0.0.9:2"]
        );
        assert!(Arc::ptr_eq(&second, &peers.in_turn(0)[0]));
        peers.found(0, addresses(&["10.0.0.2"]));
        assert_eq!(named(&peers, 0), ["one:1 (10.0.0.2)", "10.0.0.9:2"]);
        assert!(Arc::ptr_eq(&second, &peers.in_turn(0)[0]));
        peers.found(0, addresses(&["10.0.0.4"]));
        assert_eq!(named(&peers, 0), ["one:1", "10.0.0.9:2"]);
    }

    #[test]
    fn a_name_s_only_address_is_asked_for_at_each_connection_and_another_one_has_connections_of_its_own() {
        let peers = Peers::new(&["http://one:1".to_owned()], None, None);
        let first = Arc::clone(&peers.in_turn(0)[0]);
        peers.found(0, addresses(&["10.0.0.1"]));
        peers.found(0, addresses(&["10.0.0.1"]));
        assert!(Arc::ptr_eq(&first, &peers.in_turn(0)[0]), "nothing has changed");
        peers.found(0, addresses(&["10.0.0.2"]));
        assert_eq!(named(&peers, 0), ["one:1"]);
        assert!(!Arc::ptr_eq(&first, &peers.in_turn(0)[0]));
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
