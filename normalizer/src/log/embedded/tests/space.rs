//! Space: watermark, retention, a full volume.

use super::*;

fn volume_full() -> AppendError {
    AppendError::Full(FullReason::VolumeReserve)
}

#[test]
fn the_watermark_closes_at_its_limit_and_reopens_at_eighty_percent() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    let frame = record(0, 800).frame_bytes() as u64;
    options.max_bytes = 100 * frame;
    let log = EmbeddedLog::open(options, Arc::new(ManualClock::at(NOW))).unwrap();
    (0..100).for_each(|key| assert!(append(&log, key..key + 1, 800).is_ok()));
    assert_eq!(log.stats().backlog_bytes, 100 * frame);
    assert_eq!(
        append(&log, 0..1, 800),
        Err(AppendError::Full(FullReason::Watermark))
    );
    log.set_progress(19, 0);
    assert_eq!(
        append(&log, 0..1, 800),
        Err(AppendError::Full(FullReason::Watermark))
    );
    assert_eq!(log.stats().closed, Some(FullReason::Watermark));
    log.set_progress(20, 0);
    assert_eq!(log.stats().closed, None);
    assert!(append(&log, 100..101, 800).is_ok());
    log.set_progress(101, 0);
    assert_eq!(
        (log.stats().backlog_bytes, log.stats().oldest_backlog_append_ms),
        (0, None)
    );
    assert_eq!(log.first_offset(), 0, "what is not sealed stays");
}

#[test]
fn stored_records_are_kept_for_retain_and_never_deleted_before_they_are_committed_and_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(NOW);
    let log = EmbeddedLog::open(options(dir.path()), Arc::new(clock.clone())).unwrap();
    append(&log, 0..100, 1000).unwrap();
    let bases: Vec<u64> = segments(dir.path())
        .iter()
        .map(|path| segment::base_of(path.file_name().unwrap().to_str().unwrap()).unwrap())
        .collect();
    clock.advance(3_600_000);
    log.set_progress(100, bases[2] - 1);
    until("the first segment goes", || log.first_offset() == bases[1]);
    log.set_progress(100, bases[2] - 1);
    assert_eq!(keys_from(&log, bases[1])[0], u128::from(bases[1]));
    assert!(matches!(log.read(0, 1), Err(ReadError::OutOfReach { first }) if first == bases[1]));
    log.set_progress(100, 100);
    until("all but the newest go", || {
        log.first_offset() == *bases.last().unwrap()
    });
    assert_eq!(segments(dir.path()).len(), 1);
    drop(log);
    assert_eq!(open(dir.path()).first_offset(), *bases.last().unwrap());
}

#[test]
fn what_a_replay_reads_stays_though_it_is_old_until_a_quarter_more_disk_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(NOW);
    let mut options = options(dir.path());
    options.max_bytes = 40 * SEGMENT;
    let log = EmbeddedLog::open(options, Arc::new(clock.clone())).unwrap();
    append(&log, 0..100, 1000).unwrap();
    let second = segments(dir.path()).remove(1);
    let second = segment::base_of(second.file_name().unwrap().to_str().unwrap()).unwrap();
    log.pin(Some(second));
    clock.advance(3_600_000);
    log.set_progress(100, 100);
    until("what lies below goes", || log.first_offset() == second);
    append(&log, 100..101, 1000).unwrap();
    log.set_progress(101, 101);
    assert_eq!(log.first_offset(), second, "the keeper had work, and left it");
    // What is not stored takes the room in the end.
    let mut key = 101;
    while log.first_offset() == second {
        append(&log, key..key + 20, 1000).unwrap();
        key += 20;
        log.set_progress(0, 0);
        assert!(
            log.stats().disk_bytes <= 52 * SEGMENT,
            "{}",
            log.stats().disk_bytes / SEGMENT
        );
        if log.stats().backlog_bytes > 20 * SEGMENT {
            log.set_progress(u64::try_from(key).unwrap(), u64::try_from(key).unwrap());
        }
    }
    assert!(log.stats().disk_bytes > 45 * SEGMENT);
    log.set_progress(u64::try_from(key).unwrap(), u64::try_from(key).unwrap());
    clock.advance(3_600_000);
    log.pin(None);
    until("the rest goes", || segments(dir.path()).len() == 1);
}

#[test]
fn a_segment_is_deletable_once_all_of_it_is_both_committed_and_sealed() {
    for (committed, sealed, may) in [(1, 1, false), (1, 0, false), (0, 1, false), (0, 0, true)] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        append(&log, 0..100, 1000).unwrap();
        let next = segments(dir.path()).remove(1);
        let end = segment::base_of(next.file_name().unwrap().to_str().unwrap()).unwrap();
        log.set_progress(end - committed, end - sealed);
        let deletable = log.shared.catalogue.lock().deletable();
        assert_eq!(
            deletable,
            may.then_some(0),
            "{committed} and {sealed} records short"
        );
    }
}

