//! Records as frames of the log, there and back.

use super::Round;
use super::intake::{NOW_MS, records};
use bytes::Bytes;
use sluice_common::ids::{LogId, Offset};
use sluice_common::record::{Placement, Record, RecordContent};
use std::hint::black_box;

/// The log that all of it is in.
pub const LOG: LogId = LogId(1);

fn frame(record: &RecordContent, offset: Offset) -> Vec<u8> {
    let place = Placement {
        log: LOG,
        offset,
        append_ms: NOW_MS + offset,
        durable_below: 0,
    };
    let mut frame = Vec::with_capacity(record.frame_bytes());
    record.write(place, &mut frame);
    frame
}

/// The records of a log, from offset 0 on.
pub fn logged(how_many: usize) -> Vec<Record> {
    let all = (0..).zip(records(how_many));
    all.map(|(offset, record)| Record::read(&frame(&record, offset).into()).expect("a sound frame"))
        .collect()
}

/// A record into its frame, with its checksum: what the log's thread computes, without the disk.
pub fn written(rounds: usize) -> Round {
    let mut records = (0..).zip(records(rounds));
    Box::new(move || {
        let (offset, record) = records.next().expect("one a round");
        black_box(frame(&record, offset));
    })
}

/// A frame checked and read.
pub fn read(rounds: usize) -> Round {
    let frames: Vec<Bytes> = (0..)
        .zip(records(rounds))
        .map(|(offset, record)| frame(&record, offset).into())
        .collect();
    let mut frames = frames.into_iter();
    Box::new(move || {
        let frame = frames.next().expect("one a round");
        black_box(Record::read(&frame).expect("a sound frame"));
    })
}
