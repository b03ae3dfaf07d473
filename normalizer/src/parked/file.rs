//! The files of one unit: one table's rows of one range, set aside (R16).
//!
//! # Design note
//! *Constraints.* A unit is durable before its range counts it as settled, and outlives the range's
//! records in the log. Between the file and the commit a crash may come: the file's name is a function
//! of range and table, so that the range finds its own again. *Bytes.* Two files in one directory.
//! ```text
//! {a:012x}-{b:012x}-{table}.unit   rows, written once
//!  0  u32 magic "SLU1"   4  u16 version (2)   6  u16 zero
//!  8  u32 length of the head   12  u32 CRC-32C of bytes 0..12 and the head
//! 16  head (JSON of Head) | the records' frames, each with a checksum of its own
//!
//! {a:012x}-{b:012x}-{table}.marks  what is decided of them since
//!  0  u32 magic "SLM1"   4  u16 version (2)   6  u16 zero
//!  8  u32 length   12  u32 CRC-32C of bytes 0..12 and the rest   16  JSON of Marks
//! ```
//! *Write.* Under another name, fsync, rename, fsync of the directory; an error before the rename leaves
//! nothing, one after it ends the process, because nobody knows what is there. *Read.* The head at a
//! start; frames when the unit's turn comes. *Delete.* The unit first, then its marks: marks alone mean
//! nothing and are removed at a start, as are files of another name. *Recovery.* The directory is synced before
//! what it lists counts. A unit that does not
//! check out is an error and stops the start: acknowledged rows are in it.

use crate::framed::{self, PREFIX_BYTES, frame, unframe};
use crate::progress::Marks;
use serde::{Deserialize, Serialize};
use sluice_common::books::{BooksLine, LedgerRow};
use sluice_common::clock::UnixMs;
use sluice_common::disk::Dir;
use sluice_common::failpoint::{self, Point};
use sluice_common::fates::Fates;
use sluice_common::ids::{LogId, Name};
use sluice_common::record::Record;
use sluice_common::replace::{OWNER_ONLY, rename};
use sluice_common::servers::ServerId;
use sluice_common::wire::sink::{Range, RangeRecord, RefusedRows};
use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

const UNIT_MAGIC: [u8; 4] = *b"SLU1";
const MARKS_MAGIC: [u8; 4] = *b"SLM1";
/// 2: a unit names its server, and may be of our own tables. Without that it is as 1 was.
const VERSION: u16 = 2;
const OLDEST_VERSION: u16 = 1;

/// Which unit: units of one table are settled in this order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnitId {
    pub a: u64,
    pub b: u64,
    pub table: Name,
}

/// What a unit says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub log: LogId,
    pub partition: u16,
    pub range: Range,
    pub table: Name,
    /// The ClickHouse that its rows were sent to, or may have been: they are proven and sent there only. None:
    /// it was set aside when there was one only, which the config names first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerId>,
    /// Label of the trouble.
    pub why: String,
    /// The trouble as it was told.
    pub reason: String,
    /// Whether sending again may settle it; else it waits for a person.
    pub heals: bool,
    pub since_ms: UnixMs,
    /// What was decided before it was set aside.
    pub marks: Marks,
    /// Of each record.
    pub fates: Vec<Fates>,
    /// Rows that are set aside, by dataset.
    pub rows: BTreeMap<Name, u64>,
    /// Frame bytes by dataset.
    pub bytes: BTreeMap<Name, u64>,
    /// Of our own tables: rows of the books, refused rows of the records, and what is in flight with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ledger: Vec<LedgerRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<RefusedRows>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub in_flight: Vec<BooksLine>,
}

/// Why a unit's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: std::io::Error },
    #[error("{path}: nobody knows whether it is on disk: {error}")]
    InDoubt { path: PathBuf, error: std::io::Error },
    #[error(
        "{path} is damaged ({reason}): it holds acknowledged events. Restore it from a copy, or move it away to go \
         on without them"
    )]
    Damaged { path: PathBuf, reason: String },
}

