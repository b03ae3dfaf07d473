//! A sealed bucket of dedup and its filter, damaged: refused, or every key is as new or as known as it was.

use crate::files::dedup_options;
use bytes::Bytes;
use sluice_common::fates::Fate;
use sluice_common::ids::{LogId, Name, RequestId, TenantId};
use sluice_common::record::{Holds, Identity, Placement, Record, RecordContent, RecordMeta, RequestSpan};
use sluice_normalizer::dedup::Dedup;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Keys of the bucket: several blocks, the last one in part.
const KEYS: u64 = 700;
/// Longer than the state that is made here.
const WINDOW_MS: u64 = 1_000;

/// Files of a sound state by name.
static SOUND: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();

/// Writes each group of four bytes of the input (file, place in two bytes, value) over a sound state.
pub fn run(dir: &Path, input: &[u8]) {
    let sound = SOUND.get_or_init(make);
    let mut files = sound.clone();
    for change in input.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([change[1], change[2]]));
        let file = usize::from(change[0] >> 1) % files.len();
        let bytes = &mut files[file].1;
        if bytes.is_empty() {
            continue;
        }
        let at = at % bytes.len();
        if change[0] & 1 == 0 {
            bytes[at] = change[3];
        } else {
            bytes.truncate(at);
        }
    }
    for (name, bytes) in &files {
        fs::write(dir.join(name), bytes).expect("written");
    }
    match Dedup::open(dedup_options(dir)) {
        Ok(mut dedup) => {
            // What is known, and as much that is not.
            if let Ok(fates) = dedup.decide(&record(1, 0..2 * KEYS)) {
                for row in 0..2 * KEYS {
                    let expected = if row < KEYS { Fate::Drop } else { Fate::Keep };
                    let row = u16::try_from(row).expect("a few");
                    assert_eq!(fates.of(row), expected, "row {row}");
                }
            }
        }
        Err(error) => assert!(files != *sound, "a sound state was refused: {error}"),
    }
}

fn make() -> Vec<(String, Vec<u8>)> {
    let dir = tempfile::tempdir().expect("a directory");
    let mut dedup = Dedup::open(dedup_options(dir.path())).expect("an empty state");
    dedup.decide(&record(0, 0..KEYS)).expect("decided");
    dedup.decide(&record(1, KEYS..KEYS + 1)).expect("decided");
    for _ in 0..2 {
        dedup.committed(2).expect("sealed");
    }
    assert_eq!(dedup.applied(), Some(1), "the first bucket is sealed");
    dedup.close().expect("closed");
    let entries = fs::read_dir(dir.path()).expect("a directory");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    let named = |path: &PathBuf| {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        (name, fs::read(path).expect("read"))
    };
    let files: Vec<_> = paths
        .iter()
        .map(named)
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect();
    assert_eq!(files.len(), 3, "bucket, filter and manifest");
    files
}

/// Keys are spread as real hashes are; the bucket of record 0 freezes before record 1.
fn record(offset: u64, keys: std::ops::Range<u64>) -> Record {
    let rows = u32::try_from(keys.end - keys.start).expect("a few");
    let meta = RecordMeta {
        tenant: TenantId::new("acme").expect("valid"),
        dataset: Name::new("events").expect("valid"),
        table: Name::new("events").expect("valid"),
        schema_version: 1,
        identity: Identity::Key,
        window_ms: WINDOW_MS,
        holds: Holds::Events,
    };
    let span = RequestSpan {
        request: RequestId(1),
        first_row: 0,
        rows,
        taken: rows,
        rejected: 0,
        trace_id: 0,
        span_id: 0,
    };
    let spread = |n: u64| u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64 | u128::from(n);
    let content = RecordContent {
        column_bytes: 0,
        meta: serde_json::to_vec(&meta).expect("text").into(),
        spans: vec![span],
        keys: keys.map(spread).collect(),
        fingerprints: Vec::new(),
        body: Bytes::new(),
    };
    let place = Placement {
        log: LogId(1),
        offset,
        append_ms: 10_000 + offset * (WINDOW_MS - 1),
        durable_below: 0,
    };
    let mut frame = Vec::new();
    content.write(place, &mut frame);
    Record::read(&frame.into()).expect("sound")
}
