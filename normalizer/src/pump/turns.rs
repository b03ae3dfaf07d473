//! Inserts of several partitions take turns, so that they are fewer and larger.
//!
//! What ClickHouse takes for a row hangs on how many come with it: each insert makes a part, and parts are merged. One
//! partition sends its ranges one after another; several would send as many more, each so much smaller. So where there is
//! much to send, a range that is old enough, and could grow on, is given the next turn, some time after the one before: there
//! are no more of them then than of one partition. How long it may grow on is bounded
//! ([`OpenRange::patience`](super::range::OpenRange::patience)); where there are so many partitions that turns would be later,
//! they are nearer to one another.

use super::range::Patience;
use parking_lot::Mutex;
use sluice_common::clock::UnixMs;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows from which on an insert is one that others keep away from; with fewer rows they keep away for less.
const MANY_ROWS: u64 = 10_000;

#[derive(Debug, Default)]
struct State {
    /// The turn that was given last, and to whom.
    last: Option<(u16, UnixMs)>,
    /// When each partition's last insert began, and its rows.
    begun: BTreeMap<u16, (UnixMs, u64)>,
}

/// The turns of all partitions that are worked on here. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Mutex<State>>);

impl Turns {
    /// When the range of this partition that is ripe now has its turn.
    #[must_use]
    pub fn take(&self, partition: u16, now: UnixMs, patience: Patience) -> UnixMs {
        let mut state = self.0.lock();
        let turn = match state.last {
            Some((other, last)) if other != partition => {
                let turn = last.saturating_add(state.apart(partition, now, patience));
                turn.clamp(now, now + patience.left)
            }
            Some(_) | None => now,
        };
        state.last = Some((partition, turn));
        turn
    }

    /// An insert of this partition begins.
    pub fn begin(&self, partition: u16, now: UnixMs, rows: u64) {
        self.0.lock().begun.insert(partition, (now, rows));
    }
}

impl State {
    /// Milliseconds between two turns: as the inserts of one partition are apart, or so that all have one in time.
    fn apart(&self, partition: u16, now: UnixMs, patience: Patience) -> u64 {
        let of_late = |(begun, _): &&(UnixMs, u64)| now.saturating_sub(*begun) <= 2 * patience.oldest;
        let others = self.begun.iter().filter(|(other, _)| **other != partition);
        let others: Vec<&(UnixMs, u64)> = others.map(|(_, begun)| begun).filter(of_late).collect();
        let rows = others.iter().max().map_or(0, |(_, rows)| *rows);
        let fair = patience.oldest / (others.len() as u64 + 1);
        patience.age.min(fair) * rows.min(MANY_ROWS) / MANY_ROWS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a range that is ripe now.
    const RIPE: Patience = Patience {
        left: 1_500,
        age: 500,
        oldest: 2_000,
    };

    #[test]
    fn turns_of_several_partitions_are_apart_where_their_inserts_have_many_rows() {
        for (rows, apart) in [(10, 0), (1_000, 50), (10_000, 500), (500_000, 500)] {
            let turns = Turns::default();
            (0..4).for_each(|partition| turns.begin(partition, 9_000, rows));
            let given = [0, 1, 2, 3].map(|partition| turns.take(partition, 10_000, RIPE));
            assert_eq!(given, [0, 1, 2, 3].map(|n| 10_000 + n * apart), "{rows} rows");
            assert_eq!(
                turns.take(3, 10_400, RIPE),
                10_400,
                "after its own turn nobody waits"
            );
        }
    }

    #[test]
    fn in_many_partitions_each_has_its_turn_before_it_is_too_old() {
        let turns = Turns::default();
        (0..12).for_each(|partition| turns.begin(partition, 9_000, 50_000));
        let given: Vec<u64> = (0..12)
            .map(|partition| turns.take(partition, 10_000, RIPE))
            .collect();
        assert_eq!(given[1] - given[0], 2_000 / 12);
        assert!(
            given.iter().all(|turn| (10_000..=11_500).contains(turn)),
            "{given:?}"
        );
        // Those that have sent nothing for long do not count.
        assert_eq!(turns.take(0, 20_000, RIPE), 20_000);
        assert_eq!(
            turns.take(1, 20_000, RIPE),
            20_000,
            "nobody is known to send much"
        );
    }

    #[test]
    fn a_clock_that_was_stepped_back_holds_nobody_up_for_longer_than_may_be() {
        let turns = Turns::default();
        turns.begin(0, 100_000, 50_000);
        assert_eq!(turns.take(0, 100_000, RIPE), 100_000);
        assert_eq!(turns.take(1, 5_000, RIPE), 6_500);
        assert_eq!(turns.take(0, 5_000, RIPE), 6_500);
    }
}
