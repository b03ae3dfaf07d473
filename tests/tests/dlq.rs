//! Dead letters settled by hand: each row is stored once, booked once, and its letter goes, whatever is
//! killed meanwhile. Fault 31 of the list.

use serde_json::{Value, json};
use sluice_tests::service::executable;
use sluice_tests::{Deployment, Part, Shape, now_ms};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const DATASETS: &str = "
datasets:
  - name: sales
    fields:
      - {name: id, type: string, required: true}
      - {name: time, type: datetime64(3), required: true, epoch: ms}
      - {name: amount, type: int64}
      - {name: ratio, type: float64}
      - {name: price, type: 'decimal(38, 10)'}
      - {name: day, type: date}
      - {name: uid, type: uuid}
      - {name: tags, type: array(string)}
      - {name: attributes, type: 'map(string, string)'}
    dedup: {key: [id]}
    time: {field: time}
    partition_by: toDate(time)
  - name: kept
    fields: [{name: n, type: uint32, required: true, max: 10}]
    keep_rejected: true
  - name: plain
    fields: [{name: n, type: uint32, required: true}]
";
const SALES: &str = "SELECT count(), uniqExact(id) FROM telemetry.sales FORMAT TSV";
const LETTERS: &str = "SELECT count(), uniqExact(payload) FROM telemetry.dead_letters FORMAT TSV";
const BOOKS: &str = "SELECT sum(received), sum(stored), sum(dead_lettered), \
    sum(received - stored - duplicate - dead_lettered - rejected - parked) FROM telemetry.ledger WHERE dataset = 'sales' FORMAT TSV";

struct Stand {
    deployment: Deployment,
}

impl Stand {
    async fn start(shape: Shape) -> Self {
        let stand = Self {
            deployment: Deployment::start_with(shape, DATASETS).await,
        };
        stand.shows("EXISTS telemetry.sales", "1").await;
        stand
    }

    fn normalizer(&self) -> Part {
        match self.deployment.shape {
            Shape::AllInOne => Part::Up,
            Shape::ThreeProcesses => Part::Normalizer,
        }
    }

    async fn run(&self, sql: &str) -> String {
        self.deployment.clickhouse().query(sql).await.expect(sql)
    }

