//! Policies, pure: which buckets can no longer be asked, which two to merge.

use super::manifest::BucketMeta;
use sluice_common::clock::UnixMs;
use sluice_common::limits::MAX_SEALED_BUCKETS;

/// Whether no record at or after `applied_ms` can find a live copy in the bucket.
///
/// Measured against the manifest's own time, not the newest record's: after a crash the records
/// from the applied offset on are decided again, and must find what they found before.
pub(super) fn is_expired(bucket: &BucketMeta, applied_ms: UnixMs, widest_ms: u64) -> bool {
    applied_ms.saturating_sub(bucket.max_ms) >= widest_ms
}

/// The earliest time that an entry can have to be asked for by a record at or after `applied_ms`.
pub(super) fn floor_ms(applied_ms: UnixMs, widest_ms: u64) -> UnixMs {
    (applied_ms + 1).saturating_sub(widest_ms)
}

/// The first of the two adjacent buckets to merge next, where there are too many to probe.
///
/// The pair with the fewest keys among those whose older bucket is at most three times the newer one;
/// else the most balanced one. With 600 buckets' worth in a window a key is so rewritten 9 times; by
/// fewest keys alone it would be 57 times, because one middle bucket takes each new one *(simulated)*.
/// A merged bucket lives until its youngest entry may go; pairs whose times span more than half the
/// widest window are therefore taken only when there is no other: together the buckets hold about
/// 1.2 windows.
pub(super) fn next_merge(buckets: &[BucketMeta], widest_ms: u64) -> Option<usize> {
    if buckets.len() <= MAX_SEALED_BUCKETS {
        return None;
    }
    let span = |at: usize| buckets[at + 1].max_ms - buckets[at].min_ms;
    let cost = |at: usize| {
        let (older, newer) = (buckets[at].keys, buckets[at + 1].keys);
        let balanced = older <= newer.saturating_mul(3);
        (
            !balanced,
            if balanced {
                older + newer
            } else {
                older / newer.max(1)
            },
        )
    };
    // Entries store their time in 32 bits of milliseconds: 49 days.
    let possible = (0..buckets.len() - 1).filter(|at| span(*at) <= u64::from(u32::MAX));
    possible.min_by_key(|at| (span(*at) > widest_ms / 2, cost(*at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn bucket(id: u64, keys: u64, min_ms: u64, max_ms: u64) -> BucketMeta {
        BucketMeta {
            id,
            keys,
            min_ms,
            max_ms,
            first: 0,
            end: 0,
            crc: None,
            bytes: 0,
            tenants: BTreeMap::new(),
        }
    }

    #[test]
    fn a_bucket_expires_exactly_a_window_after_its_last_copy() {
        let bucket = bucket(1, 1, 0, 1_000);
        assert!(!is_expired(&bucket, 1_099, 100));
        assert!(is_expired(&bucket, 1_100, 100));
        assert!(!is_expired(&bucket, 500, 100));
    }

    #[test]
    fn six_buckets_stay_and_of_seven_the_smallest_neighbours_merge() {
        let sizes = [900, 800, 10, 10, 10, 20, 30];
        let buckets: Vec<BucketMeta> = (0u64..)
            .zip(sizes)
            .map(|(n, keys)| bucket(n, keys, n * 10, n * 10 + 9))
            .collect();
        assert_eq!(next_merge(&buckets[..6], 1_000), None);
        assert_eq!(next_merge(&buckets, 1_000), Some(2));
    }

    #[test]
    fn a_pair_that_spans_half_a_window_waits_for_a_narrower_one() {
        let mut buckets: Vec<BucketMeta> = (0..7).map(|n| bucket(n, 100, n * 10, n * 10 + 9)).collect();
        (buckets[0].keys, buckets[1].keys) = (1, 1);
        buckets[0].min_ms = 0;
        buckets[1].max_ms = 19;
        assert_eq!(next_merge(&buckets, 40), Some(0));
        assert_eq!(next_merge(&buckets, 38), Some(0));
        buckets[1].max_ms = 20;
        assert_eq!(next_merge(&buckets, 38), Some(1));
    }

    #[test]
    fn each_key_is_rewritten_only_a_few_times() {
        let (mut buckets, mut rewritten) = (Vec::new(), 0);
        for n in 0..600 {
            buckets.push(bucket(n, 1, n, n + 1));
            while let Some(at) = next_merge(&buckets, 1_000_000) {
                let newer = buckets.remove(at + 1);
                buckets[at].keys += newer.keys;
                buckets[at].max_ms = newer.max_ms;
                rewritten += buckets[at].keys;
            }
        }
        assert!(rewritten < 600 * 9, "{rewritten} rewrites of 600 buckets");
    }
}
