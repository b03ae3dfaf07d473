//! A dataset that is fed from topics of one name: of two Kafkas, and made anew. Each message is one row, though nothing
//! but its topic tells it from another.

use super::checked;
use sluice_tests::kafka::{Kafka, USER};
use sluice_tests::{Deployment, Part, Plan, Shape, eventually, finally};
use std::fmt::Write as _;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// Messages that others are equal to: in a dataset without a key only where each lies tells them apart.
fn lines(count: u64) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|n| (n.to_string(), format!("{{\"n\": {}}}", n % 10)))
}

/// Fed from `lines` of our own Kafka, and of these others, each with its group.
fn consume(others: &[(&str, String)]) -> String {
    let mut consume = "{topics: [lines], tenant: t0, group: readers}".to_owned();
    for (group, kafka) in others {
        let _ = write!(
            consume,
            ", {{topics: [lines], tenant: t0, group: {group}, kafka: {{{kafka}}}}}"
        );
    }
    format!("consume: [{consume}]")
}

/// A dataset without a key that is.
fn config(ours: &Kafka, others: &[(&str, String)]) -> String {
    format!(
        "kafka: {{brokers: [\"{}\"]}}\ndatasets:\n- {{name: lines, fields: [{{name: n, type: uint32, required: true}}], \
         batch: {{max_age: 200ms}}, {}}}\n",
        ours.brokers(),
        consume(others)
    )
}

fn told(deployment: &Deployment) -> String {
    std::fs::read_to_string(deployment.log_file(Part::Up)).expect("a log")
}

async fn stored(deployment: &Deployment) -> Result<u64, String> {
    let told = deployment
        .clickhouse()
        .query("SELECT count() FROM telemetry.lines")
        .await;
    let told = told.map_err(|error| error.to_string())?;
    told.trim().parse().map_err(|_| told)
}

async fn rows(deployment: &Deployment, expected: u64) {
    finally(&format!("{expected} rows"), SOON, async || {
        match stored(deployment).await {
            Ok(stored) if stored == expected => Ok(()),
            other => Err(format!("{other:?}\n{}", deployment.last_words())),
        }
    })
    .await;
}

