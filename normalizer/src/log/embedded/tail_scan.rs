//! Reads the newest segment when the log is opened, and tells a torn tail from damage.
//!
//! A write that was not synced may have reached the disk in any part, so behind the last whole record
//! anything may lie. A bad frame at offset N is torn unless something says that N was durable: the
//! progress store (`known_durable`), or a whole frame or [`Mark`] behind it that claims every offset
//! below some D > N. Whole frames behind it that claim less were in the same unsynced group.

use super::errors::{Damage, DamageKind};
use super::mark::{MARK_BYTES, Mark};
use super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, segment_name};
use super::tail_cache::CachedFrame;
use bytes::Bytes;
use sluice_common::ids::{LogId, Offset};
use sluice_common::record::{BadRecord, HEADER_BYTES, Record, frame_length};

/// What the newest segment holds.
#[derive(Debug)]
pub struct Tail {
    /// The whole records, in order.
    pub frames: Vec<CachedFrame>,
    /// Byte behind the last of them.
    pub end: u64,
    /// Byte behind the last one that is not zero, where a torn write lies behind `end`.
    pub torn_until: Option<u64>,
}

/// Reads the segment `bytes` with its `header`.
///
/// # Errors
/// [`Damage`] where a record that was durable cannot be read, or one lies where it cannot have been written.
pub fn scan(bytes: &Bytes, header: &SegmentHeader, known_durable: Offset) -> Result<Tail, Damage> {
    let (mut frames, mut end, mut next) = (Vec::new(), SEGMENT_HEADER_BYTES, header.base);
    let damage = |position: usize, offset, kind| {
        let segment = segment_name(header.base);
        Damage {
            segment,
            position: position as u64,
            offset,
            kind,
        }
    };
    let bad = loop {
        match Record::read(&bytes.slice(end..)) {
            Ok(record) if record.place.log == header.log && record.place.offset == next => {
                let append_ms = record.place.append_ms;
                frames.push(CachedFrame {
                    offset: next,
                    append_ms,
                    frame: record.frame().clone(),
                });
                end += record.frame().len();
                next += 1;
            }
            Ok(record) => {
                let kind = DamageKind::OtherRecord {
                    log: record.place.log,
                    found: record.place.offset,
                };
                return Err(damage(end, next, kind));
            }
            Err(bad) => break bad,
        }
    };
    let clean = is_clean(bytes, end);
    let was_durable = !clean && known_durable > next || durable_claim(bytes, end, header.log, next);
    if was_durable || !may_be_torn(&bad) {
        return Err(damage(end, next, DamageKind::Record(bad)));
    }
    let torn_until = (!clean).then(|| last_nonzero(bytes) as u64);
    Ok(Tail {
        frames,
        end: end as u64,
        torn_until,
    })
}

/// A frame whose checksum holds was not torn, whatever else is wrong with it.
fn may_be_torn(bad: &BadRecord) -> bool {
    match bad {
        BadRecord::Short { .. }
        | BadRecord::Magic { .. }
        | BadRecord::Length(_)
        | BadRecord::Checksum { .. } => true,
        BadRecord::Version(_) | BadRecord::Content(_) => false,
    }
}

/// Whether behind `end` lie only zeros, or a mark and zeros.
fn is_clean(bytes: &[u8], end: usize) -> bool {
    let rest = &bytes[end..];
    let from = if Mark::decode(rest).is_some() {
        MARK_BYTES
    } else {
        0
    };
    rest[from..].iter().all(|byte| *byte == 0)
}

fn last_nonzero(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1)
}

/// Whether anything whole from `end` on says that `next` was durable.
fn durable_claim(bytes: &Bytes, end: usize, log: LogId, next: Offset) -> bool {
    (end..last_nonzero(bytes)).step_by(8).any(|at| {
        let mark =
            Mark::decode(&bytes[at..]).is_some_and(|mark| mark.log == log && mark.durable_below > next);
        mark || claims_frame(bytes, at, log, next)
    })
}

/// The header's claim is looked at before the checksum is computed: bytes of a client that only look
/// like frames must not make opening slow.
fn claims_frame(bytes: &Bytes, at: usize, log: LogId, next: Offset) -> bool {
    let head = &bytes[at..];
    if head.len() < HEADER_BYTES || frame_length(head).is_err() {
        return false;
    }
    let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap_or_default());
    let (found_log, offset, durable_below) = (word(16), word(24), word(40));
    let claims = found_log == log.0 && durable_below > next && durable_below <= offset;
    claims && Record::read(&bytes.slice(at..)).is_ok()
}
