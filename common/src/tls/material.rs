//! Certificates and keys as PEM files: read, checked against each other, and told apart when wrong.

use crate::clock::UnixMs;
use crate::limits::MAX_TLS_FILE_BYTES;
use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A file that the config names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PemFile {
    /// The config key that names it.
    pub key: &'static str,
    pub path: PathBuf,
}

/// A file that cannot be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {}: {wrong}", path.display())]
pub struct TlsError {
    key: &'static str,
    path: PathBuf,
    pub wrong: Wrong,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    #[error("cannot be read: {0}; correct the path, or let this user read it")]
    Unreadable(io::Error),
    #[error("is larger than {MAX_TLS_FILE_BYTES} bytes: name the file that holds the PEM text alone")]
    TooLarge,
    #[error("is not PEM ({0}): write it as text between BEGIN and END lines")]
    NotPem(pem::Error),
    #[error("holds no certificate: write the server's own first, then those that signed it, as PEM")]
    NoCertificate,
    #[error("its certificate number {number} cannot be read ({reason}): write it again")]
    BadCertificate { number: usize, reason: String },
    #[error("holds no private key: write it as PEM (PKCS#8, PKCS#1 or SEC1)")]
    NoKey,
    #[error(
        "its private key is encrypted, and nobody is here to type a passphrase: store it without one, mode 0600"
    )]
    EncryptedKey,
    #[error("its key is not the key of the certificate in {}: write the two that belong together", .0.display())]
    OtherKey(PathBuf),
    #[error("its key cannot be used ({0}): ECDSA P-256 or P-384, Ed25519, or RSA from 2,048 bits is")]
    UnusableKey(rustls::Error),
    #[error("cannot be used to check certificates: {0}")]
    UnusableRoots(String),
}

impl PemFile {
    fn wrong(&self, wrong: Wrong) -> TlsError {
        TlsError {
            key: self.key,
            path: self.path.clone(),
            wrong,
        }
    }

    /// Its bytes.
    ///
    /// # Errors
    /// [`Wrong::Unreadable`] or [`Wrong::TooLarge`].
    pub fn read(&self) -> Result<Vec<u8>, TlsError> {
        let unreadable = |error| self.wrong(Wrong::Unreadable(error));
        let file = std::fs::File::open(&self.path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        file.take(MAX_TLS_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        if bytes.len() as u64 > MAX_TLS_FILE_BYTES {
            return Err(self.wrong(Wrong::TooLarge));
        }
        Ok(bytes)
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let bytes = self.read()?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        let found = found.map_err(|error| self.wrong(Wrong::NotPem(error)))?;
        if found.is_empty() {
            return Err(self.wrong(Wrong::NoCertificate));
        }
        Ok(found)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let bytes = self.read()?;
        match PrivateKeyDer::from_pem_slice(&bytes) {
            Ok(key) => Ok(key),
            Err(_) if contains(&bytes, b"ENCRYPTED") => Err(self.wrong(Wrong::EncryptedKey)),
            Err(pem::Error::NoItemsFound) => Err(self.wrong(Wrong::NoKey)),
            Err(error) => Err(self.wrong(Wrong::NotPem(error))),
        }
    }

    /// The certificates that others are checked against.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for (at, certificate) in self.certificates()?.into_iter().enumerate() {
            let bad = |error: rustls::Error| Wrong::BadCertificate {
                number: at + 1,
                reason: error.to_string(),
            };
            roots.add(certificate).map_err(|error| self.wrong(bad(error)))?;
        }
        Ok(roots)
    }

    pub(super) fn unusable_roots(&self, error: &dyn std::error::Error) -> TlsError {
        self.wrong(Wrong::UnusableRoots(error.to_string()))
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|part| part == word)
}

/// A certificate chain with its key, known to belong together.
#[derive(Debug)]
pub struct Identity {
    pub certified: CertifiedKey,
    pub validity: Validity,
}

impl Identity {
    /// Reads both files.
    ///
    /// # Errors
    /// [`TlsError`] naming the file that is wrong.
    pub fn read(cert: &PemFile, key: &PemFile) -> Result<Self, TlsError> {
        let chain = cert.certificates()?;
        let validity = Validity::of_chain(cert, &chain)?;
        let secret = key.private_key()?;
        let certified = CertifiedKey::from_der(chain, secret, &super::provider());
        let certified = certified.map_err(|error| key.wrong(key_error(error, &cert.path)))?;
        Ok(Self { certified, validity })
    }
}

fn key_error(error: rustls::Error, cert: &Path) -> Wrong {
    if matches!(error, rustls::Error::InconsistentKeys(_)) {
        return Wrong::OtherKey(cert.to_owned());
    }
    Wrong::UnusableKey(error)
}

