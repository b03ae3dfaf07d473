//! Packed bodies: what reaches the normalizer is what a second reader unpacks, within the caps.

use crate::edge::{Fixture, KEY};
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
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
    let body = if choice & 128 == 0 { rest.to_vec() } else { packed(encoding, rest) };
    let head = format!(
        "POST /v1/events/events HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {KEY}\r\n\
         content-encoding: {encoding}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let bytes = [head.as_bytes(), &body].concat();
    let (answer, seen) = EDGE.with(|edge| edge.get_or_init(Fixture::start).send(&bytes));
    assert!(answer.starts_with(b"HTTP/1.1 "), "{:?}", String::from_utf8_lossy(&answer));
    let Some(seen) = seen else { return };
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
    let most = MAX_BODY_BYTES as u64 + 1;
    let mut out = Vec::new();
    match encoding {
        "gzip" => MultiGzDecoder::new(bytes).take(most).read_to_end(&mut out)?,
        "zstd" => zstd::stream::read::Decoder::new(bytes)?.take(most).read_to_end(&mut out)?,
        "deflate" => {
            let mut zlib = Vec::new();
            match ZlibDecoder::new(bytes).take(most).read_to_end(&mut zlib) {
                Ok(_) => return Ok(zlib),
                Err(_) => DeflateDecoder::new(bytes).take(most).read_to_end(&mut out)?,
            }
        }
        _ => (&mut &*bytes).read_to_end(&mut out)?,
    };
    Ok(out)
}
