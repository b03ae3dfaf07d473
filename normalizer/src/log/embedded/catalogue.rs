//! What the log knows of itself in memory: its segments, the newest records, progress and the watermark.
//! Everything here is pure: it decides, the writer and the keeper do.

use super::errors::FullReason;
use super::segment::{Previous, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::tail_cache::{CachedFrame, TailCache};
use sluice_common::clock::UnixMs;
use sluice_common::ids::{LogId, Offset};
use sluice_common::limits::{REPLAY_PIN_PART, WATERMARK_REOPEN_PERCENT};
use std::collections::{BTreeMap, VecDeque};

/// Index entries of a segment lie at least this part of it apart: 256 KiB of 64 MiB.
const INDEX_ENTRIES: u64 = 256;
const SMALLEST_INDEX_GAP: u64 = 4096;

/// One segment as known in memory.
#[derive(Debug)]
pub struct Segment {
    pub base: Offset,
    /// Bytes in use, the header included.
    pub used: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Append time of the last record before this segment.
    pub floor_ms: UnixMs,
    /// Bytes of frames in all segments before this one, since the log was opened.
    address: u64,
    index: BTreeMap<Offset, IndexEntry>,
}

/// Where a record begins in its segment, and, where known, when it was appended.
#[derive(Debug, Clone, Copy)]
pub struct IndexEntry {
    pub position: u64,
    pub append_ms: Option<UnixMs>,
}

/// The log's memory. One lock is around it, held for moments only.
#[derive(Debug)]
pub struct Catalogue {
    segments: VecDeque<Segment>,
    pub tail: TailCache,
    pub durable_end: Offset,
    pub last_append_ms: UnixMs,
    committed: Offset,
    sealed: Offset,
    max_bytes: u64,
    closed: Option<FullReason>,
    /// A replay reads from here on.
    pinned: Option<Offset>,
}

/// Where a read finds its records.
#[derive(Debug)]
pub enum Plan {
    /// The log ends before.
    Nothing,
    OutOfReach {
        first: Offset,
    },
    Cached(Vec<CachedFrame>),
    Disk(DiskPlan),
}

/// A walk through one segment.
#[derive(Debug, Clone, Copy)]
pub struct DiskPlan {
    pub base: Offset,
    /// A record at or below the wanted one, and where it begins.
    pub near: Offset,
    pub position: u64,
    /// The first offset not to be read, and the byte where it would begin.
    pub end: Offset,
    pub used: u64,
}

impl Segment {
    /// A segment as its header and file length tell.
    pub fn new(header: &SegmentHeader, used: u64, file_bytes: u64) -> Self {
        let start = IndexEntry {
            position: SEGMENT_HEADER_BYTES as u64,
            append_ms: None,
        };
        Self {
            base: header.base,
            used,
            file_bytes,
            floor_ms: header.last_append_ms,
            address: 0,
            index: BTreeMap::from([(header.base, start)]),
        }
    }

    /// Bytes of frames.
    fn frames(&self) -> u64 {
        self.used - SEGMENT_HEADER_BYTES as u64
    }

    /// Remembers where `offset` begins, unless a neighbour is near enough.
    pub fn note(&mut self, offset: Offset, entry: IndexEntry) {
        let gap = (self.file_bytes / INDEX_ENTRIES).max(SMALLEST_INDEX_GAP);
        let before = self
            .index
            .range(..=offset)
            .next_back()
            .map_or(0, |(_, near)| near.position);
        let after = self
            .index
            .range(offset..)
            .next()
            .map_or(u64::MAX, |(_, near)| near.position);
        let first = offset == self.base;
        if first || (entry.position >= before + gap && entry.position.saturating_add(gap) <= after) {
            self.index.insert(offset, entry);
        }
    }

    fn nearest(&self, offset: Offset) -> (Offset, IndexEntry) {
        let start = IndexEntry {
            position: SEGMENT_HEADER_BYTES as u64,
            append_ms: None,
        };
        let near = self.index.range(..=offset).next_back();
        near.map_or((self.base, start), |(offset, entry)| (*offset, *entry))
    }
}

impl Catalogue {
    /// An empty log's memory, to be filled with [`Self::add`].
    pub fn new(tail: TailCache, max_bytes: u64) -> Self {
        Self {
            segments: VecDeque::new(),
            tail,
            durable_end: 0,
            last_append_ms: 0,
            committed: 0,
            sealed: 0,
            max_bytes,
            closed: None,
            pinned: None,
        }
    }

    /// Adds a segment behind all others.
    pub fn add(&mut self, mut segment: Segment) {
        segment.address = self
            .segments
            .back()
            .map_or(0, |last| last.address + last.frames());
        self.segments.push_back(segment);
    }

    /// The newest segment; a log always has one once it is open.
    pub fn newest(&mut self) -> Option<&mut Segment> {
        self.segments.back_mut()
    }

    /// What the next segment's header will say of the newest one.
    pub fn next_header(&self, log: LogId) -> SegmentHeader {
        let previous = self.segments.back().map(|last| Previous {
            base: last.base,
            used: last.used,
        });
        SegmentHeader {
            log,
            base: self.durable_end,
            previous,
            last_append_ms: self.last_append_ms,
        }
    }

    /// The oldest offset that can be read.
    pub fn first_offset(&self) -> Offset {
        self.segments.front().map_or(0, |first| first.base)
    }

    /// Bytes of all segment files.
    pub fn disk_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.file_bytes).sum()
    }

    /// Takes note of a group that is now durable at the end of the newest segment.
    pub fn publish(&mut self, frames: &[CachedFrame]) {
        let Some(segment) = self.segments.back_mut() else {
            return;
        };
        for frame in frames {
            let entry = IndexEntry {
                position: segment.used,
                append_ms: Some(frame.append_ms),
            };
            segment.note(frame.offset, entry);
            let address = segment.address + segment.frames();
            segment.used += frame.frame.len() as u64;
            self.durable_end = frame.offset + 1;
            self.last_append_ms = frame.append_ms;
            self.tail.push(frame.clone(), address);
        }
    }

    fn segment_of(&self, offset: Offset) -> Option<usize> {
        self.segments
            .partition_point(|segment| segment.base <= offset)
            .checked_sub(1)
    }

    /// Where to read from `from` on, `max_bytes` at most but at least one record.
    pub fn plan(&self, from: Offset, max_bytes: usize) -> Plan {
        if from >= self.durable_end {
            return Plan::Nothing;
        }
        let cached = self.tail.from(from, max_bytes);
        if !cached.is_empty() {
            return Plan::Cached(cached);
        }
        let Some(at) = self.segment_of(from) else {
            return Plan::OutOfReach {
                first: self.first_offset(),
            };
        };
        let segment = &self.segments[at];
        let (near, entry) = segment.nearest(from);
        let end = self
            .segments
            .get(at + 1)
            .map_or(self.durable_end, |next| next.base);
        Plan::Disk(DiskPlan {
            base: segment.base,
            near,
            position: entry.position,
            end,
            used: segment.used,
        })
    }

    /// Remembers places that a walk came by.
    pub fn learn(&mut self, base: Offset, places: &[(Offset, IndexEntry)]) {
        let Some(segment) = self.segment_of(base).and_then(|at| self.segments.get_mut(at)) else {
            return;
        };
        if segment.base == base {
            places
                .iter()
                .for_each(|(offset, entry)| segment.note(*offset, *entry));
        }
    }

    /// Bytes of frames at or above the committed offset; where that lies deep on disk, up to one gap of
    /// the index too many.
    pub fn backlog_bytes(&self) -> u64 {
        self.bytes_from(self.committed)
    }

    /// Whether records that are stored, and cannot be deleted because they are not sealed, take half of
    /// `max_bytes`, or keep the log shut on a volume without room.
    pub fn wants_seal(&self) -> bool {
        let stored = self
            .bytes_from(self.sealed.min(self.committed))
            .saturating_sub(self.backlog_bytes());
        let shut = self.closed == Some(FullReason::VolumeReserve) && self.deletable().is_none();
        stored > self.max_bytes / 2 || (shut && stored > 0)
    }

    fn bytes_from(&self, from: Offset) -> u64 {
        let end = self
            .segments
            .back()
            .map_or(0, |last| last.address + last.frames());
        if from >= self.durable_end {
            return 0;
        }
        let start = self.tail.address_of(from).or_else(|| {
            let segment = &self.segments[self.segment_of(from)?];
            let (_, entry) = segment.nearest(from);
            Some(segment.address + entry.position - SEGMENT_HEADER_BYTES as u64)
        });
        end - start.unwrap_or_else(|| self.segments.front().map_or(0, |first| first.address))
    }

    /// Append time of the oldest record at or above the committed offset. Exact within the tail cache,
    /// else that of a record shortly before it.
    pub fn oldest_backlog_append_ms(&self) -> Option<UnixMs> {
        if self.committed >= self.durable_end {
            return None;
        }
        let oldest = self.committed.max(self.first_offset());
        self.tail.append_ms_of(oldest).or_else(|| {
            let segment = &self.segments[self.segment_of(oldest)?];
            Some(segment.nearest(oldest).1.append_ms.unwrap_or(segment.floor_ms))
        })
    }

    /// The first offset of the oldest segment that may hold a record appended at `ms` or later.
    pub fn first_appended_at_or_after(&self, ms: UnixMs) -> Offset {
        if ms > self.last_append_ms {
            return self.durable_end;
        }
        let older = self
            .segments
            .iter()
            .skip(1)
            .take_while(|segment| segment.floor_ms < ms)
            .last();
        older.map_or_else(|| self.first_offset(), |segment| segment.base)
    }

    /// Moves progress, never backwards, and never past what is durable.
    pub fn set_progress(&mut self, committed: Offset, sealed: Offset) {
        self.committed = self.committed.max(committed.min(self.durable_end));
        self.sealed = self.sealed.max(sealed.min(self.durable_end));
    }

    /// Why nothing is taken now, with `queued` bytes waiting: closes at 100 % of `max_bytes`, reopens at
    /// [`WATERMARK_REOPEN_PERCENT`].
    pub fn admission(&mut self, queued: u64) -> Option<FullReason> {
        let bytes = self.backlog_bytes() + queued;
        match self.closed {
            None if bytes >= self.max_bytes => self.closed = Some(FullReason::Watermark),
            Some(FullReason::Watermark) if bytes <= self.max_bytes / 100 * WATERMARK_REOPEN_PERCENT => {
                self.closed = None;
            }
            None | Some(FullReason::Watermark | FullReason::VolumeReserve) => {}
        }
        self.closed
    }

    /// Closes the log because the volume has no room for a segment.
    pub fn close_for_volume(&mut self) {
        self.closed = Some(FullReason::VolumeReserve);
    }

    /// Reopens it once there is room.
    pub fn reopen_for_volume(&mut self) {
        if self.closed == Some(FullReason::VolumeReserve) {
            self.closed = None;
        }
    }

    /// The base of the oldest segment if all of it is stored and sealed, and a newer one exists.
    pub fn deletable(&self) -> Option<Offset> {
        let (first, next) = (self.segments.front()?, self.segments.get(1)?);
        (next.base <= self.committed.min(self.sealed)).then_some(first.base)
    }

    /// Keeps what is at or above `offset`, within a bound of disk.
    pub fn pin(&mut self, offset: Option<Offset>) {
        self.pinned = offset;
    }

    /// [`Self::deletable`], if it is out of `retain_ms` at `now` or `wanted` more bytes would be too many.
    pub fn expired(&self, now: UnixMs, retain_ms: u64, wanted: u64) -> Option<Offset> {
        let base = self.deletable()?;
        let newest_ms = self.segments.get(1)?.floor_ms;
        let pinned = self
            .pinned
            .is_some_and(|pinned| self.segments.get(1).is_some_and(|next| pinned < next.base));
        let old = newest_ms.saturating_add(retain_ms) <= now && !pinned;
        let more = if pinned {
            self.max_bytes / REPLAY_PIN_PART
        } else {
            0
        };
        (old || self.disk_bytes() + wanted > self.max_bytes.saturating_add(more)).then_some(base)
    }

    /// Forgets the oldest segment, before its file is deleted.
    pub fn forget(&mut self, base: Offset) {
        if self.segments.front().is_some_and(|first| first.base == base) {
            self.segments.pop_front();
            let first = self.first_offset();
            self.tail.forget_below(first);
        }
    }
}
