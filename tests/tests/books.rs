//! The books: whatever becomes of an event, each is counted once, and the sums agree with the tables.
//! Faults 1 and 33 of the list, as far as the books are concerned.

use serde_json::{Value, json};
use sluice_tests::oracle::books::{Account, accounts, complaints};
use sluice_tests::service::executable;
use sluice_tests::{Client, Deployment, Part, Shape, eventually, now_ms, oracle};
use std::process::{Command, Output};
use std::time::Duration;

const DRAIN: Duration = Duration::from_secs(60);
const TABLES: [(&str, &str); 3] = [("events", "events"), ("plain", "plain_rows"), ("kept", "kept")];
/// A dataset with a key, one without (its events are known by `Idempotency-Key` or request), and one that
/// keeps copies of rejected rows.
const DATASETS: &str = "datasets:
- {name: events, fields: [{name: event_id, type: string, required: true}], dedup: {key: [event_id]}}
- {name: plain, table: plain_rows, fields: [{name: n, type: uint32, required: true}]}
- {name: kept, fields: [{name: n, type: uint8, required: true}], keep_rejected: true}
";

fn events(ids: std::ops::Range<u64>) -> String {
    ids.map(|id| format!("{{\"event_id\":\"e{id}\"}}\n")).collect()
}

async fn post(client: &Client, dataset: &str, body: String) -> (u16, Value) {
    let client = client.clone().with("content-type", "application/x-ndjson");
    let answer = client
        .post(&format!("/v1/events/{dataset}"), body)
        .await
        .expect("an answer");
    (answer.status.as_u16(), answer.json())
}

async fn drained(deployment: &Deployment) -> Vec<Account> {
    let normalizer = deployment.admin(match deployment.shape {
        Shape::AllInOne => Part::Up,
        Shape::ThreeProcesses => Part::Normalizer,
    });
    oracle::drained(deployment).await;
    let metrics = normalizer.get("/metrics").await.expect("metrics").text();
    assert!(
        metrics
            .lines()
            .any(|line| line == "sluice_ledger_imbalance_events 0"),
        "{metrics}"
    );
    let clickhouse = deployment.clickhouse();
    let found = accounts(&clickhouse, &TABLES).await.expect("the books");
    let wrong = complaints(&clickhouse, &found).await.expect("the books");
    assert!(wrong.is_empty(), "{wrong:#?}");
    found
}

/// Received, stored, duplicate, dead-lettered, rejected.
fn sum(accounts: &[Account], tenant: &str, dataset: &str) -> [i64; 5] {
    let of = accounts
        .iter()
        .filter(|one| one.tenant == tenant && one.dataset == dataset);
    of.fold([0; 5], |sum, one| {
        let counts = [
            one.received,
            one.stored,
            one.duplicate,
            one.dead_lettered,
            one.rejected,
        ];
        std::array::from_fn(|at| sum[at] + counts[at])
    })
}

