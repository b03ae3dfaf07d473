//! A partition's progress, as the group's offset and what is written beside it.
//!
//! # Design note
//! *What is committed.* The offset below which every record is settled, and beside it, as the offset's metadata, JSON of
//! [`Progress`]: what is declared (R11). Where that is longer than brokers take, it is in the topic beside the log, and
//! the metadata says where.
//!
//! *What is not known* is tried again with the same words, for as long as the epoch lasts.

use super::clients::ASK_DEADLINE;
use super::manifest;
use super::member::{Assigned, Inner};
use crate::progress::store::{Keep, NotKept};
use crate::progress::{Held, Progress};
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use sluice_common::clock::UnixMs;
use sluice_common::ids::{LogId, Name};
use sluice_common::limits::{RETRY_BACKOFF_MAX, RETRY_BACKOFF_MIN};
use sluice_common::metrics::Counter;
use sluice_kafka::told;
use std::sync::Arc;

/// What of an offset's metadata brokers take, less some room: `offset.metadata.max.bytes` is 4,096.
const METADATA_BYTES: usize = 4_000;

/// Where whoever keeps a partition's progress stands.
#[derive(Clone)]
pub(super) struct Seat {
    pub(super) inner: Arc<Inner>,
    pub(super) partition: u16,
    pub(super) epoch: u64,
}

impl Inner {
    /// The group's offset, and what is written beside it; none where it has none.
    fn committed(&self, partition: u16) -> Result<Option<(u64, String)>, String> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.clients.topic, i32::from(partition));
        let why = |error: &KafkaError| self.consumer.context().words.why(error);
        let told = self
            .consumer
            .committed_offsets(list, ASK_DEADLINE)
            .map_err(|error| why(&error))?;
        let told = told.elements();
        let one = told.first().ok_or("the group's offset is not told")?;
        one.error().map_err(|error| why(&error))?;
        let Offset::Offset(offset) = one.offset() else {
            return Ok(None);
        };
        Ok(Some((offset.cast_unsigned(), one.metadata().to_owned())))
    }
}

/// What of a partition's progress cannot be gone on with; a person has to see to it.
#[derive(Debug, thiserror::Error)]
pub enum NoProgress {
    #[error("the group's offset cannot be read now: {0}")]
    Unavailable(String),
    #[error(
        "the group has no offset in partition {0} of the log any more (offsets.retention.minutes, or they were deleted): \
         what was stored is not known, and beginning anew would store it twice. Set it to the record after the last that \
         ClickHouse has (max(_src_o) >> 16, plus 1) by hand: docs/scaling.md says how"
    )]
    Missing(u16),
    #[error(
        "the group's offset in partition {0} of the log was not written by this log's Sluice ({1}): another consumer uses \
         the group, or the topic was made anew"
    )]
    Foreign(u16, String),
}

impl Assigned {
    /// The partition's progress, as whoever had it last left it. Blocks.
    ///
    /// # Errors
    /// [`NoProgress`].
    pub fn progress(&self) -> Result<Progress, NoProgress> {
        let (inner, partition) = (&self.seat.inner, self.partition);
        let committed = inner.committed(partition).map_err(NoProgress::Unavailable)?;
        let (offset, metadata) = committed.ok_or(NoProgress::Missing(partition))?;
        let foreign = |what: &str| NoProgress::Foreign(partition, what.to_owned());
        let progress = match serde_json::from_str::<Long>(&metadata) {
            Ok(Long { long, .. }) => {
                let value = manifest::read_long(&inner.clients, partition, long);
                let value = value.map_err(NoProgress::Unavailable)?;
                serde_json::from_slice(&value)
            }
            Err(_) => serde_json::from_str::<Progress>(&metadata),
        };
        let progress = progress.map_err(|_| foreign(&metadata))?;
        if progress.log != inner.log {
            return Err(foreign(&format!("log {}", progress.log)));
        }
        if progress.committed != offset {
            return Err(foreign(&format!(
                "offset {offset}, and {} beside it",
                progress.committed
            )));
        }
        Ok(progress)
    }

