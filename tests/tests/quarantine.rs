//! Rows that ClickHouse refuses, and tables that it does not write to: set aside, told, and settled once.

use serde_json::{Value, json};
use sluice_tests::{Deployment, Part, Shape, eventually, now_ms};
use std::collections::BTreeSet;
use std::time::Duration;

/// Two datasets, so that one of them can be seen to flow.
const EXTRA: &str = r#"
clickhouse: {park_after: 1s}
datasets:
  - name: sales
    fields:
      - {name: id, type: string, required: true}
      - {name: time, type: datetime64(3), required: true, epoch: ms}
      - {name: amount, type: int64}
    dedup: {key: [id]}
    time: {field: time}
    partition_by: toDate(time)
  - name: other
    fields:
      - {name: id, type: string, required: true}
      - {name: time, type: datetime64(3), required: true, epoch: ms}
    dedup: {key: [id]}
    time: {field: time}
    partition_by: toDate(time)
"#;

struct Stand {
    deployment: Deployment,
}

impl Stand {
    async fn start() -> Self {
        let deployment = Deployment::start_with(Shape::AllInOne, EXTRA).await;
        let stand = Self { deployment };
        stand.shows("EXISTS telemetry.other", "1").await;
        stand
    }

    async fn run(&self, sql: &str) -> String {
        self.deployment.clickhouse().query(sql).await.expect(sql)
    }

    /// Sends events with these ids and amounts; all are taken.
    async fn send(&self, dataset: &str, ids: impl IntoIterator<Item = (u64, i64)>) {
        let event = |(id, amount): (u64, i64)| match dataset {
            "sales" => json!({"id": id.to_string(), "time": now_ms(), "amount": amount}),
            _ => json!({"id": id.to_string(), "time": now_ms()}),
        };
        let events: Vec<Value> = ids.into_iter().map(event).collect();
        let path = format!("/v1/events/{dataset}");
        let client = self.deployment.tenant(0);
        let answer = client.post(&path, json!(events).to_string()).await;
        assert_eq!(answer.expect("an answer").status, 202);
    }

