//! A sealed bucket: one LMDB environment, written once, then only read. The only module that names LMDB.
//!
//! # Bytes of `b-<id>.mdb`
//! One database: the first key of a block (16 bytes, big endian, so that byte order is numeric order) →
//! the block: the keys (16 bytes each, big endian, ascending), then for each key, in the same order,
//! u32 milliseconds since the bucket's `min_ms` and u32 fingerprint (little endian).
//! A full block has 170 entries: 4,080 bytes, which with LMDB's page header of 16 is one whole page
//! outside the tree. So an entry takes 24.3 bytes where one LMDB record each takes 34.4, and the
//! tree above has one node for 170 keys and stays in the processor's reach.
//!
//! Written in order (`MDB_APPEND`) in transactions of 16 MB without syncs, then synced once; the
//! manifest names it only after that. Never `WRITE_MAP`: a full disk is an error, not a SIGBUS.
//! The manifest keeps the file's checksum, and a start compares it before LMDB sees a byte: LMDB has no checksums,
//! trusts what a page says of others, and maps the file. A flipped bit could make a new key a repeat, and a page
//! number gone astray, or a file that was cut, end the process with a signal.
//! No LMDB lock file: the directory's lock keeps other processes out, and nobody writes once it is read.

use super::entry::{Entry, Seen};
use super::error::StorageError;
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, PutFlags, RoTxn, WithoutTls};
use sluice_common::clock::UnixMs;
use sluice_common::disk::Disk;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Entries of a full block.
const BLOCK_ENTRIES: usize = 170;
const KEY_BYTES: usize = 16;
const ENTRY_BYTES: usize = 24;
/// Blocks of one transaction: 16 MB of dirty pages.
const TXN_BLOCKS: usize = 4_096;
/// Bytes of a bucket that are read at once to check it.
const CHECK_BYTES: usize = 1 << 20;
/// Map sizes are multiples of this: every page size in use divides it.
const MAP_STEP: u64 = 1 << 16;

const _: () = assert!(BLOCK_ENTRIES * ENTRY_BYTES + 16 == 4_096);

type Blocks = Database<'static, Bytes, Bytes>;

/// Loads entries that come in ascending order.
pub(super) struct BucketWriter {
    disk: Disk,
    path: PathBuf,
    env: Env<WithoutTls>,
    blocks: Blocks,
    min_ms: UnixMs,
    /// Entries of the transaction being collected.
    pending: Vec<Entry>,
}

/// A bucket that can be asked.
pub(super) struct BucketReader {
    path: PathBuf,
    min_ms: UnixMs,
    blocks: Blocks,
    /// One snapshot for the reader's life: the environment never changes, so it holds nothing back.
    snapshot: RoTxn<'static, WithoutTls>,
    env: Env<WithoutTls>,
}

impl BucketWriter {
    /// Begins an environment at `path` with room for `keys` entries, none older than `min_ms`.
    pub(super) fn create(disk: &Disk, path: &Path, keys: u64, min_ms: UnixMs) -> Result<Self, StorageError> {
        disk.fill(path).map_err(StorageError::io("create", path))?;
        let env = open_env(path, map_size(keys), EnvFlags::NO_SYNC)?;
        let made = || -> heed::Result<Blocks> {
            let txn = env.write_txn()?;
            env.create_databases_and_commit(txn, |opener, txn| {
                opener
                    .create_database(txn, None)
                    .map(CommitOrAbort::<_, ()>::Commit)
            })
            .map(CommitOrAbort::unwrap_commit)
        };
        let blocks = made().map_err(lmdb("create", path))?;
        let pending = Vec::with_capacity(pending_capacity(keys));
        Ok(Self {
            disk: disk.clone(),
            path: path.to_owned(),
            env,
            blocks,
            min_ms,
            pending,
        })
    }

