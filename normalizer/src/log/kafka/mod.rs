//! The log that several normalizers share: a Kafka topic.
//!
//! # Constraints
//! - A batch is acknowledged only once every in-sync replica has all of it (`acks=all`). Refused is told only of what is
//!   certainly not there and never will be; all else that is not acknowledged is unknown (R4).
//! - Appending twice does no harm: dedup lies behind the log. So the append side keeps no state, and nothing rests on the
//!   producer's idempotence.
//! - The log is what the brokers gave this *topic*: its id is made of theirs, so one that was deleted and made anew is
//!   another log, whatever its name (R1).
//! - Progress lives with the log, as the group's committed offset and what is written beside it, and only the member
//!   whose partition it is can move it (R18). Nothing on this machine's disk is needed.
//! - What cannot be read is never passed over: a partition whose offsets are out of range, or that holds what is no
//!   record of this log, stops with an alarm (R18).
//!
//! # Topics
//! `TOPIC` has the records: a message's value is a frame ([`sluice_common::record`]) whose place is 0; offset and append
//! time are the message's (`LogAppendTime`). `TOPIC.state` is kept for ever: in its first partition the manifest
//! ([`manifest`]), in each the progress of a range that is too long for an offset's metadata ([`seat`]).
//!
//! `TOPIC.parked` is compacted, and has what is set aside ([`units`]).
//!
//! # Append ([`producer`])
//! One producer; a record is one message, to the partition that its keys hash to. What is under way is bounded in bytes.
//!
//! # Read ([`reader`])
//! A consumer for each partition that is worked on, outside of the group, so that a rebalance of others stops nobody.
//! It reads ahead within a bound of bytes.
//!
//! # Ownership and progress ([`member`], [`seat`])
//! A consumer that reads nothing is our seat in the group. Each time a partition comes, it gets a new epoch; what was
//! begun under an older one cannot commit.
//!
//! # Backlog ([`backlog`])
//! Every second the group's offsets and the topic's ends are asked for: they say, whoever works on which partition, how
//! much is not stored yet. While they are not told, nothing is taken.

mod backlog;
mod clients;
mod fit;
mod manifest;
pub mod member;
mod messages;
mod open;
mod producer;
mod reader;
pub mod seat;
pub mod units;

pub use clients::LogClients;
pub use member::{Assigned, Member};
pub use open::{KafkaLogError, look};
pub use reader::KafkaPartition;

use super::{AppendError, Backlog, Log, Standing};
use crate::intake::Spread;
use backlog::Watch;
use futures_util::future::BoxFuture;
use manifest::Manifest;
use producer::LogProducer;
use sluice_common::clock::SharedClock;
use sluice_common::ids::{LogId, Name, TenantId};
use sluice_common::record::RecordContent;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use units::Units;

/// How long a group of records keeps the next one back: what a broker needs for one where nothing is wrong.
const GROUP_PATIENCE: Duration = Duration::from_millis(20);
/// Bytes of a record before any was seen.
const USUAL_RECORD_BYTES: u64 = 16 << 10;

/// An open log.
pub struct KafkaLog {
    clients: LogClients,
    manifest: Manifest,
    producer: LogProducer,
    watch: Watch,
    sizes: Arc<Sizes>,
    /// What is set aside.
    pub units: Units,
}

/// How large records are: those that were written or read here.
#[derive(Debug, Default)]
pub struct Sizes {
    bytes: AtomicU64,
    records: AtomicU64,
}

impl Sizes {
    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.records.fetch_add(1, Ordering::Relaxed);
    }

    fn mean(&self) -> u64 {
        match self.records.load(Ordering::Relaxed) {
            0 => USUAL_RECORD_BYTES,
            records => self.bytes.load(Ordering::Relaxed) / records,
        }
    }
}

impl KafkaLog {
    /// Opens the log, or makes one where there is none. Blocks until the brokers have told all about it.
    ///
    /// # Errors
    /// [`KafkaLogError`], saying what to do.
    pub fn open(clients: LogClients, clock: SharedClock) -> Result<Arc<Self>, KafkaLogError> {
        let manifest = open::open(&clients)?;
        let sizes = Arc::new(Sizes::default());
        let watch = Watch::start(&clients, &manifest, Arc::clone(&sizes), clock)?;
        let producer = LogProducer::new(&clients, manifest.log, (Arc::clone(&sizes), watch.clone()))?;
        Ok(Arc::new(Self {
            units: Units::new(&clients)?,
            clients,
            manifest,
            producer,
            watch,
            sizes,
        }))
    }

    /// One of its partitions, read from `from` on.
    ///
    /// # Errors
    /// A sentence where the brokers do not tell of it.
    pub fn partition(&self, number: u16, from: u64) -> Result<Arc<KafkaPartition>, String> {
        let of = (self.manifest.log, number);
        let partition = KafkaPartition::open(&self.clients, of, Arc::clone(&self.sizes))?;
        partition.begin(from);
        Ok(Arc::new(partition))
    }
}

impl Log for Arc<KafkaLog> {
    fn id(&self) -> LogId {
        self.manifest.log
    }

    fn hash_secret(&self) -> [u8; 32] {
        self.manifest.secret
    }

    fn spread(&self) -> Spread {
        Spread::new(self.manifest.partitions, self.manifest.tenant_partitions)
    }

    fn append(&self, records: Vec<(u16, RecordContent)>) -> BoxFuture<'_, Vec<Result<(), AppendError>>> {
        Box::pin(self.producer.append(records))
    }

    fn group_patience(&self) -> Duration {
        GROUP_PATIENCE
    }

    fn standing(&self, tenant: Option<&TenantId>) -> Standing {
        let of = tenant.map(|tenant| Log::spread(self).of_tenant(tenant));
        self.watch.standing(of, self.producer.queued_bytes())
    }

    fn is_full(&self, dataset: &str) -> bool {
        self.watch.is_full(dataset)
    }

    fn is_held(&self, table: &Name) -> bool {
        self.watch.is_held(table)
    }

    fn backlogs(&self) -> Vec<Backlog> {
        self.watch.backlogs()
    }

    fn disk_bytes(&self) -> u64 {
        0
    }

    fn close(&self) {
        self.producer.close();
        self.watch.close();
    }
}
