//! Group commit's first half: requests that wait together are built into records together, while the
//! log is busy with the group before them.

mod gather;

use crate::grant::{Grant, Load};
use crate::intake::{EncodeError, Pending, RecordTemplate, build_records};
use crate::log::{AppendError, Log};
use gather::{Crowd, gather};
use sluice_common::limits::LOG_QUEUE_BYTES;
use sluice_common::metered::{ByteBudget, BytePermit};
use sluice_common::metrics::{Counter, Labels, Metrics};
use sluice_common::record::RecordContent;
use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

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
    /// Its time was over before its append began; certainly nothing was appended, and nothing will be.
    #[error("the request's time was over before its rows could be appended")]
    TooLate,
    /// The outcome is not known.
    #[error("{0}")]
    Unknown(String),
}

struct Job {
    pending: Vec<Pending>,
    /// How many they are.
    count: usize,
    bytes: usize,
    /// Over how many partitions a dataset's rows of it are cut; of one that is not, none.
    cut: usize,
    done: oneshot::Sender<Result<(), NotAppended>>,
    claim: Claim,
    deadline: Instant,
    _permit: BytePermit,
}

/// The one right to decide about a job: the builder takes it to begin, the caller to withdraw.
#[derive(Debug, Clone, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    /// True for the first only.
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

impl Job {
    /// Whether it is still to be appended at `now`; its caller is told where it is too late.
    fn begin(self, now: Instant) -> Option<Self> {
        if !self.claim.take() {
            return None;
        }
        if now < self.deadline {
            return Some(self);
        }
        // A caller that went away needs no answer.
        self.done.send(Err(NotAppended::TooLate)).ok();
        None
    }
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
    pub fn start(log: Arc<dyn Log>, grant: Grant, metrics: &Metrics) -> (Self, JoinHandle<()>) {
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
    /// even where the caller goes away, and past the deadline; what has not begun by then never does.
    ///
    /// # Errors
    /// [`NotAppended`].
    pub async fn append(&self, pending: Vec<Pending>, deadline: Instant) -> Result<(), NotAppended> {
        let bytes = pending.iter().map(|one| one.bytes).sum();
        let parts = pending.iter().filter(|one| one.is_part);
        let cut: BTreeSet<u16> = parts.map(|one| one.partition).collect();
        let permit = self.budget.try_take(bytes);
        let permit = permit.ok_or_else(|| NotAppended::Full("rows are waiting for the log".into()))?;
        let (done, mut answer) = oneshot::channel();
        let claim = Claim::default();
        let job = Job {
            count: pending.len(),
            bytes,
            cut: cut.len(),
            pending,
            done,
            claim: claim.clone(),
            deadline,
            _permit: permit,
        };
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                NotAppended::Full("requests are waiting for the log".into())
            }
            mpsc::error::TrySendError::Closed(_) => NotAppended::Refused("the normalizer is stopping".into()),
        })?;
        let cut_off = |_| Err(NotAppended::Unknown("the append was cut off".into()));
        match timeout_at(deadline, &mut answer).await {
            Ok(answered) => answered.unwrap_or_else(cut_off),
            Err(_) if claim.take() => Err(NotAppended::TooLate),
            Err(_) => answer.await.unwrap_or_else(cut_off),
        }
    }
}

async fn build(mut waiting: mpsc::Receiver<Job>, log: Arc<dyn Log>, grant: Grant, metrics: Metrics) {
    let in_flight = Arc::new(Semaphore::new(GROUPS_IN_FLIGHT));
    let mut crowd = Crowd::default();
    while let Some(first) = waiting.recv().await {
        // While the log is busy more requests gather here: that is what makes a group.
        let Ok(place) = Arc::clone(&in_flight).acquire_owned().await else {
            return;
        };
        let mut jobs = gather(first, &mut waiting, &mut crowd).await;
        if jobs.is_empty() {
            continue;
        }
        let under_way = crowd.go(jobs.len());
        let pending: Vec<Pending> = jobs
            .iter_mut()
            .flat_map(|job| std::mem::take(&mut job.pending))
            .collect();
        let places: Vec<_> = pending
            .iter()
            .map(|one| (Arc::clone(&one.template), one.partition))
            .collect();
        let built = tokio::task::block_in_place(|| build_records(pending));
        let group = Group {
            log: Arc::clone(&log),
            grant: grant.clone(),
            metrics: metrics.clone(),
            places,
        };
        tokio::spawn(async move {
            let mut appending = pin!(group.append(built));
            let early = timeout(group.log.group_patience(), &mut appending).await;
            drop(place);
            let outcomes = match early {
                Ok(outcomes) => outcomes,
                Err(_) => appending.await,
            };
            drop(under_way);
            let mut outcomes = outcomes.into_iter();
            for job in jobs {
                let of_job = outcomes.by_ref().take(job.count);
                // A caller that went away needs no answer; its rows are in the log all the same.
                job.done.send(together(of_job)).ok();
            }
        });
    }
}

/// One group on its way into the log.
struct Group {
    log: Arc<dyn Log>,
    grant: Grant,
    metrics: Metrics,
    /// Of each pending: what it is, and its partition.
    places: Vec<(Arc<RecordTemplate>, u16)>,
}

type Outcome = Result<(), NotAppended>;