    /// Adds an entry above all before it.
    pub(super) fn push(&mut self, entry: Entry) -> Result<(), StorageError> {
        self.pending.push(entry);
        if self.pending.len() == TXN_BLOCKS * BLOCK_ENTRIES {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        let write = || -> heed::Result<()> {
            let mut txn = self.env.write_txn()?;
            let mut block = Vec::with_capacity(BLOCK_ENTRIES * ENTRY_BYTES);
            for entries in self.pending.chunks(BLOCK_ENTRIES) {
                encode_block(entries, self.min_ms, &mut block);
                let first = entries[0].key.to_be_bytes();
                self.blocks
                    .put_with_flags(&mut txn, PutFlags::APPEND, &first, &block)?;
            }
            txn.commit()
        };
        write().map_err(lmdb("write", &self.path))?;
        self.pending.clear();
        Ok(())
    }

    /// Writes what is left, closes the environment and syncs its file. Returns its bytes and their checksum.
    pub(super) fn finish(mut self) -> Result<(u64, u32), StorageError> {
        self.flush()?;
        let Self { disk, path, env, .. } = self;
        drop(env);
        let bytes = disk.sync(&path).map_err(StorageError::io("sync", &path))?;
        Ok((bytes, checksum(&path)?))
    }
}

impl BucketReader {
    /// Opens a finished bucket of `keys` entries.
    ///
    /// # Errors
    /// [`StorageError`] where it is missing, is no LMDB environment or has another number of blocks.
    pub(super) fn open(path: &Path, keys: u64, min_ms: UnixMs) -> Result<Self, StorageError> {
        let env = open_env(path, map_size(keys), EnvFlags::READ_ONLY)?;
        let opened = || -> heed::Result<(Option<Blocks>, RoTxn<'static, WithoutTls>)> {
            let txn = env.read_txn()?;
            let blocks = env
                .open_databases_and_commit(txn, |opener, txn| -> heed::Result<_> {
                    opener
                        .open_database(txn, None)
                        .map(CommitOrAbort::<_, ()>::Commit)
                })
                .map(CommitOrAbort::unwrap_commit)?;
            Ok((blocks, env.clone().static_read_txn()?))
        };
        let (blocks, snapshot) = opened().map_err(lmdb("open", path))?;
        let blocks = blocks.ok_or_else(|| StorageError::damaged(path, "it has no database"))?;
        let reader = Self {
            path: path.to_owned(),
            min_ms,
            blocks,
            snapshot,
            env,
        };
        let found = reader.blocks.len(&reader.snapshot).map_err(lmdb("open", path))?;
        if found != keys.div_ceil(BLOCK_ENTRIES as u64) {
            return Err(StorageError::damaged(
                path,
                format!("{found} blocks cannot hold {keys} keys"),
            ));
        }
        Ok(reader)
    }

    /// The latest copy of `key` in this bucket.
    pub(super) fn find(&self, key: u128) -> Result<Option<Seen>, StorageError> {
        let wanted = key.to_be_bytes();
        let found = self
            .blocks
            .get_lower_than_or_equal_to(&self.snapshot, &wanted)
            .map_err(lmdb("read", &self.path))?;
        let Some((_, block)) = found else { return Ok(None) };
        let count = self.count(block)?;
        let (keys, values) = block.split_at(count * KEY_BYTES);
        let (keys, _) = keys.as_chunks::<KEY_BYTES>();
        Ok(keys.binary_search(&wanted).ok().map(|at| {
            let value = &values[at * 8..at * 8 + 8];
            Seen {
                at_ms: self.min_ms + u64::from(u32_at(value, 0)),
                fingerprint: u32_at(value, 4),
            }
        }))
    }

    /// Walks over all entries, ascending, with a snapshot of its own: for another thread.
    pub(super) fn scan(&self) -> BucketScan {
        BucketScan {
            path: self.path.clone(),
            min_ms: self.min_ms,
            blocks: self.blocks,
            env: self.env.clone(),
        }
    }

