//! The Kafka that is ours: which topic takes what of a dataset, and the log.

use super::brokers::{self, KafkaTls, Sasl};
use super::{ByteSize, Config, Dataset, Loaded};
use crate::ids::Name;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// In a key, beside the dataset's fields.
pub const TENANT: &str = "tenant";
/// Longest name of a topic: Kafka's own limit.
const MAX_TOPIC_BYTES: usize = 249;
/// Smallest message that a broker's limit leaves room for; under it hardly an event would go out.
const LEAST_MESSAGE_BYTES: u64 = 1_000;
/// Partitions of a log: each has a share of every normalizer's memory.
const MAX_PARTITIONS: u16 = 256;
/// Of the names of topics beside the log's.
const MAX_SUFFIX_BYTES: usize = 8;
/// What librdkafka takes for `message.max.bytes` at most.
const MOST_MESSAGE_BYTES: u64 = 1_000_000_000;

/// The Kafka that datasets with `publish`, and dead letters, are published to, and that those with `consume` are fed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Kafka {
    /// Brokers to begin with, `host:port`.
    pub brokers: Vec<String>,
    /// TLS is spoken; `tls: {}` trusts whom this machine trusts.
    pub tls: Option<KafkaTls>,
    /// Who we are.
    pub sasl: Option<Sasl>,
    /// Of batches.
    pub compression: Compression,
    /// Largest message, key and headers included; at most `max.message.bytes` of the topics. A larger event is not
    /// published, and counted.
    pub max_message_bytes: ByteSize,
    /// Where events wait for a topic that is in trouble, relative to the data directory.
    pub dir: PathBuf,
    /// What each dataset may have waiting there; over it its requests get 503.
    pub max_bytes: ByteSize,
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            tls: None,
            sasl: None,
            compression: Compression::default(),
            max_message_bytes: ByteSize(1_000_000),
            dir: "outbox".into(),
            max_bytes: ByteSize::gib(1),
        }
    }
}

/// Of batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    None,
    Gzip,
    Snappy,
    #[default]
    Lz4,
    Zstd,
}

impl Compression {
    /// Kafka's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// The topic that takes a dataset's events once repeats are dropped, one JSON object each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// It must be there: Sluice makes none.
    pub topic: String,
    /// What a message's key is: fields of one value each, or `tenant`. Default: `dedup.key`. Empty: none.
    pub key: Option<Vec<Name>>,
}

impl Dataset {
    /// Fields of its messages' keys.
    #[must_use]
    pub fn message_key(&self, publish: &Publish) -> Vec<Name> {
        let dedup = || self.dedup.as_ref().map(|dedup| dedup.key.clone());
        publish.key.clone().or_else(dedup).unwrap_or_default()
    }
}

impl Loaded {
    /// Where events wait for a topic in trouble.
    #[must_use]
    pub fn outbox_dir(&self) -> PathBuf {
        self.data_dir.join(&self.config.kafka.dir)
    }
}

/// What may be wrong with these keys, each a sentence that names its place.
pub(super) fn problems(config: &Config, found: &mut Vec<String>) {
    let kafka = &config.kafka;
    brokers::problems(
        "kafka",
        (&kafka.brokers, kafka.tls.as_ref(), kafka.sasl.as_ref()),
        found,
    );
    if !(LEAST_MESSAGE_BYTES..=MOST_MESSAGE_BYTES).contains(&kafka.max_message_bytes.0) {
        found.push(format!(
            "kafka.max_message_bytes must be {LEAST_MESSAGE_BYTES} to {MOST_MESSAGE_BYTES}"
        ));
    }
    let others = [
        ("log.dir", &config.log.dir),
        ("dedup.dir", &config.dedup.dir),
        ("parked.dir", &config.parked.dir),
    ];
    for (key, dir) in others {
        if *dir == kafka.dir {
            found.push(format!("kafka.dir is {key} as well: each keeps files of its own"));
        }
    }
    for dataset in &config.datasets {
        let Some(publish) = &dataset.publish else { continue };
        let mut add = |text: String| found.push(format!("datasets: {}: publish: {text}", dataset.name));
        if kafka.brokers.is_empty() {
            add("it needs `kafka.brokers`, the Kafka to publish to".into());
        }
        check(dataset, publish, &mut add);
    }
    if let Some(topic) = &config.dead_letters.topic {
        letters_problems(config, topic, found);
    }
}