    /// Where progress is kept for as long as the partition is ours.
    #[must_use]
    pub fn keep(&self) -> Box<dyn Keep> {
        Box::new(self.seat.clone())
    }
}

impl Keep for Seat {
    fn keep(&mut self, state: &Progress) -> Result<(), NotKept> {
        let (inner, context) = (&self.inner, self.inner.consumer.context());
        let mut delay = RETRY_BACKOFF_MIN;
        let mut metadata = text(state);
        let long = (metadata.len() > METADATA_BYTES).then(|| std::mem::take(&mut metadata));
        loop {
            context.look_at_name(&inner.consumer);
            if !context.is_current(self.partition, self.epoch) {
                return Err(self.stale());
            }
            let put = self.put_long(state, long.as_deref(), &mut metadata);
            // That may have taken long.
            if !context.is_current(self.partition, self.epoch) {
                return Err(self.stale());
            }
            let committed = put.and_then(|()| {
                let mut list = TopicPartitionList::new();
                add(
                    &mut list,
                    &inner.clients.topic,
                    (self.partition, state.committed),
                    &metadata,
                )?;
                inner.consumer.commit(&list, CommitMode::Sync).map_err(|error| {
                    if is_fenced(&error) {
                        context.pass(self.partition, self.epoch);
                    }
                    context.words.why(&error)
                })
            });
            let Err(reason) = committed else { return Ok(()) };
            tracing::warn!(
                partition = self.partition,
                reason,
                "progress is not kept yet; it is tried again"
            );
            std::thread::sleep(delay);
            delay = (delay * 2).min(RETRY_BACKOFF_MAX);
        }
    }
}

impl Seat {
    /// What is too long for the metadata goes to the topic beside the log first.
    fn put_long(&self, state: &Progress, long: Option<&str>, metadata: &mut String) -> Result<(), String> {
        if let Some(long) = long.filter(|_| metadata.is_empty()) {
            let at = manifest::write_long(&self.inner.clients, self.partition, long.as_bytes())?;
            let long = Long {
                long: at,
                committed_ms: state.committed_ms,
                full: state.full.clone(),
                held: state.held.clone(),
            };
            *metadata = serde_json::to_string(&long).expect("it has no map with other keys than text");
        }
        Ok(())
    }

    fn stale(&self) -> NotKept {
        let (partition, epoch) = (self.partition, self.epoch);
        self.inner
            .consumer
            .context()
            .metrics
            .add(Counter::StaleCommits, 1, &[]);
        tracing::warn!(
            partition,
            epoch,
            "a commit came after the partition had gone: it was dropped"
        );
        NotKept::Fenced
    }
}

/// Where what is too long for an offset's metadata lies.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Long {
    long: i64,
    /// What others want to know at once, of the [`Progress`] there.
    #[serde(default)]
    pub(super) committed_ms: Option<UnixMs>,
    #[serde(default)]
    pub(super) full: Vec<Name>,
    #[serde(default)]
    pub(super) held: Option<Held>,
}

/// Whether the group has another member of our name: this one will never commit again.
fn is_fenced(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::FencedInstanceId | RDKafkaErrorCode::UnknownMemberId)
    )
}

/// Progress as an offset's metadata.
pub(super) fn text(progress: &Progress) -> String {
    serde_json::to_string(progress).expect("progress has no map with other keys than text")
}

/// Whose progress that is.
pub(super) fn log_of(metadata: &str) -> Option<LogId> {
    serde_json::from_str::<Progress>(metadata)
        .ok()
        .map(|progress| progress.log)
}

/// Adds an offset to be committed, with what is written beside it.
pub(super) fn add(
    list: &mut TopicPartitionList,
    topic: &str,
    (partition, offset): (u16, u64),
    metadata: &str,
) -> Result<(), String> {
    let offset = Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
    let added = list.add_partition_offset(topic, i32::from(partition), offset);
    added.map_err(|error| format!("{topic}: {}", told(&error)))?;
    if let Some(mut one) = list.find_partition(topic, i32::from(partition)) {
        one.set_metadata(metadata);
    }
    Ok(())
}
