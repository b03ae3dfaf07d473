//! A whole partition in a world that is made up: the real pump, dedup, progress, parked rows and log, on a disk
//! that may lose power, against models of ClickHouse and of the sink-writer, whose verdicts are the real one's code, in virtual time. A run is a
//! function of its seed.
//!
//! A process dies before any of its operations on the disk and at any call or answer; then the disk is as the
//! kernel saw it, or as a power loss may leave it, and the next process recovers from that. At the end the model
//! says what must be in the tables: each acknowledged event once, each decision as R7 says, books that balance.

pub mod append;
mod clickhouse;
mod disk;
mod oracle;
mod power;
mod sink;
mod starts;
mod switches;
pub mod time;
mod world;

use std::time::Instant;
use world::{Outcome, Plan, simulate};

/// How many seeds a test takes: what `variable` says, or as many as CI has time for.
fn seeds(variable: &str, default: u64) -> u64 {
    let asked = std::env::var(variable).ok();
    asked.map_or(default, |asked| asked.parse().expect("a number of seeds"))
}

/// The one seed to be replayed: `SLUICE_SEED`.
fn one_seed() -> Option<u64> {
    let asked = std::env::var("SLUICE_SEED").ok()?;
    Some(asked.parse().expect("SLUICE_SEED is a number"))
}

/// Runs the plan of each seed; the first breach fails with all that is known of it.
fn hold(name: &str, default: u64, plan: impl Fn(u64) -> Plan) {
    let begun = Instant::now();
    let all = one_seed().map_or(0..seeds("SLUICE_SEEDS", default), |seed| seed..seed + 1);
    let (mut runs, mut lives, mut rows) = (0u64, 0u64, 0u64);
    for seed in all {
        let outcome = simulate(&plan(seed));
        fail_on_breach(name, seed, &outcome);
        (runs, lives, rows) = (runs + 1, lives + outcome.lives, rows + outcome.rows);
    }
    println!(
        "{name}: {runs} runs, {lives} processes, {rows} rows, {:?}",
        begun.elapsed()
    );
}

fn fail_on_breach(name: &str, seed: u64, outcome: &Outcome) {
    let Some(breach) = &outcome.breach else { return };
    for line in &outcome.trace {
        println!("{line}");
    }
    panic!("{name}, seed {seed} (SLUICE_SEED={seed} replays it): {breach}");
}

fn stormy(seed: u64) -> Plan {
    Plan {
        crashes: 3,
        power_loss: 0.5,
        ..Plan::new(seed)
    }
}

#[test]
fn every_event_is_in_one_place_whatever_befalls_process_disk_and_clickhouse() {
    hold("simulation", 2_500, stormy);
}

#[test]
fn a_seed_runs_the_same_twice() {
    for seed in 0..10 {
        let (first, second) = (simulate(&stormy(seed)), simulate(&stormy(seed)));
        let said = |outcome: &Outcome| -> Vec<String> {
            let lines = outcome.trace.iter().filter(|line| !line.contains(" disk: "));
            lines.cloned().collect()
        };
        let (one, other) = (said(&first), said(&second));
        let differs = one.iter().zip(&other).find(|(one, other)| one != other);
        assert_eq!(first.trace_hash, second.trace_hash, "seed {seed}: {differs:?}");
    }
}
