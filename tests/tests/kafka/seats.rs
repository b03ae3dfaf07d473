//! Who has a partition of a log in Kafka, and with what progress: a member with a name of its own that was killed, or
//! ended in order, has its partitions back, and what is too long for an offset's metadata is gone on with by another normalizer.

use super::log::{config, style};
use serde_json::{Value, json};
use sluice_common::failpoint::Point;
use sluice_tests::failpoints::{Action, Case, Failpoints};
use sluice_tests::kafka::{Kafka, WORKED_ON, partitions, works_on};
use sluice_tests::oracle::{self, Oracle};
use sluice_tests::{Deployment, Part, Plan, Shape, eventually, now_ms};
use std::path::Path;
use tokio::task::block_in_place;

const DAY_MS: u64 = 24 * 3_600 * 1_000;
/// What of an offset's metadata brokers take.
const METADATA_BYTES: usize = 4_096;
/// What a normalizer's log says of each partition that comes.
const OURS: &str = "a partition of the log is ours";

/// How often partitions were given to a normalizer.
fn given(deployment: &Deployment, part: Part) -> usize {
    let log = std::fs::read_to_string(deployment.log_file(part));
    log.unwrap_or_default().matches(OURS).count()
}

/// Two normalizers that share a log, each with a name of its own in the group.
async fn named(kafka: &Kafka) -> Deployment {
    let plan = Plan::new(Shape::ThreeProcesses).twin_normalizers();
    let plan = plan.extra(&config(kafka, ", instance: \"file:instance\""));
    let name = |dir: &Path| {
        for data in ["data", "second-data"] {
            std::fs::write(dir.join(data).join("instance"), data).expect("written");
        }
    };
    plan.start_prepared(name).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_s_named_member_that_starts_again_has_its_partitions_back_and_the_group_does_not_notice()
{
    let seed = oracle::seed("kafka log named members");
    let kafka = Kafka::start().await;
    let mut deployment = named(&kafka).await;
    for part in deployment.normalizers() {
        works_on(&deployment, part, 2).await;
    }
    let generation = kafka.generation("sluice").await;
    let mut oracle = Oracle::new(&deployment, seed);
    oracle.style = style();
    let load = oracle.load(&deployment);
    let (one, two) = (Part::Normalizer, Part::SecondNormalizer);
    for (gone, other, in_order) in [
        (two, one, false),
        (one, two, true),
        (one, two, false),
        (two, one, true),
    ] {
        let had = partitions(&deployment, gone).await;
        let (before, others) = (given(&deployment, gone), given(&deployment, other));
        eventually("events are acknowledged", WORKED_ON, async || {
            oracle.probe(&deployment).await.then_some(())
        })
        .await;
        oracle.weigh(&deployment);
        match in_order {
            true => assert!(block_in_place(|| deployment.terminate(gone)), "it ends with 0"),
            false => deployment.kill(gone),
        }
        deployment.bring_up(gone).await.expect("ready");
        works_on(&deployment, gone, 2).await;
        assert_eq!(partitions(&deployment, gone).await, had, "its own");
        assert_eq!(given(&deployment, gone), before + 2, "each came once");
        assert_eq!(given(&deployment, other), others, "nothing came to the other");
        assert_eq!(partitions(&deployment, other).await.len(), 2, "and nothing went");
    }
    load.stop().await;
    oracle.drained_verdict(&deployment).await.assert_clean();
    assert_eq!(
        kafka.generation("sluice").await,
        generation,
        "the group was never given out anew"
    );
}

/// Events of two days: 64 of which every other one is refused, and 512 with four refused ones. The first are told apart
/// long before the others are. `name` begins their ids.
pub(super) fn events_of_two_days(name: &str) -> (Value, usize) {
    let event = |n: u64, ms: u64| json!({"event_id": format!("{name}{n}"), "timestamp": ms, "size_kib": n});
    let now = now_ms();
    let early = (0..64).map(|n| event(n, now - DAY_MS));
    let late = (1_000..1_512).map(|n| event(n, now));
    (json!(early.chain(late).collect::<Vec<_>>()), 64 + 512)
}

pub(super) const REFUSED: &str = "ALTER TABLE telemetry.events ADD CONSTRAINT odd CHECK \
    intDiv(size_bytes, 1024) % if(size_bytes < 1024000, 2, 128) != 1";
/// Each event is a row or a letter: how many there are, how many different ones, and how many letters.
pub(super) const FATES: &str = "SELECT count(), uniqExact(id), countIf(letter) FROM (\
    SELECT event_id AS id, 0 AS letter FROM telemetry.events UNION ALL \
    SELECT JSONExtractString(payload, 'event_id'), 1 FROM telemetry.dead_letters) FORMAT TSV";
pub(super) const EARLY_REFUSED: usize = 32;
pub(super) const ALL_REFUSED: usize = 32 + 4;

/// How many refused rows each progress names that was too long for an offset's metadata.
pub(super) async fn long_progress(kafka: &Kafka) -> Vec<usize> {
    let told = kafka.read("events-log.state").await;
    let long = told.iter().filter(|one| one.key.as_deref() == Some("progress"));
    let dead = long.map(|one| {
        let text = one.value.to_string();
        assert!(text.len() > METADATA_BYTES, "{text} is short");
        one.value["intent"]["dead"].as_array().map_or(0, Vec::len)
    });
    dead.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_s_progress_that_is_too_long_for_an_offset_is_gone_on_with_by_another_normalizer() {
    let kafka = Kafka::start().await;
    let plan = Plan::new(Shape::ThreeProcesses).twin_normalizers();
    // The tenant's events lie in one.
    let plan = plan.extra(&config(&kafka, ", partitions: 2, tenant_partitions: 1"));
    let mut points = None;
    let prepare = |dir: &Path| points = Some(Failpoints::below(dir));
    let mut deployment = plan.start_prepared(prepare).await;
    let mut points = points.expect("prepared");
    for part in deployment.normalizers() {
        works_on(&deployment, part, 1).await;
    }
    let clickhouse = deployment.clickhouse();
    clickhouse.query(REFUSED).await.expect("refused from now on");
    // After the parts are marked as refused, and the rows of the first of them.
    let case = Case {
        point: Point::MarksPersisted,
        action: Action::Kill,
        nth: 2,
    };
    points.arm(case);
    let (events, sent) = events_of_two_days("e");
    let client = deployment.tenant(0);
    let answer = client.post("/v1/events/events", events.to_string()).await;
    assert_eq!(answer.expect("an answer").status, 202);
    points.fired(case, WORKED_ON).await;
    let killed = eventually("a normalizer ends", WORKED_ON, async || {
        let all = deployment.normalizers().into_iter();
        let mut ended = all.filter(|part| deployment.ended(*part).is_some());
        ended.next()
    })
    .await;
    let other = deployment.normalizers().into_iter().find(|part| *part != killed);
    assert_eq!(long_progress(&kafka).await, [EARLY_REFUSED]);
    works_on(&deployment, other.expect("two"), 2).await;
    let expected = format!("{sent}\t{sent}\t{ALL_REFUSED}");
    eventually("each event has its fate", WORKED_ON, async || {
        let told = clickhouse.query(FATES).await.ok()?;
        (told.trim() == expected).then_some(())
    })
    .await;
    deployment.bring_up(killed).await.expect("ready");
    works_on(&deployment, killed, 1).await;
    oracle::drained(&deployment).await;
    assert_eq!(clickhouse.query(FATES).await.expect("told").trim(), expected);
    // What was found out before was not asked again.
    let (first, later) = {
        let mut all = long_progress(&kafka).await;
        (all.remove(0), all)
    };
    assert_eq!(first, EARLY_REFUSED);
    assert!(
        !later.is_empty() && later.iter().all(|dead| *dead == ALL_REFUSED),
        "{later:?}"
    );
}
