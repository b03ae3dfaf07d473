//! A log that is filled by tenants and drained at a known rate, in steps of simulated time.

use super::drain::Drain;
use super::shares::{Committed, Shares};
use super::{Grant, Load, View, Why};
use proptest::prelude::*;
use sluice_common::clock::{ManualClock, UnixMs};
use sluice_common::config::Weight;
use sluice_common::ids::TenantId;
use sluice_common::limits::GRANT_TENANTS;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

const STEP_MS: u64 = 50;
const BODY: usize = 10_000;
/// Log bytes of one body byte, and rows of one body.
const PACKED: f64 = 0.4;
const ROWS: f64 = 50.0;

fn id(n: usize) -> TenantId {
    TenantId::new(&format!("t{n}")).expect("valid")
}

/// One tenant: how many bodies it sends a second, and what became of them.
struct Sender {
    weight: Weight,
    per_second: f64,
    due: f64,
    taken: u64,
    refused: u64,
}

/// How long a range takes however small it is, and how old it gets where nothing is under way.
const LEAST_MS: u64 = 50;
const RANGE_AGE_MS: u64 = 500;
/// Of a range that is full, in seconds of what is drained.
const RANGE_S: f64 = 0.4;

/// What is on its way into ClickHouse.
struct Range {
    rows: Vec<(usize, f64, u64)>,
    full: bool,
    /// What ClickHouse still has to do, in its seconds.
    left_s: f64,
}

/// The log: bytes by tenant and append time, in order. One range is settled while the next one grows.
struct World {
    shares: Shares,
    senders: Vec<Sender>,
    log: VecDeque<(usize, f64, u64)>,
    under_way: Option<Range>,
    backlog: f64,
    limit: f64,
    now: u64,
    /// Log bytes a second that ClickHouse takes.
    drain: f64,
    /// Bytes of a full range.
    range: f64,
    least_ms: u64,
    committed_ms: Option<u64>,
    whys: HashMap<&'static str, u64>,
    full: u64,
    /// Of what was committed: how long after its append.
    ages: Vec<u64>,
    drained: f64,
}

impl World {
    fn new(limit: f64, drain: f64, senders: &[(u32, f64)]) -> Self {
        let sender = |(weight, per_second): &(u32, f64)| Sender {
            weight: Weight::new(*weight).expect("valid"),
            per_second: *per_second,
            due: 0.0,
            taken: 0,
            refused: 0,
        };
        Self {
            shares: Shares::new(7, false),
            senders: senders.iter().map(sender).collect(),
            log: VecDeque::new(),
            under_way: None,
            backlog: 0.0,
            limit,
            now: 1_000_000,
            drain,
            range: (drain * RANGE_S).max(MB / 4.0),
            least_ms: LEAST_MS,
            committed_ms: None,
            whys: HashMap::new(),
            full: 0,
            ages: Vec::new(),
            drained: 0.0,
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a test's numbers"
    )]
    fn view(&self) -> View {
        View {
            now: self.now,
            backlog_bytes: self.backlog as u64,
            limit_bytes: self.limit as u64,
            oldest_ms: self.oldest(),
        }
    }

    fn oldest(&self) -> Option<u64> {
        let declared = self.under_way.as_ref().and_then(|range| range.rows.first());
        declared.or(self.log.front()).map(|(.., at)| *at)
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 1_000 / STEP_MS {
            for n in 0..self.senders.len() {
                self.senders[n].due += self.senders[n].per_second * STEP_MS as f64 / 1_000.0;
                while self.senders[n].due >= 1.0 {
                    self.senders[n].due -= 1.0;
                    self.send(n);
                }
            }
            self.pass(STEP_MS);
        }
    }

    /// Time passes, and nothing is sent.
    fn pass(&mut self, ms: u64) {
        let until = self.now + ms;
        while self.now < until {
            let step = (until - self.now).min(STEP_MS);
            self.now += step;
            if self.drain > 0.0 {
                self.drain_for(step as f64 / 1_000.0);
            }
        }
    }

