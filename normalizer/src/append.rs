//! Group commit's first half: requests that wait together are built into records together, while the
//! log is busy with the group before them.

use crate::grant::{Grant, Load};
use crate::intake::{Pending, RecordTemplate, build_records};
use crate::log::{AppendError, EmbeddedLog};
use sluice_common::ids::TenantId;
use sluice_common::limits::{GROUP_COMMIT_BYTES, LOG_QUEUE_BYTES};
use sluice_common::metered::{ByteBudget, BytePermit};
use sluice_common::metrics::{Counter, Labels, Metrics};
use sluice_common::record::RecordContent;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

/// Requests that wait for the builder; each also holds bytes of the budget.
const WAITING_REQUESTS: usize = 65_536;
/// Groups in the log's hands: one being synced, one waiting behind it.
const GROUPS_IN_FLIGHT: usize = 2;
/// Label of the bytes that became durable.
const LOG_STAGE: Labels<'_> = &[("stage", "log")];

/// Why rows were not appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAppended {
    /// No room; certainly nothing was appended.
    #[error("{0}")]
    Full(String),
    /// Certainly nothing was appended, and nothing will be: stopping, or a bug in encoding.
    #[error("{0}")]
    Refused(String),
    /// The outcome is not known.
    #[error("{0}")]
    Unknown(String),
}

struct Job {
    pending: Vec<Pending>,
    done: oneshot::Sender<Result<(), NotAppended>>,
    _permit: BytePermit,
}

/// The way into the log. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Appender {
    jobs: mpsc::Sender<Job>,
    budget: ByteBudget,
}

impl Appender {
    /// Starts the builder; its handle ends early only where it failed inside, and then nothing can be
    /// appended any more.
    pub fn start(log: Arc<EmbeddedLog>, grant: Grant, metrics: &Metrics) -> (Self, JoinHandle<()>) {
        let (jobs, waiting) = mpsc::channel(WAITING_REQUESTS);
        metrics.add(Counter::Bytes, 0, LOG_STAGE);
        let builder = tokio::spawn(build(waiting, log, grant, metrics.clone()));
        let appender = Self {
            jobs,
            budget: ByteBudget::new(LOG_QUEUE_BYTES).shown(metrics, "log"),
        };
        (appender, builder)
    }

    /// Appends one request's rows; resolves when all of them are durable. Once it has begun it goes on
    /// even where the caller goes away.
    ///
    /// # Errors
    /// [`NotAppended`].
    pub async fn append(&self, pending: Vec<Pending>) -> Result<(), NotAppended> {
        let bytes = pending.iter().map(|one| one.bytes).sum();
        let permit = self.budget.try_take(bytes);
        let permit = permit.ok_or_else(|| NotAppended::Full("rows are waiting for the log".into()))?;
        let (done, answer) = oneshot::channel();
        let job = Job {
            pending,
            done,
            _permit: permit,
        };
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                NotAppended::Full("requests are waiting for the log".into())
            }
            mpsc::error::TrySendError::Closed(_) => NotAppended::Refused("the normalizer is stopping".into()),
        })?;
        answer
            .await
            .unwrap_or_else(|_| Err(NotAppended::Unknown("the append was cut off".into())))
    }
}

async fn build(mut waiting: mpsc::Receiver<Job>, log: Arc<EmbeddedLog>, grant: Grant, metrics: Metrics) {
    let in_flight = Arc::new(Semaphore::new(GROUPS_IN_FLIGHT));
    while let Some(first) = waiting.recv().await {
        // While the log is busy more requests gather here: that is what makes a group.
        let Ok(place) = Arc::clone(&in_flight).acquire_owned().await else {
            return;
        };
        let mut jobs = vec![first];
        let mut bytes = size(&jobs[0]);
        while bytes < GROUP_COMMIT_BYTES {
            let Ok(job) = waiting.try_recv() else { break };
            bytes += size(&job);
            jobs.push(job);
        }
        let (log, grant, metrics) = (Arc::clone(&log), grant.clone(), metrics.clone());
        let pending: Vec<Pending> = jobs
            .iter_mut()
            .flat_map(|job| std::mem::take(&mut job.pending))
            .collect();
        let templates: Vec<_> = pending.iter().map(|one| Arc::clone(&one.template)).collect();
        let built = tokio::task::block_in_place(|| build_records(pending));
        tokio::spawn(async move {
            let outcome = match built {
                Ok(records) => {
                    let whose = whose(&records, &templates);
                    let records: Vec<_> = records.into_iter().map(|(record, _)| record).collect();
                    let frames: usize = records.iter().map(RecordContent::frame_bytes).sum();
                    let appended = log.append(records).await.map(drop).map_err(refusal);
                    if appended.is_ok() {
                        metrics.add(Counter::Bytes, frames as u64, LOG_STAGE);
                        whose.iter().for_each(|(tenant, load)| grant.wrote(tenant, *load));
                    }
                    appended
                }
                Err(error) => Err(NotAppended::Refused(format!("rows cannot be encoded: {error}"))),
            };
            drop(place);
            for job in jobs {
                // A caller that went away needs no answer; its rows are in the log all the same.
                job.done.send(outcome.clone()).ok();
            }
        });
    }
}

/// Each record's tenant, which is that of any pending in it, and what it takes of the log.
fn whose(
    records: &[(RecordContent, Vec<usize>)],
    templates: &[Arc<RecordTemplate>],
) -> Vec<(TenantId, Load)> {
    let one = |(record, pendings): &(RecordContent, Vec<usize>)| {
        let template = templates.get(*pendings.first()?)?;
        Some((
            template.tenant.clone(),
            Load::of(record.frame_bytes(), record.rows()),
        ))
    };
    records.iter().filter_map(one).collect()
}

fn size(job: &Job) -> usize {
    job.pending.iter().map(|one| one.bytes).sum()
}

fn refusal(error: AppendError) -> NotAppended {
    match error {
        AppendError::Full { .. } | AppendError::Busy => NotAppended::Full(error.to_string()),
        AppendError::Unknown => NotAppended::Unknown(error.to_string()),
        AppendError::Closed
        | AppendError::Invalid(_)
        | AppendError::TooLarge { .. }
        | AppendError::WriteFailed(_) => NotAppended::Refused(error.to_string()),
    }
}
