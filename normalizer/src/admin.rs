//! The normalizer's control routes.
//!
//! | route | |
//! |---|---|
//! | `GET /admin/v1/schema/drift` | [`crate::intake::DriftReport`] |

use crate::service::IntakeService;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use sluice_common::ids::Name;
use std::sync::Arc;

#[derive(Clone)]
struct Admin {
    service: Arc<IntakeService>,
    database: Name,
}

/// The routes; `database` is where the tables are.
pub fn routes(service: Arc<IntakeService>, database: Name) -> Router {
    Router::new()
        .route("/admin/v1/schema/drift", get(drift))
        .with_state(Admin { service, database })
}

async fn drift(State(admin): State<Admin>) -> Json<crate::intake::DriftReport> {
    Json(admin.service.drift_report(&admin.database))
}
