//! How each of the log's clients is set up.

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::consumer::BaseConsumer;
use sluice_common::config::{Compression, Loaded, LogKind};
use sluice_common::failpoint::{self, Bound};
use sluice_common::limits::{KAFKA_APPEND_DEADLINE, KAFKA_FETCH_BYTES, LOG_QUEUE_BYTES, LOG_QUEUE_MESSAGES};
use sluice_common::record::MAX_FRAME_BYTES;
use sluice_kafka::{LastWords, Target, made, seat, watched};
use std::time::Duration;

/// How long brokers have for one question.
pub(super) const ASK_DEADLINE: Duration = Duration::from_secs(10);
/// Beyond the window: how long the topic keeps what dedup may need to be rebuilt from (R6).
const KEPT_BEYOND_WINDOW_MS: u64 = 72 * 3_600 * 1_000;
/// The largest message, and batch: a record, and what Kafka counts beside it.
pub(super) const MESSAGE_BYTES: usize = MAX_FRAME_BYTES + 1_024;
/// How long the producer waits for more of a batch: records come in groups already.
const LINGER: Duration = Duration::from_millis(1);
/// How long a broker that has less than [`FETCH_BYTES`] keeps a question: well below the age at which ranges go out, which
/// counts from the append.
const FETCH_WAIT: Duration = Duration::from_millis(100);
/// What is worth an answer: each costs both sides as much as some hundred records.
const FETCH_BYTES: usize = 128 * 1_024;

/// What the log's clients are made of.
#[derive(Debug, Clone)]
pub struct LogClients {
    pub(super) target: Target,
    pub(super) topic: String,
    pub(super) group: String,
    instance: Option<String>,
    pub(super) partitions: u16,
    pub(super) tenant_partitions: u16,
    pub(super) replicas: Option<u16>,
    /// What records are kept at least.
    pub(super) kept_ms: u64,
    /// What a topic that is made is told to keep.
    pub(super) keep_ms: u64,
    pub(super) max_backlog_bytes: u64,
}

impl LogClients {
    /// Those of a config; none where its log is no topic.
    #[must_use]
    pub fn of(loaded: &Loaded) -> Option<Self> {
        let log = &loaded.config.log;
        let kept_ms = loaded.config.max_window_ms() + KEPT_BEYOND_WINDOW_MS;
        (log.kind == LogKind::Kafka).then_some(())?;
        Some(Self {
            target: Target::of(loaded)?,
            topic: log.topic.clone(),
            group: log.group.clone(),
            instance: loaded.log_instance.clone(),
            partitions: log.partitions,
            tenant_partitions: log.tenant_partitions(),
            replicas: log.replicas,
            kept_ms,
            keep_ms: kept_ms.max(log.retain.ms()),
            max_backlog_bytes: log.max_bytes.0,
        })
    }

    /// Whether our seat in the group has a name of its own.
    pub(super) fn is_named(&self) -> bool {
        self.instance.is_some()
    }

    /// The topic beside the log's that is kept for ever.
    pub(super) fn state_topic(&self) -> String {
        format!("{}.state", self.topic)
    }

    /// The topic beside the log's that has what is set aside.
    pub(super) fn parked_topic(&self) -> String {
        format!("{}.parked", self.topic)
    }

    /// The log's topic, and those beside it.
    pub(super) fn topics(&self) -> [String; 3] {
        [self.topic.clone(), self.state_topic(), self.parked_topic()]
    }

    /// One that makes topics, and asks for their settings.
    pub(super) fn admin(&self) -> Result<AdminClient<LastWords>, String> {
        made(&self.target.client(), LastWords::default())
    }

    /// One that appends to the topics beside the log, of which nothing is packed yet.
    pub(super) fn messages_producer(&self) -> ClientConfig {
        let mut config = self.producer();
        config.set("compression.type", self.target.kafka.compression.name());
        config
    }

    /// One that appends to the log.
    pub(super) fn producer(&self) -> ClientConfig {
        let append_ms = failpoint::shrunk(Bound::AppendMs, KAFKA_APPEND_DEADLINE.as_millis() as u64);
        let mut config = self.target.client();
        watched(&mut config);
        for (key, value) in [
            ("acks", "all".into()),
            ("enable.idempotence", "true".into()),
            ("compression.type", self.compression().name().into()),
            // A batch is never larger than the topics take: they are checked for as much.
            ("message.max.bytes", MESSAGE_BYTES.to_string()),
            ("batch.size", MESSAGE_BYTES.to_string()),
            ("message.timeout.ms", append_ms.to_string()),
            ("request.timeout.ms", append_ms.to_string()),
            ("linger.ms", ms(LINGER)),
            (
                "queue.buffering.max.kbytes",
                (LOG_QUEUE_BYTES as u64 / 1_024).to_string(),
            ),
            ("queue.buffering.max.messages", LOG_QUEUE_MESSAGES.to_string()),
        ] {
            config.set(key, value);
        }
        config
    }

    /// Of batches of records, which are packed with LZ4 already: once more only by what packs tighter.
    fn compression(&self) -> Compression {
        match self.target.kafka.compression {
            tighter @ (Compression::Gzip | Compression::Zstd) => tighter,
            Compression::None | Compression::Snappy | Compression::Lz4 => Compression::None,
        }
    }

    /// One that reads partitions that it names itself. It may ask for the group's offsets, and commits none.
    pub(super) fn reader(&self) -> ClientConfig {
        let mut config = self.target.consumer();
        for (key, value) in [
            ("group.id", self.group.clone()),
            (
                "queued.max.messages.kbytes",
                (KAFKA_FETCH_BYTES / 1_024).to_string(),
            ),
            ("fetch.max.bytes", KAFKA_FETCH_BYTES.to_string()),
            ("fetch.wait.max.ms", ms(FETCH_WAIT)),
            ("fetch.min.bytes", FETCH_BYTES.to_string()),
            ("fetch.error.backoff.ms", "100".into()),
        ] {
            config.set(key, value);
        }
        config
    }

    /// Our seat in the group.
    pub(super) fn member(&self) -> ClientConfig {
        let mut config = self.reader();
        seat(&mut config);
        watched(&mut config);
        if let Some(instance) = &self.instance {
            config.set("group.instance.id", instance);
        }
        config
    }

    /// A client that asks.
    pub(super) fn asking(&self) -> Result<BaseConsumer<LastWords>, String> {
        made(&self.reader(), LastWords::default())
    }
}

/// Waits for an answer on this thread.
pub(super) fn answered<T>(answer: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(answer))
}

fn ms(duration: Duration) -> String {
    duration.as_millis().to_string()
}
