//! Are the brokers there, and the topics that the config names.

use super::finding::Findings;
use sluice_common::config::Loaded;
use sluice_kafka::{Target, partitions};
use sluice_normalizer::log::kafka::{self, LogClients};
use std::time::Duration;

/// What the brokers have for one question.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for every topic of the config; nothing where it names none.
pub async fn look(loaded: &Loaded, findings: &mut Findings) {
    look_at_log(loaded, findings);
    for (target, uses) in uses(loaded) {
        look_at(target, &uses, findings).await;
    }
}

async fn look_at(target: Target, uses: &[Use], findings: &mut Findings) {
    let elsewhere = match uses.iter().any(|one| one.is_elsewhere) {
        true => format!(" at {}", target.kafka.brokers.join(",")),
        false => String::new(),
    };
    let topics: Vec<String> = uses.iter().map(|one| one.topic.clone()).collect();
    let asked = tokio::task::spawn_blocking(move || partitions(&target, &topics, PATIENCE)).await;
    let told = match asked {
        Ok(Ok(told)) => told,
        Ok(Err(reason)) => {
            let what = format!("kafka{elsewhere}");
            return findings.unusable(&what, format!("no broker answers: {reason}"));
        }
        Err(error) => return findings.unusable("kafka", error.to_string()),
    };
    for (Use { topic, used, .. }, told) in uses.iter().zip(told) {
        let what = format!("topic {topic}{elsewhere}");
        match told {
            Ok(partitions) => findings.good(&what, format!("{used}; {partitions} partitions")),
            Err(reason) => findings.unusable(
                &what,
                format!("{used}: {reason}; make the topic, or grant access to it"),
            ),
        }
    }
}

/// The topic that is the log, where one is.
fn look_at_log(loaded: &Loaded, findings: &mut Findings) {
    let Some(clients) = LogClients::of(loaded) else {
        return;
    };
    let (what, topic) = ("log", &loaded.config.log.topic);
    match tokio::task::block_in_place(|| kafka::look(&clients)) {
        Ok(Some(log)) => findings.good(what, format!("topic {topic}: log {log}")),
        Ok(None) => findings.good(
            what,
            format!("topic {topic}, or one beside it, is made by the first start"),
        ),
        Err(error) => findings.unusable(what, error.to_string()),
    }
}

/// A topic, and what it is for.
struct Use {
    topic: String,
    used: String,
    /// Its brokers are not those under `kafka`.
    is_elsewhere: bool,
}

/// Every topic, by where it is.
fn uses(loaded: &Loaded) -> Vec<(Target, Vec<Use>)> {
    let mut uses: Vec<(Target, Vec<Use>)> = Vec::new();
    let mut add = |target: Option<Target>, topic: &str, used: String, is_elsewhere: bool| {
        let one = Use {
            topic: topic.to_owned(),
            used,
            is_elsewhere,
        };
        let Some(target) = target else { return };
        match uses.iter_mut().find(|(known, _)| *known == target) {
            Some((_, uses)) => uses.push(one),
            None => uses.push((target, vec![one])),
        }
    };
    for dataset in &loaded.config.datasets {
        let name = &dataset.name;
        for consume in &dataset.consume {
            for topic in &consume.topics {
                let used = format!("dataset {name} is fed from it");
                let target = Target::of_source(loaded, consume);
                add(target, topic, used, consume.kafka.is_some());
            }
        }
        if let Some(publish) = &dataset.publish {
            let used = format!("dataset {name} is published to it");
            add(Target::of(loaded), &publish.topic, used, false);
        }
    }
    if let Some(topic) = &loaded.config.dead_letters.topic {
        add(
            Target::of(loaded),
            topic,
            "dead letters are published to it".into(),
            false,
        );
    }
    uses
}
