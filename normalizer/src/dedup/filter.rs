//! A sealed bucket's filter: says of most keys that they are not in the bucket, without touching it.
//!
//! It is split by the key's upper bits into binary fuse filters of about 256 K keys each, so that it is
//! built from the sorted entries as they stream by, in 8 MB whatever the bucket's size.
//!
//! # Bytes of `b-<id>.filter` (little endian)
//! ```text
//!  0  u32  magic "SLF1"
//!  4  u32  layout version (1)
//!  8  u64  bucket id
//! 16  u32  shards, a power of two
//! 20  u32  CRC-32C of bytes 0..20 and of the shard table
//! 24  shard table, 32 bytes each: u64 seed | u64 start | u32 length | u32 segment length
//!                                 | u32 segment count length | u32 CRC-32C of its fingerprints
//!     fingerprints of all shards
//! ```
//! A shard without keys has length 0; one whose construction failed has length `u32::MAX` and lets
//! every key through. The file is written once, synced before the manifest names the bucket, never
//! changed, and unlinked with it. A damaged one is rebuilt from the bucket at open.
//!
//! The newest filters are kept in memory, up to `dedup.memory`; of the others three single bytes
//! are read a probe, which the page cache serves: a filter is a twentieth of its bucket.

use super::error::StorageError;
use sluice_common::disk::{Disk, DiskFile};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use xorf::BinaryFuse8;

const MAGIC: u32 = u32::from_le_bytes(*b"SLF1");
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;
const SHARD_BYTES: usize = 32;
/// Keys of a shard where keys are spread evenly: built within the processor's cache.
const SHARD_KEYS: u64 = 1 << 18;
/// Shards of the largest filter: 17 G keys.
const MAX_SHARD_BITS: u32 = 16;
/// Length of a shard that lets every key through.
const EVERY_KEY: u32 = u32::MAX;

/// One shard's place and parameters.
#[derive(Debug, Clone, Copy, Default)]
struct Shard {
    seed: u64,
    /// First fingerprint, counted from the first of the file.
    start: u64,
    length: u32,
    segment_length: u32,
    segment_count_length: u32,
    crc: u32,
}

/// Writes a filter while the keys come by in ascending order.
pub(super) struct FilterWriter {
    out: BufWriter<DiskFile>,
    bucket: u64,
    bits: u32,
    shards: Vec<Shard>,
    /// Upper halves of the keys of the shard being collected, ascending, without repeats.
    folds: Vec<u64>,
    written: u64,
}

/// A filter that can be asked.
pub(super) struct Filter {
    file: File,
    bits: u32,
    shards: Vec<Shard>,
    /// Where the fingerprints begin in the file.
    body: u64,
    body_bytes: u64,
    resident: Option<Vec<u8>>,
}

impl FilterWriter {
    /// Begins a file for at most `keys` keys.
    pub(super) fn create(disk: &Disk, path: &Path, bucket: u64, keys: u64) -> io::Result<Self> {
        let bits = keys
            .div_ceil(SHARD_KEYS)
            .max(1)
            .next_power_of_two()
            .trailing_zeros()
            .min(MAX_SHARD_BITS);
        let mut out = BufWriter::with_capacity(1 << 20, disk.create(path, 0o666)?);
        out.seek(SeekFrom::Start(body_start(bits)))?;
        Ok(Self {
            out,
            bucket,
            bits,
            shards: Vec::new(),
            folds: Vec::new(),
            written: 0,
        })
    }

    /// Adds a key that is above all before.
    pub(super) fn push(&mut self, key: u128) -> io::Result<()> {
        let shard = shard_of(key, self.bits);
        while self.shards.len() < shard {
            self.finish_shard()?;
        }
        let fold = fold(key);
        if self.folds.last() != Some(&fold) {
            self.folds.push(fold);
        }
        Ok(())
    }

    fn finish_shard(&mut self) -> io::Result<()> {
        let mut shard = Shard {
            start: self.written,
            ..Shard::default()
        };
        if !self.folds.is_empty() {
            match BinaryFuse8::try_from(&self.folds) {
                Ok(built) => {
                    shard.seed = built.descriptor.seed;
                    shard.segment_length = built.descriptor.segment_length;
                    shard.segment_count_length = built.descriptor.segment_count_length;
                    shard.length = u32::try_from(built.fingerprints.len()).map_err(io::Error::other)?;
                    shard.crc = crc32c::crc32c(&built.fingerprints);
                    self.out.write_all(&built.fingerprints)?;
                    self.written += u64::from(shard.length);
                }
                Err(_) => shard.length = EVERY_KEY,
            }
        }
        self.shards.push(shard);
        self.folds.clear();
        Ok(())
    }

