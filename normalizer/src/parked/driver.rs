//! Settling what was set aside: one driver a table, the oldest unit first, verified before anything is
//! sent, under the tokens that its range had (R15, R16).
//!
//! A unit ends as a range does: dead letters of its refused rows and a correction of the books, the letters' topic, then
//! its file goes. A crash anywhere repeats the rest.

use super::file::{FileError, UnitId};
use super::lines::{self, Working};
use super::shelf::{Line, Shelf};
use crate::progress::closing::{self, Work};
use crate::progress::plan::{Next, Rules};
use crate::progress::settle::Settling;
use crate::progress::{Marks, is_data};
use crate::publish::Publisher;
use crate::pump::call::{Caller, Occasion};
use crate::pump::retries::Retries;
use crate::pump::servers::Servers;
use crate::runtime::{block_in_place, sleep};
use sluice_common::classify::letter_code;
use sluice_common::failpoint::{self, Safety};
use sluice_common::metrics::{Counter, Metrics};
use sluice_common::servers::ServerId;
use sluice_common::trace::TraceContext;
use sluice_common::wire::sink::RangeRecord;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Units whose rows are in memory at once.
const UNITS_AT_ONCE: usize = 2;
/// How long after a unit's trouble its table is tried again, at first and at last: half of it, and a random
/// part of the other half, so that tables do not come together.
const PAUSE: Duration = Duration::from_secs(3);
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// Attempts at a unit before it makes room for another table's.
const ATTEMPTS: u32 = 3;

/// What all drivers share; cheap to clone.
#[derive(Clone)]
pub struct Drivers {
    pub caller: Caller,
    pub servers: Servers,
    pub shelf: Shelf,
    pub metrics: Metrics,
    publisher: Publisher,
    retries: Retries,
    room: Arc<Semaphore>,
}

/// How an attempt at a unit ended.
enum Ended {
    Settled,
    /// To be tried again later.
    Later,
}

impl Drivers {
    /// Drivers of what is on the shelf; nothing runs yet.
    #[must_use]
    pub fn new(
        (caller, servers): (Caller, Servers),
        shelf: Shelf,
        publisher: Publisher,
        (metrics, retries): (Metrics, Retries),
    ) -> Self {
        let room = Arc::new(Semaphore::new(UNITS_AT_ONCE));
        Self {
            caller,
            servers,
            shelf,
            metrics,
            publisher,
            retries,
            room,
        }
    }

    /// Drives for ever. Dropping it is as a crash: everything is verified before it is sent.
    ///
    /// # Errors
    /// [`FileError`] where nobody knows what is on disk, or a unit is damaged: the process must end.
    pub async fn run(self) -> Result<(), FileError> {
        let shelf = self.shelf.clone();
        lines::work_on(&shelf, move |line| {
            let drivers = self.clone();
            async move { drivers.line(&line).await }
        })
        .await
    }

    /// Settles one table's units at one server, the oldest first, until there is none.
    async fn line(&self, line: &Line) -> Result<(), FileError> {
        let table = &line.1;
        let mut troubles = 0;
        while let Some((id, unit)) = self.shelf.take(line) {
            let working = Working(&self.shelf, line);
            // Before there were several servers there was one: it is named first.
            let Some(server) = unit.server.or_else(|| self.servers.first()) else {
                drop(working);
                self.pause(&mut 0).await;
                continue;
            };
            if !self.servers.is_unknown(&server) && !self.servers.answers(&server) {
                drop(working);
                self.pause(&mut 0).await;
                continue;
            }
            let ended = {
                let Ok(_room) = self.room.acquire().await else {
                    return Ok(());
                };
                self.unit(&id, unit.mend, server).await
            };
            drop(working);
            match ended {
                Ok(Ended::Settled) => {
                    troubles = 0;
                    self.retries.succeeded();
                    tracing::info!(%table, a = id.a, b = id.b, "rows that were set aside are settled");
                }
                Ok(Ended::Later) => self.pause(&mut troubles).await,
                Err(error @ FileError::Io { .. }) => {
                    tracing::error!(%error, %table, "rows that were set aside cannot be worked on; it is tried again");
                    self.pause(&mut troubles).await;
                }
                Err(error @ (FileError::InDoubt { .. } | FileError::Damaged { .. })) => return Err(error),
            }
        }
        Ok(())
    }

