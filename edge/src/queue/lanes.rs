//! Deficit round robin over tenants: each in its turn gets a quantum of bytes, times its weight, and is served
//! while that lasts. Pure: time is passed in, and what waits is any `T`.
//!
//! * While two tenants have something waiting all along, what they are served differs from their weights by less
//!   than a quantum each and one largest body, whatever they send.
//! * A lane that ran empty keeps nothing: who was away saves up no credit.
//! * A visit adds a quantum, so the largest body is served after at most `MAX_BODY_BYTES / QUANTUM` visits. All that
//!   waits holds at most `EDGE_BODY_BYTES`, so one call makes at most that many quanta visits, and one a lane.
//!
//! A tenant with nothing under way may pass where the bytes under way are used up ([`Room::FirstOnly`]): so
//! another tenant's large body holds up nobody else.

use super::standing::Standing;
use sluice_common::ids::TenantId;
use std::collections::{HashMap, VecDeque};
use tokio::time::Instant;

/// Bytes that a tenant of weight 1 gets at each visit: about 100 usual requests, and little enough that a round over
/// a hundred busy tenants is a few MiB.
pub(super) const QUANTUM: u64 = 64 * 1024;

/// What may be served now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    All,
    /// Only tenants with nothing under way.
    FirstOnly,
}

/// One that waits.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub cost: u64,
    /// Since when.
    pub since: Instant,
    pub item: T,
}

/// What became of a lane's head.
#[derive(Debug)]
pub(super) enum Next<T> {
    Serve(TenantId, Waiting<T>),
    /// It waited too long in a queue that stands.
    Refuse(TenantId, Waiting<T>),
}

#[derive(Debug)]
struct Lane<T> {
    weight: u64,
    deficit: u64,
    /// It is this lane's turn, and it has had its quantum.
    visited: bool,
    items: VecDeque<Waiting<T>>,
    cost: u64,
    under_way: usize,
    held_until: Option<Instant>,
    standing: Standing,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self {
            weight: 1,
            deficit: 0,
            visited: false,
            items: VecDeque::new(),
            cost: 0,
            under_way: 0,
            held_until: None,
            standing: Standing::default(),
        }
    }
}

impl<T> Lane<T> {
    fn may(&self, room: Room, now: Instant) -> bool {
        let held = self.held_until.is_some_and(|until| now < until);
        !held && (room == Room::All || self.under_way == 0)
    }

    fn take_head(&mut self) -> Option<Waiting<T>> {
        let head = self.items.pop_front()?;
        self.cost -= head.cost;
        if self.items.is_empty() {
            self.deficit = 0;
            self.standing.emptied();
        }
        Some(head)
    }
}

/// The lanes of all tenants that have something waiting or under way.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    lanes: HashMap<TenantId, Lane<T>>,
    /// Those with something waiting, in the order of their turns.
    turns: VecDeque<TenantId>,
    waiting: usize,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self {
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            waiting: 0,
        }
    }
}

impl<T> Lanes<T> {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// How many of one tenant wait.
    pub(super) fn len_of(&self, tenant: &TenantId) -> usize {
        self.lanes.get(tenant).map_or(0, |lane| lane.items.len())
    }

    /// The bytes that stand before a newcomer of `tenant`, the others' turns included.
    pub(super) fn before(&self, tenant: &TenantId) -> u64 {
        let Some(own) = self.lanes.get(tenant) else {
            return 0;
        };
        let weights = self.turns.iter().filter_map(|one| self.lanes.get(one));
        let all: u64 = weights.map(|lane| lane.weight).sum();
        let share = own.cost.saturating_mul(all.max(own.weight)) / own.weight;
        share.min(self.lanes.values().map(|lane| lane.cost).sum())
    }

    /// Puts one at the end of its tenant's lane.
    pub(super) fn push(&mut self, tenant: &TenantId, weight: u32, waiting: Waiting<T>) {
        let lane = self.lanes.entry(tenant.clone()).or_default();
        lane.weight = weight.max(1).into();
        if lane.items.is_empty() {
            self.turns.push_back(tenant.clone());
        }
        lane.cost += waiting.cost;
        lane.items.push_back(waiting);
        self.waiting += 1;
    }