    fn drain_for(&mut self, mut seconds: f64) {
        loop {
            let Some(range) = &mut self.under_way else {
                if !self.declare() {
                    return;
                }
                continue;
            };
            let worked = range.left_s.min(seconds);
            range.left_s -= worked;
            seconds -= worked;
            if range.left_s > 0.0 {
                return;
            }
            self.commit();
        }
    }

    /// Whether a range is due.
    fn declare(&mut self) -> bool {
        let (mut bytes, mut rows) = (0.0, Vec::new());
        while let Some(one) = self.log.pop_front_if(|one| bytes + one.1 <= self.range) {
            bytes += one.1;
            rows.push(one);
        }
        let full = !self.log.is_empty();
        let is_old = rows.first().is_some_and(|(.., at)| self.now - at >= RANGE_AGE_MS);
        if !full && !is_old {
            self.log.extend(rows);
            return false;
        }
        let left_s = (bytes / self.drain).max(self.least_ms as f64 / 1_000.0);
        self.under_way = Some(Range { rows, full, left_s });
        true
    }

    fn send(&mut self, n: usize) {
        let view = self.view();
        if self.backlog >= self.limit {
            self.full += 1;
            self.senders[n].refused += 1;
            return;
        }
        let asked = self.shares.ask((&id(n), self.senders[n].weight), BODY, view);
        let reserved = match asked {
            Ok(reserved) => reserved,
            Err(refused) => {
                assert!(refused.retry_after_ms > 0);
                *self.whys.entry(refused.why.label()).or_default() += 1;
                self.senders[n].refused += 1;
                return;
            }
        };
        let load = Load {
            bytes: BODY as f64 * PACKED,
            rows: ROWS,
        };
        self.shares.wrote(&id(n), load);
        self.shares
            .done(&id(n), reserved.expect("few tenants"), Some(BODY));
        self.senders[n].taken += 1;
        self.log.push_back((n, load.bytes, self.now));
        self.backlog += load.bytes;
    }

    fn commit(&mut self) {
        let Some(range) = self.under_way.take() else {
            return;
        };
        let (mut all, mut of) = (Load::default(), HashMap::<TenantId, Load>::new());
        for (n, bytes, at) in &range.rows {
            let load = Load {
                bytes: *bytes,
                rows: ROWS,
            };
            all = all + load;
            let known = of.entry(id(*n)).or_default();
            *known = *known + load;
            self.ages.push(self.now - at);
        }
        self.backlog -= all.bytes;
        self.drained += all.bytes;
        let (first, last) = (
            range.rows.first().expect("some"),
            range.rows.last().expect("some"),
        );
        let before = self.committed_ms.replace(self.now);
        let committed = Committed::after(before, 0, (first.2, last.2), range.full);
        self.shares.committed(all, &of, committed, self.now);
    }

    fn forget_counts(&mut self) {
        for one in &mut self.senders {
            (one.taken, one.refused) = (0, 0);
        }
        self.ages.clear();
        self.drained = 0.0;
    }
}

const MB: f64 = 1e6;

#[test]
fn nobody_is_held_back_while_the_log_is_drained_in_time() {
    let mut world = World::new(1e9, 10.0 * MB, &[(1, 1_000.0), (1, 500.0)]);
    world.run(60);
    assert!(world.senders.iter().all(|one| one.refused == 0));
    assert_eq!(world.shares.in_force(), None);
}

/// The age that 95 of 100 of what was committed had at most.
fn p95(world: &mut World) -> u64 {
    world.ages.sort_unstable();
    world.ages[world.ages.len() * 95 / 100]
}

#[test]
fn at_full_load_what_is_taken_is_drained_within_three_seconds_and_all_is_used() {
    for greedy in [260.0, 300.0, 400.0, 1_000.0, 4_000.0] {
        let mut world = World::new(1e9, MB, &[(1, greedy), (1, 10.0)]);
        // What came before anything could be seen of it goes down by a quarter of what is drained.
        world.run(400);
        world.forget_counts();
        world.run(120);
        let (age, drained) = (p95(&mut world), world.drained / 120.0);
        assert!(age <= 2_000, "{age} ms at {greedy}");
        assert!(drained > 0.95 * MB, "{drained} at {greedy}");
        assert_eq!(world.senders[1].refused, 0, "at {greedy}");
    }
}

