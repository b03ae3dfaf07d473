//! The embedded log as intake and the pump see it: one partition, the first.

use super::{AppendError, EmbeddedLog, ReadError};
use crate::intake::Spread;
use crate::log::{Backlog, Closed, Log, Partition, Standing};
use futures_util::future::BoxFuture;
use sluice_common::clock::UnixMs;
use sluice_common::ids::{LogId, Offset, TenantId};
use sluice_common::record::{Record, RecordContent};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The only partition.
pub const PARTITION: u16 = 0;

impl Log for Arc<EmbeddedLog> {
    fn id(&self) -> LogId {
        EmbeddedLog::id(self)
    }

    fn hash_secret(&self) -> [u8; 32] {
        EmbeddedLog::hash_secret(self)
    }

    fn spread(&self) -> Spread {
        Spread::ONE
    }

    fn append(&self, records: Vec<(u16, RecordContent)>) -> BoxFuture<'_, Vec<Result<(), AppendError>>> {
        let count = records.len();
        let records = records.into_iter().map(|(_, record)| record).collect();
        Box::pin(async move {
            let appended = EmbeddedLog::append(self, records).await.map(drop);
            vec![appended; count]
        })
    }

    fn group_patience(&self) -> Duration {
        // Until it is synced: one disk syncs one group after the other.
        Duration::MAX
    }

    fn is_full(&self, _: &str) -> bool {
        // There are no others.
        false
    }

    fn standing(&self, _: Option<&TenantId>) -> Standing {
        let stats = self.stats();
        Standing {
            backlog_bytes: stats.backlog_bytes,
            queued_bytes: stats.queued_bytes,
            oldest_backlog_append_ms: stats.oldest_backlog_append_ms,
            closed: stats.closed.map(Closed::Full),
        }
    }

    fn backlogs(&self) -> Vec<Backlog> {
        let stats = self.stats();
        vec![Backlog {
            partition: PARTITION,
            bytes: stats.backlog_bytes,
            records: None,
            oldest_append_ms: stats.oldest_backlog_append_ms,
        }]
    }

    fn disk_bytes(&self) -> u64 {
        self.stats().disk_bytes
    }

    fn pin(&self, from: &BTreeMap<u16, Offset>) {
        EmbeddedLog::pin(self, from.get(&PARTITION).copied());
    }

    fn close(&self) {
        EmbeddedLog::close(self);
    }
}

/// An embedded log's only partition. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Whole(pub Arc<EmbeddedLog>);

impl Partition for Whole {
    fn log(&self) -> LogId {
        self.0.id()
    }

    fn number(&self) -> u16 {
        PARTITION
    }

    fn durable_end(&self) -> watch::Receiver<Offset> {
        self.0.durable_end()
    }

    fn first_offset(&self) -> Offset {
        self.0.first_offset()
    }

    fn read(&self, from: Offset, max_bytes: usize) -> Result<Vec<Record>, ReadError> {
        self.0.read(from, max_bytes)
    }

    fn appended_since(&self, ms: UnixMs) -> Result<Offset, ReadError> {
        Ok(self.0.first_offset_appended_at_or_after(ms))
    }

    fn set_progress(&self, committed: Offset, sealed: Offset) {
        self.0.set_progress(committed, sealed);
    }

    fn wants_seal(&self) -> bool {
        self.0.wants_seal()
    }

    fn beside(&self) -> Arc<dyn Partition> {
        Arc::new(self.clone())
    }
}
