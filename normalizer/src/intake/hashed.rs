//! Values in the form that is hashed, each behind its tag: [`super::identity`] says what is frozen.

use super::strings::as_i32;
use arrow_buffer::i256;
use std::net::{IpAddr, Ipv6Addr};

/// A string.
pub fn hashed_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(1);
    out.extend_from_slice(&as_i32(bytes.len()).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// A whole number of any width.
pub fn hashed_whole(value: i128, out: &mut Vec<u8>) {
    out.push(3);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A float of any width.
pub fn hashed_float(value: f64, out: &mut Vec<u8>) {
    out.push(4);
    // Adding zero turns -0 into 0: they are equal, so they are one.
    out.extend_from_slice(&(value + 0.0).to_bits().to_le_bytes());
}

/// A decimal without its last zeros, so that more digits behind the point make no other number.
pub fn hashed_decimal(mut value: i256, mut scale: u8, out: &mut Vec<u8>) {
    let ten = i256::from_i128(10);
    while scale > 0 && value.wrapping_rem(ten) == i256::ZERO {
        value = value.wrapping_div(ten);
        scale -= 1;
    }
    out.extend_from_slice(&[7, scale]);
    out.extend_from_slice(&value.to_le_bytes());
}

/// An IPv4 address as the IPv6 address that stands for it: both types hash it alike.
pub fn hashed_address(text: &[u8], out: &mut Vec<u8>) {
    let address = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    let address = match address.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    out.push(10);
    out.extend_from_slice(&address.octets());
}
