//! Appending: groups, refusals, faults, time.

use super::*;

#[test]
fn a_batch_is_readable_in_order_once_it_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    assert_eq!(
        append(&log, 0..3, 100),
        Ok(AppendedAt {
            first: 0,
            count: 3,
            append_ms: NOW
        })
    );
    assert_eq!(append(&log, 3..5, 100).map(|at| at.first), Ok(3));
    assert_eq!(keys_from(&log, 0), vec![0, 1, 2, 3, 4]);
    assert_eq!(keys_from(&log, 4), vec![4]);
    assert!(log.read(5, 1).unwrap().is_empty());
    assert_eq!(
        log.read(1, 1).unwrap().len(),
        1,
        "one record is read however small max_bytes is"
    );
    log.close();
    log.close();
    assert_eq!(append(&log, 0..1, 1), Err(AppendError::Closed));
}

#[test]
fn concurrent_appends_share_few_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults, _) = open_faulty(options(dir.path()));
    faults.hold_syncs.store(true, Ordering::SeqCst);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let tasks: Vec<_> = (0..50)
        .map(|key| {
            let log = Arc::clone(&log);
            runtime.spawn(async move { log.append(vec![record(key, 10)]).await })
        })
        .collect();
    runtime.block_on(tokio::task::yield_now());
    until("all are queued or in the writer's hands", || {
        faults.held.load(Ordering::SeqCst)
            && log.stats().queued_bytes == 50 * record(0, 10).frame_bytes() as u64
    });
    faults.hold_syncs.store(false, Ordering::SeqCst);
    for task in tasks {
        runtime.block_on(task).unwrap().unwrap();
    }
    assert!(
        faults.group_writes.load(Ordering::SeqCst) <= 2,
        "the first group, and all others in one"
    );
    assert_eq!(keys_from(&log, 0).len(), 50);
    assert_eq!(log.stats().queued_bytes, 0);
}

#[test]
fn a_queued_batch_is_written_though_its_caller_went_away() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut future = Box::pin(log.append(vec![record(7, 10)]));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let _ = future.as_mut().poll(&mut context);
    drop(future);
    until("the record is durable", || *log.durable_end().borrow() == 1);
    assert_eq!(keys_from(&log, 0), vec![7]);
}

#[test]
fn append_time_never_decreases_over_clock_steps_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(NOW);
    let log = EmbeddedLog::open(options(dir.path()), Arc::new(clock.clone())).unwrap();
    assert_eq!(append(&log, 0..1, 10).unwrap().append_ms, NOW);
    clock.set(NOW - 3_600_000);
    assert_eq!(append(&log, 1..2, 10).unwrap().append_ms, NOW);
    drop(log);
    let log = EmbeddedLog::open(options(dir.path()), Arc::new(clock.clone())).unwrap();
    assert_eq!(append(&log, 2..3, 10).unwrap().append_ms, NOW);
    // Also where the newest segment holds no record.
    append(&log, 3..33, 1000).unwrap();
    drop(log);
    let log = EmbeddedLog::open(options(dir.path()), Arc::new(clock.clone())).unwrap();
    assert_eq!(append(&log, 0..1, 10).unwrap().append_ms, NOW);
    clock.set(NOW + 5);
    assert_eq!(append(&log, 0..1, 10).unwrap().append_ms, NOW + 5);
}

#[test]
fn a_failed_write_leaves_nothing_and_the_log_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults, stopped) = open_faulty(options(dir.path()));
    append(&log, 0..2, 50).unwrap();
    faults.no_marks.store(true, Ordering::SeqCst);
    faults.fail_write.store(true, Ordering::SeqCst);
    let refused = append(&log, 2..4, 50).unwrap_err();
    assert!(matches!(refused, AppendError::WriteFailed(_)) && refused.is_definite());
    let killed = copy(dir.path());
    assert_eq!(keys_from(&open(killed.path()), 0), vec![0, 1]);
    assert_eq!(append(&log, 4..5, 50).map(|at| at.first), Ok(2));
    assert_eq!(keys_from(&log, 0), vec![0, 1, 4]);
    assert!(!stopped.load(Ordering::SeqCst));
}

#[test]
fn a_failed_sync_calls_fail_stop_and_acknowledges_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults, stopped) = open_faulty(options(dir.path()));
    append(&log, 0..1, 50).unwrap();
    faults.fail_sync.store(true, Ordering::SeqCst);
    assert_eq!(append(&log, 1..2, 50), Err(AppendError::Unknown));
    assert!(stopped.load(Ordering::SeqCst));
    assert_eq!(append(&log, 2..3, 50), Err(AppendError::Closed));
    assert_eq!(keys_from(&log, 0), vec![0], "what was not synced is not read");
}

#[test]
fn over_the_queue_s_bytes_it_is_busy_and_a_batch_that_never_fits_is_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    let frame = record(0, 100).frame_bytes();
    options.queue_bytes = 2 * frame;
    let (log, faults, _) = open_faulty(options);
    faults.hold_syncs.store(true, Ordering::SeqCst);
    let first = log.enqueue(vec![record(0, 100), record(1, 100)]).unwrap();
    assert_eq!(log.enqueue(vec![record(2, 100)]).err(), Some(AppendError::Busy));
    assert!(matches!(
        append(&log, 0..3, 100),
        Err(AppendError::TooLarge { .. })
    ));
    faults.hold_syncs.store(false, Ordering::SeqCst);
    assert_eq!(run(first).unwrap().map(|at| at.count), Ok(2));
    append(&log, 2..4, 100).unwrap();
}

#[test]
fn a_record_that_could_not_be_read_again_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut bad = record(0, 1);
    bad.meta = "{}".into();
    let mut uneven = record(0, 1);
    uneven.fingerprints = vec![1, 2];
    for batch in [vec![], vec![bad], vec![uneven], vec![record(0, SEGMENT as usize)]] {
        assert!(matches!(run(log.append(batch)), Err(AppendError::Invalid(_))));
    }
    assert_eq!(log.stats().queued_bytes, 0);
}

#[test]
fn batches_roll_over_segments_whole_and_larger_ones_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let at = append(&log, 0..100, 1000).unwrap();
    assert_eq!((at.first, at.count), (0, 100));
    assert!(segments(dir.path()).len() >= 4);
    append(&log, 100..120, 1000).unwrap();
    assert_eq!(keys_from(&log, 0), (0..120).collect::<Vec<_>>());
    drop(log);
    assert_eq!(keys_from(&open(dir.path()), 0), (0..120).collect::<Vec<_>>());
}

#[test]
fn a_batch_of_which_a_part_is_in_the_log_is_never_said_to_be_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults, _) = open_faulty(options(dir.path()));
    faults.fail_create.store(true, Ordering::SeqCst);
    assert_eq!(append(&log, 0..100, 1000), Err(AppendError::Unknown));
    assert!(!keys_from(&log, 0).is_empty(), "the first segment was filled");
}

#[test]
fn a_sync_of_the_disk_reads_the_same_as_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = options(dir.path());
    small.tail_cache_bytes = 0;
    let log = EmbeddedLog::open(small, Arc::new(ManualClock::at(NOW))).unwrap();
    append(&log, 0..100, 1000).unwrap();
    for from in [0, 1, 27, 28, 29, 50, 99, 3] {
        assert_eq!(keys_from(&log, from), (u128::from(from)..100).collect::<Vec<_>>());
    }
}
