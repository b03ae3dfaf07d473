//! The writer: one thread that turns what waits into groups, each one write and one sync.

use super::catalogue::Segment;
use super::errors::{AppendError, FullReason};
use super::files::LogFile;
use super::mark::{MARK_BYTES, Mark};
use super::queue::{Pending, Reply};
use super::segment::SEGMENT_HEADER_BYTES;
use super::segment_file::{CommissionError, commission, discard};
use super::shared::{Shared, Stopped};
use super::tail_cache::CachedFrame;
use bytes::Bytes;
use sluice_common::clock::UnixMs;
use sluice_common::failpoint::{self, Point};
use sluice_common::ids::Offset;
use sluice_common::limits::GROUP_COMMIT_BYTES;
use sluice_common::record::{Placement, RecordContent};
use std::sync::Arc;

/// Where a batch lies in the log, all of it durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendedAt {
    /// Offset of the first record; the others follow without gaps.
    pub first: Offset,
    /// Records of the batch.
    pub count: u64,
    /// Append time of all of them.
    pub append_ms: UnixMs,
}

/// The writer's own view of the log; what readers may see of it is published after each sync.
pub struct Writer {
    shared: Arc<Shared>,
    active: Active,
    /// Offset of the next record to be encoded.
    next: Offset,
    /// Every offset below is synced.
    durable: Offset,
    last_ms: UnixMs,
    marked: Option<Offset>,
}

/// The segment being written.
pub struct Active {
    pub file: LogFile,
    pub used: u64,
    pub capacity: u64,
}

/// Frames to be written at once, and who waits for them.
#[derive(Default)]
struct Group {
    bytes: Vec<u8>,
    frames: Vec<(Offset, UnixMs, usize)>,
    waiting: Vec<(Ticket, AppendedAt)>,
}

/// One caller's batch.
struct Ticket {
    reply: Reply,
    bytes: usize,
}

enum Trouble {
    Refused(AppendError),
    Stopped,
}

impl From<Stopped> for Trouble {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl Active {
    fn room(&self) -> u64 {
        self.capacity.saturating_sub(self.used)
    }
}

impl Writer {
    /// A writer that goes on at the end of `active`.
    pub fn new(shared: Arc<Shared>, active: Active) -> Self {
        let (durable, last_ms) = {
            let catalogue = shared.catalogue.lock();
            (catalogue.durable_end, catalogue.last_append_ms)
        };
        Self {
            shared,
            active,
            next: durable,
            durable,
            last_ms,
            marked: None,
        }
    }

    /// Runs until the queue is closed and empty, or the log has stopped.
    pub fn run(mut self) {
        self.want_spare();
        while let Some(batches) = self.shared.queue.take(GROUP_COMMIT_BYTES) {
            if self.commit(batches).is_err() {
                return;
            }
            if self.shared.queue.is_idle() {
                self.leave_mark();
            }
        }
        self.leave_mark();
        if let Err(error) = self.active.file.sync() {
            self.shared.fail_stop(&error);
        }
    }

    fn commit(&mut self, batches: Vec<Pending>) -> Result<(), Stopped> {
        let mut group = Group::default();
        for batch in batches {
            self.place(batch, &mut group)?;
        }
        match self.flush(&mut group) {
            Ok(()) | Err(Trouble::Refused(_)) => Ok(()),
            Err(Trouble::Stopped) => Err(Stopped),
        }
    }

    /// Puts a batch into the group, or answers why not.
    fn place(&mut self, batch: Pending, group: &mut Group) -> Result<(), Stopped> {
        let ticket = Ticket {
            reply: batch.reply,
            bytes: batch.bytes,
        };
        self.last_ms = self.last_ms.max(self.shared.clock.now_ms());
        let mut first = None;
        match self.encode_all(&batch.records, group, &mut first) {
            Ok(()) => {
                let first = first.unwrap_or(self.next);
                let count = batch.records.len() as u64;
                group.waiting.push((
                    ticket,
                    AppendedAt {
                        first,
                        count,
                        append_ms: self.last_ms,
                    },
                ));
            }
            Err(Trouble::Refused(error)) => {
                let partly = first.is_some_and(|first| first < self.durable);
                self.answer(ticket, Err(if partly { AppendError::Unknown } else { error }));
            }
            Err(Trouble::Stopped) => return Err(Stopped),
        }
        Ok(())
    }

    /// Encodes a batch into the group. One that fits a segment is never split over two, so that it is
    /// written as a whole or refused as a whole; a larger one is cut at segments.
    fn encode_all(
        &mut self,
        records: &[RecordContent],
        group: &mut Group,
        first: &mut Option<Offset>,
    ) -> Result<(), Trouble> {
        for chunk in chunks(
            records,
            self.shared.options.segment_bytes - SEGMENT_HEADER_BYTES as u64,
        ) {
            let bytes = frame_bytes(chunk);
            if bytes + group.bytes.len() as u64 > self.active.room() {
                match self.flush(group) {
                    // What failed was answered; this batch had no part in it.
                    Err(Trouble::Refused(_)) if first.is_none() => {}
                    outcome => outcome?,
                }
                if bytes > self.active.room() {
                    self.roll()?;
                }
            }
            first.get_or_insert(self.next);
            chunk.iter().for_each(|record| self.encode(record, group));
        }
        Ok(())
    }

    fn encode(&mut self, record: &RecordContent, group: &mut Group) {
        let place = Placement {
            log: self.shared.log,
            offset: self.next,
            append_ms: self.last_ms,
            durable_below: self.durable,
        };
        let before = group.bytes.len();
        record.write(place, &mut group.bytes);
        group
            .frames
            .push((self.next, self.last_ms, group.bytes.len() - before));
        self.next += 1;
    }

