//! What the sink-writer is asked beside writing: of rows past an offset, of parts, of servers.

use crate::ids::{LogId, Name};
use crate::servers::ServerId;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Is there any row of this log and partition at or past `from_o`, in any of these tables (R19)?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Horizon {
    pub log: LogId,
    pub partition: u16,
    /// The one to ask; `None`: every one that answers.
    pub server: Option<ServerId>,
    pub from_o: u64,
    pub tables: Vec<Name>,
    pub timeout: Duration,
}

/// How many parts have these tables?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartsQuery {
    pub tables: Vec<Name>,
    pub timeout: Duration,
}

/// One table's parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartsLine {
    pub table: Name,
    /// Active ones of the partition that has most.
    pub parts: u64,
    /// At so many ClickHouse delays inserts.
    pub delay: u64,
    /// At so many it refuses them.
    pub throw: u64,
}

/// What a [`Horizon`] was answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HorizonTold {
    /// The highest `_src_o` at or past the one asked for, by table; absent where there is none.
    pub found: Vec<(Name, u64)>,
    /// Who answered.
    pub asked: Vec<ServerId>,
    /// Who did not, each with the reason.
    pub not_asked: Vec<String>,
}

/// Which servers are there, and which one new ranges go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhichServers {
    pub timeout: Duration,
}
