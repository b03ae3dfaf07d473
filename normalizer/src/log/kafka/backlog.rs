//! How much of the log is not stored yet, whoever works on it: asked of the brokers every second.
//!
//! A partition that is not told of, or is full or too old, takes nothing; tenants whose events do not lie there go on. One
//! that nobody drains says nothing of how fast the others are drained, and does not count where shares are given out.
//!
//! Bytes are records times their mean size. The age of the oldest record that is not stored is not told by brokers: it is
//! at most the time since a look that found the end of the partition at or below what is committed now.

use super::clients::{ASK_DEADLINE, LogClients};
use super::manifest::Manifest;
use super::seat::Long;
use super::{Sizes, fit, open};
use crate::log::{Backlog, Closed, FullReason, Standing};
use crate::progress::Progress;
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use sluice_common::clock::{SharedClock, UnixMs};
use sluice_common::ids::{LogId, Name};
use sluice_common::limits::WATERMARK_REOPEN_PERCENT;
use sluice_common::shutdown::Stop;
use sluice_kafka::LastWords;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// More than `log.max_bytes` is not stored yet.
const FULL: Closed = Closed::Full(FullReason::Watermark);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// What was told counts for so long.
const KNOWN_FOR_MS: u64 = 10_000;
/// Between two looks at the topic's settings and its id.
const LOOK_AT_TOPIC_MS: u64 = 60_000;
/// Looks that are remembered of each partition; older ones are thinned.
const MAX_LOOKS: usize = 1_024;

/// The last word of the brokers. Cloning shares it.
#[derive(Clone)]
pub(super) struct Watch {
    state: Arc<Mutex<State>>,
    sizes: Arc<Sizes>,
    clock: SharedClock,
    limits: Limits,
    partitions: u16,
    stop: Stop,
}

/// Of one partition.
#[derive(Debug, Clone, Copy)]
struct Limits {
    bytes: u64,
    age_ms: u64,
}

#[derive(Default)]
struct State {
    parts: BTreeMap<u16, Part>,
    /// What is wrong with the topic.
    unfit: Option<String>,
}

/// One partition.
#[derive(Debug, Default)]
struct Part {
    committed: u64,
    /// Append time of the last record that is committed, if it was told.
    committed_ms: UnixMs,
    end: u64,
    /// When which end was seen, oldest first.
    looks: VecDeque<(UnixMs, u64)>,
    told_ms: Option<UnixMs>,
    /// When something was last committed, or nothing was there to be.
    moved_ms: UnixMs,
    closed: Option<Closed>,
    /// Datasets of which no more may be set aside there.
    full: Vec<Name>,
    /// Tables whose rows are set aside there for a promotion.
    held: Vec<Name>,
}

impl Part {
    fn saw(&mut self, (committed, committed_ms, end): (u64, UnixMs, u64), now: UnixMs) {
        if committed > self.committed || end <= committed {
            self.moved_ms = now;
        }
        (self.committed, self.committed_ms, self.end) = (committed, committed_ms, end);
        self.told_ms = Some(now);
        // Of looks at or below what is committed the newest says all.
        while self.looks.get(1).is_some_and(|(_, end)| *end <= committed) {
            self.looks.pop_front();
        }
        if self.looks.len() == MAX_LOOKS {
            // Every other one, the oldest among them: ages are told too high by a look at most.
            let mut keep = false;
            self.looks.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.looks.push_back((now, end));
    }

    fn records(&self) -> u64 {
        self.end.saturating_sub(self.committed)
    }

    /// Not later than the append time of the oldest record that is not committed.
    fn oldest_ms(&self) -> Option<UnixMs> {
        (self.records() > 0).then(|| {
            let first = self.looks.front().copied().unwrap_or_default();
            match first.1 <= self.committed || self.committed_ms == 0 {
                true => first.0.max(self.committed_ms),
                false => self.committed_ms,
            }
        })
    }
}

impl Watch {
    /// Looks from now on, for the first time at once.
    pub(super) fn start(
        clients: &LogClients,
        manifest: &Manifest,
        sizes: Arc<Sizes>,
        clock: SharedClock,
    ) -> Result<Self, String> {
        let watch = Self {
            state: Arc::default(),
            sizes,
            clock,
            limits: Limits {
                bytes: clients.max_backlog_bytes / u64::from(manifest.partitions.max(1)),
                age_ms: clients.kept_ms / 2,
            },
            partitions: manifest.partitions,
            stop: Stop::new(),
        };
        let looking = Looking {
            asking: clients.asking()?,
            clients: clients.clone(),
            log: manifest.log,
            watch: watch.clone(),
            topic_at: watch.clock.now_ms(),
        };
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::Builder::new().name("log-backlog".into());
        thread
            .spawn(move || {
                let _entered = runtime.enter();
                looking.run();
            })
            .map_err(|error| error.to_string())?;
        Ok(watch)
    }

