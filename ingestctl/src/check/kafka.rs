//! Are the brokers there, and the topics that the config names.

use super::finding::Findings;
use sluice_common::config::Loaded;
use sluice_kafka::{Target, partitions};
use std::time::Duration;

/// What the brokers have for one question.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for every topic of the config; nothing where it names none.
pub async fn look(loaded: &Loaded, findings: &mut Findings) {
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
