//! What happens beside the decisions: sealing, merging, expiry, and the manifest swap that makes each
//! of them count. All of it is driven by [`Dedup::committed`]; the heavy part runs in `work.rs`.

use super::error::{DedupError, StorageError};
use super::manifest::{BucketMeta, Manifest};
use super::sealed::{self, Sealed};
use super::work::{Job, MergeInput};
use super::{Dedup, plan};
use sluice_common::clock::UnixMs;
use sluice_common::failpoint::{self, Point};
use sluice_common::ids::Offset;
use sluice_common::limits::{SEALED_BUCKET_BYTES, SEALED_KEY_BYTES};
use std::sync::Arc;

/// Most commits that pass between two attempts after failures.
const MAX_WAIT_COMMITS: u32 = 64;

/// What went wrong lately, and how long to wait.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    pub(super) over_limit: bool,
    pub(super) last_error: Option<String>,
    failures: u32,
    /// Calls of `committed` to let pass before the next attempt.
    wait: u32,
}

impl Trouble {
    fn note(&mut self, error: &StorageError) {
        tracing::warn!(%error, "a dedup bucket could not be written; it stays in memory and is tried again");
        self.failures = self.failures.saturating_add(1);
        self.wait = 1_u32
            .checked_shl(self.failures)
            .map_or(MAX_WAIT_COMMITS, |wait| wait.min(MAX_WAIT_COMMITS));
        self.last_error = Some(error.to_string());
    }

    fn clear(&mut self) {
        *self = Self {
            over_limit: self.over_limit,
            ..Self::default()
        };
    }

    /// Why frozen buckets wait, for the message of a stall.
    pub(super) fn why(&self) -> String {
        match &self.last_error {
            _ if self.over_limit => "dedup.max_bytes is reached: raise it, or shorten dedup windows".into(),
            Some(error) => error.clone(),
            None => "the committed offset or the disk lags behind".into(),
        }
    }
}

/// A change of the sealed buckets, to be made durable by one manifest swap.
struct Swap {
    applied: (Offset, UnixMs),
    bucket: Sealed,
    replaces: Vec<u64>,
}

impl Dedup {
    /// To be called after each commit, and every second or so while stalled: every record below
    /// `offset` is settled. Takes finished background work, and starts what is due. Blocks only for
    /// the manifest swap.
    ///
    /// # Errors
    /// Only where the state on disk is unknown: a swap that may not be durable. A full disk is no
    /// error here, see [`super::DedupStats::last_error`].
    pub fn committed(&mut self, offset: Offset) -> Result<(), DedupError> {
        if let Some(job) = self.seal.take_if(|job| job.is_done()) {
            self.take_seal(job)?;
        }
        if let Some(job) = self.merge.take_if(|job| job.is_done()) {
            self.take_merge(job)?;
        }
        if self.trouble.wait > 0 {
            self.trouble.wait -= 1;
            return Ok(());
        }
        if self.seal.is_none() {
            self.start_seal(offset);
        }
        if self.merge.is_none() {
            self.start_merge();
        }
        Ok(())
    }

    /// Ends: waits for a seal under way and makes it count, gives up a merge under way.
    ///
    /// # Errors
    /// As [`Self::committed`]; what is on disk stays sound.
    pub fn close(mut self) -> Result<(), DedupError> {
        self.seal.take().map_or(Ok(()), |job| self.take_seal(job))
    }

    fn start_seal(&mut self, committed: Offset) {
        let Some(bucket) = self.frozen.front().filter(|bucket| bucket.end() <= committed) else {
            return;
        };
        let need = (bucket.keys() * SEALED_KEY_BYTES + SEALED_BUCKET_BYTES) as u64;
        let stays: u64 = self.live_after(bucket.last_ms()).map(|meta| meta.bytes).sum();
        self.trouble.over_limit = stays + need > self.options.max_bytes;
        if !self.trouble.over_limit {
            let job = Job::seal(&self.options, self.next_id, Arc::clone(bucket));
            self.next_id += 1;
            self.seal = self.started(job);
        }
    }

    fn start_merge(&mut self) {
        let metas: Vec<BucketMeta> = self.sealed.iter().map(|bucket| bucket.meta.clone()).collect();
        let (Some(at), Some((_, applied_ms))) = (plan::next_merge(&metas, self.widest_ms), self.applied)
        else {
            return;
        };
        let [older, newer] = [&self.sealed[at], &self.sealed[at + 1]];
        if self.disk_bytes() + older.meta.bytes + newer.meta.bytes > self.options.max_bytes {
            return;
        }
        let input = MergeInput {
            scans: [older.scan(), newer.scan()],
            metas: [older.meta.clone(), newer.meta.clone()],
            floor_ms: plan::floor_ms(applied_ms, self.widest_ms),
        };
        let job = Job::merge(&self.options, self.next_id, input);
        self.next_id += 1;
        self.merge = self.started(job);
    }

    fn started(&mut self, job: Result<Job, StorageError>) -> Option<Job> {
        job.inspect_err(|error| self.trouble.note(error)).ok()
    }