    /// A record was appended here: it counts before the brokers are asked again.
    pub(super) fn appended(&self, partition: i32, offset: i64) {
        // An append that the brokers had seen before has no offset of its own.
        let (Ok(partition), Ok(offset)) = (u16::try_from(partition), u64::try_from(offset)) else {
            return;
        };
        let mut state = self.state.lock();
        let part = state.parts.entry(partition).or_default();
        part.end = part.end.max(offset + 1);
    }

    /// Looks no more.
    pub(super) fn close(&self) {
        self.stop.cancel();
    }

    pub(super) fn backlogs(&self) -> Vec<Backlog> {
        let (state, mean) = (self.state.lock(), self.sizes.mean());
        let one = |(partition, part): (&u16, &Part)| Backlog {
            partition: *partition,
            bytes: part.records() * mean,
            records: Some(part.records()),
            oldest_append_ms: part.oldest_ms(),
        };
        state.parts.iter().map(one).collect()
    }

    /// Of all partitions; closed is told of those in `of`, or where none takes anything.
    pub(super) fn standing(&self, of: Option<impl Iterator<Item = u16>>, queued_bytes: u64) -> Standing {
        let (now, mean) = (self.clock.now_ms(), self.sizes.mean());
        let mut state = self.state.lock();
        let unfit = state.unfit.as_ref().map(|_| Closed::Unfit);
        for part in state.parts.values_mut() {
            part.closed = part.closed_now(self.limits, mean, now);
        }
        let closed = match of {
            Some(mut of) => of.find_map(|number| state.closed(number)),
            None => state.all_closed(self.partitions),
        };
        let drained = state
            .parts
            .values()
            .filter(|part| now.saturating_sub(part.moved_ms) < KNOWN_FOR_MS);
        let (records, oldest) = drained.fold((0, None), |(records, oldest), part| {
            let older = part.oldest_ms().into_iter().chain(oldest).min();
            (records + part.records(), older)
        });
        Standing {
            backlog_bytes: records * mean,
            queued_bytes,
            oldest_backlog_append_ms: oldest,
            closed: unfit.or(closed),
        }
    }

    /// Whether a partition's owner says so.
    pub(super) fn is_full(&self, dataset: &str) -> bool {
        let state = self.state.lock();
        let mut full = state.parts.values().flat_map(|part| &part.full);
        full.any(|name| name.as_str() == dataset)
    }

    /// Whether a partition's owner sets rows of the table aside for a promotion.
    pub(super) fn is_held(&self, table: &Name) -> bool {
        let state = self.state.lock();
        state.parts.values().any(|part| part.held.contains(table))
    }
}

impl State {
    fn closed(&self, number: u16) -> Option<Closed> {
        self.parts
            .get(&number)
            .map_or(Some(Closed::Unknown), |part| part.closed)
    }

    /// Why nothing is taken from anybody.
    fn all_closed(&self, partitions: u16) -> Option<Closed> {
        let mut first = None;
        for number in 0..partitions {
            first = first.or(Some(self.closed(number)?));
        }
        first
    }
}

impl Part {
    fn closed_now(&self, limits: Limits, mean: u64, now: UnixMs) -> Option<Closed> {
        if self
            .told_ms
            .is_none_or(|at| now.saturating_sub(at) >= KNOWN_FOR_MS)
        {
            return Some(Closed::Unknown);
        }
        let age = self.oldest_ms().map(|at| now.saturating_sub(at));
        limits.reached(self.closed, self.records() * mean, age)
    }
}

impl Limits {
    /// Which limit is reached; one that was is until it is well below.
    fn reached(self, before: Option<Closed>, bytes: u64, age_ms: Option<u64>) -> Option<Closed> {
        let bound = |limit: u64, reason| match before == Some(reason) {
            true => limit / 100 * WATERMARK_REOPEN_PERCENT,
            false => limit,
        };
        if age_ms.is_some_and(|age| age >= bound(self.age_ms, Closed::Age)) {
            return Some(Closed::Age);
        }
        (bytes >= bound(self.bytes, FULL)).then_some(FULL)
    }
}

/// The thread that asks.
struct Looking {
    asking: BaseConsumer<LastWords>,
    clients: LogClients,
    log: LogId,
    watch: Watch,
    topic_at: UnixMs,
}

impl Looking {
    fn run(mut self) {
        let mut said = false;
        while !self.watch.stop.is_cancelled() {
            match self.look() {
                Ok(()) => said = false,
                Err(reason) if !said => {
                    tracing::warn!(
                        reason,
                        "the brokers do not say how much of the log is not stored yet"
                    );
                    said = true;
                }
                Err(_) => {}
            }
            if self.watch.clock.now_ms().saturating_sub(self.topic_at) >= LOOK_AT_TOPIC_MS {
                self.look_at_topic();
            }
            std::thread::sleep(LOOK);
        }
    }

