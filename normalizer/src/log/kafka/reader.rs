//! One partition, read ahead.
//!
//! A thread polls a consumer of its own and keeps what comes in memory, within a bound of bytes; readers take it from
//! there, in order. What a reader has passed is dropped; one that asks for what is not at hand has the consumer begin
//! there anew. The thread lives as long as the partition's handle, and begins with the first question.

use super::Sizes;
use super::clients::{ASK_DEADLINE, LogClients};
use super::manifest::from;
use crate::log::{Partition, ReadError};
use parking_lot::{Condvar, Mutex};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _, Timestamp};
use rdkafka::topic_partition_list::{self, TopicPartitionList};
use sluice_common::clock::UnixMs;
use sluice_common::ids::{LogId, Offset};
use sluice_common::limits::KAFKA_TAIL_BYTES;
use sluice_common::record::Record;
use sluice_kafka::LastWords;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a message is waited for before somebody looks whether something else is asked for.
const POLL: Duration = Duration::from_millis(50);
/// For how long nothing may come before the brokers are asked whether they are there: a consumer that has lost all of its
/// own gets nothing, and says nothing.
const QUIET: Duration = Duration::from_secs(5);
/// How long they have to answer that: what comes meanwhile waits.
const THERE_DEADLINE: Duration = Duration::from_secs(1);
/// How long a reader waits for records that are there.
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// How often the same is said of brokers that give nothing.
const SAY_EVERY: Duration = Duration::from_secs(30);
/// By how much brokers' clocks may differ: of times that go back, the earlier record counts.
const CLOCK_SLACK_MS: u64 = 10 * 60 * 1_000;

/// One partition of the log, as one reader sees it.
pub struct KafkaPartition {
    of: Of,
    first: AtomicU64,
    shared: Arc<Shared>,
}

/// Which one it is.
#[derive(Clone)]
struct Of {
    clients: LogClients,
    log: LogId,
    number: u16,
    sizes: Arc<Sizes>,
}

struct Shared {
    tail: Mutex<Tail>,
    changed: Condvar,
    end: watch::Sender<Offset>,
}

#[derive(Default)]
struct Tail {
    /// Of the first record at hand.
    base: Offset,
    records: VecDeque<Record>,
    bytes: usize,
    /// Where the consumer is to begin anew.
    wanted: Option<Offset>,
    /// Counts these beginnings: what came of an earlier one is not taken.
    turn: u64,
    failed: Option<Failure>,
    /// What was told last of brokers that give nothing.
    said: Option<String>,
    said_at: Option<Instant>,
    running: bool,
    closed: bool,
}

#[derive(Clone)]
enum Failure {
    OutOfReach,
    Foreign { offset: Offset, reason: String },
}

impl Tail {
    fn end(&self) -> Offset {
        self.base + self.records.len() as u64
    }
}

impl Of {
    /// Where the partition begins and ends now.
    fn range(&self) -> Result<(Offset, Offset), String> {
        let asking = self.clients.asking()?;
        let (topic, number) = (&self.clients.topic, i32::from(self.number));
        let range = asking.fetch_watermarks(topic, number, ASK_DEADLINE);
        let (low, high) = range.map_err(|error| asking.context().why(&error))?;
        Ok((low.cast_unsigned(), high.cast_unsigned()))
    }
}

impl KafkaPartition {
    /// A partition of which nothing is read yet. Blocks until the brokers tell where it begins.
    pub(super) fn open(
        clients: &LogClients,
        (log, number): (LogId, u16),
        sizes: Arc<Sizes>,
    ) -> Result<Self, String> {
        let clients = clients.clone();
        let of = Of {
            clients,
            log,
            number,
            sizes,
        };
        let (first, _) = of.range()?;
        Ok(Self::unread(of, first))
    }

    fn unread(of: Of, first: Offset) -> Self {
        Self {
            of,
            first: AtomicU64::new(first),
            shared: Arc::new(Shared {
                tail: Mutex::default(),
                changed: Condvar::new(),
                end: watch::Sender::new(0),
            }),
        }
    }

    /// Has it be read from an offset on.
    pub(super) fn begin(&self, from: Offset) {
        let mut tail = self.shared.tail.lock();
        self.seek(&mut tail, from);
    }

    fn seek(&self, tail: &mut Tail, from: Offset) {
        let (running, turn) = (tail.running, tail.turn + 1);
        *tail = Tail {
            base: from,
            wanted: Some(from),
            running: true,
            turn,
            ..Tail::default()
        };
        self.shared.changed.notify_all();
        if !running {
            let reader = Reader {
                of: self.of.clone(),
                shared: Arc::clone(&self.shared),
            };
            let thread = std::thread::Builder::new().name(format!("log-reader-{}", self.of.number));
            if let Err(error) = thread.spawn(move || reader.run()) {
                tail.running = false;
                tail.said = Some(error.to_string());
            }
        }
    }

