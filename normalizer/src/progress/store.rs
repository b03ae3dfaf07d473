//! Where progress is kept: a file of this machine's, or, where several share the work, with the log ([`Keep`]).
//!
//! The file is two slots, written in turn ([`crate::slots`]).
//!
//! # Design note
//! *Constraints.* Intents and commits must be durable, must survive a crash in the middle of a write,
//! and must have room on a full volume (R5). *Bytes.* Two slots of [`SLOT_BYTES`], magic `SLP1`, version 2; the payload is
//! JSON of [`Progress`]. *Recovery.* Where a slot is torn the previous state counts: nothing was sent under the torn one,
//! because sending waits for the fdatasync. A file with no valid slot is an error, never an empty state.

use super::Progress;
use crate::slots::{Format, HEAD_BYTES, Slots, SlotsError};
use sluice_common::disk::Disk;
use sluice_common::failpoint::{self, Point};
use sluice_common::limits::MAX_SUB_BATCHES;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Bytes of one slot: all sub-batches of a range fit, bumped and at their longest, 1 KiB each.
pub const SLOT_BYTES: usize = MAX_SUB_BATCHES * 1024;
/// 2: an intent names its server. A release that would not heed it must not read it; without one it is as
/// 1 was.
const FORMAT: Format = Format {
    magic: *b"SLP1",
    versions: RangeInclusive::new(1, 2),
};

/// Progress, and where it is kept. One owner.
pub struct Store {
    place: Place,
    state: Progress,
}

enum Place {
    /// The log's lock covers it.
    File {
        slots: Slots,
        path: PathBuf,
    },
    Shared(Box<dyn Keep>),
    /// It was [shared](Place::Shared), and its partition is worked on no more, or by another store.
    Ended,
}

/// Keeps a partition's progress where whoever works on it next finds it.
pub trait Keep: Send {
    /// Makes `state` durable, for as long as the partition is ours. Blocks, and goes on trying.
    ///
    /// # Errors
    /// [`NotKept`].
    fn keep(&mut self, state: &Progress) -> Result<(), NotKept>;
}

/// Why progress is not kept.
#[derive(Debug, thiserror::Error)]
pub enum NotKept {
    /// Others work on the partition now: nothing may be sent, committed or deleted any more.
    #[error("the partition is not ours any more")]
    Fenced,
    #[error("{0}")]
    Failed(String),
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
    #[error(transparent)]
    Shared(#[from] NotKept),
}

impl Store {
    /// Reads the state at `path`, or `None` where there is no file.
    ///
    /// # Errors
    /// [`StoreError`] where a file is there and cannot be used.
    pub fn open(disk: &Disk, path: &Path) -> Result<Option<Self>, StoreError> {
        let path = path.to_owned();
        let (slots, payload) = match Slots::open(disk, &path, FORMAT) {
            Ok(found) => found,
            Err(SlotsError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(SlotsError::Io(error)) => return Err(StoreError::Io { path, error }),
            Err(SlotsError::Newer(version)) => return Err(StoreError::Newer { path, version }),
            Err(SlotsError::Damaged) => return Err(StoreError::Damaged { path }),
        };
        match serde_json::from_slice(&payload) {
            Ok(state) => Ok(Some(Self {
                place: Place::File { slots, path },
                state,
            })),
            Err(_) => Err(StoreError::Damaged { path }),
        }
    }

    /// Makes the file with `state`. A crash in between leaves no file of that name.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn create(disk: &Disk, path: &Path, state: Progress) -> Result<Self, StoreError> {
        let payload = encode(&state)?;
        let fresh = path.with_extension("new");
        let written = || failpoint::hit(Point::ProgressWritten);
        let (paths, format) = ((&*fresh, path), (FORMAT, SLOT_BYTES, 0o666));
        let slots = Slots::create(disk, paths, format, (&payload, written));
        let slots = slots.map_err(|error| StoreError::Io {
            path: path.to_owned(),
            error,
        })?;
        Ok(Self {
            place: Place::File {
                slots,
                path: path.to_owned(),
            },
            state,
        })
    }