/// When a chain counts: from its latest beginning to its earliest end. Seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub not_before: i64,
    pub not_after: i64,
}

/// From here on a certificate's end is worth a line in the log.
const SOON_S: i64 = 14 * 24 * 3600;

impl Validity {
    fn of_chain(file: &PemFile, chain: &[CertificateDer<'_>]) -> Result<Self, TlsError> {
        let mut all = Self {
            not_before: i64::MIN,
            not_after: i64::MAX,
        };
        for (at, certificate) in chain.iter().enumerate() {
            let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| {
                file.wrong(Wrong::BadCertificate {
                    number: at + 1,
                    reason: error.to_string(),
                })
            })?;
            let validity = parsed.validity();
            all.not_before = all.not_before.max(validity.not_before.timestamp());
            all.not_after = all.not_after.min(validity.not_after.timestamp());
        }
        Ok(all)
    }

    /// What an operator should know of it at `now`, if anything.
    #[must_use]
    pub fn warning(self, now: UnixMs) -> Option<String> {
        let now = i64::try_from(now / 1_000).unwrap_or(i64::MAX);
        let day =
            |seconds| jiff::Timestamp::from_second(seconds).map_or_else(|_| "?".into(), |at| at.to_string());
        if now >= self.not_after {
            return Some(format!(
                "expired on {}: the other side refuses it",
                day(self.not_after)
            ));
        }
        if now < self.not_before {
            return Some(format!(
                "is valid only from {} on: the other side refuses it until then; compare the clocks",
                day(self.not_before)
            ));
        }
        let soon = self.not_after - now < SOON_S;
        soon.then(|| format!("expires on {}", day(self.not_after)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertifiedKey as Made, generate_simple_self_signed};

    struct Place(tempfile::TempDir);

    impl Place {
        fn file(&self, key: &'static str, content: impl AsRef<[u8]>) -> PemFile {
            let path = self.0.path().join(key);
            std::fs::write(&path, content).expect("written");
            PemFile { key, path }
        }
    }

    fn made() -> (String, String) {
        let Made { cert, signing_key } = generate_simple_self_signed(["localhost".into()]).expect("made");
        (cert.pem(), signing_key.serialize_pem())
    }

    #[test]
    fn each_mistake_in_a_file_is_told_with_its_key_path_and_remedy() {
        let place = Place(tempfile::tempdir().expect("a directory"));
        let ((cert, key), (_, other)) = (made(), made());
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let huge = "x".repeat(usize::try_from(MAX_TLS_FILE_BYTES).expect("small") + 1);
        for (cert_text, key_text, parts) in [
            (cert.as_str(), other.as_str(), ["edge.tls.key", "belong together"]),
            (&cert, "", ["edge.tls.key", "no private key"]),
            (&cert, &cert, ["edge.tls.key", "no private key"]),
            (&cert, encrypted, ["edge.tls.key", "encrypted"]),
            (&key, &key, ["edge.tls.cert", "no certificate"]),
            (&cert[..cert.len() / 2], &key, ["edge.tls.cert", "not PEM"]),
            (broken, &key, ["edge.tls.cert", "certificate number 1"]),
            (&huge, &key, ["edge.tls.cert", "larger than"]),
        ] {
            let cert = place.file("edge.tls.cert", cert_text);
            let key = place.file("edge.tls.key", key_text);
            let error = Identity::read(&cert, &key).expect_err("refused").to_string();
            let path = place.0.path().display().to_string();
            assert!(
                error.contains(&path) && parts.iter().all(|part| error.contains(part)),
                "{error}"
            );
        }
        let missing = PemFile {
            key: "edge.tls.client_ca",
            path: place.0.path().join("nowhere"),
        };
        let error = missing.roots().expect_err("refused").to_string();
        assert!(
            error.contains("nowhere") && error.contains("correct the path"),
            "{error}"
        );
        let (cert, key) = (
            place.file("edge.tls.cert", &cert),
            place.file("edge.tls.key", &key),
        );
        Identity::read(&cert, &key).expect("the two that belong together");
        cert.roots()
            .expect("a certificate is one that others can be checked against");
    }

    #[test]
    fn a_certificate_is_warned_of_before_during_and_after_its_end() {
        let day = 24 * 3600;
        let validity = Validity {
            not_before: 10 * day,
            not_after: 100 * day,
        };
        let warning = |at: i64| validity.warning(u64::try_from(at * day * 1_000).expect("positive"));
        assert!(warning(9).is_some_and(|text| text.contains("only from 1970-01-11")));
        assert_eq!(warning(11), None);
        assert!(warning(87).is_some_and(|text| text.contains("expires on 1970-04-11")));
        assert!(warning(100).is_some_and(|text| text.contains("expired")));
    }
}