    fn count(&self, block: &[u8]) -> Result<usize, StorageError> {
        entries_of(block, &self.path)
    }
}

/// A bucket's entries in key order.
#[derive(Clone)]
pub(super) struct BucketScan {
    path: PathBuf,
    min_ms: UnixMs,
    blocks: Blocks,
    env: Env<WithoutTls>,
}

impl BucketScan {
    /// Begins the walk; blocks are read as it goes.
    pub(super) fn entries(&self) -> Result<Entries<'_>, StorageError> {
        let snapshot = self.env.read_txn().map_err(lmdb("read", &self.path))?;
        Ok(Entries {
            scan: self,
            snapshot,
            block: Vec::new().into_iter(),
            last: None,
            done: false,
        })
    }

    fn block_after(
        &self,
        snapshot: &RoTxn<'_, WithoutTls>,
        last: Option<u128>,
    ) -> Result<Option<Vec<Entry>>, StorageError> {
        let found = match last {
            None => self.blocks.first(snapshot),
            Some(key) => self.blocks.get_greater_than(snapshot, &key.to_be_bytes()),
        };
        let Some((_, block)) = found.map_err(lmdb("read", &self.path))? else {
            return Ok(None);
        };
        entries_of(block, &self.path).map(|count| Some(decode_block(block, count, self.min_ms)))
    }
}

/// Iterator over a bucket's entries; ends after the first error.
pub(super) struct Entries<'scan> {
    scan: &'scan BucketScan,
    snapshot: RoTxn<'scan, WithoutTls>,
    block: std::vec::IntoIter<Entry>,
    last: Option<u128>,
    done: bool,
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.block.next() {
                self.last = Some(entry.key);
                return Some(Ok(entry));
            }
            if self.done {
                return None;
            }
            match self.scan.block_after(&self.snapshot, self.last) {
                Ok(Some(block)) => self.block = block.into_iter(),
                Ok(None) => self.done = true,
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

fn open_env(path: &Path, map_size: usize, flags: EnvFlags) -> Result<Env<WithoutTls>, StorageError> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(map_size);
    let flags = flags | EnvFlags::NO_SUB_DIR | EnvFlags::NO_LOCK | EnvFlags::NO_READ_AHEAD;
    #[expect(
        unsafe_code,
        reason = "LMDB maps the file: the directory's lock keeps other processes from changing it"
    )]
    let opened = unsafe {
        options.flags(flags);
        options.open(path)
    };
    opened.map_err(lmdb("open", path))
}

/// That the file is, to the bit, the one whose checksum was taken when it was sealed. Reads all of it.
///
/// # Errors
/// [`StorageError`] where it is not, or cannot be read.
pub(super) fn check(path: &Path, sealed: u32) -> Result<(), StorageError> {
    if checksum(path)? == sealed {
        Ok(())
    } else {
        Err(StorageError::damaged(path, "its checksum is wrong"))
    }
}

/// CRC-32C of a file.
fn checksum(path: &Path) -> Result<u32, StorageError> {
    let read = || -> io::Result<u32> {
        let mut file = File::open(path)?;
        let (mut piece, mut crc) = (vec![0; CHECK_BYTES], 0);
        loop {
            let read = file.read(&mut piece)?;
            if read == 0 {
                return Ok(crc);
            }
            crc = crc32c::crc32c_append(crc, &piece[..read]);
        }
    };
    read().map_err(StorageError::io("check", path))
}

/// Address space for `keys` entries: blocks, a tree above them and pages freed between transactions.
fn map_size(keys: u64) -> usize {
    let blocks = keys.div_ceil(BLOCK_ENTRIES as u64);
    let bytes = blocks * (4_096 + 128) + (blocks >> 4) * 4_096 + (1 << 20);
    bytes.next_multiple_of(MAP_STEP) as usize
}

fn pending_capacity(keys: u64) -> usize {
    usize::try_from(keys)
        .unwrap_or(usize::MAX)
        .min(TXN_BLOCKS * BLOCK_ENTRIES)
}

