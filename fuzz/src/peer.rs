//! Calls from a peer that has the token, or whose certificate counts: each is a call, or a bad message.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use sluice_common::wire::intake::IntakeRequest;
use sluice_common::wire::sink::SinkRequest;
use sluice_common::wire::transport::Call;
use std::time::Duration;

const HEADERS: [&str; 6] = [
    "sluice-tenant",
    "sluice-weight",
    "sluice-dataset",
    "sluice-request-id",
    "sluice-idempotency-key-hex",
    "sluice-format",
];

/// A call: even ones to the sink-writer, odd ones to intake with a header a line.
pub fn run(input: &[u8]) {
    let (choice, rest) = super::choice(input);
    if choice.is_multiple_of(2) {
        let headers = HeaderMap::new();
        round::<SinkRequest>(&headers, Bytes::copy_from_slice(rest));
        return;
    }
    let mut headers = HeaderMap::new();
    let mut lines = rest.split(|byte| *byte == b'\n');
    for (name, line) in HEADERS.into_iter().zip(&mut lines) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let body = lines.next().unwrap_or_default();
    round::<IntakeRequest>(&headers, Bytes::copy_from_slice(body));
}

/// What is understood can be sent on, and is understood again.
fn round<C: Call>(headers: &HeaderMap, body: Bytes) {
    let timeout = Duration::from_secs(1);
    let Ok(call) = C::from_parts(headers, timeout, body) else {
        return;
    };
    let mut headers = HeaderMap::new();
    let body = call.into_parts(&mut headers);
    assert!(
        C::from_parts(&headers, timeout, body).is_ok(),
        "what we send is understood"
    );
}
