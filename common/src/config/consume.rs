//! The Kafka topics that a dataset is fed from.

use super::kafka::topic_problem;
use super::{Brokers, Config, Expiry, brokers};
use crate::ids::{Name, TenantId};
use crate::limits::{MAX_SOURCE_TOPICS, MAX_SOURCES};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest name of a consumer group that is taken; Kafka itself sets no such bound.
const MAX_GROUP_BYTES: usize = 249;

/// Topics that a dataset is fed from: a message is one event, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Consume {
    /// One or several.
    pub topics: Vec<String>,
    /// Whose events they are.
    pub tenant: TenantId,
    /// The consumer group; default: `sluice.DATASET.TENANT`.
    pub group: Option<String>,
    /// Where the group begins in a topic that it has not read yet.
    #[serde(default)]
    pub from: Beginning,
    /// The Kafka that has them; default: the one under `kafka`.
    pub kafka: Option<Brokers>,
}

/// Where a topic is read from that its group has not read yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Beginning {
    /// All that is there.
    #[default]
    Earliest,
    /// What comes from then on.
    Latest,
    /// Messages of this moment and later ones.
    At(Expiry),
}

impl TryFrom<String> for Beginning {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => Expiry::try_from(text).map(Self::At).map_err(|error| {
                let moment = error.split(" is not").next().unwrap_or_default();
                format!("{moment} is neither `earliest`, `latest` nor a moment as 2026-11-21T07:00:00Z")
            }),
        }
    }
}

impl std::fmt::Display for Beginning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Earliest => f.write_str("earliest"),
            Self::Latest => f.write_str("latest"),
            Self::At(moment) => moment.fmt(f),
        }
    }
}

impl Consume {
    /// Whether its topics are of another Kafka than ours, as far as the brokers' names tell.
    #[must_use]
    pub fn is_elsewhere(&self, config: &Config) -> bool {
        let is_ours = |broker: &String| {
            config
                .kafka
                .brokers
                .iter()
                .any(|own| own.eq_ignore_ascii_case(broker))
        };
        let kafka = self.kafka.as_ref();
        kafka.is_some_and(|kafka| !kafka.brokers.iter().any(is_ours))
    }

    /// The consumer group of these topics of a dataset.
    #[must_use]
    pub fn group(&self, dataset: &str) -> String {
        let default = || format!("sluice.{dataset}.{}", self.tenant);
        self.group.clone().unwrap_or_else(default)
    }
}

/// How sentences about the Kafka of a dataset's `consume` begin.
pub(super) fn place(dataset: &Name, nth: usize) -> String {
    format!("datasets: {dataset}: consume[{nth}].kafka")
}

/// What may be wrong with these keys, each a sentence that names its place.
pub(super) fn problems(config: &Config, found: &mut Vec<String>) {
    let mut groups: BTreeMap<String, String> = BTreeMap::new();
    let mut all = 0;
    for dataset in &config.datasets {
        for (nth, consume) in dataset.consume.iter().enumerate() {
            all += 1;
            let mut add =
                |text: String| found.push(format!("datasets: {}: consume[{nth}]: {text}", dataset.name));
            match &consume.kafka {
                None if config.kafka.brokers.is_empty() => {
                    add("it needs `kafka.brokers`, the Kafka to read from".into());
                }
                Some(kafka) if kafka.brokers.is_empty() => add("kafka.brokers: name one at least".into()),
                None | Some(_) => {}
            }
            check(consume, &mut add);
            if let Some(Brokers { brokers, tls, sasl }) = &consume.kafka {
                let way = (brokers.as_slice(), tls.as_ref(), sasl.as_ref());
                brokers::problems(&place(&dataset.name, nth), way, found);
            }
            let mut add =
                |text: String| found.push(format!("datasets: {}: consume[{nth}]: {text}", dataset.name));
            let group = consume.group(dataset.name.as_str());
            if let Some(other) = groups.insert(group.clone(), dataset.name.to_string()) {
                add(format!(
                    "the consumer group {group:?} has topics of dataset {other} already: give each its own `group`; topics \
                     of one Kafka and tenant may be listed in one"
                ));
            }
            let letters = config.dead_letters.topic.as_ref();
            if consume.is_elsewhere(config) {
                continue;
            }
            if letters.is_some_and(|topic| consume.topics.contains(topic)) {
                add("it reads the topic of dead letters: what is rejected would come back for ever".into());
            }
            if dataset
                .publish
                .as_ref()
                .is_some_and(|to| consume.topics.contains(&to.topic))
            {
                add(
                    "it reads the topic that the dataset is published to: its events would go round for ever"
                        .into(),
                );
            }
        }
    }
    if all > MAX_SOURCES {
        found.push(format!(
            "datasets: there are {all} `consume` in all, and there may be {MAX_SOURCES}: list topics of one tenant and \
             dataset in one"
        ));
    }
}

