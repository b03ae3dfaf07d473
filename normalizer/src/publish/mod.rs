//! What dedup kept of a range, to the Kafka topics of its datasets.
//!
//! # Design note
//! *What is owed.* Every event that dedup keeps is in its dataset's topic, in log order, at least once: a crash
//! repeats at most the range under way, and whatever was not certain is sent again. A consumer tells a copy by the
//! headers, which are the provenance of the event's row. The topic follows dedup's decision, not ClickHouse's: an
//! event that ClickHouse refuses is in its topic and in `dead_letters`.
//!
//! *How.* A range is published while it is written to ClickHouse, and committed once both are done (R17). A topic
//! that does not take its events by [`PUBLISH_DEADLINE`] parts with the range, as a table in trouble does (R16): its
//! share is made durable in the outbox, and what comes after it lines up there, so that order holds and nobody
//! waits. One task a dataset sends it later, the oldest first. The outbox is bounded for each dataset; a full one
//! is that dataset's 503.
//!
//! *Files.* `outbox/*.unit`, as [`parked::file`](crate::parked::file) has them; a unit's table is the dataset.
//! A unit of a range that is not committed yet waits for that: a start finds it, and does not send its share twice.

#[cfg(test)]
mod tests;
mod work;

use crate::parked::file::{FileError, UnitId};
use crate::parked::lines::{self, Working};
use crate::parked::shelf::{Line, Share, Shelf};
use crate::progress::Marks;
use crate::progress::closing::Work;
use crate::progress::plan::{Trouble, Why};
use crate::pump::batching::SharedSettings;
use crate::pump::retries::Retries;
use crate::runtime::{Instant, block_in_place, sleep};
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use sluice_common::clock::SharedClock;
use sluice_common::failpoint::{self, Point};
use sluice_common::ids::{LogId, Name};
use sluice_common::limits::{PUBLISH_DEADLINE, PUBLISH_UNITS, RETRY_BACKOFF_MAX, RETRY_BACKOFF_MIN};
use sluice_common::metrics::{Counter, Gauge, Metrics, Values};
use sluice_common::servers::ServerId;
use sluice_common::trace::TraceContext;
use sluice_common::wire::publish::{PublishCall, PublishOrder, Published};
use sluice_common::wire::sink::{Range, RangeRecord, SinkReply, SinkRequest};
use sluice_common::wire::transport::Seam;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

use work::{Lot, events, lots};
pub use work::{TopicPlan, topics_of};

/// What units of the outbox name as their server: there is one Kafka.
const KAFKA: &str = "kafka";
/// Events that a topic in trouble is sent first, and by how much more then each time that it takes all of them.
const PROBE: u64 = 64;
const PROBE_GROWTH: u64 = 8;
/// How much longer than the brokers' time a call may take on its way.
const CALL_GRACE: Duration = Duration::from_secs(5);

/// Publishes a partition's ranges. Cloning shares it.
#[derive(Clone)]
pub struct Publisher {
    sink: Seam<SinkRequest>,
    log: LogId,
    partition: u16,
    pub outbox: Shelf,
    settings: SharedSettings,
    metrics: Metrics,
    clock: SharedClock,
    retries: Retries,
    /// Room for a unit of a topic that takes events, and for one of those that are in trouble.
    room: [Arc<Semaphore>; 2],
    /// Shares that can neither be sent nor be set aside: their range is not committed.
    stuck: Arc<AtomicUsize>,
    /// Events of units in the outbox that are certainly in their topic.
    done: Arc<Mutex<BTreeMap<UnitId, u64>>>,
}

/// A share that is stuck, as long as this is there.
struct Stuck<'a>(&'a AtomicUsize);

