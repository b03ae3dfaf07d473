//! Tables whose rows are set aside for a promotion: let go again when it is over.
//!
//! Where the log is shared, the progress of each partition says so ([`Held`]), because the partition may go to another
//! normalizer while its rows have to wait. Whoever has the partition lets go: where it knows the replay, once that promotes
//! no more; where it does not, once the replay has no shadow of the tables any more, so that none can be put in place.

use super::Replays;
use super::orders::{conflict, unreachable};
use crate::owned::Work;
use crate::progress::Held;
use crate::runtime::{Instant, block_in_place, sleep, timeout};
use sluice_common::admin::Refused;
use sluice_common::ids::Name;
use sluice_common::limits::REPLAY_PATIENCE;
use sluice_common::metrics::Counter;
use sluice_common::replay::{Phase, ReplayId, ReplayPlan, ReplayTold};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Between two looks at what is held.
const LOOK: Duration = Duration::from_secs(1);
/// Between two questions about the shadows of a replay that is not known here.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// How often it is said that tables are held by one.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// When something was last asked and said of a replay that is not known here.
#[derive(Default)]
struct Strangers(BTreeMap<ReplayId, (Instant, Option<Instant>)>);

impl Replays {
    /// The tables take rows again, of every partition that is here; whether that is all.
    pub(super) async fn release(&self, id: ReplayId, tables: &[Name]) -> bool {
        let mut all = self.all_here().is_ok();
        for work in self.0.parts.owned.all() {
            let (tables, partition) = (tables.to_vec(), work.log.number());
            let released = tokio::task::spawn_blocking(move || work.release(id, &tables, || true));
            match timeout(REPLAY_PATIENCE, released).await {
                Ok(Ok(Ok(()))) => {}
                // It has gone to another, or it is tried again.
                other => {
                    all = false;
                    tracing::warn!(%id, partition, ?other, "rows of a promotion's tables stay set aside for now");
                }
            }
        }
        all
    }

    /// Lets go of what is held here by promotions that are over, for as long as the process lives.
    pub fn let_go(&self) {
        let (all, stop) = (self.clone(), self.0.parts.stop.clone());
        all.0
            .parts
            .metrics
            .add(Counter::Alarms, 0, &[("reason", "held_tables")]);
        tokio::spawn(async move {
            let mut strangers = Strangers::default();
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = sleep(LOOK) => {}
                }
                for work in all.0.parts.owned.all() {
                    let held = {
                        let work = work.clone();
                        tokio::task::spawn_blocking(move || work.held()).await
                    };
                    if let Ok(Some(held)) = held {
                        all.let_go_of(&work, held, &mut strangers).await;
                    }
                }
            }
        });
    }

    async fn let_go_of(&self, work: &Work, held: Held, strangers: &mut Strangers) {
        let (id, partition) = (held.by, work.log.number());
        if self.find(id).is_err() && !self.has_no_shadow(&held, strangers).await {
            return;
        }
        let (all, work) = (self.clone(), work.clone());
        let released =
            tokio::task::spawn_blocking(move || work.release(id, &held.tables, || !all.promotes(id)));
        if let Ok(Err(error)) = released.await {
            tracing::warn!(%id, %error, partition, "rows of a promotion's tables stay set aside for now");
        }
    }

    /// Whether a replay of this normalizer's may put something in a table's place.
    fn promotes(&self, id: ReplayId) -> bool {
        let found = self.find(id);
        found.is_ok_and(|running| running.state.lock().told.phase == Phase::Promoting)
    }

    /// Whether nothing can be put in the tables' places any more by a replay that is not known here.
    async fn has_no_shadow(&self, held: &Held, strangers: &mut Strangers) -> bool {
        let (asked, said) = strangers.0.get(&held.by).copied().unzip();
        let said = said.flatten();
        if asked.is_some_and(|asked: Instant| asked.elapsed() < ASK_EVERY) {
            return false;
        }
        let is_due = said.is_none_or(|said: Instant| said.elapsed() >= SAY_EVERY);
        let sink = self.sink(held.by, 0, Some(held.server.clone()));
        let shadows = sink.shadows(held.tables.clone()).await;
        let is_over = shadows.as_ref().is_ok_and(Vec::is_empty);
        if is_due && !is_over {
            tracing::error!(
                id = %held.by, tables = ?held.tables, ?shadows,
                "rows of these tables are set aside for a promotion that another normalizer began: let it end there, or, if \
                 nobody has it any more, `ingestctl replay discard` it here"
            );
            self.metrics()
                .add(Counter::Alarms, 1, &[("reason", "held_tables")]);
        }
        let said = if is_due { Some(Instant::now()) } else { said };
        strangers.0.insert(held.by, (Instant::now(), said));
        if is_over {
            strangers.0.remove(&held.by);
        }
        is_over
    }

    /// Lets go of what a replay holds that this normalizer does not know: whoever began it has lost its disk. None where it
    /// holds nothing here.
    ///
    /// # Errors
    /// A refusal; asking again goes on with it.
    pub(super) async fn release_anothers(&self, id: ReplayId) -> Result<Option<ReplayTold>, Refused> {
        let mut held: Vec<(Work, Held)> = Vec::new();
        for work in self.0.parts.owned.all() {
            if let Some(found) = block_in_place(|| work.held()).filter(|found| found.by == id) {
                held.push((work, found));
            }
        }
        let Some((_, first)) = held.first() else {
            return Ok(None);
        };
        // A replacement that is still on its way finds nothing to put there. What was kept of the live tables stays.
        let tables: BTreeSet<Name> = held.iter().flat_map(|(_, held)| held.tables.clone()).collect();
        let sink = self.sink(id, 0, Some(first.server.clone()));
        let fenced = sink.fence(tables.into_iter().collect()).await;
        fenced.map_err(|error| unreachable(&error))?;
        let (mut here, mut gone) = (Vec::new(), Vec::new());
        for (work, held) in &held {
            let number = work.log.number().to_string();
            match block_in_place(|| work.release(id, &held.tables, || true)) {
                Ok(()) => here.push(number),
                Err(_) => gone.push(number),
            }
        }
        tracing::warn!(%id, ?here, ?gone, "a replay that another normalizer began was discarded: its tables take rows again");
        if here.is_empty() {
            let gone = gone.join(", ");
            let detail = format!(
                "partitions {gone} of the log have just gone to another normalizer, which lets go of them"
            );
            return Err(conflict("replay_elsewhere", detail));
        }
        let reason = format!(
            "another normalizer began it: its shadows are dropped, partitions {} of the log take rows again, and others do where \
             they are; what was kept of the live tables stays",
            here.join(", ")
        );
        Ok(Some(self.told_of(id, reason)))
    }

    fn told_of(&self, id: ReplayId, reason: String) -> ReplayTold {
        let now = self.now_ms();
        ReplayTold {
            id,
            who: String::new(),
            begun_ms: now,
            changed_ms: now,
            phase: Phase::Discarded,
            reason: Some(reason),
            plan: ReplayPlan {
                id,
                shadow_tables: Vec::new(),
                partitions: Vec::new(),
                spans: Vec::new(),
                tenant: None,
                dataset: None,
                decisions: None,
                events_per_second: 0,
                notes: Vec::new(),
            },
            read: Vec::new(),
            next: BTreeMap::new(),
            written: 0,
            left_out: 0,
            comparing: false,
            diff: None,
            steps: Vec::new(),
        }
    }
}
