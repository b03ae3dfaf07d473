//! Who is calling: an API key leads to a tenant, or a client certificate does, and nothing else.
//!
//! Where both are sent they must agree. A certificate whose names are no tenant's says nothing: services in
//! a mesh all show one.
//!
//! The table holds SHA-256 hashes only. A lookup costs the same for a known and for an unknown key:
//! both end in one constant-time comparison, a miss against a dummy.

use crate::admission::{Admission, TenantAdmission};
use crate::quota::{Report, TenantQuotas};
use crate::respond::Refusal;
use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use sluice_common::clock::{SharedClock, SystemClock};
use sluice_common::config::{self, Config, Expiry, Share, Weight};
use sluice_common::error::Problem;
use sluice_common::ids::{Name, TenantId};
use sluice_common::tenants_file::{self, Beside, Filed};
use sluice_common::tls::{ClientCertificate, ClientName};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Why a request has no tenant. Never holds the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("no API key was sent: add `Authorization: Bearer KEY` or `X-Api-Key: KEY`")]
    Missing,
    #[error("the API key is not known: check it, or ask whoever keeps `tenants` in the config for a new one")]
    Unknown,
    #[error("two different API keys were sent: send one, in `Authorization` or in `X-Api-Key`")]
    Conflicting,
    #[error("`Authorization` is not understood: send `Bearer KEY`, or the bare key")]
    Scheme,
    #[error(
        "no API key was sent, and the client certificate's names are no tenant's: send a key, or have a name of \
         it added to the tenant's `certificates`"
    )]
    UnknownCertificate,
    #[error("the client certificate has names of several tenants: use one certificate for each")]
    AmbiguousCertificate,
    #[error(
        "the API key and the client certificate are two tenants': send one of them, or two of one tenant"
    )]
    Disagreeing,
}

/// A tenant as the edge knows it.
#[derive(Debug)]
pub struct Tenant {
    pub id: TenantId,
    /// Datasets it may write; `None`: all.
    datasets: Option<HashSet<Name>>,
    /// Its part of what is short, here and behind.
    pub weight: Weight,
    /// Its share of memory, and whether the normalizer takes its requests. Outlives a reload.
    pub admission: Arc<TenantAdmission>,
    /// What it may send, and what it has.
    pub quotas: Arc<TenantQuotas>,
}

impl Tenant {
    /// Whether the tenant may write the dataset, which need not exist.
    #[must_use]
    pub fn may_write(&self, dataset: &str) -> bool {
        let listed = |set: &HashSet<Name>| set.iter().any(|name| name.as_str() == dataset);
        self.datasets.as_ref().is_none_or(listed)
    }
}

type KeyHash = [u8; 32];

#[derive(Debug, Default)]
struct Table {
    by_key: HashMap<KeyHash, Known>,
    by_certificate: HashMap<ClientName, Arc<Tenant>>,
    tenants: HashMap<TenantId, Arc<Tenant>>,
    datasets: HashSet<Name>,
}

/// Whose key it is, and until when.
#[derive(Debug)]
struct Known {
    tenant: Arc<Tenant>,
    until: Option<Expiry>,
}

/// Where tenants come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `tenants` of the config.
    pub configured: Vec<config::Tenant>,
    /// Those of the tenants file that can stand beside them.
    pub filed: Vec<config::Tenant>,
    /// Which tenants file is in force.
    pub version: String,
    /// The part of every quota that this edge gives.
    share: Share,
}

/// The tenants and dataset names in force; replaced whole when the config or the tenants file changes.
#[derive(Debug)]
pub struct Tenants {
    table: ArcSwap<Table>,
    /// What the table was made of; held while it is made anew.
    sources: Mutex<Sources>,
    admission: Admission,
    clock: SharedClock,
    report: Arc<Report>,
}

impl Tenants {
    /// The tenants of `config`; `report` hears of those over their quota.
    #[must_use]
    pub fn new(config: &Config, report: Arc<Report>) -> Self {
        Self::with_clock(config, report, Arc::new(SystemClock))
    }

    /// The same, where `clock` says which keys have ended.
    #[must_use]
    pub fn with_clock(config: &Config, report: Arc<Report>, clock: SharedClock) -> Self {
        let tenants = Self {
            table: ArcSwap::default(),
            sources: Mutex::default(),
            admission: Admission::default(),
            clock,
            report,
        };
        tenants.replace(config);
        tenants
    }

