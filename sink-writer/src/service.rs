//! The sink-writer as a service: calls in, one verdict a sub-batch out. It persists nothing and
//! retries nothing (R13).

use crate::admit::{Budget, RETRY_AFTER_MS};
use crate::block::{self, Sight, Sights, Source, SubBatch};
use crate::client::{Client, ServerError, Target};
use crate::insert::Origin;
use crate::limiter::Limiter;
use crate::observe::Observer;
use crate::settle::Settler;
use crate::survey::Survey;
use crate::tables::{DescribeError, Tables};
use crate::{horizon, ledger, letters, pace, report, survey};
use futures_util::StreamExt;
use futures_util::stream;
use sluice_common::clock::SharedClock;
use sluice_common::config::Dataset;
use sluice_common::ids::Name;
use sluice_common::limits::CLICKHOUSE_SLOTS_MAX;
use sluice_common::metrics::Metrics;
use sluice_common::reload::Part;
use sluice_common::telemetry;
use sluice_common::wire::sink::{RangeRecord, SinkCall, SinkReply, SinkRequest, SubReport, SubTask, Verdict};
use sluice_common::wire::transport::Seam;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tower::Service;
use tower::util::BoxCloneSyncService;
use tracing::Instrument as _;

/// How long the making of new datasets' tables may take; after it, calls make them.
const NEW_TABLES_DEADLINE: Duration = Duration::from_secs(10);

/// Executes calls against one ClickHouse. Cloning is cheap and shares everything.
#[derive(Debug, Clone)]
pub struct SinkWriter {
    client: Client,
    tables: Arc<Tables>,
    budget: Budget,
    observer: Observer,
    limiter: Limiter,
}

impl SinkWriter {
    /// A sink-writer for `target`; nothing is connected yet. `datasets` are needed to create tables and
    /// to place rows of tables that are missing; what is in the log is written as its records say.
    #[must_use]
    pub fn new(target: &Target, datasets: &[Dataset], metrics: &Metrics) -> Self {
        let client = Client::new(target);
        let tables = Arc::new(Tables::new(client.clone(), datasets, target.letters_ttl));
        let (budget, limiter) = (Budget::default(), Limiter::default());
        Self {
            client,
            tables,
            observer: Observer::new(metrics, &budget, &limiter),
            budget,
            limiter,
        }
    }

    /// The same with another byte budget, which is not watched.
    #[must_use]
    pub fn with_budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// Creates the database and all missing tables.
    ///
    /// # Errors
    /// The server's; what was created stays.
    pub async fn create_missing(&self, timeout: Duration) -> Result<(), ServerError> {
        self.tables.create_missing(Instant::now() + timeout).await
    }

    /// What `ingestctl check` says of the server and the configured tables.
    pub async fn describe_all(&self, clock: &SharedClock, timeout: Duration) -> report::ServerReport {
        let deadline = Instant::now() + timeout;
        report::describe_all(&self.client, &self.tables.datasets(), clock, deadline).await
    }

