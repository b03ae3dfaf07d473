//! Calls over real connections: which peer has one, and which has none.

use super::*;
use axum::serve::ListenerExt as _;
use parking_lot::Mutex;
use serde::Deserialize;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;

const SOON: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Ping;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Pong {
    Well,
    Failed { maybe_sent: bool },
}

impl From<Failure> for Pong {
    fn from(failure: Failure) -> Self {
        let maybe_sent = failure.maybe_sent;
        Self::Failed { maybe_sent }
    }
}

impl Answer for Pong {
    fn status(&self) -> StatusCode {
        StatusCode::OK
    }
}

impl Call for Ping {
    const PATH: &'static str = "/ping";
    const MAX_BODY_BYTES: usize = 16;
    type Reply = Pong;

    fn timeout(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn trace(&self) -> TraceContext {
        TraceContext::default()
    }

    fn into_parts(self, _: &mut HeaderMap) -> Bytes {
        Bytes::from_static(b"ping")
    }

    fn from_parts(_: &HeaderMap, _: Duration, _: Bytes) -> Result<Self, BadMessage> {
        Ok(Self)
    }
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    (listener, url)
}

#[tokio::test]
async fn a_call_that_nobody_saw_goes_to_the_next_peer_and_one_that_may_have_been_taken_to_none() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let seam: Seam<Ping> = BoxCloneSyncService::new(tower::service_fn(move |_: Ping| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { Ok(Pong::Well) }
    }));
    let (live, live_url) = listener().await;
    tokio::spawn(async move { axum::serve(live, receive(seam, None)).await });
    let (gone, gone_url) = listener().await;
    drop(gone);
    let client = PeerClient::new(&[gone_url.clone(), live_url.clone()], None, None).seam::<Ping>();
    for _ in 0..10 {
        assert_eq!(client.clone().oneshot(Ping).await, Ok(Pong::Well));
    }
    assert_eq!(calls.load(Ordering::Relaxed), 10);
    let client = PeerClient::new(&[gone_url.clone(), gone_url], None, None).seam::<Ping>();
    let failed = Pong::Failed { maybe_sent: false };
    assert_eq!(client.oneshot(Ping).await, Ok(failed));
    // It reads what it is sent, and goes away.
    let (reads, reads_url) = listener().await;
    tokio::spawn(async move {
        let (mut stream, _) = reads.accept().await?;
        stream.read(&mut [0; 1024]).await
    });
    let client = PeerClient::new(&[reads_url, live_url], None, None).seam::<Ping>();
    let failed = Pong::Failed { maybe_sent: true };
    assert_eq!(client.oneshot(Ping).await, Ok(failed));
    assert_eq!(calls.load(Ordering::Relaxed), 10);
}

/// A peer at an address of its own, and what it saw.
struct Member {
    address: IpAddr,
    connections: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
    /// Calls are not answered while it says so.
    holds: watch::Sender<bool>,
}

impl Member {
    fn start(listener: TcpListener) -> Self {
        let address = listener.local_addr().expect("an address").ip();
        let (connections, calls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (holds, held) = watch::channel(false);
        let (accepted, counted) = (Arc::clone(&connections), Arc::clone(&calls));
        let seam: Seam<Ping> = BoxCloneSyncService::new(tower::service_fn(move |_: Ping| {
            counted.fetch_add(1, Ordering::Relaxed);
            let mut held = held.clone();
            async move {
                held.wait_for(|held| !held).await.expect("the test lives");
                Ok(Pong::Well)
            }
        }));
        let listener = listener.tap_io(move |_| {
            accepted.fetch_add(1, Ordering::Relaxed);
        });
        tokio::spawn(async move { axum::serve(listener, receive(seam, None)).await });
        Self {
            address,
            connections,
            calls,
            holds,
        }
    }

    /// Connections and calls so far.
    fn saw(&self) -> (usize, usize) {
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (load(&self.connections), load(&self.calls))
    }
}

/// Three of them, at one port of three addresses.
async fn members() -> ([Member; 3], u16) {
    for _ in 0..100 {
        let one = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = one.local_addr().expect("an address").port();
        let other = |last| TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), port));
        if let (Ok(two), Ok(three)) = (other(2).await, other(3).await) {
            return ([one, two, three].map(Member::start), port);
        }
    }
    panic!("no port is free at three addresses");
}

