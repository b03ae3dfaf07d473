//! The manifest: what is decided once when a log is made, and never changes.
//!
//! # Bytes (little endian, 72 in all)
//! ```text
//!  0  u32  magic "SLMF"
//!  4  u32  CRC-32C of bytes 8..72
//!  8  u16  layout version (1)
//! 10  u16  partitions (R4); 1 in the embedded log
//! 12  u32  zero
//! 16  u64  log id (R1), never 0
//! 24  u64  created, ms since the epoch
//! 32  32 B secret of the key hashes (R3)
//! 64  u64  zero
//! ```
//! Written as `manifest.new`, synced, renamed, directory synced: it is there whole or not at all.

use super::files::Files;
use sluice_common::clock::UnixMs;
use sluice_common::ids::LogId;
use std::io::{self, Read};

/// Name of the manifest in the log's directory.
pub const MANIFEST: &str = "manifest";
const MANIFEST_NEW: &str = "manifest.new";
/// Bytes of the manifest.
pub const MANIFEST_BYTES: usize = 72;

const MAGIC: u32 = u32::from_le_bytes(*b"SLMF");
const VERSION: u16 = 1;

/// The facts of a log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Manifest {
    pub log: LogId,
    pub partitions: u16,
    pub created_ms: UnixMs,
    pub hash_secret: [u8; 32],
}

/// Why bytes are not a manifest of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadManifest {
    #[error("it has {0} bytes where {MANIFEST_BYTES} were written")]
    Size(usize),
    #[error("it does not begin as one")]
    Magic,
    #[error("its checksum does not match")]
    Checksum,
    #[error("its layout version {0} is not known to this release: start the release that wrote it")]
    Version(u16),
    #[error("its log id is 0")]
    NoId,
}

impl std::fmt::Debug for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let facts = (self.log, self.partitions, self.created_ms);
        write!(f, "Manifest {facts:?} with a secret")
    }
}

impl Manifest {
    /// A manifest for a new log, with random id and secret.
    ///
    /// # Panics
    /// Where the operating system gives no random bytes: nothing safe can be done without them.
    #[must_use]
    pub fn fresh(now: UnixMs) -> Self {
        let mut random = [0; 40];
        let mut id = 0;
        while id == 0 {
            getrandom::fill(&mut random).expect("the operating system must give random bytes");
            id = u64_at(&random, 32);
        }
        let mut hash_secret = [0; 32];
        hash_secret.copy_from_slice(&random[..32]);
        Self {
            log: LogId(id),
            partitions: 1,
            created_ms: now,
            hash_secret,
        }
    }

    /// The manifest's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; MANIFEST_BYTES] {
        let mut bytes = [0; MANIFEST_BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.partitions.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.log.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.created_ms.to_le_bytes());
        bytes[32..64].copy_from_slice(&self.hash_secret);
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`BadManifest`]; never panics on any input.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadManifest> {
        if bytes.len() != MANIFEST_BYTES {
            return Err(BadManifest::Size(bytes.len()));
        }
        if bytes[..4] != MAGIC.to_le_bytes() {
            return Err(BadManifest::Magic);
        }
        if bytes[4..8] != crc32c::crc32c(&bytes[8..]).to_le_bytes() {
            return Err(BadManifest::Checksum);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != VERSION {
            return Err(BadManifest::Version(version));
        }
        let log = LogId(u64_at(bytes, 16));
        if log.0 == 0 {
            return Err(BadManifest::NoId);
        }
        let partitions = u16::from_le_bytes([bytes[10], bytes[11]]);
        let mut hash_secret = [0; 32];
        hash_secret.copy_from_slice(&bytes[32..64]);
        Ok(Self {
            log,
            partitions,
            created_ms: u64_at(bytes, 24),
            hash_secret,
        })
    }

    /// Writes the manifest so that it is there whole or not at all.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn store(&self, files: &Files) -> io::Result<()> {
        let file = files.create(MANIFEST_NEW)?;
        file.write_at(&self.encode(), 0)?;
        file.sync()?;
        files.rename(MANIFEST_NEW, MANIFEST)?;
        files.sync_dir()
    }

    /// Reads the manifest; `None` where there is none.
    ///
    /// # Errors
    /// The outer one is the file system's, the inner one says what is wrong with the bytes.
    pub fn load(files: &Files) -> io::Result<Option<Result<Self, BadManifest>>> {
        let file = match files.open_read(MANIFEST) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(4096).read_to_end(&mut bytes)?;
        Ok(Some(Self::decode(&bytes)))
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_on_disk_are_frozen() {
        let manifest = Manifest {
            log: LogId(0x0102),
            partitions: 1,
            created_ms: 3,
            hash_secret: [7; 32],
        };
        let mut golden = b"SLMF".to_vec();
        golden.extend([0x13, 0xbd, 0x73, 0xaa, 1, 0, 1, 0, 0, 0, 0, 0]);
        golden.extend([2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend([7; 32]);
        golden.extend([0; 8]);
        assert_eq!(manifest.encode().as_slice(), golden.as_slice());
    }

    #[test]
    fn a_newer_layout_is_refused() {
        let mut bytes = Manifest::fresh(1).encode();
        bytes[8] = 2;
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Manifest::decode(&bytes), Err(BadManifest::Version(2)));
    }

    #[test]
    fn fresh_ids_and_secrets_differ() {
        let (one, two) = (Manifest::fresh(1), Manifest::fresh(1));
        assert_ne!(one.log, two.log);
        assert_ne!(one.hash_secret, two.hash_secret);
    }

    proptest! {
        #[test]
        fn a_manifest_reads_back(log in 1u64.., partitions: u16, created_ms: u64, hash_secret: [u8; 32]) {
            let manifest = Manifest { log: LogId(log), partitions, created_ms, hash_secret };
            prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
        }

        #[test]
        fn any_flipped_bit_is_seen(bit in 0usize..MANIFEST_BYTES * 8) {
            let mut bytes = Manifest::fresh(1).encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Manifest::decode(&bytes).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Manifest::decode(&bytes);
        }
    }
}
