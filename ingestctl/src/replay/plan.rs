//! A plan as a person on call reads it: what will be touched, and what is to be known before.

use super::picture::{events_of, grouped, spans};
use crate::output::TextTable;
use crate::picture::text::{bytes, duration};
use sluice_common::clock::UnixMs;
use sluice_common::ids::{Name, Offset};
use sluice_common::moment;
use sluice_common::replay::{Beside, Decisions, ReplayPlan, Touched};
use std::collections::BTreeMap;
use std::fmt::Display;

/// The plan as text.
pub(super) fn text(plan: &ReplayPlan) -> String {
    let mut parts = vec![head(plan), partitions(&plan.partitions)];
    parts.push(counts("TENANT", plan.partitions.iter().map(|part| &part.tenants)));
    parts.push(counts(
        "DATASET",
        plan.partitions.iter().map(|part| &part.datasets),
    ));
    parts.push(tables(plan));
    parts.push(how(plan));
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

fn head(plan: &ReplayPlan) -> String {
    let id = plan.id;
    let records = match plan.spans.as_slice() {
        [span] => format!("records {} up to and without {}", span.from, span.to),
        several => format!("records {}, each without the last", spans(several)),
    };
    let only = [
        plan.tenant.as_ref().map(|tenant| format!("tenant {tenant}")),
        plan.dataset.as_ref().map(|dataset| format!("dataset {dataset}")),
    ];
    let only: Vec<String> = only.into_iter().flatten().collect();
    let only = if only.is_empty() {
        String::new()
    } else {
        format!(", of {} only", only.join(" and "))
    };
    let events = grouped(events_of(&plan.partitions));
    format!("Replay {id}: {events} events of {records}{only}\n")
}

fn partitions(touched: &[Touched]) -> String {
    let mut table = TextTable::new(&[
        "PARTITION",
        ">FIRST",
        ">LAST",
        ">RECORDS",
        ">EVENTS",
        ">BYTES",
        "FIRST APPEND (UTC)",
        "LAST APPEND (UTC)",
    ]);
    let offset = |offset: Option<Offset>| offset.map_or_else(|| "-".into(), |offset| offset.to_string());
    let time = |ms: Option<UnixMs>| ms.map_or_else(|| "-".into(), moment::text);
    for one in touched {
        table.row([
            one.partition.to_string(),
            offset(one.first),
            offset(one.last),
            grouped(one.records),
            grouped(one.events),
            bytes(one.bytes as f64),
            time(one.first_append_ms),
            time(one.last_append_ms),
        ]);
    }
    table.to_string()
}

/// Sums over all partitions, under one title.
fn sums<'a, K: Ord + 'a>(parts: impl Iterator<Item = &'a BTreeMap<K, u64>>) -> BTreeMap<&'a K, u64> {
    let mut sums = BTreeMap::new();
    for (key, events) in parts.flatten() {
        *sums.entry(key).or_default() += events;
    }
    sums
}

fn counts<'a, K: Ord + Display + 'a>(
    title: &str,
    parts: impl Iterator<Item = &'a BTreeMap<K, u64>>,
) -> String {
    let sums = sums(parts);
    if sums.is_empty() {
        return String::new();
    }
    let mut table = TextTable::new(&[title, ">EVENTS"]);
    for (key, events) in sums {
        table.row([key.to_string(), grouped(events)]);
    }
    table.to_string()
}

/// The live tables that a plan reads rows of.
pub(super) fn live_tables(plan: &ReplayPlan) -> Vec<&Name> {
    let tables = sums(plan.partitions.iter().map(|part| &part.tables));
    tables.into_keys().collect()
}

fn tables(plan: &ReplayPlan) -> String {
    let sums = sums(plan.partitions.iter().map(|part| &part.tables));
    if sums.is_empty() {
        return String::new();
    }
    let mut table = TextTable::new(&["LIVE TABLE", ">EVENTS", "IS WRITTEN INTO"]);
    for (live, events) in sums {
        let shadow = plan.id.table(live, Beside::Shadow);
        table.row([live.to_string(), grouped(events), shadow.to_string()]);
    }
    table.to_string()
}

fn how(plan: &ReplayPlan) -> String {
    let mut lines = Vec::new();
    lines.push(match plan.decisions {
        Some(Decisions::Provenance) => {
            "Repeats are left out as they were: the live tables have all rows that were kept."
        }
        Some(Decisions::Anew) => {
            "Rows are missing from the live tables, so repeats are found anew, from one dedup window earlier on."
        }
        Some(Decisions::All) => {
            "Rows are missing from the live tables, and the books know of no repeats: every row is written."
        }
        None => "NOBODY CAN TELL any more which rows are repeats: it cannot be run.",
    }
    .to_owned());
    let seconds = events_of(&plan.partitions) as f64 / plan.events_per_second.max(1) as f64;
    lines.push(format!(
        "At most {} events a second: {} or more.",
        grouped(plan.events_per_second),
        duration(seconds)
    ));
    lines.push("The live tables are read, and not written to.".into());
    lines.extend(plan.notes.iter().map(|note| format!("Note: {note}")));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    #[test]
    fn a_plan_says_what_will_be_touched() {
        let expected = "\
Replay r00c0ffee: 1,000 events of records 1200 up to and without 1210, of tenant acme only

PARTITION  FIRST  LAST  RECORDS  EVENTS    BYTES  FIRST APPEND (UTC)        LAST APPEND (UTC)
0           1200  1209       10   1,000  1.5 KiB  2026-11-21T03:30:00.123Z  2026-11-21T03:30:30Z
1              -     -        0       0      0 B  -                         -

TENANT  EVENTS
acme     1,000

DATASET  EVENTS
clicks      100
orders      900

LIVE TABLE  EVENTS  IS WRITTEN INTO
clicks         100  clicks_shadow_r00c0ffee
orders         900  orders_shadow_r00c0ffee

Repeats are left out as they were: the live tables have all rows that were kept.
At most 200 events a second: 5.0 s or more.
The live tables are read, and not written to.
Note: `--to` was beyond the end: it is 1210 now.
";
        assert_eq!(text(&plan()), expected);
        let mut undecided = plan();
        undecided.decisions = None;
        assert!(text(&undecided).contains("it cannot be run"));
    }
}
