//! A segment's name and header.
//!
//! # Bytes of the header (little endian, 64 in all)
//! ```text
//!  0  u32  magic "SLSG"
//!  4  u32  CRC-32C of bytes 8..64
//!  8  u16  layout version (1)
//! 10  u16  partition (0)
//! 12  u32  zero
//! 16  u64  log id
//! 24  u64  base: the offset of the segment's first record
//! 32  u64  base of the segment before, or all ones where none was
//! 40  u64  bytes used of the segment before, its header included; 0 where none was
//! 48  u64  append time of the last record before this segment, ms
//! 56  u64  zero
//! ```
//! Frames follow from byte 64, one after the other; what is behind the last one is zeros, or a
//! [`super::mark::Mark`] and zeros. The header is synced before the file gets its name, so a file of
//! that name has a whole header, and a bad one is damage, never a torn write.

use sluice_common::clock::UnixMs;
use sluice_common::ids::{LogId, Offset};

/// Bytes of the header; the first frame begins here.
pub const SEGMENT_HEADER_BYTES: usize = 64;
const MAGIC: u32 = u32::from_le_bytes(*b"SLSG");
const VERSION: u16 = 1;
const NO_SEGMENT: u64 = u64::MAX;
const SUFFIX: &str = ".segment";

/// The segment before: its base and the bytes used of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Previous {
    pub base: Offset,
    pub used: u64,
}

/// What a segment says of itself and of the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    pub log: LogId,
    pub base: Offset,
    pub previous: Option<Previous>,
    /// Append time of the last record before this segment; 0 in a new log.
    pub last_append_ms: UnixMs,
}

/// Why bytes are not a segment's header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    #[error("the segment is shorter than its header")]
    Short,
    #[error("the segment does not begin as one")]
    Magic,
    #[error("the checksum of the segment's header does not match")]
    Checksum,
    #[error("the segment's layout version {0} is not known to this release: start the release that wrote it")]
    Version(u16),
}

/// The file name of the segment that begins at `base`; names sort as their offsets.
#[must_use]
pub fn segment_name(base: Offset) -> String {
    format!("{base:020}{SUFFIX}")
}

/// The base that a file name tells, if it is a segment's.
#[must_use]
pub fn base_of(name: &str) -> Option<Offset> {
    let digits = name.strip_suffix(SUFFIX)?;
    (digits.len() == 20 && digits.bytes().all(|digit| digit.is_ascii_digit())).then(|| digits.parse().ok())?
}

impl SegmentHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let previous = self.previous.unwrap_or(Previous {
            base: NO_SEGMENT,
            used: 0,
        });
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        let words = [
            self.log.0,
            self.base,
            previous.base,
            previous.used,
            self.last_append_ms,
        ];
        for (place, word) in bytes[16..].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads what [`Self::encode`] wrote; what follows it is left alone.
    ///
    /// # Errors
    /// [`BadHeader`]; never panics on any input.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let bytes = bytes.get(..SEGMENT_HEADER_BYTES).ok_or(BadHeader::Short)?;
        if bytes[..4] != MAGIC.to_le_bytes() {
            return Err(BadHeader::Magic);
        }
        if bytes[4..8] != crc32c::crc32c(&bytes[8..]).to_le_bytes() {
            return Err(BadHeader::Checksum);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != VERSION {
            return Err(BadHeader::Version(version));
        }
        let mut words = [0u64; 5];
        for (word, place) in words.iter_mut().zip(bytes[16..].chunks_exact(8)) {
            *word = u64::from_le_bytes(place.try_into().unwrap_or_default());
        }
        let [log, base, previous, used, last_append_ms] = words;
        let previous = (previous != NO_SEGMENT).then_some(Previous { base: previous, used });
        Ok(Self {
            log: LogId(log),
            base,
            previous,
            last_append_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> SegmentHeader {
        let previous = Some(Previous { base: 3, used: 4 });
        SegmentHeader {
            log: LogId(1),
            base: 2,
            previous,
            last_append_ms: 5,
        }
    }

    #[test]
    fn the_bytes_on_disk_are_frozen() {
        let mut golden = b"SLSG".to_vec();
        golden.extend([0x57, 0x61, 0x4c, 0xb9, 1, 0, 0, 0, 0, 0, 0, 0]);
        for word in [1u64, 2, 3, 4, 5, 0] {
            golden.extend(word.to_le_bytes());
        }
        assert_eq!(header().encode().as_slice(), golden.as_slice());
    }

    #[test]
    fn names_tell_their_base_and_nothing_else_does() {
        assert_eq!(base_of(&segment_name(42)), Some(42));
        assert!(segment_name(9) < segment_name(10));
        for name in [
            "manifest",
            "42.segment",
            "+0000000000000000042.segment",
            "00000000000000000042",
        ] {
            assert_eq!(base_of(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_header_reads_back(log: u64, base: u64, previous in proptest::option::of((0..u64::MAX, any::<u64>())), last_append_ms: u64) {
            let previous = previous.map(|(base, used)| Previous { base, used });
            let header = SegmentHeader { log: LogId(log), base, previous, last_append_ms };
            prop_assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn any_flipped_bit_is_seen(bit in 0usize..SEGMENT_HEADER_BYTES * 8) {
            let mut bytes = header().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(SegmentHeader::decode(&bytes).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = SegmentHeader::decode(&bytes);
        }
    }
}
