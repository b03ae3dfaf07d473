//! Opening: torn tails, damage, identity, the lock.

use super::*;

fn corrupt(dir: &Path, known_durable: Offset) -> Damage {
    let mut options = options(dir);
    options.known_durable = known_durable;
    let error = open_error(options);
    let OpenError::Corrupt(damage) = error else {
        panic!("expected damage, got {error}")
    };
    damage
}

/// Three groups of one record each, closed without a mark, as a kill between two groups leaves it.
fn three_records() -> (TempDir, std::path::PathBuf, Vec<usize>) {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    (0..3).for_each(|key| drop(append(&log, key..key + 1, 60)));
    drop(log);
    let path = segments(dir.path()).remove(0);
    let starts = frame_starts(&path);
    let end = *starts.last().unwrap();
    edit(&path, |bytes| bytes[end..].fill(0));
    (dir, path, starts)
}

#[test]
fn a_tail_torn_at_any_byte_of_the_last_frame_is_removed_and_the_log_goes_on() {
    let (dir, _, starts) = three_records();
    for cut in starts[2]..starts[3] {
        for shorten in [false, true] {
            let torn = copy(dir.path());
            let path = segments(torn.path()).remove(0);
            edit(&path, |bytes| {
                if shorten {
                    bytes.truncate(cut)
                } else {
                    bytes[cut..].fill(0)
                }
            });
            // The frame's padding is zeros: cut there, nothing is missing.
            let expected = open(torn.path());
            let kept = keys_from(&expected, 0);
            assert!(
                kept == [0, 1] || kept == [0, 1, 2] && !shorten,
                "cut at {cut}: {kept:?}"
            );
            append(&expected, 9..10, 2000).unwrap();
            drop(expected);
            assert_eq!(keys_from(&open(torn.path()), 0), [kept, vec![9]].concat());
        }
    }
}

#[test]
fn of_a_torn_group_any_part_may_have_reached_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, 0..1, 60).unwrap();
    append(&log, 1..4, 60).unwrap();
    drop(log);
    let path = segments(dir.path()).remove(0);
    let starts = frame_starts(&path);
    edit(&path, |bytes| {
        bytes[starts[1]..starts[2]].fill(0);
        bytes[starts[4]..].fill(0);
    });
    let log = open(dir.path());
    assert_eq!(keys_from(&log, 0), vec![0]);
    append(&log, 9..10, 60).unwrap();
    drop(log);
    assert_eq!(
        keys_from(&open(dir.path()), 0),
        vec![0, 9],
        "the rest of the torn group was wiped"
    );
}

#[test]
fn a_flipped_bit_before_a_later_group_is_damage_and_changes_nothing() {
    let (dir, path, starts) = three_records();
    for place in (starts[0]..starts[2]).step_by(7) {
        edit(&path, |bytes| bytes[place] ^= 1);
        let before = std::fs::read(&path).unwrap();
        let damage = corrupt(dir.path(), 0);
        assert_eq!(damage.offset, u64::from(place >= starts[1]));
        assert_eq!(std::fs::read(&path).unwrap(), before);
        edit(&path, |bytes| bytes[place] ^= 1);
    }
    assert_eq!(keys_from(&open(dir.path()), 0), vec![0, 1, 2]);
}

#[test]
fn a_flipped_bit_in_the_last_record_is_damage_where_a_mark_or_progress_proves_it_durable() {
    let (dir, path, starts) = three_records();
    edit(&path, |bytes| bytes[starts[2] + 20] ^= 1);
    assert_eq!(corrupt(copy(dir.path()).path(), 3).offset, 2);
    assert_eq!(
        keys_from(&open(copy(dir.path()).path()), 0),
        vec![0, 1],
        "nothing proves it"
    );

    let marked = tempfile::tempdir().unwrap();
    let log = open(marked.path());
    append(&log, 0..3, 60).unwrap();
    until("the writer left its mark", || {
        let path = segments(marked.path()).remove(0);
        std::fs::read(&path).unwrap()[frames_end(&path)..].starts_with(b"SLDM")
    });
    let killed = copy(marked.path());
    let path = segments(killed.path()).remove(0);
    edit(&path, |bytes| bytes[starts[2] + 20] ^= 1);
    assert_eq!(corrupt(killed.path(), 0).offset, 2);
}

#[test]
fn a_log_that_ends_before_its_progress_is_refused() {
    let (dir, path, starts) = three_records();
    edit(&path, |bytes| bytes[starts[2]..].fill(0));
    let mut options = options(dir.path());
    options.known_durable = 3;
    assert!(matches!(
        open_error(options),
        OpenError::Behind {
            end: 2,
            known_durable: 3
        }
    ));
}

