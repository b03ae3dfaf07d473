//! Files below the data directory, as a disk or a person may leave them: read or refused with a sentence, and
//! a log that opens opens again with the same records. A damaged bucket of dedup: [`sealed`].

use crate::{record, sealed};
use sluice_common::clock::ManualClock;
use sluice_common::disk::{Dir, Disk};
use sluice_common::ids::{LogId, Name};
use sluice_normalizer::dedup::{Dedup, DedupOptions, Workers};
use sluice_normalizer::log::{EmbeddedLog, LogOptions};
use sluice_normalizer::parked::file;
use sluice_normalizer::progress::store::Store;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

const MIB: u64 = 1024 * 1024;
const HEADER: usize = 64;

/// One file of some kind, with its checksums put right.
pub fn run(input: &[u8]) {
    let (choice, rest) = super::choice(input);
    // In memory where there is such a place: each input makes files.
    let place = Some(Path::new("/dev/shm")).filter(|path| path.is_dir());
    let dir = place
        .map_or_else(TempDir::new, TempDir::new_in)
        .expect("a directory");
    match choice % 6 {
        0 => log_manifest(dir.path(), rest),
        1 => segment(dir.path(), rest),
        2 => progress(dir.path(), rest),
        3 => dedup_manifest(dir.path(), rest),
        4 => parked(dir.path(), rest),
        _ => sealed::run(dir.path(), rest),
    }
}

fn open(dir: &Path) -> Option<Vec<Vec<u8>>> {
    let mut options = LogOptions::new(dir.to_path_buf(), MIB, 0);
    options.segment_bytes = 64 * 1024;
    options.reserve_bytes = Some(0);
    let log = EmbeddedLog::open(options, Arc::new(ManualClock::at(1))).ok()?;
    let mut records = Vec::new();
    let mut from = log.first_offset();
    while let Ok(read) = log.read(from, 64 * 1024) {
        let Some(last) = read.last() else { break };
        from = last.place.offset + 1;
        records.extend(read.iter().map(|one| one.frame().to_vec()));
    }
    log.close();
    Some(records)
}

fn log_manifest(dir: &Path, bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    super::mend(&mut bytes, 4, 8);
    fs::write(dir.join("manifest"), &bytes).expect("written");
    if open(dir).is_some() {
        assert!(open(dir).is_some(), "what opened once opens again");
    }
}

/// A new log whose only segment has these frames, each with its checksum put right.
fn segment(dir: &Path, bytes: &[u8]) {
    if open(dir).is_none() {
        return;
    }
    let name = dir.join("00000000000000000000.segment");
    let Ok(mut file) = fs::read(&name) else { return };
    let manifest = fs::read(dir.join("manifest")).expect("it was made");
    let mut frames = bytes.to_vec();
    frames.truncate(file.len().saturating_sub(HEADER));
    let mut at = 0;
    while let Some(length) = frames.get(at + 4..at + 8) {
        let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
        let Some(frame) = frames
            .get_mut(at..at.saturating_add(length))
            .filter(|frame| frame.len() >= 72)
        else {
            break;
        };
        frame[16..24].copy_from_slice(&manifest[16..24]);
        super::mend(frame, 8, 12);
        at += length;
    }
    file[HEADER..HEADER + frames.len()].copy_from_slice(&frames);
    fs::write(&name, &file).expect("written");
    if let Some(first) = open(dir) {
        assert_eq!(
            open(dir).as_ref(),
            Some(&first),
            "the second recovery keeps what the first kept"
        );
        first.into_iter().for_each(|frame| record::read(&frame.into()));
    }
}

fn progress(dir: &Path, bytes: &[u8]) {
    let path = dir.join("progress");
    let mut bytes = bytes.to_vec();
    if bytes.len() >= 24 {
        let length = bytes.len() - 24;
        super::put(&mut bytes, 16, length);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..20]), &bytes[24..]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(&path, &bytes).expect("written");
    let Ok(Some(mut store)) = Store::open(&Disk::default(), &path) else {
        return;
    };
    let state = store.state().clone();
    if store.write(state.clone()).is_ok() {
        let again = Store::open(&Disk::default(), &path)
            .expect("what was written is read")
            .expect("it is there");
        assert_eq!(*again.state(), state);
    }
}

fn dedup_manifest(dir: &Path, bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    if bytes.len() >= 16 {
        let length = bytes.len() - 16;
        super::put(&mut bytes, 12, length);
        let crc = crc32c::crc32c(&bytes[16..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(dir.join("manifest"), &bytes).expect("written");
    drop(Dedup::open(dedup_options(dir)));
}

/// A small state of the log with id 1.
pub fn dedup_options(dir: &Path) -> DedupOptions {
    DedupOptions {
        dir: dir.into(),
        log: LogId(1),
        secret_check: 2,
        memory_bytes: MIB,
        max_bytes: MIB,
        active_keys: 1_000,
        max_window_ms: 1_000,
        rotate_ms: 500,
        workers: Workers::Caller,
    }
}

/// A unit and its marks: the head's length is the first line's, and what follows are the records.
fn parked(dir: &Path, bytes: &[u8]) {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(bytes.len());
    let (head, records) = bytes.split_at(end);
    let framed = |magic: &[u8; 4], text: &[u8]| {
        let mut file = [magic.as_slice(), &[2, 0, 0, 0], &[0; 8], text].concat();
        super::put(&mut file, 8, text.len());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&file[..12]), text);
        file[12..16].copy_from_slice(&crc.to_le_bytes());
        file
    };
    let id = file::UnitId {
        a: 0,
        b: 1,
        table: Name::new("events").expect("valid"),
    };
    let stem = format!("{:012x}-{:012x}-{}", id.a, id.b, id.table);
    let records = records.strip_prefix(b"\n").unwrap_or_default();
    let unit = [framed(b"SLU1", head), records.to_vec()].concat();
    fs::write(dir.join(format!("{stem}.unit")), unit).expect("written");
    fs::write(dir.join(format!("{stem}.marks")), framed(b"SLM1", records)).expect("written");
    let dir = Dir::from(dir);
    assert_eq!(file::list(&dir).expect("a directory"), [id.clone()]);
    if let Ok((head, _)) = file::read_head(&dir, &id) {
        file::read_marks(&dir, &id, &head).ok();
        if let Ok((_, records)) = file::read(&dir, &id) {
            records.iter().for_each(|one| record::read(one.record.frame()));
        }
    }
}
