//! Kafka topics as a source: messages go through intake as clients' events do.
//!
//! # Design note
//! *What is promised.* A message's offset is committed to its consumer group only once its event is durable in the
//! log, or its rejection is. So each message is read at least once; and as it is identified by its dataset's key or,
//! without one, by the topic's id, partition and offset ([`Origin`](sluice_common::wire::messages::Origin)), dedup drops
//! what is read again within the window. The id is the one that the brokers gave the topic: a topic of the same name, of
//! other brokers or made anew, has other messages at the same offsets. Where they give none (before Kafka 2.8) it is
//! their cluster's. What is rejected leaves a dead letter: there is no client to be told.
//!
//! *How.* Each `consume` of the config has a thread and a consumer of its own: one in trouble holds up no other. The
//! thread gathers what came into a batch a partition ([`batch`]), hands the batches to intake ([`feed`]), waits until
//! all are durable, and commits ([`consumer`]). There is nothing between the brokers and the log that could be lost.
//! While intake takes nothing (the log is full, a table's shelf is) the partitions are paused and the group is kept.
//!
//! *Ownership* is the consumer group's. Offsets are signed with the log's id and the topic's: only that log knows what was
//! read before, so a Sluice with another log does not go on with them, and an offset of a topic that is no more is none
//! of the one that has its name now. Within a log, what a member that lost a partition still appends
//! is read again by its new owner, and dropped.
//!
//! *Never a silent reset.* A group's first offsets are committed before the first message is read; after that a
//! partition whose offset is not in the topic any more stops, with an alarm.

pub mod batch;
mod consumer;
mod feed;

use crate::service::IntakeService;
use consumer::{Consumer, Known, Shared};
use feed::Feed;
use parking_lot::Mutex;
use sluice_common::config::{Consume, Loaded, Weight};
use sluice_common::ids::{LogId, Name};
use sluice_common::limits::{RETRY_BACKOFF_MAX, RETRY_BACKOFF_MIN};
use sluice_common::metrics::{Counter, Gauge, Metrics, Values};
use sluice_common::shutdown::Stop;
use sluice_kafka::Target;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// How long intake is waited for before the group is told that we are still there.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is told from then on.
const TICK: Duration = Duration::from_millis(100);
/// How long consumers may take to leave their groups.
const LEAVE_DEADLINE: Duration = Duration::from_secs(5);

/// One `consume`, and where its brokers are.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    pub target: Target,
    pub dataset: Name,
    pub consume: Consume,
    pub weight: Weight,
    /// Whose keys tell what was read before.
    pub log: LogId,
}

impl Spec {
    /// Those of a config.
    #[must_use]
    pub fn all(loaded: &Loaded, log: LogId) -> Vec<Self> {
        let tenants = &loaded.config.tenants;
        let weight = |consume: &Consume| tenants.iter().find(|one| one.id == consume.tenant);
        let datasets = loaded.config.datasets.iter();
        let all = datasets.flat_map(|dataset| dataset.consume.iter().map(move |consume| (dataset, consume)));
        all.filter_map(|(dataset, consume)| {
            Some(Self {
                target: Target::of_source(loaded, consume)?,
                dataset: dataset.name.clone(),
                consume: consume.clone(),
                weight: weight(consume).map(|tenant| tenant.weight).unwrap_or_default(),
                log,
            })
        })
        .collect()
    }

    fn group(&self) -> String {
        self.consume.group(self.dataset.as_str())
    }

    fn brokers(&self) -> String {
        self.target.kafka.brokers.join(",")
    }
}

/// All sources of a normalizer. Cloning shares them.
#[derive(Clone)]
pub struct Sources(Arc<Inner>);

struct Inner {
    service: Arc<IntakeService>,
    shared: Shared,
    runtime: Handle,
    running: Mutex<Vec<Running>>,
}

struct Running {
    spec: Spec,
    stop: Stop,
    thread: JoinHandle<()>,
}

impl Sources {
    /// Starts them, on the runtime that this is called on.
    #[must_use]
    pub fn start(service: &Arc<IntakeService>, specs: Vec<Spec>) -> Self {
        let shared = Shared::default();
        show(&service.metrics, &shared);
        let sources = Self(Arc::new(Inner {
            service: Arc::clone(service),
            shared,
            runtime: Handle::current(),
            running: Mutex::default(),
        }));
        sources.replace(specs);
        sources
    }

    /// Has those end that are not among these: before their datasets go.
    pub fn retire(&self, specs: &[Spec]) {
        let mut running = self.0.running.lock();
        let (stay, go): (Vec<_>, Vec<_>) = std::mem::take(&mut *running)
            .into_iter()
            .partition(|one| specs.contains(&one.spec));
        // They end by themselves; their groups hand the partitions over.
        go.iter().for_each(|one| one.stop.cancel());
        *running = stay;
    }

    /// Has these run from now on, and no others. Those that stay are left alone.
    pub fn replace(&self, specs: Vec<Spec>) {
        self.retire(&specs);
        let mut running = self.0.running.lock();
        for spec in specs {
            if !running.iter().any(|one| one.spec == spec) {
                running.extend(self.begin(spec));
            }
        }
    }

