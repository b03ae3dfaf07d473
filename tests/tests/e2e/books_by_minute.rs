//! Events are counted in the minute of their append, also where a range holds several minutes.

use crate::in_process::{InProcess, event};
use sluice_common::clock::{Clock as _, ManualClock};
use std::sync::Arc;

/// 2026-11-21T03:30:59.999Z.
const BORDER_MS: u64 = 1_795_231_859_999;
const BOOKS: &str = "SELECT toUnixTimestamp(minute) AS m, sum(received), sum(stored), sum(duplicate), sum(rejected) \
                     FROM telemetry.ledger GROUP BY m ORDER BY m FORMAT TSV";

#[tokio::test(flavor = "multi_thread")]
async fn the_books_are_kept_by_the_minute_of_append_and_are_the_same_after_a_restart() {
    let clock = ManualClock::at(BORDER_MS);
    let mut sluice = InProcess::start(Arc::new(clock.clone())).await;
    sluice.send("before").await;
    clock.advance(1);
    sluice.send("after").await;
    sluice.send("before").await;
    let bad = event("late", clock.now_ms()).replace("late\"", "late\",\"status\":-1");
    let answer = sluice
        .client()
        .post("/v1/events/events", bad)
        .await
        .expect("an answer");
    assert_eq!(answer.status, 422, "{}", answer.text());
    sluice.restart().await;
    clock.advance(60_000);
    // A minute of repeats alone has its row too.
    sluice.send("after").await;
    sluice.stop().await;
    let found = sluice.ask(BOOKS).await;
    let expected = "1795231800\t1\t1\t0\t0\n1795231860\t3\t1\t1\t1\n1795231920\t1\t0\t1\t0";
    assert_eq!(found.trim_end(), expected);
}
