//! A certificate for development: `up --tls self-signed` makes it once and keeps it in `DIR/tls`.

use clap::ValueEnum;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};
use sha2::{Digest as _, Sha256};
use sluice_common::clock::UnixMs;
use sluice_common::config::EdgeTls;
use sluice_common::process::Failure;
use sluice_common::replace::{OWNER_ONLY, replace};
use sluice_common::tls::PemFile;
use sluice_common::tls::client::ClientFiles;
use sluice_common::tls::material::Identity;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Where a certificate comes from that no config names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TlsFrom {
    /// Made here, for localhost, 127.0.0.1 and ::1. Development only.
    SelfSigned,
}

/// The names that it is for.
pub const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
const LIFE_DAYS: i64 = 365;
/// One that ends sooner is made anew.
const LEAST_LEFT_S: i64 = 30 * 24 * 3600;

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct SelfSigned {
    cert: PathBuf,
    key: PathBuf,
    /// Where the certificate is, for clients that are to trust it.
    pub path: PathBuf,
    /// Its SHA-256, as `openssl x509 -fingerprint` shows it.
    pub fingerprint: String,
}

impl SelfSigned {
    /// The one of `data_dir`, made if there is none that lasts.
    ///
    /// # Errors
    /// Where the files can be neither read nor written.
    pub fn of(data_dir: &Path, now: UnixMs) -> Result<Self, Failure> {
        let (cert, key) = (
            PathBuf::from("tls/self-signed.crt"),
            PathBuf::from("tls/self-signed.key"),
        );
        let (cert_path, key_path) = (data_dir.join(&cert), data_dir.join(&key));
        let identity = match kept(&cert_path, &key_path, now) {
            Some(identity) => identity,
            None => {
                make(&cert_path, &key_path, now)?;
                read(&cert_path, &key_path)?
            }
        };
        let leaf = identity.certified.cert.first();
        Ok(Self {
            cert,
            key,
            path: cert_path,
            fingerprint: leaf.map(|leaf| fingerprint(leaf)).unwrap_or_default(),
        })
    }

    /// What a client trusts that trusts this certificate and no other.
    #[must_use]
    pub fn client(&self) -> ClientFiles {
        ClientFiles {
            name: "edge",
            ca: Some(PemFile {
                key: "--tls self-signed",
                path: self.path.clone(),
            }),
            shows: None,
            alpn: "http/1.1",
        }
    }

    /// As a config would name it.
    #[must_use]
    pub fn edge_tls(&self) -> EdgeTls {
        EdgeTls {
            cert: self.cert.clone(),
            key: self.key.clone(),
            client_ca: None,
        }
    }
}

fn kept(cert: &Path, key: &Path, now: UnixMs) -> Option<Identity> {
    let identity = read(cert, key).ok()?;
    let now = i64::try_from(now / 1_000).ok()?;
    (identity.validity.not_after - now > LEAST_LEFT_S).then_some(identity)
}

fn read(cert: &Path, key: &Path) -> Result<Identity, Failure> {
    let file = |path: &Path| PemFile {
        key: "--tls self-signed",
        path: path.to_owned(),
    };
    Ok(Identity::read(&file(cert), &file(key))?)
}

fn make(cert: &Path, key: &Path, now: UnixMs) -> Result<(), Failure> {
    let mut params = CertificateParams::new(NAMES.map(str::to_owned))?;
    params
        .distinguished_name
        .push(DnType::CommonName, "Sluice, development");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let (from, until) = (date(now, -1)?, date(now, LIFE_DAYS)?);
    params.not_before = date_time_ymd(
        from.year().into(),
        from.month().unsigned_abs(),
        from.day().unsigned_abs(),
    );
    params.not_after = date_time_ymd(
        until.year().into(),
        until.month().unsigned_abs(),
        until.day().unsigned_abs(),
    );
    let secret = KeyPair::generate()?;
    let signed = params.self_signed(&secret)?;
    if let Some(dir) = cert.parent() {
        std::fs::create_dir_all(dir).map_err(|error| cannot_write(dir, &error))?;
    }
    write(key, &secret.serialize_pem(), OWNER_ONLY)?;
    write(cert, &signed.pem(), 0o644)
}

/// The date that lies `days` after `now`, in UTC.
fn date(now: UnixMs, days: i64) -> Result<jiff::civil::Date, Failure> {
    let now = jiff::Timestamp::from_millisecond(i64::try_from(now)?)?;
    let then = now.checked_add(jiff::SignedDuration::from_hours(24 * days))?;
    Ok(then.to_zoned(jiff::tz::TimeZone::UTC).date())
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let (fresh, permissions) = (path.with_extension("new"), Permissions::from_mode(mode));
    replace(&fresh, path, text.as_bytes(), permissions).map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot write {}: {error}", path.display()))
}

fn fingerprint(der: &[u8]) -> String {
    let bytes = Sha256::digest(der);
    bytes
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect::<Vec<_>>()
        .join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = 1_795_000_000_000;
    const DAY_MS: u64 = 24 * 3_600_000;

    #[test]
    fn it_is_made_once_made_anew_before_it_ends_and_only_its_owner_reads_the_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = SelfSigned::of(dir.path(), NOW).expect("made");
        assert_eq!(first.fingerprint.len(), 95);
        let mode = |name: &str| {
            let path = dir.path().join("tls").join(name);
            std::fs::metadata(path).expect("is there").permissions().mode() & 0o777
        };
        assert_eq!(mode("self-signed.key"), 0o600);
        let later = |days: u64| {
            SelfSigned::of(dir.path(), NOW + days * DAY_MS)
                .expect("there")
                .fingerprint
        };
        assert_eq!(later(300), first.fingerprint);
        let second = later(340);
        assert_ne!(second, first.fingerprint);
        std::fs::write(dir.path().join("tls/self-signed.key"), "").expect("written");
        assert_ne!(later(340), second, "half a pair is no pair");
    }
}