impl UnitId {
    /// The id of a range's share of one table.
    #[must_use]
    pub fn new(range: Range, table: Name) -> Self {
        let Range { a, b } = range;
        Self { a, b, table }
    }

    /// Its range.
    #[must_use]
    pub fn range(&self) -> Range {
        Range { a: self.a, b: self.b }
    }

    /// The name of one of its files.
    pub(super) fn name(&self, extension: &str) -> String {
        format!("{:012x}-{:012x}-{}.{extension}", self.a, self.b, self.table)
    }

    /// Reads what [`Self::name`] wrote.
    fn parse(name: &str) -> Option<Self> {
        let (a, rest) = name.strip_suffix(".unit")?.split_once('-')?;
        let (b, table) = rest.split_once('-')?;
        Some(Self {
            a: u64::from_str_radix(a, 16).ok()?,
            b: u64::from_str_radix(b, 16).ok()?,
            table: Name::new(table).ok()?,
        })
    }
}

/// Makes a unit durable.
///
/// # Errors
/// [`FileError::Io`]: nothing is there. [`FileError::InDoubt`]: the process must end.
pub fn write(dir: &Dir, id: &UnitId, head: &Head, records: &[RangeRecord]) -> Result<(), FileError> {
    let mut bytes = framed(UNIT_MAGIC, &json(head));
    records
        .iter()
        .for_each(|one| bytes.extend_from_slice(one.record.frame()));
    let points = (Point::UnitWrite, Point::UnitWritten);
    replace(dir, &id.name("unit"), &bytes, points)
}

/// Makes a unit's marks durable.
///
/// # Errors
/// As [`write`].
pub fn write_marks(dir: &Dir, id: &UnitId, marks: &Marks) -> Result<(), FileError> {
    let points = (Point::UnitMarks, Point::UnitMarked);
    replace(dir, &id.name("marks"), &framed(MARKS_MAGIC, &json(marks)), points)
}

/// The marks of a unit: those of its head until newer ones were written.
///
/// # Errors
/// [`FileError`].
pub fn read_marks(dir: &Dir, id: &UnitId, head: &Head) -> Result<Marks, FileError> {
    let path = dir.join(id.name("marks"));
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(head.marks.clone()),
        Err(error) => return Err(FileError::Io { path, error }),
    };
    let (text, rest) = unframed(MARKS_MAGIC, &bytes).map_err(|reason| damaged(&path, reason))?;
    if !rest.is_empty() {
        return Err(damaged(&path, "bytes follow the marks".into()));
    }
    serde_json::from_slice(text).map_err(|error| damaged(&path, error.to_string()))
}

