//! What is replayed: the rows that were kept when they came, whatever the live table has of them.

use super::{ROWS, Stand, Sums, TURNS};
use serde_json::json;
use sluice_tests::{Part, eventually};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_deleted_or_damaged_by_hand_come_back_and_no_other_changes() {
    let _turn = TURNS.acquire().await;
    come_back(&Stand::start("").await).await;
}

/// Has rows be damaged and deleted by hand, and brings them back.
pub(super) async fn come_back(stand: &Stand) {
    for tenant in 0..3 {
        stand.send(tenant, 0..2_000).await;
        // Of the repeats each came in another record than the row that was kept.
        stand.send(tenant, 500..1_000).await;
    }
    stand.drained().await;
    let before = stand.sql(ROWS).await;
    stand.sql("ALTER TABLE telemetry.events UPDATE name = 'damaged' WHERE toUInt64(event_id) % 100 = 7 SETTINGS mutations_sync = 2").await;
    let plan = stand.everything().await;
    assert_eq!(plan["decisions"], "provenance", "all rows are there: {plan}");
    let damaged = stand.run(&plan).await;
    let sums = Sums {
        differing: 60,
        same_sums: false,
        ..Sums::equal(6_000)
    };
    assert_eq!(stand.diff(damaged["id"].as_str().expect("an id")).await, sums);
    stand.sql("ALTER TABLE telemetry.events DELETE WHERE toUInt64(event_id) BETWEEN 400 AND 599 AND tenant != 't2' SETTINGS mutations_sync = 2").await;
    let plan = stand.everything().await;
    assert_eq!(plan["decisions"], "anew", "{plan}");
    let told = stand.run(&plan).await;
    let id = told["id"].as_str().expect("an id");
    assert_eq!(
        (&told["written"], &told["left_out"]),
        (&json!(6_000), &json!(1_500))
    );
    let sums = Sums {
        live: 5_600,
        only_shadow: 400,
        differing: 56,
        same_sums: false,
        ..Sums::equal(6_000)
    };
    assert_eq!(stand.diff(id).await, sums);
    let told = stand.promote(id, false).await;
    assert_eq!(stand.sql(ROWS).await, before, "{told}");
    // What was there before is beside it, until the replay is discarded.
    let former = format!("SELECT count() FROM telemetry.events_before_{id}");
    assert_eq!(stand.sql(&former).await, "5600");
    stand.on(id, "discard", &json!({})).await;
    let left = format!("SELECT count() FROM system.tables WHERE name LIKE '%{id}'");
    assert_eq!(stand.sql(&left).await, "0");
    stand.send(0, 0..10).await;
    stand.send(0, 9_000..9_100).await;
    stand.drained().await;
    assert!(
        stand.sql(ROWS).await.starts_with("6100\t6100\t"),
        "dedup and the table go on"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_clickhouse_has_refused_stay_dead_letters() {
    let _turn = TURNS.acquire().await;
    let stand = Stand::start("clickhouse: {park_after: 1s}").await;
    stand.send(0, [1]).await;
    stand.drained().await;
    stand.sql("ALTER TABLE telemetry.events ADD CONSTRAINT small CHECK duration_ms < 1000 OR duration_ms IS NULL").await;
    stand.send(0, [10, 5_000, 20, 6_000, 30]).await;
    stand.drained().await;
    assert!(stand.sql(ROWS).await.starts_with("4\t4\t"));
    stand
        .sql("ALTER TABLE telemetry.events DELETE WHERE event_id = '20' SETTINGS mutations_sync = 2")
        .await;
    let told = stand.run(&stand.everything().await).await;
    assert_eq!(
        (&told["written"], &told["left_out"]),
        (&json!(4), &json!(2)),
        "{told}"
    );
    stand.promote(told["id"].as_str().expect("an id"), false).await;
    assert!(stand.sql(ROWS).await.starts_with("4\t4\t"));
    assert_eq!(stand.sql("SELECT count() FROM telemetry.dead_letters").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_can_be_paused_goes_on_where_it_was_and_keeps_to_its_cap() {
    let _turn = TURNS.acquire().await;
    let mut stand = Stand::start("").await;
    for n in 0..8 {
        stand.send(n as usize % 3, n * 60_000..(n + 1) * 60_000).await;
    }
    stand.drained().await;
    let plan = stand.everything().await;
    let id = stand.begin(&plan, &json!({"events_per_second": 120_000})).await;
    eventually("some of it", Duration::from_secs(30), async || {
        (stand.show(&id).await["written"].as_u64()? > 0).then_some(())
    })
    .await;
    stand.on(&id, "pause", &json!({})).await;
    let paused = stand.until(&id, "paused").await;
    let written = paused["written"].as_u64().expect("a number");
    assert!((1..480_000).contains(&written), "{written}");
    stand.deployment.kill(Part::Up);
    stand.deployment.bring_up(Part::Up).await.expect("ready");
    assert_eq!(stand.show(&id).await["written"], paused["written"]);
    let resumed = Instant::now();
    stand.on(&id, "resume", &json!({})).await;
    let told = stand.until(&id, "done").await;
    assert_eq!(told["read"], plan["partitions"]);
    assert_eq!(told["written"], 480_000);
    // The cap holds for all that was left, whatever its ranges were.
    let (left, took) = (480_000 - written, resumed.elapsed());
    let least = Duration::from_nanos(left * 1_000_000_000 / 120_000);
    assert!(took >= least, "{left} events in {took:?}, not {least:?}");
    assert_eq!(stand.diff(&id).await, Sums::equal(480_000));
}
