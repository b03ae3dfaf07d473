//! Whom a client's certificate names: its subject alternative names, and its common name only where it
//! has none of those (as RFC 6125 has it).

use rustls::pki_types::CertificateDer;
use std::fmt;
use std::sync::Arc;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// One name of a certificate, as it is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClientName {
    /// A DNS name, in lower case; a wildcard is a name of its own and matches nothing else.
    Dns(String),
    /// A URI, as it is written (SPIFFE ids are).
    Uri(String),
    /// The subject's common name.
    Cn(String),
}

impl ClientName {
    /// A DNS name.
    #[must_use]
    pub fn dns(name: &str) -> Self {
        Self::Dns(name.trim_end_matches('.').to_ascii_lowercase())
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "dns {name}"),
            Self::Uri(name) => write!(f, "uri {name}"),
            Self::Cn(name) => write!(f, "cn {name}"),
        }
    }
}

/// The names of the certificate that the client showed and that `client_ca` vouches for; in each
/// request's extensions. `None`: it showed none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientCertificate(pub Option<Arc<[ClientName]>>);

impl ClientCertificate {
    /// Reads the first certificate of a verified chain. One that cannot be read has no names.
    #[must_use]
    pub fn of(chain: Option<&[CertificateDer<'_>]>) -> Self {
        let leaf = chain.and_then(<[_]>::first);
        Self(leaf.map(|leaf| names(leaf).into()))
    }
}

fn names(leaf: &CertificateDer<'_>) -> Vec<ClientName> {
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else {
        return Vec::new();
    };
    // A certificate whose alternative names cannot be read is not asked for its common name instead.
    let Ok(alternative) = parsed.subject_alternative_name() else {
        return Vec::new();
    };
    if let Some(alternative) = alternative {
        let names = alternative.value.general_names.iter();
        return names.filter_map(name).collect();
    }
    let common = parsed.subject().iter_common_name();
    common
        .filter_map(|name| name.as_str().ok())
        .map(|name| ClientName::Cn(name.to_owned()))
        .collect()
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "of the kinds of names that X.509 has, two name a client here"
)]
fn name(of: &GeneralName<'_>) -> Option<ClientName> {
    match of {
        GeneralName::DNSName(name) => Some(ClientName::dns(name)),
        GeneralName::URI(name) => Some(ClientName::Uri((*name).to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn names_of(cn: &str, alternative: Vec<SanType>) -> Vec<ClientName> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, cn);
        params.subject_alt_names = alternative;
        let cert = params
            .self_signed(&KeyPair::generate().expect("a key"))
            .expect("signed");
        let shown = ClientCertificate::of(Some(&[cert.der().clone()]));
        shown.0.expect("a certificate was shown").to_vec()
    }

    #[test]
    fn a_certificate_goes_by_its_alternative_names_and_by_its_common_name_only_without_them() {
        let dns = |name: &str| SanType::DnsName(name.try_into().expect("a name"));
        let uri = |name: &str| SanType::URI(name.try_into().expect("a name"));
        assert_eq!(
            names_of("acme", vec![dns("Agent.Acme.Example"), uri("spiffe://x/acme")]),
            [
                ClientName::Dns("agent.acme.example".into()),
                ClientName::Uri("spiffe://x/acme".into())
            ]
        );
        assert_eq!(names_of("acme", vec![]), [ClientName::Cn("acme".into())]);
        let address = SanType::IpAddress([127, 0, 0, 1].into());
        assert_eq!(
            names_of("acme", vec![address]),
            [],
            "a certificate with other names only names nobody"
        );
        assert_eq!(ClientCertificate::of(None), ClientCertificate(None));
    }
}
