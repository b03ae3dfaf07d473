//! The sink-writer as a service: calls in, one verdict a sub-batch out. It persists nothing and
//! retries nothing (R13).

use crate::admit::{Budget, RETRY_AFTER_MS};
use crate::block::{self, Sight, Sights, Source, SubBatch};
use crate::client::{ServerError, Target};
use crate::insert::Origin;
use crate::observe::Observer;
use crate::publish::{self, Topics};
use crate::servers::{AtServer, Server, Servers};
use crate::settle::Settler;
use crate::survey::Survey;
use crate::tables::DescribeError;
use crate::{horizon, ledger, letters, pace, replay, report, survey};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use sluice_common::clock::SharedClock;
use sluice_common::config::Dataset;
use sluice_common::gentle::gently;
use sluice_common::ids::Name;
use sluice_common::limits::{CLICKHOUSE_SLOTS_MAX, PUBLISH_CALL_BYTES};
use sluice_common::metrics::Metrics;
use sluice_common::reload::Part;
use sluice_common::telemetry;
use sluice_common::wire::sink::{RangeRecord, SinkCall, SinkReply, SinkRequest, SubReport, SubTask, Verdict};
use sluice_common::wire::transport::Seam;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tower::Service;
use tower::util::BoxCloneSyncService;
use tracing::Instrument as _;

/// Tables that one call has described at once.
const LOOKS_AT_ONCE: usize = 8;
/// The byte budget is spent; nothing was begun.
const BUSY: SinkReply = SinkReply::Busy {
    retry_after_ms: RETRY_AFTER_MS,
};
/// How long the making of new datasets' tables may take; after it, calls make them.
const NEW_TABLES_DEADLINE: Duration = Duration::from_secs(10);

/// Executes calls, each at the ClickHouse that it names. Cloning is cheap and shares everything.
#[derive(Debug, Clone)]
pub struct SinkWriter {
    servers: Arc<Servers>,
    budget: Budget,
    observer: Observer,
    topics: Topics,
    publishing: Budget,
}

impl SinkWriter {
    /// A sink-writer for `targets`, the first being preferred; nothing is connected yet. `datasets` are needed
    /// to create tables and to place rows of tables that are missing; what is in the log is written as its
    /// records say.
    ///
    /// # Panics
    /// Without a target.
    #[must_use]
    pub fn new(targets: &[Target], datasets: &[Dataset], metrics: &Metrics) -> Self {
        let servers = Arc::new(Servers::new(targets, datasets));
        servers.show(metrics);
        let budget = Budget::default();
        let limiters = servers.all().iter().map(|server| server.limiter.clone());
        Self {
            observer: Observer::new(metrics, &budget, limiters.collect()),
            servers,
            budget,
            topics: Topics::default(),
            publishing: Budget::new(PUBLISH_CALL_BYTES),
        }
    }

    /// The same, which publishes to `target`'s topics.
    #[must_use]
    pub fn publishing(self, target: Option<publish::Target>) -> Self {
        self.topics.replace(target);
        self
    }

    /// The same with another byte budget, which is not watched.
    #[must_use]
    pub fn with_budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// Creates the database and all missing tables on every server.
    ///
    /// # Errors
    /// The first server's, with its name; what was created stays.
    pub async fn create_missing(&self, timeout: Duration) -> Result<(), AtServer> {
        let deadline = Instant::now() + timeout;
        let making = self.servers.all().iter().map(async |server| {
            let made = server.tables.create_missing(deadline).await;
            made.map_err(|error| AtServer {
                server: server.name.clone(),
                error,
            })
        });
        join_all(making).await.into_iter().collect()
    }

    /// What `ingestctl check` says of each server and of the configured tables there.
    pub async fn describe_all(&self, clock: &SharedClock, timeout: Duration) -> Vec<report::ServerReport> {
        let deadline = Instant::now() + timeout;
        let asked = self.servers.all().iter().map(async |server| {
            let datasets = server.tables.datasets();
            report::describe_all(&server.client, &datasets, clock, deadline).await
        });
        join_all(asked).await
    }

