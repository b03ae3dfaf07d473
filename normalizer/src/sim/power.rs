//! Power loss: after every operation of a run, and in many of the ways in which it may leave the disk.

use super::disk::{Lie, Model, Recorder};
use super::world::{Plan, simulate};
use super::{fail_on_breach, one_seed, seeds};
use crate::slots::{Format, Slots, SlotsError};
use sluice_common::disk::{Disk, DiskWatch};
use sluice_common::replace::{OWNER_ONLY, replace_on};
use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A process dies at its operation `at` and the power is lost; the next one, if it is killed, dies early
/// enough that the one after it finds what was read and not synced; then the power is lost again.
fn cut(seed: u64, at: u64) -> Plan {
    Plan {
        crashes: 1,
        power_loss: 1.0,
        die_at: vec![at],
        batches: 12,
        trouble: 0.5,
        ..Plan::new(seed)
    }
}

/// Killed at `at`, then a power loss soon after the start that followed: what recovery reads, it must have synced.
fn killed_and_cut(seed: u64, at: u64, then: u64) -> Plan {
    Plan {
        crashes: 2,
        power_loss: 0.5,
        die_at: vec![at, then],
        ..cut(seed, at)
    }
}

#[test]
fn no_power_loss_after_any_operation_loses_doubles_or_refuses() {
    let begun = Instant::now();
    let histories = one_seed().map_or(0..seeds("SLUICE_POWER_SEEDS", 3), |seed| seed..seed + 1);
    let mut runs = 0u64;
    for seed in histories {
        let quiet = simulate(&Plan {
            crashes: 0,
            ..cut(seed, 0)
        });
        fail_on_breach("power loss", seed, &quiet);
        for at in 0..quiet.points {
            let outcome = simulate(&cut(seed, at));
            fail_on_breach(&format!("power loss at {at}"), seed, &outcome);
            let outcome = simulate(&killed_and_cut(seed, at, 5 + at % 23));
            fail_on_breach(
                &format!("kill at {at}, power loss at {}", 5 + at % 23),
                seed,
                &outcome,
            );
            runs += 2;
        }
    }
    println!("power loss: {runs} disks, {:?}", begun.elapsed());
}

/// A disk whose process dies at its operation `at`, and what is left of it.
fn dying(root: &Path, at: u64) -> (Arc<Recorder>, Disk) {
    let count = AtomicU64::new(0);
    let dies = move |_: &str| count.fetch_add(1, Ordering::SeqCst) == at;
    let recorder = Recorder::new(root.to_owned(), Model::default(), Lie::None, dies);
    let disk = Disk::watched(Arc::clone(&recorder) as Arc<dyn DiskWatch>);
    (recorder, disk)
}

#[test]
fn a_file_that_is_replaced_is_the_old_one_or_the_new_one_after_any_power_loss() {
    let old = vec![b'o'; 10_000];
    let new = vec![b'n'; 9_000];
    for at in 0..12 {
        for seed in 0..200 {
            let root = tempfile::tempdir().unwrap();
            let (recorder, disk) = dying(root.path(), at);
            let (fresh, path) = (root.path().join("a.new"), root.path().join("a"));
            let mut done = 0;
            for text in [&old, &new] {
                replace_on(&disk, (&fresh, &path), text, Permissions::from_mode(OWNER_ONLY)).unwrap();
                done += usize::from(!recorder.is_dead());
            }
            let left = tempfile::tempdir().unwrap();
            recorder.take().0.power_loss(seed).lay_out(left.path());
            let found = std::fs::read(left.path().join("a")).ok();
            let may_be: &[Option<&Vec<u8>>] = match done {
                0 => &[None, Some(&old)],
                1 => &[Some(&old), Some(&new)],
                _ => &[Some(&new)],
            };
            assert!(
                may_be.contains(&found.as_ref()),
                "operation {at}, seed {seed}, {done} replaced"
            );
        }
    }
}

#[test]
fn a_state_in_slots_is_the_one_before_or_the_one_after_any_power_loss() {
    let format = Format {
        magic: *b"TEST",
        versions: 1..=1,
    };
    let states: Vec<Vec<u8>> = (0..5u8).map(|n| vec![n; 3_000 + usize::from(n)]).collect();
    for at in 0..20 {
        for seed in 0..100 {
            let root = tempfile::tempdir().unwrap();
            let (recorder, disk) = dying(root.path(), at);
            let (fresh, path) = (root.path().join("a.new"), root.path().join("a"));
            let first = (states[0].as_slice(), || Ok(()));
            let mut slots = Slots::create(
                &disk,
                (&fresh, &path),
                (format.clone(), 8 * 1024, OWNER_ONLY),
                first,
            )
            .unwrap();
            let mut kept = usize::from(!recorder.is_dead());
            for state in &states[1..] {
                slots.put(state).unwrap();
                slots.sync().unwrap();
                kept += usize::from(!recorder.is_dead());
            }
            let left = tempfile::tempdir().unwrap();
            recorder.take().0.power_loss(seed).lay_out(left.path());
            let found = match Slots::open(&Disk::default(), &left.path().join("a"), format.clone()) {
                Ok((_, payload)) => Some(payload),
                Err(SlotsError::Io(error)) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => panic!("operation {at}, seed {seed}, {kept} kept: {error}"),
            };
            let before = kept.checked_sub(1).map(|last| &states[last]);
            let may_be_next = kept < states.len() && found.as_ref() == states.get(kept);
            assert!(
                found.as_ref() == before || may_be_next,
                "operation {at}, seed {seed}, {kept} kept"
            );
        }
    }
}

/// The safety is off: some disk must show it, by what it is there against. Which of a lie's consequences is seen first
/// hangs on where the cut falls.
fn must_show(lie: Lie, kind: &str) {
    let mut others = Vec::new();
    for seed in 0..40 {
        for at in (10..400).step_by(7) {
            let outcome = simulate(&Plan { lie, ..cut(seed, at) });
            match outcome.breach {
                Some(breach) if breach.contains(kind) => {
                    println!("{lie:?} shows at seed {seed}, operation {at}: {breach}");
                    return;
                }
                other => others.extend(other),
            }
        }
    }
    panic!("{lie:?} does not show {kind:?}, only {others:?}");
}

#[test]
fn an_ack_before_the_sync_shows() {
    must_show(Lie::LogSync, "acknowledged records are missing");
}

#[test]
fn directories_that_are_not_synced_show() {
    must_show(Lie::DirSync, "belongs to log");
}

#[test]
fn unlinking_before_progress_is_durable_shows() {
    must_show(Lie::UnlinkFirst, "RowsAhead");
}

#[test]
fn a_manifest_that_names_a_bucket_before_its_sync_shows() {
    must_show(Lie::BucketSync, "its checksum is wrong");
}