#[test]
fn stored_records_younger_than_retain_go_once_max_bytes_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    options.max_bytes = 6 * SEGMENT;
    let log = EmbeddedLog::open(options, Arc::new(ManualClock::at(NOW))).unwrap();
    for key in 0..600 {
        let at = append(&log, key..key + 1, 1000).unwrap();
        log.set_progress(at.first + 1, at.first + 1);
        let segments = segments(dir.path()).len() as u64;
        assert!(segments * SEGMENT <= 8 * SEGMENT, "{segments} segments");
    }
    assert!(log.first_offset() > 0);
}

#[test]
fn a_volume_at_its_reserve_refuses_and_takes_again_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults, _) = open_faulty(options(dir.path()));
    faults.no_space.store(true, Ordering::SeqCst);
    let mut taken = 0;
    let refused = loop {
        match append(&log, taken..taken + 1, 1000) {
            Ok(_) => taken += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, volume_full());
    assert_eq!(
        u64::try_from(taken).unwrap(),
        (SEGMENT - 64) / record(0, 1000).frame_bytes() as u64
    );
    assert_eq!(append(&log, 0..1, 1000), Err(volume_full()));
    assert_eq!(log.stats().closed, Some(FullReason::VolumeReserve));
    assert_eq!(keys_from(&log, 0), (0..taken).collect::<Vec<_>>());
    assert_eq!(
        keys_from(&open(copy(dir.path()).path()), 0),
        (0..taken).collect::<Vec<_>>(),
        "no mark"
    );
    faults.no_space.store(false, Ordering::SeqCst);
    until("it takes again", || append(&log, taken..taken + 1, 1000).is_ok());
    assert_eq!(keys_from(&log, 0), (0..=taken).collect::<Vec<_>>());
}

#[test]
fn a_log_shut_on_a_volume_without_room_asks_for_a_seal_of_what_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults, _) = open_faulty(options(dir.path()));
    faults.no_space.store(true, Ordering::SeqCst);
    let refused = loop {
        if let Err(refused) = append(&log, 0..1, 1000) {
            break refused;
        }
    };
    assert_eq!(
        (refused, append(&log, 0..1, 1000)),
        (volume_full(), Err(volume_full()))
    );
    assert!(!log.wants_seal(), "nothing is stored");
    let end = *log.durable_end().borrow();
    log.set_progress(end, 0);
    assert!(log.wants_seal());
    log.set_progress(end, end);
    assert!(!log.wants_seal(), "all of it is sealed");
}

#[test]
fn a_segment_is_made_only_where_the_reserve_stays_free_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    options.reserve_bytes = Some(1 << 20);
    let (log, faults, _) = open_faulty(options);
    faults.free.store((1 << 20) + SEGMENT - 1, Ordering::SeqCst);
    let refused = loop {
        if let Err(refused) = append(&log, 0..1, 1000) {
            break refused;
        }
    };
    assert_eq!(refused, volume_full());
    assert_eq!(segments(dir.path()).len(), 1);
    faults.free.store((1 << 20) + SEGMENT, Ordering::SeqCst);
    until("it takes again", || append(&log, 0..1, 1000).is_ok());
}

#[test]
fn a_full_disk_while_a_segment_is_made_refuses_definitely() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults, _) = open_faulty(options(dir.path()));
    faults.fail_create.store(true, Ordering::SeqCst);
    append(&log, 0..20, 1000).unwrap();
    assert_eq!(append(&log, 20..40, 1000), Err(volume_full()));
    faults.fail_create.store(false, Ordering::SeqCst);
    until("it takes again", || append(&log, 20..40, 1000).is_ok());
    assert_eq!(keys_from(&log, 0), (0..40).collect::<Vec<_>>());
}

#[test]
fn stored_records_go_first_when_the_volume_is_at_its_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults, _) = open_faulty(options(dir.path()));
    append(&log, 0..100, 1000).unwrap();
    log.set_progress(100, 100);
    faults.no_space.store(true, Ordering::SeqCst);
    until("the stored segments go", || {
        let _ = append(&log, 100..120, 1000);
        log.first_offset() > 0 && segments(dir.path()).len() <= 2
    });
}

#[test]
fn a_new_log_needs_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    options.reserve_bytes = Some(u64::MAX / 2);
    assert!(matches!(open_error(options), OpenError::NoSpace { .. }));
}

#[test]
fn the_log_says_how_old_its_backlog_is_and_where_a_time_begins() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(NOW);
    let log = EmbeddedLog::open(options(dir.path()), Arc::new(clock.clone())).unwrap();
    for key in 0..60 {
        append(&log, key..key + 1, 1000).unwrap();
        clock.advance(10);
    }
    log.set_progress(30, 0);
    assert_eq!(log.stats().oldest_backlog_append_ms, Some(NOW + 300));
    for wanted in [0, 1, 25, 26, 40, 59] {
        let from = log.first_offset_appended_at_or_after(NOW + wanted * 10);
        assert!(from <= wanted && wanted - from < 40, "{wanted}: {from}");
    }
    assert_eq!(log.first_offset_appended_at_or_after(0), 0);
    assert_eq!(log.first_offset_appended_at_or_after(NOW + 10_000), 60);
}
