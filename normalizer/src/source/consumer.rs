//! The only module here that names `rdkafka`: a member of a consumer group, and what it knows of its partitions.

use super::Spec;
use super::batch::{Batch, Gathering, Next};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Message as _, OwnedMessage};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use sluice_common::config::Beginning;
use sluice_common::ids::Name;
use sluice_common::limits::{SOURCE_LINGER, SOURCE_QUEUE_BYTES};
use sluice_common::metrics::Metrics;
use sluice_kafka::{LastWords, told};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a message is waited for before somebody looks whether the source is to end.
const POLL: Duration = Duration::from_millis(100);
/// What brokers have for one question.
const ASK_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is told how far behind we are.
const STATISTICS: Duration = Duration::from_secs(5);
/// How often topics that are not there, or got more partitions, are looked for.
const LOOK_FOR_TOPICS: Duration = Duration::from_secs(30);
/// A commit that was not answered, or failed, is made again after so long.
const COMMIT_AGAIN: Duration = Duration::from_secs(2);
/// How often the same trouble is told.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// Topic and partition.
type At = (String, i32);

/// By dataset, topic and partition.
type Lags = BTreeMap<(Name, String, i32), i64>;

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
}

/// Told by librdkafka, from within `poll`.
struct Context {
    words: LastWords,
    spec: Spec,
    shared: Shared,
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Partitions that are ours.
    ours: BTreeMap<At, Place>,
    /// Why the consumer is of no use.
    broken: Option<String>,
    committed_at: Option<Instant>,
    told: Option<(Instant, String)>,
}

