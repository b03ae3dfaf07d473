//! What must be in the tables at the end, said as one would write it down.

use super::append::{Draft, WINDOW_MS};
use super::clickhouse::{Row, Server, Slot};
use sluice_common::books::LedgerRow;
use sluice_common::fates::Fate;
use sluice_common::ids::source_o;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A record of the log.
#[derive(Debug, Clone)]
pub struct Logged {
    pub draft: Draft,
    pub at_ms: u64,
}

/// R7: the fate of each row of each record, in log order.
fn decisions(log: &[Logged]) -> Vec<Vec<Fate>> {
    let mut seen: BTreeMap<u128, (u64, u32)> = BTreeMap::new();
    let decide = |one: &Logged| {
        let row = |(key, print): &(u128, u32)| {
            let live = seen
                .get(key)
                .filter(|(at_ms, _)| one.at_ms - at_ms < WINDOW_MS)
                .copied();
            let fate = match live {
                None => Fate::Keep,
                Some((_, first)) if one.draft.compares && first != *print => Fate::Conflict,
                Some(_) => Fate::Drop,
            };
            let stays = live.map_or(*print, |(_, first)| first);
            seen.insert(*key, (one.at_ms, stays));
            fate
        };
        one.draft.rows.iter().map(row).collect()
    };
    log.iter().map(decide).collect()
}

/// Each row's one outcome, and books that balance.
pub fn check(log: &[Logged], servers: &mut [Server], bad: &BTreeSet<u128>) -> Result<(), String> {
    for server in servers.iter_mut() {
        // What is held in the network arrives at last, though nobody waits for it.
        let late = server.last_held().max(server.down_until) + Duration::from_secs(1);
        server.catch_up(late, bad);
    }
    let mut places: BTreeMap<(String, Slot), u64> = BTreeMap::new();
    let mut books: Vec<&LedgerRow> = Vec::new();
    for (table, row) in servers.iter().flat_map(|server| server.rows()) {
        *places.entry((table.to_string(), row.slot())).or_default() += 1;
        if let Row::Books(row) = row {
            books.push(row);
        }
    }
    if let Some((place, n)) = places.iter().find(|(_, n)| **n != 1) {
        return Err(format!("{place:?} is there {n} times"));
    }
    let mut sums = Sums::default();
    for ((offset, one), fates) in (0u64..).zip(log).zip(decisions(log)) {
        sums.received += fates.len() as i64 + i64::from(one.draft.rejected);
        sums.rejected += i64::from(one.draft.rejected);
        for ((row, (key, _)), fate) in (0u32..).zip(&one.draft.rows).zip(fates) {
            let (o, table) = (source_o(offset, row), super::append::TABLES[one.draft.table]);
            let place = match fate {
                Fate::Drop => {
                    sums.duplicate += 1;
                    None
                }
                Fate::Conflict => Some(("dead_letters", (o, None, false))),
                Fate::Keep if bad.contains(key) => Some(("dead_letters", (o, None, true))),
                Fate::Keep => Some((table, (o, None, false))),
            };
            let Some((table, slot)) = place else { continue };
            match table {
                "dead_letters" => sums.dead += 1,
                _ => sums.stored += 1,
            }
            if places.remove(&(table.to_owned(), slot)).is_none() {
                return Err(format!(
                    "row {row} of record {offset} ({fate:?}) is not in {table}"
                ));
            }
        }
    }
    if let Some(place) = places.keys().find(|(table, _)| table != "ledger") {
        return Err(format!("{place:?} is there, and nothing says that it should be"));
    }
    sums.compare(&books)
}

#[derive(Debug, Default, PartialEq)]
struct Sums {
    received: i64,
    stored: i64,
    duplicate: i64,
    dead: i64,
    rejected: i64,
    parked: i64,
}

impl Sums {
    fn compare(&self, books: &[&LedgerRow]) -> Result<(), String> {
        let mut said = Self::default();
        for row in books {
            said.received += row.received;
            said.stored += row.stored;
            said.duplicate += row.duplicate;
            said.dead += row.dead_lettered;
            said.rejected += row.rejected;
            said.parked += row.parked;
        }
        if said == *self {
            return Ok(());
        }
        Err(format!("the books say {said:?}, and it is {self:?}"))
    }
}