    /// The slow pace of a table that stays broken.
    async fn pause(&self, troubles: &mut u32) {
        let whole = pause_after(*troubles);
        *troubles += 1;
        sleep(whole / 2 + self.retries.jittered(whole / 2)).await;
    }

    /// Rows → told → published → removed.
    async fn unit(&self, id: &UnitId, mend: bool, server: ServerId) -> Result<Ended, FileError> {
        let (work, mut marks) = block_in_place(|| self.shelf.read(id))?;
        if !failpoint::is_on(Safety::UnlinkLast) {
            block_in_place(|| self.shelf.remove(id))?;
        }
        let occasion = Occasion::now(id.range(), server, TraceContext::default());
        if !is_data(&id.table) {
            let settled = self.rows(id, &work, (marks, mend), &occasion).await?;
            if settled.is_none() {
                return Ok(Ended::Later);
            }
            block_in_place(|| self.shelf.remove(id))?;
            return Ok(Ended::Settled);
        }
        if !marks.closing {
            let Some(settled) = self.rows(id, &work, (marks, mend), &occasion).await? else {
                return Ok(Ended::Later);
            };
            marks = Marks {
                closing: true,
                ..settled
            };
            block_in_place(|| self.shelf.keep_marks(id, &marks))?;
        }
        if !self.tell(id, &work.records, &marks, &occasion).await? {
            return Ok(Ended::Later);
        }
        self.publisher.letters_of_unit(id, &work.records, &marks).await?;
        block_in_place(|| self.shelf.remove(id))?;
        self.count(&work.records, &marks);
        Ok(Ended::Settled)
    }

    /// The marks once every row has its outcome; `None` where it has to be tried again.
    async fn rows(
        &self,
        id: &UnitId,
        work: &Work,
        (marks, mend): (Marks, bool),
        occasion: &Occasion,
    ) -> Result<Option<Marks>, FileError> {
        let rules = Rules {
            quarantine: true,
            park_after: None,
            mend,
        };
        let mut settling = Settling::found(work.proof, rules, marks).with_books(work.books);
        let mut waits = 0;
        loop {
            match settling.advance() {
                Next::Proven => return Ok(Some(settling.marks().clone())),
                Next::Call(plan) => {
                    self.caller.call(occasion, work, plan, &mut settling).await;
                }
                Next::Persist(marks) => block_in_place(|| self.shelf.keep_marks(id, &marks))?,
                // The rules do not ask for it.
                Next::Park(_) => {}
                Next::Wait { delay, reason, alarm } => {
                    waits += 1;
                    let heals = self.note(id, &settling, &reason, alarm);
                    if !heals || waits >= ATTEMPTS {
                        return Ok(None);
                    }
                    self.retries.wait(delay).await;
                }
            }
        }
    }

    /// Dead letters and the books; whether all of it is there.
    async fn tell(
        &self,
        id: &UnitId,
        records: &[RangeRecord],
        marks: &Marks,
        occasion: &Occasion,
    ) -> Result<bool, FileError> {
        let work = closing::of_unit(records, marks);
        let mut settling =
            Settling::found(work.proof, Rules::TELLING, marks.telling()).with_books(work.books);
        let mut waits = 0;
        loop {
            match settling.advance() {
                Next::Proven => return Ok(true),
                Next::Call(plan) => {
                    self.caller.call(occasion, &work, plan, &mut settling).await;
                }
                Next::Persist(told) => {
                    block_in_place(|| self.shelf.keep_marks(id, &marks.with_bumped(told)))?;
                }
                Next::Park(_) => {}
                Next::Wait { delay, reason, alarm } => {
                    waits += 1;
                    self.say(id, &reason, alarm);
                    if waits >= ATTEMPTS {
                        return Ok(false);
                    }
                    self.retries.wait(delay).await;
                }
            }
        }
    }

