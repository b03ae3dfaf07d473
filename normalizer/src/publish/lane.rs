//! The way of one kind to its topics: sent, or set aside and sent later, the oldest first.

use super::work::{Lot, TopicPlan, events};
use crate::parked::file::{FileError, UnitId};
use crate::parked::lines::{self, Working};
use crate::parked::shelf::{Line, Share, Shelf};
use crate::progress::Marks;
use crate::progress::closing::Work;
use crate::progress::plan::{Trouble, Why};
use crate::pump::batching::{Settings, SharedSettings};
use crate::pump::retries::Retries;
use crate::runtime::{Instant, block_in_place, sleep};
use parking_lot::Mutex;
use sluice_common::clock::SharedClock;
use sluice_common::failpoint::{self, Point};
use sluice_common::ids::{LogId, Name};
use sluice_common::limits::{PUBLISH_DEADLINE, PUBLISH_UNITS, RETRY_BACKOFF_MAX, RETRY_BACKOFF_MIN};
use sluice_common::metrics::{Counter, Metrics};
use sluice_common::servers::ServerId;
use sluice_common::trace::TraceContext;
use sluice_common::wire::publish::{Content, PublishCall, PublishOrder, Published};
use sluice_common::wire::sink::{Range, RangeRecord, SinkReply, SinkRequest};
use sluice_common::wire::transport::Seam;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

/// What units of the outbox name as their server: there is one Kafka.
const KAFKA: &str = "kafka";
/// Messages that a topic in trouble is sent first, and by how much more then each time that it takes all of them.
const PROBE: u64 = 64;
const PROBE_GROWTH: u64 = 8;
/// How much longer than the brokers' time a call may take on its way.
const CALL_GRACE: Duration = Duration::from_secs(5);

/// What goes to topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Events,
    Letters,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Events => "events",
            Self::Letters => "dead letters",
        })
    }
}

impl What {
    /// The topic of a line, by the config in force; else what is missing.
    fn plan(self, line: &Name, settings: &Settings) -> Result<TopicPlan, String> {
        let (plan, missing) = match self {
            Self::Events => (
                settings.topics.get(line),
                format!("dataset {line}: give it `publish` again"),
            ),
            Self::Letters => (
                settings.letters_topic.as_ref(),
                "dead letters: give it `dead_letters.topic` again".to_owned(),
            ),
        };
        let plan = plan.cloned();
        plan.ok_or_else(|| format!("the config has no topic for {missing}"))
    }

    /// The label of what is counted.
    fn stage(self) -> &'static str {
        match self {
            Self::Events => "publish",
            Self::Letters => "publish_letters",
        }
    }

    /// Messages that a share makes.
    fn count(self, work: &Work) -> u64 {
        match self {
            Self::Events => events(&work.records),
            Self::Letters => work.proof.rows,
        }
    }

    fn content(self, work: &Work) -> Content {
        match self {
            Self::Events => Content::Events,
            Self::Letters => Content::Letters(work.quarantined.clone()),
        }
    }
}

/// What lanes have in common.
#[derive(Clone)]
pub(super) struct Shared {
    pub sink: Seam<SinkRequest>,
    pub log: LogId,
    pub partition: u16,
    pub settings: SharedSettings,
    pub metrics: Metrics,
    pub clock: SharedClock,
    pub retries: Retries,
    /// Room for a unit of a topic that takes what it is sent, and for one of those that are in trouble.
    pub room: [Arc<Semaphore>; PUBLISH_UNITS],
    /// Shares that can neither be sent nor be set aside: their range is not committed.
    pub stuck: Arc<AtomicUsize>,
}

/// The way of one kind. Cloning shares it.
#[derive(Clone)]
pub(super) struct Lane {
    what: What,
    outbox: Shelf,
    pub shared: Shared,
    /// Messages of units in the outbox that are certainly in their topic.
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

impl Lane {
    /// A lane; nothing runs yet.
    pub fn new(what: What, outbox: Shelf, shared: Shared) -> Self {
        let lane = Self {
            what,
            outbox,
            shared,
            done: Arc::default(),
        };
        lane.show();
        lane
    }