fn ledger(deployment: &Deployment, part: Part, more: &[&str]) -> Output {
    let admin = deployment.admin(part).base().to_owned();
    let mut command = Command::new(executable("ingestctl"));
    command
        .args(["ledger", "--since", "1h", "--admin", &admin])
        .args(more);
    command.output().expect("ingestctl runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_in_one_book_whatever_becomes_of_it() {
    let deployment = Deployment::start_with(Shape::AllInOne, DATASETS).await;
    let (first, second) = (deployment.tenant(0), deployment.tenant(1));
    // New, then the same again with one more, and a repeat inside of one request.
    assert_eq!(post(&first, "events", events(0..10)).await.0, 202);
    assert_eq!(
        post(&first, "events", events(0..11) + &events(10..11)).await.0,
        202
    );
    // Another tenant's events of the same ids are its own.
    assert_eq!(post(&second, "events", events(0..5)).await.0, 202);
    // Some rejected, all rejected, none at all.
    let (status, answer) = post(&second, "events", events(5..7) + "{}\nno json\n").await;
    assert_eq!((status, &answer["rejected"]), (202, &json!(2)));
    let (status, answer) = post(&second, "events", "{}\n".repeat(7)).await;
    assert_eq!(
        (status, &answer["rejected"], &answer["accepted"]),
        (422, &json!(7), &json!(0))
    );
    assert_eq!(post(&second, "events", "\n".into()).await.0, 202);
    // One Idempotency-Key with another body, and one X-Request-Id on two requests.
    let keyed = first.clone().with("idempotency-key", "k1");
    assert_eq!(
        post(&keyed, "plain", "{\"n\":1}\n{\"n\":2}\n".into()).await.0,
        202
    );
    assert_eq!(
        post(&keyed, "plain", "{\"n\":1}\n{\"n\":3}\n".into()).await.0,
        202
    );
    let named = first.clone().with("x-request-id", "the-same");
    for _ in 0..2 {
        assert_eq!(post(&named, "plain", "{\"n\":9}\n".into()).await.0, 202);
    }
    let books = drained(&deployment).await;
    assert_eq!(sum(&books, "t0", "events"), [22, 11, 11, 0, 0]);
    assert_eq!(sum(&books, "t1", "events"), [16, 7, 0, 0, 9]);
    assert_eq!(sum(&books, "t0", "plain"), [6, 4, 1, 1, 0]);
    let letter = "SELECT stage, code, payload FROM telemetry.dead_letters FORMAT TSV";
    let letter = deployment.clickhouse().query(letter).await;
    let letter = letter.expect("the dead letters");
    assert_eq!(letter.trim(), "dedup\tidempotency_conflict\t{\"n\":3}");

    let told = ledger(&deployment, Part::Up, &["--output", "json", "--tenant", "t0"]);
    assert!(told.status.success(), "{told:?}");
    let lines: Vec<Value> = serde_json::from_slice(&told.stdout).expect("an array");
    let total = |name: &str| {
        lines
            .iter()
            .map(|line| line[name].as_i64().expect(name))
            .sum::<i64>()
    };
    let names = [
        "received",
        "stored",
        "duplicate",
        "dead_lettered",
        "rejected",
        "in_flight",
    ];
    assert_eq!(names.map(total), [28, 15, 12, 1, 0, 0]);
    assert!(
        lines
            .iter()
            .all(|line| line["tenant"] == "t0" && line["minute"].is_string())
    );
    let told = ledger(&deployment, Part::Up, &[]);
    let text = String::from_utf8(told.stdout).expect("text");
    assert!(told.status.success() && text.ends_with("balanced\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_clickhouse_is_in_flight_and_balances() {
    let mut deployment = Deployment::start_with(Shape::ThreeProcesses, DATASETS).await;
    assert_eq!(post(&deployment.tenant(0), "events", events(0..3)).await.0, 202);
    drained(&deployment).await;
    deployment.kill(Part::SinkWriter);
    let told = ledger(&deployment, Part::Normalizer, &[]);
    assert_eq!(told.status.code(), Some(1), "{told:?}");
    assert!(
        String::from_utf8_lossy(&told.stderr).contains("books_unreadable"),
        "{told:?}"
    );
    deployment.bring_up(Part::SinkWriter).await.expect("ready");
    assert_eq!(post(&deployment.tenant(0), "events", events(3..5)).await.0, 202);
    drained(&deployment).await;
    let clickhouse = deployment.clickhouse();
    clickhouse
        .query("RENAME TABLE telemetry.events TO telemetry.aside")
        .await
        .expect("renamed");
    assert_eq!(
        post(&deployment.tenant(0), "events", events(4..11) + "{}\n")
            .await
            .0,
        202
    );
    let told = eventually("the books", DRAIN, async || {
        let told = ledger(&deployment, Part::Normalizer, &["--output", "json"]);
        let lines: Vec<Value> = serde_json::from_slice(&told.stdout).ok()?;
        told.status.success().then_some(lines)
    })
    .await;
    let total = |name: &str| {
        told.iter()
            .map(|line| line[name].as_i64().expect(name))
            .sum::<i64>()
    };
    let names = ["received", "stored", "duplicate", "rejected", "in_flight"];
    assert_eq!(names.map(total), [13, 5, 0, 1, 7]);
    clickhouse
        .query("RENAME TABLE telemetry.aside TO telemetry.events")
        .await
        .expect("renamed back");
    let books = drained(&deployment).await;
    assert_eq!(sum(&books, "t0", "events"), [13, 11, 1, 0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_rejected_rows_are_kept_once_within_the_budget_through_kills() {
    let extra = format!("dead_letters: {{bytes_per_second: 4KiB}}\n{DATASETS}");
    let mut deployment = Deployment::start_with(Shape::AllInOne, &extra).await;
    let client = deployment.tenant(0);
    for round in 0..3u32 {
        let body = format!("{{\"n\":{round}}}\n{{\"n\":-1,\"round\":{round}}}\n\u{1}not json {round}\n");
        let (status, answer) = post(&client, "kept", body).await;
        assert_eq!((status, &answer["rejected"]), (202, &json!(2)));
        deployment.kill(Part::Up);
        deployment.bring_up(Part::Up).await.expect("ready");
    }
    let books = drained(&deployment).await;
    assert_eq!(sum(&books, "t0", "kept"), [9, 3, 0, 0, 6]);
    let letters = "SELECT code, field, event_index, payload, count(), uniqExact(request_id) FROM telemetry.dead_letters \
                   WHERE stage = 'intake' AND length(request_id) = 32 GROUP BY 1, 2, 3, 4 ORDER BY 1, 4 FORMAT TSV";
    let letters = deployment
        .clickhouse()
        .query(letters)
        .await
        .expect("dead letters");
    let lines: Vec<&str> = letters.lines().collect();
    assert_eq!(lines.len(), 6, "{letters}");
    assert_eq!(lines[0], "malformed_json\t\t2\t\u{1}not json 0\t1\t1");
    assert!(lines[3].contains("{\"n\":-1,\"round\":0}\t1\t1"), "{letters}");

    let before = copies(&deployment).await;
    let (status, _) = post(&client, "kept", "{\"n\":\"no number\"}\n".repeat(500)).await;
    assert_eq!(status, 422);
    let books = drained(&deployment).await;
    assert_eq!(sum(&books, "t0", "kept"), [509, 3, 0, 0, 506]);
    let kept = copies(&deployment).await - before;
    assert!((5..100).contains(&kept), "{kept} copies of 4 KiB a second");
    let dropped = deployment
        .metric(Part::Up, "sluice_dead_letters_dropped_total", "budget")
        .await;
    assert_eq!(dropped as u64, 500 - kept);
}

async fn copies(deployment: &Deployment) -> u64 {
    let sql = "SELECT count() FROM telemetry.dead_letters WHERE stage = 'intake'";
    let count = deployment.clickhouse().query(sql).await.expect("a count");
    count.trim().parse().expect("a count")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_books_balance_through_kills_of_each_process_under_a_mixed_load() {
    let mut deployment = Deployment::start_with(Shape::ThreeProcesses, DATASETS).await;
    for (round, part) in [
        Part::Normalizer,
        Part::SinkWriter,
        Part::ClickHouse,
        Part::Edge,
        Part::Normalizer,
    ]
    .into_iter()
    .enumerate()
    {
        let round = round as u64;
        for n in 0..20 {
            let client = deployment.tenant(usize::try_from(n % 3).expect("small"));
            // Every third is of the same tenant, and repeats four of the seven before.
            let at = round * 100 + n;
            let body = events(at..at + 7) + "{}\n";
            let keyed = client.clone().with("idempotency-key", &format!("k{}", n % 4));
            // What is refused or unknown after a kill is sent again by nobody: the books must balance anyway.
            let sent = [
                client.clone().post("/v1/events/events", body).await,
                keyed.post("/v1/events/plain", format!("{{\"n\":{at}}}")).await,
                client.post("/v1/events/kept", "{}".to_owned()).await,
            ];
            assert!(sent.iter().all(Result::is_ok), "{sent:?}");
        }
        deployment.kill(part);
        deployment.bring_up(part).await.expect("ready");
    }
    let books = drained(&deployment).await;
    let stored: i64 = books.iter().map(|one| one.stored).sum();
    let received: i64 = books.iter().map(|one| one.received).sum();
    let [events, plain] = ["events", "plain"].map(|dataset| {
        let of = |tenant: &&str| sum(&books, tenant, dataset);
        ["t0", "t1", "t2"]
            .iter()
            .map(of)
            .fold([0; 5], |a, b| std::array::from_fn(|at| a[at] + b[at]))
    });
    assert!(stored > 0 && received > stored, "{events:?} {plain:?}");
    assert!(
        events[2] > 0 && events[4] > 0,
        "repeats and rejected ones: {events:?}"
    );
    assert!(plain[3] > 0, "conflicts: {plain:?}");
    let now = now_ms() / 1_000;
    assert!(books.iter().all(|one| one.minute % 60 == 0 && one.minute <= now));
}
