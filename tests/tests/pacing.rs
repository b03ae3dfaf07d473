//! A table that comes near too many parts: inserts get rarer and larger before ClickHouse refuses any, and
//! as they were once merges have caught up.

use sluice_tests::{Deployment, Part, Shape, eventually, now_ms};
use std::time::Duration;

const PARTS: &str =
    "SELECT count() FROM system.parts WHERE database = 'telemetry' AND table = 'events' AND active";

async fn ask(deployment: &Deployment, sql: &str) -> u64 {
    let answer = deployment.clickhouse().query(sql).await.expect(sql);
    answer.trim().parse().unwrap_or(0)
}

async fn send(deployment: &Deployment, sent: &mut u64) {
    let event = format!(
        r#"{{"event_id":"p-{sent}","timestamp":{},"service":"x"}}"#,
        now_ms()
    );
    let answer = deployment
        .tenant(0)
        .post("/v1/events/events", event)
        .await
        .expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.text());
    *sent += 1;
}

async fn factor(deployment: &Deployment) -> f64 {
    deployment
        .metric(Part::Normalizer, "sluice_pace_factor", "table=\"events\"")
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn inserts_get_rarer_before_a_table_has_too_many_parts_and_recover_after_merges() {
    let deployment = Deployment::start(Shape::AllInOne).await;
    let mut sent = 0;
    send(&deployment, &mut sent).await;
    let mend =
        "ALTER TABLE telemetry.events MODIFY SETTING parts_to_delay_insert = 40, parts_to_throw_insert = 60";
    eventually("the table is there", Duration::from_secs(20), async || {
        deployment.clickhouse().query(mend).await.ok()
    })
    .await;
    deployment
        .clickhouse()
        .query("SYSTEM STOP MERGES telemetry.events")
        .await
        .expect("stopped");

    // As configured at first: about two parts a second.
    let begun = std::time::Instant::now();
    while factor(&deployment).await < 4.0 {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{}",
            deployment.last_words()
        );
        send(&deployment, &mut sent).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (parts, quick) = (ask(&deployment, PARTS).await, begun.elapsed());
    assert!(parts < 40, "before the threshold: {parts}");
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(12) {
        send(&deployment, &mut sent).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let slow = ask(&deployment, PARTS).await - parts;
    println!("{parts} parts in {quick:?}, then {slow} in 12 s");
    assert!(slow <= 8, "{slow}");
    let refused = deployment
        .metric(Part::SinkWriter, "sluice_clickhouse_errors_total", "")
        .await;
    assert!(refused < 1.0, "no insert was refused: {refused}");
    assert!(
        deployment
            .metric(Part::Normalizer, "sluice_grant_in_force", "")
            .await
            < 1.0
    );

    deployment
        .clickhouse()
        .query("SYSTEM START MERGES telemetry.events")
        .await
        .expect("started");
    deployment
        .clickhouse()
        .query("OPTIMIZE TABLE telemetry.events FINAL")
        .await
        .expect("merged");
    eventually("the pace is as before", Duration::from_secs(30), async || {
        (factor(&deployment).await < 1.01).then_some(())
    })
    .await;
    eventually("all is there once", Duration::from_secs(30), async || {
        let rows = ask(&deployment, "SELECT count() FROM telemetry.events").await;
        (rows == sent).then_some(())
    })
    .await;
}
