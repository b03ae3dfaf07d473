//! Messages to the topics beside the log, and what became of each.

use super::clients::LogClients;
use arc_swap::ArcSwap;
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::statistics::Statistics;
use sluice_common::failpoint::Point;
use sluice_common::limits::KAFKA_APPEND_DEADLINE;
use sluice_kafka::{LastWords, Speaks, made, may_end, told};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Of one batch under way at once.
const AT_ONCE: usize = 16;
/// How long a full queue is left to drain before it is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(5);

type Producer = ThreadedProducer<Context>;
/// Where a message came to lie, or why nobody knows.
type Answer = Result<i64, String>;

/// A way to one topic.
pub(super) struct Messages {
    clients: LogClients,
    topic: String,
    /// How long an answer is waited for.
    patience: Duration,
    producer: ArcSwap<Producer>,
}

/// Messages to one partition, some of them under way together.
pub(super) struct Batch<'a> {
    messages: &'a Messages,
    partition: u16,
    sender: SyncSender<Answer>,
    answers: Receiver<Answer>,
    under_way: usize,
}

struct Context(LastWords);

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.0.heard(&statistics);
    }
}

impl Speaks for Context {
    fn words(&self) -> &LastWords {
        &self.0
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<SyncSender<Answer>>;

    fn delivery(&self, result: &DeliveryResult<'_>, answer: Box<SyncSender<Answer>>) {
        let told = match result {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(self.0.why(error)),
        };
        // Whoever waited may have given up.
        answer.send(told).ok();
    }
}

fn producer(clients: &LogClients) -> Result<Producer, String> {
    made(&clients.messages_producer(), Context(LastWords::default()))
}

impl Messages {
    pub(super) fn new(clients: &LogClients, topic: String, patience: Duration) -> Result<Self, String> {
        Ok(Self {
            producer: ArcSwap::from_pointee(producer(clients)?),
            clients: clients.clone(),
            topic,
            patience,
        })
    }

    pub(super) fn batch(&self, partition: u16) -> Batch<'_> {
        // No more answers come than are waited for: nobody who sends one is held up.
        let (sender, answers) = sync_channel(AT_ONCE);
        Batch {
            messages: self,
            partition,
            sender,
            answers,
            under_way: 0,
        }
    }

    /// One message; where it lies. Blocks.
    ///
    /// # Errors
    /// It is not known to be there.
    pub(super) fn put(&self, partition: u16, key: &str, value: Option<&[u8]>) -> io::Result<i64> {
        let mut batch = self.batch(partition);
        batch.put(key, value)?;
        batch.answer()
    }

    fn error(&self, reason: &str) -> io::Error {
        io::Error::other(format!("{}: {reason}", self.topic))
    }

    /// A producer with a fatal error sends nothing more: the next try has another one.
    fn replace_broken(&self, broken: &Arc<Producer>) -> io::Result<()> {
        if broken.client().fatal_error().is_some() {
            let fresh = producer(&self.clients).map_err(io::Error::other)?;
            // Where another call was faster, this one is dropped unused.
            self.producer.compare_and_swap(broken, Arc::new(fresh));
        }
        Ok(())
    }
}

impl Batch<'_> {
    /// Sends a message, or a tombstone. Blocks while as many as may be are under way.
    ///
    /// # Errors
    /// It, or one before it, is not known to be there.
    pub(super) fn put(&mut self, key: &str, value: Option<&[u8]>) -> io::Result<()> {
        if self.under_way == AT_ONCE {
            self.answer()?;
        }
        let producer = self.messages.producer.load_full();
        let until = Instant::now() + KAFKA_APPEND_DEADLINE;
        let mut record = BaseRecord::with_opaque_to(&self.messages.topic, Box::new(self.sender.clone()))
            .partition(i32::from(self.partition))
            .key(key);
        if let Some(value) = value {
            record = record.payload(value);
        }
        loop {
            may_end(producer.client(), Point::BesideSend);
            let Err((error, again)) = producer.send(record) else {
                may_end(producer.client(), Point::BesideSent);
                self.under_way += 1;
                return Ok(());
            };
            record = again;
            let is_full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            if !is_full {
                self.messages.replace_broken(&producer)?;
            }
            if !is_full || Instant::now() > until {
                return Err(self.messages.error(&told(&error)));
            }
            std::thread::sleep(FULL_PAUSE);
        }
    }

    /// Waits until all of them are there.
    ///
    /// # Errors
    /// One is not known to be.
    pub(super) fn end(mut self) -> io::Result<()> {
        while self.under_way > 0 {
            self.answer()?;
        }
        Ok(())
    }

    fn answer(&mut self) -> io::Result<i64> {
        self.under_way -= 1;
        let answer = self.answers.recv_timeout(self.messages.patience);
        let answer = answer.unwrap_or_else(|_| Err("the brokers did not answer in time".into()));
        answer.map_err(|reason| self.messages.error(&reason))
    }
}
