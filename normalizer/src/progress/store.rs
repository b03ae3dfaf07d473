//! The progress file: two slots, written in turn.
//!
//! # Design note
//! *Constraints.* Intents and commits must be durable, must survive a crash in the middle of a write,
//! and must have room on a full volume (R5). *Bytes.* Two slots of [`SLOT_BYTES`], written with zeros
//! and synced when the file is made, so that later writes only overwrite allocated blocks.
//! ```text
//! 0  u32 magic "SLP1"   4 u16 version (2)   6 u16 zero   8 u64 sequence
//! 16 u32 length of the payload   20 u32 CRC-32C of bytes 0..20 and the payload   24 payload (JSON of Progress)
//! ```
//! *Write.* Slot `sequence % 2`, then fdatasync: the other slot holds the previous state until then.
//! *Read.* The valid slot with the higher sequence. *Delete.* Never. *Recovery.* A torn slot fails its
//! checksum and the previous state counts: nothing was sent under the torn one, because sending waits
//! for the fdatasync. What is read is synced before anything is done by it: of a process that was killed the
//! kernel shows what the disk may not have yet. A file with no valid slot is an error, never an empty state.

use super::Progress;
use rustix::fs::{FallocateFlags, fallocate};
use sluice_common::disk::{Disk, DiskFile, parent_of};
use sluice_common::failpoint::{self, Point};
use sluice_common::limits::MAX_SUB_BATCHES;
use std::path::{Path, PathBuf};

/// Bytes of one slot: all sub-batches of a range fit, bumped and at their longest, 1 KiB each.
pub const SLOT_BYTES: usize = MAX_SUB_BATCHES * 1024;
const HEAD_BYTES: usize = 24;
const MAGIC: u32 = u32::from_le_bytes(*b"SLP1");
/// 2: an intent names its server. A release that would not heed it must not read it; without one it is as
/// 1 was.
const VERSION: u16 = 2;
const OLDEST_VERSION: u16 = 1;

/// The open file. One owner: the log's lock covers it.
#[derive(Debug)]
pub struct Store {
    file: DiskFile,
    path: PathBuf,
    sequence: u64,
    state: Progress,
}

/// Why progress cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: std::io::Error },
    #[error(
        "{path} holds no valid progress: restore it from a copy taken together with the log, never delete it alone"
    )]
    Damaged { path: PathBuf },
    #[error("{path} was written by a later release (layout {version}): start that release")]
    Newer { path: PathBuf, version: u16 },
    #[error("the progress needs {bytes} bytes, more than a slot's {SLOT_BYTES}")]
    TooLarge { bytes: usize },
}

impl Store {
    /// Reads the state at `path`, or `None` where there is no file.
    ///
    /// # Errors
    /// [`StoreError`] where a file is there and cannot be used.
    pub fn open(disk: &Disk, path: &Path) -> Result<Option<Self>, StoreError> {
        let failed = |error| StoreError::Io {
            path: path.to_owned(),
            error,
        };
        let file = match disk.open_write(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut best: Option<(u64, Progress)> = None;
        for slot in 0..2 {
            let mut bytes = vec![0; SLOT_BYTES];
            file.read_at(&mut bytes, slot * SLOT_BYTES as u64)
                .map_err(failed)?;
            let found = decode(&bytes).map_err(|version| StoreError::Newer {
                path: path.to_owned(),
                version,
            })?;
            best = best
                .into_iter()
                .chain(found)
                .max_by_key(|(sequence, _)| *sequence);
        }
        let (sequence, state) = best.ok_or_else(|| StoreError::Damaged {
            path: path.to_owned(),
        })?;
        // R5: a process that was killed may have written it without having synced it.
        file.sync().map_err(failed)?;
        disk.sync_dir(parent_of(path)).map_err(failed)?;
        Ok(Some(Self {
            file,
            path: path.to_owned(),
            sequence,
            state,
        }))
    }

    /// Makes the file with `state`. A crash in between leaves no file of that name.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn create(disk: &Disk, path: &Path, state: Progress) -> Result<Self, StoreError> {
        let failed = |error| StoreError::Io {
            path: path.to_owned(),
            error,
        };
        let fresh = path.with_extension("new");
        let file = disk.create(&fresh, 0o666).map_err(failed)?;
        let room = fallocate(file.inner(), FallocateFlags::empty(), 0, 2 * SLOT_BYTES as u64);
        room.map_err(|error| failed(error.into()))?;
        file.write_at(&vec![0; 2 * SLOT_BYTES], 0).map_err(failed)?;
        let mut store = Self {
            file,
            path: path.to_owned(),
            sequence: 0,
            state: state.clone(),
        };
        store.write(state)?;
        store.file.sync_all().map_err(failed)?;
        disk.rename(&fresh, path).map_err(failed)?;
        disk.sync_dir(parent_of(path)).map_err(failed)?;
        store.file = store.file.renamed(path.to_owned());
        Ok(store)
    }

