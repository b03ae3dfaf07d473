//! The record: the unit of the log, on disk, on the wire to the sink-writer, and in Kafka. There a frame is a message's
//! value, written before its offset and append time are known: both are 0 in the topic, and the message says them.
//!
//! A record explains itself (R2): one tenant, one dataset, the rows of one or more requests. Nothing
//! behind the log asks the config what a record means.
//!
//! # Bytes (little endian)
//! ```text
//!  0  u32  magic "SLR1"
//!  4  u32  frame length, this header and the padding to 8 bytes included
//!  8  u32  CRC-32C of bytes 12..frame length
//! 12  u16  layout version: 1, or 2 where the body is packed
//! 14  u16  flags: bit 0 = fingerprints present
//! 16  u64  log id (R1)
//! 24  u64  offset
//! 32  u64  append time, ms since the epoch
//! 40  u64  durable below: every offset under it was synced when this record was written
//! 48  u32  rows
//! 52  u32  meta length            (JSON of RecordMeta)
//! 56  u32  request spans          (count, 56 bytes each)
//! 60  u32  body length            (one Arrow IPC stream: schema, dictionaries, one batch; as it is, or packed: `packed`)
//! 64  u32  column bytes: what the rows take in memory: the body, once it is unpacked
//! 68  u32  zero
//! 72  meta | spans | keys (16 each) | fingerprints (4 each, if flagged) | body | zero padding
//! ```
//! The key hashes are a column of the record that lies outside the Arrow stream: dedup reads them
//! without decoding, or even decompressing, anything else.

use crate::clock::UnixMs;
use crate::ids::{LogId, Name, Offset, RequestId, TenantId};
use crate::limits::{MAX_RECORD_BYTES, MAX_RECORD_ROWS};
use crate::packed::is_packed;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 72;
/// Bytes of one request span.
pub const SPAN_BYTES: usize = 56;
/// Largest frame: the body limit plus room for header, meta and padding.
pub const MAX_FRAME_BYTES: usize = MAX_RECORD_BYTES + 64 * 1024;

/// Key of a column's Arrow metadata: the field's type as the config writes it, where the Arrow type alone
/// does not say what ClickHouse would make of its values.
pub const TYPE_MARK: &str = "sluice.type";

const MAGIC: u32 = u32::from_le_bytes(*b"SLR1");
const VERSION: u16 = 1;
/// Of records whose body is packed, which releases before it do not know.
const PACKED_VERSION: u16 = 2;
const FLAG_FINGERPRINTS: u16 = 1;

/// What makes an event the same event (R3). The discriminants reach disk as names; they are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// The dataset's `dedup.key`.
    Key,
    /// The client's `Idempotency-Key` and the row's index. Only here are there fingerprints.
    IdempotencyKey,
    /// The edge's request id and the row's index.
    Request,
}

/// What a record's rows are. The names reach disk; they are frozen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    /// Events, to be rows of their table.
    #[default]
    Events,
    /// Copies of rejected rows, to be dead letters: they have no identity and are in no book.
    RejectedCopies,
}

impl Holds {
    fn is_events(&self) -> bool {
        *self == Self::Events
    }
}

/// What a record says of itself, the same for all its rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RecordMeta {
    pub tenant: TenantId,
    pub dataset: Name,
    /// Target table, without database.
    pub table: Name,
    /// Hash of the dataset's schema as it was when the rows were encoded.
    pub schema_version: u64,
    pub identity: Identity,
    /// Dedup window in ms (R7).
    pub window_ms: u64,
    #[serde(default, skip_serializing_if = "Holds::is_events")]
    pub holds: Holds,
}

/// One request's rows within a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestSpan {
    pub request: RequestId,
    /// First row of the span in this record.
    pub first_row: u32,
    /// Rows of the span.
    pub rows: u32,
    /// Rows of the whole request that were taken; in the request's first record only, else 0.
    pub taken: u32,
    /// Rows of the whole request that were rejected; in the request's first record only, else 0.
    pub rejected: u32,
    /// W3C trace id and parent span id, or zeros.
    pub trace_id: u128,
    pub span_id: u64,
}