/// A name whose addresses a test tells, and how often it was asked for.
#[derive(Default)]
struct Told {
    /// None: a lookup fails.
    addresses: Mutex<Option<Vec<IpAddr>>>,
    asked: AtomicUsize,
}

impl Told {
    fn names(self: &Arc<Self>) -> Names {
        let told = Arc::clone(self);
        Names {
            lookup: Arc::new(move |_, _| {
                told.asked.fetch_add(1, Ordering::Relaxed);
                let found = told.addresses.lock().clone();
                Box::pin(async move { found.ok_or_else(|| io::Error::other("nobody answers")) })
            }),
            every: Duration::from_millis(10),
        }
    }

    /// Tells these from now on, and waits until they were asked for.
    async fn tell(&self, addresses: Option<Vec<IpAddr>>) {
        *self.addresses.lock() = addresses;
        // The first question may have been answered before; behind the third the second answer is in force.
        let enough = self.asked.load(Ordering::Relaxed) + 3;
        let asked = async {
            while self.asked.load(Ordering::Relaxed) < enough {
                // It is looked again, until the deadline below.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(SOON, asked)
            .await
            .expect("names are asked for again and again");
    }
}

async fn pings(client: &PeerClient, calls: usize) {
    for _ in 0..calls {
        let answer = client.clone().seam::<Ping>().oneshot(Ping).await;
        assert_eq!(answer, Ok(Pong::Well));
    }
}

#[tokio::test]
async fn a_name_s_addresses_come_and_go_and_calls_follow_over_the_connections_of_those_that_stay() {
    let ([one, two, three], port) = members().await;
    let told = Arc::new(Told::default());
    let urls = [format!("http://normalizers.invalid:{port}")];
    let client = PeerClient::of(Peers::new(&urls, None, Some(told.names())), None);
    let saw = || [one.saw(), two.saw(), three.saw()];
    told.tell(Some(vec![one.address, two.address])).await;
    pings(&client, 10).await;
    assert_eq!(saw(), [(1, 5), (1, 5), (0, 0)]);
    told.tell(Some(vec![three.address, two.address, one.address]))
        .await;
    pings(&client, 12).await;
    assert_eq!(saw(), [(1, 9), (1, 9), (1, 4)], "one that came is called");
    // Nobody tells anything: what was known stays.
    for nothing in [None, Some(Vec::new())] {
        told.tell(nothing).await;
        pings(&client, 3).await;
    }
    assert_eq!(saw(), [(1, 11), (1, 11), (1, 6)]);
    // One goes while it has a call, which is answered.
    two.holds.send_replace(true);
    let under_way: Vec<_> = (0..3)
        .map(|_| tokio::spawn(client.clone().seam::<Ping>().oneshot(Ping)))
        .collect();
    let mut calls = tokio::time::interval(Duration::from_millis(1));
    let called = async {
        while two.saw().1 < 12 {
            calls.tick().await;
        }
    };
    tokio::time::timeout(SOON, called)
        .await
        .expect("it has one of three");
    told.tell(Some(vec![one.address, three.address])).await;
    pings(&client, 8).await;
    assert_eq!(two.saw(), (1, 12), "one that went is not called any more");
    two.holds.send_replace(false);
    for call in under_way {
        assert_eq!(call.await.expect("it ends"), Ok(Pong::Well));
    }
    assert_eq!(saw(), [(1, 16), (1, 12), (1, 11)]);
    told.tell(Some(vec![three.address])).await;
    pings(&client, 5).await;
    assert_eq!(
        saw(),
        [(1, 16), (1, 12), (1, 16)],
        "the last one's connection stays"
    );
}
