//! Orders of people: running a plan, pausing, resuming, comparing, promoting, discarding.
//!
//! What takes long is done by tasks: whoever asked may go away.

use super::file::{self, Leg, Promotion, State};
use super::plan::Planned;
use super::sink::SinkTrouble;
use super::{Elsewhere, Replays, Running};
use crate::log::{Partition, ReadError};
use crate::runtime::block_in_place;
use http::StatusCode;
use sluice_common::admin::Refused;
use sluice_common::ids::Offset;
use sluice_common::limits::REPLAY_PLANS;
use sluice_common::replay::{
    Decisions, Phase, PromoteOrder, ReplayId, ReplayOrder, ReplayTold, Span, TableDiff, Touched,
};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Replays {
    /// Remembers a plan, so that it can be run.
    pub fn remember(&self, planned: Planned) {
        let plans = &mut self.0.known.lock().plans;
        if plans.len() == REPLAY_PLANS {
            plans.pop_front();
        }
        plans.push_back(planned);
    }

    /// Runs a plan.
    ///
    /// # Errors
    /// A refusal; nothing was touched then.
    pub async fn order(&self, order: ReplayOrder) -> Result<ReplayTold, Refused> {
        let planned = self
            .0
            .known
            .lock()
            .plans
            .iter()
            .find(|one| one.plan.id == order.plan)
            .cloned();
        let Some(planned) = planned else {
            let detail = format!(
                "there is no plan {}: plan again (a restart forgets plans)",
                order.plan
            );
            return Err(missing("replay_unknown", detail));
        };
        let running = Arc::new(Running::new(self.fresh(planned, order).await?));
        let turn = self.take_turn(&running)?;
        // In a task: whoever asked may go away.
        let (all, begins) = (self.clone(), Arc::clone(&running));
        let begun = tokio::spawn(async move {
            all.prepare(&begins).await?;
            let id = begins.id();
            let mut known = all.0.known.lock();
            known.replays.insert(id, Arc::clone(&begins));
            known.plans.retain(|one| one.plan.id != id);
            drop(known);
            all.spawn(&begins, turn);
            Ok(())
        });
        begun.await.unwrap_or_else(|error| Err(stopped(&error)))?;
        Ok(running.told_now())
    }

    async fn fresh(&self, planned: Planned, order: ReplayOrder) -> Result<State, Refused> {
        let Planned { mut plan, mut legs } = planned;
        if plan.decisions.is_none() {
            return Err(conflict("replay_undecidable", plan.notes.join("; ")));
        }
        for leg in &mut legs {
            let source = self
                .source(plan.id, leg.partition)
                .map_err(|error| elsewhere(&error))?;
            let touched = plan.partitions.iter().find(|one| one.partition == leg.partition);
            let needs = block_in_place(|| needs(&*source.log, leg, touched));
            leg.needs = needs.map_err(|error| unreadable(&error))?;
            let first = source.log.first_offset();
            if leg.next < first {
                let detail = format!(
                    "partition {} of the log begins at {first} by now: plan again",
                    leg.partition
                );
                return Err(conflict("replay_out_of_reach", detail));
            }
        }
        if let Some(cap) = order.events_per_second {
            plan.events_per_second = cap.max(1);
        }
        let now = self.now_ms();
        Ok(State {
            legs,
            server: self.server().await?,
            intent: None,
            promotion: None,
            told: ReplayTold {
                id: plan.id,
                who: short(&order.who),
                begun_ms: now,
                changed_ms: now,
                phase: Phase::Running,
                reason: None,
                read: plan.partitions.iter().map(nothing_of).collect(),
                next: BTreeMap::new(),
                written: 0,
                left_out: 0,
                comparing: false,
                diff: None,
                steps: Vec::new(),
                plan,
            },
        })
    }

    async fn server(&self) -> Result<sluice_common::servers::ServerId, Refused> {
        let looked = self.0.servers.look().await;
        looked.map_err(|reason| unreachable(&SinkTrouble(reason)))?;
        let chosen = self.0.servers.chosen();
        chosen.ok_or_else(|| unreachable(&SinkTrouble("no ClickHouse answers".into())))
    }

    /// Its state is durable and its tables are there, or nothing is.
    async fn prepare(&self, running: &Running) -> Result<(), Refused> {
        let (id, tables) = (running.id(), running.tables());
        let begun = match self.keep(running) {
            Err(error) => Err(no_room(&error)),
            Ok(()) => {
                let made = self.tables_sink(running).prepare(tables.clone()).await;
                made.map_err(|error| unreachable(&error))
            }
        };
        if begun.is_err() {
            // Best effort: what stays is told by the list, and goes with `discard`.
            let removed = block_in_place(|| file::remove(self.dir(), id));
            let dropped = self.tables_sink(running).drop_beside(tables).await;
            if removed.is_err() || dropped.is_err() {
                tracing::warn!(%id, "a replay that did not begin may have left empty tables");
            }
        }
        begun
    }

    /// Pauses one that runs.
    ///
    /// # Errors
    /// A refusal.
    pub fn pause(&self, id: ReplayId) -> Result<ReplayTold, Refused> {
        let running = self.find(id)?;
        let phase = running.state.lock().told.phase;
        if phase != Phase::Running {
            return Err(wrong_phase(id, phase, "only one that runs can be paused"));
        }
        running.stop().cancel();
        Ok(running.told_now())
    }

    /// Resumes one that was paused or failed.
    ///
    /// # Errors
    /// A refusal.
    pub fn resume(&self, id: ReplayId) -> Result<ReplayTold, Refused> {
        let running = self.find(id)?;
        let phase = running.state.lock().told.phase;
        match phase {
            Phase::Failed if running.state.lock().promotion.is_some() => {
                return Err(wrong_phase(id, phase, "its promotion was given up: discard it"));
            }
            Phase::Paused | Phase::Failed => {}
            Phase::Running => return Ok(running.told_now()),
            Phase::Done | Phase::Promoting | Phase::Promoted | Phase::Discarded => {
                return Err(wrong_phase(
                    id,
                    phase,
                    "only one that was paused or failed can be resumed",
                ));
            }
        }
        let turn = self.take_turn(&running)?;
        running.change(|state| (state.told.phase, state.told.reason) = (Phase::Running, None));
        self.spawn(&running, turn);
        Ok(running.told_now())
    }

    /// Holds the shadows against the live tables, in the background.
    ///
    /// # Errors
    /// A refusal.
    pub fn diff(&self, id: ReplayId) -> Result<ReplayTold, Refused> {
        let running = self.find(id)?;
        let phase = running.state.lock().told.phase;
        if matches!(
            phase,
            Phase::Discarded | Phase::Running | Phase::Promoting | Phase::Promoted
        ) {
            return Err(wrong_phase(id, phase, "compare once it is done"));
        }
        let already = std::mem::replace(&mut running.state.lock().told.comparing, true);
        if !already {
            running.change(|state| (state.told.diff, state.told.reason) = (None, None));
            let (all, running) = (self.clone(), Arc::clone(&running));
            tokio::spawn(async move { all.compare(&running).await });
        }
        Ok(running.told_now())
    }

    async fn compare(&self, running: &Running) {
        let state = running.state.lock().clone();
        let (sink, plan) = (self.tables_sink(running), &state.told.plan);
        let spans = plan.spans.iter().zip(&state.legs).map(|(span, leg)| Span {
            to: leg.next,
            ..*span
        });
        let spans: Vec<Span> = spans.collect();
        let mut all: Vec<TableDiff> = Vec::new();
        let mut trouble = None;
        for table in state.tables() {
            match sink
                .compare(table.clone(), plan.tenant.clone(), spans.clone())
                .await
            {
                Ok(diff) => all.push(diff),
                Err(error) => trouble = Some(format!("comparing {table}: {error}")),
            }
        }
        running.change(|state| {
            state.told.comparing = false;
            state.told.diff = trouble.is_none().then_some(all);
            state.told.reason = trouble;
        });
    }

    /// Puts the shadow's rows in the live tables' places, in the background.
    ///
    /// # Errors
    /// A refusal.
    pub fn order_promotion(&self, id: ReplayId, order: PromoteOrder) -> Result<ReplayTold, Refused> {
        let running = self.find(id)?;
        let phase = running.state.lock().told.phase;
        if phase != Phase::Done || running.state.lock().told.comparing {
            return Err(wrong_phase(
                id,
                phase,
                "only one that is done, and not being compared, can be promoted",
            ));
        }
        self.all_here().map_err(|error| elsewhere(&error))?;
        let turn = self.take_turn(&running)?;
        running.change(|state| {
            (state.told.phase, state.told.reason) = (Phase::Promoting, None);
            state.told.steps = vec![format!("ordered by {}", short(&order.who))];
            state.promotion = Some(Promotion {
                row_wise: order.row_wise,
                ..Promotion::default()
            });
        });
        if let Err(error) = self.keep(&running) {
            running.change(|state| state.told.phase = Phase::Done);
            return Err(no_room(&error));
        }
        self.spawn(&running, turn);
        Ok(running.told_now())
    }

    /// Drops a replay's tables.
    ///
    /// # Errors
    /// A refusal.
    pub async fn discard(&self, id: ReplayId) -> Result<ReplayTold, Refused> {
        let running = match self.find(id) {
            Ok(running) => running,
            Err(unknown) => return self.release_anothers(id).await?.ok_or(unknown),
        };
        let phase = running.state.lock().told.phase;
        let busy = {
            let state = running.state.lock();
            state.is_at_work() || state.told.comparing
        };
        if busy {
            return Err(wrong_phase(id, phase, "pause it first"));
        }
        let turn = self.take_turn(&running)?;
        let (all, ends) = (self.clone(), Arc::clone(&running));
        let discarded = tokio::spawn(async move {
            let _turn = turn;
            all.discarded(&ends).await
        });
        discarded.await.unwrap_or_else(|error| Err(stopped(&error)))?;
        self.pin();
        Ok(running.told_now())
    }

    async fn discarded(&self, running: &Running) -> Result<(), Refused> {
        let dropped = self.tables_sink(running).drop_beside(running.tables()).await;
        dropped.map_err(|error| unreachable(&error))?;
        running.change(|state| {
            state.intent = None;
            (state.told.phase, state.told.reason) = (Phase::Discarded, None);
        });
        self.keep(running).map_err(|error| {
            let detail =
                format!("its tables are dropped, and that cannot be kept: {error}; discard it again");
            Refused::new(StatusCode::SERVICE_UNAVAILABLE, "replay_no_room", detail)
        })
    }
}

