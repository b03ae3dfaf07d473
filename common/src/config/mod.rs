//! The one YAML file that all services read: its types, its reading, its checks.
//!
//! What a key means stands beside it. Unknown keys are errors.

pub mod brokers;
pub mod consume;
mod dataset;
pub mod diff;
mod expiry;
pub mod field_type;
pub mod history;
pub mod kafka;
pub mod load;
pub mod overrides;
pub mod partition;
mod place;
pub mod quantity;
mod quota;
mod read;
pub mod reference;
pub mod schema;
mod servers;
pub mod table;
mod tenant;
pub mod text;
pub mod tls;
mod tree;
mod type_text;
mod validate;
pub mod zone;

pub use brokers::{Brokers, KafkaTls, Login, Sasl, SaslMechanism};
pub use consume::{Beginning, Consume};
pub use dataset::{Batch, Dataset, DedupKey, EpochUnit, Field, RequiredIf, TimeBounds, Unit, UnknownFields};
pub use expiry::Expiry;
pub use field_type::{EnumValues, FieldType, Kind};
pub use kafka::{Compression, Kafka, Publish};
pub use load::{ConfigError, Loaded, Problem};
pub use overrides::{FieldOverride, Override};
pub use partition::PartitionBy;
pub use quantity::{ByteSize, Count, Period};
pub use quota::{Quota, Rates, Share, TooMuch, burst_of};
pub use table::{TablePlan, tables};
pub use tenant::{KeyHash, Tenant, Weight};
pub use text::Text;
pub use tls::{CertificateName, EdgeTls, InternalTls};
pub use validate::OWN_COLUMNS;
pub use zone::Zone;

use crate::ids::Name;
use crate::limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;
use std::path::PathBuf;

/// The default config: one dataset, `events`.
pub const DEFAULT_YAML: &str = include_str!("default.yaml");

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The public side.
    #[serde(default)]
    pub edge: Edge,
    /// Checks events, keeps the log, drops repeats.
    #[serde(default)]
    pub normalizer: Normalizer,
    /// Writes into ClickHouse.
    #[serde(default)]
    pub sink_writer: SinkWriter,
    /// How the services know each other.
    #[serde(default)]
    pub internal: Internal,
    /// The log between intake and dedup.
    #[serde(default)]
    pub log: Log,
    /// The dedup state.
    #[serde(default)]
    pub dedup: Dedup,
    /// Where rows end up.
    #[serde(default)]
    pub clickhouse: ClickHouse,
    /// Rows that wait for a table that is in trouble.
    #[serde(default)]
    pub parked: Parked,
    /// Where datasets with `publish` are published to, and those with `consume` are fed from.
    #[serde(default)]
    pub kafka: Kafka,
    /// Where our own traces and metrics go besides `/metrics`.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// Copies of rejected rows.
    #[serde(default)]
    pub dead_letters: DeadLetters,
    /// Opens the control routes of admin listeners beyond loopback.
    pub admin_token: Option<Text>,
    /// The tenants that commands keep, relative to the data directory; default: `tenants.yaml`.
    pub tenants_file: Option<PathBuf>,
    /// Who may send.
    #[serde(default)]
    pub tenants: Vec<Tenant>,
    /// What may be sent, and where it goes.
    #[serde(default = "default_datasets")]
    pub datasets: Vec<Dataset>,
}

/// The public listener.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Edge {
    /// Addresses to listen on, `host:port`; port 0 picks one.
    pub listen: Vec<String>,
    /// Probes and metrics.
    pub admin: String,
    /// The normalizer, as `http://host:port`, or `https://` with `internal.tls`; with the embedded log there is one. Not used where all run in one process.
    pub normalizer: Vec<String>,
    /// Certificate and key of all public listeners; absent: plain HTTP.
    pub tls: Option<EdgeTls>,
    /// The part of every tenant's quota that this edge gives, where several edges share the load.
    pub quota_share: Share,
    /// How many clients may be connected at once.
    pub connections: Connections,
}

/// How many clients may be connected at once, to all public listeners of an edge together.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Connections {
    /// In all; at it the one that has been idle for the longest gives way to a new one.
    pub total: NonZeroU32,
    /// From one address; of IPv6 from one /64. Raise it where a load balancer stands before the edge.
    pub per_address: NonZeroU32,
    /// With requests of one tenant, from its first request over a connection on; over it 429. Raise it where a gateway
    /// stands before the edge and sends many tenants' events over many connections.
    pub per_tenant: NonZeroU32,
}

