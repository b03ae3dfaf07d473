//! The declared range: a task writes it to ClickHouse and to its topics at once, and ends when both are done, and what
//! became of dead letters is in their topic.

use super::Pump;
use super::drive::{DriveError, Outcome, Start};
use super::range::ClosedRange;
use crate::progress::store::StoreError;
use crate::progress::{Intent, Marks, Progress};
use crate::runtime::block_in_place;
use futures_util::TryFutureExt as _;
use futures_util::future::try_join;
use sluice_common::clock::UnixMs;
use sluice_common::failpoint::{self, Point, Safety};
use sluice_common::servers::ServerId;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

/// The declared range, and the task that settles it.
pub(super) type UnderWay = (Arc<ClosedRange>, JoinHandle<Result<Settled, DriveError>>);

/// What became of a range, and when ClickHouse had it.
pub(super) type Settled = (Outcome, UnixMs);

impl Pump {
    /// Closed → declared.
    pub(super) fn declare(&self, closed: &ClosedRange, server: &ServerId) -> Result<(), StoreError> {
        let intent = Intent {
            range: closed.range,
            proof: closed.proof,
            server: Some(server.clone()),
            marks: Marks::default(),
        };
        block_in_place(|| {
            let mut store = self.store.lock();
            store.pass(Point::IntentPersist)?;
            if failpoint::is_on(Safety::Intent) {
                let state = store.state().clone();
                store.write(Progress {
                    intent: Some(intent),
                    ..state
                })?;
            }
            store.pass(Point::IntentPersisted)
        })
    }

    /// Declared → settled and published.
    pub(super) fn settle(&mut self, closed: Arc<ClosedRange>, start: Start, server: ServerId) {
        let settling = self.driver.clone().settle(Arc::clone(&closed), start, server);
        let (publisher, clock, of) = (
            self.publisher.clone(),
            Arc::clone(&self.clock),
            Arc::clone(&closed),
        );
        let (letters, with) = (publisher.clone(), Arc::clone(&closed));
        // A task of its own: it blocks for the disk where a topic is in trouble.
        let publishing = tokio::spawn(async move { publisher.range(of.range, &of.records).await });
        // It ends with what waits for it.
        let publishing = AbortOnDropHandle::new(publishing);
        let task = tokio::spawn(async move {
            let (outcome, now) = (settling.await?, clock.now_ms());
            let told = &outcome.told;
            let letters = letters.letters(with.range, &with.records, told);
            // Whichever says that nobody knows what is on disk ends it.
            let letters = letters.map_err(DriveError::from);
            let events = async { Ok::<_, DriveError>(publishing.await??) };
            try_join(letters, events).await?;
            Ok((outcome, now))
        });
        self.under_way = Some((closed, task));
    }
}
