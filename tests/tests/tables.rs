//! Tables that an operator made, changed or broke: adapted to by name, or refused loudly with nothing lost.

use ingestctl::clickhouse::ClickHouse;
use serde_json::{Value, json};
use sluice_tests::service::{clickhouse, executable};
use sluice_tests::{Client, Deployment, Part, Shape, eventually, now_ms};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const DATASET: &str = r#"
datasets:
  - name: sales
    fields:
      - {name: id, type: string, required: true}
      - {name: time, type: datetime64(3), required: true, epoch: ms}
      - {name: amount, type: int64}
      - {name: note, type: string}
    dedup: {key: [id]}
    time: {field: time}
    partition_by: toDate(time)
"#;
/// The columns that the dataset needs.
const SALES: &str = "id String, tenant String, time DateTime64(3, 'UTC'), amount Int64, note String";
const SALES_IDS: &str = "SELECT id FROM telemetry.sales ORDER BY id FORMAT TSV";
const PROVENANCE: &str = "ingested_at DateTime64(3, 'UTC'), _src_l UInt64, _src_p UInt16, _src_o UInt64";
const TAIL: &str = "SETTINGS non_replicated_deduplication_window = 10000";

/// A Sluice before a ClickHouse whose tables were there first.
struct Stand {
    deployment: Deployment,
    server: ClickHouse,
    _dir: TempDir,
}

impl Stand {
    /// Runs `ddl`, then starts Sluice.
    async fn start(ddl: &[&str]) -> Self {
        let dir = TempDir::new().expect("a directory");
        let server = clickhouse(dir.path(), 0).await;
        let sql = Client::new(server.url());
        sql.query("CREATE DATABASE telemetry").await.expect("created");
        for statement in ddl {
            sql.query(statement).await.expect(statement);
        }
        let extra = format!("clickhouse: {{url: \"{}\"}}\n{DATASET}", server.url());
        let deployment = Deployment::start_with(Shape::AllInOne, &extra).await;
        Self {
            deployment,
            server,
            _dir: dir,
        }
    }

    /// The same with the table's columns (provenance is added) and what follows them.
    async fn with_table(columns: &str, rest: &str) -> Self {
        let ddl = format!(
            "CREATE TABLE telemetry.sales ({columns}, {PROVENANCE}) ENGINE = MergeTree {rest} {TAIL}"
        );
        Self::start(&[&ddl]).await
    }

    async fn run(&self, sql: &str) -> String {
        Client::new(self.server.url()).query(sql).await.expect(sql)
    }

    /// Sends sales with these ids; all are taken.
    async fn send(&self, ids: &[&str]) {
        let sale = |id: &&str| json!({"id": id, "time": now_ms(), "amount": 300, "note": "n"});
        let sales: Vec<Value> = ids.iter().map(sale).collect();
        let client = self.deployment.tenant(0);
        let answer = client.post("/v1/events/sales", json!(sales).to_string()).await;
        assert_eq!(answer.expect("an answer").status, 202);
    }

    /// Waits until `sql` answers `wanted`.
    async fn shows(&self, sql: &str, wanted: &str) {
        let mut last = Err("never asked".to_owned());
        let until = std::time::Instant::now() + Duration::from_secs(40);
        while last.as_deref() != Ok(wanted) {
            assert!(
                std::time::Instant::now() < until,
                "{sql}: {last:?}, not {wanted:?}\n{}",
                self.deployment.last_words()
            );
            last = Client::new(self.server.url()).query(sql).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the alarm is counted and the declared range is told to be in trouble.
    async fn alarms(&self) {
        eventually("the alarm", Duration::from_secs(20), async || {
            let alarms = self
                .deployment
                .metric(Part::Up, "sluice_alarms_total", "unsettled_range");
            (alarms.await > 0.0).then_some(())
        })
        .await;
        let unsettled = self.deployment.metric(Part::Up, "sluice_unsettled", "").await;
        assert!(unsettled > 0.0);
        assert!(
            self.log().contains("stays declared and is retried"),
            "{}",
            self.log()
        );
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.deployment.log_file(Part::Up)).expect("read")
    }

    /// `ingestctl check`: its exit code and output.
    fn check(&self) -> (i32, String) {
        let output = Command::new(executable("ingestctl"))
            .args(["check", "--config"])
            .arg(self.deployment.config())
            .arg("--data-dir")
            .arg(self.deployment.data())
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code().expect("an exit code"), said)
    }