    /// Waits until `sql` answers `wanted`.
    async fn shows(&self, sql: &str, wanted: &str) {
        let mut last = Err("never asked".to_owned());
        let until = Instant::now() + Duration::from_secs(60);
        while last.as_deref() != Ok(wanted) {
            assert!(
                Instant::now() < until,
                "{sql}: {last:?}, not {wanted:?}\n{}",
                self.deployment.last_words()
            );
            last = self.deployment.clickhouse().query(sql).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn post(&self, dataset: &str, body: &Value) -> u16 {
        let path = format!("/v1/events/{dataset}");
        let answer = self.deployment.tenant(0).post(&path, body.to_string()).await;
        answer.expect("an answer").status.as_u16()
    }

    /// Sales that a constraint refuses, as dead letters.
    async fn refused_sales(&self, ids: std::ops::Range<u64>) {
        self.run("ALTER TABLE telemetry.sales ADD CONSTRAINT IF NOT EXISTS positive CHECK amount > 0")
            .await;
        let count = ids.end - ids.start;
        let events: Vec<Value> = ids.map(sale).collect();
        assert_eq!(self.post("sales", &json!(events)).await, 202);
        self.shows(LETTERS, &format!("{count}\t{count}")).await;
        self.settled().await;
    }

    /// Waits until nothing is in flight: until then letters are left alone.
    async fn settled(&self) {
        let part = self.normalizer();
        sluice_tests::eventually("an empty backlog", Duration::from_secs(60), async || {
            let backlog = self.deployment.metric(part, "sluice_log_backlog_bytes", "").await;
            (backlog < 0.5).then_some(())
        })
        .await;
    }

    async fn drop_constraint(&self) {
        self.run("ALTER TABLE telemetry.sales DROP CONSTRAINT positive")
            .await;
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(executable("ingestctl"));
        let admin = self.deployment.admin(self.normalizer()).base().to_owned();
        command
            .arg("dlq")
            .args(args)
            .args(["--output", "json", "--admin", &admin])
            .stdin(Stdio::null());
        command
    }

    /// Exit code and document.
    fn dlq(&self, args: &[&str]) -> (i32, Value) {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command(args).output().expect("ingestctl runs");
        let document = serde_json::from_slice(&stdout)
            .unwrap_or_else(|_| json!({"stderr": String::from_utf8_lossy(&stderr)}));
        (status.code().expect("it ended"), document)
    }

    fn balanced(&self) {
        let admin = self.deployment.admin(self.normalizer()).base().to_owned();
        let mut command = Command::new(executable("ingestctl"));
        command.args(["ledger", "--since", "1h", "--admin", &admin]);
        let output = command.output().expect("ingestctl runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
    }

    async fn kill_and_start(&mut self, part: Part) {
        self.deployment.kill(part);
        self.deployment.bring_up(part).await.expect("ready");
    }
}

/// A row of many types, which the constraint refuses.
fn sale(id: u64) -> Value {
    json!({
        "id": id.to_string(), "time": now_ms(), "amount": -5, "ratio": 0.1, "price": "12.5000000001",
        "day": "2026-11-21", "uid": "f47ac10b-58cc-4372-a567-0e02b2c3d479", "tags": ["a", "\"b\""],
        "attributes": {"k": "v"},
    })
}

/// How many letters ended so.
fn count(document: &Value, outcome: &str) -> usize {
    let letters = document.as_array().expect("letters");
    letters.iter().filter(|one| one["outcome"] == outcome).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_listed_by_filter_shown_whole_and_stored_once_their_table_is_mended() {
    let stand = Stand::start(Shape::AllInOne).await;
    stand.refused_sales(0..5).await;
    let (code, all) = stand.dlq(&["list"]);
    assert_eq!((code, all.as_array().expect("letters").len()), (0, 5), "{all}");
    for (filter, found) in [
        (["--tenant", "t0"], 5),
        (["--tenant", "t1"], 0),
        (["--dataset", "sales"], 5),
        (["--dataset", "kept"], 0),
        (["--reason", "clickhouse_469"], 5),
        (["--reason", "clickhouse_6"], 0),
        (["--stage", "insert"], 5),
        (["--since", "1h"], 5),
        (["--until", "1h"], 0),
        (["--since", "2001-01-01T00:00:00Z"], 5),
        (["--limit", "2"], 2),
    ] {
        let (_, some) = stand.dlq(&["list", filter[0], filter[1]]);
        assert_eq!(some.as_array().map(Vec::len), Some(found), "{filter:?}: {some}");
    }
    let first = all[0]["id"].as_str().expect("an id");
    let (_, letter) = stand.dlq(&["show", first]);
    let payload: Value =
        serde_json::from_str(letter["content"]["payload"].as_str().expect("text")).expect("json");
    assert_eq!(
        (&payload["price"], &payload["amount"]),
        (&json!("12.5000000001"), &json!(-5))
    );

    // Refused again: they stay, with the reason.
    let (code, told) = stand.dlq(&["retry"]);
    assert_eq!((code, count(&told, "refused")), (2, 5), "{told}");
    assert_eq!(told[0]["code"], "clickhouse_469");
    assert_eq!(stand.run(LETTERS).await, "5\t5");
    stand.drop_constraint().await;
    let (code, told) = stand.dlq(&["retry"]);
    assert_eq!((code, count(&told, "stored")), (0, 5), "{told}");
    assert_eq!(stand.run(SALES).await, "5\t5");
    assert_eq!(stand.run(LETTERS).await, "0\t0");
    assert_eq!(stand.run(BOOKS).await, "5\t5\t0\t0");
    stand.balanced();
    let row = "SELECT DISTINCT tenant, amount, ratio, price, day, uid, tags, attributes, \
               abs(dateDiff('second', time, ingested_at)) < 60, _src_l != 0 FROM telemetry.sales FORMAT TSV";
    assert_eq!(
        stand.run(row).await,
        "t0\t-5\t0.1\t12.5000000001\t2026-11-21\tf47ac10b-58cc-4372-a567-0e02b2c3d479\t['a','\"b\"']\t{'k':'v'}\t1\t1"
    );
    let (code, told) = stand.dlq(&["retry", first]);
    assert_eq!((code, count(&told, "gone")), (0, 1), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_was_cut_short_after_any_of_its_steps_is_finished_by_the_next() {
    let stand = Stand::start(Shape::AllInOne).await;
    stand.refused_sales(0..2).await;
    stand.drop_constraint().await;
    stand
        .run("CREATE TABLE telemetry.saved ENGINE = Memory AS SELECT * FROM telemetry.dead_letters")
        .await;
    let again = "INSERT INTO telemetry.dead_letters SELECT * FROM telemetry.saved";
    assert_eq!(count(&stand.dlq(&["retry"]).1, "stored"), 2);
    // All but the deletion was done.
    stand.run(again).await;
    let (code, told) = stand.dlq(&["discard", "--yes"]);
    assert_eq!((code, count(&told, "refused")), (2, 2), "{told}");
    assert_eq!(told[0]["code"], "row_stored");
    assert_eq!(count(&stand.dlq(&["retry"]).1, "was_there"), 2);
    assert_eq!(stand.run(BOOKS).await, "2\t2\t0\t0");
    // The rows were there, and not their books.
    stand.run(again).await;
    stand
        .run("DELETE FROM telemetry.ledger WHERE entry = 'retried'")
        .await;
    assert_eq!(stand.run(BOOKS).await, "2\t0\t2\t0");
    assert_eq!(count(&stand.dlq(&["retry"]).1, "was_there"), 2);
    assert_eq!(stand.run(BOOKS).await, "2\t2\t0\t0");
    // The token was spent and the row lost.
    stand.run(again).await;
    stand.run("DELETE FROM telemetry.sales WHERE 1").await;
    assert_eq!(count(&stand.dlq(&["retry"]).1, "stored"), 2);
    assert_eq!(stand.run(SALES).await, "2\t2");
    assert_eq!(stand.run(BOOKS).await, "2\t2\t0\t0");
    assert_eq!(stand.run(LETTERS).await, "0\t0");
    stand.balanced();
}

/// Retries while parts are killed, until no letter is left.
async fn retried_under_kills(shape: Shape, kills: &[Part]) {
    let mut stand = Stand::start(shape).await;
    stand.refused_sales(0..48).await;
    stand.drop_constraint().await;
    for (round, part) in kills.iter().enumerate() {
        let before: usize = stand
            .run("SELECT count() FROM telemetry.sales")
            .await
            .parse()
            .expect("a number");
        let mut command = stand.command(&["retry"]);
        let mut retry = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ingestctl runs");
        // Somewhere within the order: rows are stored one by one.
        let wanted = before + 3 + 4 * round;
        let begun = format!("SELECT count() >= {wanted} OR count() = 48 FROM telemetry.sales");
        stand.shows(&begun, "1").await;
        stand.kill_and_start(*part).await;
        retry.wait().expect("it ends");
    }
    stand.shows("SELECT 1", "1").await;
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let (code, told) = stand.dlq(&["retry"]);
        if code == 0 {
            break;
        }
        assert!(Instant::now() < until, "{told}");
    }
    assert_eq!(stand.run(SALES).await, "48\t48");
    assert_eq!(stand.run(LETTERS).await, "0\t0");
    assert_eq!(stand.run(BOOKS).await, "48\t48\t0\t0");
    let entries =
        "SELECT count(), uniqExact(_src_o) FROM telemetry.ledger WHERE entry = 'retried' FORMAT TSV";
    assert_eq!(stand.run(entries).await, "48\t48");
    stand.balanced();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_a_retry_leaves_each_row_stored_and_booked_once() {
    retried_under_kills(Shape::AllInOne, &[Part::Up, Part::Up, Part::Up]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_processes_any_may_be_killed_in_the_middle_of_a_retry() {
    let parts = [Part::SinkWriter, Part::Normalizer, Part::ClickHouse];
    retried_under_kills(Shape::ThreeProcesses, &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discard_needs_a_yes_deletes_what_was_chosen_and_is_logged() {
    let stand = Stand::start(Shape::AllInOne).await;
    stand.refused_sales(0..3).await;
    let (code, told) = stand.dlq(&["discard"]);
    assert_eq!(code, 1, "{told}");
    assert!(told["stderr"].as_str().expect("text").contains("--yes"), "{told}");
    let (_, all) = stand.dlq(&["list"]);
    let first = all[0]["id"].as_str().expect("an id");
    let (code, told) = stand.dlq(&["discard", "--yes", first]);
    assert_eq!((code, count(&told, "discarded")), (0, 1), "{told}");
    assert_eq!(stand.run(LETTERS).await, "2\t2");
    let (code, told) = stand.dlq(&["discard", "--yes", "--reason", "clickhouse_469", "--tenant", "t0"]);
    assert_eq!((code, count(&told, "discarded")), (0, 2), "{told}");
    assert_eq!(stand.run(LETTERS).await, "0\t0");
    assert_eq!(stand.run(BOOKS).await, "3\t0\t3\t0");
    stand.balanced();
    let log = std::fs::read_to_string(stand.deployment.log_file(Part::Up)).expect("the log");
    assert!(
        log.contains("dead letters were discarded by hand") && log.contains("reason=clickhouse_469"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_of_a_range_that_is_not_settled_is_left_alone() {
    let stand = Stand::start(Shape::AllInOne).await;
    stand.refused_sales(0..1).await;
    stand.drop_constraint().await;
    // As if its range were still being written: past everything that is committed.
    stand
        .run(
            "INSERT INTO telemetry.dead_letters SELECT * REPLACE(_src_o + bitShiftLeft(1000000, 16) AS _src_o) \
              FROM telemetry.dead_letters",
        )
        .await;
    for args in [&["retry"][..], &["discard", "--yes"]] {
        let (code, told) = stand.dlq(&[args, &["--limit", "1"]].concat());
        assert_eq!((code, &told[0]["code"]), (2, &json!("in_flight")), "{told}");
    }
    assert_eq!(stand.run(SALES).await, "0\t0");
    assert_eq!(stand.run("SELECT count() FROM telemetry.dead_letters").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_copy_is_taken_once_the_config_is_wider_and_a_conflict_only_by_name() {
    let stand = Stand::start(Shape::AllInOne).await;
    assert_eq!(stand.post("kept", &json!([{"n": 300}])).await, 422);
    stand.shows(LETTERS, "1\t1").await;
    stand.settled().await;
    let (code, told) = stand.dlq(&["retry"]);
    assert_eq!((code, &told[0]["code"]), (2, &json!("above_max")), "{told}");
    stand.settled().await;
    assert_eq!(
        stand.run(LETTERS).await,
        "1\t1",
        "a refused retry leaves no further copy"
    );
    stand
        .deployment
        .reload(&DATASETS.replace("max: 10", "max: 1000"))
        .await;
    let (code, told) = stand.dlq(&["retry"]);
    assert_eq!((code, count(&told, "accepted")), (0, 1), "{told}");
    stand
        .shows("SELECT groupArray(n) FROM telemetry.kept", "[300]")
        .await;
    assert_eq!(stand.run(LETTERS).await, "0\t0");

    let keyed = stand.deployment.tenant(0).with("idempotency-key", "k");
    for n in [1, 2] {
        let body = json!([{"n": n}]).to_string();
        assert_eq!(
            keyed
                .post("/v1/events/plain", body)
                .await
                .expect("an answer")
                .status,
            202
        );
    }
    stand.shows(LETTERS, "1\t1").await;
    stand.settled().await;
    let (code, told) = stand.dlq(&["retry"]);
    assert_eq!((code, count(&told, "refused")), (2, 1), "{told}");
    let (code, told) = stand.dlq(&["retry", "--reason", "idempotency_conflict"]);
    assert_eq!((code, count(&told, "stored")), (0, 1), "{told}");
    stand
        .shows(
            "SELECT groupArray(n) FROM (SELECT n FROM telemetry.plain ORDER BY n)",
            "[1,2]",
        )
        .await;
    stand.settled().await;
    stand.balanced();
}
