//! A TCP proxy that stands on one hop of a deployment and misbehaves when it is told to.
//!
//! It knows bytes and connections, no protocol. What it does is switched while it runs, for all connections or
//! for those whose request bytes contain something (`INSERT+INTO`), which is how one kind of request is caught. A
//! connection that was caught stays so until [`Proxy::pass`], [`Proxy::cut`] or the act itself ends it.
//!
//! - Held bytes are kept, so that a request can arrive long after its client has given up.
//! - A black hole stops reading, as a network that drops everything does: what was sent meanwhile comes late.
//! - A connection is read only as fast as the other side takes it, unless it is held.

mod line;

use bytes::Bytes;
use line::carry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::{JoinHandle, JoinSet};

/// How an insert into the default dataset's table is announced, in the request's address: a marker.
pub const EVENTS_INSERT: &str = "INSERT+INTO+%60telemetry%60.%60events%60";

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server: requests.
    There,
    /// From the server to the client: answers.
    Back,
}

/// How a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With a FIN to both sides.
    Close,
    /// With a RST to both sides.
    Reset,
}

/// What happens to a connection that is caught.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Each piece waits so long before it goes on, both ways.
    Delay(Duration),
    /// So many more bytes go this way, counted from the marker, or from when the rule came; then it ends.
    Cut { way: Way, after: u64, ending: Ending },
    /// Nothing more is read from either side.
    BlackHole,
    /// That side is told that no more comes, and gets nothing more; the other way goes on.
    HalfClose(Way),
    /// The request is kept, and nothing of it arrives.
    HoldRequest,
    /// The request arrives, its answer is kept.
    HoldAnswer,
    /// The request arrives; once its answer begins, the client gets these bytes instead, and the connection ends.
    Answer(Bytes),
}

/// Which connections are caught, and what happens to them.
#[derive(Debug, Clone)]
pub struct Rule {
    marker: Option<Bytes>,
    times: u64,
    act: Act,
}

impl Rule {
    /// All connections, those that are there included.
    #[must_use]
    pub fn all(act: Act) -> Self {
        Self {
            marker: None,
            times: u64::MAX,
            act,
        }
    }

    /// Connections whose request bytes contain `marker` from now on.
    #[must_use]
    pub fn on(marker: &'static str, act: Act) -> Self {
        Self {
            marker: Some(Bytes::from_static(marker.as_bytes())),
            ..Self::all(act)
        }
    }

    /// Only so many.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }
}

/// Orders that a connection may be behind with.
const ORDERS: usize = 1_024;

/// What connections are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// The rule is another.
    Look,
    /// What was caught in an earlier generation than this goes on, what was held first.
    Pass(u64),
    /// It ends; what was held is lost.
    Cut(Ending),
    /// The client's side ends; what was held is kept.
    LeaveClients,
}

/// What all connections of a proxy share.
#[derive(Debug)]
struct Shared {
    to: u16,
    rule: Mutex<Option<Rule>>,
    /// What is counted in requests.
    counted: Mutex<Option<Bytes>>,
    count: AtomicU64,
    orders: broadcast::Sender<Order>,
    /// Counted up with each [`Order::Pass`].
    generation: AtomicU64,
    caught: AtomicU64,
    connections: AtomicU64,
    there: AtomicU64,
    back: AtomicU64,
}

impl Shared {
    /// The act for a connection, if it is caught by these bytes, and where the marker begins. Of them the first
    /// `old` were looked at before.
    fn catch(&self, seen: &[u8], old: usize) -> Option<(Act, usize)> {
        let mut rule = self.rule.lock().unwrap_or_else(PoisonError::into_inner);
        let current = rule.as_mut().filter(|rule| rule.times > 0)?;
        let at = match &current.marker {
            None => old,
            Some(marker) => places(seen, old, marker).next()?,
        };
        current.times -= 1;
        self.caught.fetch_add(1, Ordering::SeqCst);
        Some((current.act.clone(), at))
    }

    /// Counts what is to be counted in the same.
    fn count(&self, seen: &[u8], old: usize) {
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(marker) = counted.as_ref() {
            let found = places(seen, old, marker).count() as u64;
            self.count.fetch_add(found, Ordering::SeqCst);
        }
    }

