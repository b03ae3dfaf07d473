//! What is in a topic, where nothing goes wrong; and what is told of a topic that takes nothing.

use super::{Stand, hold, source_of};
use sluice_tests::{Part, Shape, finally};
use std::time::Duration;

/// By Kafka's own consumer, which is Java's.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_has_every_stored_event_once_in_log_order_with_its_key_and_provenance() {
    let stand = Stand::start(Shape::ThreeProcesses).await;
    for tenant in 0..3 {
        for part in 0..4 {
            let numbers = part * 500..part * 500 + 700;
            assert_eq!(stand.send((tenant, "events"), numbers, 10).await, 202);
        }
        assert_eq!(stand.send((tenant, "more_events"), 0..300, 0).await, 202);
        assert_eq!(stand.send((tenant, "more_events"), 0..300, 0).await, 202);
    }
    stand.drained().await;
    for (topic, dataset, expected) in [
        ("clean.events", "events", 6_600),
        ("clean.more", "more_events", 900),
    ] {
        let rows = stand.rows(dataset).await;
        assert_eq!(rows.len(), expected, "repeats are dropped");
        let messages = stand.kafka.read(topic).await;
        assert_eq!(hold(&messages, &rows, dataset), 0, "no trouble, no copies");
        for pair in messages.windows(2) {
            let later =
                pair[0].partition != pair[1].partition || source_of(&pair[0]).2 < source_of(&pair[1]).2;
            assert!(later, "{pair:?}");
        }
    }
    let count = stand
        .metric(Part::Normalizer, "sluice_events_total", "outcome=\"published\"")
        .await;
    assert!((count - 7_500.0).abs() < 0.5, "{count}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_without_a_topic_is_told_and_holds_up_nobody_and_once_it_is_made_all_is_there() {
    let kafka = sluice_tests::kafka::Kafka::start().await;
    kafka.topic("clean.more", 1, &[]).await;
    let deployment = sluice_tests::Plan::new(Shape::AllInOne)
        .extra(&super::plain(&kafka))
        .start()
        .await;
    let stand = Stand { kafka, deployment };
    for part in 0..5 {
        assert_eq!(
            stand.send((0, "events"), part * 100..part * 100 + 100, 0).await,
            202
        );
        assert_eq!(
            stand
                .send((1, "more_events"), part * 100..part * 100 + 100, 0)
                .await,
            202
        );
    }
    sluice_tests::oracle::drained(&stand.deployment).await;
    finally(
        "the topic that is there has its events",
        super::CAUGHT_UP,
        async || match stand.waiting("more_events").await {
            Some(0.0) => Ok(()),
            bytes => Err(format!("{bytes:?}")),
        },
    )
    .await;
    assert_eq!(
        hold(
            &stand.kafka.read("clean.more").await,
            &stand.rows("more_events").await,
            "more_events"
        ),
        0
    );
    assert!(stand.waiting("events").await > Some(0.0));
    finally("an alarm", Duration::from_secs(30), async || {
        let alarms = stand
            .metric(Part::Up, "sluice_alarms_total", "reason=\"topic\"")
            .await;
        if alarms > 0.0 { Ok(()) } else { Err(alarms) }
    })
    .await;
    let told = std::fs::read_to_string(stand.deployment.log_file(Part::Up)).expect("a log");
    assert!(
        told.contains("events wait for their topic") && told.contains("clean.events"),
        "{told}"
    );
    stand.kafka.topic("clean.events", 2, &[]).await;
    stand.drained().await;
    assert_eq!(stand.rows("events").await.len(), 500);
    hold(
        &stand.kafka.read("clean.events").await,
        &stand.rows("events").await,
        "events",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_is_sent_all_but_events_larger_than_a_message_may_be_which_are_counted() {
    let kafka = sluice_tests::kafka::Kafka::start().await;
    kafka.topic("clean.events", 1, &["max.message.bytes=20000"]).await;
    let extra = super::config(&format!(
        "brokers: [\"{}\"], max_message_bytes: 20000",
        kafka.brokers()
    ));
    let deployment = sluice_tests::Plan::new(Shape::AllInOne)
        .extra(&extra)
        .start()
        .await;
    let stand = Stand { kafka, deployment };
    assert_eq!(stand.send((0, "events"), 0..50, 0).await, 202);
    assert_eq!(stand.send((0, "events"), [50, 51], 30_000).await, 202);
    assert_eq!(stand.send((0, "events"), 52..100, 0).await, 202);
    stand.drained().await;
    let mut rows = stand.rows("events").await;
    assert_eq!(rows.len(), 100);
    rows.retain(|_, row| row["event_id"] != "50" && row["event_id"] != "51");
    assert_eq!(hold(&stand.kafka.read("clean.events").await, &rows, "events"), 0);
    let large = stand
        .metric(Part::Up, "sluice_events_total", "outcome=\"too_large\"")
        .await;
    assert!((large - 2.0).abs() < 0.5, "{large}");
}