    /// Follows the config: the datasets whose tables are made where they are missing, and the Kafka that is published
    /// to. What is known of tables is forgotten, so that columns that were added are seen.
    #[must_use]
    pub fn part(&self) -> Part {
        let sink = self.clone();
        Box::new(move |loaded| {
            let (sink, datasets) = (sink.clone(), loaded.config.datasets.clone());
            let target = publish::Target::of(loaded);
            Ok(Box::new(move || {
                sink.topics.replace(target);
                let servers = sink.servers.all().iter();
                let new = servers.map(|server| server.tables.replace(datasets.clone()));
                if new.fold(false, |some, new| some | new) {
                    tokio::spawn(async move { sink.make_new_tables().await });
                }
            }))
        })
    }

    async fn make_new_tables(self) {
        if let Err(error) = self.create_missing(NEW_TABLES_DEADLINE).await {
            tracing::warn!(%error, "tables of new datasets could not be made yet; calls try again");
        }
    }

    /// What hangs on a dataset's table, and how it keeps rows, on each server in turn; nothing where it does
    /// not exist.
    pub async fn survey(
        &self,
        dataset: &Dataset,
        timeout: Duration,
    ) -> Vec<Result<Option<Survey>, ServerError>> {
        let deadline = Instant::now() + timeout;
        let asked = self.servers.all().iter();
        join_all(asked.map(|server| survey::survey(&server.client, dataset, deadline))).await
    }