    /// Whether the rule catches connections without looking at their bytes.
    fn catches_all(&self) -> bool {
        let rule = self.rule.lock().unwrap_or_else(PoisonError::into_inner);
        rule.as_ref()
            .is_some_and(|rule| rule.marker.is_none() && rule.times > 0)
    }
}

/// Bytes of the past that a marker may begin in.
const LOOKBACK: usize = 256;

/// Where `marker` is in `seen` and ends past the first `old` bytes.
fn places<'a>(seen: &'a [u8], old: usize, marker: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let windows = seen.windows(marker.len()).enumerate();
    windows
        .skip((old + 1).saturating_sub(marker.len()))
        .filter(move |(_, bytes)| *bytes == marker)
        .map(|(at, _)| at)
}

/// The proxy. Dropping it cuts all connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// One on a free port of loopback, before `to` on loopback.
    ///
    /// # Panics
    /// Where no port is free.
    pub async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            to,
            rule: Mutex::new(None),
            counted: Mutex::new(None),
            count: AtomicU64::new(0),
            orders: broadcast::Sender::new(ORDERS),
            generation: AtomicU64::new(0),
            caught: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            there: AtomicU64::new(0),
            back: AtomicU64::new(0),
        });
        let accepting = Some(tokio::spawn(accept(listener, Arc::clone(&shared))));
        Self {
            port,
            shared,
            accepting,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on; what was caught by an earlier rule stays as it is.
    pub fn set(&self, rule: Rule) {
        self.put(Some(rule));
        self.order(Order::Look);
    }

    /// Catches nothing more; what is caught stays so.
    pub fn unset(&self) {
        self.put(None);
    }

    /// Lets everything through: what was held goes on first.
    pub fn pass(&self) {
        self.put(None);
        let before = self.shared.generation.fetch_add(1, Ordering::SeqCst);
        self.order(Order::Pass(before + 1));
    }

    /// Ends every connection that was caught; what was held is lost. Catches nothing more.
    pub fn cut(&self, ending: Ending) {
        self.put(None);
        self.order(Order::Cut(ending));
    }

    /// Ends the client's side of every connection that was caught; what was held is kept for [`Self::pass`].
    pub fn leave_clients(&self) {
        self.order(Order::LeaveClients);
    }

    fn put(&self, rule: Option<Rule>) {
        *self.shared.rule.lock().unwrap_or_else(PoisonError::into_inner) = rule;
    }

    fn order(&self, order: Order) {
        // Without connections nobody needs to hear it.
        self.shared.orders.send(order).ok();
    }

    /// How often a connection was caught.
    #[must_use]
    pub fn caught(&self) -> u64 {
        self.shared.caught.load(Ordering::SeqCst)
    }

    /// Counts from now on how often requests contain `marker`.
    pub fn count(&self, marker: &'static str) {
        let marker = Bytes::from_static(marker.as_bytes());
        *self.shared.counted.lock().unwrap_or_else(PoisonError::into_inner) = Some(marker);
    }

    /// How often they did.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.shared.count.load(Ordering::SeqCst)
    }

    /// How many connections were made.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Bytes that came that way.
    #[must_use]
    pub fn bytes(&self, way: Way) -> u64 {
        let count = match way {
            Way::There => &self.shared.there,
            Way::Back => &self.shared.back,
        };
        count.load(Ordering::SeqCst)
    }

    /// Cuts all connections, and lets no new one be made.
    pub async fn shut(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            accepting.await.expect_err("it was cut");
        }
    }

    /// Lets connections be made again, and everything through.
    ///
    /// # Panics
    /// Where somebody took its port meanwhile.
    pub async fn open(&mut self) {
        self.pass();
        self.shut().await;
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await;
        let listener = listener.expect("its port is free still");
        self.accepting = Some(tokio::spawn(accept(listener, Arc::clone(&self.shared))));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

/// Connections end with this task.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    shared.connections.fetch_add(1, Ordering::SeqCst);
                    connections.spawn(carry(client, Arc::clone(&shared)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}
