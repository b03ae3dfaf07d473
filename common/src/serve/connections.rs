//! The open connections of a service: how many there may be, in all and from one address, and which one goes where
//! there are too many.
//!
//! A newcomer is never left waiting in the backlog: it is taken or closed at once. Where all places are taken the
//! connection that has carried no request for the longest gives way, if that is [`IDLE_LEAST`] or more: a pool of
//! idle connections keeps nobody out, and neither does a crowd that says nothing. One that carries a request never
//! gives way.

use crate::metrics::{Counter, Gauge, Metrics};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// From this time without a request on a connection may give way: a client between two requests is not cut off.
const IDLE_LEAST: Duration = Duration::from_secs(1);

/// How many there may be.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    pub total: usize,
    /// From one address; of IPv6, from one network of 64 bits, which is what one host has.
    pub per_address: usize,
}

/// The open connections. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Connections {
    caps: Caps,
    open: Arc<Mutex<Open>>,
    metrics: Option<Metrics>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    places: HashMap<u64, Entry>,
    by_address: HashMap<IpAddr, usize>,
    /// Those that carry no request, the longest first.
    idle: BTreeSet<(Instant, u64)>,
}

#[derive(Debug)]
struct Entry {
    address: IpAddr,
    requests: usize,
    idle_since: Instant,
    gone: CancellationToken,
}

/// Why a connection was closed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    Total,
    Address,
}

impl Full {
    const ALL: [Self; 2] = [Self::Total, Self::Address];

    fn reason(self) -> &'static str {
        match self {
            Self::Total => "connections",
            Self::Address => "address_connections",
        }
    }
}

impl Connections {
    /// None is open.
    #[must_use]
    pub fn new(caps: Caps) -> Self {
        Self {
            caps,
            open: Arc::default(),
            metrics: None,
        }
    }

    /// Counts those that are closed at once, as shed by the edge, and shows how many are open.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a gauge")]
    pub fn shown(mut self, metrics: &Metrics) -> Self {
        let open = Arc::clone(&self.open);
        metrics.watch(Gauge::Connections, &[], move || open.lock().places.len() as f64);
        for full in Full::ALL {
            metrics.add(Counter::Shed, 0, &[("where", "edge"), ("reason", full.reason())]);
        }
        self.metrics = Some(metrics.clone());
        self
    }

    /// A place for a connection from `address`, if need be another's.
    ///
    /// # Errors
    /// [`Full`], counted: close it.
    pub fn enter(&self, address: IpAddr, now: Instant) -> Result<Place, Full> {
        let entered = self.open.lock().enter(self.caps, host(address), now);
        let entered = entered.inspect_err(|full| {
            if let Some(metrics) = &self.metrics {
                let labels = [("where", "edge"), ("reason", full.reason())];
                metrics.add(Counter::Shed, 1, &labels);
            }
        });
        let (number, gone) = entered?;
        Ok(Place {
            open: Arc::clone(&self.open),
            number,
            gone,
        })
    }
}

impl Open {
    fn enter(&mut self, caps: Caps, address: IpAddr, now: Instant) -> Result<(u64, CancellationToken), Full> {
        let from_there = self.by_address.get(&address).copied().unwrap_or(0);
        if from_there >= caps.per_address {
            return Err(Full::Address);
        }
        if self.places.len() >= caps.total {
            let (since, oldest) = self.idle.first().copied().ok_or(Full::Total)?;
            if now.saturating_duration_since(since) < IDLE_LEAST {
                return Err(Full::Total);
            }
            self.leave(oldest);
        }
        let (number, gone) = (self.next, CancellationToken::new());
        self.next += 1;
        let entry = Entry {
            address,
            requests: 0,
            idle_since: now,
            gone: gone.clone(),
        };
        self.places.insert(number, entry);
        self.idle.insert((now, number));
        *self.by_address.entry(address).or_default() += 1;
        Ok((number, gone))
    }

    fn leave(&mut self, number: u64) {
        let Some(entry) = self.places.remove(&number) else {
            return;
        };
        self.idle.remove(&(entry.idle_since, number));
        if let Some(count) = self.by_address.get_mut(&entry.address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&entry.address);
            }
        }
        entry.gone.cancel();
    }

    fn begin(&mut self, number: u64) {
        if let Some(entry) = self.places.get_mut(&number) {
            entry.requests += 1;
            self.idle.remove(&(entry.idle_since, number));
        }
    }

    fn end(&mut self, number: u64, now: Instant) {
        if let Some(entry) = self.places.get_mut(&number) {
            entry.requests -= 1;
            if entry.requests == 0 {
                entry.idle_since = now;
                self.idle.insert((now, number));
            }
        }
    }
}

/// One connection's place; dropped, it is free.
#[derive(Debug)]
pub struct Place {
    open: Arc<Mutex<Open>>,
    number: u64,
    gone: CancellationToken,
}

impl Place {
    /// Ends when another needed this place.
    pub async fn taken(&self) {
        self.gone.cancelled().await;
    }

    /// It carries a request until `answer` is there.
    pub async fn carry<F: Future>(self: Arc<Self>, answer: F) -> F::Output {
        let _carried = Carried::of(self);
        answer.await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.lock().leave(self.number);
    }
}

struct Carried(Arc<Place>);

impl Carried {
    fn of(place: Arc<Place>) -> Self {
        place.open.lock().begin(place.number);
        Self(place)
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.open.lock().end(self.0.number, Instant::now());
    }
}

/// What counts as one address.
fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(four) => four.into(),
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn address(n: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, n])
    }

    fn of(total: usize, per_address: usize) -> Connections {
        Connections::new(Caps { total, per_address })
    }

    #[tokio::test]
    async fn where_all_places_are_taken_the_longest_idle_gives_way_and_one_with_a_request_never() {
        let (open, now) = (of(2, 2), Instant::now());
        let busy = Arc::new(open.enter(address(1), now).unwrap());
        let carried = Carried::of(Arc::clone(&busy));
        let idle = open.enter(address(2), now).unwrap();
        assert_eq!(
            open.enter(address(3), now).unwrap_err(),
            Full::Total,
            "none is idle for long"
        );
        let third = open.enter(address(3), now + SECOND).unwrap();
        idle.taken().await;
        assert!(!busy.gone.is_cancelled() && !third.gone.is_cancelled());
        drop(idle);
        assert_eq!(open.open.lock().places.len(), 2);
        drop(third);
        drop(carried);
        let fourth = open.enter(address(4), Instant::now()).unwrap();
        drop((busy, fourth));
        let left = open.open.lock();
        assert!(left.places.is_empty() && left.idle.is_empty() && left.by_address.is_empty());
    }

    #[test]
    fn one_address_has_its_cap_and_a_network_of_ipv6_is_one() {
        let (open, now) = (of(10, 2), Instant::now());
        let six = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
        let _held = [six(1), six(2), address(1)].map(|one| open.enter(one, now).unwrap());
        assert_eq!(open.enter(six(3), now + SECOND).unwrap_err(), Full::Address);
        let mapped = "::ffff:127.0.0.1".parse().unwrap();
        let second = open.enter(mapped, now).unwrap();
        assert_eq!(open.enter(address(1), now).unwrap_err(), Full::Address);
        drop(second);
        assert!(open.enter(address(1), now).is_ok());
    }
}