impl Group {
    /// What became of each pending: of one that lies in several records, all together.
    async fn append(&self, built: Result<Vec<(RecordContent, Vec<usize>)>, EncodeError>) -> Vec<Outcome> {
        let records = match built {
            Ok(records) => records,
            Err(error) => {
                let refused = NotAppended::Refused(format!("rows cannot be encoded: {error}"));
                return vec![Err(refused); self.places.len()];
            }
        };
        let (mut contents, mut whose) = (
            Vec::with_capacity(records.len()),
            Vec::with_capacity(records.len()),
        );
        for (record, pendings) in records {
            let Some((template, partition)) = pendings.first().and_then(|first| self.places.get(*first))
            else {
                continue;
            };
            let (bytes, rows) = (record.frame_bytes(), record.rows());
            whose.push((template.tenant.clone(), bytes, rows, pendings));
            contents.push((*partition, record));
        }
        let appended = self.log.append(contents).await;
        // One that no record names said nothing.
        let mut outcomes: Vec<Vec<Outcome>> = vec![Vec::new(); self.places.len()];
        for ((tenant, bytes, rows, pendings), appended) in whose.into_iter().zip(appended) {
            if appended.is_ok() {
                self.metrics.add(Counter::Bytes, bytes as u64, LOG_STAGE);
                self.grant.wrote(&tenant, Load::of(bytes, rows));
            }
            let appended = appended.map_err(refusal);
            for pending in pendings {
                if let Some(of_pending) = outcomes.get_mut(pending) {
                    of_pending.push(appended.clone());
                }
            }
        }
        outcomes.into_iter().map(|of| together(of.into_iter())).collect()
    }
}

/// What became of a whole: appended where all of it is, and refused only where nothing of it is there or will be.
fn together(parts: impl Iterator<Item = Outcome>) -> Outcome {
    let (mut whole, mut any) = (Ok(()), false);
    for part in parts {
        match (&whole, part) {
            (Ok(()), Err(not)) | (Err(_), Err(not @ NotAppended::Unknown(_))) => whole = Err(not),
            (Ok(()) | Err(_), Ok(())) => any = true,
            (Err(_), Err(_)) => {}
        }
    }
    match whole {
        Err(NotAppended::Unknown(_)) | Ok(()) => whole,
        Err(not) if any => Err(NotAppended::Unknown(format!(
            "a part of the rows is in the log, and of the rest: {not}"
        ))),
        Err(not) => Err(not),
    }
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

#[cfg(test)]
mod tests {
    use super::gather::Gathering;
    use super::*;
    use std::time::Duration;

    fn taken(first: Job, waiting: &mut mpsc::Receiver<Job>, now: Instant) -> Vec<Job> {
        let mut group = Gathering::default();
        group.take(first, waiting, now);
        group.jobs
    }

    fn appender() -> (Appender, mpsc::Receiver<Job>) {
        let (jobs, waiting) = mpsc::channel(4);
        let budget = ByteBudget::new(1_024);
        (Appender { jobs, budget }, waiting)
    }

    #[tokio::test]
    async fn what_waits_past_its_deadline_is_refused_and_never_begun() {
        let (appender, mut waiting) = appender();
        let deadline = Instant::now() + Duration::from_millis(20);
        assert_eq!(
            appender.append(Vec::new(), deadline).await,
            Err(NotAppended::TooLate)
        );
        assert!(Instant::now() >= deadline);
        let job = waiting.recv().await.unwrap();
        assert!(taken(job, &mut waiting, deadline - Duration::from_millis(10)).is_empty());
    }

    #[tokio::test]
    async fn what_comes_to_the_builder_too_late_is_refused_and_what_was_begun_in_time_is_waited_for() {
        let (appender, mut waiting) = appender();
        let deadline = Instant::now() + Duration::from_millis(50);
        let append = || {
            let appender = appender.clone();
            tokio::spawn(async move { appender.append(Vec::new(), deadline).await })
        };
        let late = append();
        let job = waiting.recv().await.unwrap();
        assert!(taken(job, &mut waiting, deadline).is_empty());
        assert_eq!(late.await.unwrap(), Err(NotAppended::TooLate));
        let begun = append();
        let job = waiting.recv().await.unwrap();
        let mut jobs = taken(job, &mut waiting, deadline - Duration::from_millis(1));
        tokio::time::sleep_until(deadline + Duration::from_millis(5)).await;
        jobs.pop().unwrap().done.send(Ok(())).unwrap();
        assert_eq!(
            begun.await.unwrap(),
            Ok(()),
            "its append had begun: it is waited for"
        );
    }

    #[test]
    fn a_request_is_refused_only_where_nothing_of_it_is_in_the_log() {
        let refused = || Err(NotAppended::Refused("no".into()));
        let unknown = || Err(NotAppended::Unknown("who knows".into()));
        let of = |parts: &[Outcome]| together(parts.iter().cloned());
        assert_eq!(of(&[]), Ok(()), "a mark that said nothing");
        assert_eq!(of(&[Ok(()), Ok(())]), Ok(()));
        assert_eq!(of(&[refused(), refused()]), refused());
        for parts in [
            [refused(), Ok(())],
            [Ok(()), refused()],
            [refused(), unknown()],
            [unknown(), refused()],
        ] {
            assert!(matches!(of(&parts), Err(NotAppended::Unknown(_))), "{parts:?}");
        }
    }
}
