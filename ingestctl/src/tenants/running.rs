//! Changing tenants of a running Sluice, and waiting until every edge has the change.

use super::Change;
use crate::remote::{Remote, RemoteError};
use serde_json::{Value, json};
use sluice_common::process::Failure;
use std::time::Duration;
use tokio::time::Instant;

/// Where tenants are.
pub(super) const ROUTE: &str = "/admin/v1/tenants";
/// Edges look at the file each second.
const IN_FORCE_DEADLINE: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(100);

/// Has the first edge make the change, and returns once all that are named have it.
pub(super) async fn make(remote: &Remote, change: Change<'_>) -> Result<Value, Failure> {
    let answer = match &change {
        Change::Add {
            id,
            datasets,
            quota,
            weight,
            sha256,
        } => {
            let asked =
                json!({"id": id, "datasets": datasets, "quota": quota, "weight": weight, "sha256": sha256});
            remote.post(ROUTE, &asked).await
        }
        Change::Rotate {
            id,
            sha256,
            keep_old_ms,
        } => {
            let asked = json!({"sha256": sha256, "keep_old_ms": keep_old_ms});
            remote.post(&format!("{ROUTE}/{id}/rotate"), &asked).await
        }
        Change::Quota { id, quota, weight } => {
            let asked = json!({"quota": quota, "weight": weight});
            remote.post(&format!("{ROUTE}/{id}/quota"), &asked).await
        }
        Change::Revoke { id, key } => {
            remote
                .post(&format!("{ROUTE}/{id}/revoke"), &json!({"key": key}))
                .await
        }
    };
    let done = answer.map_err(told)?;
    everywhere(remote, &done["version"]).await?;
    Ok(done)
}

fn told(error: RemoteError) -> Failure {
    match error {
        RemoteError::Unreachable { .. } => Failure::new(format!(
            "{error}. Nothing was changed. To change the tenants file of a Sluice that does not run, add --offline and its \
             --config and --data-dir"
        )),
        RemoteError::Refused { .. } | RemoteError::NotSluice { .. } => Failure::from(error),
    }
}

/// Waits until each edge serves this version of the file. Other listeners have no tenants.
async fn everywhere(remote: &Remote, version: &Value) -> Result<(), Failure> {
    let until = Instant::now() + IN_FORCE_DEADLINE;
    for address in remote.addresses() {
        loop {
            let missing = match remote.get_at(address, ROUTE).await {
                Ok(listed) if listed["version"] == *version => break,
                Err(error) if error.code() == Some("unknown_admin_route") => break,
                Ok(listed) => listed["refused"]
                    .as_str()
                    .unwrap_or("it still has another version")
                    .to_owned(),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= until {
                return Err(Failure::new(format!(
                    "the change is written, and not in force at {address} yet: {missing}; look at its log, and at `tenants \
                     list`. A key that was made now is not shown: make another with `tenants rotate`"
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}
