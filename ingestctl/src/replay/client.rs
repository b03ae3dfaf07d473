//! The normalizer's routes for replays, as verbs call them.

use crate::remote::{AdminArgs, Remote, RemoteError};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sluice_common::process::Failure;
use sluice_common::replay::{Phase, PromoteOrder, ReplayAsk, ReplayId, ReplayOrder, ReplayPlan, ReplayTold};

const ROUTE: &str = "/admin/v1/replay";

/// The replays of one Sluice.
#[derive(Debug, Clone)]
pub(super) struct Replays(Remote);

/// What a replay can be told without saying more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Pause,
    Resume,
    Diff,
    Discard,
}

impl Act {
    fn label(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Diff => "diff",
            Self::Discard => "discard",
        }
    }
}

#[derive(Debug, Deserialize)]
struct Listed {
    replays: Vec<ReplayTold>,
}

impl Replays {
    /// Those of the Sluice that the options lead to. Nothing is sent yet.
    pub(super) fn of(admin: &AdminArgs) -> Result<Self, Failure> {
        Ok(Self(admin.remote()?))
    }

    /// What would be touched. Nothing is. A long log is read for longer than a request may last.
    pub(super) async fn plan(&self, ask: &ReplayAsk) -> Result<ReplayPlan, RemoteError> {
        loop {
            match self.0.post(&format!("{ROUTE}/plan"), ask).await {
                Err(error) if error.code() == Some("replay_planning") => {
                    eprintln!("the log is being read for the plan");
                }
                answer => return read(answer?),
            }
        }
    }

    /// Begins a plan.
    pub(super) async fn begin(&self, order: &ReplayOrder) -> Result<ReplayTold, RemoteError> {
        read(self.0.post(ROUTE, order).await?)
    }

    /// All, the newest first.
    pub(super) async fn list(&self) -> Result<Vec<ReplayTold>, RemoteError> {
        let listed: Listed = read(self.0.get(ROUTE).await?)?;
        Ok(listed.replays)
    }

    /// One of them.
    pub(super) async fn told(&self, id: ReplayId) -> Result<ReplayTold, RemoteError> {
        read(self.0.get(&format!("{ROUTE}/{id}")).await?)
    }

    /// Stops one that runs; returns once it has stopped.
    ///
    /// # Errors
    /// A refusal, or nobody there for a minute.
    pub(super) async fn pause(&self, id: ReplayId) -> Result<ReplayTold, Failure> {
        let told = match self.act(id, Act::Pause).await {
            // It had ended just before.
            Err(error) if error.code() == Some("replay_wrong_phase") => return Ok(self.told(id).await?),
            told => told?,
        };
        self.stopped(told).await
    }

    /// One that was told to stop, once it has.
    pub(super) async fn stopped(&self, told: ReplayTold) -> Result<ReplayTold, Failure> {
        self.follow(told, |told| told.phase != Phase::Running, |_| ())
            .await
    }

    /// Tells one of them what to do.
    pub(super) async fn act(&self, id: ReplayId, act: Act) -> Result<ReplayTold, RemoteError> {
        let path = format!("{ROUTE}/{id}/{}", act.label());
        read(self.0.post(&path, &json!({})).await?)
    }

    /// Has the shadow's rows put in the live table's place.
    pub(super) async fn promote(&self, id: ReplayId, order: PromoteOrder) -> Result<ReplayTold, RemoteError> {
        read(self.0.post(&format!("{ROUTE}/{id}/promote"), &order).await?)
    }
}

fn read<T: DeserializeOwned>(answer: Value) -> Result<T, RemoteError> {
    serde_json::from_value(answer).map_err(|error| RemoteError::NotSluice {
        address: ROUTE.to_owned(),
        reason: format!("another version answers: {error}"),
    })
}