#[test]
fn damage_in_an_older_segment_is_met_when_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, 0..100, 1000).unwrap();
    drop(log);
    let path = segments(dir.path()).remove(0);
    let starts = frame_starts(&path);
    edit(&path, |bytes| bytes[starts[3] + 30] ^= 4);
    let log = open(dir.path());
    assert_eq!(log.read(0, 2500).unwrap().len(), 2);
    match log.read(3, 1) {
        Err(ReadError::Corrupt(damage)) => {
            assert_eq!((damage.offset, damage.position), (3, starts[3] as u64));
            assert!(matches!(damage.kind, DamageKind::Record(_)));
        }
        other => panic!("expected damage, got {other:?}"),
    }
    assert_eq!(log.read(99, 1).unwrap().len(), 1, "the tail is whole");
}

#[test]
fn a_missing_segment_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, 0..100, 1000).unwrap();
    drop(log);
    let middle = copy(dir.path());
    std::fs::remove_file(&segments(middle.path())[1]).unwrap();
    assert!(matches!(
        corrupt(middle.path(), 0).kind,
        DamageKind::MissingSegment { .. }
    ));
    let all = copy(dir.path());
    segments(all.path())
        .iter()
        .for_each(|path| std::fs::remove_file(path).unwrap());
    assert_eq!(corrupt(all.path(), 0).kind, DamageKind::NoSegments);
    let newest = copy(dir.path());
    std::fs::remove_file(segments(newest.path()).last().unwrap()).unwrap();
    let mut options = options(newest.path());
    options.known_durable = 100;
    assert!(matches!(
        open_error(options),
        OpenError::Behind {
            known_durable: 100,
            ..
        }
    ));
    edit(&segments(dir.path())[1], |bytes| bytes[30] ^= 1);
    assert!(matches!(
        corrupt(dir.path(), 0).kind,
        DamageKind::Header(BadHeader::Checksum)
    ));
}

#[test]
fn a_log_of_another_number_of_partitions_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    edit(&dir.path().join("manifest"), |bytes| {
        bytes[10] = 2;
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    });
    let refused = open_error(options(dir.path()));
    assert!(
        matches!(refused, OpenError::Partitions { found: 2, .. }),
        "{refused:?}"
    );
}

#[test]
fn a_log_is_known_by_its_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, 0..1, 10).unwrap();
    let (id, secret) = (log.id(), log.hash_secret());
    assert_eq!(log.partitions(), 1);
    drop(log);
    let log = open(dir.path());
    assert_eq!((log.id(), log.hash_secret()), (id, secret));
    drop(log);
    let other = tempfile::tempdir().unwrap();
    assert_ne!(open(other.path()).id(), id);

    let manifest = dir.path().join("manifest");
    let whole = std::fs::read(&manifest).unwrap();
    edit(&manifest, |bytes| bytes[20] ^= 1);
    assert!(matches!(
        open_error(options(dir.path())),
        OpenError::Manifest {
            reason: BadManifest::Checksum,
            ..
        }
    ));
    std::fs::remove_file(&manifest).unwrap();
    assert!(matches!(
        open_error(options(dir.path())),
        OpenError::NoManifest { .. }
    ));
    std::fs::write(&manifest, whole).unwrap();
    assert_eq!(keys_from(&open(dir.path()), 0), vec![0]);
}

#[test]
fn another_log_s_segment_is_damage() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(open(one.path()));
    drop(open(two.path()));
    std::fs::copy(&segments(one.path())[0], &segments(two.path())[0]).unwrap();
    assert!(matches!(
        corrupt(two.path(), 0).kind,
        DamageKind::OtherSegment { .. }
    ));
}

#[test]
fn a_first_start_that_ended_before_the_manifest_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    std::fs::remove_file(dir.path().join("manifest")).unwrap();
    std::fs::write(dir.path().join("spare"), [1; 100]).unwrap();
    let log = open(dir.path());
    append(&log, 0..1, 10).unwrap();
    assert_eq!(keys_from(&log, 0), vec![0]);
}

#[test]
fn one_process_owns_a_log_until_it_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let error = open_error(options(dir.path()));
    let OpenError::Locked { holder, .. } = error else {
        panic!("expected a lock, got {error}")
    };
    assert_eq!(holder, std::process::id().to_string());
    log.close();
    drop(open(dir.path()));
}