    /// Sent → done; in trouble → set aside. What can neither be sent nor be set aside is waited for.
    pub async fn lot(&self, range: Range, lot: Lot) -> Result<(), FileError> {
        let mut order = self.order(range, &lot.plan, &lot.work);
        let mut stuck = None;
        loop {
            match self.attempt((range, &lot), &mut order).await {
                Ok(()) => return Ok(()),
                Err(FileError::Io { .. }) => {
                    stuck.get_or_insert_with(|| Stuck::new(&self.shared.stuck));
                    sleep(RETRY_BACKOFF_MAX).await;
                }
                Err(error @ (FileError::InDoubt { .. } | FileError::Damaged { .. })) => return Err(error),
            }
        }
    }

    /// The same once.
    ///
    /// # Errors
    /// [`FileError::Io`] where it can neither be sent nor be set aside; another where nobody knows what is on disk.
    pub async fn lot_once(&self, range: Range, lot: Lot) -> Result<(), FileError> {
        let mut order = self.order(range, &lot.plan, &lot.work);
        self.attempt((range, &lot), &mut order).await
    }

    async fn attempt(&self, (range, lot): (Range, &Lot), order: &mut PublishOrder) -> Result<(), FileError> {
        let id = UnitId::new(range, lot.line.clone());
        let mut reason = format!("{} that came before them wait", self.what);
        if !self.outbox.has(&lot.line) {
            match self.send(order, &lot.work).await {
                Ok(()) => {
                    self.done.lock().remove(&id);
                    return Ok(());
                }
                Err(why) => reason = why,
            }
        }
        // First: that of a committed range is sent as soon as it is there.
        self.is_done(&id, order.skip);
        let set_aside = block_in_place(|| self.set_aside(range, lot, &reason));
        if let Err(FileError::Io { path, error }) = &set_aside {
            self.alarm(&lot.line, &format!("{reason}; and {}: {error}", path.display()));
        }
        set_aside
    }

    pub(super) fn order(&self, range: Range, plan: &TopicPlan, work: &Work) -> PublishOrder {
        PublishOrder {
            log: self.shared.log,
            partition: self.shared.partition,
            range,
            content: self.what.content(work),
            topic: plan.topic.clone(),
            key: plan.key.clone(),
            skip: 0,
            most: u64::MAX,
            waited: false,
        }
    }

    /// Notes how many of a unit's messages are certainly in their topic.
    fn is_done(&self, id: &UnitId, messages: u64) {
        if messages > 0 {
            self.done.lock().insert(id.clone(), messages);
        }
    }

    pub(super) fn set_aside(&self, range: Range, lot: &Lot, reason: &str) -> Result<(), FileError> {
        let what = self.what;
        let is_first = !self.outbox.has(&lot.line);
        if is_first {
            tracing::warn!(of = %lot.line, topic = lot.plan.topic, reason, "{what} wait for their topic");
        }
        let share = Share {
            range,
            server: ServerId::named(KAFKA),
            table: lot.line.clone(),
            marks: Marks::default(),
            since_ms: self.shared.clock.now_ms(),
        };
        let trouble = Trouble {
            since: Duration::ZERO,
            why: Why::Unpublished,
            reason: reason.to_owned(),
        };
        self.outbox.set_aside_own(&share, &trouble, &lot.work)?;
        self.count("waiting", what.count(&lot.work));
        Ok(())
    }

