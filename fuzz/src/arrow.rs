//! Arrow IPC from a peer: a record's columns as a normalizer that went wrong might send them, built into
//! blocks for tables that have every column, some, or none.

use crate::rows::{NOW_MS, frame};
use bytes::Bytes;
use sluice_common::config::PartitionBy;
use sluice_common::fates::{Fate, Fates};
use sluice_common::ids::LogId;
use sluice_common::packed::unpack;
use sluice_common::record::{HEADER_BYTES, Record};
use sluice_common::wire::sink::RangeRecord;
use sluice_sink_writer::block::{Sight, Sights, Source, build};
use sluice_sink_writer::place::Placement;
use sluice_sink_writer::tables::Table;
use std::sync::{Arc, OnceLock};

static FRAME: OnceLock<Vec<u8>> = OnceLock::new();
/// Where a frame says how long its body is.
const BODY_LENGTH_AT: usize = 60;

/// One stream of columns in place of a sound one.
pub fn run(input: &[u8]) {
    let (choice, columns) = super::choice(input);
    if let Some(record) = with_columns(FRAME.get_or_init(sound), columns) {
        built(record, choice);
    }
}

/// The record of a frame with other columns; nothing where it is none.
fn with_columns(sound: &[u8], columns: &[u8]) -> Option<Record> {
    let mut bytes = sound.to_vec();
    let length = usize::try_from(u32::from_le_bytes(
        sound[BODY_LENGTH_AT..BODY_LENGTH_AT + 4]
            .try_into()
            .expect("four bytes"),
    ))
    .expect("a length");
    let record = Record::read(&Bytes::copy_from_slice(sound)).expect("sound");
    let before = HEADER_BYTES.max(body_at(sound, &record.body(), length));
    bytes.truncate(before);
    bytes.extend_from_slice(columns);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let all = bytes.len();
    super::put(&mut bytes, BODY_LENGTH_AT, columns.len());
    super::put(&mut bytes, 4, all);
    super::mend(&mut bytes, 8, 12);
    Record::read(&Bytes::from(bytes)).ok()
}

/// A sound record, once it is known that such ones are built, packed or not.
fn sound() -> Vec<u8> {
    let frame_of_y = frame("y");
    for columns in [packed("y"), packed(&"y".repeat(9_000)), unpacked("y")] {
        let record = with_columns(&frame_of_y, &columns).expect("sound");
        assert!(built(record, 0), "what intake writes is read");
    }
    frame_of_y
}

fn packed(text: &str) -> Bytes {
    let record = Record::read(&Bytes::from(frame(text))).expect("sound");
    record.body()
}

fn unpacked(text: &str) -> Bytes {
    unpack(packed(text)).expect("sound")
}

/// Columns of sound records: what a fuzzer begins with, each with its name.
pub fn seeds() -> [(&'static str, Vec<u8>); 3] {
    let seed = |columns: Bytes| [&[0], columns.as_ref()].concat();
    [
        ("packed", seed(packed("y"))),
        ("packed_long", seed(packed(&"y".repeat(9_000)))),
        ("stream", seed(unpacked("y"))),
    ]
}

fn body_at(frame: &[u8], body: &[u8], length: usize) -> usize {
    let padded = frame.len() - length;
    (padded.saturating_sub(8)..=padded)
        .find(|at| &frame[*at..*at + length] == body)
        .expect("the body is at the end of its frame")
}

/// Whether blocks came of it.
fn built(record: Record, choice: u8) -> bool {
    let mut fates = Fates::new();
    for row in 0..record.rows() {
        fates.push(if choice & 1 == 1 && row == 0 {
            Fate::Conflict
        } else {
            Fate::Keep
        });
    }
    let names: &[&str] = match choice >> 1 & 3 {
        0 => &[
            "s",
            "l",
            "i",
            "t",
            "list",
            "map",
            "json",
            "_src_l",
            "_src_p",
            "_src_o",
            "ingested_at",
            "tenant",
        ],
        1 => &["s", "_src_l", "_src_p", "_src_o"],
        2 => &["other"],
        _ => &[],
    };
    let by = if choice & 8 == 0 { "none" } else { "toDate(t)" };
    let placement = Placement::configured(&PartitionBy::parse(by).unwrap_or_default());
    let name = record.meta.table.clone();
    let columns = names.iter().map(|name| ((*name).to_owned(), "String".to_owned()));
    let table = Table::known(name.clone(), columns, placement);
    let sights = Sights::from([(name, Sight::Known(Arc::new(table)))]);
    let source = Source {
        log: LogId(1),
        partition: 0,
        records: vec![RangeRecord { record, fates }],
        ledger: Vec::new(),
        quarantined: Vec::new(),
        tasks: None,
    };
    let Ok(subs) = build(&source, &sights) else {
        return false;
    };
    let rows: u64 = subs.iter().map(|sub| sub.rows).sum();
    let all: u64 = source
        .records
        .iter()
        .map(|one| u64::from(one.record.rows()))
        .sum();
    assert!(rows <= all, "{rows} rows of {all} at {NOW_MS}");
    true
}