    fn look(&self) -> Result<(), String> {
        let topic = &self.clients.topic;
        // What a connection said comes with events, which nobody else takes here.
        self.asking.poll(Duration::ZERO);
        let why = |error: &KafkaError| self.asking.context().why(error);
        let mut all = TopicPartitionList::new();
        for partition in 0..self.clients.partitions {
            all.add_partition(topic, i32::from(partition));
        }
        // In this order: an end that is asked for later is never below an offset.
        let told = self
            .asking
            .committed_offsets(all, ASK_DEADLINE)
            .map_err(|error| why(&error))?;
        let (mut first, mut any) = (None, false);
        for (number, one) in (0..).zip(told.elements()) {
            match self.look_at(number, &one) {
                Ok(()) => any = true,
                Err(reason) => first = first.or(Some(format!("partition {number}: {reason}"))),
            }
        }
        // One that is not told of takes nothing, and is told of by whoever works on it.
        first.filter(|_| !any).map_or(Ok(()), Err)
    }

    fn look_at(&self, number: u16, one: &TopicPartitionListElem<'_>) -> Result<(), String> {
        let why = |error: &KafkaError| self.asking.context().why(error);
        one.error().map_err(|error| why(&error))?;
        let Offset::Offset(offset) = one.offset() else {
            return Err("the group has no offset in it".into());
        };
        let (committed_ms, full, held) = match serde_json::from_str::<Progress>(one.metadata()) {
            Ok(progress) => (progress.committed_ms, progress.full, progress.held),
            Err(_) => match serde_json::from_str::<Long>(one.metadata()) {
                Ok(long) => (long.committed_ms, long.full, long.held),
                Err(_) => (None, Vec::new(), None),
            },
        };
        let committed_ms = committed_ms.unwrap_or(0);
        let held = held.map_or_else(Vec::new, |held| held.tables);
        let range = self
            .asking
            .fetch_watermarks(&self.clients.topic, one.partition(), ASK_DEADLINE);
        let (_, end) = range.map_err(|error| why(&error))?;
        let now = self.watch.clock.now_ms();
        let mut state = self.watch.state.lock();
        let part = state.parts.entry(number).or_default();
        part.saw((offset.cast_unsigned(), committed_ms, end.cast_unsigned()), now);
        (part.full, part.held) = (full, held);
        Ok(())
    }

    /// R6, every minute: a topic that was changed under us takes nothing more until it is mended.
    fn look_at_topic(&mut self) {
        self.topic_at = self.watch.clock.now_ms();
        let problems = match (
            fit::problems(&self.clients),
            open::log_id(&self.clients, &self.asking),
        ) {
            (Ok(problems), Ok(log)) if log == self.log => problems,
            (Ok(_), Ok(_)) => vec![format!(
                "topic {} was made anew: what was in it and not stored is lost. Stop Sluice, and begin with another \
                 `log.topic`",
                self.clients.topic
            )],
            // Told by the next look, if it lasts.
            (Err(_), _) | (_, Err(_)) => return,
        };
        let unfit = (!problems.is_empty()).then(|| problems.join("; "));
        let mut state = self.watch.state.lock();
        if state.unfit != unfit {
            if let Some(reason) = &unfit {
                tracing::error!(
                    reason,
                    "the log's topic is not what it has to be: nothing is taken until it is mended"
                );
            }
            state.unfit = unfit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_is_as_old_as_the_last_look_that_found_none_of_it_or_a_little_older() {
        let mut part = Part::default();
        part.saw((5, 900, 5), 1_000);
        assert_eq!(part.oldest_ms(), None);
        part.saw((5, 900, 9), 2_000);
        part.saw((5, 900, 20), 3_000);
        assert_eq!(part.oldest_ms(), Some(1_000));
        part.saw((9, 1_500, 20), 4_000);
        assert_eq!(part.oldest_ms(), Some(2_000), "record 9 came after that look");
        part.saw((20, 2_900, 20), 5_000);
        assert_eq!(part.oldest_ms(), None);
        let mut fresh = Part::default();
        fresh.saw((5, 900, 20), 9_000);
        assert_eq!(
            fresh.oldest_ms(),
            Some(900),
            "it came after the last one that is stored"
        );
        for at in 1..=3 * MAX_LOOKS as u64 {
            fresh.saw((5, 900, 20 + at), 9_000 + at);
        }
        assert!(fresh.looks.len() <= MAX_LOOKS && fresh.oldest_ms() == Some(900));
    }

    #[test]
    fn a_limit_that_was_reached_is_until_it_is_well_below() {
        let limits = Limits {
            bytes: 1_000,
            age_ms: 1_000,
        };
        assert_eq!(limits.reached(None, 999, Some(999)), None);
        assert_eq!(limits.reached(None, 1_000, None), Some(FULL));
        let watermark = Some(FULL);
        assert_eq!(limits.reached(watermark, 900, None), watermark);
        assert_eq!(limits.reached(watermark, 700, None), None);
        assert_eq!(limits.reached(None, 0, Some(1_000)), Some(Closed::Age));
    }
}