    fn error(&self, failure: &Failure) -> ReadError {
        match failure {
            Failure::OutOfReach => {
                if let Ok((low, _)) = self.of.range() {
                    self.first.store(low, Ordering::Relaxed);
                }
                ReadError::OutOfReach {
                    first: self.first_offset(),
                }
            }
            Failure::Foreign { offset, reason } => ReadError::Foreign {
                partition: self.of.number,
                offset: *offset,
                reason: reason.clone(),
            },
        }
    }
}

impl Partition for KafkaPartition {
    fn log(&self) -> LogId {
        self.of.log
    }

    fn number(&self) -> u16 {
        self.of.number
    }

    fn durable_end(&self) -> watch::Receiver<Offset> {
        self.shared.end.subscribe()
    }

    fn end(&self) -> Result<Offset, ReadError> {
        let (low, high) = self.of.range().map_err(ReadError::Unavailable)?;
        self.first.store(low, Ordering::Relaxed);
        Ok(high)
    }

    fn first_offset(&self) -> Offset {
        self.first.load(Ordering::Relaxed)
    }

    fn read(&self, from: Offset, max_bytes: usize) -> Result<Vec<Record>, ReadError> {
        let until = Instant::now() + READ_DEADLINE;
        let mut tail = self.shared.tail.lock();
        if !tail.running || from < tail.base || from > tail.end() {
            self.seek(&mut tail, from);
        }
        while tail.base < from {
            let Some(passed) = tail.records.pop_front() else {
                break;
            };
            tail.base += 1;
            tail.bytes -= passed.frame().len();
        }
        self.shared.changed.notify_all();
        loop {
            if !tail.records.is_empty() {
                return Ok(taken(&tail.records, max_bytes));
            }
            if let Some(failure) = tail.failed.clone() {
                drop(tail);
                return Err(self.error(&failure));
            }
            if self.shared.changed.wait_until(&mut tail, until).timed_out() {
                let reason = tail.said.clone().unwrap_or_else(|| "nothing came in time".into());
                return Err(ReadError::Unavailable(reason));
            }
        }
    }

    fn usable(&self) -> Result<(), ReadError> {
        let failed = self.shared.tail.lock().failed.clone();
        failed.map_or(Ok(()), |failure| Err(self.error(&failure)))
    }

    fn appended_since(&self, ms: UnixMs) -> Result<Offset, ReadError> {
        let asked = || -> Result<Offset, String> {
            let asking = self.of.clients.asking()?;
            let since = i64::try_from(ms.saturating_sub(CLOCK_SLACK_MS)).unwrap_or(i64::MAX);
            let mut list = TopicPartitionList::new();
            let at = topic_partition_list::Offset::Offset(since);
            let added = list.add_partition_offset(&self.of.clients.topic, i32::from(self.of.number), at);
            added.map_err(|error| error.to_string())?;
            let told = asking.offsets_for_times(list, ASK_DEADLINE);
            let told = told.map_err(|error| asking.context().why(&error))?;
            match told.elements().first().map(|one| one.offset()) {
                Some(topic_partition_list::Offset::Offset(offset)) => Ok(offset.cast_unsigned()),
                // Nothing is as late: whatever is there may be needed.
                _ => Ok(self.first_offset()),
            }
        };
        asked().map_err(ReadError::Unavailable)
    }

    fn set_progress(&self, _: Offset, _: Offset) {
        // The topic keeps what it keeps by its age alone.
    }

    fn wants_seal(&self) -> bool {
        false
    }

    fn beside(&self) -> Arc<dyn Partition> {
        Arc::new(Self::unread(self.of.clone(), self.first_offset()))
    }
}