    /// The durable state.
    #[must_use]
    pub fn state(&self) -> &Progress {
        &self.state
    }

    /// A point on the way of what is kept here.
    ///
    /// # Errors
    /// [`StoreError::Io`], where a test asks for it.
    pub fn pass(&self, point: Point) -> Result<(), StoreError> {
        failpoint::hit(point).map_err(|error| StoreError::Io {
            path: self.path.clone(),
            error,
        })
    }

    /// Makes `state` durable. After an error nothing may be sent that relies on it.
    ///
    /// # Errors
    /// [`StoreError`]; after [`StoreError::Io`] the process must end: it cannot know what is on disk.
    pub fn write(&mut self, state: Progress) -> Result<(), StoreError> {
        let sequence = self.sequence + 1;
        let bytes = encode(sequence, &state);
        if bytes.len() > SLOT_BYTES {
            return Err(StoreError::TooLarge { bytes: bytes.len() });
        }
        let failed = |error| StoreError::Io {
            path: self.path.clone(),
            error,
        };
        self.file
            .write_at(&bytes, sequence % 2 * SLOT_BYTES as u64)
            .map_err(failed)?;
        failpoint::hit(Point::ProgressWritten).map_err(failed)?;
        self.file.sync().map_err(failed)?;
        (self.sequence, self.state) = (sequence, state);
        Ok(())
    }
}

fn encode(sequence: u64, state: &Progress) -> Vec<u8> {
    let payload = serde_json::to_vec(state).expect("progress has no map with other keys than text");
    let mut bytes = Vec::with_capacity(HEAD_BYTES + payload.len());
    bytes.extend_from_slice(&MAGIC.to_le_bytes());
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &payload);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&payload);
    bytes
}

/// The slot's state; `None` where it is torn or was never written; `Err` where it is a later layout's.
fn decode(slot: &[u8]) -> Result<Option<(u64, Progress)>, u16> {
    let word = |at: usize| {
        slot.get(at..at + 4)
            .and_then(|w| w.try_into().ok())
            .map_or(0, u32::from_le_bytes)
    };
    if word(0) != MAGIC {
        return Ok(None);
    }
    let payload = slot.get(HEAD_BYTES..HEAD_BYTES.saturating_add(word(16) as usize));
    let Some(payload) = payload else { return Ok(None) };
    if crc32c::crc32c_append(crc32c::crc32c(&slot[..20]), payload) != word(20) {
        return Ok(None);
    }
    let version = u16::from_le_bytes([slot[4], slot[5]]);
    if !(OLDEST_VERSION..=VERSION).contains(&version) {
        return Err(version);
    }
    let sequence = u64::from(word(8)) | u64::from(word(12)) << 32;
    Ok(serde_json::from_slice(payload)
        .ok()
        .map(|state| (sequence, state)))
}

#[cfg(test)]
mod tests {
    use super::super::{Intent, Marks, Proof};
    use super::*;
    use sluice_common::ids::{LogId, Name};
    use sluice_common::servers::ServerId;
    use sluice_common::wire::sink::{Range, SubKey, SubTask};
    use std::os::unix::fs::MetadataExt as _;

