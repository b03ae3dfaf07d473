//! The tenants file at this edge: read at the start, watched, and changed for control routes
//! ([`crate::handlers::tenants`]).
//!
//! It is read each second, not only when its time changed: two changes within one tick of the file system's
//! clock would else look like one. A file that is broken, or gone, changes nothing.

use crate::auth::{Sources, Tenants};
use parking_lot::Mutex;
use serde_json::Value;
use sluice_common::clock::SharedClock;
use sluice_common::config::{KeyHash, Quota, Tenant, Weight};
use sluice_common::ids::TenantId;
use sluice_common::metrics::{Counter, Metrics};
use sluice_common::shutdown::Stop;
use sluice_common::tenants_file::{self, ABSENT, Beside, ChangeError, Filed, TenantsFile, TenantsFileError};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks at the file: a change is in force within two of them.
const POLL: Duration = Duration::from_secs(1);

/// The file, and the table that it is put in force in.
#[derive(Debug)]
pub struct FiledTenants {
    file: TenantsFile,
    tenants: Arc<Tenants>,
    metrics: Metrics,
    clock: SharedClock,
    /// Why the file that is there is not in force, if it is not; held while the file is read or changed.
    refused: Mutex<Option<String>>,
}

/// Why a list is not in force.
#[derive(Debug, thiserror::Error)]
pub enum NotInForce {
    #[error(transparent)]
    File(#[from] TenantsFileError),
    #[error("{path}: {problems}: correct the file; what was in force stays")]
    Config { path: String, problems: String },
    #[error(
        "{path} is gone: put it back, or write `[]` into it; what it held stays in force until a restart"
    )]
    Gone { path: String },
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl FiledTenants {
    /// Reads the file for the first time and puts it in force.
    ///
    /// # Errors
    /// [`NotInForce`]: at the start there is nothing older to go on with.
    pub fn open(
        file: TenantsFile,
        tenants: Arc<Tenants>,
        metrics: Metrics,
        clock: SharedClock,
    ) -> Result<Arc<Self>, NotInForce> {
        for outcome in ["applied", "refused"] {
            metrics.zeros(Counter::TenantsFileReads, &[&[("outcome", outcome)]]);
        }
        let filed = Self {
            file,
            tenants,
            metrics,
            clock,
            refused: Mutex::default(),
        };
        filed.apply(filed.file.read()?)?;
        Ok(Arc::new(filed))
    }

    /// Looks at the file each second until `stop`.
    pub async fn watch(self: Arc<Self>, stop: Stop) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(POLL) => {}
            }
            let this = Arc::clone(&self);
            // A panic in there was logged where it happened; the next look may go better.
            tokio::task::spawn_blocking(move || this.refresh()).await.ok();
        }
    }

    /// Reads the file and puts it in force if it is another; a broken one leaves what is in force.
    fn refresh(&self) {
        let mut refused = self.refused.lock();
        match self.read_anew() {
            Ok(()) => {
                if refused.take().is_some() {
                    tracing::info!("the tenants file is in force again");
                }
            }
            Err(error) => {
                let reason = error.to_string();
                if refused.as_ref() != Some(&reason) {
                    self.metrics
                        .add(Counter::TenantsFileReads, 1, &[("outcome", "refused")]);
                    tracing::error!(reason, "the tenants file is refused whole");
                    *refused = Some(reason);
                }
            }
        }
    }

    fn read_anew(&self) -> Result<(), NotInForce> {
        let filed = self.file.read()?;
        let in_force = self.tenants.sources().version;
        if filed.version == in_force {
            return Ok(());
        }
        if filed.version == ABSENT {
            return Err(NotInForce::Gone { path: self.path() });
        }
        self.apply(filed)
    }

    fn apply(&self, filed: Filed) -> Result<(), NotInForce> {
        let (version, count) = (filed.version.clone(), filed.tenants.len());
        self.tenants
            .replace_filed(filed)
            .map_err(|problems| NotInForce::Config {
                path: self.path(),
                problems: problems.join("; "),
            })?;
        self.metrics
            .add(Counter::TenantsFileReads, 1, &[("outcome", "applied")]);
        tracing::info!(version, tenants = count, "the tenants file is in force");
        Ok(())
    }

    /// Changes the file and puts it in force; its version then. Blocks.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Vec<Tenant>, &Beside) -> Result<T, ChangeError>,
    ) -> Result<(T, String), NotInForce> {
        let _others_wait = self.refused.lock();
        let beside = self.tenants.beside();
        let (done, filed) = self.file.change(|list| {
            let done = change(list, &beside)?;
            let problems = tenants_file::problems(list, &beside.configured);
            if problems.is_empty() {
                return Ok(done);
            }
            Err(NotInForce::Config {
                path: self.path(),
                problems: problems.join("; "),
            })
        })?;
        let version = filed.version.clone();
        self.apply(filed)?;
        Ok((done, version))
    }

    /// Adds a tenant; the version then in force. Blocks.
    ///
    /// # Errors
    /// [`NotInForce`]; then nothing has changed.
    pub fn add(&self, tenant: Tenant) -> Result<String, NotInForce> {
        let added = self.change(|list, beside| tenants_file::add(list, beside, tenant));
        added.map(|((), version)| version)
    }

    /// Gives a tenant a new key; how many old ones live on for `keep_old_ms`, and the version. Blocks.
    ///
    /// # Errors
    /// [`NotInForce`]; then nothing has changed.
    pub fn rotate(
        &self,
        id: &TenantId,
        key: KeyHash,
        keep_old_ms: u64,
    ) -> Result<(usize, String), NotInForce> {
        let until = (keep_old_ms > 0).then(|| self.clock.now_ms().saturating_add(keep_old_ms));
        self.change(|list, beside| tenants_file::rotate(list, beside, id, (key, until)))
    }

    /// Ends a key, or a tenant; how many keys ended, and the version. Blocks.
    ///
    /// # Errors
    /// [`NotInForce`]; then nothing has changed.
    pub fn revoke(&self, id: &TenantId, key: Option<&str>) -> Result<(usize, String), NotInForce> {
        self.change(|list, beside| tenants_file::revoke(list, beside, id, key))
    }

    /// Changes what a tenant may send ([`tenants_file::set_quota`]): its quota then, and the version. Blocks.
    ///
    /// # Errors
    /// [`NotInForce`]; then nothing has changed.
    pub fn set_quota(
        &self,
        id: &TenantId,
        patch: &Value,
        weight: Option<Weight>,
    ) -> Result<(Quota, String), NotInForce> {
        self.change(|list, beside| tenants_file::set_quota(list, beside, id, (patch, weight)))
    }

    /// All tenants in force, which file is, and why the one on disk is not, if it is not.
    #[must_use]
    pub fn report(&self) -> (Sources, Option<String>) {
        (self.tenants.sources(), self.refused.lock().clone())
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> String {
        self.file.path().display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Report;
    use sluice_common::clock::ManualClock;
    use sluice_common::config::Loaded;

    fn opened(dir: &std::path::Path) -> Result<Arc<FiledTenants>, NotInForce> {
        let loaded = Loaded::parse("{}", std::path::Path::new("x"), dir).unwrap();
        let tenants = Arc::new(Tenants::new(&loaded.config, Report::quiet()));
        let file = TenantsFile::at(loaded.tenants_file());
        FiledTenants::open(file, tenants, Metrics::detached(), Arc::new(ManualClock::at(5)))
    }

    fn tenant(id: &str, key: char) -> Tenant {
        Tenant {
            id: TenantId::new(id).unwrap(),
            keys: vec![KeyHash::lasting(key.to_string().repeat(64))],
            datasets: None,
            certificates: Vec::new(),
            quota: Quota::default(),
            weight: Weight::default(),
        }
    }

    #[test]
    fn a_change_by_another_hand_is_seen_and_a_broken_or_missing_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (opened(dir.path()).unwrap(), opened(dir.path()).unwrap());
        let version = there.add(tenant("acme", 'a')).unwrap();
        here.refresh();
        assert_eq!(here.report().0.version, version);
        let path = dir.path().join("tenants.yaml");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, "- id: [").unwrap();
        here.refresh();
        let (sources, refused) = here.report();
        assert_eq!(
            (sources.filed.len(), sources.version.as_str()),
            (1, version.as_str())
        );
        assert!(refused.is_some_and(|reason| reason.contains("tenants.yaml")));
        assert!(opened(dir.path()).is_err(), "a start with a broken file");
        std::fs::remove_file(&path).unwrap();
        here.refresh();
        assert_eq!(here.report().0.filed.len(), 1);
        std::fs::write(&path, whole).unwrap();
        here.refresh();
        assert_eq!(here.report().1, None);
    }

    #[test]
    fn old_keys_live_on_as_long_as_was_said() {
        let dir = tempfile::tempdir().unwrap();
        let filed = opened(dir.path()).unwrap();
        filed.add(tenant("acme", 'a')).unwrap();
        let id = TenantId::new("acme").unwrap();
        let key = |c: char| KeyHash::lasting(c.to_string().repeat(64));
        assert_eq!(filed.rotate(&id, key('b'), 10).unwrap().0, 1);
        let keys = filed.report().0.filed.remove(0).keys;
        assert_eq!(keys[0].until.map(sluice_common::config::Expiry::ms), Some(15));
        assert_eq!(filed.rotate(&id, key('c'), 0).unwrap().0, 0);
        assert_eq!(filed.revoke(&id, None).unwrap().0, 1);
        assert!(filed.report().0.filed.is_empty());
    }
}