    /// Puts back one that was served for nothing: at the head, and its bytes are not held against the tenant.
    pub(super) fn put_back(&mut self, tenant: &TenantId, weight: u32, waiting: Waiting<T>) {
        let lane = self.lanes.entry(tenant.clone()).or_default();
        lane.weight = weight.max(1).into();
        if lane.items.is_empty() {
            self.turns.push_front(tenant.clone());
        }
        lane.deficit = lane.deficit.saturating_add(waiting.cost);
        lane.cost += waiting.cost;
        lane.items.push_front(waiting);
        self.waiting += 1;
    }

    /// Takes those at the head of a tenant's lane away of which `gone` says so.
    pub(super) fn trim(&mut self, tenant: &TenantId, gone: impl Fn(&T) -> bool) {
        let Some(lane) = self.lanes.get_mut(tenant) else {
            return;
        };
        while lane.items.front().is_some_and(|head| gone(&head.item)) {
            drop(lane.take_head());
            self.waiting -= 1;
        }
        if lane.items.is_empty() {
            lane.visited = false;
            self.turns.retain(|one| one != tenant);
            self.forget_if_idle(tenant);
        }
    }

    /// The next one, if any may go on. Those of which `gone` says so cost nothing and are dropped.
    pub(super) fn next(&mut self, now: Instant, room: Room, gone: impl Fn(&T) -> bool) -> Option<Next<T>> {
        let mut passed_over = 0;
        while passed_over < self.turns.len() {
            let tenant = self.turns.front()?.clone();
            self.trim(&tenant, &gone);
            if self.turns.front() != Some(&tenant) {
                passed_over = 0;
                continue;
            }
            let lane = self.lanes.get_mut(&tenant)?;
            if lane.may(room, now) {
                passed_over = 0;
                if let Some(next) = self.visit(&tenant, now) {
                    return Some(next);
                }
            } else {
                passed_over += 1;
            }
            self.rotate();
        }
        None
    }

    /// One visit: what the lane at the front has for now.
    fn visit(&mut self, tenant: &TenantId, now: Instant) -> Option<Next<T>> {
        let lane = self.lanes.get_mut(tenant)?;
        if !lane.visited {
            lane.visited = true;
            lane.deficit = lane.deficit.saturating_add(QUANTUM * lane.weight);
        }
        let head = lane.items.front()?;
        let refuse = lane.standing.refuses(head.since, now);
        if !refuse && head.cost > lane.deficit {
            return None;
        }
        let left = lane.deficit.saturating_sub(head.cost);
        let head = lane.take_head()?;
        self.waiting -= 1;
        let emptied = lane.items.is_empty();
        if !refuse {
            lane.under_way += 1;
            lane.deficit = if emptied { 0 } else { left };
        }
        if emptied {
            lane.visited = false;
            self.turns.pop_front();
        }
        if refuse {
            self.forget_if_idle(tenant);
            return Some(Next::Refuse(tenant.clone(), head));
        }
        Some(Next::Serve(tenant.clone(), head))
    }

    fn rotate(&mut self) {
        if let Some(tenant) = self.turns.pop_front() {
            if let Some(lane) = self.lanes.get_mut(&tenant) {
                lane.visited = false;
            }
            self.turns.push_back(tenant);
        }
    }

    /// Whether one of `tenant`, which is not in a lane, may go on at once, and notes that it does.
    pub(super) fn pass(&mut self, tenant: &TenantId, room: Room, now: Instant) -> bool {
        if self.waiting > 0 {
            return false;
        }
        let lane = self.lanes.entry(tenant.clone()).or_default();
        let may = lane.may(room, now);
        lane.under_way += usize::from(may);
        self.forget_if_idle(tenant);
        may
    }

    /// One that was under way has ended.
    pub(super) fn ended(&mut self, tenant: &TenantId) {
        if let Some(lane) = self.lanes.get_mut(tenant) {
            lane.under_way = lane.under_way.saturating_sub(1);
        }
        self.forget_if_idle(tenant);
    }