/// What may be wrong with a log that is a topic.
pub(super) fn log_problems(config: &Config, found: &mut Vec<String>) {
    let log = &config.log;
    let mut add = |key: &str, text: String| found.push(format!("log.{key}: {text}"));
    if config.kafka.brokers.is_empty() {
        add(
            "kind",
            "`kafka` needs `kafka.brokers`, the Kafka that holds the log".into(),
        );
    }
    if let Some(problem) = topic_problem(&log.topic) {
        add("topic", problem);
    }
    if log.topic.len() > MAX_TOPIC_BYTES - MAX_SUFFIX_BYTES {
        add(
            "topic",
            format!("leave {MAX_SUFFIX_BYTES} bytes for the names of the topics beside it"),
        );
    }
    if !(1..=MAX_PARTITIONS).contains(&log.partitions) {
        add("partitions", format!("1 to {MAX_PARTITIONS}"));
    }
    if log
        .tenant_partitions
        .is_some_and(|some| !(1..=log.partitions).contains(&some))
    {
        add("tenant_partitions", "1 to `log.partitions`".into());
    }
    if log.replicas == Some(0) {
        add("replicas", "at least 1".into());
    }
    if log.group.is_empty() {
        add("group", "name one".into());
    }
    let published = config
        .datasets
        .iter()
        .filter_map(|one| Some(&one.publish.as_ref()?.topic));
    let read = config
        .datasets
        .iter()
        .flat_map(|one| &one.consume)
        .filter(|one| !one.is_elsewhere(config))
        .flat_map(|one| &one.topics);
    let others = published.chain(read).chain(config.dead_letters.topic.as_ref());
    for other in others.filter(|other| **other == log.topic) {
        found.push(format!(
            "log.topic: {other} is another topic of this config: the log's is nobody else's"
        ));
    }
}

/// The topic of dead letters is a Kafka's, and no dataset's.
fn letters_problems(config: &Config, topic: &str, found: &mut Vec<String>) {
    let mut add = |text: String| found.push(format!("dead_letters.topic: {text}"));
    if config.kafka.brokers.is_empty() {
        add("it needs `kafka.brokers`, the Kafka to publish to".into());
    }
    topic_problem(topic).into_iter().for_each(&mut add);
    for dataset in &config.datasets {
        if dataset
            .publish
            .as_ref()
            .is_some_and(|publish| publish.topic == topic)
        {
            let name = &dataset.name;
            add(format!(
                "dataset {name} publishes its events to {topic}: give dead letters a topic of their own"
            ));
        }
    }
}

fn check(dataset: &Dataset, publish: &Publish, add: &mut impl FnMut(String)) {
    topic_problem(&publish.topic).into_iter().for_each(&mut *add);
    for name in publish
        .key
        .iter()
        .flatten()
        .filter(|name| name.as_str() != TENANT)
    {
        match dataset.fields.iter().find(|field| field.name == *name) {
            None => add(format!("key: {name} is not a field")),
            Some(field) if !field.required || field.field_type.nullable => {
                add(format!(
                    "key: {name} must be `required: true` and not nullable: every message has a key then"
                ));
            }
            Some(field) if !field.field_type.kind.is_scalar() => {
                add(format!(
                    "key: {name} is {}; take fields of one value each",
                    field.field_type
                ));
            }
            Some(_) => {}
        }
    }
}