impl Default for Connections {
    fn default() -> Self {
        let number = |limit: usize| u32::try_from(limit).ok().and_then(NonZeroU32::new);
        Self {
            total: number(limits::MAX_CONNECTIONS).unwrap_or(NonZeroU32::MAX),
            per_address: number(limits::MAX_CONNECTIONS_PER_ADDRESS).unwrap_or(NonZeroU32::MAX),
            per_tenant: number(limits::MAX_CONNECTIONS_PER_TENANT).unwrap_or(NonZeroU32::MAX),
        }
    }
}

impl Default for Edge {
    fn default() -> Self {
        Self {
            listen: vec!["127.0.0.1:4318".into()],
            admin: "127.0.0.1:9464".into(),
            normalizer: vec!["http://127.0.0.1:4320".into()],
            tls: None,
            connections: Connections::default(),
            quota_share: Share::default(),
        }
    }
}

/// The normalizer's listeners and its sink-writers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Normalizer {
    /// Where edges call, `host:port`; beyond loopback only with `internal.token`.
    pub listen: String,
    /// Probes and metrics.
    pub admin: String,
    /// The sink-writers, as `http://host:port`.
    pub sink_writer: Vec<String>,
}

impl Default for Normalizer {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:4320".into(),
            admin: "127.0.0.1:9465".into(),
            sink_writer: vec!["http://127.0.0.1:4321".into()],
        }
    }
}

/// The sink-writer's listeners.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SinkWriter {
    /// Where normalizers call, `host:port`; beyond loopback only with `internal.token`.
    pub listen: String,
    /// Probes and metrics.
    pub admin: String,
}

impl Default for SinkWriter {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:4321".into(),
            admin: "127.0.0.1:9466".into(),
        }
    }
}

/// How the services know each other.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Internal {
    /// Shared by all services; without it, and without `tls`, inner listeners stay on loopback.
    pub token: Option<Text>,
    /// Mutual TLS between all services.
    pub tls: Option<InternalTls>,
}

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogKind {
    /// On this machine's disk: one normalizer.
    Embedded,
    /// A topic of `kafka.brokers`: as many normalizers as there are partitions.
    Kafka,
}

/// The log between intake and dedup.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Which log there is.
    pub kind: LogKind,
    /// Relative to the data directory.
    pub dir: PathBuf,
    /// What is not yet stored may take so much; over it clients get 503.
    pub max_bytes: ByteSize,
    /// How long stored records are kept for replay, while there is room.
    pub retain: Period,
    /// Room to be left free on the log's volume; default 5 % of it, 512 MiB to 4 GiB.
    pub reserve: Option<ByteSize>,
    /// `kind: kafka`: the topic that is the log; `TOPIC.state` and `TOPIC.parked` beside it keep what belongs to it. They
    /// are made where they are missing.
    pub topic: String,
    /// `kind: kafka`: how many partitions the topic has. Never changed once there is a log.
    pub partitions: u16,
    /// `kind: kafka`: in how many of them one tenant's events lie; default all, up to 4. Never changed once there is a
    /// log.
    pub tenant_partitions: Option<u16>,
    /// `kind: kafka`: copies of a topic that is made; default the brokers' own.
    pub replicas: Option<u16>,
    /// `kind: kafka`: the consumer group of all normalizers.
    pub group: String,
    /// `kind: kafka`: this normalizer's name in the group, its own and the same after a restart: it then has its
    /// partitions back without the others being asked.
    pub instance: Option<Text>,
}

impl Log {
    /// In how many partitions one tenant's events lie.
    #[must_use]
    pub fn tenant_partitions(&self) -> u16 {
        let most = self.partitions.min(TENANT_PARTITIONS);
        self.tenant_partitions.unwrap_or(most)
    }
}

/// In how many partitions one tenant's events lie, where the config does not say.
const TENANT_PARTITIONS: u16 = 4;

impl Default for Log {
    fn default() -> Self {
        Self {
            kind: LogKind::Embedded,
            dir: "log".into(),
            max_bytes: ByteSize::gib(8),
            retain: Period::hours(24),
            reserve: None,
            topic: "sluice".into(),
            partitions: 4,
            tenant_partitions: None,
            replicas: None,
            group: "sluice".into(),
            instance: None,
        }
    }
}

/// The dedup state.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dedup {
    /// Relative to the data directory.
    pub dir: PathBuf,
    /// Disk that the sealed buckets may take.
    pub max_bytes: ByteSize,
    /// Memory for filters of sealed buckets.
    pub memory: ByteSize,
    /// Events that one tenant may append within the widest window; over it 429 (R9).
    pub keys_per_tenant: Count,
}