    /// Bytes of records that calls hold now.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.budget.held()
    }

    /// Sub-batches that the server in use is given at once now.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.servers.in_use().limiter.slots()
    }

    /// This sink-writer as a seam.
    #[must_use]
    pub fn seam(self) -> Seam<SinkRequest> {
        BoxCloneSyncService::new(self)
    }

    async fn answer(self, request: SinkRequest) -> SinkReply {
        match request {
            SinkRequest::Write(call) => {
                let Some(_held) = self.hold(&self.budget, &call.records) else {
                    return BUSY;
                };
                self.write(call).await
            }
            SinkRequest::Publish(call) => {
                let Some(_held) = self.hold(&self.publishing, &call.records) else {
                    return BUSY;
                };
                match self.topics.publish(call).await {
                    Ok(published) => SinkReply::Published(published),
                    Err(reason) => SinkReply::Failed { reason },
                }
            }
            SinkRequest::Horizon(asked) => match horizon::ask(&self.servers, &asked).await {
                Ok(told) => SinkReply::Horizon(told),
                Err(reason) => SinkReply::Failed { reason },
            },
            SinkRequest::Books(asked) => match ledger::all_sums(&self.servers, &asked).await {
                Ok((lines, not_asked)) => SinkReply::Books(lines, not_asked),
                Err(reason) => SinkReply::Failed { reason },
            },
            SinkRequest::Parts(asked) => match pace::parts(&self.servers.in_use().client, &asked).await {
                Ok(lines) => SinkReply::Parts(lines),
                Err(error) => SinkReply::Failed {
                    reason: format!("system.parts: {error}"),
                },
            },
            SinkRequest::Letters(call) => match letters::answer(&self.servers, call).await {
                Ok((told, not_asked)) => SinkReply::Letters(told, not_asked),
                Err(reason) => SinkReply::Failed { reason },
            },
            SinkRequest::Servers(_) => SinkReply::Servers(self.servers.seen().await),
            SinkRequest::Replay(call) => match replay::answer(&self.servers, call).await {
                Ok(told) => SinkReply::Replay(told),
                Err(reason) => SinkReply::Failed { reason },
            },
        }
    }

    /// Bytes of a budget for a call's records; none where they are not free now.
    fn hold(&self, budget: &Budget, records: &[RangeRecord]) -> Option<OwnedSemaphorePermit> {
        let held = budget.take(held_by(records));
        if held.is_none() {
            self.observer.refused();
        }
        held
    }

    async fn write(&self, call: SinkCall) -> SinkReply {
        let deadline = Instant::now() + call.timeout;
        if let Err(reason) = check(&call) {
            return SinkReply::Failed { reason };
        }
        let server = match self.servers.find(call.server.as_ref()).await {
            Ok(server) => server,
            Err(reason) => return SinkReply::Failed { reason },
        };
        let is_gentle = !call.instead.is_empty();
        let source = Source {
            log: call.log,
            partition: call.partition,
            records: redirected(call.records, &call.instead),
            ledger: call.ledger,
            quarantined: call.quarantined,
            tasks: call.tasks.clone(),
        };
        let subs = match self.build(&server, (source, is_gentle), deadline).await {
            Ok(subs) => subs,
            Err(reason) => return SinkReply::Failed { reason },
        };
        let (work, lost) = select(subs, call.tasks);
        let settler = Settler {
            client: server.client.clone(),
            tables: Arc::clone(&server.tables),
            observer: self.observer.clone(),
            limiter: server.limiter.clone(),
            origin: Origin {
                log: call.log,
                partition: call.partition,
                range: call.range,
            },
            steps: call.steps,
            gentle: is_gentle,
            deadline,
            failed: Arc::default(),
        };
        let settled = stream::iter(work).map(|(sub, generation)| settler.settle(sub, generation));
        let mut reports: Vec<SubReport> = settled
            .buffer_unordered(CLICKHOUSE_SLOTS_MAX as usize)
            .collect()
            .await;
        reports.extend(lost);
        reports.sort_by(|a, b| a.sub.cmp(&b.sub));
        SinkReply::Wrote(reports)
    }

    /// Blocks of what was seen of the tables; where columns would be left out, of what is seen now.
    async fn build(
        &self,
        server: &Server,
        (source, is_gentle): (Source, bool),
        deadline: Instant,
    ) -> Result<Vec<SubBatch>, String> {
        let source = Arc::new(source);
        let subs = self.build_once(server, (&source, is_gentle), deadline).await?;
        let lacking = subs.iter().filter(|sub| !sub.left_out.is_empty());
        let lacking: BTreeSet<&Name> = lacking.map(|sub| &sub.key.table).collect();
        let now = Instant::now();
        let again = lacking
            .iter()
            .filter(|table| server.tables.look_again(table, now))
            .count();
        if again == 0 {
            return Ok(subs);
        }
        drop(subs);
        self.build_once(server, (&source, is_gentle), deadline).await
    }

    async fn build_once(
        &self,
        server: &Server,
        (source, is_gentle): (&Arc<Source>, bool),
        deadline: Instant,
    ) -> Result<Vec<SubBatch>, String> {
        let sights = self.sights(server, source, deadline).await;
        let source = Arc::clone(source);
        let build = move || block::build(&source, &sights).map_err(|bad| bad.to_string());
        let built = if is_gentle {
            gently(build).await.map_err(|undone| undone.to_string())
        } else {
            let built = tokio::task::spawn_blocking(build).await;
            built.map_err(|panic| panic.to_string())
        };
        built.map_err(|why| format!("building the blocks failed inside: {why}"))?
    }

    async fn sights(&self, server: &Server, source: &Source, deadline: Instant) -> Sights {
        let looks = block::tables_of(source).into_iter().map(async |name| {
            let sight = match server.tables.get(&name, deadline).await {
                Ok(table) => Sight::Known(table),
                Err(why) => {
                    if let DescribeError::Server(error) = &why {
                        self.observer.failed(error);
                    }
                    let placement = server.tables.last_placement(&name);
                    Sight::Hidden { why, placement }
                }
            };
            (name, sight)
        });
        stream::iter(looks)
            .buffer_unordered(LOOKS_AT_ONCE)
            .collect()
            .await
    }
}

/// What a call holds while it is worked: its frames, and their columns once decoded.
fn held_by(records: &[RangeRecord]) -> usize {
    let sizes = records
        .iter()
        .map(|one| one.record.frame().len().saturating_add(one.record.column_bytes()));
    sizes.fold(0, usize::saturating_add)
}