    /// Takes note of a unit's trouble; whether it may heal by itself.
    fn note(&self, id: &UnitId, settling: &Settling, reason: &str, alarm: bool) -> bool {
        let trouble = settling.troubles().get(&id.table);
        match trouble {
            Some(trouble) => self.shelf.note(id, trouble),
            None => self.shelf.note_reason(id, reason),
        }
        self.say(id, reason, alarm);
        trouble.is_none_or(|trouble| trouble.why.heals())
    }

    fn say(&self, id: &UnitId, reason: &str, alarm: bool) {
        if alarm {
            self.metrics
                .add(Counter::Alarms, 1, &[("reason", "parked_table")]);
        }
        tracing::warn!(table = %id.table, a = id.a, b = id.b, reason, "rows that were set aside still wait");
    }

    fn count(&self, records: &[RangeRecord], marks: &Marks) {
        let kept: u64 = records.iter().map(|one| u64::from(one.fates.kept())).sum();
        let dead = marks.dead.len() as u64;
        let outcome = |outcome, n| {
            let labels = [("stage", "sink"), ("outcome", outcome)];
            self.metrics.add(Counter::Events, n, &labels);
        };
        outcome("stored", kept.saturating_sub(dead));
        outcome("dead_lettered", dead);
        for one in &marks.dead {
            let reason = letter_code(one.code);
            self.metrics.add(Counter::DeadLetters, 1, &[("reason", &reason)]);
        }
    }
}