    /// Sends what is left of an order, and notes in it what is certain. Waits for a sink-writer that is full.
    pub(super) async fn send(&self, order: &mut PublishOrder, work: &Work) -> Result<(), String> {
        let (begun, all) = (Instant::now(), self.what.count(work));
        loop {
            failpoint::hit(Point::PublishSend).map_err(|error| error.to_string())?;
            let reply = self.call(order.clone(), &work.records).await;
            failpoint::hit(Point::PublishAnswered).map_err(|error| error.to_string())?;
            match reply {
                Ok(SinkReply::Published(published)) => {
                    self.note(order, all, published)?;
                    if order.skip == all {
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
        let answer = self.shared.sink.clone().oneshot(SinkRequest::Publish(call));
        match crate::runtime::timeout(timeout, answer).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(never)) => match never {},
            Err(_) => Err("the sink-writer does not answer in time".into()),
        }
    }

    pub(super) fn note(
        &self,
        order: &mut PublishOrder,
        all: u64,
        published: Published,
    ) -> Result<(), String> {
        let asked = order.skip.saturating_add(order.most);
        order.skip = published.done.clamp(order.skip, all);
        self.count("published", published.sent);
        self.count("too_large", published.too_large);
        if published.too_large > 0 {
            let (what, topic, count) = (self.what, &order.topic, published.too_large);
            tracing::warn!(
                topic,
                count,
                "{what} larger than `kafka.max_message_bytes` are not in their topic; they are stored all the same"
            );
        }
        match published.failed {
            Some(reason) => Err(reason),
            None if order.skip < all.min(asked) => {
                Err(format!("the sink-writer did not send all {}", self.what))
            }
            None => Ok(()),
        }
    }

    /// Sends what waits in the outbox, for ever. Dropping it is as a crash.
    pub async fn drain(self) -> Result<(), FileError> {
        let outbox = self.outbox.clone();
        lines::work_on(&outbox, move |line| {
            let lane = self.clone();
            async move { lane.line(line).await }
        })
        .await
    }

    /// Sends one line's units, the oldest first, until there is none.
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
            sleep(pause / 2 + self.shared.retries.jittered(pause / 2)).await;
            pause = (pause * 2).min(RETRY_BACKOFF_MAX);
        }
        Ok(())
    }

    /// Sent → removed. What brokers took from its beginning on is not sent again while this process lives; a topic in
    /// trouble is sent a few messages first, because others behind the first that it does not take may be copies.
    async fn unit(&self, id: &UnitId, troubled: bool) -> Result<Result<(), String>, FileError> {
        let Ok(_room) = self.shared.room[usize::from(troubled)].acquire().await else {
            return Ok(Err("the process ends".into()));
        };
        let plan = match self.what.plan(&id.table, &self.shared.settings.load()) {
            Ok(plan) => plan,
            Err(missing) => return Ok(Err(missing)),
        };
        let (work, _) = block_in_place(|| self.outbox.read(id))?;
        let mut order = PublishOrder {
            skip: self.done.lock().get(id).copied().unwrap_or(0),
            most: if troubled { PROBE } else { u64::MAX },
            waited: true,
            ..self.order(id.range(), &plan, &work)
        };
        let sent = self.send(&mut order, &work).await;
        self.is_done(id, order.skip);
        if let Err(reason) = sent {
            return Ok(Err(reason));
        }
        block_in_place(|| self.outbox.remove(id))?;
        self.done.lock().remove(id);
        if !self.outbox.has(&id.table) {
            let what = self.what;
            tracing::info!(of = %id.table, topic = plan.topic, "the topic has all {what} that waited for it");
        }
        Ok(Ok(()))
    }

    fn alarm(&self, line: &Name, reason: &str) {
        let what = self.what;
        self.shared
            .metrics
            .add(Counter::Alarms, 1, &[("reason", "topic")]);
        tracing::error!(of = %line, reason, "{what} cannot be published; it is tried again: mend the cause");
    }

    fn count(&self, outcome: &str, messages: u64) {
        let labels = [("stage", self.what.stage()), ("outcome", outcome)];
        self.shared.metrics.add(Counter::Events, messages, &labels);
    }

    fn show(&self) {
        for outcome in ["published", "waiting", "too_large"] {
            self.count(outcome, 0);
        }
        let metrics = &self.shared.metrics;
        metrics.add(Counter::Alarms, 0, &[("reason", "topic")]);
    }
}

impl What {
    /// The datasets of which something may wait.
    pub(super) fn none_waiting(self, settings: &Settings) -> BTreeMap<Name, u64> {
        match self {
            Self::Events => settings.topics.keys().map(|one| (one.clone(), 0)).collect(),
            Self::Letters if settings.letters_topic.is_none() => BTreeMap::new(),
            Self::Letters => settings
                .datasets
                .iter()
                .map(|(one, _)| (one.clone(), 0))
                .collect(),
        }
    }
}
