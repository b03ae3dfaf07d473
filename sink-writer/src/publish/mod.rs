//! A range's kept events, or its dead letters, to a Kafka topic: one message each, in log order, and an answer that
//! says up to which of them all are certainly there.
//!
//! As everything here it persists nothing and asks once (R13): whoever called sends again what is not certain. So
//! an event may be in its topic twice after a crash or a time-out; its headers tell.

mod content;
pub mod message;
mod producer;

pub use sluice_kafka::Target;

use crate::columns::{self, Room};
use arrow_array::RecordBatch;
use content::Asked;
use parking_lot::Mutex;
use producer::{Producer, Tally, Unsent};
use sluice_common::limits::PUBLISH_DEADLINE;
use sluice_common::record::Record;
use sluice_common::wire::publish::{PublishCall, PublishOrder, Published};
use sluice_common::wire::sink::RangeRecord;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How much longer than librdkafka is waited for: it answers for each message by its own deadline.
const ANSWER_GRACE: Duration = Duration::from_secs(2);

/// The way to the brokers. Cloning shares it.
#[derive(Clone, Default)]
pub struct Topics(Arc<Inner>);

impl fmt::Debug for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topics").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Inner {
    target: Mutex<Option<Target>>,
    /// Made on first use, and anew once they are broken or the config names others. One for what is new, and one
    /// for what has waited: a topic in trouble fills its queue, and stops all that share its producer now and then.
    producers: Mutex<[Option<Arc<Producer>>; 2]>,
}

impl Topics {
    /// Brokers from now on.
    pub fn replace(&self, target: Option<Target>) {
        let mut current = self.0.target.lock();
        if *current != target {
            *current = target;
            let old = std::mem::take(&mut *self.0.producers.lock());
            old.into_iter().flatten().for_each(end);
        }
    }

    /// Sends what a call asks for.
    ///
    /// # Errors
    /// A sentence, where nothing was sent.
    pub async fn publish(&self, call: PublishCall) -> Result<Published, String> {
        let deadline = Instant::now() + call.timeout.min(PUBLISH_DEADLINE);
        let producer = self.producer(call.order.waited)?;
        let (tally, order) = (Arc::<Tally>::default(), call.order);
        let sending = {
            let (producer, tally) = (Arc::clone(&producer), Arc::clone(&tally));
            tokio::task::spawn_blocking(move || send(&producer, (&order, &call.records), &tally, deadline))
        };
        let sent = sending.await.map_err(|panic| panic.to_string())?;
        // Each message has its own deadline, counted from its being queued.
        let until = Instant::now() + PUBLISH_DEADLINE + ANSWER_GRACE;
        let failed = tally.wait(until).await;
        if producer.is_broken() {
            self.forget(&producer);
        }
        end(producer);
        Ok(sent.published(failed))
    }

    fn producer(&self, waited: bool) -> Result<Arc<Producer>, String> {
        let target = self.0.target.lock();
        let target = target
            .as_ref()
            .ok_or("`kafka.brokers` names no Kafka to publish to")?;
        let producer = &mut self.0.producers.lock()[usize::from(waited)];
        if let Some(producer) = producer {
            return Ok(Arc::clone(producer));
        }
        let made = Arc::new(Producer::new(target)?);
        *producer = Some(Arc::clone(&made));
        Ok(made)
    }

    /// A fatal error is the producer's end, and nobody else's.
    fn forget(&self, broken: &Arc<Producer>) {
        for producer in self.0.producers.lock().iter_mut() {
            if producer.as_ref().is_some_and(|one| Arc::ptr_eq(one, broken)) {
                tracing::warn!("Kafka's producer ended with a fatal error; another one takes its place");
                *producer = None;
            }
        }
    }
}

/// Gives a producer back. The last to do so waits for its threads, one of which may be asking a name server: not
/// where others wait.
fn end(producer: Arc<Producer>) {
    tokio::task::spawn_blocking(move || drop(producer));
}

/// The messages that a call handed over.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sent {
    /// Events of the range that were looked at, skipped ones included.
    seen: u64,
    skipped: u64,
    /// Places of those that are larger than a message may be.
    too_large: Vec<u64>,
}

impl Sent {
    /// What is certain once all were answered; `failed` is the first that is not there.
    fn published(&self, failed: Option<(u64, String)>) -> Published {
        // What an earlier call did stays done.
        let end = failed.as_ref().map_or(self.seen, |(at, _)| *at);
        let done = end.max(self.skipped);
        let too_large = self.too_large.iter().filter(|at| **at < done).count() as u64;
        Published {
            done,
            sent: done - self.skipped - too_large,
            too_large,
            failed: failed.map(|(_, reason)| reason),
        }
    }
}

/// Hands all events over, in log order; ends at the first that cannot be. Blocks.
fn send(
    producer: &Producer,
    (order, records): (&PublishOrder, &[RangeRecord]),
    tally: &Arc<Tally>,
    deadline: Instant,
) -> Sent {
    let mut sent = Sent {
        skipped: order.skip,
        ..Sent::default()
    };
    let mut room = Room::default();
    let asked = Asked::of(&order.content);
    for one in records {
        let (record, count) = (&one.record, asked.count(one));
        if sent.seen + count <= order.skip {
            sent.seen += count;
            continue;
        }
        let batch = match columns::read(record.body(), record.rows(), &mut room) {
            Ok(batch) => batch,
            Err(error) => {
                tally.fail(sent.seen, format!("record {}: {error}", record.place.offset));
                return sent;
            }
        };
        for row in asked.rows(one) {
            let at = sent.seen;
            if at >= order.skip.saturating_add(order.most) {
                return sent;
            }
            sent.seen += 1;
            if at < order.skip {
                continue;
            }
            match hand_over(
                producer,
                (order, &asked),
                (record, &batch, row),
                (tally, at),
                deadline,
            ) {
                Ok(()) => {}
                Err(Unsent::TooLarge) => sent.too_large.push(at),
                Err(Unsent::Failed(reason)) => {
                    tally.fail(at, reason);
                    return sent;
                }
            }
        }
    }
    sent
}

/// Hands one row over. A dead letter that is larger than a message may be goes with a shorter payload: it is the last
/// of what was acknowledged.
fn hand_over(
    producer: &Producer,
    (order, asked): (&PublishOrder, &Asked<'_>),
    (record, batch, row): (&Record, &RecordBatch, u32),
    answer: (&Arc<Tally>, u64),
    deadline: Instant,
) -> Result<(), Unsent> {
    let mut most = asked.payload_bytes();
    loop {
        let message = asked.message(order, record, (batch, row), most);
        match producer.send((&order.topic, &message), answer, deadline) {
            Ok(()) => return Ok(()),
            Err(Unsent::Failed(reason)) => return Err(Unsent::Failed(reason)),
            Err(Unsent::TooLarge) => match asked.shorter(&message, most) {
                Some(less) => most = less,
                None => return Err(Unsent::TooLarge),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_certain_ends_before_the_first_that_is_not() {
        let sent = Sent {
            seen: 10,
            skipped: 2,
            too_large: vec![3, 7],
        };
        let all = sent.published(None);
        assert_eq!((all.done, all.sent, all.too_large, all.failed), (10, 6, 2, None));
        let some = sent.published(Some((5, "down".into())));
        assert_eq!((some.done, some.sent, some.too_large), (5, 2, 1));
        // Nothing is known: what an earlier call did stays done.
        let none = sent.published(Some((0, "down".into())));
        assert_eq!((none.done, none.sent, none.too_large), (2, 0, 0));
    }
}
