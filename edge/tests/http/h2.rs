//! HTTP/2 from clients that send what no sound one would: ambiguous requests, huge heads, too many streams.

use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, PING, RESET, SETTINGS,
    field, frame, frames, head, preface,
};
use crate::harness::{Fixture, start_accepting};
use sluice_common::limits::{MAX_H2_STREAMS, MAX_HEADER_BYTES};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// `:status: 202` and `:status: 431` as HPACK with Huffman's code: how the heads of these answers begin.
const TAKEN: &[u8] = &[0x48, 0x82, 0x10, 0x05];
const HEAD_TOO_LARGE: &[u8] = &[0x48, 0x83, 0x69, 0x90, 0xff];
const REFUSED_STREAM: u32 = 7;
const MAX_CONCURRENT_STREAMS: [u8; 2] = [0, 3];

type Frame<'a> = (u8, u32, &'a [u8]);

/// Sends these frames, and reads until what came is enough or the connection is closed.
async fn told(fixture: &Fixture, sent: &[u8], is_enough: impl Fn(&[Frame<'_>]) -> bool) -> Vec<u8> {
    let mut stream = fixture.connect().await;
    let (mut read, mut write) = stream.split();
    let mut said = Vec::new();
    let sent = [&preface()[..], sent].concat();
    let talk = async {
        // One that is closed meanwhile does not take all.
        let sending = async { write.write_all(&sent).await.ok() };
        let hearing = async {
            while !is_enough(&frames(&said)) {
                if !matches!(read.read_buf(&mut said).await, Ok(1..)) {
                    break;
                }
            }
        };
        tokio::join!(sending, hearing)
    };
    assert!(
        timeout(Duration::from_secs(10), talk).await.is_ok(),
        "no end: {said:?}"
    );
    said
}

/// The first stream was answered or reset, or the whole connection was ended.
fn is_over(said: &[Frame<'_>]) -> bool {
    let ends =
        |(kind, stream, _): &Frame<'_>| *kind == GOAWAY || *stream == 1 && [HEADERS, RESET].contains(kind);
    said.iter().any(ends)
}

fn answers<'a>(said: &'a [u8], status: &[u8]) -> Vec<Frame<'a>> {
    let mut answers = frames(said);
    answers.retain(|(kind, _, payload)| *kind == HEADERS && payload.starts_with(status));
    answers
}

/// A request of one frame of headers, with `fields` beside its own, and these pieces of a body.
fn request(fields: &[Vec<u8>], pieces: &[&[u8]]) -> Vec<u8> {
    let block = [head(), fields.concat()].concat();
    let (end, mut sent) = match pieces {
        [] => (END_STREAM, Vec::new()),
        [..] => (0, Vec::new()),
    };
    sent.extend(frame(HEADERS, END_HEADERS | end, 1, &block));
    for (n, piece) in pieces.iter().enumerate() {
        let end = if n + 1 == pieces.len() { END_STREAM } else { 0 };
        sent.extend(frame(DATA, end, 1, piece));
    }
    sent
}

/// Its name, the fields beside those that every request has, and the pieces of its body.
type Case<'a> = (&'a str, Vec<Vec<u8>>, &'a [&'a [u8]]);

#[tokio::test]
async fn an_ambiguous_request_over_http2_is_never_handed_on() {
    let fixture = start_accepting().await;
    let one = |name, value| vec![field(name, value)];
    let good: &[&[u8]] = &[b"{}"];
    let cases: &[Case<'_>] = &[
        ("less than its length", one("content-length", "5"), good),
        ("more than its length", one("content-length", "2"), &[b"{}{}"]),
        (
            "its length, then more",
            one("content-length", "2"),
            &[b"{}", b"{}"],
        ),
        ("a length and nothing", one("content-length", "2"), &[]),
        ("no length and a body", one("content-length", "0"), good),
        ("a signed length", one("content-length", "+2"), good),
        ("two lengths in one", one("content-length", "2, 2"), good),
        (
            "two lengths",
            vec![field("content-length", "2"), field("content-length", "4")],
            good,
        ),
        (
            "two lengths, the other first",
            vec![field("content-length", "4"), field("content-length", "2")],
            good,
        ),
        (
            "chunked",
            one("transfer-encoding", "chunked"),
            &[b"2\r\n{}\r\n0\r\n\r\n"],
        ),
        ("a connection header", one("connection", "x-api-key"), good),
        ("an upgrade", one("upgrade", "h2c"), good),
        ("CRLF in a value", one("x-other", "a\r\ncontent-length: 0"), good),
        ("LF in a value", one("x-other", "a\nx-api-key: other"), good),
        ("CR in a value", one("x-other", "a\rb"), good),
        ("NUL in a value", one("x-other", "a\0b"), good),
        ("CRLF in a name", one("x-other: a\r\nx-more", "b"), good),
        ("a colon in a name", one("content-length: 0", "b"), good),
        ("capitals in a name", one("Content-Length", "2"), good),
        ("a second path", one(":path", "/v1/events/other"), good),
        ("a pseudo-header after others", one(":scheme", "http"), good),
    ];
    for (name, fields, pieces) in cases {
        let said = told(&fixture, &request(fields, pieces), is_over).await;
        assert!(is_over(&frames(&said)), "{name}: it was not told: {said:?}");
        assert_eq!(answers(&said, TAKEN), [], "{name}");
        assert_eq!(fixture.seen(), 0, "{name} was handed on");
    }
    let said = told(&fixture, &request(&one("content-length", "2"), good), is_over).await;
    assert_eq!(
        (answers(&said, TAKEN).len(), fixture.seen()),
        (1, 1),
        "a sound one is taken"
    );
    assert_eq!(fixture.edge.held_bytes(), 0);
}

