//! Inserts of several partitions take turns, so that they are fewer and larger.
//!
//! What ClickHouse takes for a row hangs on how many come with it: each insert makes a part, and parts are merged. One
//! partition sends its ranges one after another; several would send as many more, each so much smaller. So where there is
//! much to send, a range that is old enough, and could grow on, waits while another partition's insert has begun of late:
//! there are no more of them then than of one partition. How old it may grow by that is bounded
//! ([`OpenRange::patience`](super::range::OpenRange::patience)).

use parking_lot::Mutex;
use sluice_common::clock::UnixMs;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows from which on an insert is one that others keep away from; with fewer rows they keep away for less.
const MANY_ROWS: u64 = 10_000;

/// When each partition's last insert began, and its rows. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Mutex<BTreeMap<u16, (UnixMs, u64)>>>);

impl Turns {
    /// An insert of this partition begins.
    pub fn begin(&self, partition: u16, now: UnixMs, rows: u64) {
        self.0.lock().insert(partition, (now, rows));
    }

    /// Milliseconds for which this partition leaves the others' inserts alone, where `longest` is what large ones are left.
    #[must_use]
    pub fn wait(&self, partition: u16, now: UnixMs, longest: u64) -> u64 {
        let begun = self.0.lock();
        let others = begun.iter().filter(|(other, _)| **other != partition);
        let last = others.map(|(_, begun)| *begun).max();
        last.map_or(0, |(begun, rows)| {
            let apart = longest * rows.min(MANY_ROWS) / MANY_ROWS;
            apart.saturating_sub(now.saturating_sub(begun))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: u64 = 500;

    #[test]
    fn inserts_of_several_partitions_are_apart_where_they_have_many_rows() {
        let turns = Turns::default();
        assert_eq!(turns.wait(1, 0, LONGEST), 0, "nothing was sent yet");
        for (rows, apart) in [(10, 0), (1_000, 50), (10_000, 500), (500_000, 500)] {
            turns.begin(0, 3_000, rows);
            assert_eq!(turns.wait(1, 3_000, LONGEST), apart, "{rows}");
            assert_eq!(turns.wait(1, 3_040, LONGEST), u64::saturating_sub(apart, 40));
            assert_eq!(turns.wait(0, 3_000, LONGEST), 0, "its own");
        }
        turns.begin(1, 3_100, 20_000);
        assert_eq!(turns.wait(0, 3_100, LONGEST), 500, "the other's");
        assert_eq!(turns.wait(2, 3_300, LONGEST), 300, "after the last one");
        assert_eq!(
            turns.wait(2, 1_000, LONGEST),
            500,
            "a clock that was stepped back: no longer than ever"
        );
    }
}