/// Where dedup has to begin to read, to decide anew.
fn needs(log: &dyn Partition, leg: &Leg, touched: Option<&Touched>) -> Result<Offset, ReadError> {
    // Where the log begins is known anew by it.
    log.end()?;
    let anew = leg.decisions.values().any(|how| *how == Decisions::Anew);
    match touched.and_then(|touched| touched.first_append_ms) {
        Some(first_ms) if anew => log.appended_since(first_ms.saturating_sub(leg.window_ms)),
        _ => Ok(leg.next),
    }
}

fn nothing_of(planned: &Touched) -> Touched {
    Touched {
        partition: planned.partition,
        ..Touched::default()
    }
}

/// Of whoever ordered something, as much as is kept.
fn short(who: &str) -> String {
    who.chars().take(120).collect()
}

fn no_room(error: &std::io::Error) -> Refused {
    let detail = format!("the state of the replay cannot be kept: {error}; make room in the data directory");
    Refused::new(StatusCode::SERVICE_UNAVAILABLE, "replay_no_room", detail)
}

fn stopped(error: &tokio::task::JoinError) -> Refused {
    let detail = format!("it was cut short: {error}; look at `ingestctl replay list`");
    Refused::new(StatusCode::SERVICE_UNAVAILABLE, "replay_unreachable", detail)
}

