//! Control routes of replays. Orders that take long are answered at once, and looked after by asking again.

use super::Replays;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use sluice_common::admin::Refused;
use sluice_common::replay::{PromoteOrder, ReplayAsk, ReplayId, ReplayOrder, ReplayPlan, ReplayTold};

/// All replays, newest first.
#[derive(Debug, Serialize)]
struct Listed {
    replays: Vec<ReplayTold>,
}

/// `/admin/v1/replay`.
pub fn routes(replays: Replays) -> Router {
    Router::new()
        .route("/admin/v1/replay", get(list).post(order))
        .route("/admin/v1/replay/plan", post(plan))
        .route("/admin/v1/replay/{id}", get(show))
        .route("/admin/v1/replay/{id}/pause", post(pause))
        .route("/admin/v1/replay/{id}/resume", post(resume))
        .route("/admin/v1/replay/{id}/diff", post(diff))
        .route("/admin/v1/replay/{id}/promote", post(promote))
        .route("/admin/v1/replay/{id}/discard", post(discard))
        .with_state(replays)
}

type Told = Result<Json<ReplayTold>, Refused>;

async fn list(State(replays): State<Replays>) -> Json<Listed> {
    Json(Listed {
        replays: replays.list(),
    })
}

async fn plan(
    State(replays): State<Replays>,
    Json(ask): Json<ReplayAsk>,
) -> Result<Json<ReplayPlan>, Refused> {
    replays.planned(ask).await.map(Json)
}

async fn order(State(replays): State<Replays>, Json(order): Json<ReplayOrder>) -> Told {
    replays.order(order).await.map(Json)
}

async fn show(State(replays): State<Replays>, Path(id): Path<ReplayId>) -> Told {
    replays.find(id).map(|running| Json(running.told_now()))
}

async fn pause(State(replays): State<Replays>, Path(id): Path<ReplayId>) -> Told {
    replays.pause(id).map(Json)
}

async fn resume(State(replays): State<Replays>, Path(id): Path<ReplayId>) -> Told {
    replays.resume(id).map(Json)
}

async fn diff(State(replays): State<Replays>, Path(id): Path<ReplayId>) -> Told {
    replays.diff(id).map(Json)
}

async fn promote(
    State(replays): State<Replays>,
    Path(id): Path<ReplayId>,
    Json(order): Json<PromoteOrder>,
) -> Told {
    replays.order_promotion(id, order).map(Json)
}

async fn discard(State(replays): State<Replays>, Path(id): Path<ReplayId>) -> Told {
    replays.discard(id).await.map(Json)
}
