//! Promotions that are killed again and again, under load, of several tables and days; one that cannot be ended; and
//! plans that take long.

use super::kills::{quiet, rise, stand};
use super::{DEADLINE, ROWS, Stand, TURNS};
use serde_json::{Value, json};
use sluice_common::failpoint::Point;
use sluice_tests::failpoints::{Action, Case, Failpoints};
use sluice_tests::proxy::{Act, Rule};
use sluice_tests::{Client, Hop, Part, Plan, Shape, now_ms};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, JoinSet};

const DATASETS: [&str; 2] = ["events", "more_events"];
/// Each event's day is its own: every table has several partitions.
const CONFIG: &str = "datasets:
- {name: events, unknown_fields: attributes, time: {field: timestamp}, partition_by: toDate(timestamp),
   fields: [{name: event_id, type: string, required: true}, {name: timestamp, type: datetime64(3), required: true, epoch: ms},
     {name: service, type: low_cardinality(string)}, {name: attributes, type: \"map(string, string)\"}],
   dedup: {key: [event_id], window: 24h}, batch: {max_age: 200ms}}
- {name: more_events, unknown_fields: attributes, time: {field: timestamp}, partition_by: toDate(timestamp),
   fields: [{name: event_id, type: string, required: true}, {name: timestamp, type: datetime64(3), required: true, epoch: ms},
     {name: service, type: low_cardinality(string)}, {name: attributes, type: \"map(string, string)\"}],
   dedup: {key: [event_id], window: 24h}, batch: {max_age: 200ms}}
";
const DAYS: u64 = 3;
const DAY_MS: u64 = 24 * 3_600_000;
/// Between two tries to send an event.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// Of the events that come meanwhile.
const LATE: &str = "late";

fn events(service: &str, numbers: std::ops::Range<u64>) -> Value {
    let event = |n: u64| json!({"event_id": format!("{service}{n}"), "timestamp": now_ms() - n % DAYS * DAY_MS, "service": service});
    numbers.map(event).collect()
}

async fn send_to_all(stand: &Stand, numbers: std::ops::Range<u64>) {
    for dataset in DATASETS {
        let client = stand.deployment.tenant(0);
        let path = format!("/v1/events/{dataset}");
        let answer = client
            .post(&path, events("sent", numbers.clone()).to_string())
            .await;
        assert_eq!(answer.expect("an answer").status, 202);
    }
}

/// All rows but those that come meanwhile, of each table.
async fn rows(stand: &Stand) -> Vec<String> {
    let mut rows = Vec::new();
    for table in DATASETS {
        let sql = ROWS.replace("telemetry.events", &format!("telemetry.{table}"));
        let sql = sql.replace("FORMAT", &format!("WHERE service != '{LATE}' FORMAT"));
        rows.push(stand.sql(&sql).await);
    }
    rows
}

async fn hurt(stand: &Stand, turn: u64) {
    for table in DATASETS {
        let sql = format!(
            "ALTER TABLE telemetry.{table} DELETE WHERE service != '{LATE}' AND _src_o % 7 = {} SETTINGS mutations_sync = 2",
            turn % 7
        );
        stand.sql(&sql).await;
    }
}

/// Events one after the other, each sent until it is taken.
struct Trickle {
    over: Arc<AtomicBool>,
    sending: JoinHandle<u64>,
}

impl Trickle {
    fn start(client: Client) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let sending = tokio::spawn(async move {
            let mut sent = 0;
            while !until.load(Ordering::Relaxed) {
                let body = events(LATE, sent..sent + 1).to_string();
                let begun = Instant::now();
                loop {
                    match client.post("/v1/events/events", body.clone()).await {
                        Ok(answer) if answer.status == 202 => break,
                        other => assert!(begun.elapsed() < DEADLINE, "{other:?}"),
                    }
                    // As a client does that was told to come again.
                    tokio::time::sleep(ASK_EVERY).await;
                }
                sent += 1;
            }
            sent
        });
        Self { over, sending }
    }

    /// How many were taken.
    async fn stop(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.sending.await.expect("sent")
    }
}

/// Sees a promotion through that was just ordered, whatever is killed by `case` and by the same once more; how often it
/// was.
async fn through(stand: &mut Stand, points: &mut Failpoints, id: &str, case: Case) -> u64 {
    let mut killed = 0;
    while !quiet(stand, points, id, "promoted").await {
        points.fired(case, DEADLINE).await;
        killed += 1;
        if killed == 1 {
            points.arm(Case { nth: 2, ..case });
        } else {
            points.disarm();
        }
        rise(stand).await;
    }
    points.disarm();
    killed
}

async fn order_promotion(stand: &Stand, id: &str, body: Value) {
    let admin = stand.deployment.admin(Part::Normalizer);
    let admin = admin.with("content-type", "application/json");
    // The answer may be lost with the process.
    let path = format!("/admin/v1/replay/{id}/promote");
    admin.post(&path, body.to_string()).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tables_of_several_days_come_back_and_kills_between_their_partitions_change_nothing() {
    let _turn = TURNS.acquire().await;
    let (mut stand, mut points) = stand(Shape::AllInOne, CONFIG).await;
    send_to_all(&stand, 0..600).await;
    send_to_all(&stand, 300..900).await;
    stand.drained().await;
    let before = rows(&stand).await;
    let mut killed = 0;
    let trickle = Trickle::start(stand.deployment.tenant(1));
    for nth in (3..=13).step_by(2) {
        hurt(&stand, nth).await;
        let plan = stand.everything().await;
        assert_eq!(plan["shadow_tables"].as_array().map(Vec::len), Some(2), "{plan}");
        let told = stand.run(&plan).await;
        let id = told["id"].as_str().expect("an id").to_owned();
        let point = [Point::ReplayAct, Point::ReplayActed][usize::try_from(nth / 2 % 2).expect("small")];
        let case = Case {
            point,
            action: Action::Kill,
            nth,
        };
        points.arm(case);
        order_promotion(&stand, &id, json!({})).await;
        killed += through(&mut stand, &mut points, &id, case).await;
        stand.on(&id, "discard", &json!({})).await;
        assert_eq!(rows(&stand).await, before, "{case}");
    }
    let late = trickle.stop().await;
    stand.drained().await;
    let came = format!(
        "SELECT count(), uniqExact(event_id) FROM telemetry.events WHERE service = '{LATE}' FORMAT TSV"
    );
    assert_eq!(stand.sql(&came).await, format!("{late}\t{late}"));
    assert_eq!(rows(&stand).await, before);
    println!("{killed} kills in promotions of six partitions, {late} events meanwhile");
    assert!(killed >= 8, "{killed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_wise_promotion_that_is_killed_anywhere_keeps_the_rows_of_others_once() {
    let _turn = TURNS.acquire().await;
    let (mut stand, mut points) = stand(Shape::AllInOne, "").await;
    stand.send(0, 0..500).await;
    stand.drained().await;
    stand.sql("INSERT INTO telemetry.events (tenant, event_id, timestamp, service, _src_l, _src_o) SELECT 'other', toString(number), now64(3), 'x', 7, number FROM numbers(5)").await;
    let before = stand.sql(ROWS).await;
    let mut killed = 0;
    for nth in 1..=12 {
        stand
            .sql("ALTER TABLE telemetry.events DELETE WHERE tenant = 't0' AND _src_o % 5 = 1 SETTINGS mutations_sync = 2")
            .await;
        let told = stand.run(&stand.everything().await).await;
        let id = told["id"].as_str().expect("an id").to_owned();
        let case = Case {
            point: [Point::ReplayAct, Point::ReplayActed][nth % 2],
            action: Action::Kill,
            nth: nth as u64,
        };
        points.arm(case);
        order_promotion(&stand, &id, json!({"row_wise": true})).await;
        let fired = through(&mut stand, &mut points, &id, case).await;
        killed += fired;
        stand.on(&id, "discard", &json!({})).await;
        stand.drained().await;
        assert_eq!(stand.sql(ROWS).await, before, "{case}");
        // Each point is hit less often than this case asks for.
        if fired == 0 {
            break;
        }
    }
    println!("{killed} kills in row-wise promotions");
    assert!(killed >= 6, "{killed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_cannot_be_ended_is_given_up_and_rows_that_waited_go_in_once() {
    let _turn = TURNS.acquire().await;
    let (mut stand, mut points) = stand(Shape::ThreeProcesses, CONFIG).await;
    send_to_all(&stand, 0..300).await;
    stand.drained().await;
    let before = rows(&stand).await;
    let mut swapped = 0;
    // Killed a step later each time, until it is after the first partition was replaced.
    for nth in 5.. {
        let told = stand.run(&stand.everything().await).await;
        let id = told["id"].as_str().expect("an id").to_owned();
        let case = Case {
            point: Point::ReplayAct,
            action: Action::Kill,
            nth,
        };
        points.arm(case);
        order_promotion(&stand, &id, json!({})).await;
        points.fired(case, DEADLINE).await;
        points.disarm();
        let steps =
            "SELECT count() FROM system.tables WHERE name LIKE '%\\\\_before\\\\_%' AND total_rows > 0";
        swapped = stand.sql(steps).await.parse().expect("a number");
        if swapped > 0 {
            // Nothing is there any more that the rest could be replaced by.
            for table in DATASETS {
                let drop = format!("DROP TABLE telemetry.{table}_shadow_{id} SYNC");
                stand.sql(&drop).await;
            }
            stand.deployment.kill(Part::Normalizer);
            stand.deployment.bring_up(Part::Normalizer).await.expect("ready");
            send_to_all(&stand, 300..400).await;
            let told = stand.comes_to(&id, "failed", DEADLINE * 3).await;
            assert!(told["reason"].to_string().contains("given up"), "{told}");
            let again = stand
                .refused(&format!("/admin/v1/replay/{id}/resume"), &json!({}))
                .await;
            assert_eq!(again, (409, "replay_wrong_phase".to_owned()));
            stand.on(&id, "discard", &json!({})).await;
            break;
        }
        stand.deployment.kill(Part::Normalizer);
        stand.deployment.bring_up(Part::Normalizer).await.expect("ready");
        stand.until(&id, "promoted").await;
        stand.on(&id, "discard", &json!({})).await;
    }
    assert!(swapped > 0);
    stand.drained().await;
    let first = |rows: String| rows.replace("FORMAT", "AND toUInt64(substring(event_id, 5)) < 300 FORMAT");
    for (table, before) in DATASETS.iter().zip(before) {
        let sql = ROWS.replace(
            "telemetry.events FORMAT",
            &format!("telemetry.{table} WHERE 1 FORMAT"),
        );
        assert_eq!(stand.sql(&first(sql.clone())).await, before);
        assert!(stand.sql(&sql).await.starts_with("400\t400\t"), "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_takes_long_is_made_once_and_waited_for() {
    let _turn = TURNS.acquire().await;
    let stand = Stand::of(Plan::new(Shape::AllInOne).proxied(Hop::ToClickHouse)).await;
    stand.send(0, 0..100).await;
    stand.drained().await;
    let proxy = stand.deployment.proxy(Hop::ToClickHouse);
    proxy.set(Rule::on("dead_lettered", Act::HoldAnswer));
    let until = now_ms();
    let ask = |n: u64| json!({"from": "earliest", "to": "latest", "until_ms": until + n});
    let admin = stand.deployment.admin(Part::Normalizer);
    let admin = admin
        .with("content-type", "application/json")
        .with_timeout(DEADLINE);
    let plan = |n: u64| {
        let (admin, body) = (admin.clone(), ask(n).to_string());
        async move {
            let answer = admin.post("/admin/v1/replay/plan", body).await;
            (n, answer.expect("an answer").json())
        }
    };
    // One more than may be made at once.
    let mut plans: JoinSet<_> = (0..5).map(plan).collect();
    let (refused, told) = plans.join_next().await.expect("five").expect("an answer");
    assert_eq!(told["code"], "replay_busy", "{told}");
    // The same as one of the others is not refused: it waits.
    let asked = u64::from(refused == 0);
    let mut same = std::pin::pin!(plan(asked));
    let waits = tokio::time::timeout(Duration::from_secs(4), &mut same).await;
    assert!(waits.is_err(), "{waits:?}");
    proxy.pass();
    let again = same.await;
    assert!(again.1["id"].is_string(), "{again:?}");
    assert!(
        plans.join_all().await.contains(&again),
        "the one that was being made"
    );
    assert_ne!(plan(asked).await.1["id"], again.1["id"], "later it is made anew");
}
