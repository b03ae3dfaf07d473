//! Appending records: each a message, and what became of it told apart (R4).
//!
//! A producer that librdkafka says will never send again is replaced. What it had not sent is certainly not there; what it
//! had is waited for as before, and is durable, unknown or not there, as librdkafka says of each message.

use super::Sizes;
use super::backlog::Watch;
use super::clients::{ASK_DEADLINE, LogClients};
use crate::log::AppendError;
use arc_swap::ArcSwap;
use futures_util::future::join_all;
use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::statistics::Statistics;
use sluice_common::failpoint::Point;
use sluice_common::ids::LogId;
use sluice_common::limits::{KAFKA_APPEND_DEADLINE, LOG_QUEUE_BYTES, SHUTDOWN_DEADLINE};
use sluice_common::record::{Placement, RecordContent};
use sluice_kafka::{LastWords, Speaks, certainly_not_there, made, may_end, told};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long a producer that has ended is waited for: by then each of its messages has its answer, or its time is over.
const LAST_ANSWERS: Duration = KAFKA_APPEND_DEADLINE.saturating_add(ASK_DEADLINE);

type Threaded = ThreadedProducer<Context>;
type Outcome = Result<(), AppendError>;

pub(super) struct LogProducer {
    clients: LogClients,
    log: LogId,
    current: ArcSwap<Threaded>,
    sizes: Arc<Sizes>,
    /// Of frames under way.
    queued: Arc<AtomicUsize>,
    closed: AtomicBool,
    /// Held while a producer is replaced.
    replacing: Mutex<()>,
    watch: Watch,
}

/// A record under way.
pub(super) struct Delivery {
    outcome: oneshot::Sender<Outcome>,
    bytes: usize,
    queued: Arc<AtomicUsize>,
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.queued.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Told by librdkafka.
pub(super) struct Context(LastWords, Watch);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, text: &str) {
        self.0.log(level, fac, text);
    }

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
    type DeliveryOpaque = Box<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Box<Delivery>) {
        let outcome = match result {
            Ok(message) => {
                self.1.appended(message.partition(), message.offset());
                Ok(())
            }
            Err((error, message)) => {
                let reason = self.0.why(error);
                let definite = certainly_not_there(message);
                tracing::debug!(reason, definite, "a record was not delivered");
                Err(if definite {
                    AppendError::WriteFailed(reason)
                } else {
                    AppendError::Unknown
                })
            }
        };
        let (waiting, _) = oneshot::channel();
        let mut delivery = delivery;
        // Whoever waited may be gone.
        std::mem::replace(&mut delivery.outcome, waiting)
            .send(outcome)
            .ok();
    }
}

impl LogProducer {
    /// A producer for a log; `watch` is told what it appended.
    pub(super) fn new(
        clients: &LogClients,
        log: LogId,
        (sizes, watch): (Arc<Sizes>, Watch),
    ) -> Result<Self, String> {
        Ok(Self {
            current: ArcSwap::from_pointee(producer(clients, &watch)?),
            watch,
            clients: clients.clone(),
            log,
            sizes,
            queued: Arc::default(),
            closed: AtomicBool::new(false),
            replacing: Mutex::default(),
        })
    }

    /// Bytes of frames that the brokers have not answered for.
    pub(super) fn queued_bytes(&self) -> u64 {
        self.queued.load(Ordering::Relaxed) as u64
    }

    /// Appends records, each to its partition. Once this was polled it goes on, even if it is dropped.
    pub(super) async fn append(&self, records: Vec<(u16, RecordContent)>) -> Vec<Outcome> {
        let sent: Vec<_> = records
            .into_iter()
            .map(|(partition, record)| self.send(partition, &record))
            .collect();
        let answered = sent.into_iter().map(|sent| async {
            match sent {
                Ok(answer) => answer.await.unwrap_or(Err(AppendError::Unknown)),
                Err(refused) => Err(refused),
            }
        });
        let outcomes = join_all(answered).await;
        if outcomes.iter().any(Result::is_err) {
            self.replace_broken();
        }
        outcomes
    }

    fn send(
        &self,
        partition: u16,
        record: &RecordContent,
    ) -> Result<oneshot::Receiver<Outcome>, AppendError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(AppendError::Closed);
        }
        let place = Placement {
            log: self.log,
            offset: 0,
            append_ms: 0,
            durable_below: 0,
        };
        let mut frame = Vec::new();
        record.write(place, &mut frame);
        let bytes = frame.len();
        if self.queued.fetch_add(bytes, Ordering::Relaxed) + bytes > LOG_QUEUE_BYTES {
            self.queued.fetch_sub(bytes, Ordering::Relaxed);
            return Err(AppendError::Busy);
        }
        let (outcome, answer) = oneshot::channel();
        let delivery = Delivery {
            outcome,
            bytes,
            queued: Arc::clone(&self.queued),
        };
        let message = BaseRecord::with_opaque_to(&self.clients.topic, Box::new(delivery))
            .partition(i32::from(partition))
            .key(&())
            .payload(&frame);
        // The message is copied: what is refused here is not there.
        let producer = self.current.load();
        may_end(producer.client(), Point::ProduceSend);
        match producer.send(message) {
            Ok(()) => {
                may_end(producer.client(), Point::ProduceSent);
                self.sizes.add(bytes);
                Ok(answer)
            }
            Err((error, _)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => {
                Err(AppendError::Busy)
            }
            Err((error, _)) => Err(AppendError::WriteFailed(told(&error))),
        }
    }

    /// A producer with a fatal error sends nothing more. Of all that meet the error one makes another producer.
    fn replace_broken(&self) {
        let _turn = self.replacing.lock();
        let Some((code, reason)) = self.current.load().client().fatal_error() else {
            return;
        };
        match producer(&self.clients, &self.watch) {
            Ok(fresh) => {
                tracing::warn!(%code, reason, "the producer of the log has ended; another one goes on");
                end(self.current.swap(Arc::new(fresh)));
            }
            Err(why) => {
                tracing::error!(%code, reason, why, "the producer of the log has ended, and no other can be made; it is tried again");
            }
        }
    }

    /// Takes no more, and waits for what is under way.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        if let Err(error) = self.current.load().flush(SHUTDOWN_DEADLINE / 2) {
            tracing::warn!(%error, "records were under way to the brokers, and nobody knows whether they are there");
        }
    }
}

fn producer(clients: &LogClients, watch: &Watch) -> Result<Threaded, String> {
    made(&clients.producer(), Context(LastWords::default(), watch.clone()))
}

/// Waits for the answers to what a broken producer had sent: dropped before, it forgets that these are awaited, and what
/// the brokers took would be unknown. Not where others wait: it takes as long as the brokers do.
fn end(broken: Arc<Threaded>) {
    tokio::task::spawn_blocking(move || {
        if let Err(error) = broken.flush(LAST_ANSWERS) {
            tracing::warn!(%error, "a producer that has ended is not told what became of records");
        }
    });
}