fn check(consume: &Consume, add: &mut impl FnMut(String)) {
    if consume.topics.is_empty() || consume.topics.len() > MAX_SOURCE_TOPICS {
        add(format!("topics: name 1 to {MAX_SOURCE_TOPICS}"));
    }
    consume
        .topics
        .iter()
        .filter_map(|topic| topic_problem(topic))
        .for_each(&mut *add);
    if let Some(group) = &consume.group
        && (group.is_empty() || group.len() > MAX_GROUP_BYTES || group.contains(char::is_control))
    {
        add(format!("group: 1 to {MAX_GROUP_BYTES} characters"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Loaded;
    use super::*;
    use std::path::Path;

    fn told(consume: &str) -> String {
        let yaml = format!(
            "kafka: {{brokers: [\"a:9092\"]}}\ndead_letters: {{topic: dead}}\ndatasets: [{{name: d, fields: [{{name: id, type: string}}], \
             publish: {{topic: clean}}, consume: {consume}}}]"
        );
        let read = Loaded::parse(&yaml, Path::new("x"), Path::new("/"));
        read.map_or_else(|error| error.to_string(), |_| "in force".into())
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_place() {
        for fine in [
            "[{topics: [a, b.c], tenant: acme}]",
            "[{topics: [a], tenant: acme, from: latest}, {topics: [a], tenant: other, from: earliest}]",
            "[{topics: [a], tenant: acme, group: mine, from: \"2026-11-21T07:00:00Z\"}]",
            "[{topics: [a], tenant: acme}, {topics: [a], tenant: acme, group: b, kafka: {brokers: [\"b:9092\"], tls: {}}}]",
            // Of another Kafka it is another topic.
            "[{topics: [clean, dead], tenant: acme, kafka: {brokers: [\"b:9092\"]}}]",
        ] {
            assert_eq!(told(fine), "in force");
        }
        for (consume, wanted) in [
            ("[{topics: [], tenant: acme}]", "topics: name 1 to"),
            ("[{topics: [\"a b\"], tenant: acme}]", "topic \"a b\" must be"),
            ("[{topics: [a]}]", "tenant"),
            (
                "[{topics: [a], tenant: acme, from: yesterday}]",
                "is neither `earliest`, `latest`",
            ),
            ("[{topics: [a], tenant: acme, group: \"\"}]", "group: 1 to"),
            ("[{topics: [clean], tenant: acme}]", "would go round for ever"),
            ("[{topics: [dead], tenant: acme}]", "would come back for ever"),
            (
                "[{topics: [clean], tenant: acme, kafka: {brokers: [\"b:9092\", \"a:9092\"]}}]",
                "would go round for ever",
            ),
            (
                "[{topics: [a], tenant: acme, kafka: {brokers: []}}]",
                "kafka.brokers: name one at least",
            ),
            ("[{topics: [a], tenant: acme, kafka: {}}]", "brokers"),
            (
                "[{topics: [a], tenant: acme, kafka: {brokers: [b]}}]",
                "consume[0].kafka.brokers: \"b\" must be host:port",
            ),
            (
                "[{topics: [a], tenant: acme, kafka: {brokers: [\"b:1\"], sasl: {mechanism: plain, username: u}}}]",
                "consume[0].kafka.sasl: mechanism plain needs `password`",
            ),
            (
                "[{topics: [a], tenant: acme, kafka: {brokers: [\"b:1\"], sasl: {mechanism: plain, username: u, \
                 password: \"file:not/there\"}}}]",
                "consume[0].kafka.sasl.password: cannot read /not/there",
            ),
            (
                "[{topics: [a], tenant: acme, kafka: {brokers: [\"b:1\"], sasl: {mechanism: oauthbearer, token_url: \
                 \"http://x/\", client_id: c, client_secret: s}}}]",
                "consume[0].kafka.sasl.token_url: the client's secret",
            ),
            (
                "[{topics: [a], tenant: acme}, {topics: [b], tenant: acme}]",
                "\"sluice.d.acme\" has topics of dataset d already",
            ),
        ] {
            let told = told(consume);
            assert!(told.contains(wanted), "{consume}: {told}");
        }
        let yaml =
            "datasets: [{name: d, fields: [{name: id, type: string}], consume: [{topics: [a], tenant: t}]}]";
        let error = Loaded::parse(yaml, Path::new("x"), Path::new("/")).expect_err("no brokers");
        assert!(error.to_string().contains("it needs `kafka.brokers`"), "{error}");
    }

    #[test]
    fn a_beginning_reads_back_as_it_is_written() {
        for text in ["earliest", "latest", "2026-11-21T07:00:00Z"] {
            let read = Beginning::try_from(text.to_owned()).expect("known");
            assert_eq!(read.to_string(), text);
        }
    }
}
