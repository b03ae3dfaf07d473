//! A dataset: what may be sent, how it is checked, which table it goes to.

use super::{Consume, Count, FieldType, Override, PartitionBy, Period, Publish, Zone};
use crate::config::ByteSize;
use crate::ids::Name;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// The Kafka topic that takes its events too.
    pub publish: Option<Publish>,
    /// Kafka topics that it is fed from, beside what clients send.
    #[serde(default)]
    pub consume: Vec<Consume>,
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