#[test]
fn ranges_that_take_long_under_full_load_let_the_backlog_grow_to_a_bound() {
    for range_s in [8.0, 15.0, 20.0] {
        let mut world = World::new(1e9, MB, &[(1, 1_000.0)]);
        world.range = MB * range_s;
        world.run(600);
        // Let in all that comes it would be half of the limit.
        let ranges = world.backlog / world.range;
        assert!(ranges < 8.0, "{ranges} ranges of {range_s} s");
    }
}

#[test]
fn slow_inserts_refuse_nobody_who_sends_less_than_is_drained() {
    for least_ms in [500, 1_000, 2_500, 6_000, 12_000] {
        for shared in [false, true] {
            let mut world = World::new(1e9, 10.0 * MB, &[(1, 40.0), (1, 1.0)]);
            world.shares = Shares::new(7, shared);
            world.least_ms = least_ms;
            world.run(120);
            assert!(
                world.senders.iter().all(|one| one.refused == 0),
                "at {least_ms} ms, shared: {shared}"
            );
        }
    }
}

#[test]
fn who_sends_ten_times_as_much_as_before_and_less_than_is_drained_is_not_refused() {
    let mut world = World::new(1e9, 10.0 * MB, &[(1, 150.0), (1, 50.0)]);
    world.run(60);
    (world.senders[0].per_second, world.senders[1].per_second) = (1_500.0, 300.0);
    world.run(60);
    assert!(world.senders.iter().all(|one| one.refused == 0));
}

#[test]
fn a_pause_at_light_load_refuses_nobody_after_it() {
    for pause in [1, 2, 4] {
        let mut world = World::new(1e9, 10.0 * MB, &[(1, 500.0), (1, 50.0)]);
        world.run(30);
        world.drain = 0.0;
        world.run(pause);
        world.drain = 10.0 * MB;
        world.run(30);
        let refused: Vec<u64> = world.senders.iter().map(|one| one.refused).collect();
        assert_eq!(refused, [0, 0], "after {pause} s");
    }
}

#[test]
fn a_range_tells_of_a_queue_where_it_was_full_before_its_turn_came() {
    let clock = Arc::new(ManualClock::at(100_000));
    let grant = Grant::new(clock.clone(), 1 << 30, Some(0));
    let tenant = id(0);
    let mut meter = grant.meter(0);
    let mut commit = |full, append_ms: [UnixMs; 2]| {
        clock.advance(500);
        let records = append_ms.map(|at| (1, at, &tenant, Load::of(1_000_000, 10)));
        meter.committed(records.into_iter(), full);
        clock.advance(300);
        grant.is_shut(grant.view(1 << 27, Some(append_ms[1])))
    };
    assert!(!commit(true, [90_000, 90_100]), "nothing was before it");
    assert!(!commit(false, [90_000, 90_100]), "it took all that there was");
    assert!(!commit(true, [90_000, 102_000]), "it was not full by then");
    assert!(commit(true, [90_000, 90_100]));
    drop(meter);
    clock.advance(300);
    assert!(!grant.is_shut(grant.view(0, None)), "the partition is gone");
}

#[test]
fn who_was_not_taken_for_hours_is_asked_as_a_newcomer_and_then_forgotten() {
    let mut shares = Shares::new(1, false);
    let view = |now| View {
        now,
        backlog_bytes: 0,
        limit_bytes: 1_000_000,
        oldest_ms: None,
    };
    let mut ask = |now, load: Option<Load>| {
        let asked = shares.ask((&id(0), Weight::default()), 1_000, view(now));
        let reserved = asked.expect("open").expect("few tenants");
        if let Some(load) = load {
            shares.wrote(&id(0), load);
        }
        shares.done(&id(0), reserved, load.map(|_| 1_000));
        reserved
    };
    ask(
        1_000,
        Some(Load {
            bytes: 333.3,
            rows: 1.0,
        }),
    );
    for turn in 1..=20_000 {
        let reserved = ask(1_000 + turn * 250, None);
        assert!(
            reserved.bytes.is_finite() && reserved.bytes <= 1_000.0,
            "{reserved:?}"
        );
    }
}

