//! A log that is filled by tenants and drained at a known rate, in steps of simulated time.

use super::drain::Drain;
use super::shares::Shares;
use super::{Load, View, Why};
use proptest::prelude::*;
use sluice_common::config::Weight;
use sluice_common::ids::TenantId;
use sluice_common::limits::GRANT_TENANTS;
use std::collections::{HashMap, VecDeque};

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

/// The log: bytes by tenant and append time, in order.
struct World {
    shares: Shares,
    senders: Vec<Sender>,
    log: VecDeque<(usize, f64, u64)>,
    backlog: f64,
    limit: f64,
    now: u64,
    /// Log bytes a second that ClickHouse takes, in ranges.
    drain: f64,
    credit: f64,
    whys: HashMap<&'static str, u64>,
    full: u64,
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
            shares: Shares::new(7),
            senders: senders.iter().map(sender).collect(),
            log: VecDeque::new(),
            backlog: 0.0,
            limit,
            now: 1_000_000,
            drain,
            credit: 0.0,
            whys: HashMap::new(),
            full: 0,
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
            oldest_ms: self.log.front().map(|(.., at)| *at),
        }
    }

    fn run(&mut self, seconds: u64) {
        for step in 0..seconds * 1_000 / STEP_MS {
            self.now += STEP_MS;
            for n in 0..self.senders.len() {
                self.senders[n].due += self.senders[n].per_second * STEP_MS as f64 / 1_000.0;
                while self.senders[n].due >= 1.0 {
                    self.senders[n].due -= 1.0;
                    self.send(n);
                }
            }
            self.credit += self.drain * STEP_MS as f64 / 1_000.0;
            // A range every half second.
            if step % 10 == 0 {
                self.commit();
            }
        }
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
        let (mut all, mut of) = (Load::default(), HashMap::<TenantId, Load>::new());
        let oldest = self.log.front().map(|(.., at)| *at);
        while let Some((n, bytes, _)) = self.log.front().copied() {
            if self.credit < bytes {
                break;
            }
            self.credit -= bytes;
            self.backlog -= bytes;
            self.log.pop_front();
            let load = Load { bytes, rows: ROWS };
            all = all + load;
            let known = of.entry(id(n)).or_default();
            *known = *known + load;
        }
        if self.log.is_empty() {
            self.credit = 0.0;
        }
        if all.bytes > 0.0 {
            self.shares.committed(all, &of, (oldest.expect("some"), self.now));
        }
    }

    fn forget_counts(&mut self) {
        for one in &mut self.senders {
            (one.taken, one.refused) = (0, 0);
        }
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

#[test]
fn a_late_log_gives_the_modest_all_and_shares_the_rest_by_weight() {
    // 1 MB/s is 250 bodies; the first two want far more, the third a tenth of an equal share.
    let mut world = World::new(1e9, MB, &[(1, 1_000.0), (3, 1_000.0), (1, 5.0)]);
    world.run(40);
    world.forget_counts();
    let before = world.backlog;
    world.run(60);
    let taken: Vec<f64> = world.senders.iter().map(|one| one.taken as f64 / 60.0).collect();
    assert_eq!(world.senders[2].refused, 0, "{taken:?}");
    assert!(taken.iter().sum::<f64>() > 0.8 * 250.0, "{taken:?}");
    assert!((taken[1] / taken[0] - 3.0).abs() < 0.5, "{taken:?}");
    assert!(world.backlog < before - 3.0 * MB, "{} of {before}", world.backlog);
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
            world.now += refused.retry_after_ms;
            world.credit += world.drain * refused.retry_after_ms as f64 / 1_000.0;
            world.commit();
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
    let mut shares = Shares::new(1);
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
        world.run(30);
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