/// The part of a record that is made before its place in the log is known.
#[derive(Debug, Clone)]
pub struct RecordContent {
    /// JSON of [`RecordMeta`]; made once per dataset and shared.
    pub meta: Bytes,
    pub spans: Vec<RequestSpan>,
    pub keys: Vec<u128>,
    /// One a row for [`Identity::IdempotencyKey`], else empty.
    pub fingerprints: Vec<u32>,
    /// Bytes of the columns in memory: what the rows cost whoever decodes them.
    pub column_bytes: u32,
    /// One Arrow IPC stream with one batch of `keys.len()` rows, which may be packed; nothing where there are none: the
    /// record then only says which requests were rejected whole.
    pub body: Bytes,
}

/// A record's place in the log, as its frame says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    pub log: LogId,
    pub offset: Offset,
    pub append_ms: UnixMs,
    pub durable_below: Offset,
}

/// A whole, checked record. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub struct Record {
    pub place: Placement,
    pub meta: RecordMeta,
    rows: u32,
    layout: Layout,
    frame: Bytes,
}

#[derive(Debug, Clone, Copy)]
struct Layout {
    spans: usize,
    keys: usize,
    fingerprints: usize,
    body: usize,
    end: usize,
}

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    #[error("the record is cut short: {have} of {need} bytes")]
    Short { have: usize, need: usize },
    #[error("no record begins here (magic {found:#010x})")]
    Magic { found: u32 },
    #[error("frame length {0} is out of bounds")]
    Length(usize),
    #[error("checksum {found:#010x} where {expected:#010x} was written")]
    Checksum { expected: u32, found: u32 },
    #[error("layout version {0} is not known to this release")]
    Version(u16),
    #[error("the record contradicts itself: {0}")]
    Content(String),
}

impl RecordContent {
    /// Rows of the record.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.keys.len()
    }

    /// Bytes of the frame that [`Self::write`] will append.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        self.unpadded_bytes().next_multiple_of(8)
    }

    fn unpadded_bytes(&self) -> usize {
        HEADER_BYTES
            + self.meta.len()
            + self.spans.len() * SPAN_BYTES
            + self.keys.len() * 16
            + self.fingerprints.len() * 4
            + self.body.len()
    }

    /// Appends the record's frame to `out`.
    ///
    /// # Panics
    /// Where the content breaks the limits of a record: whoever built it had to keep them.
    pub fn write(&self, place: Placement, out: &mut Vec<u8>) {
        let frame = self.frame_bytes();
        assert!(
            self.rows() <= MAX_RECORD_ROWS && frame <= MAX_FRAME_BYTES,
            "record over its limits"
        );
        assert!(self.fingerprints.is_empty() || self.fingerprints.len() == self.rows());
        let start = out.len();
        out.reserve(frame);
        self.write_header(place, frame, out);
        out.extend_from_slice(&self.meta);
        self.spans.iter().for_each(|span| write_span(span, out));
        self.keys
            .iter()
            .for_each(|key| out.extend_from_slice(&key.to_le_bytes()));
        self.fingerprints
            .iter()
            .for_each(|print| out.extend_from_slice(&print.to_le_bytes()));
        out.extend_from_slice(&self.body);
        out.resize(start + frame, 0);
        let crc = crc32c::crc32c(&out[start + 12..]);
        out[start + 8..start + 12].copy_from_slice(&crc.to_le_bytes());
    }

    fn write_header(&self, place: Placement, frame: usize, out: &mut Vec<u8>) {
        let flags = if self.fingerprints.is_empty() {
            0
        } else {
            FLAG_FINGERPRINTS
        };
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&as_u32(frame).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        let version = if is_packed(&self.body) {
            PACKED_VERSION
        } else {
            VERSION
        };
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&flags.to_le_bytes());
        for word in [place.log.0, place.offset, place.append_ms, place.durable_below] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for length in [
            self.keys.len(),
            self.meta.len(),
            self.spans.len(),
            self.body.len(),
        ] {
            out.extend_from_slice(&as_u32(length).to_le_bytes());
        }
        out.extend_from_slice(&self.column_bytes.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }
}

fn as_u32(length: usize) -> u32 {
    u32::try_from(length).expect("a record's parts are under its limits")
}

fn write_span(span: &RequestSpan, out: &mut Vec<u8>) {
    out.extend_from_slice(&span.request.0.to_le_bytes());
    for word in [span.first_row, span.rows, span.taken, span.rejected] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&span.trace_id.to_le_bytes());
    out.extend_from_slice(&span.span_id.to_le_bytes());
}

