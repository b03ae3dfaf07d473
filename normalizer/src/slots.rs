//! A small durable state in two slots of one file, written in turn: in place, so that keeping it costs one fdatasync,
//! never room, and no commit of the file system's journal, which whoever syncs beside it would wait for.
//!
//! # Bytes
//! Each slot, the second one at half the file's length:
//! ```text
//! 0  magic   4 u16 version   6 u16 zero   8 u64 sequence
//! 16 u32 length of the payload   20 u32 CRC-32C of bytes 0..20 and the payload   24 payload
//! ```
//! # Write
//! Slot `sequence % 2`, then fdatasync: the other slot holds the previous state until then. The file is made with
//! zeros, which are synced, so that later writes only overwrite allocated blocks.
//!
//! # Recovery
//! The valid slot with the higher sequence counts. A torn one fails its checksum. What is read is synced before anything
//! is done by it: of a process that was killed the kernel shows what the disk may not have yet.

use rustix::fs::{FallocateFlags, fallocate};
use sluice_common::disk::{Disk, DiskFile, parent_of};
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

/// Before a payload.
pub const HEAD_BYTES: usize = 24;

/// Whose slots they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    pub magic: [u8; 4],
    /// Layouts that are read; the last one is written.
    pub versions: RangeInclusive<u16>,
}

/// The open file. One owner.
#[derive(Debug)]
pub struct Slots {
    file: DiskFile,
    format: Format,
    slot_bytes: usize,
    sequence: u64,
}

/// Why a file's slots cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SlotsError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("neither of its slots is valid")]
    Damaged,
    #[error("layout {0} is a later release's: start that")]
    Newer(u16),
}

impl Slots {
    /// Opens a file, and reads the payload that was kept last.
    ///
    /// # Errors
    /// [`SlotsError`].
    pub fn open(disk: &Disk, path: &Path, format: Format) -> Result<(Self, Vec<u8>), SlotsError> {
        let file = disk.open_write(path)?;
        let length = file.inner().metadata()?.len();
        let slot_bytes = usize::try_from(length / 2).map_err(|_| SlotsError::Damaged)?;
        let mut best: Option<(u64, Vec<u8>)> = None;
        for slot in 0..2 {
            let mut bytes = vec![0; slot_bytes];
            file.read_at(&mut bytes, slot * slot_bytes as u64)?;
            let found = format.decode(&bytes).map_err(SlotsError::Newer)?;
            let found = found.map(|(sequence, payload)| (sequence, payload.to_vec()));
            best = best
                .into_iter()
                .chain(found)
                .max_by_key(|(sequence, _)| *sequence);
        }
        let (sequence, payload) = best.ok_or(SlotsError::Damaged)?;
        // A process that was killed may have written it without having synced it.
        file.sync()?;
        disk.sync_dir(parent_of(path))?;
        let slots = Self {
            file,
            format,
            slot_bytes,
            sequence,
        };
        Ok((slots, payload))
    }

    /// Makes the file with a first payload, by way of `fresh`, and calls `written` before it is synced. A crash in between
    /// leaves what was there before.
    ///
    /// # Errors
    /// Any of the disk; the fresh file is gone then.
    pub fn create(
        disk: &Disk,
        (fresh, path): (&Path, &Path),
        (format, slot_bytes, mode): (Format, usize, u32),
        (payload, written): (&[u8], impl FnOnce() -> io::Result<()>),
    ) -> io::Result<Self> {
        let made = Self::fill(disk, fresh, (format, slot_bytes, mode), (payload, written));
        let renamed = made.and_then(|slots| disk.rename(fresh, path).map(|()| slots));
        let slots = renamed.inspect_err(|_| {
            // It may never have been made.
            disk.remove(fresh).ok();
        })?;
        disk.sync_dir(parent_of(path))?;
        Ok(Self {
            file: slots.file.renamed(path.to_owned()),
            ..slots
        })
    }

    fn fill(
        disk: &Disk,
        fresh: &Path,
        (format, slot_bytes, mode): (Format, usize, u32),
        (payload, written): (&[u8], impl FnOnce() -> io::Result<()>),
    ) -> io::Result<Self> {
        let file = disk.create(fresh, mode)?;
        fallocate(file.inner(), FallocateFlags::empty(), 0, 2 * slot_bytes as u64)?;
        file.write_at(&vec![0; 2 * slot_bytes], 0)?;
        let mut slots = Self {
            file,
            format,
            slot_bytes,
            sequence: 0,
        };
        slots.put(payload)?;
        written()?;
        slots.file.sync_all()?;
        slots.sequence += 1;
        Ok(slots)
    }

    /// Whether a payload of so many bytes has room.
    #[must_use]
    pub fn fits(&self, bytes: usize) -> bool {
        HEAD_BYTES.saturating_add(bytes) <= self.slot_bytes
    }