    /// The words that `check` has for the table, which must be degraded (exit 2).
    fn check_of_table(&self) -> String {
        let (code, said) = self.check();
        assert_eq!(code, 2, "{said}");
        let line = said.lines().find(|line| line.contains("table sales"));
        line.unwrap_or_else(|| panic!("{said}")).to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_another_order_wider_types_and_more_columns_is_written_by_name() {
    let columns = "note String, more String DEFAULT concat('x', id), amount Nullable(Int64), \
                   time DateTime64(6, 'UTC'), id String, tenant String";
    let stand = Stand::with_table(columns, "PARTITION BY toYYYYMM(time) ORDER BY id").await;
    stand.send(&["a", "b"]).await;
    let sql = "SELECT id, more, amount, note, tenant FROM telemetry.sales ORDER BY id FORMAT TSV";
    stand.shows(sql, "a\txa\t300\tn\tt0\nb\txb\t300\tn\tt0").await;
    let parts = "SELECT count() FROM telemetry.sales WHERE _partition_id = toString(toYYYYMM(time))";
    stand.shows(parts, "2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_partitions_and_without_a_column_takes_the_rest_and_is_told_to_be_degraded() {
    let stand = Stand::with_table(
        "id String, tenant String, time DateTime64(3, 'UTC')",
        "ORDER BY id",
    )
    .await;
    stand.send(&["a"]).await;
    stand
        .shows(
            "SELECT id, tenant, _partition_id FROM telemetry.sales FORMAT TSV",
            "a\tt0\tall",
        )
        .await;
    eventually("the warning", Duration::from_secs(10), async || {
        let log = stand.log();
        let warned = |line: &str| line.contains("WARN") && line.contains("amount");
        log.lines().any(warned).then_some(())
    })
    .await;
    let said = stand.check_of_table();
    assert!(said.contains("amount") && said.contains("note"), "{said}");
}

/// ClickHouse itself would store 300 as 44 in a UInt8.
#[tokio::test(flavor = "multi_thread")]
async fn a_narrower_type_holds_everything_back_loudly_until_it_is_mended() {
    let columns = "id String, tenant String, time DateTime64(3, 'UTC'), amount UInt8, note String";
    let stand = Stand::with_table(columns, "PARTITION BY toDate(time) ORDER BY id").await;
    let (code, said) = stand.check();
    assert_ne!(code, 0, "{said}");
    stand.send(&["a"]).await;
    stand.alarms().await;
    assert!(stand.log().contains("amount"), "{}", stand.log());
    stand.send(&["b", "c"]).await;
    assert_eq!(stand.run("SELECT count() FROM telemetry.sales").await, "0");
    stand
        .run("ALTER TABLE telemetry.sales MODIFY COLUMN amount Int64")
        .await;
    let sql = "SELECT id, amount FROM telemetry.sales ORDER BY id FORMAT TSV";
    stand.shows(sql, "a\t300\nb\t300\nc\t300").await;
}

/// A Sluice whose table was dropped after one row, with two events waiting for it.
async fn dropped() -> Stand {
    let stand = Stand::with_table(SALES, "PARTITION BY toDate(time) ORDER BY id").await;
    stand.send(&["before"]).await;
    stand.shows("SELECT id FROM telemetry.sales", "before").await;
    stand.run("DROP TABLE telemetry.sales SYNC").await;
    stand.send(&["while", "gone"]).await;
    stand.alarms().await;
    stand
}

async fn make_again(stand: &Stand, partition_by: &str) {
    let ddl = format!(
        "CREATE TABLE telemetry.sales ({SALES}, {PROVENANCE}) ENGINE = MergeTree {partition_by} ORDER BY id {TAIL}"
    );
    stand.run(&ddl).await;
    stand.send(&["after"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_dropped_and_made_again_loses_nothing_that_was_not_in_it() {
    let stand = dropped().await;
    make_again(&stand, "PARTITION BY toDate(time)").await;
    stand.shows(SALES_IDS, "after\ngone\nwhile").await;
}

/// A declared range is named by the partitions of its first call; a start asks anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_again_with_other_partitions_is_filled_after_a_restart() {
    let mut stand = dropped().await;
    make_again(&stand, "").await;
    stand.deployment.kill(Part::Up);
    stand.deployment.bring_up(Part::Up).await.expect("ready");
    stand.shows(SALES_IDS, "after\ngone\nwhile").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_provenance_is_filled_and_told_to_be_at_least_once() {
    let ddl = "CREATE TABLE telemetry.sales (id String, tenant String, time DateTime64(3, 'UTC'), amount Int64, \
               note String) ENGINE = MergeTree ORDER BY id";
    let stand = Stand::start(&[ddl]).await;
    stand.send(&["a", "b"]).await;
    stand
        .shows(
            "SELECT count(), uniqExact(id) FROM telemetry.sales FORMAT TSV",
            "2\t2",
        )
        .await;
    let said = stand.check_of_table();
    assert!(
        said.contains("at least once") && said.contains("_src_l"),
        "{said}"
    );
    assert!(stand.log().contains("at least once"), "{}", stand.log());
}

/// ClickHouse answers an error with all rows stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_materialized_view_that_fails_leaves_the_rows_stored_once() {
    let columns = "id String, tenant String, time DateTime64(3, 'UTC'), amount Int64, note String";
    let stand = Stand::with_table(columns, "PARTITION BY toDate(time) ORDER BY id").await;
    stand
        .run("CREATE TABLE telemetry.sums (x UInt8) ENGINE = MergeTree ORDER BY x")
        .await;
    stand
        .run("CREATE MATERIALIZED VIEW telemetry.view TO telemetry.sums AS SELECT toUInt8(concat('x', id)) AS x FROM telemetry.sales")
        .await;
    stand.send(&["a", "b"]).await;
    stand
        .shows(
            "SELECT count(), uniqExact(id) FROM telemetry.sales FORMAT TSV",
            "2\t2",
        )
        .await;
    stand.send(&["c"]).await;
    stand
        .shows(
            "SELECT count(), uniqExact(id) FROM telemetry.sales FORMAT TSV",
            "3\t3",
        )
        .await;
    let books = "SELECT sum(stored), sum(abs(received - stored - duplicate - dead_lettered - rejected - parked)) \
                 FROM telemetry.ledger FORMAT TSV";
    stand.shows(books, "3\t0").await;
}