    /// Passes over the tenant until `until`.
    pub(super) fn hold(&mut self, tenant: &TenantId, until: Instant) {
        let lane = self.lanes.entry(tenant.clone()).or_default();
        lane.held_until = lane.held_until.max(Some(until));
    }

    /// Ends holds that are over. When the next one is.
    pub(super) fn release(&mut self, now: Instant) -> Option<Instant> {
        let over = |lane: &Lane<T>| lane.held_until.is_some_and(|until| until <= now);
        self.lanes
            .values_mut()
            .filter(|lane| over(lane))
            .for_each(|lane| lane.held_until = None);
        self.lanes.retain(|_, lane| !lane.is_idle());
        self.lanes.values().filter_map(|lane| lane.held_until).min()
    }

    fn forget_if_idle(&mut self, tenant: &TenantId) {
        if self.lanes.get(tenant).is_some_and(Lane::is_idle) {
            self.lanes.remove(tenant);
        }
    }
}

impl<T> Lane<T> {
    fn is_idle(&self) -> bool {
        self.items.is_empty() && self.under_way == 0 && self.held_until.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sluice_common::limits::MAX_BODY_BYTES;
    use std::time::Duration;

    fn tenant(n: usize) -> TenantId {
        TenantId::new(&format!("t{n}")).unwrap()
    }

    fn waiting(cost: u64, since: Instant) -> Waiting<()> {
        Waiting {
            cost,
            since,
            item: (),
        }
    }

    /// Serves one and ends it.
    fn serve(lanes: &mut Lanes<()>, now: Instant) -> Option<(TenantId, u64)> {
        match lanes.next(now, Room::All, |()| false)? {
            Next::Serve(tenant, head) => {
                lanes.ended(&tenant);
                Some((tenant, head.cost))
            }
            Next::Refuse(..) => panic!("nothing is late"),
        }
    }

    proptest! {
        #[test]
        fn while_two_wait_what_they_are_served_is_as_their_weights_within_a_quantum_and_a_body(
            weights in proptest::collection::vec(1u32..=8, 2..6),
            costs in proptest::collection::vec(4_096u64..2_000_000, 1..40),
        ) {
            let (mut lanes, now) = (Lanes::default(), Instant::now());
            let mut costs = costs.iter().cycle();
            let most = 2_000_000u64;
            let add = |lanes: &mut Lanes<()>, n: usize, cost: u64| {
                lanes.push(&tenant(n), weights[n], waiting(cost, now));
            };
            for n in 0..weights.len() {
                (0..3).for_each(|_| add(&mut lanes, n, *costs.next().unwrap()));
            }
            let mut served = vec![0u64; weights.len()];
            for _ in 0..2_000 {
                let (who, cost) = serve(&mut lanes, now).unwrap();
                let n = (0..weights.len()).find(|n| tenant(*n) == who).unwrap();
                served[n] += cost;
                // Another comes at once: every lane has something waiting all along.
                add(&mut lanes, n, *costs.next().unwrap());
                let shares: Vec<u64> = (0..weights.len()).map(|n| served[n] / u64::from(weights[n])).collect();
                let apart = shares.iter().max().unwrap() - shares.iter().min().unwrap();
                prop_assert!(apart <= 2 * QUANTUM + most, "{shares:?}");
            }
        }

        #[test]
        fn whatever_comes_is_served_once_in_its_tenants_order_or_refused(
            steps in proptest::collection::vec((0usize..4, 1u64..70_000_000, 0u8..4), 1..300)
        ) {
            let (mut lanes, mut now) = (Lanes::default(), Instant::now());
            let (mut came, mut left) = (vec![Vec::new(); 4], vec![Vec::new(); 4]);
            let mut take = |lanes: &mut Lanes<usize>, now| {
                let next = lanes.next(now, Room::All, |_| false);
                let (who, one) = match next {
                    Some(Next::Serve(who, one)) => { lanes.ended(&who); (who, one) }
                    Some(Next::Refuse(who, one)) => (who, one),
                    None => return false,
                };
                let n = (0..4).find(|n| tenant(*n) == who).unwrap();
                left[n].push(one.item);
                true
            };
            for (number, (n, cost, step)) in steps.into_iter().enumerate() {
                now += Duration::from_millis(u64::from(step) * 40);
                came[n].push(number);
                lanes.push(&tenant(n), 1, Waiting { cost, since: now, item: number });
                if step == 0 {
                    take(&mut lanes, now);
                }
            }
            while take(&mut lanes, now) {}
            prop_assert_eq!(came, left);
            prop_assert_eq!(lanes.len(), 0);
            prop_assert!(lanes.lanes.is_empty() && lanes.turns.is_empty());
        }
    }

    #[test]
    fn the_largest_body_of_a_light_tenant_is_served_beside_the_heaviest() {
        let (mut lanes, now) = (Lanes::default(), Instant::now());
        let body = MAX_BODY_BYTES as u64;
        lanes.push(&tenant(0), 1, waiting(body, now));
        (0..3).for_each(|_| lanes.push(&tenant(1), 1_000, waiting(body, now)));
        let mut served = Vec::new();
        while let Some((who, _)) = serve(&mut lanes, now) {
            served.push(who);
        }
        assert_eq!(served.len(), 4);
        assert_eq!(
            served.last(),
            Some(&tenant(0)),
            "after what the other's weight gives it"
        );
        // With equal weights it waits for no more than its own size of the other's bytes.
        lanes.push(&tenant(0), 1, waiting(body, now));
        (0..10_000).for_each(|_| lanes.push(&tenant(1), 1, waiting(16_384, now)));
        let before = std::iter::from_fn(|| serve(&mut lanes, now)).take_while(|(who, _)| *who == tenant(1));
        let before: u64 = before.map(|(_, cost)| cost).sum();
        assert!(before <= body + QUANTUM, "{before}");
    }

    #[test]
    fn in_the_order_of_arrival_a_quiet_tenant_would_wait_for_all_and_here_it_does_not() {
        let (mut lanes, now) = (Lanes::default(), Instant::now());
        (0..1_000).for_each(|_| lanes.push(&tenant(0), 1, waiting(16_384, now)));
        lanes.push(&tenant(1), 1, waiting(16_384, now));
        let mut before = 0;
        while serve(&mut lanes, now).is_some_and(|(who, _)| who == tenant(0)) {
            before += 1;
        }
        assert!(before <= 4, "{before} of the noisy tenant's went first");
    }

    #[test]
    fn a_held_tenant_is_passed_over_and_what_was_put_back_goes_first() {
        let (mut lanes, now) = (Lanes::default(), Instant::now());
        let later = now + Duration::from_millis(100);
        for n in 0..2 {
            (0..2).for_each(|_| lanes.push(&tenant(n), 1, waiting(50_000 + n as u64, now)));
        }
        let Some(Next::Serve(who, head)) = lanes.next(now, Room::All, |()| false) else {
            panic!("there is room");
        };
        assert_eq!(who, tenant(0));
        lanes.ended(&who);
        lanes.put_back(&who, 1, head);
        lanes.hold(&who, later);
        let mut order: Vec<_> = std::iter::from_fn(|| serve(&mut lanes, now)).collect();
        assert_eq!(order, [(tenant(1), 50_001), (tenant(1), 50_001)]);
        assert_eq!(lanes.release(now), Some(later));
        assert_eq!(lanes.release(later), None);
        order = std::iter::from_fn(|| serve(&mut lanes, later)).collect();
        assert_eq!(order.len(), 2);
    }

    #[test]
    fn where_bytes_are_used_up_only_a_tenant_with_nothing_under_way_goes_on() {
        let (mut lanes, now) = (Lanes::default(), Instant::now());
        assert!(lanes.pass(&tenant(0), Room::All, now), "straight through");
        assert!(!lanes.pass(&tenant(0), Room::FirstOnly, now));
        assert!(lanes.pass(&tenant(1), Room::FirstOnly, now));
        lanes.push(&tenant(0), 1, waiting(1, now));
        assert!(
            !lanes.pass(&tenant(2), Room::All, now),
            "nobody overtakes those who wait"
        );
        assert!(lanes.next(now, Room::FirstOnly, |()| false).is_none());
        lanes.ended(&tenant(0));
        assert!(lanes.next(now, Room::FirstOnly, |()| false).is_some());
    }
}
