//! The tenants that commands keep: a YAML list as under `tenants`, beside the config's own.
//!
//! **Constraints.** Every edge reads it once a second; commands and edges change it; people may edit it. It
//! holds hashes of keys, never keys.
//! **Bytes.** A YAML list of [`Tenant`]s, at most [`MAX_CONFIG_BYTES`]. No file is an empty list. Its version is
//! the beginning of the SHA-256 of its bytes, so that whoever reads the same says the same.
//! **Write.** Under an exclusive `flock` of `FILE.lock`: read, change, write `FILE.new` (0600), sync it, rename it
//! over the file, sync the directory. A crash leaves the old list or the new one; a left-over `FILE.new` is
//! written over.
//! **Read.** Without a lock: a rename is seen whole or not at all. What cannot be parsed is refused whole.
//! **Delete.** Never by us. **Recovery.** None: the file is always whole.

mod quota;

pub use quota::set_quota;

use crate::config::{Config, KeyHash, Quota, Tenant, Weight};
use crate::disk::Disk;
use crate::ids::{Name, TenantId};
use crate::limits::MAX_CONFIG_BYTES;
use crate::replace::{OWNER_ONLY, replace};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{File, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The version of a file that is not there.
pub const ABSENT: &str = "none";
/// How long a writer waits for another one.
const LOCK_DEADLINE: Duration = Duration::from_secs(5);
/// Digits of a key's hash that tell it apart for people.
const SHOWN_DIGITS: usize = 8;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The list as it was read, and which one it is.
#[derive(Debug, Clone)]
pub struct Filed {
    pub tenants: Vec<Tenant>,
    /// 16 hex digits, or [`ABSENT`].
    pub version: String,
}

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TenantsFileError {
    #[error("cannot {what} {path}: {error}")]
    Io {
        what: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error("{path} is larger than {MAX_CONFIG_BYTES} bytes")]
    TooLarge { path: PathBuf },
    #[error("{path}: {problem}: correct the file; what was in force stays")]
    Broken { path: PathBuf, problem: String },
    #[error("{path} is being changed by somebody else for over 5 s: try again")]
    Locked { path: PathBuf },
}

/// Why a list does not become what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("tenant {0} is there already: `tenants rotate {0}` gives it a new key")]
    Exists(TenantId),
    #[error("there is no tenant {0} in the tenants file: `tenants list` shows all")]
    Unknown(TenantId),
    #[error("tenant {0} stands in the config file: change it there")]
    InConfig(TenantId),
    #[error("there is no dataset {0}: add it under `datasets`, or leave it out")]
    NoDataset(Name),
    #[error("tenant {0} has no key that begins with {1:?}: `tenants list` shows them")]
    NoKey(TenantId, String),
    #[error("tenant {0}: {1}")]
    BadQuota(TenantId, String),
    #[error("{1:?} is the beginning of several keys of tenant {0}: give more of it")]
    Ambiguous(TenantId, String),
}

/// What the list stands beside: the config's own tenants, and the names of its datasets.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    pub configured: Vec<Tenant>,
    pub datasets: HashSet<Name>,
}

impl From<&Config> for Beside {
    fn from(config: &Config) -> Self {
        Self {
            configured: config.tenants.clone(),
            datasets: config.datasets.iter().map(|one| one.name.clone()).collect(),
        }
    }
}

/// Where the list is.
#[derive(Debug, Clone)]
pub struct TenantsFile {
    path: PathBuf,
}

