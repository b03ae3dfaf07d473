//! HTTP/2 by hand: frames that no sound client would send.

use crate::harness::KEY;

/// The code of a GOAWAY to a peer that asks too much.
pub const ENHANCE_YOUR_CALM: u32 = 11;
pub const SETTINGS: u8 = 4;
pub const HEADERS: u8 = 1;
pub const DATA: u8 = 0;
pub const RESET: u8 = 3;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

pub fn preface() -> Vec<u8> {
    [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &frame(SETTINGS, 0, 0, &[]),
    ]
    .concat()
}

/// A literal field that is not indexed, its texts as they are: at most 126 bytes each.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        assert!(text.len() < 127, "a length of one byte");
        [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
    };
    [vec![0], text(name), text(value)].concat()
}

/// `POST /v1/events/events`.
pub fn head() -> Vec<u8> {
    let indexed = vec![0x83, 0x86];
    let path = field(":path", "/v1/events/events");
    [indexed, path, field(":authority", "x"), field("x-api-key", KEY)].concat()
}

/// Type, stream and payload of the frames that came, the last one perhaps cut.
pub fn frames(mut rest: &[u8]) -> Vec<(u8, u32, &[u8])> {
    let mut found = Vec::new();
    while let Some((head, payload)) = rest.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Some((payload, more)) = payload.split_at_checked(length) else {
            break;
        };
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        found.push((head[3], stream, payload));
        rest = more;
    }
    found
}