/// Reads only what a unit says of itself.
///
/// # Errors
/// [`FileError`].
pub fn read_head(dir: &Dir, id: &UnitId) -> Result<(Head, u64), FileError> {
    let path = dir.join(id.name("unit"));
    let failed = |error| FileError::Io {
        path: path.clone(),
        error,
    };
    let mut file = File::open(&path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut bytes = vec![0; PREFIX_BYTES];
    file.read_exact(&mut bytes)
        .map_err(|error| damaged(&path, error.to_string()))?;
    let length = framed::length(&bytes) as u64;
    if length > size {
        return Err(damaged(&path, "it is cut short".into()));
    }
    file.take(length).read_to_end(&mut bytes).map_err(failed)?;
    let (text, _) = unframed(UNIT_MAGIC, &bytes).map_err(|reason| damaged(&path, reason))?;
    let head: Head = serde_json::from_slice(text).map_err(|error| damaged(&path, error.to_string()))?;
    let frames: u64 = head.bytes.values().sum();
    if size != PREFIX_BYTES as u64 + length + frames {
        return Err(damaged(&path, format!("{size} bytes are not what its head says")));
    }
    Ok((head, size))
}

/// Reads a whole unit.
///
/// # Errors
/// [`FileError`].
pub fn read(dir: &Dir, id: &UnitId) -> Result<(Head, Vec<RangeRecord>), FileError> {
    let path = dir.join(id.name("unit"));
    let bytes = std::fs::read(&path).map_err(|error| FileError::Io {
        path: path.clone(),
        error,
    })?;
    let wrong = |reason: String| damaged(&path, reason);
    let (text, frames) = unframed(UNIT_MAGIC, &bytes).map_err(wrong)?;
    let head: Head = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
    let mut rest = bytes::Bytes::copy_from_slice(frames);
    let mut records = Vec::with_capacity(head.fates.len());
    for fates in &head.fates {
        let record = Record::read(&rest).map_err(|error| wrong(error.to_string()))?;
        rest = rest.slice(record.frame().len()..);
        if fates.rows() != record.rows() || !fates.is_sound() {
            return Err(wrong("fates do not match their record".into()));
        }
        let fates = fates.clone();
        records.push(RangeRecord { record, fates });
    }
    if !rest.is_empty() {
        return Err(wrong("bytes follow the records".into()));
    }
    Ok((head, records))
}

/// Deletes a unit: the rows first, then what was decided of them.
///
/// # Errors
/// [`FileError::InDoubt`].
pub fn remove(dir: &Dir, id: &UnitId) -> Result<(), FileError> {
    for (extension, before) in [("unit", Point::UnitRemove), ("marks", Point::UnitRemoved)] {
        let path = dir.join(id.name(extension));
        match failpoint::hit(before).and_then(|()| dir.disk.remove(&path)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(FileError::InDoubt { path, error });
            }
            Ok(()) | Err(_) => {}
        }
        settled(dir, path)?;
    }
    Ok(())
}

