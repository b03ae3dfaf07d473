//! Packed bodies: what reaches the normalizer is what a second reader unpacks, within the caps.

use crate::edge::{Fixture, KEY};
use flate2::{Crc, Decompress, FlushDecompress, Status};
use sluice_common::limits::MAX_BODY_BYTES;
use std::cell::OnceCell;
use std::io::{self, Read};

thread_local! {
    static EDGE: OnceCell<Fixture> = const { OnceCell::new() };
}

/// One body: packed by us in some way, or as it comes.
pub fn run(input: &[u8]) {
    let (choice, rest) = super::choice(input);
    let encoding = ["gzip", "zstd", "deflate", "identity"][usize::from(choice) % 4];
    let body = if choice & 128 == 0 {
        rest.to_vec()
    } else {
        packed(encoding, rest)
    };
    let head = format!(
        "POST /v1/events/events HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {KEY}\r\n\
         content-encoding: {encoding}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let bytes = [head.as_bytes(), &body].concat();
    let (answer, mut seen) = EDGE.with(|edge| edge.get_or_init(Fixture::start).send(&bytes));
    assert!(
        answer.starts_with(b"HTTP/1.1 "),
        "{:?}",
        String::from_utf8_lossy(&answer)
    );
    let Some(seen) = seen.pop() else { return };
    assert!(seen.body.len() <= MAX_BODY_BYTES);
    let expected = unpacked(encoding, &body).expect("what was taken can be unpacked");
    assert_eq!(seen.body, expected);
}

fn packed(encoding: &str, bytes: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::fast();
    let mut out = Vec::new();
    let done = match encoding {
        "gzip" => flate2::read::GzEncoder::new(bytes, level).read_to_end(&mut out),
        "deflate" => flate2::read::ZlibEncoder::new(bytes, level).read_to_end(&mut out),
        "zstd" => zstd::stream::read::Encoder::new(bytes, 1).and_then(|mut from| from.read_to_end(&mut out)),
        _ => (&mut &*bytes).read_to_end(&mut out),
    };
    done.expect("from memory to memory");
    out
}

fn unpacked(encoding: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let most = MAX_BODY_BYTES as u64 + 1;
    match encoding {
        "gzip" => return gunzipped(bytes),
        "zstd" => zstd::stream::read::Decoder::new(bytes)?
            .take(most)
            .read_to_end(&mut out)?,
        "deflate" => return inflated(bytes),
        _ => (&mut &*bytes).read_to_end(&mut out)?,
    };
    Ok(out)
}

/// One member after the other to the end of the body, by RFC 1952: head, stream, checksum and length.
///
/// A head's flags without a meaning are passed over, as the edge's reader does; flate2's reader of members
/// does not.
fn gunzipped(mut bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let (stream, from) = (after_head(bytes)?, out.len());
        let rest = &stream[inflate(stream, false, &mut out)?..];
        let mut sum = Crc::new();
        sum.update(&out[from..]);
        let (trailer, rest) = rest
            .split_first_chunk::<8>()
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        if *trailer != [sum.sum().to_le_bytes(), sum.amount().to_le_bytes()].concat()[..] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        bytes = rest;
    }
    Ok(out)
}

/// What follows a member's head.
fn after_head(bytes: &[u8]) -> io::Result<&[u8]> {
    let cut = |rest: &[u8]| rest.iter().position(|byte| *byte == 0).map(|end| end + 1);
    let whole = || {
        let (head, mut rest) = bytes.split_first_chunk::<10>()?;
        let [0x1f, 0x8b, 8, flags, ..] = *head else {
            return None;
        };
        if flags & 4 != 0 {
            let (len, extra) = rest.split_first_chunk::<2>()?;
            rest = extra.get(usize::from(u16::from_le_bytes(*len))..)?;
        }
        for text in [8, 16] {
            if flags & text != 0 {
                rest = &rest[cut(rest)?..];
            }
        }
        rest.get(if flags & 2 == 0 { 0 } else { 2 }..)
    };
    whole().ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// One stream after the other to the end of the body, all with zlib's head or all without: nothing that was
/// sent may be left out.
fn inflated(mut bytes: &[u8]) -> io::Result<Vec<u8>> {
    let is_zlib = bytes.len() > 1
        && bytes[0] & 0x0f == 8
        && bytes[0] >> 4 <= 7
        && u16::from_be_bytes([bytes[0], bytes[1]]).is_multiple_of(31);
    let mut out = Vec::new();
    while !bytes.is_empty() {
        bytes = &bytes[inflate(bytes, is_zlib, &mut out)?..];
    }
    Ok(out)
}

/// One whole stream from the beginning of these bytes; says how many of them it was.
fn inflate(bytes: &[u8], is_zlib: bool, out: &mut Vec<u8>) -> io::Result<usize> {
    let mut stream = Decompress::new(is_zlib);
    let mut status = Status::Ok;
    while status != Status::StreamEnd {
        let (read, had) = (taken(&stream), out.len());
        assert!(had <= MAX_BODY_BYTES, "more than was taken");
        out.reserve(64 * 1024);
        status = stream.decompress_vec(&bytes[read..], out, FlushDecompress::None)?;
        if status != Status::StreamEnd && (taken(&stream), out.len()) == (read, had) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(taken(&stream))
}

fn taken(stream: &Decompress) -> usize {
    usize::try_from(stream.total_in()).expect("no more than there was")
}