impl<'a> Stuck<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Stuck<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Publisher {
    /// A publisher of one partition's ranges; nothing runs yet.
    #[must_use]
    pub fn new(
        (sink, settings): (Seam<SinkRequest>, SharedSettings),
        (log, partition): (LogId, u16),
        outbox: Shelf,
        (metrics, clock, retries): (Metrics, SharedClock, Retries),
    ) -> Self {
        let publisher = Self {
            sink,
            log,
            partition,
            outbox,
            settings,
            metrics,
            clock,
            retries,
            room: [(); PUBLISH_UNITS].map(|()| Arc::new(Semaphore::new(1))),
            done: Arc::default(),
            stuck: Arc::default(),
        };
        publisher.show();
        publisher
    }

    /// Whether a range waits for a share that can neither be sent nor be set aside.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed) > 0
    }

    /// Publishes a range: once this returns, each of its shares is in its topic or in the outbox.
    ///
    /// # Errors
    /// [`FileError`] where nobody knows what is in the outbox: the process must end.
    pub async fn range(&self, range: Range, records: &[RangeRecord]) -> Result<(), FileError> {
        let settings = self.settings.load_full();
        if settings.topics.is_empty() {
            return Ok(());
        }
        // Set aside before a crash.
        let known = self.outbox.tables_of(range);
        let lots = lots(records, &settings.topics).into_iter();
        let left = lots.filter(|lot| !known.contains(&lot.dataset));
        try_join_all(left.map(|lot| self.lot(range, lot))).await?;
        Ok(())
    }

    /// Sent → done; in trouble → set aside.
    async fn lot(&self, range: Range, lot: Lot) -> Result<(), FileError> {
        let mut order = self.order(range, &lot.plan);
        let mut reason = "events that came before them wait".to_owned();
        let mut stuck = None;
        loop {
            if !self.outbox.has(&lot.dataset) {
                match self.send(&mut order, &lot.records).await {
                    Ok(()) => return Ok(()),
                    Err(why) => reason = why,
                }
            }
            match block_in_place(|| self.set_aside(range, &lot, &reason)) {
                Ok(()) => {
                    self.is_done(UnitId::new(range, lot.dataset), order.skip);
                    return Ok(());
                }
                Err(FileError::Io { path, error }) => {
                    stuck.get_or_insert_with(|| Stuck::new(&self.stuck));
                    self.alarm(
                        &lot.dataset,
                        &format!("{reason}; and {}: {error}", path.display()),
                    );
                    sleep(RETRY_BACKOFF_MAX).await;
                }
                Err(error @ (FileError::InDoubt { .. } | FileError::Damaged { .. })) => return Err(error),
            }
        }
    }

    fn order(&self, range: Range, plan: &TopicPlan) -> PublishOrder {
        PublishOrder {
            log: self.log,
            partition: self.partition,
            range,
            topic: plan.topic.clone(),
            key: plan.key.clone(),
            skip: 0,
            most: u64::MAX,
            waited: false,
        }
    }

    /// Notes how many of a unit's events are certainly in their topic.
    fn is_done(&self, id: UnitId, events: u64) {
        if events > 0 {
            self.done.lock().insert(id, events);
        }
    }

    fn set_aside(&self, range: Range, lot: &Lot, reason: &str) -> Result<(), FileError> {
        let is_first = !self.outbox.has(&lot.dataset);
        if is_first {
            tracing::warn!(dataset = %lot.dataset, topic = lot.plan.topic, reason, "events wait for their topic");
        }
        let share = Share {
            range,
            server: ServerId::named(KAFKA),
            table: lot.dataset.clone(),
            marks: Marks::default(),
            since_ms: self.clock.now_ms(),
        };
        let trouble = Trouble {
            since: Duration::ZERO,
            why: Why::Unpublished,
            reason: reason.to_owned(),
        };
        let work = Work {
            records: lot.records.clone(),
            ..Work::default()
        };
        self.outbox.set_aside_own(&share, &trouble, &work)?;
        self.count("waiting", events(&lot.records));
        Ok(())
    }

    /// Sends what is left of an order, and notes in it what is certain. Waits for a sink-writer that is full.
    async fn send(&self, order: &mut PublishOrder, records: &[RangeRecord]) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            failpoint::hit(Point::PublishSend).map_err(|error| error.to_string())?;
            let reply = self.call(order.clone(), records).await;
            failpoint::hit(Point::PublishAnswered).map_err(|error| error.to_string())?;
            match reply {
                Ok(SinkReply::Published(published)) => {
                    self.note(order, records, published)?;
                    if order.skip == events(records) {
                        return Ok(());
                    }
                    order.most = order.most.saturating_mul(PROBE_GROWTH);
                }
                Ok(SinkReply::Busy { retry_after_ms }) if begun.elapsed() < PUBLISH_DEADLINE => {
                    sleep(Duration::from_millis(retry_after_ms)).await;
                }
                Ok(other) => return Err(other.not_an_answer()),
                Err(reason) => return Err(reason),
            }
        }
    }

    async fn call(&self, order: PublishOrder, records: &[RangeRecord]) -> Result<SinkReply, String> {
        let call = PublishCall {
            order,
            records: records.to_vec(),
            timeout: 2 * PUBLISH_DEADLINE + CALL_GRACE,
            trace: TraceContext::default(),
        };
        let timeout = call.timeout;
        let answer = self.sink.clone().oneshot(SinkRequest::Publish(call));
        match crate::runtime::timeout(timeout, answer).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(never)) => match never {},
            Err(_) => Err("the sink-writer does not answer in time".into()),
        }
    }

    fn note(
        &self,
        order: &mut PublishOrder,
        records: &[RangeRecord],
        published: Published,
    ) -> Result<(), String> {
        let (all, asked) = (events(records), order.skip.saturating_add(order.most));
        order.skip = published.done.clamp(order.skip, all);
        self.count("published", published.sent);
        self.count("too_large", published.too_large);
        if published.too_large > 0 {
            let (topic, events) = (&order.topic, published.too_large);
            tracing::warn!(
                topic,
                events,
                "events larger than `kafka.max_message_bytes` are not in their topic; they are stored all the same"
            );
        }
        match published.failed {
            Some(reason) => Err(reason),
            None if order.skip < all.min(asked) => Err("the sink-writer did not send all events".into()),
            None => Ok(()),
        }
    }

    /// Sends what waits in the outbox, for ever. Dropping it is as a crash.
    ///
    /// # Errors
    /// [`FileError`] where nobody knows what is on disk, or a unit is damaged: the process must end.
    pub async fn drain(self) -> Result<(), FileError> {
        let outbox = self.outbox.clone();
        lines::work_on(&outbox, move |line| {
            let publisher = self.clone();
            async move { publisher.line(line).await }
        })
        .await
    }

    /// Sends one dataset's units, the oldest first, until there is none.
    async fn line(self, line: Line) -> Result<(), FileError> {
        let (mut pause, mut troubled) = (RETRY_BACKOFF_MIN, false);
        while let Some((id, _)) = self.outbox.take(&line) {
            let working = Working(&self.outbox, &line);
            let sent = self.unit(&id, troubled).await;
            drop(working);
            troubled = !matches!(sent, Ok(Ok(())));
            let reason = match sent {
                Ok(Ok(())) => {
                    pause = RETRY_BACKOFF_MIN;
                    continue;
                }
                Ok(Err(reason)) => reason,
                Err(error @ FileError::Io { .. }) => error.to_string(),
                Err(error @ (FileError::InDoubt { .. } | FileError::Damaged { .. })) => return Err(error),
            };
            self.outbox.note_reason(&id, &reason);
            self.alarm(&line.1, &reason);
            sleep(pause / 2 + self.retries.jittered(pause / 2)).await;
            pause = (pause * 2).min(RETRY_BACKOFF_MAX);
        }
        Ok(())
    }

    /// Sent → removed. What brokers took from its beginning on is not sent again while this process lives; a topic in
    /// trouble is sent a few events first, because others behind the first that it does not take may be copies.
    async fn unit(&self, id: &UnitId, troubled: bool) -> Result<Result<(), String>, FileError> {
        let Ok(_room) = self.room[usize::from(troubled)].acquire().await else {
            return Ok(Err("the process ends".into()));
        };
        let Some(plan) = self.settings.load().topics.get(&id.table).cloned() else {
            return Ok(Err(format!(
                "the config has no topic for dataset {}: give it `publish` again",
                id.table
            )));
        };
        let (work, _) = block_in_place(|| self.outbox.read(id))?;
        let mut order = PublishOrder {
            skip: self.done.lock().get(id).copied().unwrap_or(0),
            most: if troubled { PROBE } else { u64::MAX },
            waited: true,
            ..self.order(id.range(), &plan)
        };
        let sent = self.send(&mut order, &work.records).await;
        self.is_done(id.clone(), order.skip);
        if let Err(reason) = sent {
            return Ok(Err(reason));
        }
        block_in_place(|| self.outbox.remove(id))?;
        self.done.lock().remove(id);
        if !self.outbox.has(&id.table) {
            tracing::info!(dataset = %id.table, topic = plan.topic, "the topic has all events that waited for it");
        }
        Ok(Ok(()))
    }

    fn alarm(&self, dataset: &Name, reason: &str) {
        self.metrics.add(Counter::Alarms, 1, &[("reason", "topic")]);
        tracing::error!(%dataset, reason, "events cannot be published; it is tried again: mend the cause");
    }

    fn count(&self, outcome: &str, events: u64) {
        let labels = [("stage", "publish"), ("outcome", outcome)];
        self.metrics.add(Counter::Events, events, &labels);
    }

    fn show(&self) {
        for outcome in ["published", "waiting", "too_large"] {
            self.count(outcome, 0);
        }
        self.metrics.add(Counter::Alarms, 0, &[("reason", "topic")]);
        let (outbox, settings) = (self.outbox.clone(), Arc::clone(&self.settings));
        self.metrics.watch_all(Gauge::PublishWaitingBytes, move || {
            let none = settings.load();
            let none = none.topics.keys().map(|one| (one.clone(), 0));
            let mut waiting: BTreeMap<Name, u64> = none.collect();
            waiting.extend(outbox.bytes());
            levels(waiting)
        });
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges")]
fn levels(waiting: BTreeMap<Name, u64>) -> Values {
    let level = |(dataset, bytes): (Name, u64)| (vec![("dataset", dataset.to_string())], bytes as f64);
    waiting.into_iter().map(level).collect()
}
