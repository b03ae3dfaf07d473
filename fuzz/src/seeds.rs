//! What the fuzzers begin with, where it is not text that a person can write: `cargo run --bin seeds`.

use crate::{arrow, rows};
use bytes::Bytes;
use http::HeaderMap;
use sluice_common::fates::{Fate, Fates};
use sluice_common::ids::LogId;
use sluice_common::record::{HEADER_BYTES, Record};
use sluice_common::wire::publish::{Content, PublishCall, PublishOrder};
use sluice_common::wire::sink::{Range, RangeRecord, SinkCall, SinkRequest, Steps, WhichServers};
use sluice_common::wire::transport::Call as _;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Writes `dir/TARGET/NAME`.
pub fn write(dir: &Path) {
    let seed = |target: &str, name: &str, bytes: &[u8]| {
        fs::create_dir_all(dir.join(target)).expect("a directory");
        fs::write(dir.join(target).join(name), bytes).expect("written");
    };
    let frame = rows::frame("y");
    for (name, bytes) in arrow::seeds() {
        seed("arrow", name, &bytes);
    }
    seed("record", "sound", &frame);
    seed("record", "requests_out_of_order", &requests_out_of_order(&frame));
    seed("files", "segment", &[&[1], frame.as_slice()].concat());
    let record = Record::read(&Bytes::from(frame)).expect("sound");
    let mut fates = Fates::new();
    (0..record.rows()).for_each(|_| fates.push(Fate::Keep));
    let head = format!(
        r#"{{"log":1,"partition":0,"range":{{"a":0,"b":1}},"table":"events","fates":[{}]}}"#,
        serde_json::to_string(&fates).expect("text")
    );
    seed(
        "files",
        "unit",
        &[&[4], head.as_bytes(), b"\n", record.frame()].concat(),
    );
    // A bit of the bucket, of its filter and of the manifest, and a cut of each.
    for (name, change) in [("filter", 0u8), ("bucket", 2), ("dedup_state", 4)] {
        seed(
            "files",
            name,
            &[
                &[5],
                &[change, 0x30, 0x11, 0x80][..],
                &[change | 1, 0x00, 0x20, 0],
            ]
            .concat(),
        );
    }
    let records = vec![RangeRecord { record, fates }];
    let order = PublishOrder {
        log: LogId(1),
        partition: 0,
        range: Range { a: 0, b: 1 },
        content: Content::Events,
        topic: "clean".into(),
        key: Vec::new(),
        skip: 1,
        most: u64::MAX,
        waited: false,
    };
    let publish = SinkRequest::Publish(PublishCall {
        order,
        records: records.clone(),
        timeout: Duration::from_secs(1),
        trace: Default::default(),
    });
    let call = SinkRequest::Write(SinkCall {
        log: LogId(1),
        partition: 0,
        server: None,
        range: Range { a: 0, b: 1 },
        attempt: 1,
        timeout: Duration::from_secs(1),
        steps: Steps::FIRST,
        tasks: None,
        records,
        ledger: Vec::new(),
        quarantined: Vec::new(),
        instead: BTreeMap::new(),
        trace: Default::default(),
    });
    for (name, call) in [
        ("write", call),
        ("publish", publish),
        (
            "servers",
            SinkRequest::Servers(WhichServers {
                timeout: Duration::from_secs(1),
            }),
        ),
    ] {
        seed(
            "peer",
            name,
            &[&[0], call.into_parts(&mut HeaderMap::new()).as_ref()].concat(),
        );
    }
}

/// The first request's rows begin at the second row: asking for the first row's request once ended the process.
fn requests_out_of_order(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let meta = u32::from_le_bytes(frame[52..56].try_into().expect("4 bytes"));
    let first_row = HEADER_BYTES + meta as usize + 16;
    frame[first_row] = 1;
    frame
}