#[test]
fn a_partition_that_is_gone_holds_nobody_for_long() {
    let mut shares = Shares::new(1, false);
    let view = |now| View {
        now,
        backlog_bytes: 1_000_000,
        limit_bytes: 1 << 30,
        oldest_ms: None,
    };
    let range = |partition, waited_ms| Committed {
        partition,
        oldest_ms: 90_000,
        waited_ms,
    };
    let none = HashMap::new();
    shares.committed(Load::of(10, 1), &none, range(3, Some(2_000)), 100_000);
    shares.committed(Load::of(10, 1), &none, range(4, None), 100_100);
    shares.turn(view(100_500));
    assert!(shares.is_shut(), "what another one says changes nothing");
    shares.turn(view(111_000));
    assert!(!shares.is_shut());
}

#[test]
fn a_late_log_gives_the_modest_all_and_shares_the_rest_by_weight() {
    // 1 MB/s is 250 bodies; the first two want far more, the third a tenth of an equal share.
    let mut world = World::new(1e9, MB, &[(1, 1_000.0), (3, 1_000.0), (1, 5.0)]);
    world.run(60);
    world.forget_counts();
    world.run(60);
    let taken: Vec<f64> = world.senders.iter().map(|one| one.taken as f64 / 60.0).collect();
    assert_eq!(world.senders[2].refused, 0, "{taken:?}");
    assert!(taken.iter().sum::<f64>() > 0.8 * 250.0, "{taken:?}");
    assert!((taken[1] / taken[0] - 3.0).abs() < 0.5, "{taken:?}");
    assert!(world.backlog < 2.0 * MB, "{}", world.backlog);
    assert_eq!(world.full, 0);
}

#[test]
fn what_is_not_used_goes_to_those_who_want_more() {
    let mut world = World::new(1e9, MB, &[(1, 2_000.0), (100, 10.0)]);
    world.run(40);
    world.forget_counts();
    world.run(40);
    let greedy = world.senders[0].taken as f64 / 40.0;
    assert!(greedy > 0.8 * 240.0, "{greedy}");
    assert_eq!(world.senders[1].refused, 0);
}

#[test]
fn of_a_log_that_is_not_drained_the_heavier_tenant_fills_more() {
    let mut world = World::new(100.0 * MB, 0.0, &[(1, 4_000.0), (4, 4_000.0)]);
    world.run(20);
    let held = |n: usize| {
        let own = world.log.iter().filter(|one| one.0 == n);
        own.map(|one| one.1).sum::<f64>()
    };
    // Both fill the first half, where nobody is asked; then each stops at its part of 16 times what is free.
    assert!(held(1) > 1.15 * held(0), "{} and {}", held(0), held(1));
    assert_eq!(world.full, 0);
}

#[test]
fn nothing_drained_lets_one_tenant_fill_most_of_the_log_and_never_all_of_it() {
    let mut world = World::new(100.0 * MB, 2.0 * MB, &[(1, 400.0), (1, 0.0), (1, 0.0)]);
    world.run(20);
    world.drain = 0.0;
    world.run(12);
    assert_eq!(
        world.senders[0].refused, 0,
        "an outage is none of the clients' business: {:?}",
        world.whys
    );
    world.run(300);
    assert!(world.backlog > 0.93 * world.limit, "{}", world.backlog);
    assert!(world.senders[0].refused > 0);
    assert_eq!(
        world.full, 0,
        "the watermark itself is not reached: {:?}",
        world.whys
    );
    assert!(!world.whys.contains_key(Why::Drain.label()), "{:?}", world.whys);
    // Those who come late find room all the same, and go on for minutes.
    (world.senders[1].per_second, world.senders[2].per_second) = (1.0, 1.0);
    world.run(120);
    assert_eq!((world.senders[1].refused, world.senders[2].refused), (0, 0));
    assert!(world.senders[1].taken >= 119);
}

