//! Changing the tenants file without a running Sluice.

use super::Change;
use clap::Args;
use serde_json::{Value, json};
use sluice_common::clock::{Clock as _, SystemClock};
use sluice_common::config::{KeyHash, Loaded, Tenant};
use sluice_common::process::Failure;
use sluice_common::tenants_file::{self, Beside, ChangeError, TenantsFile, TenantsFileError};
use std::path::PathBuf;

/// Where the file is.
#[derive(Debug, Args)]
pub(super) struct OfflineArgs {
    /// Change the tenants file itself, for a Sluice that does not run.
    #[arg(long)]
    pub offline: bool,
    /// With --offline: the config that names the file; without it, the default config.
    #[arg(long, value_name = "FILE", requires = "offline")]
    config: Option<PathBuf>,
    /// With --offline: where Sluice's data live.
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data_dir: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum OfflineError {
    #[error(transparent)]
    File(#[from] TenantsFileError),
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl OfflineArgs {
    fn loaded(&self) -> Result<Loaded, Failure> {
        Ok(Loaded::read(self.config.as_deref(), &self.data_dir)?)
    }

    /// Changes the file.
    pub fn make(&self, change: Change<'_>) -> Result<Value, Failure> {
        let loaded = self.loaded()?;
        let beside = Beside::from(&loaded.config);
        let file = TenantsFile::at(loaded.tenants_file());
        let (done, _) = file.change(|list| apply(list, &beside, change).map_err(OfflineError::Change))?;
        Ok(done)
    }

    /// What will be in force at the next start.
    pub fn list(&self) -> Result<Value, Failure> {
        let loaded = self.loaded()?;
        let filed = TenantsFile::at(loaded.tenants_file()).read()?;
        let tenants = tenants_file::listing(&loaded.config.tenants, &filed.tenants);
        Ok(json!({"version": filed.version, "tenants": tenants}))
    }
}

fn apply(list: &mut Vec<Tenant>, beside: &Beside, change: Change<'_>) -> Result<Value, ChangeError> {
    match change {
        Change::Add {
            id,
            datasets,
            quota,
            weight,
            sha256,
        } => {
            let tenant = Tenant {
                id: id.clone(),
                keys: vec![KeyHash::lasting(sha256)],
                datasets: datasets.map(<[_]>::to_vec),
                certificates: Vec::new(),
                quota,
                weight,
            };
            tenants_file::add(list, beside, tenant)?;
            Ok(json!({"tenant": id}))
        }
        Change::Rotate {
            id,
            sha256,
            keep_old_ms,
        } => {
            let until = (keep_old_ms > 0).then(|| SystemClock.now_ms().saturating_add(keep_old_ms));
            let kept = tenants_file::rotate(list, beside, id, (KeyHash::lasting(sha256), until))?;
            Ok(json!({"tenant": id, "old_keys_kept": kept}))
        }
        Change::Quota { id, quota, weight } => {
            let quota = tenants_file::set_quota(list, beside, id, (quota, weight))?;
            Ok(json!({"tenant": id, "quota": quota}))
        }
        Change::Revoke { id, key } => {
            let ended = tenants_file::revoke(list, beside, id, key)?;
            Ok(json!({"tenant": id, "keys_ended": ended}))
        }
    }
}
