//! Inserts of several partitions take turns, so that they are fewer and larger.
//!
//! What ClickHouse takes for a row hangs on how many come with it: each insert makes a part, and parts are merged. One
//! partition sends its ranges one after another; several would send as many more, each so much smaller. So a range that
//! is old enough, and could grow on, waits while another partition's insert has begun of late: the longer inserts take,
//! the longer, up to the age at which ranges go out, so that there are no more of them than of one partition. How old it
//! may grow by that is bounded ([`OpenRange::patience`](super::range::OpenRange::patience)).

use parking_lot::Mutex;
use sluice_common::clock::UnixMs;
use std::collections::BTreeMap;
use std::sync::Arc;

/// For each millisecond that inserts take they are so many apart: ClickHouse merges what they wrote several times over, and
/// answers queries. Where they are cheap, ranges wait for less than a tenth of a second.
const APART: u64 = 10;

#[derive(Debug, Default)]
struct State {
    /// When each partition's last insert began.
    begun: BTreeMap<u16, UnixMs>,
    /// What the insert that ended last took, in ms.
    took: u64,
}

/// The turns of all partitions that are worked on here. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Mutex<State>>);

impl Turns {
    /// An insert of this partition begins.
    pub fn begin(&self, partition: u16, now: UnixMs) {
        self.0.lock().begun.insert(partition, now);
    }

    /// It has ended.
    pub fn end(&self, partition: u16, now: UnixMs) {
        let mut state = self.0.lock();
        if let Some(begun) = state.begun.get(&partition) {
            state.took = now.saturating_sub(*begun);
        }
    }

    /// Milliseconds for which this partition leaves the others' inserts alone: `longest` after the last of them at most.
    #[must_use]
    pub fn wait(&self, partition: u16, now: UnixMs, longest: u64) -> u64 {
        let state = self.0.lock();
        let others = state.begun.iter().filter(|(other, _)| **other != partition);
        let last = others.map(|(_, begun)| *begun).max();
        let apart = state.took.saturating_mul(APART).min(longest);
        last.map_or(0, |begun| apart.saturating_sub(now.saturating_sub(begun)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: u64 = 500;

    #[test]
    fn inserts_of_several_partitions_are_apart_by_what_they_take_and_no_more_than_they_may() {
        let turns = Turns::default();
        assert_eq!(turns.wait(1, 0, LONGEST), 0, "nothing was sent yet");
        turns.begin(0, 1_000);
        assert_eq!(turns.wait(1, 1_000, LONGEST), 0, "nobody knows what it takes");
        for (took, apart) in [(10, 100), (40, 400), (1_000, 500)] {
            turns.begin(0, 1_000);
            turns.end(0, 1_000 + took);
            turns.begin(0, 3_000);
            assert_eq!(turns.wait(1, 3_000, LONGEST), apart);
            assert_eq!(turns.wait(1, 3_010, LONGEST), apart - 10);
            assert_eq!(turns.wait(0, 3_000, LONGEST), 0, "its own");
        }
        turns.begin(1, 3_100);
        assert_eq!(turns.wait(0, 3_100, LONGEST), 500, "the other's");
        assert_eq!(turns.wait(2, 3_300, LONGEST), 300, "after the last one");
        turns.end(0, 500);
        assert_eq!(turns.wait(2, 3_100, LONGEST), 0, "a clock that was stepped back");
    }
}