    fn state(committed: u64) -> Progress {
        let sub = SubKey::whole(Name::new("events").expect("valid"), "20261121");
        let intent = Intent {
            range: Range {
                a: committed,
                b: committed + 3,
            },
            proof: Proof {
                rows: 1,
                sum_o: 2,
                sum_o2: 4,
            },
            server: Some(ServerId {
                name: "a:8123".into(),
                uuid: Some("u".into()),
            }),
            marks: Marks {
                bumped: vec![SubTask { sub, generation: 1 }],
                ..Marks::default()
            },
        };
        Progress {
            log: LogId(7),
            committed,
            intent: Some(intent),
            secret_check: None,
        }
    }

    #[test]
    fn the_last_written_state_is_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("progress");
        assert!(Store::open(&Disk::default(), &path).expect("no error").is_none());
        let mut store = Store::create(&Disk::default(), &path, state(0)).expect("made");
        for committed in 1..6 {
            store.write(state(committed)).expect("written");
            let read = Store::open(&Disk::default(), &path)
                .expect("reads")
                .expect("is there");
            assert_eq!(read.state(), &state(committed));
        }
    }

    #[test]
    fn a_write_torn_anywhere_leaves_the_state_before_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("progress");
        let mut store = Store::create(&Disk::default(), &path, state(1)).expect("made");
        store.write(state(2)).expect("written");
        let before = std::fs::read(&path).expect("read");
        store.write(state(3)).expect("written");
        let after = std::fs::read(&path).expect("read");
        let changed: Vec<usize> = (0..after.len()).filter(|at| before[*at] != after[*at]).collect();
        let (first, last) = (changed[0], *changed.last().expect("changed"));
        for cut in first..=last {
            let mut torn = before.clone();
            torn[first..cut].copy_from_slice(&after[first..cut]);
            std::fs::write(&path, &torn).expect("written");
            let read = Store::open(&Disk::default(), &path)
                .expect("reads")
                .expect("is there");
            assert_eq!(read.state(), &state(2), "cut at {cut}");
        }
    }

    #[test]
    fn both_slots_have_their_room_on_the_disk_before_they_are_used_and_take_no_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("progress");
        let mut store = Store::create(&Disk::default(), &path, state(0)).expect("made");
        let room = || {
            let meta = std::fs::metadata(&path).expect("there");
            (meta.len(), meta.blocks() * 512)
        };
        let (length, allocated) = room();
        assert_eq!(length, 2 * SLOT_BYTES as u64);
        assert!(allocated >= length, "{allocated} of {length} bytes are allocated");
        for committed in 1..6 {
            store.write(state(committed)).expect("written");
        }
        assert_eq!(room(), (length, allocated));
    }

    #[test]
    fn a_file_without_a_valid_slot_is_never_an_empty_state() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("progress");
        std::fs::write(&path, vec![0; 2 * SLOT_BYTES]).expect("written");
        assert!(matches!(
            Store::open(&Disk::default(), &path),
            Err(StoreError::Damaged { .. })
        ));
    }

    #[test]
    fn what_was_declared_before_there_were_several_servers_is_read() {
        let mut before = state(5);
        if let Some(intent) = &mut before.intent {
            intent.server = None;
        }
        let mut bytes = encode(9, &before);
        bytes[4] = 1;
        let length = bytes.len() - HEAD_BYTES;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..20]), &bytes[HEAD_BYTES..][..length]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&bytes), Ok(Some((9, before))));
        assert_eq!(
            crc32c::crc32c(&bytes),
            439_222_224,
            "these are the bytes of layout 1"
        );
    }

    #[test]
    fn the_layout_is_frozen() {
        let bytes = encode(9, &state(5));
        assert_eq!(&bytes[..4], b"SLP1");
        assert_eq!(decode(&bytes), Ok(Some((9, state(5)))));
        assert_eq!(
            crc32c::crc32c(&bytes),
            2_334_045_910,
            "the bytes on disk changed: bump the layout version"
        );
    }
}
