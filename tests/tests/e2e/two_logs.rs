//! Two Sluices with logs of their own on one ClickHouse: neither takes the other's rows for its own.

use serde_json::json;
use sluice_tests::{Deployment, Shape, books_balance, eventually, now_ms};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn two_sluices_with_logs_of_their_own_write_one_table_and_all_rows_of_both_are_there() {
    let first = Deployment::start(Shape::AllInOne).await;
    let url = first.clickhouse().base().to_owned();
    let second = Deployment::start_with(Shape::AllInOne, &format!("clickhouse: {{url: \"{url}\"}}\n")).await;
    // The same ids, the same places in the log, the same tenant: only the logs' ids differ.
    for round in 0..5 {
        let now = now_ms();
        let event = |n: u64| json!({"event_id": format!("{round}-{n}"), "timestamp": now, "service": "two"});
        let body = json!((0..200).map(event).collect::<Vec<_>>()).to_string();
        for sluice in [&first, &second] {
            let answer = sluice.tenant(0).post("/v1/events/events", body.clone()).await;
            assert_eq!(answer.expect("an answer").status, 202);
        }
    }
    let sql =
        "SELECT uniqExact(_src_l), count(), uniqExact(_src_l, event_id) FROM telemetry.events FORMAT TSV";
    eventually("all rows of both", Duration::from_secs(30), async || {
        let found = first.clickhouse().query(sql).await;
        (found.as_deref() == Ok("2\t2000\t2000")).then_some(())
    })
    .await;
    books_balance(&first.clickhouse(), 2_000).await;
}
