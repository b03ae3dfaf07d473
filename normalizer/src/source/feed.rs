//! Batches into intake, again and again until all of them are durable.

use super::Spec;
use super::batch::Batch;
use crate::service::IntakeService;
use futures_util::future::join_all;
use http::StatusCode;
use sluice_common::config::Weight;
use sluice_common::error::Problem;
use sluice_common::failpoint::{self, Point};
use sluice_common::ids::{Name, RequestId, TenantId};
use sluice_common::limits::{RETRY_BACKOFF_MAX, SOURCE_DEADLINE};
use sluice_common::metrics::Counter;
use sluice_common::trace::TraceContext;
use sluice_common::wire::intake::{BodyFormat, IntakeReply, IntakeRequest, RowsAnswer};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// The least that is waited before a batch is tried again.
const LEAST_PAUSE: Duration = Duration::from_millis(50);

/// The way of a source's messages into the log. Cloning shares it.
#[derive(Clone)]
pub(super) struct Feed {
    service: Arc<IntakeService>,
    tenant: TenantId,
    weight: Weight,
    dataset: Name,
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// All of it is durable, or its rejection is.
    Durable(RowsAnswer),
    /// Fewer messages may be taken.
    TooMuch(String),
    /// It is taken later, as it is.
    Later(Duration),
    /// Somebody has to mend something first.
    Wrong(String),
}

impl Feed {
    pub fn new(service: Arc<IntakeService>, spec: &Spec) -> Self {
        Self {
            service,
            tenant: spec.consume.tenant.clone(),
            weight: spec.weight,
            dataset: spec.dataset.clone(),
        }
    }

    /// Ends once all of them are durable.
    pub async fn append_all(self, batches: Vec<Batch>) {
        join_all(batches.iter().map(|batch| self.append(batch))).await;
    }

    async fn append(&self, batch: &Batch) {
        let mut left = VecDeque::new();
        left.push_back(0..batch.messages());
        while let Some(part) = left.pop_front() {
            let (reason, pause) = match self.once(batch, part.clone()).await {
                Outcome::Durable(answer) => {
                    self.count(&answer);
                    continue;
                }
                Outcome::TooMuch(_) if part.len() > 1 => {
                    let middle = part.start + part.len() / 2;
                    left.push_front(middle..part.end);
                    left.push_front(part.start..middle);
                    continue;
                }
                Outcome::Later(pause) => (None, pause),
                Outcome::TooMuch(reason) | Outcome::Wrong(reason) => (Some(reason), RETRY_BACKOFF_MAX),
            };
            if let Some(reason) = reason {
                self.alarm(batch, &reason);
            }
            left.push_front(part);
            sleep(pause).await;
        }
    }

    async fn once(&self, batch: &Batch, part: Range<usize>) -> Outcome {
        if failpoint::hit(Point::SourceRead).is_err() {
            return Outcome::Later(LEAST_PAUSE);
        }
        let request = IntakeRequest {
            tenant: self.tenant.clone(),
            weight: self.weight,
            dataset: self.dataset.to_string(),
            request: RequestId::random(),
            idempotency_key: Some(batch.origin().to_string()),
            format: BodyFormat::Messages,
            body: batch.body(part),
            timeout: SOURCE_DEADLINE,
            trace: TraceContext::default(),
        };
        let reply = self.service.handle(request).await;
        if failpoint::hit(Point::SourceDurable).is_err() {
            return Outcome::Later(LEAST_PAUSE);
        }
        outcome(reply)
    }

    fn count(&self, answer: &RowsAnswer) {
        for (outcome, events) in [("accepted", answer.accepted), ("rejected", answer.rejected)] {
            let labels = [("stage", "source"), ("outcome", outcome)];
            self.service.metrics.add(Counter::Events, events, &labels);
        }
        if let Some(first) = answer.errors.first() {
            let (dataset, rejected) = (&self.dataset, answer.rejected);
            let (code, first) = (&first.code, &first.message);
            tracing::warn!(%dataset, rejected, %code, first, "messages were rejected: see `ingestctl dlq list`");
        }
    }

    fn alarm(&self, batch: &Batch, reason: &str) {
        let metrics = &self.service.metrics;
        metrics.add(Counter::Alarms, 1, &[("reason", "source")]);
        let (dataset, topic, partition) = (&self.dataset, &batch.origin().topic, batch.origin().partition);
        tracing::error!(%dataset, topic, partition, reason, "messages are refused; they are tried again");
    }
}

fn outcome(reply: IntakeReply) -> Outcome {
    let after = |ms: u64| Duration::from_millis(ms).clamp(LEAST_PAUSE, RETRY_BACKOFF_MAX);
    match reply {
        IntakeReply::Rows(answer) => Outcome::Durable(answer),
        IntakeReply::Busy { retry_after_ms, .. } => Outcome::Later(after(retry_after_ms)),
        // What may have been appended is appended again, and dropped.
        IntakeReply::Unavailable { retry_after_ms, .. } => Outcome::Later(after(retry_after_ms)),
        IntakeReply::Unreached { .. } => Outcome::Later(after(1_000)),
        IntakeReply::Refused(problem) => refused(&problem),
    }
}

fn refused(problem: &Problem) -> Outcome {
    let status = problem.status();
    if status == StatusCode::TOO_MANY_REQUESTS {
        let seconds = problem.retry_after_s.unwrap_or(1);
        return Outcome::Later(Duration::from_secs(seconds.into()).min(RETRY_BACKOFF_MAX));
    }
    let reason = format!("{}: {}", problem.code, problem.detail);
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        Outcome::TooMuch(reason)
    } else {
        Outcome::Wrong(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_common::wire::intake::BusyScope;

    #[test]
    fn what_intake_answers_is_durable_cut_in_halves_waited_for_or_told() {
        let rows = RowsAnswer {
            accepted: 2,
            rejected: 1,
            ..RowsAnswer::default()
        };
        assert_eq!(outcome(IntakeReply::Rows(rows.clone())), Outcome::Durable(rows));
        let busy = IntakeReply::Busy {
            scope: BusyScope::All,
            reason: String::new(),
            retry_after_ms: 0,
        };
        assert_eq!(
            outcome(busy),
            Outcome::Later(LEAST_PAUSE),
            "never in a tight loop"
        );
        for unknown in [false, true] {
            let gone = IntakeReply::Unavailable {
                unknown,
                reason: String::new(),
                retry_after_ms: 700,
            };
            assert_eq!(outcome(gone), Outcome::Later(Duration::from_millis(700)));
        }
        let problem = |status, code| IntakeReply::Refused(Problem::new(status, code, "why"));
        assert!(matches!(
            outcome(problem(StatusCode::PAYLOAD_TOO_LARGE, "too_many_partitions")),
            Outcome::TooMuch(_)
        ));
        assert!(matches!(
            outcome(problem(StatusCode::TOO_MANY_REQUESTS, "keys_per_tenant")),
            Outcome::Later(_)
        ));
        assert_eq!(
            outcome(problem(StatusCode::NOT_FOUND, "unknown_dataset")),
            Outcome::Wrong("unknown_dataset: why".into())
        );
    }
}
