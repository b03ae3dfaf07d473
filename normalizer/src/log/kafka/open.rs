//! Finding the log, or making it: its topics, its id, its manifest, and the first offsets of its group.

use super::clients::{ASK_DEADLINE, LogClients, MESSAGE_BYTES, answered};
use super::manifest::{self, Manifest};
use super::{fit, seat};
use crate::progress::Progress;
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sluice_common::ids::LogId;
use sluice_kafka::{LastWords, told, topic_ids};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// How long brokers that do not answer are waited for at a start.
const START_PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(1);
/// How long a topic that was just made may take to be known to all brokers.
const NEW_TOPIC: Duration = Duration::from_secs(20);

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum KafkaLogError {
    #[error("the brokers do not tell of the log: {0}")]
    Unreachable(String),
    #[error(
        "topic {topic} has {found} partitions, `log.partitions` says {wanted}{}: where an event lies depends on it, so it \
         never changes. To have another number begin a new log: let this one be stored whole, and name another `log.topic`",
        .made.map_or(String::new(), |made| format!(", and the log was made with {made}"))
    )]
    Partitions {
        topic: String,
        found: usize,
        /// Where there is a log.
        made: Option<u16>,
        wanted: u16,
    },
    #[error(
        "the log in topic {topic} was made with {found} partitions for each tenant and `log.tenant_partitions` says \
         {wanted}: where an event lies depends on it. Set it to {found}, or begin a new log with another `log.topic`"
    )]
    TenantPartitions { topic: String, found: u16, wanted: u16 },
    #[error("{0}")]
    Unfit(String),
    #[error(
        "topic {topic} holds records, and {topic}.state has no manifest of it: was that topic deleted, or is {topic} \
         another's? Without its secret the log's keys are lost: name another `log.topic` to begin a new log"
    )]
    NoManifest { topic: String },
    #[error(
        "topic {topic} was made anew: it is log {log} now, and {topic}.state is of log {other}. What was in it and not \
         stored is lost; what is stored is in ClickHouse. To begin a new log name another `log.topic`"
    )]
    MadeAnew { topic: String, log: LogId, other: LogId },
    #[error(
        "group {group} has offsets in topic {topic} that are not of this log ({found}): was the topic made anew? Name \
         another `log.group` or `log.topic` to begin a new log, or restore the topic"
    )]
    OtherOffsets {
        topic: String,
        group: String,
        found: String,
    },
}

impl From<String> for KafkaLogError {
    fn from(reason: String) -> Self {
        Self::Unreachable(reason)
    }
}

/// Finds or makes the log. Brokers that do not answer are waited for.
pub(super) fn open(clients: &LogClients) -> Result<Manifest, KafkaLogError> {
    let until = Instant::now() + START_PATIENCE;
    loop {
        match try_open(clients) {
            Err(KafkaLogError::Unreachable(reason)) if Instant::now() < until => {
                tracing::warn!(reason, "the brokers that hold the log are waited for");
                tokio::task::block_in_place(|| std::thread::sleep(AGAIN));
            }
            opened => return opened,
        }
    }
}

fn try_open(clients: &LogClients) -> Result<Manifest, KafkaLogError> {
    let asking = clients.asking()?;
    make_topics(clients, &asking)?;
    let (log, manifest) = examine(clients, &asking)?;
    match manifest {
        Some(manifest) => Ok(manifest),
        None => begin(clients, &asking, log),
    }
}

/// Looks at the log without changing anything. Its id; none where its topics are made by the first start. Blocks.
///
/// # Errors
/// [`KafkaLogError`], saying what to do.
pub fn look(clients: &LogClients) -> Result<Option<LogId>, KafkaLogError> {
    let asking = clients.asking()?;
    for name in clients.topics() {
        if partitions(&asking, &name)?.is_none() {
            return Ok(None);
        }
    }
    examine(clients, &asking).map(|(log, _)| Some(log))
}

