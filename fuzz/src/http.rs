//! Whole connections: whatever is sent, nobody is let in without the key, every answer is HTTP, and the
//! connection ends.

use crate::edge::{Fixture, KEY};
use std::cell::OnceCell;

thread_local! {
    static EDGE: OnceCell<Fixture> = const { OnceCell::new() };
}

/// One connection: the bytes as they are, or as headers of a request with the key.
pub fn run(input: &[u8]) {
    let (choice, rest) = super::choice(input);
    let bytes = match choice % 3 {
        0 => rest.to_vec(),
        1 => [
            format!("POST /v1/events/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n")
                .as_bytes(),
            rest,
        ]
        .concat(),
        _ => [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), rest].concat(),
    };
    let (answer, seen) = EDGE.with(|edge| edge.get_or_init(Fixture::start).send(&bytes));
    if choice % 3 != 2 && !answer.is_empty() {
        // Bytes that begin as HTTP/2 are answered in frames.
        assert!(
            answer.starts_with(b"HTTP/1.") || bytes.starts_with(b"PRI"),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
    }
    if let Some(seen) = seen {
        assert!(memchr(&bytes, KEY.as_bytes()), "let in without the key");
        assert_eq!(seen.tenant.as_str(), "acme");
    }
}

fn memchr(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