fn pause_after(troubles: u32) -> Duration {
    PAUSE.saturating_mul(1 << troubles.min(5)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parked::shelf::Share;
    use crate::progress::Proof;
    use crate::progress::plan::{Trouble, Why};
    use crate::publish::Outbox;
    use crate::pump::batching::{Batching, Settings};
    use crate::pump::retries::dice;
    use crate::sim::append::kept;
    use arc_swap::ArcSwap;
    use sluice_common::classify::Class;
    use sluice_common::clock::ManualClock;
    use sluice_common::ids::{LogId, Name, source_o};
    use sluice_common::servers::{ServerSeen, ServersSeen};
    use sluice_common::wire::sink::{
        Piece, Range, SinkCall, SinkReply, SinkRequest, SubKey, SubReport, Verdict,
    };
    use sluice_common::wire::transport::Seam;
    use std::collections::BTreeMap;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tower::util::BoxCloneSyncService;

    fn server() -> ServerId {
        ServerId {
            name: "a:8123".into(),
            uuid: None,
        }
    }

    /// Five rows of table `a`, of a range that is committed.
    fn shelf(root: &tempfile::TempDir) -> Shelf {
        let shelf = Shelf::open(root.path().into(), (LogId(1), 0), 1 << 20, 1).unwrap();
        let share = Share {
            range: Range { a: 0, b: 1 },
            server: server(),
            table: Name::new("a").unwrap(),
            marks: Marks::default(),
            since_ms: 0,
        };
        let trouble = Trouble {
            since: Duration::ZERO,
            why: Why::Unsettled,
            reason: "code 60".into(),
        };
        shelf.set_aside(&share, &trouble, &[kept((0, 0), 5)]).unwrap();
        shelf
    }

    /// One without topics.
    fn publisher(
        sink: &Seam<SinkRequest>,
        root: &tempfile::TempDir,
        (metrics, retries): (&Metrics, &Retries),
    ) -> Publisher {
        let settings = Settings {
            batching: Batching::default(),
            tables: Vec::new(),
            datasets: Vec::new(),
            max_window_ms: 1_000,
            topics: BTreeMap::new(),
            letters_topic: None,
        };
        let dir = root.path().join("outbox");
        let outbox = Outbox::open(dir.as_path().into(), (LogId(1), 0), 1 << 20, 1).unwrap();
        Publisher::new(
            (sink.clone(), Arc::new(ArcSwap::from_pointee(settings))),
            (LogId(1), 0),
            outbox,
            (metrics.clone(), Arc::new(ManualClock::at(0)), retries.clone()),
        )
    }

    /// A table that refuses the third row, and each block with it.
    fn refuses_one(call: &SinkCall) -> Vec<SubReport> {
        let whole = SubKey::whole(Name::new("a").unwrap(), "0");
        let subs = call.tasks.as_ref().map_or(vec![whole], |tasks| {
            tasks.iter().map(|task| task.sub.clone()).collect()
        });
        let report = |sub: SubKey| {
            let rows = match sub.piece {
                Piece::Rows { from, to } => from..to,
                Piece::Whole | Piece::Quarantined | Piece::Entry(_) => 0..5,
            };
            let proof = Proof::of(rows.clone().map(|row| source_o(0, row)));
            let refused = Verdict::Refused {
                code: 469,
                message: "violated".into(),
                class: Class::Quarantine,
            };
            SubReport {
                sub,
                rows: proof.rows,
                sum_o: proof.sum_o,
                sum_o2: proof.sum_o2,
                verdict: if rows.contains(&2) { refused } else { Verdict::Done },
            }
        };
        subs.into_iter().map(report).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn that_rows_which_were_set_aside_are_walked_is_durable_before_a_part_of_them_is_sent() {
        let root = tempfile::tempdir().unwrap();
        let shelf = shelf(&root);
        let (id, _) = shelf.units().remove(0);
        let (parts, told) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(tokio::sync::Notify::new()),
        );
        let (on_disk, sent, tells) = (shelf.clone(), Arc::clone(&parts), Arc::clone(&told));
        let sink = BoxCloneSyncService::new(tower::service_fn(move |request| {
            let (shelf, id) = (on_disk.clone(), id.clone());
            let (sent, tells) = (Arc::clone(&sent), Arc::clone(&tells));
            async move {
                let call = match request {
                    SinkRequest::Write(call) => call,
                    SinkRequest::Horizon(_)
                    | SinkRequest::Books(_)
                    | SinkRequest::Letters(_)
                    | SinkRequest::Parts(_)
                    | SinkRequest::Servers(_)
                    | SinkRequest::Replay(_)
                    | SinkRequest::Publish(_) => {
                        let seen = ServerSeen {
                            id: server(),
                            up: true,
                            for_ms: 0,
                        };
                        return Ok::<_, Infallible>(SinkReply::Servers(ServersSeen {
                            servers: vec![seen],
                            chosen: 0,
                        }));
                    }
                };
                if !call.ledger.is_empty() {
                    tells.notify_one();
                    std::future::pending::<()>().await;
                }
                if call.tasks.is_some() {
                    let (_, marks) = shelf.read(&id).unwrap();
                    sent.fetch_add(marks.split.len(), Ordering::SeqCst);
                    assert_eq!(
                        marks.split.len(),
                        1,
                        "a part is sent, and the whole may be after a crash"
                    );
                }
                Ok(SinkReply::Wrote(refuses_one(&call)))
            }
        }));
        let servers = Servers::new(sink.clone());
        servers.look().await.unwrap();
        let caller = Caller {
            log: LogId(1),
            partition: 0,
            sink,
            instead: BTreeMap::new(),
        };
        let metrics = Metrics::detached();
        let retries = Retries::new(Arc::new(ManualClock::at(0)), metrics.clone(), dice());
        let publisher = publisher(&caller.sink, &root, (&metrics, &retries));
        let drivers = Drivers::new((caller, servers), shelf, publisher, (metrics, retries));
        tokio::select! {
            ended = drivers.run() => panic!("{ended:?}"),
            () = told.notified() => {}
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("nothing is told"),
        }
        assert!(parts.load(Ordering::SeqCst) >= 2, "it was halved twice");
    }

    #[test]
    fn a_table_that_stays_broken_is_tried_ever_more_slowly() {
        let pauses: Vec<u64> = (0..5).map(|n| pause_after(n).as_secs()).collect();
        assert_eq!(pauses, [3, 6, 12, 20, 20]);
    }
}