/// The log's id, and its manifest where it has one.
fn examine(
    clients: &LogClients,
    asking: &BaseConsumer<LastWords>,
) -> Result<(LogId, Option<Manifest>), KafkaLogError> {
    let count = |name: &str| -> Result<usize, KafkaLogError> {
        let unknown = || KafkaLogError::Unreachable(format!("topic {name} is not known to the brokers yet"));
        partitions(asking, name)?.ok_or_else(unknown)
    };
    let found = count(&clients.topic)?;
    let problems = fit::problems(clients)?;
    if !problems.is_empty() {
        return Err(KafkaLogError::Unfit(problems.join("; ")));
    }
    let log = log_id(clients, asking)?;
    let found_manifest = manifest::find(clients, log)?;
    if let (None, Some(other)) = (&found_manifest.manifest, found_manifest.other) {
        let topic = clients.topic.clone();
        return Err(KafkaLogError::MadeAnew { topic, log, other });
    }
    let manifest = found_manifest.manifest;
    let wanted = manifest.as_ref().map_or(clients.partitions, |one| one.partitions);
    if clients.partitions != wanted || found != usize::from(wanted) {
        return Err(KafkaLogError::Partitions {
            topic: clients.topic.clone(),
            found,
            made: manifest.map(|one| one.partitions),
            wanted: clients.partitions,
        });
    }
    for name in [clients.state_topic(), clients.parked_topic()] {
        let (found, wanted) = (count(&name)?, clients.partitions);
        if found < usize::from(wanted) {
            let text =
                format!("topic {name} has {found} partitions: give it as many as the log has, {wanted}");
            return Err(KafkaLogError::Unfit(text));
        }
    }
    let wanted = clients.tenant_partitions;
    let found = manifest.as_ref().map_or(wanted, |one| one.tenant_partitions);
    if found != wanted {
        let topic = clients.topic.clone();
        return Err(KafkaLogError::TenantPartitions { topic, found, wanted });
    }
    Ok((log, manifest))
}

/// R1: of the cluster and the topic, so that a topic that is made anew is another log.
pub(super) fn log_id(clients: &LogClients, asking: &BaseConsumer<LastWords>) -> Result<LogId, String> {
    let topic = &clients.topic;
    let cluster = asking.client().fetch_cluster_id(ASK_DEADLINE);
    let cluster = cluster.ok_or_else(|| "the brokers do not say which cluster they are".to_owned())?;
    let told =
        topic_ids(asking.client(), &[topic], ASK_DEADLINE).map_err(|reason| format!("{topic}: {reason}"))?;
    let id = told
        .get(topic)
        .ok_or_else(|| format!("{topic}: the brokers answer another question"))?;
    let id = id.map_err(|code| format!("{topic}: {code}"))?;
    let id = id.ok_or_else(|| format!("{topic}: the brokers give topics no ids: Kafka 3.1 and later do"))?;
    let id = xxh3_64(format!("{cluster}/{id:032x}").as_bytes());
    Ok(LogId(id.max(1)))
}

/// Makes the log's topics, where they are missing.
fn make_topics(clients: &LogClients, asking: &BaseConsumer<LastWords>) -> Result<(), KafkaLogError> {
    let all = clients.topics();
    let mut missing = [false; 3];
    for (name, missing) in all.iter().zip(&mut missing) {
        *missing = partitions(asking, name)?.is_none();
    }
    if missing == [false; 3] {
        return Ok(());
    }
    let [topic, state, parked] = &all;
    let replicas = clients.replicas.map_or(-1, i32::from);
    let (kept_ms, most) = (
        clients.keep_ms.to_string(),
        (MESSAGE_BYTES + 64 * 1024).to_string(),
    );
    let new = |name| {
        let replicas = TopicReplication::Fixed(replicas);
        NewTopic::new(name, i32::from(clients.partitions), replicas).set("max.message.bytes", &most)
    };
    let kept = |name| {
        new(name)
            .set("cleanup.policy", "delete")
            .set("retention.bytes", "-1")
    };
    let wanted = [
        kept(topic)
            .set("retention.ms", &kept_ms)
            .set("message.timestamp.type", "LogAppendTime"),
        kept(state).set("retention.ms", "-1"),
        new(parked).set("cleanup.policy", "compact"),
    ];
    let wanted: Vec<_> = wanted
        .iter()
        .zip(missing)
        .filter_map(|(one, missing)| missing.then_some(one))
        .collect();
    let admin = clients.admin()?;
    let options = AdminOptions::new().operation_timeout(Some(ASK_DEADLINE));
    let answers = answered(admin.create_topics(wanted, &options)).map_err(|error| told(&error))?;
    for answer in answers {
        match answer {
            Ok(name) => tracing::info!(topic = name, "the log's topic was made"),
            // Another normalizer was faster.
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => {
                return Err(KafkaLogError::Unfit(format!(
                    "topic {name} is missing and cannot be made: {code}. Make it, or have this user made able to"
                )));
            }
        }
    }
    let until = Instant::now() + NEW_TOPIC;
    for name in &all {
        while partitions(asking, name)?.is_none() {
            if Instant::now() > until {
                return Err("topics that were just made are not known to the brokers yet"
                    .to_owned()
                    .into());
            }
            std::thread::sleep(AGAIN / 10);
        }
    }
    Ok(())
}

