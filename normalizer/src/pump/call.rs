//! One call to the sink-writer, and what its answer means to a settling.

use crate::progress::closing::Work;
use crate::progress::plan::Plan;
use crate::progress::settle::Settling;
use crate::runtime::{self, Instant};
use sluice_common::books::{DEAD_LETTERS, LEDGER};
use sluice_common::failpoint::{self, Point};
use sluice_common::ids::{LogId, Name};
use sluice_common::servers::ServerId;
use sluice_common::trace::TraceContext;
use sluice_common::wire::sink::{
    Horizon, HorizonTold, Range, RangeRecord, SinkCall, SinkReply, SinkRequest, SubReport, SubTask,
};
use sluice_common::wire::transport::Seam;
use std::collections::BTreeMap;
use std::time::Duration;
use tower::ServiceExt as _;

/// The way to the sink-writer; cheap to clone.
#[derive(Clone)]
pub struct Caller {
    pub log: LogId,
    pub partition: u16,
    pub sink: Seam<SinkRequest>,
    /// Tables that are written in place of those that the records name: a replay's.
    pub instead: BTreeMap<Name, Name>,
}

/// What the calls of one settling have in common.
#[derive(Debug, Clone)]
pub struct Occasion {
    pub range: Range,
    /// Where all of it is sent and proven.
    pub server: ServerId,
    pub begun: Instant,
    pub trace: TraceContext,
}

impl Occasion {
    /// Settling of `range` at `server` begins now.
    #[must_use]
    pub fn now(range: Range, server: ServerId, trace: TraceContext) -> Self {
        let begun = Instant::now();
        Self {
            range,
            server,
            begun,
            trace,
        }
    }
}

impl Caller {
    /// Carries out what the settling planned, and tells it what came of it; the reports, if there are any.
    pub async fn call(
        &self,
        occasion: &Occasion,
        work: &Work,
        plan: Plan,
        settling: &mut Settling,
    ) -> Option<Vec<SubReport>> {
        let timeout = plan.timeout;
        let call = self.build(occasion, work, plan);
        if let Err(error) = failpoint::hit(Point::CallSend) {
            settling.failed(error.to_string());
            return None;
        }
        let answer = self.sink.clone().oneshot(SinkRequest::Write(call));
        let answer = runtime::timeout(timeout * 2, answer).await;
        if let Err(error) = failpoint::hit(Point::CallAnswered) {
            settling.failed(error.to_string());
            return None;
        }
        match answer {
            Ok(Ok(SinkReply::Wrote(reports))) => {
                settling.reported(&reports, occasion.begun.elapsed());
                return Some(reports);
            }
            Ok(Ok(SinkReply::Busy { retry_after_ms })) => {
                settling.busy(Duration::from_millis(retry_after_ms));
            }
            Ok(Ok(SinkReply::Failed { reason })) => settling.failed(format!("the sink-writer: {reason}")),
            Ok(Ok(other)) => settling.failed(other.not_an_answer()),
            Ok(Err(never)) => match never {},
            Err(_) => settling.failed("the sink-writer does not answer in time".into()),
        }
        None
    }

    /// Asks for rows past an offset (R19).
    ///
    /// # Errors
    /// A sentence, where nothing is known.
    pub async fn horizon(&self, question: Horizon) -> Result<HorizonTold, String> {
        let answer = self.sink.clone().oneshot(SinkRequest::Horizon(question)).await;
        match answer {
            Ok(SinkReply::Horizon(told)) => Ok(told),
            Ok(other) => Err(other.not_an_answer()),
            Err(never) => match never {},
        }
    }

    fn build(&self, occasion: &Occasion, work: &Work, plan: Plan) -> SinkCall {
        let needs = Needs::of(plan.tasks.as_deref());
        let records = work.records.iter().filter(|one| needs.record(one, work));
        let (mut ledger, mut quarantined) = (Vec::new(), Vec::new());
        if needs.table(LEDGER) {
            ledger.clone_from(&work.ledger);
        }
        if needs.table(DEAD_LETTERS) {
            quarantined.clone_from(&work.quarantined);
        }
        SinkCall {
            log: self.log,
            partition: self.partition,
            server: Some(occasion.server.clone()),
            range: occasion.range,
            attempt: plan.attempt,
            timeout: plan.timeout,
            steps: plan.steps,
            records: records.cloned().collect(),
            tasks: plan.tasks,
            ledger,
            quarantined,
            instead: self.instead.clone(),
            trace: occasion.trace,
        }
    }
}

/// The tables whose sub-batches are asked for: nothing of others travels.
struct Needs<'a>(Option<Vec<&'a str>>);

impl<'a> Needs<'a> {
    fn of(tasks: Option<&'a [SubTask]>) -> Self {
        Self(tasks.map(|tasks| {
            let mut tables: Vec<&str> = tasks.iter().map(|task| task.sub.table.as_str()).collect();
            tables.dedup();
            tables
        }))
    }

    fn table(&self, table: &str) -> bool {
        self.0.as_ref().is_none_or(|tables| tables.contains(&table))
    }

    fn record(&self, one: &RangeRecord, work: &Work) -> bool {
        let has_letters = !one.fates.conflicts().is_empty() || !work.quarantined.is_empty();
        self.table(one.record.meta.table.as_str()) || (has_letters && self.table(DEAD_LETTERS))
    }
}