#[test]
fn after_an_outage_the_backlog_goes_down_and_the_gate_opens() {
    let mut world = World::new(100.0 * MB, 2.0 * MB, &[(1, 400.0), (1, 3.0)]);
    world.run(10);
    world.drain = 0.0;
    world.run(120);
    let most = world.backlog;
    world.drain = 4.0 * MB;
    world.run(30);
    assert!(world.backlog < most - 20.0 * MB, "{} of {most}", world.backlog);
    assert!(world.shares.in_force().is_some());
    world.run(120);
    assert_eq!(world.shares.in_force(), None);
    assert_eq!(world.senders[1].refused, 0, "who sends little is never refused");
    world.forget_counts();
    world.run(20);
    assert_eq!(world.senders[0].refused, 0);
}

#[test]
fn a_burst_that_fills_half_the_log_shuts_the_gate_before_it_is_old() {
    let mut world = World::new(10.0 * MB, MB, &[(1, 5_000.0)]);
    world.run(2);
    assert!(world.senders[0].refused > 0);
    assert_eq!(world.full, 0);
}

#[test]
fn who_waits_as_told_is_taken() {
    let mut world = World::new(1e9, MB, &[(1, 1_000.0)]);
    world.run(30);
    let mut waited = 0;
    for _ in 0..20 {
        let asked = world
            .shares
            .ask((&id(0), world.senders[0].weight), BODY, world.view());
        if let Err(refused) = asked {
            world.pass(refused.retry_after_ms);
            waited += 1;
            let again = world
                .shares
                .ask((&id(0), world.senders[0].weight), BODY, world.view());
            let reserved = again.expect("as told").expect("few tenants");
            world.shares.done(&id(0), reserved, None);
            let load = Load {
                bytes: 40_000.0,
                rows: 500.0,
            };
            world.shares.wrote(&id(0), load);
            world.log.push_back((0, load.bytes, world.now));
            world.backlog += load.bytes;
        } else {
            world.send(0);
        }
    }
    assert!(waited > 5, "{waited}");
}

#[test]
fn any_number_of_tenants_takes_bounded_memory_and_the_surplus_is_let_through() {
    let mut shares = Shares::new(1, false);
    let view = View {
        now: 1_000,
        backlog_bytes: 0,
        limit_bytes: 1_000,
        oldest_ms: None,
    };
    for n in 0..GRANT_TENANTS + 500 {
        let asked = shares.ask((&id(n), Weight::default()), 10, view).expect("open");
        assert_eq!(asked.is_some(), n < GRANT_TENANTS);
    }
    assert!(shares.tenants() <= GRANT_TENANTS);
    for n in 0..GRANT_TENANTS {
        shares.done(
            &id(n),
            Load {
                bytes: 10.0,
                rows: 1.0,
            },
            None,
        );
    }
    shares.turn(View { now: 99_000, ..view });
    assert_eq!(shares.tenants(), 0, "who has nothing here is forgotten");
}

#[test]
fn a_meter_that_has_seen_nothing_is_stalled() {
    assert!(Drain::default().is_stalled(Some(1), 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whoever_asks_for_less_than_its_share_is_never_refused_and_the_drain_is_used(
        greedy in prop::collection::vec((1u32..20, 300.0f64..2_000.0), 1..5),
        weight in 1u32..20,
        part in 0.05f64..0.5,
    ) {
        let weights: u32 = greedy.iter().map(|(weight, _)| weight).sum::<u32>() + weight;
        // Of 250 bodies a second.
        let modest = part * 0.9 * 250.0 * f64::from(weight) / f64::from(weights);
        let mut senders = greedy.clone();
        senders.push((weight, modest));
        let mut world = World::new(1e9, MB, &senders);
        world.run(200);
        world.forget_counts();
        world.run(60);
        let last = world.senders.last().expect("it was added");
        prop_assert_eq!(last.refused, 0);
        let taken: u64 = world.senders.iter().map(|one| one.taken).sum();
        prop_assert!(taken as f64 / 60.0 > 0.8 * 250.0, "{}", taken);
        // Those who want more than their share get it, give or take.
        for (one, (weight, asks)) in world.senders.iter().zip(&greedy) {
            let fair = 0.9 * 250.0 * f64::from(*weight) / f64::from(weights);
            prop_assert!(one.taken as f64 / 60.0 > 0.8 * fair.min(*asks), "{} of {}", one.taken, fair);
        }
        prop_assert_eq!(world.full, 0);
    }
}
