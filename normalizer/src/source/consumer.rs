//! The only module here that names `rdkafka`: a member of a consumer group, and what it knows of its partitions. Which
//! they are, and where each is read from: [`partitions`].

mod partitions;
mod signature;

use super::Spec;
use super::batch::{Batch, Gathering, Next};
use parking_lot::Mutex;
use partitions::add;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Message as _, OwnedMessage};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use signature::TopicId;
use sluice_common::ids::Name;
use sluice_common::limits::{SOURCE_BATCH_MESSAGES, SOURCE_FETCH_BYTES, SOURCE_LINGER, SOURCE_QUEUE_BYTES};
use sluice_common::metrics::Metrics;
use sluice_kafka::{LastWords, Speaks, made, seat, told};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a message is waited for before somebody looks whether the source is to end.
const POLL: Duration = Duration::from_millis(100);
/// How often it is told how far behind we are.
const STATISTICS: Duration = Duration::from_secs(5);
/// How often topics that are not there, or got more partitions, are looked for.
const LOOK_FOR_TOPICS: Duration = Duration::from_secs(30);
/// A commit that was not answered, or failed, is made again after so long.
const COMMIT_AGAIN: Duration = Duration::from_secs(2);
/// How often partitions that are not read are looked at, and how long each may take.
const LOOK_AT_STOPPED: Duration = Duration::from_secs(15);
const LOOK_DEADLINE: Duration = Duration::from_secs(1);
/// Different troubles that are remembered.
const MAX_TOLD: usize = 256;
/// How often the same trouble is told.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// Topic and partition.
type At = (String, i32);
/// A partition, where it is read from, and why it is not read.
type Found = (At, Place, Option<String>);

/// What told topics from others of their names when an earlier consumer of this source had them.
pub(super) type Known = Arc<Mutex<BTreeMap<String, TopicId>>>;

/// By dataset, group, topic and partition.
type Lags = BTreeMap<(Name, String, String, i32), i64>;

/// What all sources of a process show together.
#[derive(Clone, Default)]
pub(super) struct Shared {
    /// Messages that are not read yet.
    pub lags: Arc<Mutex<Lags>>,
}

/// A member of the group.
pub(super) struct Consumer {
    base: BaseConsumer<Context>,
    /// Came while nothing was to come: the first of the next batches.
    held: Vec<OwnedMessage>,
    is_paused: bool,
    /// When partitions that are not read were last looked at.
    looked: Instant,
}

/// Told by librdkafka, from within `poll`.
struct Context {
    words: LastWords,
    spec: Spec,
    shared: Shared,
    metrics: Metrics,
    known: Known,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Partitions that are ours.
    ours: BTreeMap<At, Place>,
    /// What tells their topics from others of the same names.
    ids: BTreeMap<String, TopicId>,
    /// Why some of them are not read.
    stopped: BTreeMap<At, String>,
    /// Why the consumer is of no use.
    broken: Option<String>,
    committed_at: Option<Instant>,
    /// What was told, and when.
    told: BTreeMap<String, Instant>,
}

/// How far a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Everything before it is durable.
    durable: i64,
    /// The group's offset, as the brokers told it.
    committed: i64,
    /// The topic's end, as it was last asked for.
    high: i64,
}