    /// Writes a payload beside the one that counts. Until [`Self::sync`] nobody knows which of the two a crash leaves.
    ///
    /// # Errors
    /// Any of the disk; no room is [`io::ErrorKind::FileTooLarge`].
    pub fn put(&mut self, payload: &[u8]) -> io::Result<()> {
        if !self.fits(payload.len()) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let sequence = self.sequence + 1;
        let at = sequence % 2 * self.slot_bytes as u64;
        self.file.write_at(&self.format.encode(sequence, payload), at)
    }

    /// Makes durable what was put.
    ///
    /// # Errors
    /// Any of the disk: then these slots must not be written again, since nobody knows which of them the disk has.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync()?;
        self.sequence += 1;
        Ok(())
    }
}

impl Format {
    /// A slot's bytes.
    ///
    /// # Panics
    /// Over 4 GiB.
    #[must_use]
    pub fn encode(&self, sequence: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + payload.len());
        bytes.extend_from_slice(&self.magic);
        bytes.extend_from_slice(&self.versions.end().to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&sequence.to_le_bytes());
        let length = u32::try_from(payload.len()).expect("a payload is under 4 GiB");
        bytes.extend_from_slice(&length.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), payload);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// A slot's sequence and payload; `None` where it is torn or was never written.
    ///
    /// # Errors
    /// The version of a later release.
    pub fn decode<'a>(&self, slot: &'a [u8]) -> Result<Option<(u64, &'a [u8])>, u16> {
        let word = |at: usize| {
            slot.get(at..at + 4)
                .and_then(|w| w.try_into().ok())
                .map_or(0, u32::from_le_bytes)
        };
        if slot.len() < HEAD_BYTES || slot[..4] != self.magic {
            return Ok(None);
        }
        let payload = slot.get(HEAD_BYTES..HEAD_BYTES.saturating_add(word(16) as usize));
        let Some(payload) = payload else { return Ok(None) };
        if crc32c::crc32c_append(crc32c::crc32c(&slot[..20]), payload) != word(20) {
            return Ok(None);
        }
        let version = u16::from_le_bytes([slot[4], slot[5]]);
        if !self.versions.contains(&version) {
            return Err(version);
        }
        Ok(Some((u64::from(word(8)) | u64::from(word(12)) << 32, payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    const SLOT: usize = 4096;

    fn format() -> Format {
        Format {
            magic: *b"TEST",
            versions: 1..=2,
        }
    }

    fn made(dir: &Path, payload: &[u8]) -> Slots {
        let paths = (&*dir.join("a.new"), &*dir.join("a"));
        Slots::create(
            &Disk::default(),
            paths,
            (format(), SLOT, 0o600),
            (payload, || Ok(())),
        )
        .expect("made")
    }

    fn kept(dir: &Path) -> Vec<u8> {
        Slots::open(&Disk::default(), &dir.join("a"), format())
            .expect("reads")
            .1
    }

    #[test]
    fn both_slots_have_their_room_on_the_disk_before_they_are_used_and_take_no_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut slots = made(dir.path(), b"0");
        let room = || {
            let meta = std::fs::metadata(dir.path().join("a")).expect("there");
            (meta.len(), meta.blocks() * 512)
        };
        let (length, allocated) = room();
        assert_eq!(length, 2 * SLOT as u64);
        assert!(allocated >= length, "{allocated} of {length} bytes are allocated");
        for round in 1..6_u8 {
            slots.put(&[round; 9]).expect("written");
            slots.sync().expect("synced");
            assert_eq!(kept(dir.path()), [round; 9]);
        }
        assert_eq!(room(), (length, allocated));
        let (mut again, _) = Slots::open(&Disk::default(), &dir.path().join("a"), format()).expect("reads");
        again.put(b"after a start").expect("written");
        again.sync().expect("synced");
        assert_eq!(kept(dir.path()), b"after a start");
    }

    #[test]
    fn a_payload_without_room_is_refused_and_what_was_kept_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut slots = made(dir.path(), b"kept");
        assert!(slots.fits(SLOT - HEAD_BYTES) && !slots.fits(SLOT));
        let refused = slots.put(&[1; SLOT]).expect_err("too large");
        assert_eq!(refused.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(kept(dir.path()), b"kept");
    }

    #[test]
    fn a_later_layout_is_told_and_two_bad_slots_are_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(made(dir.path(), b"kept"));
        let path = dir.path().join("a");
        let older = Format {
            versions: 1..=1,
            ..format()
        };
        let told = Slots::open(&Disk::default(), &path, older);
        assert!(matches!(told, Err(SlotsError::Newer(2))), "{told:?}");
        std::fs::write(&path, vec![0; 2 * SLOT]).expect("written");
        let told = Slots::open(&Disk::default(), &path, format());
        assert!(matches!(told, Err(SlotsError::Damaged)), "{told:?}");
    }
}
