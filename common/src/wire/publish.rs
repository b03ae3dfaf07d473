//! normalizer → sink-writer: the kept events of a range, or its dead letters, that go to one Kafka topic.

use super::sink::{Range, RangeRecord, RefusedRows};
use crate::ids::{LogId, Name};
use crate::trace::TraceContext;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What one topic is to be sent of a range, in log order.
#[derive(Debug, Clone)]
pub struct PublishCall {
    pub order: PublishOrder,
    pub records: Vec<RangeRecord>,
    pub timeout: Duration,
    pub trace: TraceContext,
}

/// Which rows of the records go out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// The events that fates keep.
    #[default]
    Events,
    /// The dead letters among them: copies of rejected rows, conflicts, and these rows, which were refused.
    Letters(Vec<RefusedRows>),
}

/// What and where to, and from which row on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishOrder {
    pub log: LogId,
    pub partition: u16,
    pub range: Range,
    #[serde(default)]
    pub content: Content,
    pub topic: String,
    /// Columns that are a message's key, or [`TENANT`](crate::config::kafka::TENANT).
    pub key: Vec<Name>,
    /// Events at the beginning that are certainly there.
    pub skip: u64,
    /// How many are sent at most behind those.
    pub most: u64,
    /// They have waited in the outbox: what holds them up holds up nothing that is new.
    pub waited: bool,
}

/// What became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Events from the beginning on, skipped ones included, that need not be sent again.
    pub done: u64,
    /// Of those that this call was to send, how many it did.
    pub sent: u64,
    /// And how many are larger than `kafka.max_message_bytes`.
    pub too_large: u64,
    /// Why it ends before the last; some behind `done` may be there all the same.
    pub failed: Option<String>,
}