/// Waits until a group has so many messages behind it.
async fn committed(kafka: &Kafka, group: &str, messages: u64) {
    eventually("all is committed", SOON, async || {
        let offsets = kafka.offsets(group).await;
        (offsets.values().sum::<u64>() == messages).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_topics_of_one_name_in_two_clusters_feed_a_dataset_each_message_once() {
    let (ours, mut theirs) = tokio::join!(Kafka::start(), Kafka::start());
    for kafka in [&ours, &theirs] {
        kafka.topic("lines", 2, &[]).await;
        kafka.write("lines", lines(100)).await;
    }
    let (ca, (user, password)) = (theirs.file("ca.crt").display().to_string(), USER);
    let way = |password: &str| {
        format!(
            "brokers: [\"{}\"], tls: {{ca: {ca}}}, sasl: {{mechanism: scram-sha-512, username: {user}, password: {password}}}",
            theirs.sasl_brokers()
        )
    };
    let extra = config(&ours, &[("theirs", way("another"))]);
    let mut deployment = Plan::new(Shape::AllInOne).extra(&extra).start().await;
    // Who we are there is not who we are here: a wrong password holds up no other source.
    rows(&deployment, 100).await;
    let extra = config(&ours, &[("theirs", way(password))]);
    deployment.reload(&extra).await;
    rows(&deployment, 200).await;
    committed(&theirs, "theirs", 100).await;
    assert!(
        ours.offsets("theirs").await.is_empty(),
        "each group is where its topics are"
    );
    deployment.kill(Part::Up);
    for kafka in [&ours, &theirs] {
        kafka.write("lines", lines(50)).await;
    }
    deployment.bring_up(Part::Up).await.expect("ready");
    rows(&deployment, 300).await;
    // One that is away holds up the other one's messages as little.
    theirs.kill();
    ours.write("lines", lines(10)).await;
    rows(&deployment, 310).await;
    theirs.bring_up().await;
    theirs.write("lines", lines(10)).await;
    rows(&deployment, 320).await;
    assert!(!told(&deployment).contains(password), "a password is told");
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_topics_that_are_made_anew_while_nobody_reads_repeat_offsets_and_no_message_is_taken_for_another()
 {
    let kafka = Kafka::start().await;
    kafka.topic("lines", 2, &[]).await;
    kafka.write("lines", lines(100)).await;
    let extra = config(&kafka, &[]);
    let mut deployment = Plan::new(Shape::AllInOne).extra(&extra).start().await;
    rows(&deployment, 100).await;
    assert!(deployment.terminate(Part::Up), "it ends with 0");
    kafka.delete_topic("lines").await;
    kafka.topic("lines", 2, &[]).await;
    // More than before: the group's offsets, did they count, would be in the topic.
    kafka.write("lines", lines(150)).await;
    deployment.bring_up(Part::Up).await.expect("ready");
    rows(&deployment, 250).await;
}

/// Brokers forget the offsets with the topic; where the reader commits them once more they are none of the new one's,
/// though they would be in it.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_topics_that_are_made_anew_under_a_reader_are_read_whole_or_not_at_all() {
    made_anew_under_a_reader(100).await;
}

/// Where the reader stands at 0 it goes on in the new one as if nothing had happened.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_topics_that_are_made_anew_while_they_are_empty_are_read_whole_or_not_at_all() {
    made_anew_under_a_reader(0).await;
}

/// Nobody tells the reader of a topic of so many messages.
async fn made_anew_under_a_reader(before: u64) {
    let kafka = Kafka::start().await;
    kafka.topic("lines", 2, &[]).await;
    kafka.write("lines", lines(before)).await;
    let extra = config(&kafka, &[]);
    let deployment = Plan::new(Shape::AllInOne).extra(&extra).start().await;
    rows(&deployment, before).await;
    eventually("the group has begun", SOON, async || {
        (kafka.offsets("readers").await.len() == 2).then_some(())
    })
    .await;
    kafka.delete_topic("lines").await;
    kafka.topic("lines", 2, &[]).await;
    kafka.write("lines", lines(150)).await;
    let stops = finally("it is read whole, or told", SOON, async || {
        if told(&deployment).contains("the group's offset is of another topic of this name") {
            return Ok(true);
        }
        match stored(&deployment).await {
            Ok(stored) if stored == before + 150 => Ok(false),
            other => Err(format!("{other:?}\n{}", deployment.last_words())),
        }
    })
    .await;
    if stops {
        assert_eq!(stored(&deployment).await, Ok(before), "not at all");
    }
    // As the message says; and where all of it was read already, it is known.
    deployment
        .reload(&extra.replace(&consume(&[]), "consume: []"))
        .await;
    eventually("the group is empty", SOON, async || {
        told(&deployment)
            .contains("left its consumer group")
            .then_some(())
    })
    .await;
    kafka.rewind("readers", "lines").await;
    deployment.reload(&extra).await;
    kafka.write("lines", lines(10)).await;
    rows(&deployment, before + 160).await;
    committed(&kafka, "readers", 160).await;
    rows(&deployment, before + 160).await;
}

/// What `ingestctl check` says of a config, by what it is about.
fn findings(extra: &str) -> Vec<(String, String)> {
    let (_, told) = checked(extra);
    let text = |one: &serde_json::Value, key: &str| one[key].as_str().expect("text").to_owned();
    let finding = |one| {
        (
            text(one, "what"),
            format!("{}: {}", text(one, "level"), text(one, "message")),
        )
    };
    told["findings"]
        .as_array()
        .expect("a list")
        .iter()
        .map(finding)
        .collect()
}

/// All that is said of one thing.
fn of(findings: &[(String, String)], what: &str) -> Vec<String> {
    let its = findings.iter().filter(|(of, _)| of == what);
    its.map(|(_, told)| told.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_topics_elsewhere_are_looked_at_by_check() {
    let (ours, theirs) = tokio::join!(Kafka::start(), Kafka::start());
    ours.topic("lines", 2, &[]).await;
    theirs.topic("lines", 3, &[]).await;
    let with = |kafka: String| config(&ours, &[("theirs", kafka)]);
    let fed = "good: dataset lines is fed from it";
    let found = findings(&with(format!("brokers: [\"{}\"]", theirs.brokers())));
    assert_eq!(of(&found, "topic lines"), [format!("{fed}; 2 partitions")]);
    let elsewhere = format!("topic lines at {}", theirs.brokers());
    assert_eq!(of(&found, &elsewhere), [format!("{fed}; 3 partitions")]);
    let found = findings(&with("brokers: [\"127.0.0.1:1\"]".to_owned()));
    assert_eq!(of(&found, "topic lines").len(), 1);
    assert!(of(&found, "kafka at 127.0.0.1:1")[0].starts_with("unusable: no broker answers"));
    // Another listener of our own: addresses do not say so, the topic's id does.
    let (listener, ca) = (ours.open_brokers(), ours.file("ca.crt").display().to_string());
    ours.topic("clean", 1, &[]).await;
    let round = format!(
        "kafka: {{brokers: [\"{}\"]}}\ndatasets:\n- {{name: lines, fields: [{{name: n, type: uint32, required: true}}], \
         publish: {{topic: clean}}, consume: [{{topics: [clean], tenant: t0, kafka: {{brokers: [\"{listener}\"], tls: {{ca: {ca}}}}}}}]}}\n",
        ours.brokers()
    );
    let found = of(&findings(&round), &format!("topic clean at {listener}"));
    assert!(
        found[1].starts_with("unusable: it is the same topic"),
        "{found:?}"
    );
}
