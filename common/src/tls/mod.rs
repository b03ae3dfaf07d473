//! TLS: what a listener shows, what a client trusts, and how both change without a restart.
//!
//! | module | holds |
//! |---|---|
//! | [`material`] | PEM files, read and checked; what is wrong with one, in a sentence |
//! | [`server`] | a listener's side: the handshake within its bounds |
//! | [`client`] | a client's side: connections for pools |
//! | [`crowd`] | handshakes under way: bounded, the oldest goes first |
//! | [`certificate`] | whom a client's certificate names |
//! | [`reload`] | watches the files; a bad one is refused whole |
//!
//! TLS 1.2 and 1.3 as rustls has them: no renegotiation, no early data, no RSA key exchange, no CBC.

pub mod certificate;
pub mod client;
mod crowd;
pub mod material;
pub mod reload;
pub mod server;

pub use certificate::{ClientCertificate, ClientName};
pub use client::ClientTls;
pub use material::{PemFile, TlsError};
pub use server::{Clients, ServerTls};

use rustls::crypto::CryptoProvider;
use std::sync::Arc;

/// The one crypto provider of all our TLS, never a process-wide default: a library that installs
/// another cannot change what we speak.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