    /// Waits until `sql` answers `wanted`.
    async fn shows(&self, sql: &str, wanted: &str) {
        let mut last = Err("never asked".to_owned());
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while last.as_deref() != Ok(wanted) {
            assert!(
                std::time::Instant::now() < until,
                "{sql}: {last:?}, not {wanted:?}\n{}",
                self.deployment.last_words()
            );
            last = self.deployment.clickhouse().query(sql).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn metric(&self, name: &str, label: &str) -> f64 {
        self.deployment.metric(Part::Up, name, label).await
    }

    /// Alarms that a table's rows were set aside.
    async fn alarms(&self) -> f64 {
        self.metric("sluice_alarms_total", "parked_table").await
    }

    /// Waits until so many bytes of a dataset, or none, are set aside.
    async fn parked(&self, dataset: &str, some: bool) {
        eventually("rows set aside", Duration::from_secs(60), async || {
            let bytes = self.metric("sluice_parked_bytes", dataset).await;
            ((bytes > 0.0) == some).then_some(())
        })
        .await;
    }

    async fn kill_and_start(&mut self) {
        self.deployment.kill(Part::Up);
        self.deployment.bring_up(Part::Up).await.expect("ready");
    }
}

const SALES: &str = "SELECT count(), uniqExact(id) FROM telemetry.sales FORMAT TSV";
/// What was set aside and is back has left the books as they were.
const BALANCED: &str = "SELECT sum(abs(imbalance)), sum(aside) FROM (SELECT sum(parked) AS aside, sum(received - stored - duplicate - dead_lettered - rejected - parked) AS imbalance FROM telemetry.ledger GROUP BY tenant, dataset, minute) FORMAT TSV";
const LETTERS: &str =
    "SELECT count(), uniqExact(JSONExtractString(payload, 'id')) FROM telemetry.dead_letters FORMAT TSV";

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_rows_that_break_a_constraint_become_dead_letters() {
    let stand = Stand::start().await;
    stand
        .run("ALTER TABLE telemetry.sales ADD CONSTRAINT positive CHECK amount > 0")
        .await;
    let bad: BTreeSet<u64> = [0, 17, 18, 255, 256, 999].into();
    let amount = |id: u64| if bad.contains(&id) { -1 } else { 5 };
    stand.send("sales", (0..1_000).map(|id| (id, amount(id)))).await;
    stand.shows(LETTERS, "6\t6").await;
    stand.shows(SALES, "994\t994").await;
    let ids = "SELECT groupArray(x) FROM (SELECT toUInt64(JSONExtractString(payload, 'id')) AS x FROM telemetry.dead_letters ORDER BY x)";
    assert_eq!(stand.run(ids).await, "[0,17,18,255,256,999]");
    let told = "SELECT DISTINCT stage, code, dataset, tenant, position(message, 'positive') > 0 FROM telemetry.dead_letters FORMAT TSV";
    assert_eq!(stand.run(told).await, "insert\tclickhouse_469\tsales\tt0\t1");
    let books =
        "SELECT sum(stored), sum(dead_lettered) FROM telemetry.ledger WHERE entry = 'quarantined' FORMAT TSV";
    assert_eq!(stand.run(books).await, "-6\t6");
    let counted = stand.metric("sluice_dead_letters_total", "clickhouse_469").await;
    assert!((counted - 6.0).abs() < 0.5, "{counted}");
    stand.send("sales", [(5_000, 1)]).await;
    stand.shows(SALES, "995\t995").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_a_walk_leaves_each_row_one_outcome() {
    let mut stand = Stand::start().await;
    stand
        .run("ALTER TABLE telemetry.sales ADD CONSTRAINT positive CHECK amount > 0")
        .await;
    for round in 0..6u64 {
        let amount = |id: u64| if id.is_multiple_of(97) { -1 } else { 5 };
        stand
            .send("sales", (0..2_000).map(|id| (round * 2_000 + id, amount(id))))
            .await;
        // Anywhere in the walk: its calls take some milliseconds each.
        let began = "SELECT count() >= 1 FROM telemetry.sales WHERE toUInt64(id) >= ";
        stand.shows(&format!("{began}{}", round * 2_000), "1").await;
        tokio::time::sleep(Duration::from_millis(round * 15)).await;
        stand.kill_and_start().await;
    }
    stand.shows(LETTERS, "126\t126").await;
    stand.shows(SALES, "11874\t11874").await;
    let books =
        "SELECT sum(stored), sum(dead_lettered) FROM telemetry.ledger WHERE entry = 'quarantined' FORMAT TSV";
    stand.shows(books, "-126\t126").await;
    let both = "SELECT count() FROM telemetry.sales WHERE id IN (SELECT JSONExtractString(payload, 'id') FROM telemetry.dead_letters)";
    assert_eq!(stand.run(both).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_is_set_aside_while_others_flow_and_drains_once_it_is_back() {
    let mut stand = Stand::start().await;
    stand.send("sales", [(1, 1)]).await;
    stand.shows(SALES, "1\t1").await;
    let ddl = stand.run("SHOW CREATE TABLE telemetry.sales FORMAT TSVRaw").await;
    assert!(stand.alarms().await < 0.5, "no alarm without a cause");
    stand.run("DROP TABLE telemetry.sales SYNC").await;
    stand.send("sales", (10..20).map(|id| (id, 1))).await;
    stand.send("other", [(1, 1)]).await;
    stand.parked("sales", true).await;
    assert!(stand.alarms().await > 0.5, "somebody is told");
    stand.send("sales", (20..30).map(|id| (id, 1))).await;
    stand.send("other", [(2, 1)]).await;
    stand.shows("SELECT count() FROM telemetry.other", "2").await;
    stand.run(&ddl).await;
    stand.shows(SALES, "20\t20").await;
    stand.parked("sales", false).await;
    stand.shows(BALANCED, "0\t0").await;

    // Killed while rows wait; the start makes the table, and they go in once.
    stand.run("DROP TABLE telemetry.sales SYNC").await;
    stand.send("sales", (30..40).map(|id| (id, 1))).await;
    stand.parked("sales", true).await;
    stand.kill_and_start().await;
    stand.send("sales", (40..50).map(|id| (id, 1))).await;
    stand.send("other", [(3, 1)]).await;
    stand.shows(SALES, "20\t20").await;
    stand.shows("SELECT count() FROM telemetry.other", "3").await;
    stand.parked("sales", false).await;
    stand.shows(BALANCED, "0\t0").await;
    assert_eq!(stand.run(LETTERS).await, "0\t0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_type_sets_its_table_aside_until_it_is_changed_back() {
    let stand = Stand::start().await;
    stand.send("sales", [(1, 1)]).await;
    stand.shows(SALES, "1\t1").await;
    stand
        .run("ALTER TABLE telemetry.sales MODIFY COLUMN amount Int8")
        .await;
    // As long as a description of the table is trusted; ClickHouse itself would wrap the numbers.
    tokio::time::sleep(Duration::from_millis(600)).await;
    stand.send("sales", (10..30).map(|id| (id, 1_000))).await;
    stand.send("other", [(1, 1)]).await;
    stand.parked("sales", true).await;
    stand.shows("SELECT count() FROM telemetry.other", "1").await;
    assert_eq!(stand.run(SALES).await, "1\t1");
    stand
        .run("ALTER TABLE telemetry.sales MODIFY COLUMN amount Int64")
        .await;
    stand.shows(SALES, "21\t21").await;
    stand.parked("sales", false).await;
    stand.shows(BALANCED, "0\t0").await;
    assert_eq!(
        stand.run("SELECT sum(amount) FROM telemetry.sales").await,
        "20001"
    );
    assert_eq!(stand.run(LETTERS).await, "0\t0");
}

/// ClickHouse stores what a TTL has ended, and drops it with its next merge, within moments: that is nobody's refusal, and
/// nothing waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_older_than_a_changed_ttl_holds_up_and_doubles_nothing() {
    let stand = Stand::start().await;
    stand.send("sales", [(1, 1)]).await;
    stand.shows(SALES, "1\t1").await;
    stand
        .run("ALTER TABLE telemetry.sales MODIFY TTL toDateTime(time) + INTERVAL 1 DAY SETTINGS materialize_ttl_after_modify = 0")
        .await;
    let old = json!([{"id": "old", "time": now_ms() - 3 * 86_400_000, "amount": 1}]).to_string();
    let answer = stand.deployment.tenant(0).post("/v1/events/sales", old).await;
    assert_eq!(answer.expect("an answer").status, 202);
    stand.send("sales", (10..20).map(|id| (id, 1))).await;
    stand.send("other", [(1, 1)]).await;
    stand.shows(SALES, "11\t11").await;
    stand.shows("SELECT count() FROM telemetry.other", "1").await;
    stand.parked("sales", false).await;
    stand.shows(BALANCED, "0\t0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_tables_of_our_own_hold_up_no_tenant_and_have_all_of_it_after_their_repair() {
    let stand = Stand::start().await;
    stand
        .run("ALTER TABLE telemetry.sales ADD CONSTRAINT positive CHECK amount > 0")
        .await;
    for own in ["ledger", "dead_letters"] {
        stand
            .run(&format!("RENAME TABLE telemetry.{own} TO telemetry.{own}_away"))
            .await;
    }
    // One row is refused: its letter and the books' correction have nowhere to go.
    stand.send("sales", [(1, 1), (2, -1), (3, 1)]).await;
    stand.shows(SALES, "2\t2").await;
    for id in 10..14 {
        stand.send("other", [(id, 1)]).await;
        let count = format!("{}", id - 9);
        stand.shows("SELECT count() FROM telemetry.other", &count).await;
    }
    let units = async |stand: &Stand| stand.metric("sluice_parked_units", "ledger").await;
    assert!(
        units(&stand).await > 0.5,
        "the books of these ranges are set aside"
    );
    let imbalance = stand.metric("sluice_ledger_imbalance_events", "").await;
    assert!(imbalance.abs() < 0.5, "{imbalance}");

    for own in ["ledger", "dead_letters"] {
        stand
            .run(&format!("RENAME TABLE telemetry.{own}_away TO telemetry.{own}"))
            .await;
    }
    stand.shows(LETTERS, "1\t1").await;
    stand.shows(BALANCED, "0\t0").await;
    let sums = "SELECT sum(received), sum(stored), sum(dead_lettered) FROM telemetry.ledger FORMAT TSV";
    stand.shows(sums, "7\t6\t1").await;
    eventually("nothing set aside", Duration::from_secs(60), async || {
        let letters = stand.metric("sluice_parked_units", "dead_letters").await;
        (units(&stand).await + letters < 0.5).then_some(())
    })
    .await;
}