/// A field of 3,032 bytes by HTTP/2's count of a list, and what repeats it: one byte.
fn repeated(times: usize) -> Vec<u8> {
    let more = 3_000 - 0x7f - 2;
    let length = [0x7f, 0x80 | more as u8 & 0x7f, (more >> 7) as u8];
    [
        &[0x40, 2][..],
        b"xx",
        &length,
        &[b'x'; 2_998],
        &vec![0xbe; times - 1],
    ]
    .concat()
}

#[tokio::test]
async fn a_list_of_headers_over_http2_has_its_limit_however_small_it_is_sent() {
    let fixture = start_accepting().await;
    let most = MAX_HEADER_BYTES / 3_032;
    let sent = |times| request(&[repeated(times)], &[b"{}"]);
    let said = told(&fixture, &sent(most), is_over).await;
    assert_eq!(answers(&said, TAKEN).len(), 1, "{most} are within it");
    for times in [most + 1, 1_000, 10_000] {
        let said = told(&fixture, &sent(times), is_over).await;
        let refused = answers(&said, HEAD_TOO_LARGE).len() == 1 || answers(&said, b"").is_empty();
        assert!(refused && is_over(&frames(&said)), "{times}: {said:?}");
    }
    assert_eq!(fixture.seen(), 1);
}

#[tokio::test]
async fn a_head_over_http2_that_goes_on_in_frame_after_frame_is_not_read_to_its_end() {
    let fixture = start_accepting().await;
    let piece = frame(CONTINUATION, 0, 1, &field("x-more", &"x".repeat(120)).repeat(120));
    let sent = [frame(HEADERS, 0, 1, &head()), piece.repeat(100)].concat();
    let is_ended = |said: &[Frame<'_>]| said.iter().any(|(kind, ..)| *kind == GOAWAY);
    let said = told(&fixture, &sent, is_ended).await;
    let said = frames(&said);
    let (.., why) = said
        .iter()
        .find(|(kind, ..)| *kind == GOAWAY)
        .expect("it is told why");
    assert_eq!(why[4..8], ENHANCE_YOUR_CALM.to_be_bytes());
    let other = fixture.send_once(fixture.events(), b"{}").await;
    assert_eq!((other.status.as_u16(), fixture.seen()), (202, 1));
}

#[tokio::test]
async fn more_streams_at_once_than_a_connection_may_have_are_refused_and_no_other() {
    const OVER: u32 = 20;
    let fixture = start_accepting().await;
    let open = |n: u32| frame(HEADERS, END_HEADERS, 2 * n + 1, &head());
    let sent: Vec<u8> = (0..MAX_H2_STREAMS + OVER).flat_map(open).collect();
    // What follows a ping has been seen when the ping is answered.
    let sent = [sent, frame(PING, 0, 0, b"all seen")].concat();
    let said = told(&fixture, &sent, |said| {
        said.iter().any(|(.., payload)| *payload == b"all seen")
    })
    .await;
    let said = frames(&said);
    let settings = said
        .iter()
        .find(|(kind, ..)| *kind == SETTINGS)
        .expect("settings");
    let limit = settings
        .2
        .chunks(6)
        .find(|one| one[..2] == MAX_CONCURRENT_STREAMS);
    assert_eq!(
        limit.expect("a limit")[2..],
        MAX_H2_STREAMS.to_be_bytes(),
        "clients are told it"
    );
    let refused: Vec<u32> = said
        .iter()
        .filter(|(kind, _, code)| *kind == RESET && *code == REFUSED_STREAM.to_be_bytes())
        .map(|(_, stream, _)| *stream)
        .collect();
    let beyond: Vec<u32> = (MAX_H2_STREAMS..MAX_H2_STREAMS + OVER)
        .map(|n| 2 * n + 1)
        .collect();
    assert_eq!(refused, beyond);
    assert!(
        said.iter().all(|(kind, ..)| *kind != GOAWAY),
        "its connection goes on"
    );
    assert_eq!(fixture.seen(), 0);
}
