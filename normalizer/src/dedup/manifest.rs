//! The manifest: which buckets count, and up to which offset they hold the log.
//!
//! # Bytes (little endian)
//! ```text
//!  0  u32  magic "SLD1"
//!  4  u32  layout version (1)
//!  8  u32  CRC-32C of the body
//! 12  u32  body length
//! 16  body: JSON of Manifest
//! ```
//! Replaced whole: `manifest.new` is written and synced, renamed over `manifest`, and the directory
//! synced. A reader therefore finds the old one or the new one. `manifest.new` never counts.

use super::error::StorageError;
use serde::{Deserialize, Serialize};
use sluice_common::clock::UnixMs;
use sluice_common::disk::Dir;
use sluice_common::failpoint::{self, Point};
use sluice_common::ids::{LogId, Offset, TenantId};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

const MAGIC: &[u8; 4] = b"SLD1";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
/// File name of the manifest.
pub(super) const NAME: &str = "manifest";
/// File name of one being written.
pub(super) const NEW_NAME: &str = "manifest.new";

/// The state on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) log: LogId,
    /// Tells whether the keys were hashed with the secret at hand, without telling the secret.
    pub(super) secret_check: u64,
    /// The buckets hold every record below this offset (down to a window before it).
    pub(super) applied: Offset,
    /// Append time of the last record below `applied`: no later record has an earlier time.
    pub(super) applied_ms: UnixMs,
    /// Id of the next bucket; ids are never used twice.
    pub(super) next_id: u64,
    /// Oldest first; their log ranges follow on each other.
    pub(super) buckets: Vec<BucketMeta>,
}

/// One sealed bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BucketMeta {
    /// Names the files `b-<id, 16 hex digits>.mdb` and `.filter`.
    pub(super) id: u64,
    pub(super) keys: u64,
    /// No entry is older; entries count their time from here.
    pub(super) min_ms: UnixMs,
    /// No entry is younger.
    pub(super) max_ms: UnixMs,
    pub(super) first: Offset,
    /// One past the last record.
    pub(super) end: Offset,
    /// Bytes of both files.
    pub(super) bytes: u64,
    /// CRC-32C of the whole LMDB file; none where an earlier release sealed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) crc: Option<u32>,
    /// Events appended in the bucket's range, by tenant (R9).
    pub(super) tenants: BTreeMap<TenantId, u64>,
}

impl Manifest {
    /// Reads the manifest of `dir`; none where there is none.
    ///
    /// # Errors
    /// [`StorageError`] where it cannot be read or is damaged.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>, StorageError> {
        let path = dir.join(NAME);
        match fs::read(&path) {
            Ok(bytes) => Self::decode(&bytes)
                .map(Some)
                .map_err(|what| StorageError::damaged(&path, what)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StorageError::io("read", &path)(error)),
        }
    }

    /// Replaces the manifest of `dir`, durably.
    ///
    /// # Errors
    /// [`StorageError::UnknownSwap`] where it was replaced but perhaps not durably; any other error
    /// left the old one in place.
    pub(super) fn store(&self, dir: &Dir) -> Result<(), StorageError> {
        let new = dir.join(NEW_NAME);
        let write = || -> io::Result<()> {
            let file = dir.disk.create(&new, 0o666)?;
            file.write_at(&self.encode(), 0)?;
            file.sync_all()?;
            failpoint::hit(Point::ManifestRename)?;
            dir.disk.rename(&new, &dir.join(NAME))
        };
        write().map_err(StorageError::io("write", &new))?;
        let synced = failpoint::hit(Point::ManifestRenamed).and_then(|()| dir.sync());
        synced.map_err(|source| StorageError::UnknownSwap {
            path: dir.path.clone(),
            source,
        })
    }

    fn encode(&self) -> Vec<u8> {
        let body = serde_json::to_vec(self).expect("numbers and checked names always serialise");
        let length = u32::try_from(body.len()).expect("at most a few buckets of 100,000 tenants");
        let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
        out.extend_from_slice(MAGIC);
        for word in [VERSION, crc32c::crc32c(&body), length] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&body);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (header, body) = bytes
            .split_at_checked(HEADER_BYTES)
            .ok_or_else(|| format!("{} bytes are no header", bytes.len()))?;
        if &header[..4] != MAGIC {
            return Err("it is not a dedup manifest".into());
        }
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if word(4) != VERSION {
            return Err(format!("layout version {} is not known to this release", word(4)));
        }
        if word(12) as usize != body.len() || word(8) != crc32c::crc32c(body) {
            return Err("length or checksum are wrong".into());
        }
        serde_json::from_slice(body).map_err(|error| format!("its body is not understood: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn manifest(numbers: [u64; 6], buckets: usize) -> Manifest {
        let meta = |id: u64| BucketMeta {
            id,
            keys: numbers[0],
            min_ms: numbers[1],
            max_ms: numbers[2],
            first: numbers[3],
            end: numbers[4],
            bytes: numbers[5],
            crc: Some(7),
            tenants: BTreeMap::from([(TenantId::new("acme").unwrap(), numbers[0])]),
        };
        Manifest {
            log: LogId(numbers[0]),
            secret_check: numbers[1],
            applied: numbers[2],
            applied_ms: numbers[3],
            next_id: numbers[4],
            buckets: (0..buckets as u64).map(meta).collect(),
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(numbers: [u64; 6], buckets in 0usize..8) {
            let written = manifest(numbers, buckets);
            prop_assert_eq!(Manifest::decode(&written.encode()), Ok(written));
        }

        #[test]
        fn a_flipped_bit_is_refused(at in 0usize..10_000, bit in 0u8..8) {
            let mut bytes = manifest([1, 2, 3, 4, 5, 6], 2).encode();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(Manifest::decode(&bytes).is_err());
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(Manifest::decode(&bytes).is_err());
        }
    }

    #[test]
    fn the_layout_is_frozen() {
        let bytes = manifest([1, 2, 3, 4, 5, 6], 1).encode();
        assert_eq!(&bytes[..8], b"SLD1\x01\0\0\0");
        let body = r#"{"log":1,"secret_check":2,"applied":3,"applied_ms":4,"next_id":5,"buckets":[{"id":0,"keys":1,"min_ms":2,"max_ms":3,"first":4,"end":5,"bytes":6,"crc":7,"tenants":{"acme":1}}]}"#;
        assert_eq!(std::str::from_utf8(&bytes[HEADER_BYTES..]).unwrap(), body);
    }

    #[test]
    fn a_bucket_that_was_sealed_before_there_were_checksums_is_read() {
        let mut before = manifest([1, 2, 3, 4, 5, 6], 1);
        before.buckets[0].crc = None;
        let bytes = before.encode();
        assert!(!bytes.windows(3).any(|window| window == b"crc"));
        assert_eq!(Manifest::decode(&bytes), Ok(before));
    }

    #[test]
    fn a_stored_manifest_replaces_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::load(dir.path()).unwrap(), None);
        for n in 1..3 {
            manifest([n; 6], 1).store(&dir.path().into()).unwrap();
        }
        assert_eq!(Manifest::load(dir.path()).unwrap(), Some(manifest([2; 6], 1)));
    }
}
