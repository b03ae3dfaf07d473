//! A bucket in memory: the active one that takes every copy, and the frozen ones that wait to be sealed.
//!
//! The table is split by the key's upper bits into so many shards that a full bucket fills each of
//! them to just under what a power-of-two table takes: 25 bytes a slot at 7/8 load is 29 bytes a key.
//! One table of 4 M keys would take 52, and would stop the partition for the second in which it
//! doubles. Shards are ascending key ranges, so sealing sorts them one by one in little memory.

use super::entry::{Entry, Seen};
use hashbrown::HashTable;
use sluice_common::clock::UnixMs;
use sluice_common::ids::{Offset, TenantId};
use std::collections::BTreeMap;

/// Keys of one shard: 7/8 of 2^18 slots, less 2 % for the spread between shards.
const SHARD_KEYS: usize = 224_000;
/// Bytes of a slot and its control byte.
const SLOT_BYTES: usize = size_of::<Slot>() + 1;
/// Tenants counted in one bucket: far above what one node serves; more are not counted.
const MAX_TENANTS: usize = 100_000;

/// A range of the log, as `key → latest append time`.
pub(super) struct MemoryBucket {
    shards: Vec<HashTable<Slot>>,
    keys: usize,
    /// Time of the first record; slots count from it.
    base_ms: UnixMs,
    /// Time of the last record.
    last_ms: UnixMs,
    first: Offset,
    /// One past the last record.
    end: Offset,
    tenants: BTreeMap<TenantId, u64>,
}

#[derive(Clone, Copy)]
struct Slot {
    high: u64,
    low: u64,
    offset_ms: u32,
    fingerprint: u32,
}

const _: () = assert!(size_of::<Slot>() == 24);

impl Slot {
    fn key(&self) -> u128 {
        u128::from(self.high) << 64 | u128::from(self.low)
    }
}

impl MemoryBucket {
    /// An empty bucket for about `keys` keys whose first record is to be `first`, at `base_ms`.
    pub(super) fn new(keys: usize, first: Offset, base_ms: UnixMs) -> Self {
        let shards = keys.div_ceil(SHARD_KEYS).max(1);
        Self {
            shards: (0..shards).map(|_| HashTable::new()).collect(),
            keys: 0,
            base_ms,
            last_ms: base_ms,
            first,
            end: first,
            tenants: BTreeMap::new(),
        }
    }

    /// Notes that the record at `offset` belongs to the bucket, before its keys are touched.
    pub(super) fn take(&mut self, offset: Offset, now: UnixMs, tenant: &TenantId, rows: u32) {
        if self.is_empty() {
            (self.first, self.base_ms) = (offset, now);
        }
        (self.end, self.last_ms) = (offset + 1, now);
        if let Some(events) = self.tenants.get_mut(tenant) {
            *events += u64::from(rows);
        } else if self.tenants.len() < MAX_TENANTS {
            self.tenants.insert(tenant.clone(), u64::from(rows));
        }
    }

    /// The latest copy of `key`, which is set to `now` where there is one. `accept` says which
    /// fingerprint stays, given the copy found.
    pub(super) fn touch(&mut self, key: u128, now: UnixMs, accept: impl FnOnce(Seen) -> u32) -> Option<Seen> {
        let (base, (high, low)) = (self.base_ms, halves(key));
        let shard = self.shard_of(high);
        let slot = self.shards[shard].find_mut(low, |slot| slot.low == low && slot.high == high)?;
        let seen = Seen {
            at_ms: base + u64::from(slot.offset_ms),
            fingerprint: slot.fingerprint,
        };
        slot.fingerprint = accept(seen);
        slot.offset_ms = offset_ms(now, base);
        Some(seen)
    }

    /// Adds a key that [`Self::touch`] did not find.
    pub(super) fn insert(&mut self, key: u128, now: UnixMs, fingerprint: u32) {
        let (high, low) = halves(key);
        let shard = self.shard_of(high);
        let slot = Slot {
            high,
            low,
            offset_ms: offset_ms(now, self.base_ms),
            fingerprint,
        };
        self.shards[shard].insert_unique(low, slot, |slot| slot.low);
        self.keys += 1;
    }