    fn begin(&self, spec: Spec) -> Option<Running> {
        let stop = Stop::new();
        let source = Source {
            feed: Feed::new(Arc::clone(&self.0.service), &spec),
            spec: spec.clone(),
            shared: self.0.shared.clone(),
            metrics: self.0.service.metrics.clone(),
            known: Known::default(),
            runtime: self.0.runtime.clone(),
            stop: stop.clone(),
        };
        let name = format!("source-{}", spec.dataset);
        match std::thread::Builder::new().name(name).spawn(move || source.run()) {
            Ok(thread) => Some(Running { spec, stop, thread }),
            Err(error) => {
                alarm(
                    &self.0.service.metrics,
                    &spec,
                    &format!("its thread cannot be started: {error}"),
                );
                None
            }
        }
    }

    /// Ends all of them: what is under way is finished or left, offsets are committed, groups are left.
    pub async fn stop(&self) {
        let running = std::mem::take(&mut *self.0.running.lock());
        running.iter().for_each(|one| one.stop.cancel());
        let ended = tokio::task::spawn_blocking(move || {
            for one in running {
                if one.thread.join().is_err() {
                    tracing::error!(dataset = %one.spec.dataset, "a source's thread failed");
                }
            }
        });
        if tokio::time::timeout(LEAVE_DEADLINE, ended).await.is_err() {
            tracing::warn!(
                "the brokers do not answer: what was read and not committed is read again, and dropped"
            );
        }
    }
}

/// What its thread has.
struct Source {
    spec: Spec,
    feed: Feed,
    shared: Shared,
    metrics: Metrics,
    known: Known,
    runtime: Handle,
    stop: Stop,
}

impl Source {
    /// Reads until it is stopped. A consumer that is of no use any more is made anew.
    fn run(self) {
        let mut pause = RETRY_BACKOFF_MIN;
        while !self.stop.is_cancelled() {
            let begun = Instant::now();
            let Err(reason) = self.consume() else { break };
            if begun.elapsed() > RETRY_BACKOFF_MAX {
                pause = RETRY_BACKOFF_MIN;
            }
            alarm(&self.metrics, &self.spec, &reason);
            let stopped = self.stop.cancelled();
            self.runtime
                .block_on(async { tokio::time::timeout(pause, stopped).await.ok() });
            pause = (pause * 2).min(RETRY_BACKOFF_MAX);
        }
        let (dataset, group) = (&self.spec.dataset, self.spec.group());
        tracing::info!(%dataset, group, "a source has ended and left its consumer group");
    }

    /// Gather → append → commit, until it is stopped.
    ///
    /// # Errors
    /// Why the consumer is of no use any more.
    fn consume(&self) -> Result<(), String> {
        let mut consumer = Consumer::new(&self.spec, &self.shared, &self.metrics, &self.known)?;
        while !self.stop.is_cancelled() {
            let batches = consumer.gather()?;
            if batches.is_empty() {
                continue;
            }
            let nexts: Vec<_> = batches.iter().map(batch::Batch::next).collect();
            let mut work = self.runtime.spawn(self.feed.clone().append_all(batches));
            let mut patience = PATIENCE;
            let appended = loop {
                let until = async { tokio::time::timeout(patience, &mut work).await };
                if let Ok(ended) = self.runtime.block_on(until) {
                    break ended;
                }
                if self.stop.is_cancelled() {
                    work.abort();
                    return Ok(());
                }
                patience = TICK;
                consumer.hold()?;
            };
            appended.map_err(|error| format!("appending failed inside: {error}"))?;
            consumer.durable(&nexts);
            consumer.go_on()?;
        }
        Ok(())
    }
}

/// Something that somebody has to look at.
fn alarm(metrics: &Metrics, spec: &Spec, reason: &str) {
    metrics.add(Counter::Alarms, 1, &[("reason", "source")]);
    let (dataset, group, brokers) = (&spec.dataset, spec.group(), spec.brokers());
    tracing::error!(%dataset, group, brokers, reason, "events cannot be read from Kafka; it is tried again: mend the cause");
}

fn show(metrics: &Metrics, shared: &Shared) {
    metrics.add(Counter::Alarms, 0, &[("reason", "source")]);
    for outcome in ["accepted", "rejected"] {
        metrics.add(Counter::Events, 0, &[("stage", "source"), ("outcome", outcome)]);
    }
    let shared = shared.clone();
    metrics.watch_all(Gauge::ConsumerLag, move || levels(&shared));
}

#[expect(clippy::cast_precision_loss, reason = "gauges")]
fn levels(shared: &Shared) -> Values {
    let lags = shared.lags.lock();
    let level = |((dataset, group, topic, partition), lag): (&(Name, String, String, i32), &i64)| {
        let labels = vec![
            ("dataset", dataset.to_string()),
            ("group", group.clone()),
            ("topic", topic.clone()),
            ("partition", partition.to_string()),
        ];
        (labels, *lag as f64)
    };
    lags.iter().map(level).collect()
}
