//! Who has a partition of a log in Kafka: a member with a name of its own that was killed has its partitions back.

use super::log::{config, style};
use sluice_tests::kafka::{Kafka, WORKED_ON, partitions, works_on};
use sluice_tests::oracle::{self, Oracle};
use sluice_tests::{Deployment, Part, Plan, Shape, eventually};
use std::path::Path;

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
async fn a_kafka_log_s_named_member_that_is_killed_has_its_partitions_back_and_the_group_does_not_notice() {
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
    for (killed, other) in [(two, one), (one, two)] {
        let had = partitions(&deployment, killed).await;
        let (before, others) = (given(&deployment, killed), given(&deployment, other));
        eventually("events are acknowledged", WORKED_ON, async || {
            oracle.probe(&deployment).await.then_some(())
        })
        .await;
        oracle.weigh(&deployment);
        deployment.kill(killed);
        deployment.bring_up(killed).await.expect("ready");
        works_on(&deployment, killed, 2).await;
        assert_eq!(partitions(&deployment, killed).await, had, "its own");
        assert_eq!(given(&deployment, killed), before + 2, "each came once");
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
