//! What the fuzz targets do with their input: one module for each parser that meets bytes from outside.
//!
//! A target fails where our code panics, hangs, or breaks what the module's doc promises of it. Checksums
//! stand in a fuzzer's way and are no defence against whoever can write them, so the targets put them right.

pub mod arrow;
pub mod config;
pub mod decompress;
mod edge;
pub mod files;
pub mod http;
pub mod intake;
pub mod peer;
pub mod record;
mod rows;
mod sealed;
pub mod seeds;

/// Splits off the first byte, which chooses among the forms of a target.
fn choice(input: &[u8]) -> (u8, &[u8]) {
    input
        .split_first()
        .map_or((0, input), |(first, rest)| (*first, rest))
}

/// Puts a CRC-32C of `from..` at `at`, where there is room for it.
fn mend(bytes: &mut [u8], at: usize, from: usize) {
    if bytes.len() >= from.max(at + 4) {
        let crc = crc32c::crc32c(&bytes[from..]);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Writes a number at `at`, where there is room for it.
fn put(bytes: &mut [u8], at: usize, number: usize) {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&number.to_le_bytes());
    }
}
