//! Records that a log in Kafka has more than once, though nobody sent them again.
//!
//! librdkafka leaves such copies by itself: where the time of a record is over, the producer goes on under another epoch
//! in all partitions, and a record that is sent again then, for its first answer was lost, is no repeat to the brokers.
//! Dedup drops its rows, and the books count them as received and as repeats. So they are counted here, exactly: what was
//! received beyond what was sent is these, and nothing else.

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use sluice_common::record::Record;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// For each answer of the brokers.
const DEADLINE: Duration = Duration::from_secs(60);

/// Where a log in Kafka lies.
#[derive(Debug, Clone)]
pub struct LogTopic {
    pub brokers: String,
    pub topic: &'static str,
}

impl LogTopic {
    /// The events of copies, rejected ones too, by tenant.
    ///
    /// # Panics
    /// Where the topic cannot be read, or has anything but records.
    #[must_use]
    pub fn copies(&self) -> BTreeMap<String, u64> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", "copies");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let told = consumer
            .fetch_metadata(Some(self.topic), DEADLINE)
            .expect("the topic");
        let (mut ends, mut assigned) = (BTreeMap::new(), TopicPartitionList::new());
        for partition in told.topics()[0].partitions() {
            let partition = partition.id();
            let (first, end) = consumer
                .fetch_watermarks(self.topic, partition, DEADLINE)
                .expect("offsets");
            if first < end {
                assigned
                    .add_partition_offset(self.topic, partition, Offset::Offset(first))
                    .expect("an offset");
                ends.insert(partition, end);
            }
        }
        consumer.assign(&assigned).expect("partitions");
        let (mut seen, mut copies) = (HashSet::new(), BTreeMap::new());
        while !ends.is_empty() {
            let message = consumer.poll(DEADLINE).expect("a message in time");
            let message = message.expect("a message");
            let partition = message.partition();
            if ends
                .get(&partition)
                .is_some_and(|end| message.offset() + 1 >= *end)
            {
                ends.remove(&partition);
            }
            let frame = message.payload().expect("a record");
            // The edge names each request anew: no two records of different sendings are alike.
            if !seen.insert((partition, frame.to_vec())) {
                let record = Record::placed(frame, 0, 0).expect("a record");
                let events = record
                    .spans()
                    .map(|span| u64::from(span.rows) + u64::from(span.rejected));
                *copies.entry(record.meta.tenant.to_string()).or_default() += events.sum::<u64>();
            }
        }
        copies
    }
}
