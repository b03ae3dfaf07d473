//! How brokers are reached: TLS, certificates, passwords; changed while everything runs.

use super::{Stand, config, hold};
use sluice_tests::identity::{CLIENT, SCOPE};
use sluice_tests::kafka::{Kafka, USER};
use sluice_tests::{Part, Plan, Shape, eventually, finally, oracle};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn kafka_is_reached_with_certificates_and_passwords_and_a_wrong_one_is_told() {
    let kafka = Kafka::start().await;
    kafka.topic("clean.events", 1, &[]).await;
    let ca = kafka.file("ca.crt").display().to_string();
    let (user, password) = USER;
    let sasl = |mechanism: &str, password: &str| {
        config(&format!(
            "brokers: [\"{}\"], tls: {{ca: {ca}}}, sasl: {{mechanism: {mechanism}, username: {user}, password: {password}}}",
            kafka.sasl_brokers()
        ))
    };
    let mutual = config(&format!(
        "brokers: [\"{}\"], tls: {{ca: {ca}, cert: {}, key: {}}}, compression: zstd",
        kafka.tls_brokers(),
        kafka.file("client.crt").display(),
        kafka.file("client.key").display()
    ));
    let open = config(&format!(
        "brokers: [\"{}\"], tls: {{ca: {ca}}}",
        kafka.open_brokers()
    ));
    let bare = config(&format!(
        "brokers: [\"{}\"], sasl: {{mechanism: scram-sha-256, username: {user}, password: {password}}}",
        kafka.bare_brokers()
    ));
    let wrong = sasl("scram-sha-512", "another");
    let ways = [
        sasl("scram-sha-512", password),
        sasl("scram-sha-256", password),
        sasl("plain", password),
        mutual,
        open,
        bare,
    ];
    let deployment = Plan::new(Shape::AllInOne).extra(&wrong).start().await;
    let stand = Stand { kafka, deployment };
    assert_eq!(stand.send((0, "events"), 0..100, 0).await, 202);
    oracle::drained(&stand.deployment).await;
    finally(
        "the wrong password is told",
        Duration::from_secs(30),
        async || {
            let told = std::fs::read_to_string(stand.deployment.log_file(Part::Up)).expect("a log");
            assert!(
                !told.contains(password) && !told.contains("another"),
                "a password is told: {told}"
            );
            if told.contains("uthentication") {
                Ok(())
            } else {
                Err(told)
            }
        },
    )
    .await;
    for (round, way) in (1..).zip(&ways) {
        stand.deployment.reload(way).await;
        assert_eq!(
            stand.send((0, "events"), round * 100..round * 100 + 100, 0).await,
            202
        );
        stand.drained().await;
        let rows = stand.rows("events").await;
        assert_eq!(rows.len() as u64, (round + 1) * 100);
        hold(&stand.kafka.read("clean.events").await, &rows, "events");
    }
}

/// Of each so many seconds.
const TOKEN_S: u64 = 6;
const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn kafka_is_reached_with_tokens_that_are_fetched_and_renewed() {
    let kafka = Kafka::start().await;
    kafka.topic("clean.events", 1, &[]).await;
    let identity = kafka.identity(TOKEN_S);
    let (brokers, url, (id, _)) = (kafka.sasl_brokers(), identity.url(), CLIENT);
    let ca = kafka.file("ca.crt").display().to_string();
    let keys = |secret: &str| {
        format!(
            "brokers: [\"{brokers}\"], tls: {{ca: {ca}}}, sasl: {{mechanism: oauthbearer, token_url: \"{url}\", \
             client_id: {id}, client_secret: {secret}, scope: {SCOPE}, token_ca: {ca}}}"
        )
    };
    let log = "log: {kind: kafka, topic: events-log, partitions: 2}\n";
    let with = |secret: &str, log: &str| config(&keys(secret)) + log;
    // Whoever is not given a token gets nothing to the topic, and nothing is held up by it.
    let deployment = Plan::new(Shape::AllInOne)
        .extra(&with("another", ""))
        .start()
        .await;
    let mut stand = Stand { kafka, deployment };
    assert_eq!(stand.send((0, "events"), 0..100, 0).await, 202);
    oracle::drained(&stand.deployment).await;
    eventually("no token is given", SOON, async || {
        (identity.refused() > 0).then_some(())
    })
    .await;
    assert_eq!(identity.given(), 0);
    stand.deployment.reload(&with(CLIENT.1, "")).await;
    stand.drained().await;
    hold(
        &stand.kafka.read("clean.events").await,
        &stand.rows("events").await,
        "events",
    );

    // Everything that a log needs: made, joined, appended to and read, and reached again with a later token.
    let deployment = Plan::new(Shape::AllInOne)
        .extra(&with(CLIENT.1, log))
        .start()
        .await;
    stand.deployment = deployment;
    for round in 0..2_u64 {
        eventually("events are taken", SOON, async || {
            let sent = stand.send((0, "events"), round * 100..round * 100 + 100, 0).await;
            (sent == 202).then_some(())
        })
        .await;
        oracle::drained(&stand.deployment).await;
        assert_eq!(stand.rows("events").await.len() as u64, (round + 1) * 100);
        let given = identity.given();
        eventually("tokens are renewed", SOON, async || {
            (identity.given() > given + 3).then_some(())
        })
        .await;
        stand.kafka.kill();
        stand.kafka.bring_up().await;
    }
}