    /// Writes what is left and the header, and syncs the file. Returns its bytes.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        while self.shards.len() < 1 << self.bits {
            self.finish_shard()?;
        }
        let head = encode_head(self.bucket, &self.shards);
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&head)?;
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(head.len() as u64 + self.written)
    }
}

impl Filter {
    /// Opens the filter of `bucket` and checks all of it; it is not resident yet.
    ///
    /// # Errors
    /// [`StorageError`] where it cannot be read or is not what was written.
    pub(super) fn open(path: &Path, bucket: u64) -> Result<Self, StorageError> {
        let io = |error| StorageError::io("read", path)(error);
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut head = vec![0; HEADER_BYTES];
        file.read_exact_at(&mut head, 0).map_err(io)?;
        let bits = sound_head(&head, bucket)
            .ok_or_else(|| StorageError::damaged(path, "no filter of this bucket"))?;
        head.resize(body_start(bits) as usize, 0);
        file.read_exact_at(&mut head, 0).map_err(io)?;
        let shards =
            decode_shards(&head).ok_or_else(|| StorageError::damaged(path, "the shard table is wrong"))?;
        let body = body_start(bits);
        let filter = Self {
            file,
            bits,
            shards,
            body,
            body_bytes: length.saturating_sub(body),
            resident: None,
        };
        filter.check(path)?;
        Ok(filter)
    }

    /// Reads every fingerprint once and compares checksums.
    fn check(&self, path: &Path) -> Result<(), StorageError> {
        let mut bytes = Vec::new();
        for shard in self
            .shards
            .iter()
            .filter(|shard| shard.length != 0 && shard.length != EVERY_KEY)
        {
            let end = u64::from(shard.segment_count_length) + 2 * u64::from(shard.segment_length);
            if end > u64::from(shard.length) || shard.start + u64::from(shard.length) > self.body_bytes {
                return Err(StorageError::damaged(path, "a shard lies outside the file"));
            }
            bytes.resize(shard.length as usize, 0);
            self.file
                .read_exact_at(&mut bytes, self.body + shard.start)
                .map_err(StorageError::io("read", path))?;
            if crc32c::crc32c(&bytes) != shard.crc {
                return Err(StorageError::damaged(path, "a shard's checksum is wrong"));
            }
        }
        Ok(())
    }

    /// Whether the key may be in the bucket; `false` is certain. A byte that cannot be read counts
    /// as "may be": the bucket itself decides.
    pub(super) fn may_contain(&self, key: u128) -> bool {
        let shard = &self.shards[shard_of(key, self.bits)];
        if shard.length == 0 || shard.length == EVERY_KEY {
            return shard.length == EVERY_KEY;
        }
        let (print, places) = shard.places(fold(key));
        let mut found = print;
        for place in places {
            match self.byte(shard.start + u64::from(place)) {
                Some(byte) => found ^= byte,
                None => return true,
            }
        }
        found == 0
    }

    fn byte(&self, at: u64) -> Option<u8> {
        if let Some(bytes) = &self.resident {
            return bytes.get(at as usize).copied();
        }
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, self.body + at).ok()?;
        Some(byte[0])
    }

    /// Bytes that residence takes.
    pub(super) fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// Bytes held in memory now.
    pub(super) fn resident_bytes(&self) -> u64 {
        self.resident.as_ref().map_or(0, |bytes| bytes.len() as u64)
    }

    /// Takes the fingerprints into memory, or lets them go. A failed read leaves them on disk.
    pub(super) fn set_resident(&mut self, resident: bool) {
        if !resident {
            self.resident = None;
        } else if self.resident.is_none() {
            let mut bytes = vec![0; self.body_bytes as usize];
            let read = self.file.read_exact_at(&mut bytes, self.body);
            self.resident = read.ok().map(|()| bytes);
        }
    }
}

impl Shard {
    /// The fingerprint of a fold and the three places whose XOR equals it where it is a member: the
    /// query side of `xorf::BinaryFuse8`, which can only be asked with all fingerprints in memory.
    fn places(&self, fold: u64) -> (u8, [u32; 3]) {
        let hash = mix64(fold.wrapping_add(self.seed));
        let mask = self.segment_length - 1;
        let first = ((u128::from(hash) * u128::from(self.segment_count_length)) >> 64) as u32;
        let second = (first + self.segment_length) ^ ((hash >> 18) as u32 & mask);
        let third = (first + 2 * self.segment_length) ^ (hash as u32 & mask);
        ((hash ^ (hash >> 32)) as u8, [first, second, third])
    }
}

