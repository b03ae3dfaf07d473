//! The tenant of an `up` without a config: `demo`, no quota, every dataset; for development only.

use crate::keys;
pub use crate::keys::hash;
use sluice_common::config::{KeyHash, Quota, Tenant, Weight};
use sluice_common::ids::TenantId;
use sluice_common::process::Failure;
use sluice_common::replace::{OWNER_ONLY, replace};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// The tenant's id.
pub const TENANT: &str = "demo";

/// The demo tenant's key: made once, kept in `DIR/demo.key` (0600), the same after a restart.
///
/// # Errors
/// Where the file can be neither read nor written.
pub fn key(data_dir: &Path) -> Result<String, Failure> {
    let path = data_dir.join("demo.key");
    let cannot = |what: &str, error: std::io::Error| {
        Failure::new(format!("cannot {what} {}: {error}", path.display()))
    };
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().starts_with("slc_demo_") => return Ok(text.trim().to_owned()),
        Ok(_) => {
            return Err(Failure::new(format!(
                "{} holds no key: delete it, a new one is made",
                path.display()
            )));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(cannot("read", error)),
    }
    let key = keys::fresh(TENANT)?;
    let (fresh, line) = (path.with_extension("key.new"), format!("{key}\n"));
    let owner_only = Permissions::from_mode(OWNER_ONLY);
    replace(&fresh, &path, line.as_bytes(), owner_only).map_err(|error| cannot("write", error))?;
    Ok(key)
}

/// A tenant with this key.
///
/// # Panics
/// Never: the id is a constant that a test checks.
#[must_use]
pub fn tenant(key: &str) -> Tenant {
    Tenant {
        id: TenantId::new(TENANT).expect("a valid id"),
        keys: vec![KeyHash::lasting(hash(key))],
        certificates: Vec::new(),
        datasets: None,
        quota: Quota::default(),
        weight: Weight::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = key(dir.path()).expect("made");
        assert_eq!(key(dir.path()).expect("read"), first);
        let mode = std::fs::metadata(dir.path().join("demo.key"))
            .expect("is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(tenant(&first).keys[0].sha256.len(), 64);
    }
}
