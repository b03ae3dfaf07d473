//! The window to the millisecond, the clock stepped back, the state deleted.

use crate::in_process::InProcess;
use sluice_common::clock::{Clock as _, ManualClock, OffsetClock};
use sluice_tests::payload::Bulk;
use sluice_tests::{eventually, now_ms};
use std::sync::Arc;
use std::time::Duration;

const WINDOW_MS: u64 = 3_600_000;

/// Appended at exactly these distances from the copy before, is the event a row?
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_new_exactly_when_the_last_one_is_a_window_old() {
    let clock = ManualClock::at(now_ms());
    let mut sluice = InProcess::start(Arc::new(clock.clone())).await;
    let edges = [
        ("minus-second", WINDOW_MS - 1_000, 1),
        ("minus-ms", WINDOW_MS - 1, 1),
        ("exactly", WINDOW_MS, 2),
        ("plus-ms", WINDOW_MS + 1, 2),
        ("plus-second", WINDOW_MS + 1_000, 2),
    ];
    for (id, distance, _) in edges {
        sluice.send(id).await;
        clock.advance(distance);
        sluice.send(id).await;
    }
    // The last range is not old enough to go out by a clock that stands still, but the stop sends it.
    sluice.stop().await;
    for (id, _, rows) in edges {
        let sql = format!("SELECT count() FROM telemetry.events WHERE event_id = '{id}'");
        assert_eq!(sluice.ask(&sql).await, rows.to_string(), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_repeated_within_each_window_stays_one_row_though_the_state_is_deleted_between() {
    let clock = ManualClock::at(now_ms());
    let mut sluice = InProcess::start(Arc::new(clock.clone())).await;
    sluice.send("again").await;
    for _ in 0..5 {
        clock.advance(40 * 60_000);
        sluice.stop().await;
        std::fs::remove_dir_all(sluice.data.join("dedup")).expect("removed");
        sluice.bring_up(false).await.expect("started again");
        sluice.send("again").await;
    }
    sluice.stop().await;
    assert_eq!(sluice.ask("SELECT count() FROM telemetry.events").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_stepped_back_an_hour_delays_no_row_and_doubles_none() {
    let clock = OffsetClock::default();
    let sluice = InProcess::start(Arc::new(clock.clone())).await;
    sluice.send("before").await;
    sluice.has_rows(1).await;
    clock.step(-3_600_000);
    for id in ["before", "after"] {
        sluice.send(id).await;
    }
    sluice.has_rows(2).await;
    clock.step(7_200_000);
    sluice.send("before").await;
    sluice.has_rows(3).await;
}

/// The log no longer reaches back one window and the state is gone: repeats would be stored twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_dedup_state_that_the_log_cannot_rebuild_refuses_to_go_on_unless_accepted() {
    let clock = OffsetClock::default();
    let mut sluice = InProcess::start_with(Arc::new(clock.clone()), "max_bytes: 256MiB, retain: 1m").await;
    // More than one segment, then time: the bucket that covers it is sealed, and the segment deleted.
    let bulk = Bulk::new();
    let mut rows = 0;
    for n in 0..80 {
        let events = (0..10).map(|m| bulk.event(&format!("bulk-{n}-{m}"), clock.now_ms(), 100_000));
        let answer = sluice
            .client()
            .post("/v1/events/events", events.collect::<String>())
            .await;
        assert_eq!(answer.expect("an answer").status, 202);
        rows += 10;
    }
    for id in ["later", "much later"] {
        sluice.has_rows(rows).await;
        clock.step(12 * 60_000);
        sluice.send(id).await;
        rows += 1;
    }
    let oldest = sluice.data.join("log/00000000000000000000.segment");
    eventually(
        "the oldest segment is deleted",
        Duration::from_secs(20),
        async || (!oldest.exists()).then_some(()),
    )
    .await;
    sluice.stop().await;
    std::fs::remove_dir_all(sluice.data.join("dedup")).expect("removed");
    let copy = sluice.copy_data();
    sluice.bring_up(false).await.expect("intake starts");
    let failure = format!("{:?}", sluice.ended().await);
    assert!(failure.contains("--accept-window-loss"), "{failure}");
    // The first one's locks live as long as this process.
    sluice.data = copy;
    sluice.bring_up(true).await.expect("started");
    sluice.send("accepted").await;
    sluice.has_rows(rows + 1).await;
}

/// A new log would decide by the old one's state, whose keys were hashed with another secret.
#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_log_with_its_dedup_state_kept_refuses() {
    let clock = OffsetClock::default();
    let mut sluice = InProcess::start(Arc::new(clock.clone())).await;
    for (id, rows) in [("one", 1), ("two", 2), ("three", 3)] {
        sluice.send(id).await;
        sluice.has_rows(rows).await;
        clock.step(12 * 60_000);
    }
    let manifest = sluice.data.join("dedup/manifest");
    eventually("a bucket is sealed", Duration::from_secs(20), async || {
        manifest.exists().then_some(())
    })
    .await;
    sluice.stop().await;
    std::fs::remove_dir_all(sluice.data.join("log")).expect("removed");
    std::fs::remove_file(sluice.data.join("progress")).expect("removed");
    let refused = sluice.bring_up(false).await.expect_err("refused");
    let words = format!("{refused:?}");
    assert!(
        words.contains("belongs to log") && words.contains("move the directory away"),
        "{words}"
    );
}
