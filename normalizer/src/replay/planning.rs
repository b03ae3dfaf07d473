//! Plans in the making: a long log takes longer to be read than a request may last. Whoever asks for the same again
//! waits for the plan that is being made.

use super::Replays;
use super::orders::{conflict, stopped_planning};
use crate::runtime::{Instant, sleep, timeout};
use http::StatusCode;
use sluice_common::admin::Refused;
use sluice_common::limits::{ADMIN_DEADLINE, REPLAY_PLANNINGS};
use sluice_common::replay::{ReplayAsk, ReplayPlan};
use std::time::Duration;
use tokio::sync::watch;

/// Before the request itself is over its time.
const PATIENCE: Duration = ADMIN_DEADLINE.saturating_sub(Duration::from_secs(10));

/// For so long a plan is there for who asks again, and is made for nobody. Who is told to ask again does so at once.
const UNASKED: Duration = Duration::from_secs(5);
/// Between two looks whether anybody waits.
const LOOK: Duration = Duration::from_millis(500);

/// When it was made, and what came of it.
type Made = Option<(Instant, Result<ReplayPlan, Refused>)>;

/// A plan that is being made, or was, and nobody has been told yet.
pub(super) struct Planning {
    ask: ReplayAsk,
    made: watch::Receiver<Made>,
}

impl Planning {
    /// Nobody has asked for it again: by now it says little of the log.
    fn is_stale(&self) -> bool {
        let made = self.made.borrow();
        made.as_ref().is_some_and(|(when, _)| when.elapsed() > UNASKED)
    }
}

impl Replays {
    /// A plan, which can be run from then on.
    ///
    /// # Errors
    /// A refusal; `replay_planning` where it is not made yet.
    pub async fn planned(&self, ask: ReplayAsk) -> Result<ReplayPlan, Refused> {
        let mut made = self.planning(&ask)?;
        let waited = timeout(PATIENCE, made.wait_for(Option::is_some)).await;
        let waited = waited.map(|made| made.ok().and_then(|made| made.clone()));
        let Ok(outcome) = waited else {
            let detail =
                "the log is still being read for this plan: ask for the same again, which waits for it";
            return Err(Refused::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "replay_planning",
                detail,
            ));
        };
        let (_, outcome) = outcome.ok_or_else(stopped_planning)?;
        let mut known = self.0.known.lock();
        known.planning.retain(|one| !one.made.same_channel(&made));
        outcome
    }

    /// The plan for `ask` that is being made, from now on if not already.
    fn planning(&self, ask: &ReplayAsk) -> Result<watch::Receiver<Made>, Refused> {
        let mut known = self.0.known.lock();
        known
            .planning
            .retain(|one| !one.is_stale() && one.made.has_changed().is_ok());
        if let Some(one) = known.planning.iter().find(|one| one.ask == *ask) {
            return Ok(one.made.clone());
        }
        if known.planning.len() >= REPLAY_PLANNINGS {
            let detail = format!("{REPLAY_PLANNINGS} other plans are being made: wait for one of them");
            return Err(conflict("replay_busy", detail));
        }
        let (tell, made) = watch::channel(None);
        known.planning.push(Planning {
            ask: ask.clone(),
            made: made.clone(),
        });
        let (all, ask) = (self.clone(), ask.clone());
        // In a task: whoever asked may go away.
        tokio::spawn(async move {
            let planned = tokio::select! {
                planned = all.plan(&ask) => planned,
                () = unasked(&tell) => return,
            };
            let planned = planned.map(|planned| {
                let plan = planned.plan.clone();
                all.remember(planned);
                plan
            });
            // It stays to be read by those who ask again: the sender lives as long as anybody may.
            tell.send_replace(Some((Instant::now(), planned)));
            tell.closed().await;
        });
        Ok(made)
    }
}

/// Returns once nobody has waited for a plan for a while: the list alone has the other end.
async fn unasked(tell: &watch::Sender<Made>) {
    let mut since = Instant::now();
    while since.elapsed() < UNASKED {
        sleep(LOOK).await;
        if tell.receiver_count() > 1 {
            since = Instant::now();
        }
    }
}
