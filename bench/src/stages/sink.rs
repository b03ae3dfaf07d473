//! A record into the block that ClickHouse is sent.

use super::record::{LOG, logged};
use super::{EVENTS, Round};
use sluice_common::config::PartitionBy;
use sluice_common::fates::{Fate, Fates};
use sluice_common::ids::Name;
use sluice_common::record::Record;
use sluice_common::wire::sink::RangeRecord;
use sluice_sink_writer::block::{Content, Sight, Sights, Source, build};
use sluice_sink_writer::place::Placement;
use sluice_sink_writer::tables::Table;
use std::hint::black_box;
use std::sync::Arc;

/// The table of the default config.
const COLUMNS: [(&str, &str); 14] = [
    ("event_id", "String"),
    ("timestamp", "DateTime64(3, 'UTC')"),
    ("service", "LowCardinality(String)"),
    ("host", "LowCardinality(String)"),
    ("name", "LowCardinality(String)"),
    ("duration_ms", "Nullable(Float64)"),
    ("status", "Nullable(UInt16)"),
    ("size_bytes", "Nullable(UInt64)"),
    ("attributes", "Map(String, String)"),
    ("tenant", "LowCardinality(String)"),
    ("ingested_at", "DateTime64(3, 'UTC')"),
    ("_src_l", "UInt64"),
    ("_src_p", "UInt16"),
    ("_src_o", "UInt64"),
];

fn sights() -> Sights {
    let name = Name::new("events").expect("valid");
    let by = PartitionBy::parse("toDate(timestamp)").expect("valid");
    let columns = COLUMNS.map(|(name, kind)| (name.to_owned(), kind.to_owned()));
    let table = Table::known(name.clone(), columns, Placement::configured(&by));
    Sights::from([(name, Sight::Known(Arc::new(table)))])
}

/// LZ4 and Arrow IPC read, rows routed to their partition, and a block written.
pub fn block(rounds: usize) -> Round {
    let sights = sights();
    let source = |record: Record| {
        let mut fates = Fates::new();
        (0..EVENTS).for_each(|_| fates.push(Fate::Keep));
        Source {
            log: LOG,
            partition: 0,
            records: vec![RangeRecord { record, fates }],
            ledger: Vec::new(),
            quarantined: Vec::new(),
            tasks: None,
        }
    };
    let mut sources: Vec<Source> = logged(rounds).into_iter().map(source).collect();
    Box::new(move || {
        let source = sources.pop().expect("one a round");
        let subs = build(&source, &sights).expect("a sound range");
        let sent = subs
            .iter()
            .filter(|sub| matches!(sub.content, Content::Block { .. }));
        assert_eq!(sent.map(|sub| sub.rows).sum::<u64>(), EVENTS as u64, "{subs:?}");
        black_box(subs);
    })
}
