//! Which requests become a group.
//!
//! # Design note
//! A record costs Sluice and the brokers much the same with a quarter of a request's rows in it as with the rows of several.
//! So a group of requests that are cut, a record for each partition, waits a moment for those that are about to come: until
//! as many are here or under way as lately were at once, its records are large enough, or [`LINGER`] is over. Whoever sends
//! by itself, one request after the other, waits for nobody.

use super::Job;
use sluice_common::limits::GROUP_COMMIT_BYTES;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, timeout_at};

/// How long a group waits for others at most.
const LINGER: Duration = Duration::from_millis(10);
/// Of a record that needs no more rows to be worth its cost: bytes of its columns.
const ENOUGH_BYTES: usize = 256 * 1024;
/// What was at once counts for so long, up to twice.
const LATELY: Duration = Duration::from_secs(1);

/// Requests that become one group: those that wait, and where that is worth it those that come soon.
pub(super) async fn gather(first: Job, waiting: &mut Receiver<Job>, crowd: &mut Crowd) -> Vec<Job> {
    let now = Instant::now();
    let mut group = Gathering::default();
    group.take(first, waiting, now);
    while group.is_small()
        && crowd.is_incomplete(group.jobs.len(), Instant::now())
        && let Ok(Some(job)) = timeout_at(now + LINGER, waiting.recv()).await
    {
        group.take(job, waiting, Instant::now());
    }
    group.jobs
}

#[derive(Default)]
pub(super) struct Gathering {
    pub(super) jobs: Vec<Job>,
    bytes: usize,
}

impl Gathering {
    /// One, and those that wait, as far as one group takes them, and nobody gave up.
    pub(super) fn take(&mut self, first: Job, waiting: &mut Receiver<Job>, now: Instant) {
        let mut next = Some(first);
        while let Some(job) = next {
            if let Some(job) = job.begin(now) {
                self.bytes += job.bytes;
                self.jobs.push(job);
            }
            next = (self.bytes < GROUP_COMMIT_BYTES)
                .then(|| waiting.try_recv().ok())
                .flatten();
        }
    }

    /// Whether its requests are cut, and its records are small.
    fn is_small(&self) -> bool {
        let partitions = self.jobs.iter().map(|job| job.cut).max().unwrap_or(0);
        self.bytes < ENOUGH_BYTES * partitions
    }
}

/// How many requests are here or under way at once.
#[derive(Default)]
pub(super) struct Crowd {
    under_way: Arc<AtomicUsize>,
    /// The most of the span of [`LATELY`] that began then, and of the one before it.
    most: usize,
    before: usize,
    since: Option<Instant>,
}

/// Requests under way, until it is dropped.
pub(super) struct UnderWay(Arc<AtomicUsize>, usize);

impl Crowd {
    /// Whether fewer are here or under way than lately were at once.
    fn is_incomplete(&mut self, here: usize, now: Instant) -> bool {
        let over = self.since.map(|since| now.saturating_duration_since(since));
        if over.is_none_or(|over| over >= LATELY) {
            self.before = match over {
                Some(over) if over < LATELY * 2 => self.most,
                Some(_) | None => 0,
            };
            (self.most, self.since) = (0, Some(now));
        }
        let all = here + self.under_way.load(Ordering::Relaxed);
        self.most = self.most.max(all);
        all < self.most.max(self.before)
    }

    /// So many are under way now.
    pub(super) fn go(&self, requests: usize) -> UnderWay {
        self.under_way.fetch_add(requests, Ordering::Relaxed);
        UnderWay(Arc::clone(&self.under_way), requests)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::append::Claim;
    use sluice_common::metered::ByteBudget;
    use tokio::sync::{mpsc, oneshot};

    /// A request of so many bytes.
    fn job(cut: usize, bytes: usize) -> Job {
        Job {
            pending: Vec::new(),
            count: 0,
            bytes,
            cut,
            done: oneshot::channel().0,
            claim: Claim::default(),
            deadline: Instant::now() + Duration::from_secs(60),
            _permit: ByteBudget::new(1).try_take(1).unwrap(),
        }
    }

    /// How many are gathered, where lately three were at once, and others come one by one while these wait.
    async fn gathered(first: Job, others: [Job; 2]) -> usize {
        let (sender, mut waiting) = mpsc::channel(4);
        let mut crowd = Crowd::default();
        assert!(!crowd.is_incomplete(3, Instant::now()));
        let come = async {
            for other in others {
                sender.send(other).await.ok();
                // Whichever of the two is first each time.
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
            }
        };
        let (jobs, ()) = tokio::join!(gather(first, &mut waiting, &mut crowd), come);
        jobs.len()
    }

    #[tokio::test]
    async fn requests_that_are_cut_wait_for_others_until_all_are_here_or_records_are_large() {
        let small = || job(4, ENOUGH_BYTES / 2);
        let large = || job(4, ENOUGH_BYTES * 4);
        assert_eq!(
            gathered(small(), [small(), small()]).await,
            3,
            "as many as lately"
        );
        assert_eq!(gathered(small(), [large(), small()]).await, 2);
        assert_eq!(gathered(large(), [small(), small()]).await, 1);
        assert_eq!(gathered(job(0, 1), [small(), small()]).await, 1, "it is not cut");
    }

    #[tokio::test]
    async fn nobody_is_waited_for_longer_than_a_moment() {
        let (_sender, mut waiting) = mpsc::channel(4);
        let mut crowd = Crowd::default();
        assert!(!crowd.is_incomplete(3, Instant::now()));
        let began = Instant::now();
        assert_eq!(gather(job(4, 1), &mut waiting, &mut crowd).await.len(), 1);
        assert!(began.elapsed() >= LINGER);
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn whoever_sends_by_itself_waits_for_nobody() {
        let (mut crowd, now) = (Crowd::default(), Instant::now());
        for n in 0..10 {
            assert!(!crowd.is_incomplete(1, now + MS * n));
            drop(crowd.go(1));
        }
    }

    #[test]
    fn those_that_lately_were_at_once_are_waited_for_until_that_is_long_ago() {
        let (mut crowd, now) = (Crowd::default(), Instant::now());
        assert!(!crowd.is_incomplete(1, now));
        let first = crowd.go(1);
        assert!(!crowd.is_incomplete(2, now + MS), "three: more than ever");
        let rest = crowd.go(2);
        drop(first);
        assert!(!crowd.is_incomplete(1, now + MS * 2), "one, and two under way");
        drop(rest);
        assert!(crowd.is_incomplete(1, now + MS * 3));
        assert!(crowd.is_incomplete(2, now + MS * 4));
        assert!(!crowd.is_incomplete(3, now + MS * 5), "all are back");
        assert!(crowd.is_incomplete(1, now + LATELY), "not long ago");
        assert!(!crowd.is_incomplete(1, now + LATELY * 2), "it stayed alone");
        assert!(!crowd.is_incomplete(1, now + LATELY * 9));
    }
}