/// The units of a directory, which is made where it is missing. Leftovers of a crash are removed.
///
/// # Errors
/// [`FileError`].
pub fn list(dir: &Dir) -> Result<Vec<UnitId>, FileError> {
    let failed = |error| FileError::Io {
        path: dir.path.clone(),
        error,
    };
    dir.disk.make_dir(&dir.path, 0o777).map_err(failed)?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir.path).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    // R5: of a process that was killed, the kernel shows renames that the disk may not have yet.
    dir.sync().map_err(failed)?;
    let units: Vec<UnitId> = names.iter().filter_map(|name| UnitId::parse(name)).collect();
    let is_left_over = |name: &&String| {
        let marks = name.strip_suffix(".marks").map(|stem| format!("{stem}.unit"));
        name.ends_with(".new") || marks.is_some_and(|unit| !names.contains(&unit))
    };
    for name in names.iter().filter(is_left_over) {
        match dir.disk.remove(&dir.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(units)
}

fn replace(dir: &Dir, name: &str, bytes: &[u8], (before, after): (Point, Point)) -> Result<(), FileError> {
    let (path, fresh) = (dir.join(name), dir.join(format!("{name}.new")));
    let owner_only = Permissions::from_mode(OWNER_ONLY);
    let renamed = failpoint::hit(before).and_then(|()| rename(&dir.disk, (&fresh, &path), bytes, owner_only));
    if let Err(error) = renamed {
        return Err(FileError::Io { path, error });
    }
    if let Err(error) = failpoint::hit(after) {
        return Err(FileError::InDoubt { path, error });
    }
    settled(dir, path)
}

/// The entry of `path` is durable, or nobody knows.
fn settled(dir: &Dir, path: PathBuf) -> Result<(), FileError> {
    dir.sync().map_err(|error| FileError::InDoubt { path, error })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("no map with other keys than text")
}

fn framed(magic: [u8; 4], text: &[u8]) -> Vec<u8> {
    frame(magic, VERSION, text)
}

/// The checked text, and what follows it.
fn unframed(magic: [u8; 4], bytes: &[u8]) -> Result<(&[u8], &[u8]), String> {
    unframe(magic, OLDEST_VERSION..=VERSION, bytes)
}

fn damaged(path: &Path, reason: String) -> FileError {
    FileError::Damaged {
        path: path.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::DeadRow;

    fn head() -> Head {
        let table = Name::new("events").expect("valid");
        let dead = DeadRow {
            table: table.clone(),
            part: "all".into(),
            row: 3,
            o: 7,
            code: 469,
            message: "no".into(),
        };
        Head {
            log: LogId(7),
            partition: 0,
            range: Range { a: 3, b: 5 },
            table,
            why: "refused".into(),
            reason: "code 60".into(),
            heals: true,
            since_ms: 1,
            marks: Marks {
                dead: vec![dead],
                ..Marks::default()
            },
            fates: Vec::new(),
            rows: BTreeMap::new(),
            bytes: BTreeMap::new(),
            server: Some(ServerId::named("a:8123")),
            ledger: Vec::new(),
            quarantined: Vec::new(),
            in_flight: Vec::new(),
        }
    }

    #[test]
    fn what_was_set_aside_before_there_were_several_servers_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let before = Head {
            server: None,
            ..head()
        };
        let mut bytes = framed(UNIT_MAGIC, &json(&before));
        bytes[4] = 1;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[PREFIX_BYTES..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        let id = UnitId::new(before.range, before.table.clone());
        std::fs::write(dir.path().join(id.name("unit")), bytes).expect("written");
        assert_eq!(read(&dir.path().into(), &id).expect("read").0, before);
    }

    #[test]
    fn what_is_written_is_found_and_read_back_and_goes_when_it_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (dir, head) = (&Dir::from(dir.path()), head());
        let id = UnitId::new(head.range, head.table.clone());
        write(dir, &id, &head, &[]).expect("written");
        assert_eq!(list(dir).expect("listed"), std::slice::from_ref(&id));
        assert_eq!(read_head(dir, &id).expect("read").0, head);
        assert_eq!(read(dir, &id).expect("read").0, head);
        assert_eq!(read_marks(dir, &id, &head).expect("read"), head.marks);
        let newer = Marks {
            closing: true,
            ..head.marks.clone()
        };
        write_marks(dir, &id, &newer).expect("written");
        assert_eq!(read_marks(dir, &id, &head).expect("read"), newer);
        remove(dir, &id).expect("removed");
        assert_eq!(std::fs::read_dir(&dir.path).expect("listed").count(), 0);
    }

    #[test]
    fn leftovers_of_a_crash_go_and_mean_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let (dir, head) = (&Dir::from(dir.path()), head());
        let id = UnitId::new(head.range, head.table.clone());
        write_marks(dir, &id, &head.marks).expect("written");
        std::fs::write(dir.join("x.unit.new"), b"torn").expect("written");
        assert_eq!(list(dir).expect("listed"), []);
        assert_eq!(std::fs::read_dir(&dir.path).expect("listed").count(), 0);
    }

    #[test]
    fn a_flipped_bit_or_a_cut_anywhere_is_told_and_never_read_as_rows() {
        let dir = tempfile::tempdir().expect("a directory");
        let (dir, head) = (&Dir::from(dir.path()), head());
        let id = UnitId::new(head.range, head.table.clone());
        write(dir, &id, &head, &[]).expect("written");
        let path = dir.join(id.name("unit"));
        let good = std::fs::read(&path).expect("read");
        for at in 0..good.len() {
            let mut flipped = good.clone();
            flipped[at] ^= 0x10;
            std::fs::write(&path, &flipped).expect("written");
            assert!(read(dir, &id).is_err(), "bit of byte {at}");
            std::fs::write(&path, &good[..at]).expect("written");
            assert!(
                read(dir, &id).is_err() && read_head(dir, &id).is_err(),
                "cut at {at}"
            );
        }
    }
}
