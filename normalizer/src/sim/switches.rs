//! The simulation must be able to fail: with any of the pump's safeties off, some seed shows it.

use super::disk::Lie;
use super::stormy;
use super::world::{Plan, Switch, simulate};

/// What is found first must be of the kind that the safety is there against.
fn must_show(what: &str, kind: &str, plan: impl Fn(u64) -> Plan) {
    for seed in 0..300 {
        if let Some(breach) = simulate(&plan(seed)).breach {
            println!("{what} shows at seed {seed}: {breach}");
            assert!(breach.contains(kind), "{what} is to show {kind:?}");
            return;
        }
    }
    panic!("{what} does not show");
}

fn with(switch: Switch) -> impl Fn(u64) -> Plan {
    move |seed| Plan {
        switch,
        ..stormy(seed)
    }
}

#[test]
fn verification_that_is_skipped_shows() {
    must_show(
        "skipped verification",
        "(Keep) is not in",
        with(Switch::VerifySkipped),
    );
}

#[test]
fn a_token_given_up_after_a_time_out_shows() {
    must_show(
        "a bump on time-outs",
        "was given up and is not poisoned",
        with(Switch::BumpOnTimeout),
    );
}

#[test]
fn dedup_that_is_off_shows() {
    must_show(
        "no dedup",
        "(Conflict) is not in dead_letters",
        with(Switch::DedupOff),
    );
}

#[test]
fn a_range_that_is_sent_before_it_is_declared_shows() {
    must_show(
        "an intent that is not durable",
        "progress went backwards",
        |seed| Plan {
            lie: Lie::Intent,
            power_loss: 1.0,
            ..stormy(seed)
        },
    );
}