/// Whether a frame is whole, and of a layout that is known.
fn check(frame: &[u8]) -> Result<(), BadRecord> {
    let (expected, found) = (u32_at(frame, 8), crc32c::crc32c(&frame[12..]));
    if expected != found {
        return Err(BadRecord::Checksum { expected, found });
    }
    match u16::from_le_bytes([frame[12], frame[13]]) {
        VERSION | PACKED_VERSION => Ok(()),
        other => Err(BadRecord::Version(other)),
    }
}

/// The length of the frame that begins at `bytes`, where at least 8 bytes are there and it is sane.
///
/// # Errors
/// [`BadRecord`] where no frame can begin here.
pub fn frame_length(bytes: &[u8]) -> Result<usize, BadRecord> {
    if bytes.len() < 8 {
        return Err(BadRecord::Short {
            have: bytes.len(),
            need: HEADER_BYTES,
        });
    }
    let magic = u32_at(bytes, 0);
    if magic != MAGIC {
        return Err(BadRecord::Magic { found: magic });
    }
    let frame = u32_at(bytes, 4) as usize;
    if !(HEADER_BYTES..=MAX_FRAME_BYTES).contains(&frame) || !frame.is_multiple_of(8) {
        return Err(BadRecord::Length(frame));
    }
    Ok(frame)
}

impl Record {
    /// Checks and reads the record at the start of `bytes`; what follows it is left alone.
    ///
    /// # Errors
    /// [`BadRecord`] saying what is wrong; never panics on any input.
    pub fn read(bytes: &Bytes) -> Result<Self, BadRecord> {
        let length = frame_length(bytes)?;
        if bytes.len() < length {
            return Err(BadRecord::Short {
                have: bytes.len(),
                need: length,
            });
        }
        let frame = bytes.slice(..length);
        check(&frame)?;
        Self::from_checked(frame)
    }

    /// Reads a frame that was written before its place was known, and that is all of `bytes`; from now on it says where
    /// it lies. The log is that which wrote it.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn placed(bytes: &[u8], offset: Offset, append_ms: UnixMs) -> Result<Self, BadRecord> {
        let need = frame_length(bytes)?;
        if bytes.len() != need {
            let have = bytes.len();
            return Err(BadRecord::Short { have, need });
        }
        check(bytes)?;
        let mut frame = bytes.to_vec();
        frame[24..32].copy_from_slice(&offset.to_le_bytes());
        frame[32..40].copy_from_slice(&append_ms.to_le_bytes());
        let crc = crc32c::crc32c(&frame[12..]);
        frame[8..12].copy_from_slice(&crc.to_le_bytes());
        Self::from_checked(frame.into())
    }

    fn from_checked(frame: Bytes) -> Result<Self, BadRecord> {
        let rows = u32_at(&frame, 48);
        let flags = u16::from_le_bytes([frame[14], frame[15]]);
        let prints = if flags & FLAG_FINGERPRINTS == 0 {
            0
        } else {
            rows as usize
        };
        let spans = HEADER_BYTES + u32_at(&frame, 52) as usize;
        let keys = spans + u32_at(&frame, 56) as usize * SPAN_BYTES;
        let fingerprints = keys + rows as usize * 16;
        let body = fingerprints + prints * 4;
        let end = body + u32_at(&frame, 60) as usize;
        if end.next_multiple_of(8) != frame.len() || rows as usize > MAX_RECORD_ROWS {
            return Err(BadRecord::Content("the parts do not add up to the frame".into()));
        }
        let mut next = Some(0);
        for span in frame[spans..keys].chunks_exact(SPAN_BYTES).map(read_span) {
            next = next
                .filter(|next| *next == span.first_row)
                .and_then(|next| next.checked_add(span.rows));
        }
        if next != Some(rows) {
            return Err(BadRecord::Content(
                "the rows of its requests do not follow one another to the record's last".into(),
            ));
        }
        let meta = serde_json::from_slice(&frame[HEADER_BYTES..spans])
            .map_err(|error| BadRecord::Content(format!("meta: {error}")))?;
        let place = Placement {
            log: LogId(u64_at(&frame, 16)),
            offset: u64_at(&frame, 24),
            append_ms: u64_at(&frame, 32),
            durable_below: u64_at(&frame, 40),
        };
        Ok(Self {
            place,
            meta,
            rows,
            layout: Layout {
                spans,
                keys,
                fingerprints,
                body,
                end,
            },
            frame,
        })
    }

    /// Rows of the record.
    #[must_use]
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Bytes of the columns in memory.
    #[must_use]
    pub fn column_bytes(&self) -> usize {
        u32_at(&self.frame, 64) as usize
    }

    /// The whole frame, as on disk.
    #[must_use]
    pub fn frame(&self) -> &Bytes {
        &self.frame
    }

    /// The key hash of each row, in row order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = u128> + '_ {
        let keys = &self.frame[self.layout.keys..self.layout.fingerprints];
        keys.chunks_exact(16)
            .map(|key| u128::from_le_bytes(key.try_into().unwrap_or_default()))
    }

    /// The content fingerprint of each row; empty unless the identity is an `Idempotency-Key`.
    pub fn fingerprints(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        let prints = &self.frame[self.layout.fingerprints..self.layout.body];
        prints.chunks_exact(4).map(|print| u32_at(print, 0))
    }

    /// The Arrow IPC stream, which may be packed; empty where the record has no rows.
    #[must_use]
    pub fn body(&self) -> Bytes {
        self.frame.slice(self.layout.body..self.layout.end)
    }

    /// The request that a row came with.
    #[must_use]
    pub fn request_of(&self, row: u32) -> Option<RequestId> {
        let spans = &self.frame[self.layout.spans..self.layout.keys];
        let at = |place: usize| read_span(&spans[place * SPAN_BYTES..(place + 1) * SPAN_BYTES]);
        let (mut low, mut high) = (0, spans.len() / SPAN_BYTES);
        while low < high {
            let middle = low.midpoint(high);
            if at(middle).first_row <= row {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        // None of these begins past the row; those without rows may stand before the one that has it.
        let holds = |span: &RequestSpan| row - span.first_row < span.rows;
        (0..low).rev().map(at).find(holds).map(|span| span.request)
    }

    /// The requests whose rows these are.
    pub fn spans(&self) -> impl ExactSizeIterator<Item = RequestSpan> + '_ {
        self.frame[self.layout.spans..self.layout.keys]
            .chunks_exact(SPAN_BYTES)
            .map(read_span)
    }
}

