//! A text with magic, version, length and checksum before it: what small durable files consist of.
//!
//! ```text
//! magic 4 | version u16 | 0 u16 | length u32 | crc32c of all before and of the text u32 | text
//! ```

use std::ops::RangeInclusive;

/// What stands before the text.
pub const PREFIX_BYTES: usize = 16;

/// Puts the frame around a text.
///
/// # Panics
/// Over 4 GiB.
#[must_use]
pub fn frame(magic: [u8; 4], version: u16, text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + text.len());
    bytes.extend_from_slice(&magic);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    let length = u32::try_from(text.len()).expect("a text is under 4 GiB");
    bytes.extend_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), text);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(text);
    bytes
}

/// The checked text, and what follows it.
///
/// # Errors
/// A sentence.
pub fn unframe(
    magic: [u8; 4],
    versions: RangeInclusive<u16>,
    bytes: &[u8],
) -> Result<(&[u8], &[u8]), String> {
    if bytes.len() < PREFIX_BYTES || bytes[..4] != magic {
        return Err("it does not begin as such a file does".into());
    }
    let version = u16::from_le_bytes([bytes[4], bytes[5]]);
    let end = PREFIX_BYTES + length(bytes);
    let text = bytes.get(PREFIX_BYTES..end).ok_or("it is cut short")?;
    if crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), text) != word(bytes, 12) {
        return Err("its checksum is another".into());
    }
    if !versions.contains(&version) {
        return Err(format!("layout {version} is a later release's: start that"));
    }
    Ok((text, &bytes[end..]))
}

/// Bytes of the text, as the first [`PREFIX_BYTES`] say.
#[must_use]
pub fn length(bytes: &[u8]) -> usize {
    word(bytes, 8) as usize
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}