impl TenantsFile {
    /// The file at `path`, which need not exist.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the list; an empty one where there is no file.
    ///
    /// # Errors
    /// [`TenantsFileError`]: nothing of a broken file counts.
    pub fn read(&self) -> Result<Filed, TenantsFileError> {
        let mut bytes = Vec::new();
        match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Filed {
                    tenants: Vec::new(),
                    version: ABSENT.to_owned(),
                });
            }
            opened => {
                let file = opened.map_err(|error| self.io("read", error))?;
                let limit = MAX_CONFIG_BYTES as u64 + 1;
                file.take(limit)
                    .read_to_end(&mut bytes)
                    .map_err(|error| self.io("read", error))?;
            }
        }
        if bytes.len() > MAX_CONFIG_BYTES {
            return Err(TenantsFileError::TooLarge {
                path: self.path.clone(),
            });
        }
        let tenants = parse(&bytes).map_err(|problem| TenantsFileError::Broken {
            path: self.path.clone(),
            problem,
        })?;
        let version = version(&bytes);
        Ok(Filed { tenants, version })
    }

    /// Changes the list, with everybody else kept from changing it meanwhile. Blocks for at most 5 s and a few syncs.
    /// Where `change` refuses, nothing is written.
    ///
    /// # Errors
    /// [`TenantsFileError`], or what `change` says.
    pub fn change<T, E>(&self, change: impl FnOnce(&mut Vec<Tenant>) -> Result<T, E>) -> Result<(T, Filed), E>
    where
        E: From<TenantsFileError>,
    {
        let _lock = self.lock()?;
        let mut tenants = self.read()?.tenants;
        let done = change(&mut tenants)?;
        let text = render(&tenants);
        self.write(&text).map_err(|error| self.io("write", error))?;
        let version = version(text.as_bytes());
        Ok((done, Filed { tenants, version }))
    }

    fn lock(&self) -> Result<File, TenantsFileError> {
        if let Some(dir) = self.path.parent() {
            let made = Disk::default().make_dir(dir, 0o777);
            made.map_err(|error| self.io("make the directory of", error))?;
        }
        let path = with_suffix(&self.path, ".lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| self.io("lock", error))?;
        let until = Instant::now() + LOCK_DEADLINE;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                    std::thread::sleep(LOCK_PAUSE)
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(TenantsFileError::Locked {
                        path: self.path.clone(),
                    });
                }
                Err(error) => return Err(self.io("lock", error.into())),
            }
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let fresh = with_suffix(&self.path, ".new");
        let owner_only = Permissions::from_mode(OWNER_ONLY);
        replace(&fresh, &self.path, text.as_bytes(), owner_only)
    }

    fn io(&self, what: &'static str, error: io::Error) -> TenantsFileError {
        TenantsFileError::Io {
            what,
            path: self.path.clone(),
            error,
        }
    }
}

/// What keeps a list from standing beside the config's tenants; empty where nothing does.
#[must_use]
pub fn problems(filed: &[Tenant], configured: &[Tenant]) -> Vec<String> {
    let mut found = Vec::new();
    let mut ids: HashSet<&TenantId> = configured.iter().map(|one| &one.id).collect();
    let mut keys: HashSet<String> = configured.iter().flat_map(hashes).collect();
    for tenant in filed {
        if !ids.insert(&tenant.id) {
            found.push(format!(
                "tenant {} is there twice, here or in the config",
                tenant.id
            ));
        }
        if !tenant.certificates.is_empty() {
            found.push(format!(
                "tenant {}: `certificates` is not taken here: list the tenant under `tenants` in the config",
                tenant.id
            ));
        }
        let quota = tenant.quota.problems().into_iter();
        found.extend(quota.map(|problem| format!("tenant {}: {problem}", tenant.id)));
        for key in &tenant.keys {
            if !is_hash(&key.sha256) {
                found.push(format!(
                    "tenant {}: a key's sha256 is not 64 hex digits",
                    tenant.id
                ));
            } else if !keys.insert(key.sha256.to_ascii_lowercase()) {
                found.push(format!(
                    "tenant {}: a key is there twice, here or in the config",
                    tenant.id
                ));
            }
        }
    }
    found
}

fn hashes(tenant: &Tenant) -> impl Iterator<Item = String> + '_ {
    tenant.keys.iter().map(|key| key.sha256.to_ascii_lowercase())
}

/// A tenant as it is listed for people: of its keys only what tells them apart.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    pub tenant: TenantId,
    /// `config` or `file`.
    pub source: &'static str,
    pub keys: Vec<ListedKey>,
    /// None: all.
    pub datasets: Option<Vec<Name>>,
    pub weight: Weight,
    /// None: nothing is limited.
    pub quota: Option<Quota>,
}

/// A key as it is listed.
#[derive(Debug, Clone, Serialize)]
pub struct ListedKey {
    /// The beginning of its hash.
    pub key: String,
    /// RFC 3339.
    pub until: Option<String>,
}

/// All tenants, for people.
#[must_use]
pub fn listing(configured: &[Tenant], filed: &[Tenant]) -> Vec<Listed> {
    let configured = configured.iter().map(|one| listed("config", one));
    configured
        .chain(filed.iter().map(|one| listed("file", one)))
        .collect()
}

fn listed(source: &'static str, tenant: &Tenant) -> Listed {
    let keys = tenant.keys.iter().map(|key| ListedKey {
        key: key.sha256.chars().take(SHOWN_DIGITS).collect(),
        until: key.until.map(|until| until.to_string()),
    });
    Listed {
        tenant: tenant.id.clone(),
        source,
        keys: keys.collect(),
        datasets: tenant.datasets.clone(),
        weight: tenant.weight,
        quota: (tenant.quota != Quota::default()).then(|| tenant.quota.clone()),
    }
}