    fn take_seal(&mut self, job: Job) -> Result<(), DedupError> {
        let Some(applied) = self.frozen.front().map(|bucket| (bucket.end(), bucket.last_ms())) else {
            return Ok(());
        };
        if self.take_result(job, applied)? {
            self.frozen.pop_front();
        }
        Ok(())
    }

    fn take_merge(&mut self, job: Job) -> Result<(), DedupError> {
        let Some(applied) = self.applied else {
            return Ok(());
        };
        self.take_result(job, applied).map(drop)
    }

    /// Makes a job's bucket count. Returns whether it does; where not, its files are gone again.
    fn take_result(&mut self, job: Job, applied: (Offset, UnixMs)) -> Result<bool, DedupError> {
        let (id, replaces) = (job.id, job.replaces.clone());
        let swapped = job.finish().and_then(|bucket| {
            self.swap(Swap {
                applied,
                bucket,
                replaces,
            })
        });
        match swapped {
            Ok(()) => self.trouble.clear(),
            Err(error @ StorageError::UnknownSwap { .. }) => return Err(error.into()),
            Err(error) => {
                sealed::remove_files(&self.options.dir, id);
                self.trouble.note(&error);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Replaces the manifest, then the list in memory, then unlinks what no longer counts.
    fn swap(&mut self, swap: Swap) -> Result<(), StorageError> {
        let merging = self.merge.as_ref().map_or(&[][..], |job| job.replaces.as_slice());
        let goes = |meta: &BucketMeta| {
            let expired = plan::is_expired(meta, swap.applied.1, self.widest_ms);
            swap.replaces.contains(&meta.id) || (expired && !merging.contains(&meta.id))
        };
        let at = self
            .sealed
            .iter()
            .position(|bucket| swap.replaces.contains(&bucket.meta.id));
        let at = at.unwrap_or(self.sealed.len());
        let gone: Vec<bool> = self.sealed.iter().map(|bucket| goes(&bucket.meta)).collect();
        let mut buckets: Vec<BucketMeta> = Vec::with_capacity(self.sealed.len() + 1);
        for (index, bucket) in self.sealed.iter().enumerate() {
            if index == at {
                buckets.push(swap.bucket.meta.clone());
            }
            if !gone[index] {
                buckets.push(bucket.meta.clone());
            }
        }
        if at == self.sealed.len() {
            buckets.push(swap.bucket.meta.clone());
        }
        self.manifest(swap.applied, buckets).store(&self.options.dir)?;
        self.applied = Some(swap.applied);
        self.adopt(at, swap.bucket, gone);
        Ok(())
    }

    fn manifest(&self, (applied, applied_ms): (Offset, UnixMs), buckets: Vec<BucketMeta>) -> Manifest {
        Manifest {
            log: self.options.log,
            secret_check: self.options.secret_check,
            applied,
            applied_ms,
            next_id: self.next_id,
            buckets,
        }
    }

    /// Puts `bucket` at `at` and drops those that are `gone`, files included: the manifest says so already.
    fn adopt(&mut self, at: usize, bucket: Sealed, gone: Vec<bool>) {
        let mut new = Some(bucket);
        let mut list = Vec::with_capacity(self.sealed.len() + 1);
        for (index, (old, gone)) in std::mem::take(&mut self.sealed).into_iter().zip(gone).enumerate() {
            if index == at {
                list.extend(new.take());
            }
            if gone {
                let id = old.meta.id;
                drop(old);
                self.unlink(id);
            } else {
                list.push(old);
            }
        }
        list.extend(new);
        self.sealed = list;
        self.place_filters();
    }

    /// What stays is an orphan, removed at the next start.
    fn unlink(&self, id: u64) {
        if failpoint::hit(Point::BucketUnlink).is_ok() {
            sealed::remove_files(&self.options.dir, id);
            // All is done: there is nothing that could fail.
            failpoint::hit(Point::BucketUnlinked).ok();
        }
    }

    /// Keeps the newest filters in memory, as many as `memory_bytes` takes.
    pub(super) fn place_filters(&mut self) {
        let mut room = self.options.memory_bytes;
        for bucket in self.sealed.iter_mut().rev() {
            let (bytes, _) = bucket.filter_bytes();
            bucket.set_resident(bytes <= room);
            room = room.saturating_sub(bytes);
        }
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.sealed.iter().map(|bucket| bucket.meta.bytes).sum()
    }

    fn live_after(&self, applied_ms: UnixMs) -> impl Iterator<Item = &BucketMeta> {
        let metas = self.sealed.iter().map(|bucket| &bucket.meta);
        metas.filter(move |meta| !plan::is_expired(meta, applied_ms, self.widest_ms))
    }

    /// Waits until nothing more can be sealed or merged below `committed`.
    #[cfg(test)]
    pub(super) fn settle(&mut self, committed: Offset) {
        loop {
            self.committed(committed).unwrap();
            if self.trouble.last_error.is_some() || (self.seal.is_none() && self.merge.is_none()) {
                return;
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Dedup {
    /// Ends work under way, so that nobody writes into the directory once its lock is free.
    fn drop(&mut self) {
        for job in [self.seal.take(), self.merge.take()].into_iter().flatten() {
            job.cancel();
            if let Err(error) = job.finish() {
                tracing::debug!(%error, "dedup work was given up");
            }
        }
    }
}
