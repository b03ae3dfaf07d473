//! Fewer and larger inserts while a table has many parts, before ClickHouse delays or refuses them (252).
//!
//! One insert makes one part, and merges take them away. As the fullest partition of a table nears the number
//! at which ClickHouse delays inserts, ranges with rows of that table may grow longer: by the factor below,
//! so that freshness is worse by a bounded part, and no insert is refused.

use super::batching::SharedSettings;
use super::turns::Turns;
use crate::runtime::sleep;
use parking_lot::Mutex;
use sluice_common::ids::Name;
use sluice_common::limits::{PACE_MAX, PARTS_LOOK, PARTS_TABLES};
use sluice_common::metrics::{Gauge, Metrics};
use sluice_common::wire::sink::{PartsLine, PartsQuery, SinkReply, SinkRequest};
use sluice_common::wire::transport::Seam;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tower::ServiceExt as _;

/// From this part of the delay threshold on ranges grow longer.
const EASY: f64 = 0.5;
/// At this part they are as long as they get.
const TIGHT: f64 = 0.9;

/// By how much ranges with rows of a table grow longer, at so many parts of `delay`.
#[must_use]
pub fn factor(parts: u64, delay: u64) -> f64 {
    let tightness = ((ratio(parts, delay) - EASY) / (TIGHT - EASY)).clamp(0.0, 1.0);
    1.0 + (PACE_MAX - 1.0) * tightness
}

#[expect(clippy::cast_precision_loss, reason = "numbers of parts are small")]
fn ratio(parts: u64, delay: u64) -> f64 {
    parts as f64 / delay.max(1) as f64
}

#[derive(Debug, Default)]
struct State {
    /// Tables that were sent to since the last look.
    written: BTreeSet<Name>,
    /// Parts and delay threshold of tables, as last seen.
    seen: BTreeMap<Name, (u64, u64)>,
    shown: BTreeSet<Name>,
}

/// The pace of all tables, and of all partitions that are worked on here. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    tables: Arc<Mutex<State>>,
    pub(super) turns: Turns,
}

impl Pace {
    /// Rows go to these tables now.
    pub fn written<'a>(&self, tables: impl Iterator<Item = &'a Name>) {
        let mut state = self.tables.lock();
        for table in tables {
            if !state.written.contains(table) && state.written.len() < PARTS_TABLES {
                state.written.insert(table.clone());
            }
        }
    }

    /// By how much a range with rows of `table` may grow longer: 1 to [`PACE_MAX`].
    #[must_use]
    pub fn of(&self, table: &Name) -> f64 {
        let state = self.tables.lock();
        state
            .seen
            .get(table)
            .map_or(1.0, |(parts, delay)| factor(*parts, *delay))
    }

    /// The slowest pace in force.
    #[must_use]
    pub fn slowest(&self) -> f64 {
        let state = self.tables.lock();
        let factors = state.seen.values().map(|(parts, delay)| factor(*parts, *delay));
        factors.fold(1.0, f64::max)
    }

    fn saw(&self, asked: &BTreeSet<Name>, lines: Vec<PartsLine>) {
        let mut state = self.tables.lock();
        // What was dropped, or is not told any more, is as well as new.
        state.seen.retain(|table, _| !asked.contains(table));
        for line in lines {
            state.seen.insert(line.table, (line.parts, line.delay));
        }
    }

    /// The tables to be asked for: written since, and those that are not at ease.
    fn due(&self) -> BTreeSet<Name> {
        let mut state = self.tables.lock();
        let mut due = std::mem::take(&mut state.written);
        let slowed = state
            .seen
            .iter()
            .filter(|(_, (parts, delay))| factor(*parts, *delay) > 1.0);
        due.extend(slowed.map(|(table, _)| table.clone()));
        due
    }

    /// Shows tables that were not shown yet.
    fn show(&self, metrics: &Metrics, tables: &[Name]) {
        for table in tables {
            if !self.tables.lock().shown.insert(table.clone()) {
                continue;
            }
            let labels: &[_] = &[("table", table.as_str())];
            let (pace, name) = (self.clone(), table.clone());
            metrics.watch(Gauge::PartsRatio, labels, move || {
                pace.tables
                    .lock()
                    .seen
                    .get(&name)
                    .map_or(0.0, |(parts, delay)| ratio(*parts, *delay))
            });
            let (pace, name) = (self.clone(), table.clone());
            metrics.watch(Gauge::PaceFactor, labels, move || pace.of(&name));
        }
    }

    /// Asks the sink-writer for ever, a few times a minute.
    pub async fn watch(self, sink: Seam<SinkRequest>, settings: SharedSettings, metrics: Metrics) {
        loop {
            self.show(&metrics, &settings.load().tables);
            let asked = self.due();
            if !asked.is_empty() {
                let query = PartsQuery {
                    tables: asked.iter().cloned().collect(),
                    timeout: PARTS_LOOK,
                };
                // No answer: what was seen last stands.
                if let Ok(SinkReply::Parts(lines)) = sink.clone().oneshot(SinkRequest::Parts(query)).await {
                    self.saw(&asked, lines);
                }
            }
            sleep(PARTS_LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("valid")
    }

    #[test]
    fn ranges_grow_longer_from_half_the_threshold_on_up_to_the_bound() {
        let at = |parts| factor(parts, 1_000);
        assert!((at(0) - 1.0).abs() < 1e-9 && (at(500) - 1.0).abs() < 1e-9);
        assert!(at(600) > 1.5 && at(700) > at(600));
        assert!((at(900) - PACE_MAX).abs() < 1e-9 && (at(5_000) - PACE_MAX).abs() < 1e-9);
        assert!((factor(0, 0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn tables_are_asked_for_while_they_are_written_or_slowed() {
        let (pace, t, u) = (Pace::default(), name("t"), name("u"));
        assert!(pace.due().is_empty());
        pace.written([&t, &u].into_iter());
        let asked = pace.due();
        assert_eq!(asked.len(), 2);
        let line = |table: &Name, parts| PartsLine {
            table: table.clone(),
            parts,
            delay: 100,
            throw: 200,
        };
        pace.saw(&asked, vec![line(&t, 95), line(&u, 3)]);
        assert!((pace.of(&t) - PACE_MAX).abs() < 1e-9 && pace.of(&u) < 1.01);
        assert!((pace.slowest() - PACE_MAX).abs() < 1e-9);
        let asked = pace.due();
        assert_eq!(asked, BTreeSet::from([t.clone()]));
        pace.saw(&asked, vec![]);
        assert!(pace.of(&t) < 1.01, "dropped");
    }
}
