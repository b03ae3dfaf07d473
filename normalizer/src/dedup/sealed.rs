//! A sealed bucket with its filter, as the decision probes it, and the files it is made of.

use super::bucket::{self, BucketReader, BucketScan};
use super::entry::Seen;
use super::error::StorageError;
use super::filter::{Filter, FilterWriter};
use super::manifest::BucketMeta;
use sluice_common::disk::Dir;
use std::path::PathBuf;

/// A bucket on disk, open.
pub(super) struct Sealed {
    pub(super) meta: BucketMeta,
    reader: BucketReader,
    filter: Filter,
}

impl Sealed {
    /// As [`Self::open`], once every byte of the bucket is known to be as it was sealed.
    ///
    /// # Errors
    /// [`StorageError`], also where it is not.
    pub(super) fn check_and_open(dir: &Dir, meta: BucketMeta) -> Result<Self, StorageError> {
        if let Some(sealed) = meta.crc {
            bucket::check(&data_path(dir, meta.id), sealed)?;
        }
        Self::open(dir, meta)
    }

    /// Opens both files of a bucket. A filter that is missing or damaged is made anew.
    ///
    /// # Errors
    /// [`StorageError`] where the bucket itself cannot be read, or the filter not be written.
    pub(super) fn open(dir: &Dir, meta: BucketMeta) -> Result<Self, StorageError> {
        let reader = BucketReader::open(&data_path(dir, meta.id), meta.keys, meta.min_ms)?;
        let path = filter_path(dir, meta.id);
        let filter = match Filter::open(&path, meta.id) {
            Ok(filter) => filter,
            Err(error) => {
                tracing::warn!(bucket = meta.id, %error, "rebuilding a dedup filter");
                rebuild_filter(dir, &meta, &reader.scan())?;
                Filter::open(&path, meta.id)?
            }
        };
        Ok(Self { meta, reader, filter })
    }

    /// The latest copy of `key` in the bucket: the filter's "no" is final, its "yes" is confirmed.
    pub(super) fn find(&self, key: u128) -> Result<Option<Seen>, StorageError> {
        if self.filter.may_contain(key) {
            self.reader.find(key)
        } else {
            Ok(None)
        }
    }

    pub(super) fn scan(&self) -> BucketScan {
        self.reader.scan()
    }

    /// Keeps the filter in memory or not, see [`Filter::set_resident`].
    pub(super) fn set_resident(&mut self, resident: bool) {
        self.filter.set_resident(resident);
    }

    /// Bytes that the filter would take in memory, and takes now.
    pub(super) fn filter_bytes(&self) -> (u64, u64) {
        (self.filter.body_bytes(), self.filter.resident_bytes())
    }
}

fn rebuild_filter(dir: &Dir, meta: &BucketMeta, scan: &BucketScan) -> Result<(), StorageError> {
    let (path, new) = (
        filter_path(dir, meta.id),
        dir.join(format!("{}.filter.new", stem(meta.id))),
    );
    let io = StorageError::io;
    let mut writer = FilterWriter::create(&dir.disk, &new, meta.id, meta.keys).map_err(io("write", &new))?;
    for entry in scan.entries()? {
        writer.push(entry?.key).map_err(io("write", &new))?;
    }
    writer.finish().map_err(io("write", &new))?;
    dir.disk.rename(&new, &path).map_err(io("replace", &path))?;
    dir.sync().map_err(io("sync", &dir.path))
}

/// The bucket's LMDB file.
pub(super) fn data_path(dir: &Dir, id: u64) -> PathBuf {
    dir.join(format!("{}.mdb", stem(id)))
}

/// The bucket's filter file.
pub(super) fn filter_path(dir: &Dir, id: u64) -> PathBuf {
    dir.join(format!("{}.filter", stem(id)))
}

fn stem(id: u64) -> String {
    format!("b-{id:016x}")
}

/// The id in a name that one of our bucket files has, finished or not; none for any other name.
pub(super) fn id_of(name: &str) -> Option<u64> {
    let (hex, kind) = name.strip_prefix("b-")?.split_once('.')?;
    let ours = matches!(kind, "mdb" | "filter" | "filter.new") && hex.len() == 16;
    ours.then(|| u64::from_str_radix(hex, 16).ok())?
}

/// Unlinks a bucket's files, as far as they are there. What stays is an orphan, removed at the next open.
pub(super) fn remove_files(dir: &Dir, id: u64) {
    for path in [data_path(dir, id), filter_path(dir, id)] {
        match dir.disk.remove(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "could not unlink a dedup bucket"),
        }
    }
}