fn lmdb(doing: &'static str, path: &Path) -> impl FnOnce(heed::Error) -> StorageError {
    move |source| StorageError::Lmdb {
        doing,
        path: path.to_owned(),
        source: Box::new(source),
    }
}

fn encode_block(entries: &[Entry], min_ms: UnixMs, out: &mut Vec<u8>) {
    out.clear();
    entries
        .iter()
        .for_each(|entry| out.extend_from_slice(&entry.key.to_be_bytes()));
    for entry in entries {
        let offset = u32::try_from(entry.at_ms - min_ms).expect("a bucket spans less than 49 days");
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&entry.fingerprint.to_le_bytes());
    }
}

fn entries_of(block: &[u8], path: &Path) -> Result<usize, StorageError> {
    if block.is_empty() || !block.len().is_multiple_of(ENTRY_BYTES) {
        return Err(StorageError::damaged(
            path,
            format!("a block of {} bytes", block.len()),
        ));
    }
    Ok(block.len() / ENTRY_BYTES)
}

fn decode_block(block: &[u8], count: usize, min_ms: UnixMs) -> Vec<Entry> {
    let (keys, values) = block.split_at(count * KEY_BYTES);
    let (keys, _) = keys.as_chunks::<KEY_BYTES>();
    let entry = |(key, value): (&[u8; KEY_BYTES], &[u8])| Entry {
        key: u128::from_be_bytes(*key),
        at_ms: min_ms + u64::from(u32_at(value, 0)),
        fingerprint: u32_at(value, 4),
    };
    keys.iter().zip(values.chunks_exact(8)).map(entry).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u64) -> Entry {
        Entry {
            key: u128::from(n) << 90 | u128::from(n),
            at_ms: 1_000 + n % 7,
            fingerprint: n as u32,
        }
    }

    fn bucket(count: u64) -> (tempfile::TempDir, BucketReader, u64) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.mdb");
        let mut writer = BucketWriter::create(&Disk::default(), &path, count, 1_000).unwrap();
        (1..=count).for_each(|n| writer.push(entry(n)).unwrap());
        let (bytes, _) = writer.finish().unwrap();
        let reader = BucketReader::open(&path, count, 1_000).unwrap();
        (dir, reader, bytes)
    }

    #[test]
    fn every_entry_is_found_and_nothing_else() {
        for count in [1, 169, 170, 171, 5_000] {
            let (_dir, reader, _) = bucket(count);
            for n in 1..=count {
                let Entry {
                    key,
                    at_ms,
                    fingerprint,
                } = entry(n);
                assert_eq!(reader.find(key).unwrap(), Some(Seen { at_ms, fingerprint }));
                assert_eq!(reader.find(key + 1).unwrap(), None);
                assert_eq!(reader.find(key - 1).unwrap(), None);
            }
            assert_eq!(reader.find(0).unwrap(), None);
            assert_eq!(reader.find(u128::MAX).unwrap(), None);
            let scan = reader.scan();
            let scanned: Vec<Entry> = scan.entries().unwrap().map(Result::unwrap).collect();
            assert_eq!(scanned, (1..=count).map(entry).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_entry_takes_less_than_25_bytes_across_transactions() {
        let count = (TXN_BLOCKS * BLOCK_ENTRIES) as u64 + 200_000;
        let (_dir, reader, bytes) = bucket(count);
        assert!(bytes < count * 25, "{bytes} bytes for {count} keys");
        assert!(reader.find(entry(count).key).unwrap().is_some());
    }

    #[test]
    fn a_bucket_that_is_missing_or_cut_is_refused() {
        let (dir, reader, _) = bucket(1_000);
        drop(reader);
        let path = dir.path().join("b.mdb");
        assert!(BucketReader::open(&dir.path().join("none.mdb"), 1, 0).is_err());
        assert!(BucketReader::open(&path, 2_000, 1_000).is_err());
        std::fs::write(&path, b"not LMDB").unwrap();
        assert!(BucketReader::open(&path, 1_000, 1_000).is_err());
    }
}
