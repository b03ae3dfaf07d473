//! One range's way to proof: the state machine of `progress::settle` with its calls, waits and writes.

use super::books::Evidence;
use super::range::{ClosedRange, sends};
use crate::progress::settle::{Next, Plan, Settling};
use crate::progress::store::{Store, StoreError};
use crate::progress::{Intent, Progress};
use parking_lot::Mutex;
use sluice_common::ids::LogId;
use sluice_common::metrics::{Counter, Metrics};
use sluice_common::telemetry;
use sluice_common::trace::TraceContext;
use sluice_common::wire::sink::{SinkCall, SinkReply, SinkRequest, SubReport, SubTask};
use sluice_common::wire::transport::Seam;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tower::ServiceExt as _;
use tracing::Instrument as _;

/// What driving needs; cheap to clone.
#[derive(Clone)]
pub struct Driver {
    pub log: LogId,
    pub partition: u16,
    pub sink: Seam<SinkRequest>,
    pub store: Arc<Mutex<Store>>,
    pub metrics: Metrics,
    /// Up while the declared range is in trouble; shown as `sluice_unsettled`.
    pub in_trouble: Arc<AtomicBool>,
}

/// Traces that one range's span is linked to at most.
const MAX_LINKS: usize = 8;
/// A log line of a lasting trouble comes once in so many waits.
const SAY_EVERY: u32 = 6;

impl Driver {
    /// Settles a declared range; returns what proved it, when every sub-batch is proven.
    ///
    /// # Errors
    /// [`StoreError`] where progress cannot be kept: the process must end.
    pub async fn settle(self, closed: Arc<ClosedRange>, settling: Settling) -> Result<Evidence, StoreError> {
        let (a, b, rows) = (closed.range.a, closed.range.b, closed.proof.rows);
        let span = tracing::info_span!("range", partition = self.partition, a, b, rows);
        let spans = closed.records.iter().flat_map(|one| one.record.spans());
        for one in spans.filter(|span| span.trace_id != 0).take(MAX_LINKS) {
            let to = TraceContext {
                trace_id: one.trace_id,
                span_id: one.span_id,
                sampled: true,
            };
            telemetry::link(&span, to);
        }
        let trace = telemetry::context_of(&span, TraceContext::default());
        self.run(closed, settling, trace).instrument(span).await
    }

    async fn run(
        self,
        closed: Arc<ClosedRange>,
        mut settling: Settling,
        trace: TraceContext,
    ) -> Result<Evidence, StoreError> {
        let (mut waits, mut alarmed) = (0u32, false);
        let mut evidence = Evidence::default();
        loop {
            match settling.advance() {
                Next::Proven => break,
                Next::Call(plan) => {
                    let all = plan.tasks.is_none();
                    if let Some(reports) = self.call(&closed, plan, trace, &mut settling).await {
                        evidence.note(all, &reports);
                    }
                }
                Next::Persist(bumped) => tokio::task::block_in_place(|| self.persist(bumped))?,
                Next::Wait { delay, reason, alarm } => {
                    // The first alarm is said at once, though waits before it were said as such.
                    let due = waits.is_multiple_of(SAY_EVERY) || (alarm && !alarmed);
                    self.say(&reason, alarm, due);
                    alarmed |= alarm;
                    waits += 1;
                    tokio::time::sleep(delay).await;
                }
            }
        }
        if self.in_trouble.swap(false, Ordering::Relaxed) {
            tracing::info!(
                a = closed.range.a,
                b = closed.range.b,
                "the range is settled after all"
            );
        }
        Ok(evidence)
    }

    async fn call(
        &self,
        closed: &ClosedRange,
        plan: Plan,
        trace: TraceContext,
        settling: &mut Settling,
    ) -> Option<Vec<SubReport>> {
        let call = SinkCall {
            log: self.log,
            partition: self.partition,
            range: closed.range,
            attempt: plan.attempt,
            timeout: plan.timeout,
            steps: plan.steps,
            tasks: plan.tasks,
            records: closed.records.iter().filter(|one| sends(one)).cloned().collect(),
            ledger: closed.ledger.clone(),
            trace,
        };
        let answer = tokio::time::timeout(
            plan.timeout * 2,
            self.sink.clone().oneshot(SinkRequest::Write(call)),
        );
        match answer.await {
            Ok(Ok(SinkReply::Wrote(reports))) => {
                settling.reported(&reports);
                return Some(reports);
            }
            Ok(Ok(SinkReply::Busy { retry_after_ms })) => {
                settling.busy(Duration::from_millis(retry_after_ms))
            }
            Ok(Ok(SinkReply::Failed { reason })) => settling.failed(format!("the sink-writer: {reason}")),
            Ok(Ok(SinkReply::Horizon(_) | SinkReply::Books(_))) => {
                settling.failed("the sink-writer answers another question".into())
            }
            Ok(Err(never)) => match never {},
            Err(_) => settling.failed("the sink-writer does not answer in time".into()),
        }
        None
    }

    fn persist(&self, bumped: Vec<SubTask>) -> Result<(), StoreError> {
        let mut store = self.store.lock();
        let state = store.state().clone();
        let Some(intent) = state.intent else { return Ok(()) };
        let new = bumped.iter().filter(|task| !intent.bumped.contains(task)).count() as u64;
        tracing::warn!(
            new,
            "ClickHouse had recorded a token without its rows (a crash between the two): sending under a new one"
        );
        self.metrics.add(Counter::GenerationBumps, new, &[]);
        store.write(Progress {
            intent: Some(Intent { bumped, ..intent }),
            ..state
        })
    }

    fn say(&self, reason: &str, alarm: bool, due: bool) {
        self.in_trouble.store(true, Ordering::Relaxed);
        if alarm {
            self.metrics
                .add(Counter::Alarms, 1, &[("reason", "unsettled_range")]);
        }
        if !due {
            return;
        }
        if alarm {
            tracing::error!(
                reason,
                "a range cannot be settled; it stays declared and is retried: mend the cause"
            );
        } else {
            tracing::warn!(
                reason,
                "a range is not settled yet; it is verified and tried again"
            );
        }
    }
}
