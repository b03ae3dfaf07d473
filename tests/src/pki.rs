//! A certificate authority of the tests: files as an operator would have them.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use std::path::{Path, PathBuf};

/// Signs certificates into a directory.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    name: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// One whose own certificate is `DIR/NAME.crt`.
    ///
    /// # Panics
    /// Where it cannot be made or written.
    #[must_use]
    pub fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let own = params.self_signed(&key).expect("signed");
        std::fs::write(dir.join(format!("{name}.crt")), own.pem()).expect("written");
        Self {
            dir: dir.to_owned(),
            name: name.to_owned(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Its own certificate.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(format!("{}.crt", self.name))
    }

    /// Signs a certificate of `names` for both sides of a connection; writes `NAME.crt` and `NAME.key`, each
    /// whole or not at all.
    ///
    /// # Panics
    /// Where it cannot be made or written.
    pub fn sign(&self, name: &str, names: Vec<SanType>) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = names;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.issuer).expect("signed");
        for (ending, text) in [("key", key.serialize_pem()), ("crt", signed.pem())] {
            let path = self.dir.join(format!("{name}.{ending}"));
            let fresh = path.with_extension("new");
            std::fs::write(&fresh, text).expect("written");
            std::fs::rename(&fresh, &path).expect("renamed");
        }
    }

    /// As [`Self::sign`], for `localhost` and 127.0.0.1.
    pub fn sign_local(&self, name: &str) {
        let names = vec![dns("localhost"), SanType::IpAddress([127, 0, 0, 1].into())];
        self.sign(name, names);
    }
}

/// A DNS name.
///
/// # Panics
/// Where it cannot be one.
#[must_use]
pub fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("a name"))
}
