//! Putting the shadow in the live table's place.

use super::{ROWS, Stand, Sums, TURNS};
use serde_json::json;
use sluice_tests::finally;
use sluice_tests::oracle::load::Style;
use sluice_tests::oracle::{self, Oracle};

#[tokio::test(flavor = "multi_thread")]
async fn live_rows_that_the_shadow_has_not_stop_a_promotion_and_are_kept_row_wise() {
    let _turn = TURNS.acquire().await;
    let stand = Stand::start("").await;
    stand.send(0, 0..500).await;
    stand.send(1, 0..500).await;
    stand.drained().await;
    let before = stand.sql(ROWS).await;
    // Rows by other hands, in a partition that is replaced.
    stand.sql("INSERT INTO telemetry.events (tenant, event_id, timestamp, service, _src_l, _src_o) SELECT 'other', toString(number), now64(3), 'x', 7, number FROM numbers(5)").await;
    stand.sql("ALTER TABLE telemetry.events DELETE WHERE event_id = '77' AND tenant = 't0' SETTINGS mutations_sync = 2").await;
    let told = stand
        .run(
            &stand
                .plan(&json!({"from": {"offset": 0}, "to": {"offset": 1}}))
                .await,
        )
        .await;
    let id = told["id"].as_str().expect("an id");
    stand.on(id, "promote", &json!({})).await;
    let told = stand.comes_to(id, "done", super::DEADLINE).await;
    assert!(told["reason"].to_string().contains("--row-wise"), "{told}");
    assert!(stand.sql(ROWS).await.starts_with("1004\t"), "nothing was touched");
    stand.send(2, 0..50).await;
    stand.promote(id, true).await;
    stand.drained().await;
    let rows = "SELECT countIf(tenant = 'other'), countIf(tenant IN ('t0', 't1')), countIf(tenant = 't2') FROM telemetry.events FORMAT TSV";
    assert_eq!(stand.sql(rows).await, "5\t1000\t50");
    let ours = ROWS.replace("FORMAT", "WHERE tenant IN ('t0', 't1') FORMAT");
    assert_eq!(stand.sql(&ours).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_under_load_loses_and_doubles_nothing_in_any_table() {
    let _turn = TURNS.acquire().await;
    under_load(&Stand::start("").await, 3).await;
}

/// Promotes so many times while an oracle sends.
pub(super) async fn under_load(stand: &Stand, promotions: usize) {
    let mut oracle = Oracle::new(&stand.deployment, oracle::seed("a promotion under load"));
    // A replay catches up with this on a slow machine too: the live path goes first.
    oracle.style = Style {
        max_events: 100,
        pause_ms: 20..80,
        ..Style::default()
    };
    let load = oracle.load(&stand.deployment);
    for _ in 0..promotions {
        oracle.probe(&stand.deployment).await;
        finally("rows of a range that is settled", super::DEADLINE, async || {
            let rows = stand.sql("SELECT count() FROM telemetry.events").await;
            let all = json!({"from": "earliest", "to": "latest"});
            let (status, told) = stand.ask("/admin/v1/replay/plan", &all).await;
            if status == 200 && rows.parse::<u64>().is_ok_and(|rows| rows > 1_000) {
                Ok(())
            } else {
                Err(format!("{rows} rows, {told}"))
            }
        })
        .await;
        let hurt = "ALTER TABLE telemetry.events DELETE WHERE _src_o % 11 = 3 AND ingested_at < now() - 1 SETTINGS mutations_sync = 2";
        stand.sql(hurt).await;
        let told = stand.run(&stand.everything().await).await;
        let id = told["id"].as_str().expect("an id").to_owned();
        stand.promote(&id, false).await;
        stand.on(&id, "discard", &json!({})).await;
    }
    load.stop().await;
    oracle.drained_verdict(&stand.deployment).await.assert_clean();
    let told = stand.run(&stand.everything().await).await;
    let id = told["id"].as_str().expect("an id");
    let rows: u64 = stand
        .sql("SELECT count() FROM telemetry.events")
        .await
        .parse()
        .expect("a number");
    assert_eq!(stand.diff(id).await, Sums::equal(rows));
}