fn read_span(bytes: &[u8]) -> RequestSpan {
    RequestSpan {
        request: RequestId(u128_at(bytes, 0)),
        first_row: u32_at(bytes, 16),
        rows: u32_at(bytes, 20),
        taken: u32_at(bytes, 24),
        rejected: u32_at(bytes, 28),
        trace_id: u128_at(bytes, 32),
        span_id: u64_at(bytes, 48),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn u128_at(bytes: &[u8], at: usize) -> u128 {
    let mut word = [0; 16];
    word.copy_from_slice(&bytes[at..at + 16]);
    u128::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn meta() -> RecordMeta {
        RecordMeta {
            tenant: TenantId::new("acme").expect("valid"),
            dataset: Name::new("events").expect("valid"),
            table: Name::new("events").expect("valid"),
            schema_version: 7,
            identity: Identity::Key,
            window_ms: 86_400_000,
            holds: Holds::Events,
        }
    }

    fn content(keys: Vec<u128>, prints: bool, body: Vec<u8>) -> RecordContent {
        let rows = u32::try_from(keys.len()).expect("small");
        let span = RequestSpan {
            request: RequestId(1),
            first_row: 0,
            rows,
            taken: rows,
            rejected: 2,
            trace_id: 3,
            span_id: 4,
        };
        RecordContent {
            meta: serde_json::to_vec(&meta()).expect("json").into(),
            spans: vec![span],
            fingerprints: if prints { (0..rows).collect() } else { Vec::new() },
            keys,
            column_bytes: 77,
            body: body.into(),
        }
    }

    #[test]
    fn a_frame_that_was_written_before_its_place_was_known_says_it_from_then_on() {
        let unknown = Placement {
            log: LogId(9),
            offset: 0,
            append_ms: 0,
            durable_below: 0,
        };
        let mut frame = Vec::new();
        content(vec![1, 2, 3], true, b"rows".to_vec()).write(unknown, &mut frame);
        let record = Record::placed(&frame, 41, 77).expect("placed");
        assert_eq!(
            (record.place.log, record.place.offset, record.place.append_ms),
            (LogId(9), 41, 77)
        );
        let again = Record::read(record.frame()).expect("its checksum is that of what it says now");
        assert_eq!((again.place, &again.meta), (record.place, &record.meta));
        assert_eq!(again.keys().collect::<Vec<_>>(), [1, 2, 3]);
        for at in 0..frame.len() {
            let mut damaged = frame.clone();
            damaged[at] ^= 1;
            Record::placed(&damaged, 41, 77).expect_err("damaged");
            Record::placed(&frame[..at], 41, 77).expect_err("cut short");
        }
        frame.extend_from_slice(&[0; 8]);
        Record::placed(&frame, 41, 77).expect_err("something follows it");
    }

    fn place() -> Placement {
        Placement {
            log: LogId(9),
            offset: 5,
            append_ms: 1_700_000_000_000,
            durable_below: 4,
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            keys in prop::collection::vec(any::<u128>(), 0..50),
            prints: bool,
            body in prop::collection::vec(any::<u8>(), 0..500),
        ) {
            let content = content(keys.clone(), prints, body.clone());
            let mut out = vec![1, 2, 3];
            content.write(place(), &mut out);
            prop_assert_eq!(out.len() - 3, content.frame_bytes());
            let record = Record::read(&Bytes::from(out).slice(3..)).expect("reads back");
            prop_assert_eq!(record.place, place());
            prop_assert_eq!(&record.meta, &meta());
            prop_assert_eq!(record.column_bytes(), 77);
            prop_assert_eq!(record.keys().collect::<Vec<_>>(), keys);
            prop_assert_eq!(record.fingerprints().len(), content.fingerprints.len());
            prop_assert_eq!(record.spans().collect::<Vec<_>>(), content.spans);
            prop_assert_eq!(record.body(), Bytes::from(body));
        }

        #[test]
        fn a_flipped_bit_is_never_read_as_a_record(at in 0usize..2000, bit in 0u8..8) {
            let mut out = Vec::new();
            content(vec![1, 2, 3], true, vec![7; 100]).write(place(), &mut out);
            let at = at % out.len();
            out[at] ^= 1 << bit;
            prop_assert!(Record::read(&out.into()).is_err());
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Record::read(&bytes.into()).is_err());
        }
    }

    /// Checksums do not tell a wrong writer; without this, reading one row's request could panic.
    #[test]
    fn requests_whose_rows_do_not_follow_one_another_are_no_record() {
        let read = |spans: &[(u32, u32)]| {
            let mut content = content(vec![1, 2, 3], false, Vec::new());
            let one = content.spans[0];
            let span = |&(first_row, rows): &(u32, u32)| RequestSpan {
                first_row,
                rows,
                ..one
            };
            content.spans = spans.iter().map(span).collect();
            let mut out = Vec::new();
            content.write(place(), &mut out);
            Record::read(&out.into())
        };
        for good in [&[(0, 3)][..], &[(0, 0), (0, 1), (1, 0), (1, 2), (3, 0)]] {
            let record = read(good).expect("a record");
            assert!((0..3).all(|row| record.request_of(row).is_some()), "{good:?}");
            assert_eq!(record.request_of(3), None, "{good:?}");
        }
        let bad: [&[(u32, u32)]; 7] = [
            &[],
            &[(1, 3)],
            &[(0, 2)],
            &[(0, 4)],
            &[(0, 2), (1, 2)],
            &[(1, 2), (0, 1)],
            &[(0, u32::MAX), (u32::MAX, 4)],
        ];
        for spans in bad {
            assert!(matches!(read(spans), Err(BadRecord::Content(_))), "{spans:?}");
        }
    }

    #[test]
    fn the_layout_is_frozen() {
        let mut out = Vec::new();
        content(vec![0x0102], false, vec![0xAA; 3]).write(place(), &mut out);
        assert_eq!(&out[..4], b"SLR1");
        assert_eq!(out.len() % 8, 0);
        assert_eq!(u64_at(&out, 16), 9);
        assert_eq!(u64_at(&out, 24), 5);
        assert_eq!(
            crc32c::crc32c(&out),
            GOLDEN,
            "the bytes on disk changed: bump the layout version"
        );
    }

    const GOLDEN: u32 = 1_633_820_932;

    #[test]
    fn a_packed_body_has_a_layout_version_that_earlier_releases_refuse() {
        for (body, version) in [(vec![0xFF; 4], 1), (b"SLZ4".to_vec(), 2)] {
            let mut out = Vec::new();
            content(vec![1], false, body.clone()).write(place(), &mut out);
            assert_eq!(u16::from_le_bytes([out[12], out[13]]), version);
            assert_eq!(Record::read(&out.into()).expect("a record").body(), body);
        }
        let mut later = Vec::new();
        content(vec![1], false, Vec::new()).write(place(), &mut later);
        later[12] = 3;
        let crc = crc32c::crc32c(&later[12..]);
        later[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Record::read(&later.into()).err(), Some(BadRecord::Version(3)));
    }
}
