//! Normalizers join the group of a log in Kafka and leave it again and again, in order or killed, before the group has
//! settled; edges and sink-writers come and go meanwhile. Each event is in its table once.

use super::log::{config, style};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use sluice_tests::kafka::{Kafka, WORKED_ON, partitions};
use sluice_tests::oracle::{self, Oracle};
use sluice_tests::{Deployment, Part, Plan, Shape, eventually, long_form};
use std::time::Duration;

const PARTITIONS: usize = 6;
/// Between two changes, in ms: they come before the group has settled after the one before.
const PAUSE_MS: std::ops::Range<u64> = 0..1_500;
/// Of so many changes one waits until it has: a group that is never left alone gives nothing to anybody.
const SETTLED: u64 = 3;
/// Of those that leave, how many are killed: the group finds out by itself, after seconds in which nobody has a partition.
const KILLED: f64 = 0.2;
/// Beside the normalizers, who come and go in turn.
const OTHERS: [Part; 2] = [Part::SecondEdge, Part::SecondSinkWriter];
/// What a normalizer's log says of each partition that comes.
const OURS: &str = "a partition of the log is ours";

/// How often a partition was given to somebody.
fn given(deployment: &Deployment) -> usize {
    let logs = deployment.normalizers().into_iter().map(|part| {
        let log = std::fs::read_to_string(deployment.log_file(part));
        log.unwrap_or_default().matches(OURS).count()
    });
    logs.sum()
}

/// Waits until each partition is worked on, by one normalizer.
async fn settled(deployment: &Deployment) {
    eventually("each partition is worked on", WORKED_ON, async || {
        let mut all = Vec::new();
        for part in deployment.normalizers() {
            all.extend(partitions(deployment, part).await);
        }
        all.sort_unstable();
        (all == (0..PARTITIONS as u32).collect::<Vec<_>>()).then_some(())
    })
    .await;
}

/// No partition waits for a person.
async fn none_is_stopped(deployment: &Deployment) {
    for part in deployment.normalizers() {
        let alarms = deployment
            .metric(part, "sluice_alarms_total", "partition_stopped")
            .await;
        assert!(
            alarms < 0.5,
            "{part:?} stopped a partition\n{}",
            deployment.last_words()
        );
    }
}

/// A part comes back, if it was gone; else it leaves, in order or killed.
async fn comes_or_goes(deployment: &mut Deployment, part: Part, killed: bool) {
    if deployment.service(part).is_none() {
        deployment.bring_up(part).await.expect("ready");
    } else if killed {
        deployment.kill(part);
    } else {
        let ended = tokio::task::block_in_place(|| deployment.terminate(part));
        assert!(ended, "{part:?} ends with 0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_log_in_a_storm_of_rebalances_keeps_each_event_once() {
    let seed = oracle::seed("kafka log rebalances");
    let mut rng = StdRng::seed_from_u64(seed);
    let kafka = Kafka::start().await;
    let log = format!(", partitions: {PARTITIONS}");
    let plan = Plan::new(Shape::ThreeProcesses).three_normalizers();
    let mut deployment = plan.extra(&config(&kafka, &log)).start().await;
    settled(&deployment).await;
    let mut oracle = Oracle::new(&deployment, seed);
    oracle.style = style();
    let load = oracle.load(&deployment);
    let (begun, turns) = (given(&deployment), long_form("REBALANCES", 18));
    for turn in 0..turns {
        if turn % SETTLED == 0 {
            settled(&deployment).await;
        } else {
            // When the next change comes is drawn: the group is not to have settled.
            tokio::time::sleep(Duration::from_millis(rng.random_range(PAUSE_MS))).await;
        }
        oracle.weigh(&deployment);
        let normalizers = deployment.normalizers();
        let runs = |part: &Part| deployment.service(*part).is_some();
        let running = normalizers.iter().filter(|part| runs(part)).count();
        // One stays, whoever it is.
        let may_change = |part: &&Part| running > 1 || !runs(part);
        let candidates: Vec<Part> = normalizers.iter().filter(may_change).copied().collect();
        let part = *candidates.choose(&mut rng).expect("two of three");
        comes_or_goes(&mut deployment, part, rng.random_bool(KILLED)).await;
        if turn % 3 == 0 {
            let other = OTHERS[turn as usize / 3 % OTHERS.len()];
            comes_or_goes(&mut deployment, other, rng.random_bool(KILLED)).await;
        }
    }
    for part in deployment.parts() {
        if part != Part::ClickHouse && deployment.service(part).is_none() {
            deployment.bring_up(part).await.expect("ready");
        }
    }
    settled(&deployment).await;
    load.stop().await;
    none_is_stopped(&deployment).await;
    let verdict = oracle.drained_verdict(&deployment).await;
    let moved = given(&deployment) - begun;
    println!("partitions were given {moved} times\n{}", verdict.table());
    verdict.assert_clean();
    assert!(moved > PARTITIONS, "{moved}: nothing moved");
    none_is_stopped(&deployment).await;
}
