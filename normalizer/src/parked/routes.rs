//! Control routes: what is set aside, and the order to mend it.

use crate::owned::Owned;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use sluice_common::admin::Refused;
use sluice_common::clock::UnixMs;
use sluice_common::ids::Name;
use std::collections::BTreeMap;

/// Units that one answer lists at most; the rest is counted.
const MAX_LISTED: usize = 1_000;

/// What is set aside.
#[derive(Debug, Serialize)]
struct Listed {
    units: Vec<ListedUnit>,
    /// Units that are not listed.
    omitted: usize,
}

/// One table's share of one range.
#[derive(Debug, Serialize)]
struct ListedUnit {
    table: Name,
    /// Where its rows belong; none where it was set aside when there was one server only.
    server: Option<String>,
    /// Record offsets of the log.
    from: u64,
    to: u64,
    why: String,
    reason: String,
    /// Whether it waits for `ingestctl parked repair`.
    needs_repair: bool,
    since_ms: UnixMs,
    rows: u64,
    /// By dataset.
    bytes: BTreeMap<Name, u64>,
}

/// Which table is to be mended.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mend {
    table: Name,
}

/// How many units are mended.
#[derive(Debug, Serialize)]
struct Mended {
    units: usize,
}

/// `GET /admin/v1/parked` and `POST /admin/v1/parked/repair`.
pub fn routes(owned: Owned) -> Router {
    Router::new()
        .route("/admin/v1/parked", get(list))
        .route("/admin/v1/parked/repair", post(repair))
        .with_state(owned)
}

async fn list(State(owned): State<Owned>) -> Json<Listed> {
    let all: Vec<_> = owned.all().iter().flat_map(|work| work.shelf.units()).collect();
    let omitted = all.len().saturating_sub(MAX_LISTED);
    let unit = |(id, unit): (super::file::UnitId, super::shelf::Unit)| ListedUnit {
        table: id.table,
        server: unit.server.map(|server| server.name),
        from: id.a,
        to: id.b,
        why: unit.why,
        reason: unit.reason,
        needs_repair: !unit.heals,
        since_ms: unit.since_ms,
        rows: unit.rows,
        bytes: unit.bytes,
    };
    let units = all.into_iter().take(MAX_LISTED).map(unit).collect();
    Json(Listed { units, omitted })
}

async fn repair(State(owned): State<Owned>, Json(order): Json<Mend>) -> Result<Json<Mended>, Refused> {
    let units = owned.all().iter().map(|work| work.shelf.mend(&order.table)).sum();
    if units == 0 {
        let detail = format!(
            "nothing of table {} waits for a repair: `ingestctl parked list` shows what is set aside, and why",
            order.table
        );
        return Err(Refused::new(StatusCode::NOT_FOUND, "nothing_to_repair", detail));
    }
    tracing::warn!(table = %order.table, units, "repair ordered: absent rows are inserted, what is there stays");
    Ok(Json(Mended { units }))
}