impl Drop for KafkaPartition {
    fn drop(&mut self) {
        self.shared.tail.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

/// The first records, within a bound of bytes; one at least.
fn taken(records: &VecDeque<Record>, max_bytes: usize) -> Vec<Record> {
    let mut bytes = 0;
    let fits = |record: &&Record| {
        let first = bytes == 0;
        bytes += record.frame().len();
        first || bytes <= max_bytes
    };
    records.iter().take_while(fits).cloned().collect()
}

/// The thread behind a handle.
struct Reader {
    of: Of,
    shared: Arc<Shared>,
}

impl Reader {
    fn run(self) {
        let consumer = loop {
            match self.of.clients.asking() {
                Ok(consumer) => break consumer,
                Err(reason) => {
                    let mut tail = self.shared.tail.lock();
                    tail.said = Some(reason);
                    self.shared.changed.wait_for(&mut tail, Duration::from_secs(1));
                    if tail.closed {
                        return;
                    }
                }
            }
        };
        let (mut turn, mut came) = (0, Instant::now());
        while let Some((now, wanted)) = self.room() {
            if let Some(offset) = wanted {
                turn = now;
                let offset = i64::try_from(offset).unwrap_or(i64::MAX);
                if let Err(reason) = from(&consumer, (&self.of.clients.topic, self.of.number), offset) {
                    self.shared.tail.lock().said = Some(reason);
                }
            }
            consumer.context().look_after();
            match consumer.poll(POLL) {
                Some(Ok(message)) => {
                    self.take(turn, &message);
                    came = Instant::now();
                }
                Some(Err(error)) => self.failed(turn, &consumer, &error),
                None if came.elapsed() >= QUIET => {
                    self.look_for_brokers(&consumer);
                    came = Instant::now();
                }
                None => {}
            }
        }
    }

    fn look_for_brokers(&self, consumer: &BaseConsumer<LastWords>) {
        if let Err(error) = consumer.fetch_metadata(Some(&self.of.clients.topic), THERE_DEADLINE) {
            let reason = consumer.context().why(&error);
            tracing::debug!(reason, partition = self.of.number, "the log gives nothing now");
        }
    }

    /// Waits until there is room. The turn, and where to begin anew; none where nobody reads any more.
    fn room(&self) -> Option<(u64, Option<Offset>)> {
        let mut tail = self.shared.tail.lock();
        loop {
            if tail.closed {
                return None;
            }
            let wanted = tail.wanted.take();
            if wanted.is_some() || (tail.bytes < KAFKA_TAIL_BYTES && tail.failed.is_none()) {
                return Some((tail.turn, wanted));
            }
            self.shared.changed.wait(&mut tail);
        }
    }

    fn take(&self, turn: u64, message: &BorrowedMessage<'_>) {
        let offset = message.offset().cast_unsigned();
        let record = self.record(message);
        let mut tail = self.shared.tail.lock();
        if tail.turn != turn || tail.closed {
            return;
        }
        let expected = tail.end();
        if offset < expected {
            return;
        }
        let record = record.and_then(|record| match offset == expected {
            true => Ok(record),
            false => Err(format!(
                "records {expected} to {} are missing before it",
                offset - 1
            )),
        });
        match record {
            Ok(record) => {
                tail.bytes += record.frame().len();
                self.of.sizes.add(record.frame().len());
                tail.records.push_back(record);
                (tail.said, tail.said_at) = (None, None);
                self.shared.end.send_replace(tail.end());
            }
            Err(reason) => {
                tail.failed = Some(Failure::Foreign { offset, reason });
                // Whoever waits for more looks why there is none.
                self.shared.end.send_modify(|_| ());
            }
        }
        self.shared.changed.notify_all();
    }

    /// What a message says, or why it is no record of this log.
    fn record(&self, message: &BorrowedMessage<'_>) -> Result<Record, String> {
        let Timestamp::LogAppendTime(ms) = message.timestamp() else {
            return Err("it has no append time: set message.timestamp.type=LogAppendTime".into());
        };
        let offset = message.offset().cast_unsigned();
        let value = message.payload().unwrap_or_default();
        let record =
            Record::placed(value, offset, ms.max(0).cast_unsigned()).map_err(|bad| bad.to_string())?;
        if record.place.log != self.of.log {
            return Err(format!("it is of log {}", record.place.log));
        }
        Ok(record)
    }

    fn failed(&self, turn: u64, consumer: &BaseConsumer<LastWords>, error: &KafkaError) {
        let reason = consumer.context().why(error);
        let lost = [
            Some(RDKafkaErrorCode::AutoOffsetReset),
            Some(RDKafkaErrorCode::OffsetOutOfRange),
        ];
        let mut tail = self.shared.tail.lock();
        if tail.turn != turn {
            return;
        }
        if lost.contains(&error.rdkafka_error_code()) {
            tail.failed = Some(Failure::OutOfReach);
            self.shared.end.send_modify(|_| ());
        }
        if tail.said_at.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            tracing::warn!(
                reason,
                partition = self.of.number,
                "the log gives nothing now; it is asked again"
            );
            tail.said_at = Some(Instant::now());
        }
        tail.said = Some(reason);
        self.shared.changed.notify_all();
    }
}
