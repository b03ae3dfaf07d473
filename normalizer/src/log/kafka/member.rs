//! Our seat in the group: which partitions are ours, and for how long. Their progress: [`seat`](super::seat).
//!
//! # Design note
//! *Fencing (R18).* Kafka fences members that are gone, not partitions that have moved. So each partition that comes gets
//! an epoch, and whoever keeps progress under it is told that it has passed as soon as the partition goes. A partition
//! goes only once its pump has ended and its last commit was answered; where the group has given it to another already,
//! the epoch passes first, and what comes too late is dropped and counted.

use super::clients::LogClients;
use super::seat::Seat;
use parking_lot::{Condvar, Mutex};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use sluice_common::ids::LogId;
use sluice_common::metrics::{Counter, Metrics};
use sluice_common::shutdown::Stop;
use sluice_kafka::{LastWords, Speaks, made, member_id, told};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// The epoch of a partition that is ours no more, or of which another process has taken our place.
const NEVER: u64 = 0;
/// How long the group may take to take back a partition whose epoch is over.
const STRANDED: Duration = Duration::from_secs(5);
/// How long the group's events are waited for at once.
const POLL: Duration = Duration::from_millis(100);
/// How long pumps may take to leave their partitions, before these are given away all the same.
const LEAVE_DEADLINE: Duration = Duration::from_secs(12);

/// A partition that is ours now.
pub struct Assigned {
    pub partition: u16,
    /// Cancelled when it goes: its pump has to end.
    pub leave: Stop,
    pub(super) seat: Seat,
    ended: Arc<Ended>,
}

/// Whether a partition's pump has ended.
#[derive(Default)]
struct Ended(Mutex<bool>, Condvar);

impl Ended {
    fn tell(&self) {
        *self.0.lock() = true;
        self.1.notify_all();
    }

    fn wait_until(&self, until: Instant) {
        let mut ended = self.0.lock();
        while !*ended && !self.1.wait_until(&mut ended, until).timed_out() {}
    }
}

/// A member of the group. Dropping it leaves.
pub struct Member {
    inner: Arc<Inner>,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

pub(super) struct Inner {
    pub(super) consumer: BaseConsumer<Context>,
    pub(super) clients: LogClients,
    pub(super) log: LogId,
}

struct Tenure {
    epoch: u64,
    /// Since when it is [`NEVER`].
    over: Option<Instant>,
    leave: Stop,
    ended: Arc<Ended>,
}

impl Tenure {
    fn end(&mut self) {
        self.epoch = NEVER;
        self.over.get_or_insert_with(Instant::now);
        self.leave.cancel();
    }
}

/// Told by librdkafka, from within `poll`.
pub(super) struct Context {
    pub(super) words: LastWords,
    pub(super) metrics: Metrics,
    ours: Mutex<BTreeMap<u16, Tenure>>,
    epochs: AtomicU64,
    /// The name under which partitions were given to us.
    name: Mutex<Option<String>>,
    given: mpsc::Sender<Given>,
    closing: AtomicBool,
    /// Why the group will never have us again.
    lost: (Mutex<Option<String>>, Stop),
}

/// A partition that is ours now, before anybody has taken it.
pub struct Given {
    partition: u16,
    epoch: u64,
    leave: Stop,
    ended: Arc<Ended>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, text: &str) {
        self.words.log(level, fac, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.words.error(error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.words.heard(&statistics);
    }
}

impl Speaks for Context {
    fn words(&self) -> &LastWords {
        &self.words
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, base: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let done = if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assigned(base, list)
        } else {
            self.revoked(base, list)
        };
        if let Err(error) = done {
            tracing::error!(%error, "the group's partitions cannot be taken or given as it asks");
        }
    }
}

impl Context {
    pub(super) fn is_current(&self, partition: u16, epoch: u64) -> bool {
        let ours = self.ours.lock();
        !self.closing.load(Ordering::Relaxed)
            && ours.get(&partition).is_some_and(|tenure| tenure.epoch == epoch)
    }