/// Why a topic cannot have that name.
pub(super) fn topic_problem(topic: &str) -> Option<String> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_fine = !topic.is_empty()
        && topic.len() <= MAX_TOPIC_BYTES
        && topic.bytes().all(is_legal)
        && ![".", ".."].contains(&topic);
    (!is_fine).then(|| {
        format!(
            "topic {topic:?} must be 1 to {MAX_TOPIC_BYTES} letters, digits, dots, underscores or dashes, and not dots alone"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const FIELDS: &str = "fields: [{name: id, type: string, required: true}, {name: tags, type: array(string), required: true}, {name: may, type: string}]";

    fn told(yaml: &str) -> String {
        let read = Loaded::parse(yaml, Path::new("x"), Path::new("/"));
        read.map_or_else(|error| error.to_string(), |_| "in force".into())
    }

    fn dataset(publish: &str) -> String {
        format!("kafka: {{brokers: [\"a:9092\"]}}\ndatasets: [{{name: d, {FIELDS}, publish: {publish}}}]")
    }

    #[test]
    fn what_cannot_be_published_is_refused_with_its_place() {
        assert_eq!(
            told(&dataset("{topic: clean.events_v1-x, key: [tenant, id]}")),
            "in force"
        );
        let letters = "\ndead_letters: {topic: dead.letters}";
        assert_eq!(told(&(dataset("{topic: t}") + letters)), "in force");
        for (yaml, wanted) in [
            (
                format!("datasets: [{{name: d, {FIELDS}, publish: {{topic: t}}}}]"),
                "it needs `kafka.brokers`",
            ),
            (
                dataset("{topic: \"a b\"}"),
                "topic \"a b\" must be 1 to 249 letters",
            ),
            (dataset("{topic: \"..\"}"), "and not dots alone"),
            (dataset("{topic: t, key: [nobody]}"), "key: nobody is not a field"),
            (dataset("{topic: t, key: [may]}"), "must be `required: true`"),
            ("kafka: {dir: parked}".into(), "kafka.dir is parked.dir as well"),
            (
                dataset("{topic: t, key: [tags]}"),
                "take fields of one value each",
            ),
            (
                "kafka: {brokers: [nowhere]}".into(),
                "kafka.brokers: \"nowhere\" must be host:port",
            ),
            ("kafka: {brokers: [\"a:0\"]}".into(), "must be host:port"),
            ("kafka: {brokers: [\"a:1,b:2\"]}".into(), "must be host:port"),
            (
                "dead_letters: {topic: dead}".into(),
                "dead_letters.topic: it needs `kafka.brokers`, the Kafka to publish to",
            ),
            (
                format!("{}\ndead_letters: {{topic: t}}", dataset("{topic: t}")),
                "dead_letters.topic: dataset d publishes its events to t",
            ),
            (
                format!("{}\ndead_letters: {{topic: a/b}}", dataset("{topic: t}")),
                "dead_letters.topic: topic \"a/b\" must be 1 to 249 letters",
            ),
            (
                "kafka: {tls: {cert: a}}".into(),
                "`cert` and `key` belong together",
            ),
            (
                "kafka: {max_message_bytes: 1}".into(),
                "kafka.max_message_bytes must be",
            ),
            (
                "kafka: {sasl: {mechanism: plain, username: u, password: \"${NO_SUCH_VARIABLE}\"}}".into(),
                "NO_SUCH_VARIABLE",
            ),
        ] {
            let told = told(&yaml);
            assert!(told.contains(wanted), "{yaml}: {told}");
        }
    }

    #[test]
    fn a_message_s_key_is_dedup_s_unless_another_or_none_is_named() {
        let keys = |publish: &str| {
            let yaml = format!(
                "kafka: {{brokers: [\"a:9092\"]}}\ndatasets: [{{name: d, {FIELDS}, dedup: {{key: [id]}}, publish: {publish}}}]"
            );
            let loaded = Loaded::parse(&yaml, Path::new("x"), Path::new("/")).expect("valid");
            let dataset = &loaded.config.datasets[0];
            let names = dataset.message_key(dataset.publish.as_ref().expect("published"));
            names.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(keys("{topic: t}"), ["id"]);
        assert_eq!(keys("{topic: t, key: [tenant]}"), ["tenant"]);
        assert!(keys("{topic: t, key: []}").is_empty());
    }
}
