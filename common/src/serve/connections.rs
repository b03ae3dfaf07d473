//! The open connections of a service: how many there may be, in all, from one address and of one tenant, and which one
//! goes where there are too many.
//!
//! A newcomer is never left waiting in the backlog: it is taken or closed at once. Where all places are taken the
//! connection that has carried no request for the longest gives way, if that is [`IDLE_LEAST`] or more: a pool of
//! idle connections keeps nobody out, and neither does a crowd that says nothing. One that carries a request never
//! gives way.

use crate::ids::TenantId;
use crate::limits::CONNECTION_TENANTS;
use crate::metrics::{Counter, Gauge, Metrics};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
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
    /// With requests of one tenant.
    pub per_tenant: usize,
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
    by_tenant: HashMap<TenantId, usize>,
    /// Those that carry no request, the longest first.
    idle: BTreeSet<(Instant, u64)>,
}

#[derive(Debug)]
struct Entry {
    address: IpAddr,
    requests: usize,
    idle_since: Instant,
    /// For whom it counts.
    tenants: Vec<TenantId>,
    gone: CancellationToken,
}

/// Why a connection was closed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    Total,
    Address,
}

/// The tenant has as many connections as it may: this one does not count for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantFull {
    /// How many it may have.
    pub most: usize,
    /// Whether the connection counts for another tenant, who is not to lose it.
    pub shared: bool,
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
            per_tenant: self.caps.per_tenant,
            number,
            gone,
            ending: CancellationToken::new(),
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
            tenants: Vec::new(),
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
        one_less(&mut self.by_address, &entry.address);
        for tenant in &entry.tenants {
            one_less(&mut self.by_tenant, tenant);
        }
        entry.gone.cancel();
    }

    fn count_for(&mut self, number: u64, tenant: &TenantId, most: usize) -> Result<(), TenantFull> {
        let Some(entry) = self.places.get_mut(&number) else {
            return Ok(());
        };
        if entry.tenants.contains(tenant) || entry.tenants.len() >= CONNECTION_TENANTS {
            return Ok(());
        }
        let shared = !entry.tenants.is_empty();
        let count = self.by_tenant.entry(tenant.clone()).or_default();
        if *count >= most {
            return Err(TenantFull { most, shared });
        }
        *count += 1;
        entry.tenants.push(tenant.clone());
        Ok(())
    }

    /// Since when it carries no request; nothing while it does.
    fn idle_since(&self, number: u64) -> Option<Instant> {
        let entry = self.places.get(&number)?;
        (entry.requests == 0).then_some(entry.idle_since)
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

fn one_less<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// One connection's place, in each of its requests' extensions as `Arc<Place>`; dropped, it is free.
#[derive(Debug)]
pub struct Place {
    open: Arc<Mutex<Open>>,
    per_tenant: usize,
    number: u64,
    gone: CancellationToken,
    ending: CancellationToken,
}

impl Place {
    /// Ends when another needed this place.
    pub async fn taken(&self) {
        self.gone.cancelled().await;
    }

    /// Has the connection end once its requests are answered.
    pub fn end(&self) {
        self.ending.cancel();
    }

    /// Ends when [`Place::end`] was called.
    pub async fn ending(&self) {
        self.ending.cancelled().await;
    }

    /// Ends when it has carried no request for so long, and not before `time` from this call on.
    pub async fn quiet(&self, time: Duration) {
        let begun = Instant::now();
        loop {
            let now = Instant::now();
            let since = self.open.lock().idle_since(self.number).unwrap_or(now);
            let until = since.max(begun) + time;
            if until <= now {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// A request of `tenant`'s came over it: from now on it counts for the tenant.
    ///
    /// # Errors
    /// [`TenantFull`]: refuse the request, and [`Place::end`] the connection where it is not shared.
    pub fn count_for(&self, tenant: &TenantId) -> Result<(), TenantFull> {
        self.open.lock().count_for(self.number, tenant, self.per_tenant)
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
        let per_tenant = 2;
        Connections::new(Caps {
            total,
            per_address,
            per_tenant,
        })
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

    #[test]
    fn a_connection_counts_for_each_of_its_first_tenants_until_it_is_closed() {
        let (open, now) = (of(100, 100), Instant::now());
        let tenant = |n: usize| TenantId::new(&format!("t{n}")).unwrap();
        let [first, second, third] = [1, 2, 3].map(|n| open.enter(address(n), now).unwrap());
        for place in [&first, &first, &second] {
            assert_eq!(place.count_for(&tenant(0)), Ok(()), "once for each connection");
        }
        let full = |shared| Err(TenantFull { most: 2, shared });
        assert_eq!(third.count_for(&tenant(0)), full(false));
        assert_eq!(third.count_for(&tenant(1)), Ok(()));
        assert_eq!(third.count_for(&tenant(0)), full(true));
        drop(first);
        assert_eq!(third.count_for(&tenant(0)), Ok(()), "its place is free");
        for n in 2..CONNECTION_TENANTS + 5 {
            assert_eq!(third.count_for(&tenant(n)), Ok(()));
        }
        assert_eq!(open.open.lock().by_tenant.len(), CONNECTION_TENANTS);
        drop((second, third));
        assert!(open.open.lock().by_tenant.is_empty());
    }
}