    /// An epoch is over, though the group has not told us yet. Its pump is waited for all the same.
    pub(super) fn pass(&self, partition: u16, epoch: u64) {
        let mut ours = self.ours.lock();
        let tenure = ours.get_mut(&partition);
        if let Some(tenure) = tenure.filter(|tenure| tenure.epoch == epoch) {
            tenure.end();
        }
    }

    /// The group may have forgotten us and taken us in again under another name, without a word: whoever had our
    /// partitions in between may have moved their progress.
    pub(super) fn look_at_name(&self, base: &BaseConsumer<Self>) {
        let now = member_id(base.client());
        let mut name = self.name.lock();
        if name.is_some() && *name != now {
            tracing::warn!(
                "the group knows us by another name now: what was begun before is not gone on with"
            );
            self.ours.lock().values_mut().for_each(Tenure::end);
        }
        *name = now;
    }

    /// Whether an epoch is over, and the group does not take the partition back.
    fn is_stranded(&self) -> bool {
        let ours = self.ours.lock();
        ours.values()
            .any(|tenure| tenure.over.is_some_and(|at| at.elapsed() > STRANDED))
    }
    /// Partitions become ours. This seat reads nothing of them.
    fn assigned(&self, base: &BaseConsumer<Self>, list: &TopicPartitionList) -> Result<(), KafkaError> {
        self.look_at_name(base);
        let mut starts = TopicPartitionList::new();
        for (topic, partition) in list.to_topic_map().into_keys() {
            starts.add_partition_offset(&topic, partition, Offset::Offset(0))?;
        }
        match base.rebalance_protocol() {
            RebalanceProtocol::Cooperative => base.incremental_assign(&starts)?,
            RebalanceProtocol::Eager | RebalanceProtocol::None => base.assign(&starts)?,
        }
        base.pause(list)?;
        for (_, partition) in list.to_topic_map().into_keys() {
            let Ok(partition) = u16::try_from(partition) else {
                continue;
            };
            let epoch = self.epochs.fetch_add(1, Ordering::Relaxed) + 1;
            let (leave, ended) = (Stop::new(), Arc::new(Ended::default()));
            let tenure = Tenure {
                epoch,
                over: None,
                leave: leave.clone(),
                ended: Arc::clone(&ended),
            };
            self.ours.lock().insert(partition, tenure);
            let given = Given {
                partition,
                epoch,
                leave,
                ended: Arc::clone(&ended),
            };
            tracing::info!(partition, epoch, "a partition of the log is ours");
            if self.given.try_send(given).is_err() {
                // Nobody works any more.
                ended.tell();
            }
        }
        Ok(())
    }

    /// Partitions go: whoever takes them next finds what was committed last.
    fn revoked(&self, base: &BaseConsumer<Self>, list: &TopicPartitionList) -> Result<(), KafkaError> {
        let (lost, until) = (base.assignment_lost(), Instant::now() + LEAVE_DEADLINE);
        let going = list.to_topic_map().into_keys();
        let going: Vec<u16> = going
            .filter_map(|(_, partition)| u16::try_from(partition).ok())
            .collect();
        let mut waits = Vec::new();
        let mut ours = self.ours.lock();
        for partition in &going {
            let Some(tenure) = ours.get_mut(partition) else {
                continue;
            };
            tenure.leave.cancel();
            waits.push(Arc::clone(&tenure.ended));
            if lost {
                tenure.end();
            }
        }
        drop(ours);
        tracing::info!(?going, lost, "partitions of the log go to others");
        waits.iter().for_each(|ended| ended.wait_until(until));
        self.ours.lock().retain(|partition, _| !going.contains(partition));
        match base.rebalance_protocol() {
            RebalanceProtocol::Cooperative => base.incremental_unassign(list),
            RebalanceProtocol::Eager | RebalanceProtocol::None => base.unassign(),
        }
    }
}

impl Member {
    /// Joins the group as soon as the brokers are there. Partitions come through the receiver.
    ///
    /// # Errors
    /// A sentence where librdkafka refuses the config.
    pub fn join(
        clients: &LogClients,
        log: LogId,
        metrics: &Metrics,
    ) -> Result<(Self, mpsc::Receiver<Given>), String> {
        metrics.add(Counter::StaleCommits, 0, &[]);
        let (given, taken) = mpsc::channel(usize::from(clients.partitions).max(1) * 2);
        let context = Context {
            words: LastWords::default(),
            metrics: metrics.clone(),
            ours: Mutex::default(),
            epochs: AtomicU64::new(0),
            name: Mutex::default(),
            given,
            closing: AtomicBool::new(false),
            lost: (Mutex::default(), Stop::new()),
        };
        let consumer: BaseConsumer<Context> = made(&clients.member(), context)?;
        consumer
            .subscribe(&[&clients.topic])
            .map_err(|error| told(&error))?;
        let inner = Arc::new(Inner {
            consumer,
            clients: clients.clone(),
            log,
        });
        let stop = Stop::new();
        let (polled, stopped) = (Arc::clone(&inner), stop.clone());
        let thread = std::thread::Builder::new().name("log-member".into());
        let thread = thread
            .spawn(move || polled.poll(&stopped))
            .map_err(|error| error.to_string())?;
        let member = Self {
            inner,
            stop,
            thread: Some(thread),
        };
        Ok((member, taken))
    }

