//! The one YAML file that all services read: its types, its reading, its checks.
//!
//! What a key means stands beside it. Unknown keys are errors. A key whose feature is not there yet
//! is refused with that reason ([`not_yet`]), never accepted and ignored.

pub mod diff;
mod expiry;
pub mod field_type;
pub mod history;
pub mod load;
pub mod not_yet;
pub mod overrides;
pub mod partition;
mod place;
pub mod quantity;
mod read;
pub mod schema;
pub mod table;
pub mod text;
pub mod tls;
mod tree;
mod type_text;
mod validate;
pub mod zone;

pub use expiry::Expiry;
pub use field_type::{EnumValues, FieldType, Kind};
pub use load::{ConfigError, Loaded, Problem};
pub use overrides::{FieldOverride, Override};
pub use partition::PartitionBy;
pub use quantity::{ByteSize, Count, Period};
pub use table::{TablePlan, tables};
pub use text::Text;
pub use tls::{CertificateName, EdgeTls, InternalTls};
pub use validate::OWN_COLUMNS;
pub use zone::Zone;

use crate::ids::{Name, TenantId};
use crate::limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
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
    /// The normalizers, as `http://host:port`, or `https://` with `internal.tls`; not used where all run in one process.
    pub normalizer: Vec<String>,
    /// Certificate and key of all public listeners; absent: plain HTTP.
    pub tls: Option<EdgeTls>,
}

impl Default for Edge {
    fn default() -> Self {
        Self {
            listen: vec!["127.0.0.1:4318".into()],
            admin: "127.0.0.1:9464".into(),
            normalizer: vec!["http://127.0.0.1:4320".into()],
            tls: None,
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
    Embedded,
}

/// The log between intake and dedup.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Which log there is.
    #[serde(deserialize_with = "not_yet::log_kind")]
    pub kind: LogKind,
    /// Relative to the data directory.
    pub dir: PathBuf,
    /// What is not yet stored may take so much; over it clients get 503.
    pub max_bytes: ByteSize,
    /// How long stored records are kept for replay, while there is room.
    pub retain: Period,
    /// Room to be left free on the log's volume; default 5 % of it, 512 MiB to 4 GiB.
    pub reserve: Option<ByteSize>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            kind: LogKind::Embedded,
            dir: "log".into(),
            max_bytes: ByteSize::gib(8),
            retain: Period::hours(24),
            reserve: None,
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
    /// Created where it is missing.
    pub database: Name,
    /// Sent with each request.
    pub user: Option<Text>,
    /// Sent with each request.
    pub password: Option<Text>,
    /// Whom an https:// ClickHouse's certificate must be signed by; absent: whom this machine trusts.
    pub ca: Option<PathBuf>,
}

impl Default for ClickHouse {
    fn default() -> Self {
        Self {
            url: None,
            database: Name::new("telemetry").expect("a valid name"),
            user: None,
            password: None,
            ca: None,
        }
    }
}

/// Copies of rejected rows, of datasets with `keep_rejected`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeadLetters {
    /// What one tenant's copies may take of the log a second; over it they are counted and not kept.
    pub bytes_per_second: ByteSize,
    /// ClickHouse deletes copies older than this, where Sluice makes the table.
    pub ttl: Period,
}

impl Default for DeadLetters {
    fn default() -> Self {
        Self {
            bytes_per_second: ByteSize(64 * 1024),
            ttl: Period::hours(30 * 24),
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

/// A tenant and its keys.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// In the column `tenant` of every row.
    pub id: TenantId,
    /// Its API keys; several are valid at once.
    pub keys: Vec<KeyHash>,
    /// Names of client certificates that are this tenant's; needs `edge.tls.client_ca`.
    #[serde(default)]
    pub certificates: Vec<CertificateName>,
    /// Datasets it may write; absent: all.
    pub datasets: Option<Vec<Name>>,
    #[serde(default, deserialize_with = "not_yet::quota", skip_serializing)]
    #[schemars(skip)]
    pub quota: (),
    #[serde(default, deserialize_with = "not_yet::weight", skip_serializing)]
    #[schemars(skip)]
    pub weight: (),
}

/// An API key, stored as its hash only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyHash {
    /// SHA-256 of the whole key (`slc_ID_SECRET`), 64 hex digits.
    pub sha256: String,
    /// From then on it is not known any more; absent: it does not end.
    #[serde(default)]
    pub until: Option<Expiry>,
}

impl KeyHash {
    /// A key that does not end.
    #[must_use]
    pub fn lasting(sha256: impl Into<String>) -> Self {
        Self {
            sha256: sha256.into(),
            until: None,
        }
    }

    /// Has it end at `ms`, unless it ends sooner.
    pub fn end_by(&mut self, ms: u64) {
        let until = Expiry::at(ms);
        self.until = Some(self.until.map_or(until, |sooner| sooner.min(until)));
    }
}

/// What happens to members of an event that the schema does not name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum UnknownFields {
    Reject,
    Drop,
    /// They go into this map field.
    Into(String),
}

impl From<UnknownFields> for String {
    fn from(unknown: UnknownFields) -> Self {
        match unknown {
            UnknownFields::Reject => "reject".into(),
            UnknownFields::Drop => "drop".into(),
            UnknownFields::Into(field) => field,
        }
    }
}

impl From<String> for UnknownFields {
    fn from(text: String) -> Self {
        match text.as_str() {
            "reject" => Self::Reject,
            "drop" => Self::Drop,
            _ => Self::Into(text),
        }
    }
}