impl Place {
    /// Where the group's offset is.
    fn at(offset: i64, high: i64) -> Self {
        Self {
            durable: offset,
            committed: offset,
            high,
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, text: &str) {
        self.words.log(level, fac, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.words.error(error.clone(), reason);
        // One broker of several that goes away holds up nothing; nobody would tell of these.
        let alone = [
            Some(RDKafkaErrorCode::AllBrokersDown),
            Some(RDKafkaErrorCode::Authentication),
        ];
        if alone.contains(&error.rdkafka_error_code()) {
            self.trouble(self.words.why(&error));
        }
    }

    fn stats(&self, statistics: Statistics) {
        self.words.heard(&statistics);
        let state = self.state.lock();
        let mut lags = self.shared.lags.lock();
        for (topic, known) in statistics.topics {
            for (partition, known) in known.partitions {
                let at = (topic.clone(), partition);
                let Some(place) = state.ours.get(&at) else {
                    continue;
                };
                // One that has committed nothing has no lag of its own, and below 0 an end is not known; that of a
                // partition that is not read stays what it was when it was last fetched from.
                let lag = match known.consumer_lag {
                    lag @ 0.. if !state.stopped.contains_key(&at) => lag,
                    _ => place.high.max(known.ls_offset) - place.committed,
                };
                lags.insert(self.labels(&topic, partition), lag.max(0));
            }
        }
        drop(lags);
        let stopped: Vec<String> = state.stopped.values().cloned().collect();
        drop(state);
        stopped.into_iter().for_each(|reason| self.trouble(reason));
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
        if let Err(reason) = done {
            self.state.lock().broken.get_or_insert(reason);
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        if let Err(error) = result {
            // It is made again, and whatever is read twice is dropped.
            tracing::debug!(%error, group = self.spec.group(), "offsets were not committed");
            return;
        }
        let mut state = self.state.lock();
        for (at, offset) in offsets.to_topic_map() {
            if let (Some(place), Offset::Offset(offset)) = (state.ours.get_mut(&at), offset) {
                place.committed = place.committed.max(offset);
            }
        }
    }
}

impl Context {
    fn labels(&self, topic: &str, partition: i32) -> (Name, String, String, i32) {
        let spec = &self.spec;
        (spec.dataset.clone(), spec.group(), topic.to_owned(), partition)
    }

    /// Told once, and again where it stays.
    fn trouble(&self, reason: String) {
        let mut state = self.state.lock();
        if state
            .told
            .get(&reason)
            .is_some_and(|at| at.elapsed() < TELL_EVERY)
        {
            return;
        }
        if state.told.len() >= MAX_TOLD {
            state.told.clear();
        }
        super::alarm(&self.metrics, &self.spec, &reason);
        state.told.insert(reason, Instant::now());
    }

    fn id(&self, topic: &str) -> Option<String> {
        let state = self.state.lock();
        Some(state.ids.get(topic)?.to_string())
    }

    fn is_ours(&self, topic: &str, partition: i32) -> bool {
        let (state, at) = (self.state.lock(), (topic.to_owned(), partition));
        state.ours.contains_key(&at) && !state.stopped.contains_key(&at)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let gone = self.spec.group();
        self.shared.lags.lock().retain(|(_, group, ..), _| *group != gone);
    }
}

impl Consumer {
    /// Joins the group, as soon as the brokers are there.
    ///
    /// # Errors
    /// A sentence where librdkafka refuses the config, a file of TLS for one.
    pub fn new(spec: &Spec, shared: &Shared, metrics: &Metrics, known: &Known) -> Result<Self, String> {
        let ms = |duration: Duration| duration.as_millis().to_string();
        let kib = (SOURCE_QUEUE_BYTES / 1_024).to_string();
        let mut config = spec.target.consumer();
        seat(&mut config);
        for (key, value) in [
            ("group.id", spec.group()),
            ("queued.max.messages.kbytes", kib),
            ("queued.min.messages", SOURCE_BATCH_MESSAGES.to_string()),
            ("fetch.max.bytes", SOURCE_FETCH_BYTES.to_string()),
            ("statistics.interval.ms", ms(STATISTICS)),
            ("topic.metadata.refresh.interval.ms", ms(LOOK_FOR_TOPICS)),
        ] {
            config.set(key, value);
        }
        let context = Context {
            words: LastWords::default(),
            spec: spec.clone(),
            shared: shared.clone(),
            metrics: metrics.clone(),
            known: Arc::clone(known),
            state: Mutex::default(),
        };
        let base: BaseConsumer<Context> = made(&config, context)?;
        let topics: Vec<&str> = spec.consume.topics.iter().map(String::as_str).collect();
        base.subscribe(&topics).map_err(|error| told(&error))?;
        Ok(Self {
            base,
            held: Vec::new(),
            is_paused: false,
            looked: Instant::now(),
        })
    }

    /// What has come, as soon as something has, within a bound; nothing where nothing comes for a moment.
    ///
    /// # Errors
    /// Why the consumer is of no use any more.
    pub fn gather(&mut self) -> Result<Vec<Batch>, String> {
        self.base.context().words.look_after();
        let mut gathering = Gathering::default();
        for held in std::mem::take(&mut self.held) {
            gathering.take(
                (held.topic(), held.partition(), held.offset()),
                held.payload().unwrap_or_default(),
                |topic| self.base.context().id(topic),
            )?;
        }
        let mut until = Instant::now() + if gathering.is_empty() { POLL } else { SOURCE_LINGER };
        while !gathering.is_full() {
            let left = until.saturating_duration_since(Instant::now());
            match self.base.poll(left) {
                Some(Ok(message)) => {
                    if gathering.is_empty() {
                        until = Instant::now() + SOURCE_LINGER;
                    }
                    let at = (message.topic(), message.partition(), message.offset());
                    let id = |topic: &str| self.base.context().id(topic);
                    gathering.take(at, message.payload().unwrap_or_default(), id)?;
                }
                Some(Err(error)) => self.failed(&error)?,
                None if left.is_zero() => break,
                None => {}
            }
        }
        self.usable()?;
        self.look_at_stopped();
        // A partition may have gone while others' messages came.
        let context = self.base.context();
        gathering.keep(|topic, partition| context.is_ours(topic, partition));
        let batches = gathering.close();
        if batches.is_empty() {
            self.commit_again();
        } else {
            let topics = batches.iter().map(|batch| batch.origin().topic.as_str());
            context.identify(self.base.client(), &topics.collect())?;
        }
        Ok(batches)
    }

    /// How far partitions grow that are not read: nothing is fetched of them that would tell.
    fn look_at_stopped(&mut self) {
        if self.looked.elapsed() < LOOK_AT_STOPPED {
            return;
        }
        self.looked = Instant::now();
        let context = self.base.context();
        let stopped: Vec<At> = context.state.lock().stopped.keys().cloned().collect();
        for at in stopped {
            let range = self.base.fetch_watermarks(&at.0, at.1, LOOK_DEADLINE);
            let mut state = context.state.lock();
            if let (Ok((_, high)), Some(place)) = (range, state.ours.get_mut(&at)) {
                place.high = place.high.max(high);
            }
        }
    }

    /// Tells the group that we are there, while nothing is to come.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn hold(&mut self) -> Result<(), String> {
        self.is_paused = true;
        self.base.context().words.look_after();
        let ours = self.base.assignment().map_err(|error| told(&error))?;
        self.base.pause(&ours).map_err(|error| told(&error))?;
        match self.base.poll(Duration::ZERO) {
            Some(Ok(message)) => self.held.push(message.detach()),
            Some(Err(error)) => self.failed(&error)?,
            None => {}
        }
        self.usable()
    }

    /// Ends what [`Self::hold`] began.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn go_on(&mut self) -> Result<(), String> {
        if !std::mem::take(&mut self.is_paused) {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        let state = self.base.context().state.lock();
        for at in state.ours.keys().filter(|at| !state.stopped.contains_key(*at)) {
            list.add_partition(&at.0, at.1);
        }
        drop(state);
        self.base.resume(&list).map_err(|error| told(&error))
    }

    /// Everything before these is durable: the group's offsets follow.
    pub fn durable(&mut self, nexts: &[Next]) {
        let mut state = self.base.context().state.lock();
        for next in nexts {
            // What is not ours any more is for its new owner to say.
            if let Some(place) = state.ours.get_mut(&(next.topic.clone(), next.partition)) {
                place.durable = place.durable.max(next.offset);
            }
        }
        drop(state);
        self.commit();
    }

    fn commit(&self) {
        let mut list = TopicPartitionList::new();
        let mut state = self.base.context().state.lock();
        for (at, place) in &state.ours {
            if place.durable > place.committed && add(&mut list, at, place.durable).is_err() {
                return;
            }
        }
        state.committed_at = Some(Instant::now());
        drop(state);
        let committed = self.base.context().commit(&self.base, list, CommitMode::Async);
        if let Err(error) = committed {
            tracing::debug!(%error, "offsets were not committed");
        }
    }

    /// While nothing is under way: what was not answered is asked again, and offsets follow what is no message, as the
    /// ends of transactions are, which retention would leave behind else.
    fn commit_again(&self) {
        let context = self.base.context();
        let last = context.state.lock().committed_at;
        if last.is_some_and(|last| last.elapsed() < COMMIT_AGAIN) {
            return;
        }
        if let Ok(positions) = self.base.position() {
            let mut state = context.state.lock();
            for (at, position) in positions.to_topic_map() {
                let is_read = !state.stopped.contains_key(&at);
                if let (Some(place), Offset::Offset(offset), true) =
                    (state.ours.get_mut(&at), position, is_read)
                {
                    place.durable = place.durable.max(offset);
                }
            }
        }
        self.commit();
    }

    fn usable(&self) -> Result<(), String> {
        self.base
            .context()
            .state
            .lock()
            .broken
            .clone()
            .map_or(Ok(()), Err)
    }

    fn failed(&self, error: &KafkaError) -> Result<(), String> {
        let context = self.base.context();
        let reason = context.words.why(error);
        if let KafkaError::MessageConsumptionFatal(_) = error {
            return Err(reason);
        }
        let is_lost = [
            Some(RDKafkaErrorCode::AutoOffsetReset),
            Some(RDKafkaErrorCode::OffsetOutOfRange),
        ];
        if is_lost.contains(&error.rdkafka_error_code()) {
            // Which partition it is comes out where the offsets are asked for again.
            return Err(format!("an offset is not in its topic any more: {reason}"));
        }
        context.trouble(reason);
        Ok(())
    }
}