/// How many partitions a topic has; none where there is no such topic.
pub(super) fn partitions(asking: &BaseConsumer<LastWords>, topic: &str) -> Result<Option<usize>, String> {
    let told = asking.fetch_metadata(Some(topic), ASK_DEADLINE);
    // What a connection said comes with events, which nobody else takes here.
    asking.poll(Duration::ZERO);
    let told = told.map_err(|error| asking.context().why(&error))?;
    let found = told.topics().iter().find(|one| one.name() == topic);
    let Some(found) = found else { return Ok(None) };
    match found.error().map(RDKafkaErrorCode::from) {
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(None),
        Some(error) => Err(format!("{topic}: {error}")),
        None => Ok(Some(found.partitions().len()).filter(|partitions| *partitions > 0)),
    }
}

/// R18: a log that nothing was ever appended to. Its first offsets are committed before there is a manifest, and nothing
/// is appended before that: so from then on a partition without an offset has lost it.
fn begin(
    clients: &LogClients,
    asking: &BaseConsumer<LastWords>,
    log: LogId,
) -> Result<Manifest, KafkaLogError> {
    let (topic, group) = (&clients.topic, &clients.group);
    let mut all = TopicPartitionList::new();
    for partition in 0..clients.partitions {
        all.add_partition(topic, i32::from(partition));
    }
    let why = |error: &rdkafka::error::KafkaError| format!("{topic}: {}", asking.context().why(error));
    let committed = asking
        .committed_offsets(all.clone(), ASK_DEADLINE)
        .map_err(|error| why(&error))?;
    let mut first = TopicPartitionList::new();
    let progress = Progress::new(log, None);
    for (partition, one) in (0..).zip(committed.elements()) {
        one.error().map_err(|error| why(&error))?;
        let range = asking
            .fetch_watermarks(topic, one.partition(), ASK_DEADLINE)
            .map_err(|error| why(&error))?;
        if range != (0, 0) {
            // Another normalizer may have made the log meanwhile.
            let topic = topic.clone();
            let made = manifest::find(clients, log)?.manifest;
            return made.ok_or(KafkaLogError::NoManifest { topic });
        }
        match one.offset() {
            // By a start that ended before it wrote the manifest.
            Offset::Offset(0) if seat::log_of(one.metadata()) == Some(log) => {}
            Offset::Offset(offset) => {
                let (topic, group) = (topic.clone(), group.clone());
                let found = format!("partition {partition}: {offset}");
                return Err(KafkaLogError::OtherOffsets { topic, group, found });
            }
            Offset::Beginning | Offset::End | Offset::Stored | Offset::Invalid | Offset::OffsetTail(_) => {
                seat::add(&mut first, topic, (partition, 0), &seat::text(&progress))?
            }
        }
    }
    if let Some(made) = manifest::find(clients, log)?.manifest {
        return Ok(made);
    }
    if first.count() > 0 {
        let committed = asking.commit(&first, CommitMode::Sync);
        committed.map_err(|error| format!("first offsets cannot be committed: {}", why(&error)))?;
    }
    // Of several partitions one may have failed unsaid.
    let told = asking
        .committed_offsets(all, ASK_DEADLINE)
        .map_err(|error| why(&error))?;
    if told
        .elements()
        .iter()
        .any(|one| !matches!(one.offset(), Offset::Offset(_)))
    {
        return Err("first offsets are not committed yet".to_owned().into());
    }
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| format!("the operating system gives no random bytes: {error}"))?;
    let manifest = Manifest {
        log,
        secret,
        partitions: clients.partitions,
        tenant_partitions: clients.tenant_partitions,
    };
    manifest::write(clients, &manifest)?;
    // Whoever came first made it.
    let found = manifest::find(clients, log)?.manifest;
    found.ok_or_else(|| "the manifest that was written is not there".to_owned().into())
}