/// MurmurHash3's finalizer, as xorf uses it.
fn mix64(mut k: u64) -> u64 {
    k = (k ^ (k >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    k = (k ^ (k >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    k ^ (k >> 33)
}

/// 64 of the key's 128 uniform bits; two keys that share them are one to the filter.
fn fold(key: u128) -> u64 {
    (key >> 64) as u64
}

fn shard_of(key: u128, bits: u32) -> usize {
    if bits == 0 {
        0
    } else {
        (key >> (128 - bits)) as usize
    }
}

fn body_start(bits: u32) -> u64 {
    (HEADER_BYTES + (SHARD_BYTES << bits)) as u64
}

fn encode_head(bucket: u64, shards: &[Shard]) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEADER_BYTES + shards.len() * SHARD_BYTES);
    head.extend_from_slice(&MAGIC.to_le_bytes());
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&bucket.to_le_bytes());
    head.extend_from_slice(&(shards.len() as u32).to_le_bytes());
    head.extend_from_slice(&[0; 4]);
    for shard in shards {
        head.extend_from_slice(&shard.seed.to_le_bytes());
        head.extend_from_slice(&shard.start.to_le_bytes());
        for word in [
            shard.length,
            shard.segment_length,
            shard.segment_count_length,
            shard.crc,
        ] {
            head.extend_from_slice(&word.to_le_bytes());
        }
    }
    let crc = head_crc(&head);
    head[20..24].copy_from_slice(&crc.to_le_bytes());
    head
}

fn head_crc(head: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&head[..20]), &head[HEADER_BYTES..])
}

/// The shard bits of a header of `bucket`, where it can be one.
fn sound_head(head: &[u8], bucket: u64) -> Option<u32> {
    let shards = u32_at(head, 16);
    let sound = u32_at(head, 0) == MAGIC
        && u32_at(head, 4) == VERSION
        && u64_at(head, 8) == bucket
        && shards.is_power_of_two()
        && shards <= 1 << MAX_SHARD_BITS;
    sound.then(|| shards.trailing_zeros())
}

fn decode_shards(head: &[u8]) -> Option<Vec<Shard>> {
    if u32_at(head, 20) != head_crc(head) {
        return None;
    }
    let shard = |bytes: &[u8]| Shard {
        seed: u64_at(bytes, 0),
        start: u64_at(bytes, 8),
        length: u32_at(bytes, 16),
        segment_length: u32_at(bytes, 20),
        segment_count_length: u32_at(bytes, 24),
        crc: u32_at(bytes, 28),
    };
    Some(
        head[HEADER_BYTES..]
            .chunks_exact(SHARD_BYTES)
            .map(shard)
            .collect(),
    )
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::SmallRng};
    use xorf::Filter as _;

    fn keys(count: usize, seed: u64) -> Vec<u128> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut keys: Vec<u128> = (0..count).map(|_| random.random()).collect();
        keys.sort_unstable();
        keys
    }

    fn written(keys: &[u128]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut writer = FilterWriter::create(&Disk::default(), &path, 7, keys.len() as u64).unwrap();
        keys.iter().for_each(|key| writer.push(*key).unwrap());
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes, path.metadata().unwrap().len());
        (dir, path)
    }

    #[test]
    fn members_always_pass_and_others_rarely_in_memory_and_on_disk() {
        for count in [0, 1, 2, 3, 1_000, 600_000] {
            let members = keys(count, 1);
            let (_dir, path) = written(&members);
            let mut filter = Filter::open(&path, 7).unwrap();
            for resident in [false, true] {
                filter.set_resident(resident);
                assert!(
                    members.iter().step_by(37).all(|key| filter.may_contain(*key)),
                    "{count} {resident}"
                );
                let passed = keys(20_000, 2)
                    .iter()
                    .filter(|key| filter.may_contain(**key))
                    .count();
                assert!(
                    passed < 200,
                    "{passed} of 20,000 strangers passed a filter of {count}"
                );
            }
        }
    }

    #[test]
    fn our_query_answers_as_the_library_does() {
        let folds: Vec<u64> = keys(5_000, 3).iter().map(|key| fold(*key)).collect();
        let built = BinaryFuse8::try_from(&folds).unwrap();
        let shard = Shard {
            seed: built.descriptor.seed,
            segment_length: built.descriptor.segment_length,
            segment_count_length: built.descriptor.segment_count_length,
            ..Shard::default()
        };
        for fold in keys(50_000, 4).iter().map(|key| fold(*key)).chain(folds) {
            let (print, places) = shard.places(fold);
            let ours = places
                .iter()
                .fold(print, |found, at| found ^ built.fingerprints[*at as usize])
                == 0;
            assert_eq!(ours, built.contains(&fold));
        }
    }

    #[test]
    fn any_flipped_byte_or_another_bucket_is_refused() {
        let (_dir, path) = written(&keys(300, 5));
        let good = std::fs::read(&path).unwrap();
        assert!(Filter::open(&path, 8).is_err());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, &bad).unwrap();
            assert!(Filter::open(&path, 7).is_err(), "byte {at}");
        }
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(Filter::open(&path, 7).is_err());
    }
}