    /// Follows the config: the datasets whose tables are made where they are missing. What is known of
    /// tables is forgotten, so that columns that were added are seen.
    #[must_use]
    pub fn part(&self) -> Part {
        let sink = self.clone();
        Box::new(move |loaded| {
            let (sink, datasets) = (sink.clone(), loaded.config.datasets.clone());
            Ok(Box::new(move || {
                if sink.tables.replace(datasets) {
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

    /// What hangs on a dataset's table, and how it keeps rows; nothing where it does not exist.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn survey(&self, dataset: &Dataset, timeout: Duration) -> Result<Option<Survey>, ServerError> {
        survey::survey(&self.client, dataset, Instant::now() + timeout).await
    }

    /// Bytes of records that calls hold now.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.budget.held()
    }

    /// Sub-batches that the server is given at once now.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.limiter.slots()
    }

    /// This sink-writer as a seam.
    #[must_use]
    pub fn seam(self) -> Seam<SinkRequest> {
        BoxCloneSyncService::new(self)
    }

    async fn answer(self, request: SinkRequest) -> SinkReply {
        match request {
            SinkRequest::Write(call) => {
                let Some(_held) = self.budget.take(held_by(&call)) else {
                    self.observer.refused();
                    return SinkReply::Busy {
                        retry_after_ms: RETRY_AFTER_MS,
                    };
                };
                self.write(call).await
            }
            SinkRequest::Horizon(asked) => match horizon::ask(&self.client, &self.tables, &asked).await {
                Ok(found) => SinkReply::Horizon(found),
                Err(reason) => SinkReply::Failed { reason },
            },
            SinkRequest::Books(asked) => match ledger::sums(&self.client, &asked).await {
                Ok(lines) => SinkReply::Books(lines),
                Err(error) => SinkReply::Failed {
                    reason: format!("table ledger: {error}"),
                },
            },
            SinkRequest::Parts(asked) => match pace::parts(&self.client, &asked).await {
                Ok(lines) => SinkReply::Parts(lines),
                Err(error) => SinkReply::Failed {
                    reason: format!("system.parts: {error}"),
                },
            },
            SinkRequest::Letters(call) => match letters::answer(&self.client, &self.tables, call).await {
                Ok(told) => SinkReply::Letters(told),
                Err(reason) => SinkReply::Failed { reason },
            },
        }
    }

    async fn write(&self, call: SinkCall) -> SinkReply {
        let deadline = Instant::now() + call.timeout;
        if let Err(reason) = check(&call) {
            return SinkReply::Failed { reason };
        }
        let source = Source {
            log: call.log,
            partition: call.partition,
            records: call.records,
            ledger: call.ledger,
            quarantined: call.quarantined,
            tasks: call.tasks.clone(),
        };
        let subs = match self.build(source, deadline).await {
            Ok(subs) => subs,
            Err(reason) => return SinkReply::Failed { reason },
        };
        let (work, lost) = select(subs, call.tasks);
        let settler = Settler {
            client: self.client.clone(),
            tables: self.tables.clone(),
            observer: self.observer.clone(),
            limiter: self.limiter.clone(),
            origin: Origin {
                log: call.log,
                partition: call.partition,
                range: call.range,
            },
            steps: call.steps,
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
    async fn build(&self, source: Source, deadline: Instant) -> Result<Vec<SubBatch>, String> {
        let source = Arc::new(source);
        let subs = self.build_once(&source, deadline).await?;
        let lacking = subs.iter().filter(|sub| !sub.left_out.is_empty());
        let lacking: BTreeSet<&Name> = lacking.map(|sub| &sub.key.table).collect();
        let now = Instant::now();
        let again = lacking
            .iter()
            .filter(|table| self.tables.look_again(table, now))
            .count();
        if again == 0 {
            return Ok(subs);
        }
        drop(subs);
        self.build_once(&source, deadline).await
    }

    async fn build_once(&self, source: &Arc<Source>, deadline: Instant) -> Result<Vec<SubBatch>, String> {
        let sights = self.sights(&source.records, deadline).await;
        let source = Arc::clone(source);
        let built = tokio::task::spawn_blocking(move || block::build(&source, &sights)).await;
        match built {
            Ok(built) => built.map_err(|bad| bad.to_string()),
            Err(panic) => Err(format!("building the blocks failed inside: {panic}")),
        }
    }

    async fn sights(&self, records: &[RangeRecord], deadline: Instant) -> Sights {
        let mut sights = Sights::new();
        for name in block::tables_of(records) {
            let sight = match self.tables.get(&name, deadline).await {
                Ok(table) => Sight::Known(table),
                Err(why) => {
                    if let DescribeError::Server(error) = &why {
                        self.observer.failed(error);
                    }
                    let placement = self.tables.last_placement(&name);
                    Sight::Hidden { why, placement }
                }
            };
            sights.insert(name, sight);
        }
        sights
    }
}

/// What a call holds while it is worked: its frames, and their columns once decoded.
fn held_by(call: &SinkCall) -> usize {
    let columns = call.records.iter().map(|one| one.record.column_bytes());
    columns.fold(call.record_bytes(), usize::saturating_add)
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
        SinkRequest::Books(asked) => tracing::info_span!("books", partition = asked.partition),
        SinkRequest::Letters(_) => tracing::info_span!("letters"),
        SinkRequest::Parts(_) => tracing::debug_span!("parts"),
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