/// Whether a text can be a key's hash.
#[must_use]
pub fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit())
}

/// Adds a tenant.
///
/// # Errors
/// [`ChangeError`] where the id is taken or a dataset is not there.
pub fn add(list: &mut Vec<Tenant>, beside: &Beside, tenant: Tenant) -> Result<(), ChangeError> {
    outside_of(beside, &tenant.id)?;
    if list.iter().any(|one| one.id == tenant.id) {
        return Err(ChangeError::Exists(tenant.id));
    }
    let datasets = tenant.datasets.iter().flatten();
    quota::known(beside, datasets.chain(tenant.quota.datasets.keys()))?;
    quota::sound(&tenant)?;
    list.push(tenant);
    Ok(())
}

/// Gives a tenant a new key. Its old ones end at `until_ms`, or now where there is none; how many live on.
///
/// # Errors
/// [`ChangeError`] where there is no such tenant here.
pub fn rotate(
    list: &mut [Tenant],
    beside: &Beside,
    id: &TenantId,
    (key, until_ms): (KeyHash, Option<u64>),
) -> Result<usize, ChangeError> {
    outside_of(beside, id)?;
    let tenant = list.iter_mut().find(|one| one.id == *id);
    let tenant = tenant.ok_or_else(|| ChangeError::Unknown(id.clone()))?;
    match until_ms {
        // A key that was to end sooner still does.
        Some(until) => tenant.keys.iter_mut().for_each(|key| key.end_by(until)),
        None => tenant.keys.clear(),
    }
    let living = tenant.keys.len();
    tenant.keys.push(key);
    Ok(living)
}

/// Takes one key of a tenant away, or the tenant with all of them; how many keys ended.
///
/// # Errors
/// [`ChangeError`] where there is no such tenant or key here, or the beginning fits several.
pub fn revoke(
    list: &mut Vec<Tenant>,
    beside: &Beside,
    id: &TenantId,
    beginning: Option<&str>,
) -> Result<usize, ChangeError> {
    outside_of(beside, id)?;
    let at = list.iter().position(|one| one.id == *id);
    let at = at.ok_or_else(|| ChangeError::Unknown(id.clone()))?;
    let Some(beginning) = beginning else {
        return Ok(list.remove(at).keys.len());
    };
    let keys = list.get_mut(at).map(|tenant| &mut tenant.keys);
    let keys = keys.ok_or_else(|| ChangeError::Unknown(id.clone()))?;
    let fits = |key: &KeyHash| {
        key.sha256
            .to_ascii_lowercase()
            .starts_with(&beginning.to_ascii_lowercase())
    };
    match keys.iter().filter(|key| fits(key)).count() {
        0 => Err(ChangeError::NoKey(id.clone(), beginning.to_owned())),
        1 => {
            keys.retain(|key| !fits(key));
            Ok(1)
        }
        _ => Err(ChangeError::Ambiguous(id.clone(), beginning.to_owned())),
    }
}

fn outside_of(beside: &Beside, id: &TenantId) -> Result<(), ChangeError> {
    if beside.configured.iter().any(|one| one.id == *id) {
        return Err(ChangeError::InConfig(id.clone()));
    }
    Ok(())
}

fn parse(bytes: &[u8]) -> Result<Vec<Tenant>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Ok(Vec::new());
    }
    let tenants: Vec<Tenant> = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let problems = problems(&tenants, &[]);
    if problems.is_empty() {
        Ok(tenants)
    } else {
        Err(problems.join("; "))
    }
}

/// Names, ids, hashes and times need no YAML quoting beyond quotes; a quota is written as JSON, which is YAML.
fn render(tenants: &[Tenant]) -> String {
    let mut text = String::from(
        "# Kept by `ingestctl tenants`; a change by hand counts within two seconds. Keys stand here as SHA-256 only.\n",
    );
    if tenants.is_empty() {
        text += "[]\n";
    }
    for tenant in tenants {
        let _ = writeln!(
            text,
            "- id: \"{}\"\n  keys:{}",
            tenant.id,
            if tenant.keys.is_empty() { " []" } else { "" }
        );
        for key in &tenant.keys {
            let until = key.until.as_ref().map(|until| format!(", until: \"{until}\""));
            let _ = writeln!(
                text,
                "    - {{sha256: \"{}\"{}}}",
                key.sha256,
                until.unwrap_or_default()
            );
        }
        if let Some(datasets) = &tenant.datasets {
            let names: Vec<String> = datasets.iter().map(|name| format!("\"{name}\"")).collect();
            let _ = writeln!(text, "  datasets: [{}]", names.join(", "));
        }
        if tenant.quota != Quota::default() {
            let quota = serde_json::to_string(&tenant.quota).expect("names, numbers and texts are JSON");
            let _ = writeln!(text, "  quota: {quota}");
        }
        if tenant.weight != Weight::default() {
            let _ = writeln!(text, "  weight: {}", tenant.weight.get());
        }
    }
    text
}

