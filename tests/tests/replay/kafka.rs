//! Replay of a log that is a Kafka topic: the same checks, by partition; and a promotion whose normalizer dies while others
//! take its partitions.

use super::kills::kills;
use super::promote::under_load;
use super::run::come_back;
use super::{DEADLINE, ROWS, Stand, Sums};
use serde_json::{Value, json};
use sluice_common::failpoint::Point;
use sluice_tests::failpoints::{Action, Case, Failpoints};
use sluice_tests::kafka::{Kafka, WORKED_ON, partitions, works_on};
use sluice_tests::{Deployment, Part, Plan, Shape, eventually, finally};

/// A log of four partitions there, with these keys besides.
fn config(kafka: &Kafka, log: &str) -> String {
    format!(
        "kafka: {{brokers: [\"{}\"]}}\nlog: {{kind: kafka, topic: events-log{log}}}\n",
        kafka.brokers()
    )
}

async fn stand(kafka: &Kafka) -> Stand {
    Stand::start(&config(kafka, "")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_kafka_log_that_were_deleted_or_damaged_come_back_and_no_other_changes() {
    let kafka = Kafka::start().await;
    come_back(&stand(&kafka).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_of_a_kafka_log_under_load_loses_and_doubles_nothing_in_any_table() {
    let kafka = Kafka::start().await;
    under_load(&stand(&kafka).await, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_a_step_a_replay_of_a_kafka_log_goes_on_and_its_promotion_too() {
    let kafka = Kafka::start().await;
    let mut points = None;
    // Its own name: the group does not wait for who was killed.
    let config = config(&kafka, ", partitions: 2, instance: only");
    let prepare = |dir: &std::path::Path| points = Some(Failpoints::below(dir));
    let deployment = Deployment::start_prepared(3, Shape::AllInOne, &config, prepare).await;
    let mut stand = Stand { deployment };
    for tenant in 0..3 {
        stand.send(tenant, 0..20_000).await;
        stand.send(tenant, 5_000..15_000).await;
    }
    let killed = kills(&mut stand, &mut points.expect("prepared"), 1..=2).await;
    assert!(killed >= 7, "{killed}");
    let told = stand.run(&stand.everything().await).await;
    let id = told["id"].as_str().expect("an id");
    assert_eq!(stand.diff(id).await, Sums::equal(60_000));
}

/// A killed promotion holds the tables wherever the partitions go: what comes meanwhile waits, and goes in once it is
/// over, because it was ended by the normalizer that began it, or, where that one's disk is lost, by a person.
#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_s_promotion_that_is_killed_holds_its_tables_wherever_the_partitions_go() {
    let kafka = Kafka::start().await;
    let plan = Plan::new(Shape::ThreeProcesses).twin_normalizers();
    let deployment = plan.extra(&config(&kafka, "")).start().await;
    let (one, other) = (Part::Normalizer, Part::SecondNormalizer);
    let mut stand = Stand { deployment };
    for part in [one, other] {
        works_on(&stand.deployment, part, 2).await;
    }
    for tenant in 0..3 {
        stand.send(tenant, 0..1_000).await;
        stand.send(tenant, 200..400).await;
    }
    stand.drained().await;
    let before = stand.sql(ROWS).await;
    of_some_partitions(&stand, &kafka).await;

    tokio::task::block_in_place(|| stand.deployment.terminate(other));
    tokio::task::block_in_place(|| stand.deployment.terminate(one));
    let id = killed_in_a_promotion(&mut stand, 1_000).await;
    stand.deployment.bring_up(one).await.expect("ready");
    works_on(&stand.deployment, one, 2).await;
    stand.comes_to(&id, "promoted", DEADLINE).await;
    all_there(&stand, 1_300, &before).await;

    tokio::task::block_in_place(|| stand.deployment.terminate(other));
    tokio::task::block_in_place(|| stand.deployment.terminate(one));
    let id = killed_in_a_promotion(&mut stand, 1_300).await;
    std::fs::remove_dir_all(stand.deployment.data().join("replay")).expect("it was there");
    let told = std::process::Command::new(sluice_tests::service::executable("ingestctl"))
        .args([
            "replay",
            "discard",
            &id,
            "--yes",
            "--admin",
            &stand.deployment.admin_url(other),
        ])
        .output()
        .expect("it ran");
    let words = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        told.status.success() && words.contains("take rows again"),
        "{told:?}"
    );
    let rows = "SELECT count() FROM telemetry.events WHERE toUInt64(event_id) >= 1300 FORMAT TSV";
    eventually("what waited is in its table", WORKED_ON, async || {
        (stand.sql(rows).await == "900").then_some(())
    })
    .await;
}

/// Deletes some rows, and has one normalizer, which has all partitions, killed while it puts them back; events of each tenant
/// from `next` on come meanwhile, and wait at the other. The replay's id.
async fn killed_in_a_promotion(stand: &mut Stand, next: u64) -> String {
    let (one, other) = (Part::Normalizer, Part::SecondNormalizer);
    // What is started from now on heeds what is armed.
    let mut points = Failpoints::below(stand.deployment.path());
    stand.deployment.bring_up(one).await.expect("ready");
    works_on(&stand.deployment, one, 4).await;
    let hurt = "ALTER TABLE telemetry.events DELETE WHERE _src_o % 13 = 5 SETTINGS mutations_sync = 2";
    stand.sql(hurt).await;
    let told = stand.run(&stand.everything().await).await;
    let id = told["id"].as_str().expect("an id").to_owned();
    // The live partition is kept, and is about to be replaced.
    let case = Case {
        point: Point::ReplayAct,
        action: Action::Kill,
        nth: 2,
    };
    points.arm(case);
    stand.on(&id, "promote", &json!({})).await;
    points.fired(case, DEADLINE).await;
    points.disarm();
    stand.deployment.kill(one);
    stand.deployment.bring_up(other).await.expect("ready");
    works_on(&stand.deployment, other, 4).await;
    let rows = stand.sql(ROWS).await;
    for tenant in 0..3 {
        // Edges find out one by one where the normalizers are.
        finally("events are taken", WORKED_ON, async || {
            stand.offer(tenant, next - 100..next + 300).await
        })
        .await;
    }
    eventually("what comes is set aside by the other", WORKED_ON, async || {
        let parked = stand
            .deployment
            .metric(other, "sluice_parked_units", "events")
            .await;
        let waits = stand
            .deployment
            .metric(other, "sluice_log_backlog_bytes", "")
            .await;
        (parked > 0.0 && waits == 0.0).then_some(())
    })
    .await;
    assert_eq!(stand.sql(ROWS).await, rows, "nothing is written to the table");
    id
}

/// Of each of three tenants so many events are there once, the first of them as they were.
async fn all_there(stand: &Stand, of_each: u64, before: &str) {
    let all = format!("{0}\t{0}\t", of_each * 3);
    eventually("what waited is in its table", WORKED_ON, async || {
        stand.sql(ROWS).await.starts_with(&all).then_some(())
    })
    .await;
    let ours = ROWS.replace("FORMAT", "WHERE toUInt64(event_id) < 1000 FORMAT");
    assert_eq!(stand.sql(&ours).await, before);
}

/// Of two normalizers each replays what it has, by Kafka's own offsets.
async fn of_some_partitions(stand: &Stand, kafka: &Kafka) {
    let plan = "/admin/v1/replay/plan";
    let refused = async |ask: Value| stand.refused(plan, &ask).await;
    let ask = json!({"from": "earliest", "to": "latest"});
    assert_eq!(refused(ask).await, (409, "replay_elsewhere".to_owned()));
    let ask = json!({"from": {"offset": 0}, "to": "latest"});
    assert_eq!(
        refused(ask).await,
        (400, "bad_replay".to_owned()),
        "of which partition?"
    );
    let ask = json!({"from": "earliest", "to": "latest", "partition": 4});
    assert_eq!(refused(ask).await, (400, "bad_replay".to_owned()));
    let of = |partition: u32| json!({"from": {"offset": 0}, "to": "latest", "partition": partition});
    let elsewhere = partitions(&stand.deployment, Part::SecondNormalizer).await[0];
    assert_eq!(refused(of(elsewhere)).await, (409, "replay_elsewhere".to_owned()));
    let here = partitions(&stand.deployment, Part::Normalizer).await[0];
    let planned = stand.plan(&of(here)).await;
    let offsets = kafka.offsets("sluice").await;
    let end = offsets[&("events-log".to_owned(), here)];
    assert_eq!(
        planned["spans"],
        json!([{"partition": here, "from": 0, "to": end}])
    );
    let told = stand.run(&planned).await;
    let rows = format!("SELECT count() FROM telemetry.events WHERE _src_p = {here}");
    assert_eq!(told["written"].to_string(), stand.sql(&rows).await);
    // Of the rows of other partitions the shadow has none.
    let id = told["id"].as_str().expect("an id");
    let promote = format!("/admin/v1/replay/{id}/promote");
    let refused = stand.refused(&promote, &json!({})).await;
    assert_eq!(
        refused,
        (409, "replay_elsewhere".to_owned()),
        "others write to the table"
    );
    stand.on(id, "discard", &json!({})).await;
}
