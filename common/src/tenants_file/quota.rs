//! Changing what a tenant of the tenants file may send.

use super::{Beside, ChangeError, outside_of};
use crate::config::{Quota, Rates, Tenant, Weight};
use crate::ids::{Name, TenantId};
use serde_json::Value;

/// Changes what a tenant may send: members of `patch` (as in RFC 7396) replace those of its quota, null takes
/// one away, and what is not named stays. The quota then.
///
/// # Errors
/// [`ChangeError`] where there is no such tenant here, or no such quota could be.
pub fn set_quota(
    list: &mut [Tenant],
    beside: &Beside,
    id: &TenantId,
    (patch, weight): (&Value, Option<Weight>),
) -> Result<Quota, ChangeError> {
    outside_of(beside, id)?;
    let tenant = list.iter_mut().find(|one| one.id == *id);
    let tenant = tenant.ok_or_else(|| ChangeError::Unknown(id.clone()))?;
    let bad = |error: serde_json::Error| ChangeError::BadQuota(id.clone(), error.to_string());
    if !patch.is_object() {
        let what = "a quota is a map of limits".to_owned();
        return Err(ChangeError::BadQuota(id.clone(), what));
    }
    let mut quota = serde_json::to_value(&tenant.quota).map_err(bad)?;
    merge(&mut quota, patch);
    let mut quota: Quota = serde_json::from_value(quota).map_err(bad)?;
    quota.datasets.retain(|_, rates| *rates != Rates::default());
    known(beside, quota.datasets.keys())?;
    let changed = Tenant {
        quota,
        weight: weight.unwrap_or(tenant.weight),
        ..tenant.clone()
    };
    sound(&changed)?;
    *tenant = changed;
    Ok(tenant.quota.clone())
}

/// RFC 7396. As deep as a quota is; the reader refuses what is deeper.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else { return };
    for (name, value) in members {
        if value.is_null() {
            target.remove(name);
        } else {
            merge(target.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// Whether the tenant's quota could be.
pub(super) fn sound(tenant: &Tenant) -> Result<(), ChangeError> {
    let problems = tenant.quota.problems();
    if problems.is_empty() {
        return Ok(());
    }
    Err(ChangeError::BadQuota(tenant.id.clone(), problems.join("; ")))
}

/// Whether all these datasets are there.
pub(super) fn known<'n>(
    beside: &Beside,
    mut names: impl Iterator<Item = &'n Name>,
) -> Result<(), ChangeError> {
    let unknown = names.find(|name| !beside.datasets.contains(*name));
    unknown.map_or(Ok(()), |name| Err(ChangeError::NoDataset(name.clone())))
}
