//! A broker that goes away, or stands still: events wait on disk, bounded for each dataset, and nobody else does.

use super::{Stand, config, hold};
use rustix::process::Signal;
use sluice_tests::kafka::Kafka;
use sluice_tests::{Part, Plan, Shape, finally, oracle};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn kafka_that_is_gone_makes_events_wait_on_disk_to_a_bound_and_comes_back_to_all_of_them() {
    let kafka = Kafka::start().await;
    kafka.topic("clean.events", 2, &[]).await;
    kafka.topic("clean.more", 2, &[]).await;
    let extra = config(&format!("brokers: [\"{}\"], max_bytes: 100KiB", kafka.brokers()));
    let deployment = Plan::new(Shape::ThreeProcesses).extra(&extra).start().await;
    let mut stand = Stand { kafka, deployment };
    assert_eq!(stand.send((0, "events"), 0..100, 0).await, 202);
    stand.drained().await;
    stand.kafka.kill();
    // Padding that no compressor makes smaller is not needed: frames of the log hold it as it is.
    let mut sent = 100;
    finally("events beyond the bound are refused", SOON, async || match stand
        .send((0, "events"), sent..sent + 100, 500)
        .await
    {
        503 => Ok(()),
        202 => {
            sent += 100;
            Err(format!("{sent} were taken"))
        }
        other => panic!("{other}"),
    })
    .await;
    let waiting = stand.waiting("events").await;
    assert!(waiting > Some(75_000.0), "{waiting:?}");
    let shed = stand
        .metric(Part::Normalizer, "sluice_shed_total", "reason=\"unpublished\"")
        .await;
    assert!(shed >= 1.0, "{shed}");
    // The other dataset has its own bound; its rows are stored.
    assert_eq!(stand.send((1, "more_events"), 0..100, 0).await, 202);
    oracle::drained(&stand.deployment).await;
    assert_eq!(stand.rows("more_events").await.len(), 100);
    assert_eq!(
        stand.rows("events").await.len(),
        usize::try_from(sent).expect("small")
    );
    // What waits outlives the process.
    stand.deployment.kill(Part::Normalizer);
    stand.deployment.bring_up(Part::Normalizer).await.expect("ready");
    assert_eq!(stand.send((0, "events"), [9_999_999], 0).await, 503);
    stand.kafka.bring_up().await;
    stand.drained().await;
    finally("events are taken again", SOON, async || {
        match stand.send((0, "events"), sent..sent + 10, 0).await {
            202 => Ok(()),
            status => Err(status),
        }
    })
    .await;
    stand.drained().await;
    stand.hold_both().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_that_stands_still_past_every_time_out_holds_up_no_row_and_misses_no_event() {
    let stand = Stand::start(Shape::AllInOne).await;
    assert_eq!(stand.send((0, "events"), 0..500, 0).await, 202);
    stand.drained().await;
    stand.kafka.signal(Signal::STOP);
    for part in 1..4 {
        assert_eq!(
            stand.send((0, "events"), part * 500..part * 500 + 500, 0).await,
            202
        );
        oracle::drained(&stand.deployment).await;
    }
    assert_eq!(stand.rows("events").await.len(), 2_000);
    assert!(stand.waiting("events").await > Some(0.0));
    stand.kafka.signal(Signal::CONT);
    stand.drained().await;
    let messages = stand.kafka.read("clean.events").await;
    let copies = hold(&messages, &stand.rows("events").await, "events");
    println!("{} messages, {copies} copies", messages.len());
}
