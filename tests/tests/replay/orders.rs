//! What is planned, and what is refused.

use super::{Stand, TURNS};
use serde_json::{Value, json};
use sluice_common::failpoint::Bound;
use sluice_tests::Plan;
use sluice_tests::failpoints::Failpoints;
use sluice_tests::{Part, Shape, eventually};
use std::time::Duration;

const TABLES: &str = "SELECT groupArray(name) FROM (SELECT name FROM system.tables WHERE database = 'telemetry' ORDER BY name)";
const PLAN: &str = "/admin/v1/replay/plan";

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_tells_exactly_what_is_read_and_nothing_else_is() {
    let _turn = TURNS.acquire().await;
    let stand = Stand::start("").await;
    stand.send(0, 0..300).await;
    stand.send(1, 0..200).await;
    // Repeats: read, and not written.
    stand.send(0, 100..150).await;
    stand.drained().await;
    let before = stand.sql(super::ROWS).await;
    let plan = stand.everything().await;
    let one = &plan["partitions"][0];
    assert_eq!(
        (
            &one["partition"],
            &one["first"],
            &one["last"],
            &one["records"],
            &one["events"]
        ),
        (&json!(0), &json!(0), &json!(2), &json!(3), &json!(550)),
        "{plan}"
    );
    assert_eq!(one["tenants"], json!({"t0": 350, "t1": 200}));
    assert_eq!(one["datasets"], json!({"events": 550}));
    assert_eq!(one["tables"], json!({"events": 550}));
    assert_eq!(plan["decisions"], "provenance");
    let times = "SELECT toUnixTimestamp64Milli(min(ingested_at)), toUnixTimestamp64Milli(max(ingested_at)) FROM telemetry.events FORMAT TSV";
    let told = format!("{}\t{}", one["first_append_ms"], one["last_append_ms"]);
    let times = stand.sql(times).await;
    assert_eq!(times.split('\t').next(), told.split('\t').next(), "{told}");
    let told = stand.run(&plan).await;
    assert_eq!(told["read"].to_string(), plan["partitions"].to_string());
    assert_eq!((&told["written"], &told["left_out"]), (&json!(500), &json!(50)));
    assert_eq!(told["who"], "somebody@somewhere");
    assert_eq!(
        stand.sql(super::ROWS).await,
        before,
        "the live table is as it was"
    );
    let id = told["id"].as_str().expect("an id");
    assert_eq!(stand.diff(id).await, super::Sums::equal(500));
    let shadow = plan["shadow_tables"][0].as_str().expect("a table");
    let copied = super::ROWS.replace("telemetry.events", &format!("telemetry.{shadow}"));
    assert_eq!(stand.sql(&copied).await, before);
    // By tenant, and by offset.
    let of_tenant = json!({"from": "earliest", "to": "latest", "tenant": "t1"});
    let told = stand.run(&stand.plan(&of_tenant).await).await;
    assert_eq!(told["written"], 200);
    assert_eq!(
        stand.diff(told["id"].as_str().expect("an id")).await,
        super::Sums::equal(200)
    );
    let told = stand
        .run(
            &stand
                .plan(&json!({"from": {"offset": 1}, "to": {"offset": 2}}))
                .await,
        )
        .await;
    assert_eq!(
        (&told["written"], &told["plan"]["partitions"][0]["first"]),
        (&json!(200), &json!(1))
    );
    let since = one["last_append_ms"].as_u64().expect("a time");
    let late = stand
        .plan(&json!({"from": "earliest", "to": "latest", "since_ms": since}))
        .await;
    assert_eq!(late["partitions"][0]["first"], 2, "{late}");
    let early = stand
        .plan(&json!({"from": "earliest", "to": "latest", "until_ms": since}))
        .await;
    assert_eq!(early["partitions"][0]["last"], 1, "{early}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_replayed_is_refused_and_nothing_is_touched() {
    let _turn = TURNS.acquire().await;
    let stand = Stand::start("").await;
    stand.send(0, 0..100).await;
    stand.drained().await;
    let before = stand.sql(TABLES).await;
    let ask = |from: Value, to: Value| json!({"from": from, "to": to});
    let offset = |n: u64| json!({ "offset": n });
    let of = |key: &str, name: &str| {
        let mut all = ask(json!("earliest"), json!("latest"));
        all[key] = json!(name);
        all
    };
    for (body, status, code) in [
        (ask(offset(1), offset(0)), 400, "bad_replay"),
        (ask(json!("latest"), json!("earliest")), 400, "bad_replay"),
        (ask(offset(0), offset(0)), 409, "replay_nothing"),
        (ask(offset(9_000), offset(9_001)), 409, "replay_nothing"),
        (of("tenant", "nobody"), 404, "replay_no_such_tenant"),
        (of("dataset", "nothing"), 404, "replay_no_such_dataset"),
        (
            json!({"from": "earliest", "to": "latest", "partition": 1}),
            400,
            "bad_replay",
        ),
    ] {
        assert_eq!(
            stand.refused(PLAN, &body).await,
            (status, code.to_owned()),
            "{body}"
        );
    }
    let (status, _) = stand
        .ask(PLAN, &json!({"from": "earliest", "to": "latest", "tenants": 1}))
        .await;
    assert_eq!(status, 422, "an unknown key is an error");
    assert_eq!(
        stand
            .refused("/admin/v1/replay", &json!({"plan": "r00000000"}))
            .await,
        (404, "replay_unknown".to_owned())
    );
    assert_eq!(stand.sql(TABLES).await, before);
    // What lies past the end is left away, and told.
    let clamped = stand.plan(&ask(offset(0), offset(500))).await;
    assert_eq!(clamped["spans"][0]["to"], 1);
    assert!(
        clamped["notes"].to_string().contains("not stored yet"),
        "{clamped}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replay_is_at_work_at_a_time_and_each_phase_has_its_orders() {
    let _turn = TURNS.acquire().await;
    let stand = Stand::start("").await;
    let before = stand.sql(TABLES).await;
    stand.send(0, 0..60_000).await;
    stand.send(0, 60_000..120_000).await;
    stand.drained().await;
    let (first, second) = (stand.everything().await, stand.everything().await);
    let id = stand.begin(&first, &json!({"events_per_second": 1})).await;
    let order = json!({"plan": second["id"]});
    assert_eq!(
        stand.refused("/admin/v1/replay", &order).await,
        (409, "replay_busy".to_owned())
    );
    let on = |verb: &str| format!("/admin/v1/replay/{id}/{verb}");
    for verb in ["diff", "promote", "discard"] {
        let refused = stand.refused(&on(verb), &json!({})).await;
        assert_eq!(refused, (409, "replay_wrong_phase".to_owned()), "{verb}");
    }
    stand.on(&id, "pause", &json!({})).await;
    stand.until(&id, "paused").await;
    for verb in ["pause", "promote"] {
        let refused = stand.refused(&on(verb), &json!({})).await;
        assert_eq!(refused, (409, "replay_wrong_phase".to_owned()), "{verb}");
    }
    stand.on(&id, "discard", &json!({})).await;
    assert_eq!(stand.sql(TABLES).await, before, "its tables are gone");
    let again = stand.refused(&on("promote"), &json!({})).await;
    assert_eq!(again, (409, "replay_wrong_phase".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_longer_in_the_log_is_refused_and_what_is_left_is_said() {
    let _turn = TURNS.acquire().await;
    let prepared =
        sluice_tests::Deployment::start_prepared(3, Shape::AllInOne, "log: {retain: 1s}", |deployment| {
            Failpoints::below(deployment).shrink(&[(Bound::SegmentBytes, 128 << 10), (Bound::RotateMs, 300)])
        });
    let stand = Stand {
        deployment: prepared.await,
    };
    let first = async || {
        stand.everything().await["spans"][0]["from"]
            .as_u64()
            .expect("an offset")
    };
    let mut n = 0;
    eventually(
        "a log that has deleted its beginning",
        Duration::from_secs(60),
        async || {
            stand.send(0, n..n + 500).await;
            n += 500;
            stand.drained().await;
            (first().await > 0).then_some(())
        },
    )
    .await;
    let first = first().await;
    let gone = json!({"from": {"offset": first - 1}, "to": "latest"});
    assert_eq!(
        stand.refused(PLAN, &gone).await,
        (409, "replay_out_of_reach".to_owned())
    );
    let plan = stand.everything().await;
    assert!(
        plan["notes"].to_string().contains("no longer in the log"),
        "{plan}"
    );
    // All rows are there: their provenance decides, whatever the log has.
    assert_eq!(plan["decisions"], "provenance", "{plan}");
    // Rows are missing, and there were no repeats: then all were kept.
    stand
        .sql("DELETE FROM telemetry.events WHERE toUInt64(event_id) = 0")
        .await;
    stand
        .sql(&format!(
            "DELETE FROM telemetry.events WHERE toUInt64(event_id) = {}",
            n - 1
        ))
        .await;
    let plan = stand.everything().await;
    assert_eq!(plan["decisions"], "all", "{plan}");
    // With repeats among them nobody can tell any more, and says so.
    stand.send(0, n - 1..n).await;
    stand.drained().await;
    let plan = stand.everything().await;
    assert_eq!(plan["decisions"], Value::Null, "{plan}");
    let order = json!({"plan": plan["id"]});
    let refused = stand.refused("/admin/v1/replay", &order).await;
    assert_eq!(refused, (409, "replay_undecidable".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_its_state_a_replay_does_not_begin_and_later_it_does() {
    let _turn = TURNS.acquire().await;
    let stand = Stand::of(Plan::new(Shape::ThreeProcesses).data_volume(1 << 30)).await;
    stand.send(0, 0..100).await;
    stand.drained().await;
    let plan = stand.everything().await;
    let ballast = stand.deployment.data_volume().fill(0);
    let tables = "SELECT count() FROM system.tables WHERE database = 'telemetry'";
    let before = stand.sql(tables).await;
    let order = json!({"plan": plan["id"]});
    assert_eq!(
        stand.refused("/admin/v1/replay", &order).await,
        (503, "replay_no_room".to_owned())
    );
    assert_eq!(stand.sql(tables).await, before);
    drop(ballast);
    let told = stand.run(&plan).await;
    assert_eq!(told["written"], 100);
    assert!(stand.deployment.service(Part::Normalizer).is_some());
}