/// Records whose rows go to other tables than they name.
fn redirected(mut records: Vec<RangeRecord>, instead: &BTreeMap<Name, Name>) -> Vec<RangeRecord> {
    for one in &mut records {
        if let Some(other) = instead.get(&one.record.meta.table) {
            one.record.meta.table = other.clone();
        }
    }
    records
}

/// What the pump must have kept: records of this log, inside the range, with a fate a row.
fn check(call: &SinkCall) -> Result<(), String> {
    for one in &call.records {
        let place = one.record.place;
        if place.log != call.log {
            return Err(format!(
                "record {} is of log {}, the call of {}",
                place.offset, place.log, call.log
            ));
        }
        if !(call.range.a..call.range.b).contains(&place.offset) {
            return Err(format!("record {} lies outside the range", place.offset));
        }
        if one.fates.rows() != one.record.rows() {
            return Err(format!(
                "record {} has another number of fates than rows",
                place.offset
            ));
        }
    }
    if call.range.b > 1 << 48 {
        return Err("the range ends past the highest offset".into());
    }
    Ok(())
}

/// The sub-batches that were asked for with their generations, and reports for asked ones that the
/// range no longer has (its table was repartitioned).
fn select(subs: Vec<SubBatch>, tasks: Option<Vec<SubTask>>) -> (Vec<(SubBatch, u32)>, Vec<SubReport>) {
    let Some(tasks) = tasks else {
        return (subs.into_iter().map(|sub| (sub, 0)).collect(), Vec::new());
    };
    let (mut work, mut lost) = (Vec::with_capacity(tasks.len()), Vec::new());
    let mut subs: Vec<Option<SubBatch>> = subs.into_iter().map(Some).collect();
    for task in tasks {
        let is_asked = |sub: &&mut Option<SubBatch>| sub.as_ref().is_some_and(|sub| sub.key == task.sub);
        match subs.iter_mut().find(is_asked).and_then(Option::take) {
            Some(sub) => work.push((sub, task.generation)),
            None => lost.push(SubReport {
                sub: task.sub,
                rows: 0,
                sum_o: 0,
                sum_o2: 0,
                verdict: Verdict::Unknown {
                    reason: "no rows of the range fall there now: was the table partitioned anew?".into(),
                },
            }),
        }
    }
    (work, lost)
}

/// The span of a call: a write is part of its range's trace.
fn span(request: &SinkRequest) -> tracing::Span {
    match request {
        SinkRequest::Write(call) => {
            let (partition, attempt) = (call.partition, call.attempt);
            let (a, b) = (call.range.a, call.range.b);
            let span = tracing::info_span!("write", partition, a, b, attempt);
            telemetry::set_parent(&span, call.trace);
            span
        }
        SinkRequest::Horizon(asked) => tracing::info_span!("horizon", partition = asked.partition),
        SinkRequest::Books(asked) => tracing::info_span!("books", since_s = asked.since_s),
        SinkRequest::Letters(_) => tracing::info_span!("letters"),
        SinkRequest::Parts(_) => tracing::debug_span!("parts"),
        SinkRequest::Servers(_) => tracing::debug_span!("servers"),
        SinkRequest::Replay(call) => tracing::info_span!("replay", id = %call.id),
        SinkRequest::Publish(call) => {
            let (partition, topic) = (call.order.partition, call.order.topic.as_str());
            let (a, b) = (call.order.range.a, call.order.range.b);
            let span = tracing::info_span!("publish", partition, a, b, topic);
            telemetry::set_parent(&span, call.trace);
            span
        }
    }
}

impl Service<SinkRequest> for SinkWriter {
    type Response = SinkReply;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<SinkReply, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: SinkRequest) -> Self::Future {
        let writer = self.clone();
        let span = span(&request);
        Box::pin(async move { Ok(writer.answer(request).await) }.instrument(span))
    }
}
