//! Are the brokers there, and the topics that the config names.

use super::finding::Findings;
use sluice_common::config::{Loaded, LogKind};
use sluice_kafka::{Seen, Target, look};
use sluice_normalizer::log::kafka::{self, LogClients};
use std::time::Duration;

/// What the brokers have for one question.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for every topic of the config; nothing where it names none.
pub async fn find(loaded: &Loaded, findings: &mut Findings) {
    look_at_log(loaded, findings);
    let mut seen = Vec::new();
    for (target, uses) in uses(loaded) {
        seen.extend(look_at(target, uses, findings).await);
    }
    // Addresses do not tell that two are of one cluster.
    let written = seen.iter().filter(|(_, one, _)| one.role != Role::Fed);
    for (_, to, id) in written {
        for (what, _, _) in seen
            .iter()
            .filter(|(_, from, other)| from.role == Role::Fed && other == id)
        {
            let told = format!(
                "it is the same topic of which this is true: {}; its events would go round for ever",
                to.used
            );
            findings.unusable(what, told);
        }
    }
}

/// Those that are there and have an id: how each is called, and the id.
async fn look_at(target: Target, uses: Vec<Use>, findings: &mut Findings) -> Vec<(String, Use, u128)> {
    let elsewhere = match uses.iter().any(|one| one.is_elsewhere) {
        true => format!(" at {}", target.kafka.brokers.join(",")),
        false => String::new(),
    };
    let topics: Vec<String> = uses.iter().map(|one| one.topic.clone()).collect();
    let asked = tokio::task::spawn_blocking(move || look(&target, &topics, PATIENCE)).await;
    let told = match asked {
        Ok(Ok(told)) => told,
        Ok(Err(reason)) => {
            findings.unusable(
                &format!("kafka{elsewhere}"),
                format!("no broker answers: {reason}"),
            );
            return Vec::new();
        }
        Err(error) => {
            findings.unusable("kafka", error.to_string());
            return Vec::new();
        }
    };
    let mut seen = Vec::new();
    for (one, told) in uses.into_iter().zip(told) {
        let (what, used) = (format!("topic {}{elsewhere}", one.topic), &one.used);
        match told {
            // Told above; one that is not there yet is made.
            _ if one.role == Role::Log => {}
            Ok(Seen { partitions, .. }) => findings.good(&what, format!("{used}; {partitions} partitions")),
            Err(ref reason) => findings.unusable(
                &what,
                format!("{used}: {reason}; make the topic, or grant access to it"),
            ),
        }
        seen.extend(told.ok().and_then(|seen| seen.id).map(|id| (what, one, id)));
    }
    seen
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

/// What is done with a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Fed,
    Written,
    Log,
}

/// A topic, and what it is for.
struct Use {
    topic: String,
    role: Role,
    used: String,
    /// Its brokers are not those under `kafka`.
    is_elsewhere: bool,
}

/// Every topic, by where it is.
fn uses(loaded: &Loaded) -> Vec<(Target, Vec<Use>)> {
    let mut uses: Vec<(Target, Vec<Use>)> = Vec::new();
    let mut add = |target: Option<Target>, one: Use| {
        let Some(target) = target else { return };
        match uses.iter_mut().find(|(known, _)| *known == target) {
            Some((_, uses)) => uses.push(one),
            None => uses.push((target, vec![one])),
        }
    };
    let ours = |topic: &str, role: Role, used: String| Use {
        topic: topic.to_owned(),
        role,
        used,
        is_elsewhere: false,
    };
    let config = &loaded.config;
    for dataset in &config.datasets {
        let name = &dataset.name;
        for consume in &dataset.consume {
            for topic in &consume.topics {
                let one = Use {
                    is_elsewhere: consume.kafka.is_some(),
                    ..ours(topic, Role::Fed, format!("dataset {name} is fed from it"))
                };
                add(Target::of_source(loaded, consume), one);
            }
        }
        if let Some(publish) = &dataset.publish {
            let used = format!("dataset {name} is published to it");
            add(Target::of(loaded), ours(&publish.topic, Role::Written, used));
        }
    }
    if let Some(topic) = &config.dead_letters.topic {
        let used = "dead letters are published to it".to_owned();
        add(Target::of(loaded), ours(topic, Role::Written, used));
    }
    if config.log.kind == LogKind::Kafka {
        let used = "it is the log".to_owned();
        add(Target::of(loaded), ours(&config.log.topic, Role::Log, used));
    }
    uses
}