    /// What their bodies may hold.
    #[must_use]
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Puts another config's tenants in force at once. What a tenant that stays holds of memory
    /// stays counted. A tenant of the tenants file that is in the new config too gives way to it.
    pub fn replace(&self, config: &Config) {
        let mut sources = self.sources.lock();
        sources.configured.clone_from(&config.tenants);
        sources.share = config.edge.quota_share;
        let (configured, filed) = (&config.tenants, std::mem::take(&mut sources.filed));
        for tenant in filed {
            let problems = tenants_file::problems(std::slice::from_ref(&tenant), configured);
            if problems.is_empty() {
                sources.filed.push(tenant);
            } else {
                tracing::error!(
                    problems = problems.join("; "),
                    "the config's tenant counts, the tenants file's does not: take it out of one of them"
                );
            }
        }
        let datasets = config.datasets.iter().map(|one| one.name.clone()).collect();
        self.rebuild(&sources, datasets);
    }

    /// Puts another tenants file in force at once.
    ///
    /// # Errors
    /// What keeps it from standing beside the config's tenants; then nothing changes.
    pub fn replace_filed(&self, filed: Filed) -> Result<(), Vec<String>> {
        let mut sources = self.sources.lock();
        let problems = tenants_file::problems(&filed.tenants, &sources.configured);
        if !problems.is_empty() {
            return Err(problems);
        }
        (sources.filed, sources.version) = (filed.tenants, filed.version);
        let datasets = self.table.load().datasets.clone();
        self.rebuild(&sources, datasets);
        Ok(())
    }

    /// What is in force.
    #[must_use]
    pub fn sources(&self) -> Sources {
        self.sources.lock().clone()
    }

    /// What a tenants file stands beside.
    #[must_use]
    pub fn beside(&self) -> Beside {
        Beside {
            configured: self.sources.lock().configured.clone(),
            datasets: self.table.load().datasets.clone(),
        }
    }

    fn rebuild(&self, sources: &Sources, datasets: HashSet<Name>) {
        let old = self.table.load_full();
        let mut table = Table {
            datasets,
            ..Table::default()
        };
        for one in sources.configured.iter().chain(&sources.filed) {
            let known = old.tenants.get(&one.id);
            let quotas = known.map(|known| &known.quotas);
            let tenant = Arc::new(Tenant {
                id: one.id.clone(),
                datasets: one.datasets.as_ref().map(|list| list.iter().cloned().collect()),
                weight: one.weight,
                admission: known.map_or_else(
                    || Arc::new(TenantAdmission::of(&one.id)),
                    |known| known.admission.clone(),
                ),
                quotas: TenantQuotas::new((&one.id, &one.quota), sources.share, quotas, &self.report),
            });
            for key in &one.keys {
                if let Some(hash) = read_hash(&key.sha256) {
                    let (tenant, until) = (tenant.clone(), key.until);
                    table.by_key.insert(hash, Known { tenant, until });
                }
            }
            for name in &one.certificates {
                table.by_certificate.insert(name.client_name(), tenant.clone());
            }
            table.tenants.insert(one.id.clone(), tenant);
        }
        let weights = table.tenants.values().map(|tenant| (&tenant.id, tenant.weight));
        self.admission.share_out(weights);
        self.table.store(Arc::new(table));
    }