fn version(bytes: &[u8]) -> String {
    let mut digest = hex::encode(Sha256::digest(bytes));
    digest.truncate(16);
    digest
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loaded;
    use serde_json::Value;

    fn beside() -> Beside {
        let yaml = format!(
            "tenants: [{{id: own, keys: [{{sha256: \"{}\"}}]}}]",
            "0".repeat(64)
        );
        let config = Loaded::parse(&yaml, Path::new("x"), Path::new("/")).expect("valid");
        Beside::from(&config.config)
    }

    fn tenant(id: &str, key: char) -> Tenant {
        let yaml = format!(
            "[{{id: {id}, keys: [{{sha256: \"{}\"}}]}}]",
            key.to_string().repeat(64)
        );
        parse(yaml.as_bytes()).expect("valid").remove(0)
    }

    fn id(id: &str) -> TenantId {
        TenantId::new(id).expect("valid")
    }

    fn in_a_dir() -> (tempfile::TempDir, TenantsFile) {
        let dir = tempfile::tempdir().expect("a directory");
        let file = TenantsFile::at(dir.path().join("tenants.yaml"));
        (dir, file)
    }

    #[test]
    fn what_is_written_is_read_again_and_only_its_owner_may() {
        let (_dir, file) = in_a_dir();
        assert_eq!(file.read().expect("none").version, ABSENT);
        let mut with_all = tenant("acme", 'a');
        with_all.datasets = Some(vec![Name::new("events").expect("valid")]);
        with_all.keys[0].end_by(1_763_712_000_123);
        let quota = r#"{"bytes_per_second": "64MiB", "burst": "5s", "dry_run": true, "datasets": {"events": {"events_per_second": 7}}}"#;
        with_all.quota = serde_json::from_str(quota).expect("a quota");
        with_all.weight = Weight::new(3).expect("a weight");
        let change = |list: &mut Vec<Tenant>| {
            list.push(with_all.clone());
            list.push(tenant("b", 'b'));
            Ok::<_, TenantsFileError>(())
        };
        let ((), written) = file.change(change).expect("written");
        let read = file.read().expect("read");
        assert_eq!(format!("{:?}", read.tenants), format!("{:?}", written.tenants));
        assert_eq!(read.version, written.version);
        let mode = std::fs::metadata(file.path())
            .expect("is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        file.change(|list| {
            list.clear();
            Ok::<_, TenantsFileError>(())
        })
        .expect("emptied");
        assert!(file.read().expect("read").tenants.is_empty());
    }

    #[test]
    fn a_broken_file_is_refused_whole_and_never_written_over() {
        let (_dir, file) = in_a_dir();
        let twice = format!(
            "[{{id: a, keys: []}}, {{id: a, keys: [{{sha256: \"{}\"}}]}}]",
            "1".repeat(64)
        );
        for text in [
            "- id: [",
            "- {id: a, keys: [{sha256: zz}]}",
            "- {id: a, keyz: []}",
            &twice,
        ] {
            std::fs::write(file.path(), text).expect("written");
            let error = file.read().expect_err(text).to_string();
            assert!(error.contains("tenants.yaml"), "{error}");
            assert!(file.change(|_| Ok::<_, TenantsFileError>(())).is_err());
            assert_eq!(std::fs::read_to_string(file.path()).expect("there"), text);
        }
    }

    #[test]
    fn writers_wait_for_each_other_and_lose_nothing() {
        let (_dir, file) = in_a_dir();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let file = file.clone();
                scope.spawn(move || {
                    for n in 0..5 {
                        let mut one = tenant(&format!("t{writer}-{n}"), 'a');
                        one.keys.clear();
                        let added = file.change(|list| {
                            list.push(one);
                            Ok::<_, TenantsFileError>(())
                        });
                        added.expect("written");
                    }
                });
            }
        });
        assert_eq!(file.read().expect("read").tenants.len(), 20);
    }

    #[test]
    fn tenants_are_added_rotated_and_revoked() {
        let (beside, mut list) = (beside(), Vec::new());
        add(&mut list, &beside, tenant("acme", 'a')).expect("added");
        assert_eq!(
            add(&mut list, &beside, tenant("acme", 'b')),
            Err(ChangeError::Exists(id("acme")))
        );
        assert_eq!(
            add(&mut list, &beside, tenant("own", 'b')),
            Err(ChangeError::InConfig(id("own")))
        );
        let mut odd = tenant("odd", 'c');
        odd.datasets = Some(vec![Name::new("nowhere").expect("valid")]);
        assert!(matches!(
            add(&mut list, &beside, odd),
            Err(ChangeError::NoDataset(_))
        ));
        let key = |key: char| tenant("x", key).keys.remove(0);
        assert_eq!(
            rotate(&mut list, &beside, &id("acme"), (key('b'), Some(9))),
            Ok(1)
        );
        assert_eq!(list[0].keys.len(), 2);
        assert_eq!(list[0].keys[0].until.as_ref().map(|until| until.ms()), Some(9));
        assert!(list[0].keys[1].until.is_none());
        assert_eq!(revoke(&mut list, &beside, &id("acme"), Some("aa")), Ok(1));
        assert!(matches!(
            revoke(&mut list, &beside, &id("acme"), Some("aa")),
            Err(ChangeError::NoKey(..))
        ));
        assert_eq!(rotate(&mut list, &beside, &id("acme"), (key('c'), None)), Ok(0));
        assert_eq!(list[0].keys.len(), 1, "the old ones end at once");
        assert_eq!(revoke(&mut list, &beside, &id("acme"), None), Ok(1));
        assert_eq!(
            revoke(&mut list, &beside, &id("acme"), None),
            Err(ChangeError::Unknown(id("acme")))
        );
    }

    #[test]
    fn a_quota_is_changed_member_by_member_and_never_into_one_that_cannot_be() {
        let (beside, mut list) = (beside(), vec![tenant("acme", 'a')]);
        let mut set = |id: &str, patch: Value| {
            let done = set_quota(&mut list, &beside, &self::id(id), (&patch, Weight::new(5)));
            done.map(|quota| serde_json::to_value(quota).expect("JSON"))
        };
        let json = serde_json::json!({"events_per_second": 5, "burst": "3s", "datasets": {"events": {"requests_per_second": 2}}});
        let first = set("acme", json).expect("set");
        assert_eq!(first["events_per_second"], 5);
        let second = set(
            "acme",
            serde_json::json!({"events_per_second": null, "bytes_per_second": "1MiB"}),
        );
        let second = second.expect("set");
        assert_eq!(
            (&second["events_per_second"], &second["burst"]),
            (&Value::Null, &"3s".into())
        );
        assert_eq!(second["datasets"]["events"]["requests_per_second"], 2);
        let third = set(
            "acme",
            serde_json::json!({"datasets": {"events": {"requests_per_second": null}}}),
        );
        assert_eq!(
            third.expect("set")["datasets"],
            Value::Null,
            "a dataset without limits is none"
        );
        for bad in [
            serde_json::json!({"events_per_second": 0}),
            serde_json::json!({"events_per_minute": 1}),
            serde_json::json!({"burst": "1ms"}),
            serde_json::json!([]),
        ] {
            assert!(
                matches!(set("acme", bad.clone()), Err(ChangeError::BadQuota(..))),
                "{bad}"
            );
        }
        let nowhere = serde_json::json!({"datasets": {"nowhere": {"events_per_second": 1}}});
        assert!(matches!(set("acme", nowhere), Err(ChangeError::NoDataset(_))));
        assert!(matches!(set("own", Value::Null), Err(ChangeError::InConfig(_))));
        assert!(matches!(set("nobody", Value::Null), Err(ChangeError::Unknown(_))));
        assert_eq!(list[0].weight.get(), 5);
        assert_eq!(list[0].quota.bytes_per_second.map(|bytes| bytes.0), Some(1 << 20));
    }

    #[test]
    fn an_id_or_key_in_both_places_is_a_problem() {
        let beside = beside();
        assert_eq!(problems(&[tenant("own", 'a')], &beside.configured).len(), 1);
        assert_eq!(problems(&[tenant("other", '0')], &beside.configured).len(), 1);
        assert!(problems(&[tenant("other", 'a')], &beside.configured).is_empty());
    }
}
