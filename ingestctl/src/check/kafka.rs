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
    let uses = uses(loaded);
    let Some(target) = Target::of(loaded).filter(|_| !uses.is_empty()) else {
        return;
    };
    let topics: Vec<String> = uses.iter().map(|(topic, _)| topic.clone()).collect();
    let asked = tokio::task::spawn_blocking(move || partitions(&target, &topics, PATIENCE)).await;
    let told = match asked {
        Ok(Ok(told)) => told,
        Ok(Err(reason)) => return findings.unusable("kafka", format!("no broker answers: {reason}")),
        Err(error) => return findings.unusable("kafka", error.to_string()),
    };
    for ((topic, used), told) in uses.iter().zip(told) {
        let what = format!("topic {topic}");
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

/// Topics, each with what it is for.
fn uses(loaded: &Loaded) -> Vec<(String, String)> {
    let mut uses = Vec::new();
    for dataset in &loaded.config.datasets {
        let name = &dataset.name;
        for topic in dataset.consume.iter().flat_map(|consume| &consume.topics) {
            uses.push((topic.clone(), format!("dataset {name} is fed from it")));
        }
        if let Some(publish) = &dataset.publish {
            uses.push((
                publish.topic.clone(),
                format!("dataset {name} is published to it"),
            ));
        }
    }
    let letters = loaded.config.dead_letters.topic.iter();
    uses.extend(letters.map(|topic| (topic.clone(), "dead letters are published to it".into())));
    uses
}
