//! How many connections one tenant may have: the answer to a request over one too many.
//!
//! It is known only once the tenant is, so such a connection is taken, read to the end of its first head, answered, and
//! closed. The tenant's other connections go on, and so does one that carries another tenant's requests too.

use crate::respond::Refusal;
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::json;
use sluice_common::error::Problem;
use sluice_common::ids::TenantId;
use sluice_common::serve::connections::{Place, TenantFull};

/// The limit's name in headers, and its label in metrics.
const POLICY: &str = "tenant-connections";
pub const REASON: &str = "tenant_connections";

/// Counts the connection for the tenant.
///
/// # Errors
/// 429 where the tenant has as many as it may.
pub fn count(place: &Place, tenant: &TenantId) -> Result<(), Refusal> {
    place.count_for(tenant).map_err(|full| {
        if !full.shared {
            place.end();
        }
        refusal(full)
    })
}

fn refusal(full: TenantFull) -> Refusal {
    let most = full.most;
    let detail = format!(
        "this tenant has {most} connections, which is all that it may have: send over those there are, close some, or \
         have `edge.connections.per_tenant` raised; nothing was taken"
    );
    let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_connections", detail);
    let value = |text: String| HeaderValue::from_str(&text).expect("names and numbers");
    let refusal = Refusal::new(problem)
        .shed_for(REASON)
        .with_members(vec![("violated-policies", json!([POLICY]))])
        .with(
            HeaderName::from_static("ratelimit-policy"),
            value(format!("\"{POLICY}\";q={most};qu=\"connections\"")),
        )
        .with(
            HeaderName::from_static("ratelimit"),
            value(format!("\"{POLICY}\";r=0")),
        );
    if full.shared { refusal } else { refusal.closing() }
}
