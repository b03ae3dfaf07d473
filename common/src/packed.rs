//! A record's columns packed as one block of LZ4.
//!
//! Arrow packs each buffer of each column for itself, and each of them begins with a table of its own: with some hundred
//! rows that costs more than packing them. Here the stream is packed whole, with a table that is kept.

use bytes::Bytes;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress, get_maximum_output_size};
use std::cell::RefCell;

/// Begins what is packed; an Arrow IPC stream begins with four bytes of 0xFF.
const MARK: [u8; 4] = *b"SLZ4";
/// The mark, and how long the stream was.
const HEAD_BYTES: usize = 8;
/// What a thread keeps for the next stream: a record's, which are rarely longer.
const KEPT_BYTES: usize = 2 * 1_024 * 1_024;
/// LZ4 makes no more of a byte.
const MOST_OF_A_BYTE: usize = 255;
/// What begins a block of LZ4 may stand for a little more than its own bytes would.
const SLACK_BYTES: usize = 64;

/// Why bytes are not a packed stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPacked {
    #[error("its columns are said to unpack to {said} bytes, which {packed} bytes of LZ4 cannot be")]
    Length { said: usize, packed: usize },
    #[error("its columns do not unpack to the {said} bytes that are said: {reason}")]
    Block { said: usize, reason: String },
}

thread_local! {
    static TABLE: RefCell<(CompressTable, Vec<u8>)> = RefCell::new((CompressTable::large(), Vec::new()));
}

/// The stream packed, or as it is where that is no longer.
#[must_use]
pub fn pack(stream: Vec<u8>) -> Bytes {
    let Ok(length) = u32::try_from(stream.len()) else {
        return stream.into();
    };
    TABLE.with_borrow_mut(|(table, room)| {
        let most = HEAD_BYTES + get_maximum_output_size(stream.len());
        if room.len() < most {
            room.resize(most, 0);
        }
        room[..4].copy_from_slice(&MARK);
        room[4..HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
        let packed = compress_into_with_table(&stream, &mut room[HEAD_BYTES..], table);
        let body = match packed.map(|packed| HEAD_BYTES + packed) {
            Ok(packed) if packed < stream.len() => Bytes::copy_from_slice(&room[..packed]),
            Ok(_) | Err(_) => stream.into(),
        };
        if room.len() > KEPT_BYTES {
            *room = Vec::new();
        }
        body
    })
}

/// Whether a record's body is packed.
#[must_use]
pub fn is_packed(body: &[u8]) -> bool {
    body.starts_with(&MARK)
}

/// How long a record's body is once it is unpacked.
///
/// # Errors
/// A length that it cannot have.
pub fn unpacked_bytes(body: &[u8]) -> Result<usize, BadPacked> {
    let Some((head, block)) = body
        .split_at_checked(HEAD_BYTES)
        .filter(|(head, _)| is_packed(head))
    else {
        return Ok(body.len());
    };
    let said = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    let packed = block.len();
    if said > packed * MOST_OF_A_BYTE + SLACK_BYTES {
        return Err(BadPacked::Length { said, packed });
    }
    Ok(said)
}

/// A record's body as an Arrow IPC stream. It takes as much room as [`unpacked_bytes`] says, also where nothing comes of it.
///
/// # Errors
/// [`BadPacked`]; never panics on any input.
pub fn unpack(body: Bytes) -> Result<Bytes, BadPacked> {
    let said = unpacked_bytes(&body)?;
    if !is_packed(&body) || body.len() < HEAD_BYTES {
        return Ok(body);
    }
    let bad = |reason: String| BadPacked::Block { said, reason };
    let stream = decompress(&body[HEAD_BYTES..], said).map_err(|error| bad(error.to_string()))?;
    if stream.len() == said {
        Ok(stream.into())
    } else {
        Err(bad(format!("they are {}", stream.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_does_not_get_shorter_stays_as_it_is() {
        for stream in [vec![], vec![0xFF], vec![0xFF; 8]] {
            assert_eq!(pack(stream.clone()), Bytes::from(stream));
        }
    }

    #[test]
    fn a_length_that_no_block_has_is_refused_before_room_is_made_for_it() {
        let body = |said: u32, block: &[u8]| Bytes::from([&MARK[..], &said.to_le_bytes(), block].concat());
        let refused = unpack(body(u32::MAX, &[0; 100]));
        assert_eq!(
            refused,
            Err(BadPacked::Length {
                said: u32::MAX as usize,
                packed: 100
            })
        );
        let packed = pack(vec![7; 1_000]);
        for said in [999, 1_001] {
            let refused = unpack(body(said, &packed[HEAD_BYTES..]));
            assert!(matches!(refused, Err(BadPacked::Block { .. })), "{refused:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_unpacks_to_what_it_was(
            parts in prop::collection::vec((any::<u8>(), 0usize..300), 0..300),
        ) {
            let bytes: Vec<u8> = parts.iter().flat_map(|(byte, count)| std::iter::repeat_n(*byte, *count)).collect();
            let stream = [&[0xFF; 4][..], &bytes].concat();
            let packed = pack(stream.clone());
            prop_assert!(packed.len() <= stream.len());
            prop_assert_eq!(unpacked_bytes(&packed), Ok(stream.len()));
            prop_assert_eq!(unpack(packed), Ok(Bytes::from(stream)));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), said in 0u32..80_000) {
            let body = Bytes::from([&MARK[..], &said.to_le_bytes(), &bytes].concat());
            if let Ok(stream) = unpack(body) {
                prop_assert_eq!(stream.len(), said as usize);
            }
            unpack(Bytes::from([&MARK[..], &bytes].concat())).ok();
        }

        #[test]
        fn no_byte_that_is_wrong_makes_it_panic(at in 0usize..2_000, bit in 0u8..8) {
            let stream: Vec<u8> = (0u32..500).flat_map(|n| (n / 3).to_le_bytes()).collect();
            let mut packed = pack(stream).to_vec();
            let at = at % packed.len();
            packed[at] ^= 1 << bit;
            unpack(packed.into()).ok();
        }
    }
}
