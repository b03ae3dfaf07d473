//! Reads records of one segment from the disk, checking each: magic, checksum, log id and offset.

use super::catalogue::{DiskPlan, IndexEntry};
use super::errors::{Damage, DamageKind, ReadError};
use super::files::Files;
use super::segment::segment_name;
use bytes::Bytes;
use sluice_common::clock::UnixMs;
use sluice_common::ids::{LogId, Offset};
use sluice_common::record::{HEADER_BYTES, Record, frame_length};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Least and most bytes asked of the disk at once.
const READ_MIN: usize = 256 << 10;
const READ_MAX: usize = 8 << 20;

/// Places that a walk came by, for the index.
pub type Places = Vec<(Offset, IndexEntry)>;

struct Walk {
    file: File,
    segment: String,
    log: LogId,
    used: u64,
    offset: Offset,
    position: u64,
    window: Bytes,
    window_at: u64,
    read_size: usize,
    places: Places,
}

/// The records of `plan` from `from` on: at least one, `max_bytes` of frames at most.
///
/// # Errors
/// [`ReadError`]; damage is never passed over.
pub fn read(
    files: &Files,
    log: LogId,
    plan: &DiskPlan,
    from: Offset,
    max_bytes: usize,
) -> Result<(Vec<Record>, Places), ReadError> {
    let mut walk = Walk::open(files, log, plan, max_bytes)?;
    while walk.offset < from {
        let length = walk.head()?;
        walk.step(length);
    }
    let (mut records, mut bytes) = (Vec::new(), 0);
    while walk.offset < plan.end {
        let length = walk.head()?;
        bytes += length;
        if bytes > max_bytes && !records.is_empty() {
            break;
        }
        records.push(walk.record(length)?);
        walk.step(length);
    }
    Ok((records, walk.places))
}

impl Walk {
    fn open(files: &Files, log: LogId, plan: &DiskPlan, max_bytes: usize) -> Result<Self, ReadError> {
        let segment = segment_name(plan.base);
        let file = match files.open_read(&segment) {
            Ok(file) => file,
            Err(source) => return Err(ReadError::Io { segment, source }),
        };
        Ok(Self {
            file,
            segment,
            log,
            used: plan.used,
            offset: plan.near,
            position: plan.position,
            window: Bytes::new(),
            window_at: 0,
            read_size: max_bytes.clamp(READ_MIN, READ_MAX),
            places: Vec::new(),
        })
    }

    fn damage(&self, kind: DamageKind) -> ReadError {
        let (segment, position, offset) = (self.segment.clone(), self.position, self.offset);
        Damage {
            segment,
            position,
            offset,
            kind,
        }
        .into()
    }

    /// The bytes from the walk's position on, `need` at least.
    fn bytes(&mut self, need: usize) -> Result<Bytes, ReadError> {
        let left = usize::try_from(self.used.saturating_sub(self.position)).unwrap_or(usize::MAX);
        if left < need {
            return Err(self.damage(DamageKind::Short));
        }
        let skip = self
            .position
            .checked_sub(self.window_at)
            .and_then(|skip| usize::try_from(skip).ok());
        if let Some(skip) = skip.filter(|skip| skip + need <= self.window.len()) {
            return Ok(self.window.slice(skip..));
        }
        let mut window = vec![0; self.read_size.max(need).min(left)];
        match self.file.read_exact_at(&mut window, self.position) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(self.damage(DamageKind::Short));
            }
            Err(source) => {
                return Err(ReadError::Io {
                    segment: self.segment.clone(),
                    source,
                });
            }
        }
        (self.window, self.window_at) = (window.into(), self.position);
        Ok(self.window.clone())
    }

    /// The length of the frame at the walk's position, which must be the expected record's.
    fn head(&mut self) -> Result<usize, ReadError> {
        let head = self.bytes(HEADER_BYTES)?;
        let length = frame_length(&head).map_err(|bad| self.damage(DamageKind::Record(bad)))?;
        let (log, found) = (LogId(word(&head, 16)), word(&head, 24));
        if log != self.log || found != self.offset {
            // A flipped bit in the header is told as what it is.
            self.record(length)?;
            return Err(self.damage(DamageKind::OtherRecord { log, found }));
        }
        let append_ms: UnixMs = word(&head, 32);
        let far = self
            .places
            .last()
            .is_none_or(|(_, last)| self.position - last.position >= READ_MIN as u64);
        if far {
            self.places.push((
                self.offset,
                IndexEntry {
                    position: self.position,
                    append_ms: Some(append_ms),
                },
            ));
        }
        Ok(length)
    }

    fn record(&mut self, length: usize) -> Result<Record, ReadError> {
        let frame = self.bytes(length)?.slice(..length);
        Record::read(&frame).map_err(|bad| self.damage(DamageKind::Record(bad)))
    }

    fn step(&mut self, length: usize) {
        self.offset += 1;
        self.position += length as u64;
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}
