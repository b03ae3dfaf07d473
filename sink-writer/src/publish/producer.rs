//! The only module here that names `rdkafka`: a producer, and when all of a call's messages were answered.
//!
//! `enable.idempotence` keeps what librdkafka sends again by itself in order and, as far as one producer lives,
//! once; nothing rests on it. What is not known to be there is sent again by whoever asked (R13).

use super::message::{HEADERS, Message};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::statistics::Statistics;
use sluice_common::limits::{PUBLISH_DEADLINE, PUBLISH_QUEUE_BYTES, PUBLISH_QUEUE_MESSAGES};
use sluice_kafka::{LastWords, Speaks, Target, made, told, watched};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a full queue is left to drain before it is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// How long librdkafka waits for more of a batch. Ranges come whole: there is nothing to wait for.
const LINGER: Duration = Duration::from_millis(5);
/// How long a topic that the brokers do not know may still be on its way to them.
const NEW_TOPIC: Duration = Duration::from_secs(2);
/// What is told where librdkafka itself says nothing by its own deadline.
const LATE: &str = "the brokers did not answer in time";
/// Bytes of a batch beside its messages, and of a message beside its parts, rounded up.
const BATCH_HEADER: usize = 100;
/// Lengths before a header's key and value, at their longest.
const FRAMING: usize = 10;
/// What librdkafka puts into one batch at most.
const BATCH_BYTES: u64 = 1_000_000;

/// A connection to the brokers; they are looked for on first use.
pub struct Producer {
    threaded: ThreadedProducer<Context>,
    /// Of a message.
    most: usize,
}

/// Why no message goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unsent {
    /// Over `kafka.max_message_bytes`: it never will.
    TooLarge,
    /// As told.
    Failed(String),
}

/// What became of the messages of one call, told by their place in it.
#[derive(Debug, Default)]
pub struct Tally {
    state: Mutex<Answers>,
    all: Notify,
}

#[derive(Debug, Default)]
struct Answers {
    outstanding: u64,
    /// The first message that is not certainly there, and why.
    failed: Option<(u64, String)>,
}

/// One message under way.
pub struct Delivery {
    tally: Arc<Tally>,
    at: u64,
}

/// Told by librdkafka.
#[derive(Default)]
struct Context(LastWords);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, text: &str) {
        self.0.log(level, fac, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.0.heard(&statistics);
    }
}

impl Speaks for Context {
    fn words(&self) -> &LastWords {
        &self.0
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Box<Delivery>) {
        let failed = result.as_ref().err().map(|(error, _)| self.0.why(error));
        delivery.tally.answered(delivery.at, failed);
    }
}

impl Tally {
    fn answered(&self, at: u64, failed: Option<String>) {
        let mut state = self.state.lock();
        state.outstanding -= 1;
        if let Some(reason) = failed {
            state.fail(at, reason);
        }
        if state.outstanding == 0 {
            self.all.notify_waiters();
        }
    }

    /// Message `at` did not go out.
    pub fn fail(&self, at: u64, reason: String) {
        self.state.lock().fail(at, reason);
    }

    /// Waits until every message was answered, to `deadline` at most. The first that is not certainly there, of
    /// `sent`, and why.
    pub async fn wait(&self, deadline: Instant) -> Option<(u64, String)> {
        loop {
            let answered = self.all.notified();
            tokio::pin!(answered);
            // From here on it is told.
            answered.as_mut().enable();
            if self.state.lock().outstanding == 0 {
                return self.state.lock().failed.clone();
            }
            if tokio::time::timeout_at(deadline, answered).await.is_err() {
                return Some((0, LATE.into()));
            }
        }
    }
}

impl Answers {
    fn fail(&mut self, at: u64, reason: String) {
        if self.failed.as_ref().is_none_or(|(first, _)| at < *first) {
            self.failed = Some((at, reason));
        }
    }
}

impl Producer {
    /// A producer for `target`.
    ///
    /// # Errors
    /// A sentence where librdkafka refuses the config, a file of TLS for one.
    pub fn new(target: &Target) -> Result<Self, String> {
        let threaded = made(&config(target), Context::default())?;
        let most = usize::try_from(target.kafka.max_message_bytes.0).unwrap_or(usize::MAX);
        Ok(Self { threaded, most })
    }

