//! The durable mark: "every record below this offset was synced", written behind the last frame.
//!
//! Each frame says what was durable when it was written, which tells nothing of the last group. So when
//! no append waits, the writer leaves a mark where the next frame will begin. It is not synced by itself
//! (`close` does) and the next group overwrites it; it proves, after a kill or a clean stop, that a bad
//! frame before it is damage and not a torn write.
//!
//! # Bytes (little endian, 24 in all)
//! ```text
//!  0  u32  magic "SLDM"
//!  4  u32  CRC-32C of bytes 8..24
//!  8  u64  log id
//! 16  u64  every offset below is durable
//! ```

use sluice_common::ids::{LogId, Offset};

/// Bytes of a mark.
pub const MARK_BYTES: usize = 24;
const MAGIC: u32 = u32::from_le_bytes(*b"SLDM");

/// A statement of durability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub log: LogId,
    pub durable_below: Offset,
}

impl Mark {
    /// The mark's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.log.0.to_le_bytes());
        bytes[16..].copy_from_slice(&self.durable_below.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The mark at the start of `bytes`, if one is there whole; what follows it is left alone.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..MARK_BYTES)?;
        let whole =
            bytes[..4] == MAGIC.to_le_bytes() && bytes[4..8] == crc32c::crc32c(&bytes[8..]).to_le_bytes();
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        whole.then(|| Self {
            log: LogId(word(8)),
            durable_below: word(16),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_on_disk_are_frozen() {
        let mut golden = b"SLDM".to_vec();
        golden.extend([0x5a, 0x6d, 0x04, 0x22]);
        golden.extend(1u64.to_le_bytes());
        golden.extend(2u64.to_le_bytes());
        assert_eq!(
            Mark {
                log: LogId(1),
                durable_below: 2
            }
            .encode()
            .as_slice(),
            golden.as_slice()
        );
    }

    proptest! {
        #[test]
        fn a_mark_reads_back_and_any_flipped_bit_is_seen(log: u64, durable_below: u64, bit in 0usize..MARK_BYTES * 8) {
            let mark = Mark { log: LogId(log), durable_below };
            let mut bytes = mark.encode();
            prop_assert_eq!(Mark::decode(&bytes), Some(mark));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Mark::decode(&bytes), None);
        }
    }
}
