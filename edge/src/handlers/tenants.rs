//! Tenants over control routes.
//!
//! | route | does |
//! |---|---|
//! | `GET /admin/v1/tenants` | all tenants in force, their keys by the beginning of their hashes, which file is |
//! | `POST /admin/v1/tenants` | adds one: `{id, datasets?, quota?, weight?, sha256}` |
//! | `POST /admin/v1/tenants/{id}/rotate` | gives a new key: `{sha256, keep_old_ms?}` |
//! | `POST /admin/v1/tenants/{id}/revoke` | ends one key, or the tenant: `{key?}` |
//! | `POST /admin/v1/tenants/{id}/quota` | changes what it may send: `{quota?, weight?}`, of the quota only what is named; null takes a limit away |
//!
//! Keys are made by whoever asks: only their hashes come here. A change is in force at this edge when it is
//! answered; another edge on the same file says by its `version` that it has it too.

use crate::auth::Sources;
use crate::tenants_file::{FiledTenants, NotInForce};
use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluice_common::admin::Refused;
use sluice_common::config::{KeyHash, Quota, Tenant, Weight};
use sluice_common::ids::{Name, TenantId};
use sluice_common::tenants_file::{self, ChangeError, is_hash};
use std::sync::Arc;

type Shared = State<Arc<FiledTenants>>;

/// The control routes.
pub fn routes(filed: Arc<FiledTenants>) -> Router {
    Router::new()
        .route("/admin/v1/tenants", get(list))
        .route("/admin/v1/tenants", post(add))
        .route("/admin/v1/tenants/{id}/rotate", post(rotate))
        .route("/admin/v1/tenants/{id}/revoke", post(revoke))
        .route("/admin/v1/tenants/{id}/quota", post(set_quota))
        .with_state(filed)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Add {
    id: TenantId,
    datasets: Option<Vec<Name>>,
    #[serde(default)]
    quota: Quota,
    #[serde(default)]
    weight: Weight,
    sha256: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetQuota {
    /// Members to replace.
    #[serde(default)]
    quota: Map<String, Value>,
    weight: Option<Weight>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotate {
    sha256: String,
    #[serde(default)]
    keep_old_ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoke {
    /// The beginning of its hash; absent: all keys, and the tenant.
    key: Option<String>,
}

async fn list(State(filed): Shared) -> Json<Value> {
    let (
        Sources {
            configured,
            filed: listed,
            version,
            ..
        },
        refused,
    ) = filed.report();
    let tenants = tenants_file::listing(&configured, &listed);
    Json(json!({"version": version, "file": filed.path(), "refused": refused, "tenants": tenants}))
}

async fn add(State(filed): Shared, Json(asked): Json<Add>) -> Result<(StatusCode, Json<Value>), Refused> {
    let tenant = Tenant {
        id: asked.id,
        keys: vec![key(&asked.sha256)?],
        datasets: asked.datasets,
        certificates: Vec::new(),
        quota: asked.quota,
        weight: asked.weight,
    };
    let id = tenant.id.clone();
    let version = blocking(move || filed.add(tenant)).await?;
    Ok((
        StatusCode::CREATED,
        Json(json!({"tenant": id, "version": version})),
    ))
}

async fn rotate(
    State(filed): Shared,
    Path(id): Path<TenantId>,
    Json(asked): Json<Rotate>,
) -> Result<Json<Value>, Refused> {
    let key = key(&asked.sha256)?;
    let of = id.clone();
    let (living, version) = blocking(move || filed.rotate(&of, key, asked.keep_old_ms)).await?;
    Ok(Json(
        json!({"tenant": id, "old_keys_kept": living, "version": version}),
    ))
}

async fn revoke(
    State(filed): Shared,
    Path(id): Path<TenantId>,
    Json(asked): Json<Revoke>,
) -> Result<Json<Value>, Refused> {
    let of = id.clone();
    let (ended, version) = blocking(move || filed.revoke(&of, asked.key.as_deref())).await?;
    Ok(Json(
        json!({"tenant": id, "keys_ended": ended, "version": version}),
    ))
}

async fn set_quota(
    State(filed): Shared,
    Path(id): Path<TenantId>,
    Json(asked): Json<SetQuota>,
) -> Result<Json<Value>, Refused> {
    let (of, patch) = (id.clone(), Value::Object(asked.quota));
    let (quota, version) = blocking(move || filed.set_quota(&of, &patch, asked.weight)).await?;
    Ok(Json(json!({"tenant": id, "quota": quota, "version": version})))
}

fn key(sha256: &str) -> Result<KeyHash, Refused> {
    if is_hash(sha256) {
        return Ok(KeyHash::lasting(sha256.to_ascii_lowercase()));
    }
    Err(Refused::new(
        StatusCode::BAD_REQUEST,
        "bad_key_hash",
        "`sha256` must be the SHA-256 of the whole key, 64 hex digits",
    ))
}

/// The file is locked, written and synced: not on a thread that serves others.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NotInForce> + Send + 'static,
) -> Result<T, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|panic| {
        let detail = format!("the change failed inside: {panic}; look at `tenants list`, and report it");
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "admin_internal", detail)
    })?
    .map_err(Refused::from)
}

impl From<NotInForce> for Refused {
    fn from(error: NotInForce) -> Self {
        let detail = error.to_string();
        match error {
            NotInForce::Change(error) => match error {
                ChangeError::Exists(_) => Self::new(StatusCode::CONFLICT, "tenant_exists", detail),
                ChangeError::InConfig(_) => Self::new(StatusCode::CONFLICT, "tenant_in_config", detail),
                ChangeError::Ambiguous(..) => Self::new(StatusCode::CONFLICT, "ambiguous_key", detail),
                ChangeError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "unknown_tenant", detail),
                ChangeError::NoKey(..) => Self::new(StatusCode::NOT_FOUND, "unknown_key", detail),
                ChangeError::BadQuota(..) => Self::new(StatusCode::BAD_REQUEST, "bad_quota", detail),
                ChangeError::NoDataset(_) => Self::new(StatusCode::BAD_REQUEST, "undefined_dataset", detail),
            },
            NotInForce::File(_) | NotInForce::Config { .. } | NotInForce::Gone { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "tenants_file_unusable", detail)
            }
        }
    }
}