    /// Hands a message to librdkafka. Waits while its queue is full; blocks.
    ///
    /// # Errors
    /// [`Unsent`]: it is certain that it does not go out.
    pub fn send(
        &self,
        (topic, message): (&str, &Message),
        (tally, at): (&Arc<Tally>, u64),
        deadline: Instant,
    ) -> Result<(), Unsent> {
        if bytes(message) > self.most {
            return Err(Unsent::TooLarge);
        }
        tally.state.lock().outstanding += 1;
        let delivery = Box::new(Delivery {
            tally: Arc::clone(tally),
            at,
        });
        let mut record = BaseRecord::with_opaque_to(topic, delivery)
            .payload(&message.payload)
            .timestamp(message.timestamp_ms)
            .headers(headers(message));
        if let Some(key) = &message.key {
            record = record.key(key);
        }
        let refused = loop {
            let Err((error, again)) = self.threaded.send(record) else {
                return Ok(());
            };
            record = again;
            let is_full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            if !is_full || Instant::now() >= deadline {
                break error;
            }
            std::thread::sleep(FULL_PAUSE);
        };
        tally.state.lock().outstanding -= 1;
        Err(match refused.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => Unsent::TooLarge,
            _ => Unsent::Failed(told(&refused)),
        })
    }

    /// Whether it will never send again: another has to be made.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.threaded.client().fatal_error().is_some()
    }
}

/// What a broker counts of a message that is a batch by itself.
fn bytes(message: &Message) -> usize {
    let headers = HEADERS.iter().zip(&message.headers);
    let headers: usize = headers
        .map(|(key, value)| key.len() + value.len() + FRAMING)
        .sum();
    let key = message.key.as_ref().map_or(0, String::len);
    BATCH_HEADER + key + message.payload.len() + headers
}

fn headers(message: &Message) -> OwnedHeaders {
    let pairs = HEADERS.iter().zip(&message.headers);
    pairs.fold(
        OwnedHeaders::new_with_capacity(HEADERS.len()),
        |headers, (key, value)| {
            headers.insert(Header {
                key,
                value: Some(value),
            })
        },
    )
}

fn config(target: &Target) -> ClientConfig {
    let kafka = &target.kafka;
    let number = |value: u64| value.to_string();
    let ms = |duration: Duration| duration.as_millis().to_string();
    let most = kafka.max_message_bytes.0;
    let mut config = target.client();
    watched(&mut config);
    for (key, value) in [
        ("acks", "all".into()),
        ("enable.idempotence", "true".into()),
        ("compression.type", kafka.compression.name().into()),
        // The Java client's: equal keys lie in the same partition, whoever writes them.
        ("partitioner", "murmur2_random".into()),
        ("message.max.bytes", number(most)),
        ("batch.size", number(most.min(BATCH_BYTES))),
        ("message.timeout.ms", ms(PUBLISH_DEADLINE)),
        ("request.timeout.ms", ms(PUBLISH_DEADLINE)),
        ("linger.ms", ms(LINGER)),
        ("topic.metadata.propagation.max.ms", ms(NEW_TOPIC)),
        (
            "queue.buffering.max.kbytes",
            number(PUBLISH_QUEUE_BYTES as u64 / 1_024),
        ),
        (
            "queue.buffering.max.messages",
            number(PUBLISH_QUEUE_MESSAGES as u64),
        ),
    ] {
        config.set(key, value);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_several_that_failed_the_first_counts_once_all_were_answered() {
        let tally = Tally::default();
        tally.state.lock().outstanding = 3;
        for (at, failed) in [(7, Some("late")), (3, Some("early")), (5, Some("between"))] {
            assert_eq!(
                tally.wait(Instant::now()).await,
                Some((0, LATE.into())),
                "not all yet"
            );
            tally.answered(at, failed.map(str::to_owned));
        }
        assert_eq!(tally.wait(Instant::now()).await, Some((3, "early".into())));
    }
}