/// One kind of event, and the table it goes to.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// `POST /v1/events/NAME`.
    pub name: Name,
    /// Table in `clickhouse.database`; default: the dataset's name.
    pub table: Option<Name>,
    /// Its columns.
    pub fields: Vec<Field>,
    /// What happens to members that no field names.
    #[serde(default = "reject")]
    pub unknown_fields: UnknownFields,
    /// What makes two events the same; absent: the request identifies its events.
    pub dedup: Option<DedupKey>,
    /// How old and how new an event may be.
    pub time: Option<TimeBounds>,
    /// Columns of the primary key; default: tenant, then the time field.
    #[serde(default)]
    pub order_by: Vec<Name>,
    /// How the table is partitioned, where Sluice makes it.
    #[serde(default)]
    pub partition_by: PartitionBy,
    /// Rows older than this, by the time field, are deleted by ClickHouse.
    pub ttl: Option<Period>,
    /// Rejected rows are also kept, as they were sent, in `dead_letters`.
    #[serde(default)]
    pub keep_rejected: bool,
    /// When rows are written.
    #[serde(default)]
    pub batch: Batch,
    /// What is different for some tenants.
    #[serde(default)]
    pub overrides: Vec<Override>,
}

impl Dataset {
    /// A partitioned dataset without `time` has the default bounds on its partition column: else one
    /// request could open any number of partitions.
    pub(crate) fn bound_time(&mut self) {
        if let (None, Some(field)) = (&self.time, self.partition_by.column()) {
            let (field, max_past, max_future) = (field.clone(), default_past(), default_future());
            self.time = Some(TimeBounds {
                field,
                max_past,
                max_future,
            });
        }
    }

    /// The columns of the table's primary key.
    #[must_use]
    pub fn sorting(&self) -> Vec<Name> {
        if !self.order_by.is_empty() {
            return self.order_by.clone();
        }
        let tenant = Name::new("tenant").ok();
        let time = self.time.as_ref().map(|time| time.field.clone());
        tenant.into_iter().chain(time).collect()
    }

    /// The target table; other datasets may have the same.
    #[must_use]
    pub fn table(&self) -> &Name {
        self.table.as_ref().unwrap_or(&self.name)
    }
}

/// One field of a dataset, one column of its table.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// The column.
    pub name: Name,
    /// What it holds.
    #[serde(rename = "type")]
    pub field_type: FieldType,
    /// An event without it is rejected.
    #[serde(default)]
    pub required: bool,
    /// Taken where the event has no value.
    pub default: Option<serde_json::Value>,
    /// The member of the event that it is read from; default: the field's name.
    pub from: Option<String>,
    /// A conversion.
    pub unit: Option<Unit>,
    /// Unit of a time given as a number since 1970: without it numbers are rejected.
    pub epoch: Option<EpochUnit>,
    /// Zone of a time sent as text without an offset: without it such text is rejected.
    pub timezone: Option<Zone>,
    /// Least value, in the column's unit; for numbers and times.
    pub min: Option<serde_json::Value>,
    /// Largest value, in the column's unit.
    pub max: Option<serde_json::Value>,
    /// Least length: bytes of a string, entries of a map.
    pub min_length: Option<Count>,
    /// Largest length.
    pub max_length: Option<Count>,
    /// Regular expression that a string must match somewhere.
    pub pattern: Option<String>,
    /// The values that are allowed, as the column holds them.
    pub values: Option<Vec<serde_json::Value>>,
    /// Required where another field has one of these values.
    pub required_if: Option<RequiredIf>,
}

/// When a field is required because of another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RequiredIf {
    /// The other field.
    pub field: Name,
    /// Its values, as its column holds them.
    pub is: Vec<serde_json::Value>,
}

/// A conversion, by UCUM names. One of `from` and `unit_from` must be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// The unit of what is sent; beside `unit_from`, of events that name none.
    pub from: Option<String>,
    /// The member of the event, a string, that names the unit.
    pub unit_from: Option<String>,
    /// The unit of the column.
    pub to: String,
}

/// The unit of a number that is a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EpochUnit {
    S,
    Ms,
    Us,
    Ns,
}

/// What makes two events of a dataset the same.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DedupKey {
    /// Fields, all of them required and not nullable. Empty: the request identifies its events.
    #[serde(default)]
    pub key: Vec<Name>,
    /// How long a key is remembered after its latest copy.
    #[serde(default = "default_window")]
    pub window: Period,
}

/// How old and how new an event may be, tested against the time of its append.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimeBounds {
    /// A required time field.
    pub field: Name,
    /// Older events are rejected.
    #[serde(default = "default_past")]
    pub max_past: Period,
    /// Newer events are rejected.
    #[serde(default = "default_future")]
    pub max_future: Period,
}

/// When a range closes: whichever comes first.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Batch {
    /// Rows for one table.
    pub max_rows: Count,
    /// Bytes of columns.
    pub max_bytes: ByteSize,
    /// Age of its first record.
    pub max_age: Period,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max_rows: Count(100_000),
            max_bytes: ByteSize::mib(32),
            max_age: Period::millis(500),
        }
    }
}

fn reject() -> UnknownFields {
    UnknownFields::Reject
}

fn default_window() -> Period {
    Period::hours(24)
}

fn default_past() -> Period {
    Period::hours(7 * 24)
}

fn default_future() -> Period {
    Period::millis(5 * 60 * 1000)
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