    /// That of a log which keeps progress itself, where it stands at `state`.
    #[must_use]
    pub fn shared(keep: Box<dyn Keep>, state: Progress) -> Self {
        Self {
            place: Place::Shared(keep),
            state,
        }
    }

    /// Whether others may go on from it.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.place, Place::Shared(_) | Place::Ended)
    }

    /// Nothing is kept by it any more, where others may go on: whatever has it still writes over nobody's progress.
    pub fn end(&mut self) {
        if self.is_shared() {
            self.place = Place::Ended;
        }
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
        failpoint::hit(point).map_err(|error| self.failed(error))
    }

    /// Makes `state` durable. After an error nothing may be sent that relies on it.
    ///
    /// # Errors
    /// [`StoreError`]; after [`StoreError::Io`] the process must end: it cannot know what is on disk.
    pub fn write(&mut self, state: Progress) -> Result<(), StoreError> {
        match &mut self.place {
            Place::File { slots, path } => {
                let payload = encode(&state)?;
                let failed = |error| StoreError::Io {
                    path: path.clone(),
                    error,
                };
                slots.put(&payload).map_err(failed)?;
                failpoint::hit(Point::ProgressWritten).map_err(failed)?;
                slots.sync().map_err(failed)?;
            }
            Place::Ended => return Err(NotKept::Fenced.into()),
            Place::Shared(keep) => {
                keep.keep(&state)?;
                failpoint::hit(Point::ProgressWritten).map_err(|error| NotKept::Failed(error.to_string()))?;
            }
        }
        self.state = state;
        Ok(())
    }

    fn failed(&self, error: std::io::Error) -> StoreError {
        match &self.place {
            Place::File { path, .. } => StoreError::Io {
                path: path.clone(),
                error,
            },
            Place::Shared(_) | Place::Ended => NotKept::Failed(error.to_string()).into(),
        }
    }
}

fn encode(state: &Progress) -> Result<Vec<u8>, StoreError> {
    let payload = serde_json::to_vec(state).expect("progress has no map with other keys than text");
    // The slot's own words stand before it.
    if payload.len() + HEAD_BYTES > SLOT_BYTES {
        return Err(StoreError::TooLarge { bytes: payload.len() });
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::super::{Intent, Marks, Proof};
    use super::*;
    use sluice_common::ids::{LogId, Name};
    use sluice_common::servers::ServerId;
    use sluice_common::wire::sink::{Range, SubKey, SubTask};

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
            committed,
            intent: Some(intent),
            ..Progress::new(LogId(7), None)
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
    fn a_file_without_a_valid_slot_is_never_an_empty_state() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("progress");
        std::fs::write(&path, vec![0; 2 * SLOT_BYTES]).expect("written");
        assert!(matches!(
            Store::open(&Disk::default(), &path),
            Err(StoreError::Damaged { .. })
        ));
    }

    fn decoded(bytes: &[u8]) -> (u64, Progress) {
        let (sequence, payload) = FORMAT.decode(bytes).expect("known").expect("valid");
        (sequence, serde_json::from_slice(payload).expect("reads"))
    }

    #[test]
    fn what_was_declared_before_there_were_several_servers_is_read() {
        let mut before = state(5);
        if let Some(intent) = &mut before.intent {
            intent.server = None;
        }
        let first = Format {
            versions: 1..=1,
            ..FORMAT
        };
        let bytes = first.encode(9, &encode(&before).expect("small"));
        assert_eq!(decoded(&bytes), (9, before));
        assert_eq!(
            crc32c::crc32c(&bytes),
            439_222_224,
            "these are the bytes of layout 1"
        );
    }

    #[test]
    fn the_layout_is_frozen() {
        let bytes = FORMAT.encode(9, &encode(&state(5)).expect("small"));
        assert_eq!(&bytes[..4], b"SLP1");
        assert_eq!(decoded(&bytes), (9, state(5)));
        assert_eq!(
            crc32c::crc32c(&bytes),
            2_334_045_910,
            "the bytes on disk changed: bump the layout version"
        );
    }
}