    /// What was lately used of the quotas of all tenants that have one, the highest of each `label`.
    pub fn used_ratios<'l>(&self, label: impl Fn(&TenantId) -> String + 'l) -> BTreeMap<String, f64> {
        let (table, now) = (self.table.load(), self.report.now());
        let mut found = BTreeMap::new();
        for tenant in table.tenants.values().filter(|one| !one.quotas.is_unlimited()) {
            let highest = found.entry(label(&tenant.id)).or_insert(0.0);
            *highest = f64::max(*highest, tenant.quotas.used_ratio(now));
        }
        found
    }

    /// Whether a dataset of that name is configured.
    #[must_use]
    pub fn dataset_exists(&self, dataset: &str) -> bool {
        let table = self.table.load();
        table.datasets.iter().any(|name| name.as_str() == dataset)
    }

    /// The tenant whose key the request carries, or whose certificate its connection was made with.
    ///
    /// # Errors
    /// [`AuthError`]: a 401.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        shown: &ClientCertificate,
    ) -> Result<Arc<Tenant>, AuthError> {
        let table = self.table.load();
        let by_certificate = table.by_certificate(shown)?;
        let key = match one_key(headers) {
            Ok(key) => key,
            Err(AuthError::Missing) if shown.0.is_some() => {
                return by_certificate.ok_or(AuthError::UnknownCertificate);
            }
            Err(error) => return Err(error),
        };
        let tenant = self.by_key(&table, key)?;
        if by_certificate.is_some_and(|other| other.id != tenant.id) {
            return Err(AuthError::Disagreeing);
        }
        Ok(tenant)
    }

    fn by_key(&self, table: &Table, key: &[u8]) -> Result<Arc<Tenant>, AuthError> {
        let hash: KeyHash = Sha256::digest(key).into();
        let found = table.by_key.get_key_value(&hash);
        let (stored, known) = found.map_or((&DUMMY, None), |(stored, known)| (stored, Some(known)));
        let same = bool::from(stored.ct_eq(&hash));
        let known = known.filter(|known| same && !self.has_ended(known.until));
        known.map(|known| known.tenant.clone()).ok_or(AuthError::Unknown)
    }

    fn has_ended(&self, until: Option<Expiry>) -> bool {
        until.is_some_and(|until| self.clock.now_ms() >= until.ms())
    }
}

impl Table {
    /// The one tenant that the certificate's names lead to, if any does.
    fn by_certificate(&self, shown: &ClientCertificate) -> Result<Option<Arc<Tenant>>, AuthError> {
        let names = shown.0.iter().flat_map(|names| names.iter());
        let mut found: Option<&Arc<Tenant>> = None;
        for tenant in names.filter_map(|name| self.by_certificate.get(name)) {
            if found.is_some_and(|earlier| earlier.id != tenant.id) {
                return Err(AuthError::AmbiguousCertificate);
            }
            found = Some(tenant);
        }
        Ok(found.cloned())
    }
}

/// What an unknown key is compared with; no known text has this hash.
const DUMMY: KeyHash = [0; 32];
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Config validation lets only 64 hex digits through.
fn read_hash(text: &str) -> Option<KeyHash> {
    let mut hash = KeyHash::default();
    hex::decode_to_slice(text.trim(), &mut hash).ok().map(|()| hash)
}

/// The key that all credentials of the request agree on.
fn one_key(headers: &HeaderMap) -> Result<&[u8], AuthError> {
    let bearer = headers.get_all(header::AUTHORIZATION).iter().map(bearer_key);
    let plain = headers
        .get_all(API_KEY)
        .iter()
        .map(|value| Ok(value.as_bytes().trim_ascii()));
    let mut found: Option<&[u8]> = None;
    for key in bearer.chain(plain) {
        let key = key?;
        if found.is_some_and(|earlier| !bool::from(earlier.ct_eq(key))) {
            return Err(AuthError::Conflicting);
        }
        found = Some(key);
    }
    found.filter(|key| !key.is_empty()).ok_or(AuthError::Missing)
}

/// `Bearer KEY` (the scheme in any case) or `KEY`.
fn bearer_key(value: &HeaderValue) -> Result<&[u8], AuthError> {
    let text = value.as_bytes().trim_ascii();
    let Some(space) = text.iter().position(u8::is_ascii_whitespace) else {
        let bare_scheme = text.eq_ignore_ascii_case(b"bearer");
        return if bare_scheme {
            Err(AuthError::Missing)
        } else {
            Ok(text)
        };
    };
    let (scheme, key) = text.split_at(space);
    let key = key.trim_ascii();
    let sound = scheme.eq_ignore_ascii_case(b"bearer") && !key.iter().any(u8::is_ascii_whitespace);
    sound.then_some(key).ok_or(AuthError::Scheme)
}

impl From<AuthError> for Refusal {
    fn from(error: AuthError) -> Self {
        let (code, challenge) = match error {
            AuthError::Missing => ("missing_api_key", "Bearer realm=\"sluice\""),
            AuthError::Unknown => ("unknown_api_key", INVALID_TOKEN),
            AuthError::Conflicting => ("conflicting_api_keys", INVALID_REQUEST),
            AuthError::Scheme => ("bad_authorization", INVALID_REQUEST),
            AuthError::UnknownCertificate => ("unknown_certificate", INVALID_TOKEN),
            AuthError::AmbiguousCertificate => ("ambiguous_certificate", INVALID_REQUEST),
            AuthError::Disagreeing => ("credentials_disagree", INVALID_REQUEST),
        };
        let problem = Problem::new(StatusCode::UNAUTHORIZED, code, error.to_string());
        Self::new(problem).with(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }
}

const INVALID_TOKEN: &str = "Bearer realm=\"sluice\", error=\"invalid_token\"";
const INVALID_REQUEST: &str = "Bearer realm=\"sluice\", error=\"invalid_request\"";

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_common::clock::ManualClock;
    use sluice_common::config::Loaded;
    use std::path::Path;