    /// Takes a partition that came.
    #[must_use]
    pub fn take(&self, given: Given) -> Assigned {
        let Given {
            partition,
            epoch,
            leave,
            ended,
        } = given;
        let inner = Arc::clone(&self.inner);
        Assigned {
            partition,
            leave,
            seat: Seat {
                inner,
                partition,
                epoch,
            },
            ended,
        }
    }

    /// Resolves where the group will never have us again: another process has our name.
    pub async fn lost(&self) -> String {
        let lost = &self.inner.consumer.context().lost;
        lost.1.cancelled().await;
        lost.0.lock().clone().unwrap_or_default()
    }

    /// Leaves the group once all pumps have ended. Blocks.
    pub fn leave(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that keeps our seat in the group panicked");
        }
        self.inner
            .consumer
            .context()
            .closing
            .store(true, Ordering::Relaxed);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Inner {
    /// Answers the group until it is told to stop; then ends our work on all partitions.
    fn poll(&self, stop: &Stop) {
        while !stop.is_cancelled() {
            self.answer();
            if self.consumer.context().is_stranded() {
                tracing::warn!(
                    "partitions are ours that nobody works on: they are given back, and asked for again"
                );
                self.give_back();
                if let Err(error) = self.consumer.subscribe(&[&self.clients.topic]) {
                    tracing::error!(reason = told(&error), "the group cannot be joined again");
                }
            }
        }
        if !(self.clients.is_named() && self.close()) {
            self.give_back();
        }
    }

    /// A member with a name of its own does not leave (KIP-345): where it is there again before its session has ended it
    /// has its partitions back, and nobody makes their dedup state anew meanwhile.
    fn close(&self) -> bool {
        if let Err(error) = self.consumer.close_queue() {
            tracing::warn!(%error, "our seat in the group cannot be kept: it is given back");
            return false;
        }
        let until = Instant::now() + LEAVE_DEADLINE + POLL;
        while !self.consumer.closed() && Instant::now() < until {
            self.answer();
        }
        true
    }

    fn give_back(&self) {
        self.consumer.unsubscribe();
        let until = Instant::now() + LEAVE_DEADLINE + POLL;
        while !self.consumer.context().ours.lock().is_empty() && Instant::now() < until {
            self.answer();
        }
    }

    fn answer(&self) {
        let context = self.consumer.context();
        context.words.look_after();
        let Some(Err(error)) = self.consumer.poll(POLL) else {
            return;
        };
        let reason = context.words.why(&error);
        if let KafkaError::MessageConsumptionFatal(_) = error {
            let mut lost = context.lost.0.lock();
            if lost.is_none() {
                *lost = Some(reason);
                context.lost.1.cancel();
            }
            std::thread::sleep(POLL);
            return;
        }
        // What keeps us from the group for a while is told where it hurts: by the backlog, and by commits.
        tracing::debug!(reason, "our seat in the group");
    }
}

impl Drop for Assigned {
    /// Whoever worked on it has ended.
    fn drop(&mut self) {
        self.ended.tell();
    }
}
