//! API keys: made here, shown once, stored as hashes.

use sha2::{Digest, Sha256};
use sluice_common::process::Failure;

/// Random bytes of a key: 192 bits.
const SECRET_BYTES: usize = 24;

/// A new key, `slc_ID_SECRET`.
///
/// # Errors
/// Where the system has no random bytes.
pub fn fresh(tenant: &str) -> Result<String, Failure> {
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret).map_err(|error| Failure::new(format!("no random bytes: {error}")))?;
    Ok(format!("slc_{tenant}_{}", hex::encode(secret)))
}

/// A key as configs store it.
#[must_use]
pub fn hash(key: &str) -> String {
    hex::encode(Sha256::digest(key))
}