    fn config(tenants: &[(&str, &str)]) -> Config {
        let list = tenants.iter().map(|(id, key)| {
            let hash = hex::encode(Sha256::digest(key));
            format!("- {{id: {id}, keys: [{{sha256: {hash}}}]}}\n")
        });
        let list: String = list.collect();
        let yaml = if list.is_empty() {
            "{}".to_owned()
        } else {
            format!("tenants:\n{list}")
        };
        Loaded::parse(&yaml, Path::new("t"), Path::new("/tmp"))
            .unwrap()
            .config
    }

    fn tenant_of(tenants: &Tenants, headers: &[(&str, &str)]) -> Result<String, AuthError> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        let nobody = ClientCertificate::default();
        tenants
            .authenticate(&map, &nobody)
            .map(|tenant| tenant.id.to_string())
    }

    #[test]
    fn a_key_is_taken_from_each_of_its_places_and_from_nowhere_else() {
        let tenants = Tenants::new(
            &config(&[("acme", "slc_a_1"), ("other", "slc_o_1")]),
            Report::quiet(),
        );
        for good in [
            &[("authorization", "Bearer slc_a_1")][..],
            &[("authorization", "bEARER   slc_a_1 ")],
            &[("authorization", "slc_a_1")],
            &[("x-api-key", "slc_a_1")],
            &[("x-api-key", "slc_a_1"), ("authorization", "Bearer slc_a_1")],
            &[
                ("x-api-key", "slc_a_1"),
                ("x-tenant", "other"),
                ("tenant", "other"),
            ],
        ] {
            assert_eq!(tenant_of(&tenants, good).as_deref(), Ok("acme"), "{good:?}");
        }
        for (bad, why) in [
            (&[][..], AuthError::Missing),
            (&[("authorization", "")], AuthError::Missing),
            (&[("authorization", "Bearer")], AuthError::Missing),
            (&[("authorization", "Bearer ")], AuthError::Missing),
            (&[("x-api-key", "")], AuthError::Missing),
            (&[("authorization", "Basic c2x1aWNl")], AuthError::Scheme),
            (&[("authorization", "Bearer slc_a_1 slc_o_1")], AuthError::Scheme),
            (&[("authorization", "Bearer slc_a_2")], AuthError::Unknown),
            (&[("x-api-key", "acme")], AuthError::Unknown),
            (
                &[("x-api-key", "slc_a_1"), ("x-api-key", "slc_o_1")],
                AuthError::Conflicting,
            ),
            (
                &[("x-api-key", "slc_a_1"), ("authorization", "slc_o_1")],
                AuthError::Conflicting,
            ),
        ] {
            assert_eq!(tenant_of(&tenants, bad), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn a_key_with_an_end_is_unknown_from_then_on() {
        let clock = ManualClock::at(1_000);
        let hash = hex::encode(Sha256::digest("k"));
        let yaml =
            format!("tenants: [{{id: a, keys: [{{sha256: {hash}, until: \"1970-01-01T00:00:02Z\"}}]}}]");
        let loaded = Loaded::parse(&yaml, Path::new("t"), Path::new("/tmp")).unwrap();
        let tenants = Tenants::with_clock(&loaded.config, Report::quiet(), Arc::new(clock.clone()));
        assert_eq!(tenant_of(&tenants, &[("x-api-key", "k")]).as_deref(), Ok("a"));
        clock.advance(1_000);
        assert_eq!(
            tenant_of(&tenants, &[("x-api-key", "k")]),
            Err(AuthError::Unknown)
        );
    }

    #[test]
    fn a_tenants_file_stands_beside_the_config_and_gives_way_to_it() {
        let tenants = Tenants::new(&config(&[("acme", "a")]), Report::quiet());
        let filed = |list: &[(&str, &str)]| Filed {
            tenants: config(list).tenants,
            version: "v".into(),
        };
        assert_eq!(tenants.replace_filed(filed(&[("more", "m")])), Ok(()));
        let tenant = |key| tenant_of(&tenants, &[("x-api-key", key)]);
        assert_eq!(
            (tenant("a").as_deref(), tenant("m").as_deref()),
            (Ok("acme"), Ok("more"))
        );
        assert!(tenants.replace_filed(filed(&[("acme", "x")])).is_err());
        assert!(
            tenants.replace_filed(filed(&[("x", "a")])).is_err(),
            "a key of another tenant"
        );
        assert_eq!(
            tenant("m").as_deref(),
            Ok("more"),
            "what was refused changed nothing"
        );
        tenants.replace(&config(&[("more", "n")]));
        assert_eq!(
            (tenant("m"), tenant("n").as_deref()),
            (Err(AuthError::Unknown), Ok("more"))
        );
        assert_eq!(tenants.replace_filed(filed(&[])), Ok(()));
        assert_eq!(tenant("n").as_deref(), Ok("more"));
    }

    #[test]
    fn a_reload_revokes_keys_and_keeps_what_a_tenant_holds() {
        let tenants = Tenants::new(&config(&[("acme", "old"), ("gone", "x")]), Report::quiet());
        let mut headers = HeaderMap::new();
        headers.insert(API_KEY, HeaderValue::from_static("old"));
        let nobody = ClientCertificate::default();
        let before = tenants.authenticate(&headers, &nobody).unwrap();
        tenants.replace(&config(&[("acme", "new")]));
        assert_eq!(
            tenants.authenticate(&headers, &nobody).unwrap_err(),
            AuthError::Unknown
        );
        headers.insert(API_KEY, HeaderValue::from_static("new"));
        let after = tenants.authenticate(&headers, &nobody).unwrap();
        assert!(Arc::ptr_eq(&before.admission, &after.admission));
        assert_eq!(
            tenant_of(&tenants, &[("x-api-key", "x")]),
            Err(AuthError::Unknown)
        );
    }

    #[test]
    fn a_certificate_leads_to_its_tenant_and_never_beside_another_tenant_s_key() {
        let hash = hex::encode(Sha256::digest("key-a"));
        let yaml = format!(
            "edge: {{tls: {{cert: a, key: b, client_ca: c}}}}\ntenants:\n\
             - {{id: a, keys: [{{sha256: {hash}}}], certificates: [{{dns: a.x}}, {{cn: alice}}]}}\n\
             - {{id: b, keys: [], certificates: [{{uri: \"spiffe://x/b\"}}]}}\n"
        );
        let config = Loaded::parse(&yaml, Path::new("t"), Path::new("/tmp"))
            .unwrap()
            .config;
        let tenants = Tenants::new(&config, Report::quiet());
        let dns = |name| ClientName::dns(name);
        let uri = |name: &str| ClientName::Uri(name.into());
        for (names, key, expected) in [
            (vec![dns("A.x")], None, Ok("a")),
            (vec![dns("z.x"), uri("spiffe://x/b")], None, Ok("b")),
            (vec![ClientName::Cn("alice".into())], None, Ok("a")),
            (vec![dns("a.x")], Some("key-a"), Ok("a")),
            (vec![dns("z.x")], Some("key-a"), Ok("a")),
            (vec![dns("a.x")], Some("key-z"), Err(AuthError::Unknown)),
            (
                vec![uri("spiffe://x/b")],
                Some("key-a"),
                Err(AuthError::Disagreeing),
            ),
            (
                vec![dns("a.x"), uri("spiffe://x/b")],
                None,
                Err(AuthError::AmbiguousCertificate),
            ),
            (
                vec![dns("a.x"), uri("spiffe://x/b")],
                Some("key-a"),
                Err(AuthError::AmbiguousCertificate),
            ),
            (
                vec![dns("alice"), uri("alice")],
                None,
                Err(AuthError::UnknownCertificate),
            ),
            (vec![], None, Err(AuthError::UnknownCertificate)),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(key) = key {
                headers.insert(API_KEY, HeaderValue::from_static(key));
            }
            let shown = ClientCertificate(Some(names.clone().into()));
            let found = tenants.authenticate(&headers, &shown);
            let found = found
                .as_ref()
                .map(|tenant| tenant.id.as_str())
                .map_err(|error| *error);
            assert_eq!(found, expected, "{names:?} {key:?}");
        }
    }
}