    /// The latest copy of `key`.
    pub(super) fn find(&self, key: u128) -> Option<Seen> {
        let (high, low) = halves(key);
        let slot = self.shards[self.shard_of(high)].find(low, |slot| slot.low == low && slot.high == high)?;
        Some(Seen {
            at_ms: self.base_ms + u64::from(slot.offset_ms),
            fingerprint: slot.fingerprint,
        })
    }

    /// All entries, ascending by key. Holds one shard's copy at a time: about 5 MB.
    pub(super) fn sorted(&self) -> impl Iterator<Item = Entry> + '_ {
        self.shards.iter().flat_map(|shard| {
            let mut slots: Vec<Slot> = shard.iter().copied().collect();
            slots.sort_unstable_by_key(Slot::key);
            slots.into_iter().map(|slot| Entry {
                key: slot.key(),
                at_ms: self.base_ms + u64::from(slot.offset_ms),
                fingerprint: slot.fingerprint,
            })
        })
    }

    fn shard_of(&self, high: u64) -> usize {
        let scaled = u128::from(high) * self.shards.len() as u128;
        (scaled >> 64) as usize
    }

    /// Whether no record was taken.
    pub(super) fn is_empty(&self) -> bool {
        self.end == self.first
    }

    pub(super) fn keys(&self) -> usize {
        self.keys
    }

    pub(super) fn base_ms(&self) -> UnixMs {
        self.base_ms
    }

    pub(super) fn last_ms(&self) -> UnixMs {
        self.last_ms
    }

    pub(super) fn first(&self) -> Offset {
        self.first
    }

    pub(super) fn end(&self) -> Offset {
        self.end
    }

    pub(super) fn tenants(&self) -> &BTreeMap<TenantId, u64> {
        &self.tenants
    }

    /// Bytes that the table holds.
    pub(super) fn memory_bytes(&self) -> u64 {
        let slots: usize = self
            .shards
            .iter()
            .map(|shard| shard.capacity().div_ceil(7) * 8)
            .sum();
        (slots * SLOT_BYTES) as u64
    }
}

fn halves(key: u128) -> (u64, u64) {
    ((key >> 64) as u64, key as u64)
}

/// Milliseconds since the base; the owner rotates before 32 bits are full.
fn offset_ms(now: UnixMs, base: UnixMs) -> u32 {
    u32::try_from(now - base).expect("the bucket rotates long before 49 days")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(n: u64) -> u128 {
        u128::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
    }

    #[test]
    fn entries_come_out_sorted_and_whole() {
        let mut bucket = MemoryBucket::new(1_000_000, 0, 100);
        for n in 0..20_000 {
            bucket.insert(spread(n), 100 + n, 1);
        }
        let entries: Vec<Entry> = bucket.sorted().collect();
        assert_eq!((entries.len(), bucket.keys()), (20_000, 20_000));
        assert!(entries.windows(2).all(|pair| pair[0].key < pair[1].key));
        assert!(entries.iter().all(|entry| {
            bucket
                .find(entry.key)
                .is_some_and(|seen| seen.at_ms == entry.at_ms)
        }));
    }

    #[test]
    fn touching_a_key_returns_the_copy_before_and_keeps_the_latest_time() {
        let mut bucket = MemoryBucket::new(10, 0, 100);
        assert_eq!(bucket.touch(5, 120, |_| 0), None);
        bucket.insert(5, 120, 9);
        assert_eq!(
            bucket.touch(5, 150, |seen| seen.fingerprint),
            Some(Seen {
                at_ms: 120,
                fingerprint: 9
            })
        );
        assert_eq!(
            bucket.find(5),
            Some(Seen {
                at_ms: 150,
                fingerprint: 9
            })
        );
    }
}
