//! Disks without room, and with room again: volumes of their own are mounted for these tests.

use super::trial::{SOON, Trial};
use sluice_tests::oracle::request::{Batch, Outcome};
use sluice_tests::{Part, Plan, Shape, eventually};
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// ClickHouse without data needs about 60 MiB of it.
const CLICKHOUSE_VOLUME: u64 = 400 * MIB;
/// Segments are 32 MiB then, and two of them are there from the start.
const LOG: &str = "log: {max_bytes: 256MiB, reserve: 128MiB}\n";
const LOG_VOLUME: u64 = 440 * MIB;
/// Events of one request, and bytes of each: about 1 MB.
const LARGE: (usize, usize) = (64, 16_000);

/// Row 4. That 2xx ends at the log's watermark is shown in `overload.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_without_room_delays_rows_and_loses_and_doubles_none() {
    let mut trial = Trial::start(Plan::new(Shape::ThreeProcesses).clickhouse_volume(CLICKHOUSE_VOLUME)).await;
    let load = trial.oracle.load(&trial.deployment);
    for spare in [0, 64 << 10, MIB] {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let volume = trial.deployment.clickhouse_volume();
        let ballast = volume.fill_around(&trial.deployment.clickhouse(), spare).await;
        eventually("rows that wait", SOON, async || {
            let waits = trial
                .deployment
                .metric(Part::Normalizer, "sluice_unsettled", "")
                .await;
            (waits > 0.0).then_some(())
        })
        .await;
        // It is none of the clients' business.
        for _ in 0..20 {
            trial.acked(0, 5).await;
        }
        drop(ballast);
        eventually("rows that flow again", Duration::from_secs(60), async || {
            let waits = trial
                .deployment
                .metric(Part::Normalizer, "sluice_unsettled", "")
                .await;
            (waits == 0.0).then_some(())
        })
        .await;
    }
    load.stop().await;
    trial.verdict().await;
}

/// Room that is left: for nothing, a frame, a slot of progress, a part of a group; a segment, whole and a page short of
/// it; the reserve, and a little more.
const SPARE: [u64; 9] = [
    0,
    4 << 10,
    64 << 10,
    MIB,
    8 * MIB,
    64 * MIB - 4096,
    64 * MIB,
    128 * MIB,
    129 * MIB,
];

/// Row 16.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_room_answers_503_leaves_no_mark_and_takes_the_retry() {
    let plan = Plan::new(Shape::ThreeProcesses)
        .data_volume(LOG_VOLUME)
        .extra(LOG);
    let mut trial = Trial::start(plan).await;
    trial.acked(0, 10).await;
    for spare in SPARE {
        let ballast = trial.deployment.data_volume().fill(spare);
        let refused = fill(&trial).await;
        // Small ones of others are refused as well, and each says when to come again.
        let (small, outcome) = trial.oracle.send(&trial.deployment, 1, 3).await;
        drop(ballast);
        for batch in [Some(refused), (outcome != Outcome::Acked).then_some(small)]
            .into_iter()
            .flatten()
        {
            eventually("the retry is taken", SOON, async || {
                let outcome = trial.oracle.attempt(&trial.deployment, &batch).await;
                (outcome == Outcome::Acked).then_some(())
            })
            .await;
        }
    }
    // A write to a mapped page of a full disk would be SIGBUS.
    for part in [Part::Edge, Part::Normalizer, Part::SinkWriter] {
        let ready = trial
            .deployment
            .admin(part)
            .get("/livez")
            .await
            .expect("an answer");
        assert_eq!(ready.status, 200, "{part:?}");
    }
    trial.verdict().await;
}

/// Sends until one request is refused; that one.
async fn fill(trial: &Trial) -> Batch {
    eventually("a refusal", Duration::from_secs(60), async || {
        let (batch, outcome) = trial.oracle.send_padded(&trial.deployment, 0, LARGE).await;
        assert_ne!(outcome, Outcome::Unknown, "a full disk leaves no doubt");
        (outcome == Outcome::Refused).then_some(batch)
    })
    .await
}