    /// Writes and syncs the group, then publishes it, then answers.
    fn flush(&mut self, group: &mut Group) -> Result<(), Trouble> {
        let group = std::mem::take(group);
        if group.bytes.is_empty() {
            return Ok(());
        }
        let written = failpoint::hit(Point::LogWrite)
            .and_then(|()| self.active.file.write_at(&group.bytes, self.active.used))
            .and_then(|()| failpoint::hit(Point::LogWritten));
        if let Err(error) = written {
            self.undo(group.bytes.len())?;
            let error = AppendError::WriteFailed(error.to_string());
            self.refuse(group.waiting, &error);
            return Err(Trouble::Refused(error));
        }
        self.active
            .file
            .sync()
            .and_then(|()| failpoint::hit(Point::LogSynced))
            .map_err(|error| self.shared.fail_stop(&error))?;
        self.publish(group);
        Ok(())
    }

    /// After a failed write nothing of the group may ever be read: zeros over it, durably.
    fn undo(&mut self, bytes: usize) -> Result<(), Stopped> {
        let (from, to) = (self.active.used, self.active.used + bytes as u64);
        let wiped = self
            .active
            .file
            .zero(from, to)
            .and_then(|()| self.active.file.sync());
        wiped.map_err(|error| self.shared.fail_stop(&error))?;
        self.next = self.durable;
        self.marked = None;
        Ok(())
    }

    fn refuse(&self, waiting: Vec<(Ticket, AppendedAt)>, error: &AppendError) {
        for (ticket, at) in waiting {
            let partly = at.first < self.durable;
            self.answer(
                ticket,
                Err(if partly {
                    AppendError::Unknown
                } else {
                    error.clone()
                }),
            );
        }
    }

    fn publish(&mut self, group: Group) {
        self.active.used += group.bytes.len() as u64;
        self.durable = self.next;
        let (bytes, mut at) = (Bytes::from(group.bytes), 0);
        let frames: Vec<_> = group
            .frames
            .iter()
            .map(|(offset, append_ms, length)| {
                let frame = bytes.slice(at..at + length);
                at += length;
                CachedFrame {
                    offset: *offset,
                    append_ms: *append_ms,
                    frame,
                }
            })
            .collect();
        self.shared.catalogue.lock().publish(&frames);
        self.shared.durable.send_replace(self.durable);
        let lost = failpoint::hit(Point::LogAnswered).is_err();
        for (ticket, at) in group.waiting {
            self.answer(ticket, if lost { Err(AppendError::Unknown) } else { Ok(at) });
        }
        self.want_spare();
    }

    fn answer(&self, ticket: Ticket, outcome: Result<AppendedAt, AppendError>) {
        self.shared.queue.release(ticket.bytes);
        // A caller that has gone away needs no answer; its batch stays.
        let _ = ticket.reply.send(outcome);
    }

    /// From half a segment on, the next one is made ahead.
    fn want_spare(&self) {
        if self.active.used * 2 >= self.active.capacity {
            self.shared.spare.want();
        }
    }

    /// Goes on in a new segment. All that was written to the old one is synced by now.
    fn roll(&mut self) -> Result<(), Trouble> {
        let spare = self.shared.spare.take().map_err(|refused| {
            if refused == AppendError::Full(FullReason::VolumeReserve) {
                self.shared.catalogue.lock().close_for_volume();
            }
            Trouble::Refused(refused)
        })?;
        let header = self.shared.catalogue.lock().next_header(self.shared.log);
        let file = match commission(&self.shared.files, spare, &header) {
            Ok(file) => file,
            Err(CommissionError::Write(error)) => {
                discard(&self.shared.files);
                return Err(Trouble::Refused(AppendError::WriteFailed(error.to_string())));
            }
            Err(CommissionError::Sync(error)) => return Err(self.shared.fail_stop(&error).into()),
        };
        let (used, capacity) = (SEGMENT_HEADER_BYTES as u64, self.shared.options.segment_bytes);
        self.shared
            .catalogue
            .lock()
            .add(Segment::new(&header, used, capacity));
        self.active = Active { file, used, capacity };
        self.marked = None;
        Ok(())
    }

    /// Says behind the last frame that all before it is durable; see [`super::mark`].
    fn leave_mark(&mut self) {
        if self.marked == Some(self.durable) || self.active.room() < MARK_BYTES as u64 {
            return;
        }
        let mark = Mark {
            log: self.shared.log,
            durable_below: self.durable,
        };
        match self.active.file.write_at(&mark.encode(), self.active.used) {
            Ok(()) => self.marked = Some(self.durable),
            Err(error) => {
                tracing::warn!(%error, "failed to write the log's durable mark; the next one may do")
            }
        }
    }
}

/// However the writer ends, what still waits was never begun, and nobody is left waiting.
impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue.close();
        while let Some(batches) = self.shared.queue.take(usize::MAX) {
            for batch in batches {
                let ticket = Ticket {
                    reply: batch.reply,
                    bytes: batch.bytes,
                };
                self.answer(ticket, Err(AppendError::Closed));
            }
        }
    }
}

fn frame_bytes(records: &[RecordContent]) -> u64 {
    records.iter().map(|record| record.frame_bytes() as u64).sum()
}

/// Cuts a batch into runs of at most `limit` bytes, each of one record at least.
fn chunks(records: &[RecordContent], limit: u64) -> Vec<&[RecordContent]> {
    let (mut chunks, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (at, record) in records.iter().enumerate() {
        let frame = record.frame_bytes() as u64;
        if at > start && bytes + frame > limit {
            chunks.push(&records[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += frame;
    }
    chunks.push(&records[start..]);
    chunks
}