pub(super) fn stopped_planning() -> Refused {
    let detail = "making the plan was cut short: plan again";
    Refused::new(StatusCode::SERVICE_UNAVAILABLE, "replay_unreachable", detail)
}

pub(super) fn elsewhere(error: &Elsewhere) -> Refused {
    conflict("replay_elsewhere", error.to_string())
}

pub(super) fn unreadable(error: &ReadError) -> Refused {
    conflict(
        "replay_out_of_reach",
        format!("the log cannot be read there: {error}"),
    )
}

pub(super) fn bad(detail: String) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, "bad_replay", detail)
}

pub(super) fn conflict(code: &'static str, detail: String) -> Refused {
    Refused::new(StatusCode::CONFLICT, code, detail)
}

pub(super) fn missing(code: &'static str, detail: String) -> Refused {
    Refused::new(StatusCode::NOT_FOUND, code, detail)
}

pub(super) fn unreachable(error: &SinkTrouble) -> Refused {
    let detail = format!("ClickHouse cannot be asked or does not do it: {error}");
    Refused::new(StatusCode::SERVICE_UNAVAILABLE, "replay_unreachable", detail)
}

pub(super) fn wrong_phase(id: ReplayId, phase: Phase, what: &str) -> Refused {
    let phase = format!("{phase:?}").to_lowercase();
    conflict("replay_wrong_phase", format!("replay {id} is {phase}: {what}"))
}
