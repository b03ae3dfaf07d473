//! The newest durable frames in memory, for the reader that follows the tail.

use bytes::Bytes;
use sluice_common::clock::UnixMs;
use sluice_common::ids::Offset;
use std::collections::VecDeque;

/// A durable frame. Frames of one group share its buffer, so up to one group more than the limit lives.
#[derive(Debug, Clone)]
pub struct CachedFrame {
    pub offset: Offset,
    pub append_ms: UnixMs,
    pub frame: Bytes,
}

/// A run of frames without gaps, up to the log's end.
#[derive(Debug)]
pub struct TailCache {
    limit: usize,
    bytes: usize,
    /// With each frame, the bytes of all frames before it since the log was opened.
    frames: VecDeque<(CachedFrame, u64)>,
}

impl TailCache {
    /// A cache of at most `limit` bytes of frames.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: 0,
            frames: VecDeque::new(),
        }
    }

    /// Adds the frame behind all others and drops the oldest ones that no longer fit.
    pub fn push(&mut self, frame: CachedFrame, address: u64) {
        self.bytes += frame.frame.len();
        self.frames.push_back((frame, address));
        while self.bytes > self.limit {
            self.pop();
        }
    }

    fn pop(&mut self) {
        let oldest = self.frames.pop_front().map_or(0, |(frame, _)| frame.frame.len());
        self.bytes -= oldest;
    }

    /// Drops the frames below `first`.
    pub fn forget_below(&mut self, first: Offset) {
        while self.frames.front().is_some_and(|(frame, _)| frame.offset < first) {
            self.pop();
        }
    }

    fn get(&self, offset: Offset) -> Option<&(CachedFrame, u64)> {
        let place = offset.checked_sub(self.frames.front()?.0.offset)?;
        self.frames.get(usize::try_from(place).ok()?)
    }

    /// Frames from `from` on, at least one and `max_bytes` at most, or none where `from` is not here.
    pub fn from(&self, from: Offset, max_bytes: usize) -> Vec<CachedFrame> {
        let (mut found, mut bytes, mut next) = (Vec::new(), 0, from);
        while let Some((frame, _)) = self.get(next) {
            bytes += frame.frame.len();
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(frame.clone());
            next += 1;
        }
        found
    }

    /// Bytes of all frames before `offset` since the log was opened.
    pub fn address_of(&self, offset: Offset) -> Option<u64> {
        self.get(offset).map(|(_, address)| *address)
    }

    /// When `offset` was appended.
    pub fn append_ms_of(&self, offset: Offset) -> Option<UnixMs> {
        self.get(offset).map(|(frame, _)| frame.append_ms)
    }
}