/// How far a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Everything before it is durable.
    durable: i64,
    /// The group's offset, as the brokers told it.
    committed: i64,
    /// It is not read: its offset is not in the topic.
    stopped: bool,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, text: &str) {
        self.words.log(level, fac, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.words.error(&error, reason);
        self.trouble(self.words.why(&error));
    }

    fn stats(&self, statistics: Statistics) {
        let state = self.state.lock();
        let mut lags = self.shared.lags.lock();
        for (topic, known) in statistics.topics {
            for (partition, known) in known.partitions {
                // Below 0 it is not known.
                if state.ours.contains_key(&(topic.clone(), partition)) && known.consumer_lag >= 0 {
                    lags.insert(self.labels(&topic, partition), known.consumer_lag);
                }
            }
        }
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
    fn labels(&self, topic: &str, partition: i32) -> (Name, String, i32) {
        (self.spec.dataset.clone(), topic.to_owned(), partition)
    }

    /// Told once, and again where it stays.
    fn trouble(&self, reason: String) {
        let mut state = self.state.lock();
        let known = state.told.as_ref();
        if known.is_some_and(|(at, known)| *known == reason && at.elapsed() < TELL_EVERY) {
            return;
        }
        super::alarm(&self.metrics, &self.spec, &reason);
        state.told = Some((Instant::now(), reason));
    }

    /// Partitions become ours: each is read from the group's offset on, which is committed first where there is none.
    fn assigned(&self, base: &BaseConsumer<Self>, list: &TopicPartitionList) -> Result<(), String> {
        let places = self.places(base, list);
        let mut starts = TopicPartitionList::new();
        for (at, place) in places.iter().flatten() {
            // One that is not read must not be asked for where it has nothing.
            let offset = if place.stopped {
                Offset::End
            } else {
                Offset::Offset(place.durable)
            };
            add_at(&mut starts, at, offset)?;
        }
        let assigned = match base.rebalance_protocol() {
            RebalanceProtocol::Cooperative => base.incremental_assign(&starts),
            RebalanceProtocol::Eager | RebalanceProtocol::None => base.assign(&starts),
        };
        assigned.map_err(|error| error.to_string())?;
        let places = places?;
        let mut stopped = TopicPartitionList::new();
        for (at, _) in places.iter().filter(|(_, place)| place.stopped) {
            stopped.add_partition(&at.0, at.1);
        }
        if stopped.count() > 0 {
            base.pause(&stopped).map_err(|error| told(&error))?;
        }
        tracing::info!(
            group = self.spec.group(),
            partitions = places.len(),
            "partitions are read from now on"
        );
        self.state.lock().ours.extend(places);
        Ok(())
    }

    /// Where each is read from.
    fn places(
        &self,
        base: &BaseConsumer<Self>,
        list: &TopicPartitionList,
    ) -> Result<Vec<(At, Place)>, String> {
        let asked =
            |error: KafkaError| format!("the group's offsets are not told: {}", self.words.why(&error));
        let committed = base
            .committed_offsets(list.clone(), ASK_DEADLINE)
            .map_err(asked)?;
        let (mut places, mut fresh) = (Vec::new(), TopicPartitionList::new());
        for one in committed.elements() {
            one.error().map_err(asked)?;
            let at = (one.topic().to_owned(), one.partition());
            let known = match one.offset() {
                Offset::Offset(offset) => Some(offset),
                Offset::Beginning
                | Offset::End
                | Offset::Stored
                | Offset::Invalid
                | Offset::OffsetTail(_) => None,
            };
            let range = base
                .fetch_watermarks(&at.0, at.1, ASK_DEADLINE)
                .map_err(|error| format!("{}: {}", at.0, self.words.why(&error)))?;
            let durable = match known {
                Some(offset) => offset,
                None => self.beginning(base, &at, range)?,
            };
            if known.is_none() {
                add(&mut fresh, &at, durable)?;
            }
            let stopped = self.is_lost(&at, durable, range);
            places.push((
                at,
                Place {
                    durable,
                    committed: durable,
                    stopped,
                },
            ));
        }
        if fresh.count() > 0 {
            let fixed = base.commit(&fresh, CommitMode::Sync);
            fixed
                .map_err(|error| format!("first offsets cannot be committed: {}", self.words.why(&error)))?;
        }
        Ok(places)
    }

    fn beginning(&self, base: &BaseConsumer<Self>, at: &At, (low, high): (i64, i64)) -> Result<i64, String> {
        let moment = match self.spec.consume.from {
            Beginning::Earliest => return Ok(low),
            Beginning::Latest => return Ok(high),
            Beginning::At(moment) => moment,
        };
        let mut asked = TopicPartitionList::new();
        add(&mut asked, at, i64::try_from(moment.ms()).unwrap_or(i64::MAX))?;
        let found = base.offsets_for_times(asked, ASK_DEADLINE);
        let found = found.map_err(|error| format!("{}: {}", at.0, self.words.why(&error)))?;
        let offset = found.find_partition(&at.0, at.1).map(|one| one.offset());
        match offset {
            Some(Offset::Offset(offset)) => Ok(offset),
            // Nothing is as late.
            Some(Offset::End) => Ok(high),
            _ => Err(format!("{}: no offset is told for {moment}", at.0)),
        }
    }

    /// Whether messages that were not read are gone, or the topic is another one: nobody but an operator can say what is
    /// right then.
    fn is_lost(&self, at: &At, offset: i64, (low, high): (i64, i64)) -> bool {
        let is_lost = !(low..=high).contains(&offset);
        if is_lost {
            let (group, (topic, partition)) = (self.spec.group(), at);
            self.trouble(format!(
                "partition {partition} of topic {topic} is not read: the group's offset is {offset}, and the topic has \
                 {low} to {high}. Messages were deleted before they were read, or it was made anew: take out `consume`, \
                 set the offset with `kafka-consumer-groups.sh --group {group} --topic {topic}:{partition} \
                 --reset-offsets`, and put it in again"
            ));
        }
        is_lost
    }

    /// Partitions go: what is durable of them is committed first, so that whoever has them next need not read it again.
    fn revoked(&self, base: &BaseConsumer<Self>, list: &TopicPartitionList) -> Result<(), String> {
        let mut left = TopicPartitionList::new();
        for at in list.to_topic_map().into_keys() {
            self.shared.lags.lock().remove(&self.labels(&at.0, at.1));
            let Some(place) = self.state.lock().ours.remove(&at) else {
                continue;
            };
            if place.durable > place.committed {
                add(&mut left, &at, place.durable)?;
            }
        }
        if left.count() > 0
            && !base.assignment_lost()
            && let Err(error) = base.commit(&left, CommitMode::Sync)
        {
            tracing::debug!(%error, group = self.spec.group(), "the last offsets were not committed");
        }
        let unassigned = match base.rebalance_protocol() {
            RebalanceProtocol::Cooperative => base.incremental_unassign(list),
            RebalanceProtocol::Eager | RebalanceProtocol::None => base.unassign(),
        };
        unassigned.map_err(|error| error.to_string())
    }

    fn is_ours(&self, topic: &str, partition: i32) -> bool {
        let state = self.state.lock();
        let place = state.ours.get(&(topic.to_owned(), partition));
        place.is_some_and(|place| !place.stopped)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let dataset = &self.spec.dataset;
        let topics = &self.spec.consume.topics;
        let is_other = |of: &Name, topic: &String| of != dataset || !topics.contains(topic);
        self.shared
            .lags
            .lock()
            .retain(|(of, topic, _), _| is_other(of, topic));
    }
}

impl Consumer {
    /// Joins the group, as soon as the brokers are there.
    ///
    /// # Errors
    /// A sentence where librdkafka refuses the config, a file of TLS for one.
    pub fn new(spec: &Spec, shared: &Shared, metrics: &Metrics) -> Result<Self, String> {
        let ms = |duration: Duration| duration.as_millis().to_string();
        let kib = (SOURCE_QUEUE_BYTES / 1_024).to_string();
        let mut config = spec.target.client();
        for (key, value) in [
            ("group.id", spec.group()),
            ("partition.assignment.strategy", "cooperative-sticky".into()),
            ("enable.auto.commit", "false".into()),
            ("enable.auto.offset.store", "false".into()),
            // An offset that is not in the topic is told, never set to another.
            ("auto.offset.reset", "error".into()),
            ("isolation.level", "read_committed".into()),
            ("queued.max.messages.kbytes", kib.clone()),
            ("fetch.max.bytes", SOURCE_QUEUE_BYTES.to_string()),
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
            state: Mutex::default(),
        };
        let made = config.create_with_context(context);
        let base: BaseConsumer<Context> =
            made.map_err(|error| format!("Kafka cannot be set up: {}", told(&error)))?;
        let topics: Vec<&str> = spec.consume.topics.iter().map(String::as_str).collect();
        base.subscribe(&topics).map_err(|error| told(&error))?;
        Ok(Self {
            base,
            held: Vec::new(),
            is_paused: false,
        })
    }

    /// What has come, as soon as something has, within a bound; nothing where nothing comes for a moment.
    ///
    /// # Errors
    /// Why the consumer is of no use any more.
    pub fn gather(&mut self) -> Result<Vec<Batch>, String> {
        let mut gathering = Gathering::default();
        for held in std::mem::take(&mut self.held) {
            gathering.take(
                (held.topic(), held.partition(), held.offset()),
                held.payload().unwrap_or_default(),
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
                    gathering.take(at, message.payload().unwrap_or_default())?;
                }
                Some(Err(error)) => self.failed(&error)?,
                None if left.is_zero() => break,
                None => {}
            }
        }
        self.looked_at()?;
        // A partition may have gone while others' messages came.
        let context = self.base.context();
        gathering.keep(|topic, partition| context.is_ours(topic, partition));
        if gathering.is_empty() {
            self.commit_again();
        }
        Ok(gathering.close())
    }

    /// Tells the group that we are there, while nothing is to come.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn hold(&mut self) -> Result<(), String> {
        self.is_paused = true;
        let ours = self.base.assignment().map_err(|error| told(&error))?;
        self.base.pause(&ours).map_err(|error| told(&error))?;
        match self.base.poll(Duration::ZERO) {
            Some(Ok(message)) => self.held.push(message.detach()),
            Some(Err(error)) => self.failed(&error)?,
            None => {}
        }
        self.looked_at()
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
        for (at, _) in state.ours.iter().filter(|(_, place)| !place.stopped) {
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
        if list.count() == 0 {
            return;
        }
        state.committed_at = Some(Instant::now());
        drop(state);
        if let Err(error) = self.base.commit(&list, CommitMode::Async) {
            tracing::debug!(%error, "offsets were not committed");
        }
    }

    /// What was not answered is asked again.
    fn commit_again(&self) {
        let last = self.base.context().state.lock().committed_at;
        if last.is_none_or(|last| last.elapsed() > COMMIT_AGAIN) {
            self.commit();
        }
    }

    fn looked_at(&self) -> Result<(), String> {
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

fn add(list: &mut TopicPartitionList, at: &At, offset: i64) -> Result<(), String> {
    add_at(list, at, Offset::Offset(offset))
}

fn add_at(list: &mut TopicPartitionList, at: &At, offset: Offset) -> Result<(), String> {
    let added = list.add_partition_offset(&at.0, at.1, offset);
    added.map_err(|error| format!("{}: offset {offset:?}: {error}", at.0))
}
