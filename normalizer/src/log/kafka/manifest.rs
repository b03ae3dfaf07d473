//! What belongs to the log and is the same for all its normalizers, in the first partition of the topic beside it.
//!
//! # Bytes
//! A message's key is `manifest`, its value JSON of [`Manifest`]. The first that names this log counts: normalizers that
//! make the log at the same moment agree by it. Nothing is ever deleted there, nor compacted.

use super::clients::{ASK_DEADLINE, LogClients};
use super::messages::Messages;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use sluice_common::ids::LogId;
use sluice_kafka::told;
use std::time::{Duration, Instant};

/// Key of a manifest.
const KEY: &str = "manifest";
/// Key of a range's progress that is too long for an offset's metadata.
const PROGRESS_KEY: &str = "progress";
const POLL: Duration = Duration::from_millis(100);

/// What the log is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub log: LogId,
    /// Of the key hashes (R3).
    #[serde(with = "hex_bytes")]
    pub secret: [u8; 32],
    pub partitions: u16,
    pub tenant_partitions: u16,
}

mod hex_bytes {
    use serde::de::{Deserialize as _, Deserializer, Error};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let mut bytes = [0; 32];
        let text = String::deserialize(deserializer)?;
        hex::decode_to_slice(text, &mut bytes).map_err(D::Error::custom)?;
        Ok(bytes)
    }
}

/// What the topic beside the log says of it.
pub(super) struct Found {
    pub manifest: Option<Manifest>,
    /// Another log was in a topic of this name before.
    pub other: Option<LogId>,
}

/// The manifest of a log; none where it has none yet. Blocks.
///
/// # Errors
/// A sentence where the topic beside the log cannot be read.
pub(super) fn find(clients: &LogClients, log: LogId) -> Result<Found, String> {
    let topic = clients.state_topic();
    let consumer = clients.asking()?;
    let why = |error: &rdkafka::error::KafkaError| format!("{topic}: {}", consumer.context().why(error));
    let (low, high) = consumer
        .fetch_watermarks(&topic, 0, ASK_DEADLINE)
        .map_err(|error| why(&error))?;
    if low > 0 {
        return Err(format!(
            "{topic} has lost its first messages, and the log's secret may have been among them: it must be kept for ever \
             (cleanup.policy=delete, retention.ms=-1, retention.bytes=-1)"
        ));
    }
    from(&consumer, (&topic, 0), 0)?;
    let until = Instant::now() + ASK_DEADLINE;
    let (mut at, mut other) = (0, None);
    while at < high {
        if Instant::now() > until {
            return Err(format!("{topic} cannot be read to its end in time"));
        }
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                at = message.offset() + 1;
                let is_one = message.key() == Some(KEY.as_bytes());
                let Some(value) = message.payload().filter(|_| is_one) else {
                    continue;
                };
                let manifest: Manifest = serde_json::from_slice(value).map_err(|error| {
                    format!("{topic}: message {} is no manifest: {error}", message.offset())
                })?;
                if manifest.log == log {
                    return Ok(Found {
                        manifest: Some(manifest),
                        other,
                    });
                }
                other = Some(manifest.log);
            }
            Some(Err(error)) => tracing::debug!(%error, topic, "reading the manifest"),
            None => {}
        }
    }
    let manifest = None;
    Ok(Found { manifest, other })
}

/// Appends a manifest. Which one counts is found by looking again.
pub(super) fn write(clients: &LogClients, manifest: &Manifest) -> Result<(), String> {
    let value = serde_json::to_vec(manifest).map_err(|error| error.to_string())?;
    append(clients, 0, (KEY, &value)).map(drop)
}

/// Appends what is too long for an offset's metadata; tells where it lies. Blocks.
///
/// # Errors
/// A sentence where it is not known to be there.
pub(super) fn write_long(clients: &LogClients, partition: u16, value: &[u8]) -> Result<i64, String> {
    append(clients, partition, (PROGRESS_KEY, value))
}

/// Reads it again. Blocks.
///
/// # Errors
/// A sentence where it cannot be read.
pub(super) fn read_long(clients: &LogClients, partition: u16, offset: i64) -> Result<Vec<u8>, String> {
    let topic = clients.state_topic();
    let consumer = clients.asking()?;
    from(&consumer, (&topic, partition), offset)?;
    let until = Instant::now() + ASK_DEADLINE;
    while Instant::now() < until {
        if let Some(Ok(message)) = consumer.poll(POLL) {
            if message.offset() != offset {
                break;
            }
            return Ok(message.payload().unwrap_or_default().to_vec());
        }
    }
    Err(format!(
        "message {offset} of partition {partition} of {topic} cannot be read"
    ))
}

/// Has a consumer read one partition from an offset on.
pub(super) fn from<C: rdkafka::consumer::ConsumerContext>(
    consumer: &BaseConsumer<C>,
    (topic, partition): (&str, u16),
    offset: i64,
) -> Result<(), String> {
    let mut list = TopicPartitionList::new();
    let added = list.add_partition_offset(topic, i32::from(partition), Offset::Offset(offset));
    added
        .and_then(|()| consumer.assign(&list))
        .map_err(|error| format!("{topic}: {}", told(&error)))
}

/// One message, by a producer of its own: it is seldom that there is one.
fn append(clients: &LogClients, partition: u16, (key, value): (&str, &[u8])) -> Result<i64, String> {
    let messages = Messages::new(clients, clients.state_topic(), ASK_DEADLINE)?;
    messages
        .put(partition, key, Some(value))
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let manifest = Manifest {
            log: LogId(0xfeed),
            secret: std::array::from_fn(|at| u8::try_from(at * 7).expect("small")),
            partitions: 8,
            tenant_partitions: 3,
        };
        let text = serde_json::to_string(&manifest).expect("JSON");
        assert_eq!(serde_json::from_str::<Manifest>(&text).expect("reads"), manifest);
        serde_json::from_str::<Manifest>(&text.replace("00070e", "00070")).expect_err("cut short");
        serde_json::from_str::<Manifest>(&text.replace("00070e", "0007zz")).expect_err("no digits");
    }
}
