//! Whole connections: whatever is sent, nobody is let in without the key, every answer is HTTP, and the
//! connection ends.

use crate::edge::{Fixture, KEY};
use sluice_common::limits::{EDGE_FORWARD_DEADLINE, MAX_BODY_BYTES};
use sluice_common::wire::intake::IntakeRequest;
use std::cell::OnceCell;
use std::collections::BTreeSet;

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
    check(&bytes, &answer, &seen);
}

/// Each request behind the edge showed the key itself, is one of its own, and is within the caps; nobody is told
/// that something was taken that never came there.
fn check(bytes: &[u8], answer: &[u8], seen: &[IntakeRequest]) {
    let keys = count(bytes, KEY.as_bytes());
    assert!(keys > 0 || seen.is_empty(), "let in without the key");
    // HTTP/2 may name a header again that it has sent once; its smallest frame has nine bytes.
    let most = if bytes.starts_with(b"PRI") {
        bytes.len() / 9
    } else {
        keys
    };
    assert!(seen.len() <= most, "{} requests of {most}", seen.len());
    assert!(
        count(answer, b"HTTP/1.1 202") <= seen.len(),
        "acknowledged and not passed on"
    );
    let ids: BTreeSet<_> = seen.iter().map(|one| one.request.0).collect();
    assert_eq!(ids.len(), seen.len(), "two requests with one id");
    for one in seen {
        assert_eq!((one.tenant.as_str(), one.dataset.as_str()), ("acme", "events"));
        assert!(one.body.len() <= MAX_BODY_BYTES);
        assert!(one.timeout <= EDGE_FORWARD_DEADLINE);
    }
}

fn count(haystack: &[u8], needle: &[u8]) -> usize {
    haystack
        .windows(needle.len())
        .filter(|window| *window == needle)
        .count()
}