impl Default for Dedup {
    fn default() -> Self {
        Self {
            dir: "dedup".into(),
            max_bytes: ByteSize::gib(100),
            memory: ByteSize::mib(256),
            keys_per_tenant: Count(1_000_000_000),
        }
    }
}

/// Where rows end up.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClickHouse {
    /// `http://host:port` or `https://host:port`. Absent: `ingestctl up` starts one; the sink-writer alone needs it.
    pub url: Option<Text>,
    /// Further servers, in this order, for new rows while `url` does not answer. Same user, password, CA and
    /// database. Servers of their own: each keeps the rows that it took.
    pub failover: Vec<Text>,
    /// Created where it is missing.
    pub database: Name,
    /// Sent with each request.
    pub user: Option<Text>,
    /// Sent with each request.
    pub password: Option<Text>,
    /// Whom an https:// ClickHouse's certificate must be signed by; absent: whom this machine trusts.
    pub ca: Option<PathBuf>,
    /// A table that is in trouble for so long, while ClickHouse takes others, is set aside (R16).
    pub park_after: Period,
}

impl Default for ClickHouse {
    fn default() -> Self {
        Self {
            url: None,
            failover: Vec::new(),
            database: Name::new("telemetry").expect("a valid name"),
            user: None,
            password: None,
            ca: None,
            park_after: Period::millis(10_000),
        }
    }
}

/// Rows that wait for a table that is in trouble.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Parked {
    /// Relative to the data directory.
    pub dir: PathBuf,
    /// What each dataset may have waiting; over it its requests get 503.
    pub max_bytes: ByteSize,
}

impl Default for Parked {
    fn default() -> Self {
        Self {
            dir: "parked".into(),
            max_bytes: ByteSize::gib(1),
        }
    }
}

/// Copies of rejected rows, of datasets with `keep_rejected`, and the topic of all dead letters.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeadLetters {
    /// What one tenant's copies may take of the log a second; over it they are counted and not kept.
    pub bytes_per_second: ByteSize,
    /// ClickHouse deletes copies older than this, where Sluice makes the table.
    pub ttl: Period,
    /// The Kafka topic that takes every row of `dead_letters` too. It must be there: Sluice makes none.
    pub topic: Option<String>,
}

impl Default for DeadLetters {
    fn default() -> Self {
        Self {
            bytes_per_second: ByteSize(64 * 1024),
            ttl: Period::hours(30 * 24),
            topic: None,
        }
    }
}

/// Where our own traces and metrics go besides `/metrics`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// OTLP/HTTP base address, `http://host:4318`.
    pub otlp_endpoint: Option<String>,
}

fn default_datasets() -> Vec<Dataset> {
    #[derive(Deserialize)]
    struct Defaults {
        datasets: Vec<Dataset>,
    }
    let tree = tree::Node::parse(DEFAULT_YAML).ok();
    let read = tree.and_then(|mut tree| read::read::<Defaults>(&mut tree).0);
    read.expect("a test reads the default config").datasets
}

impl Config {
    /// What the config says of who we are at each Kafka, with the place where it does.
    pub(crate) fn logins(&self) -> impl Iterator<Item = (String, &Sasl)> {
        let ours = self.kafka.sasl.iter().map(|sasl| ("kafka".to_owned(), sasl));
        let others = self.datasets.iter().flat_map(|dataset| {
            let all = dataset.consume.iter().enumerate();
            let kafkas = all.filter_map(|(nth, consume)| Some((nth, consume.kafka.as_ref()?)));
            let sasls = kafkas.filter_map(|(nth, kafka)| Some((nth, kafka.sasl.as_ref()?)));
            sasls.map(|(nth, sasl)| (consume::place(&dataset.name, nth), sasl))
        });
        ours.chain(others)
    }

    /// The widest dedup window that any record can ask for.
    #[must_use]
    pub fn max_window_ms(&self) -> u64 {
        let windows = self
            .datasets
            .iter()
            .filter_map(|one| one.dedup.as_ref())
            .map(|one| one.window.ms());
        let request = u64::try_from(limits::REQUEST_WINDOW.as_millis()).unwrap_or(u64::MAX);
        windows.max().unwrap_or(request).max(request)
    }

    /// The dataset of that name.
    #[must_use]
    pub fn dataset(&self, name: &str) -> Option<&Dataset> {
        self.datasets.iter().find(|one| one.name.as_str() == name)
    }
}
