//! The wire: early refusals, deadlines, and framing that attackers play with.

use crate::harness::{KEY, read_answers, read_head, start_accepting};
use sluice_common::limits::BODY_IDLE_DEADLINE;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn head(extra: &str) -> String {
    format!("POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n{extra}\r\n")
}

#[tokio::test]
async fn a_gigabyte_with_a_bad_key_costs_almost_nothing_and_is_answered() {
    let fixture = start_accepting().await;
    let (mut read, mut write) = fixture.connect().await.into_split();
    let request = "POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: wrong\r\ncontent-length: 1073741824\r\n\r\n";
    write.write_all(request.as_bytes()).await.unwrap();
    let sending = tokio::spawn(async move {
        let (piece, mut sent) = (vec![b' '; 64 * 1024], 0usize);
        while sent < 1 << 30 && write.write_all(&piece).await.is_ok() {
            sent += piece.len();
        }
        sent
    });
    let mut answer = Vec::new();
    while !answer.ends_with(b"\"}") {
        answer.push(read.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 401") && answer.contains("connection: close"),
        "{answer}"
    );
    let sent = sending.await.unwrap();
    // What the kernel's socket buffers take, and the drain.
    assert!(sent < 16 << 20, "{sent} bytes were taken");
}

/// As clients do that look for an answer only when all is sent.
async fn send_all_then_look(stream: &mut tokio::net::TcpStream, key: &str, bytes: usize) -> String {
    let head = format!(
        "POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\ncontent-length: {bytes}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let sent = stream.write_all(&vec![b' '; bytes]).await;
    sent.expect("the edge reads on");
    read_head(stream).await
}

#[tokio::test]
async fn the_refusal_of_a_large_body_is_seen_by_a_client_that_sends_all_before_it_looks() {
    let fixture = start_accepting().await;
    for bytes in [800_000, 1 << 20, 16 << 20] {
        for _ in 0..5 {
            let mut stream = fixture.connect().await;
            let answer = send_all_then_look(&mut stream, "wrong", bytes).await;
            assert!(
                answer.starts_with("HTTP/1.1 401") && answer.contains("connection: close"),
                "{bytes}: {answer:?}"
            );
        }
    }
    assert_eq!(fixture.edge.held_bytes(), 0);
}

#[tokio::test]
async fn a_connection_stays_open_after_a_refusal_with_a_small_body() {
    let fixture = start_accepting().await;
    let refused =
        "POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: wrong\r\ncontent-length: 2\r\n\r\n{}";
    let unknown = "POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}";
    let good = head("content-length: 2\r\nconnection: close\r\n") + "{}";
    let mut stream = fixture.connect().await;
    for (request, status) in [(refused, "401"), (unknown, "404"), (&good, "202")] {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut start = vec![0; 12];
        stream.read_exact(&mut start).await.unwrap();
        assert_eq!(start, format!("HTTP/1.1 {status}").into_bytes());
        if status != "202" {
            let mut rest = Vec::new();
            while !rest.ends_with(b"\"}") {
                rest.push(stream.read_u8().await.unwrap());
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_is_refused_without_it() {
    let fixture = start_accepting().await;
    let expecting = "content-length: 5000000\r\nexpect: 100-continue\r\n";
    let bad = format!("POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: wrong\r\n{expecting}\r\n");
    let answer = fixture.raw(bad.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    let mut stream = fixture.connect().await;
    stream
        .write_all(head("content-length: 2\r\nexpect: 100-continue\r\n").as_bytes())
        .await
        .unwrap();
    let mut go = [0; 25];
    stream.read_exact(&mut go).await.unwrap();
    assert_eq!(&go, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"{}").await.unwrap();
    assert!(read_answers(&mut stream).await.starts_with("HTTP/1.1 202"));
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
async fn ambiguous_framing_never_smuggles_a_second_request() {
    let fixture = start_accepting().await;
    let hidden = head("content-length: 2\r\n") + "{}";
    for (name, request) in [
        (
            "two lengths",
            head("content-length: 2\r\ncontent-length: 3\r\n") + "{}" + &hidden,
        ),
        ("a signed length", head("content-length: +2\r\n") + "{}"),
        (
            "length and chunked",
            head("content-length: 5\r\ntransfer-encoding: chunked\r\n") + "0\r\n\r\n" + &hidden,
        ),
        (
            "chunked and length",
            head("transfer-encoding: chunked\r\ncontent-length: 5\r\n") + "0\r\n\r\n" + &hidden,
        ),
        (
            "chunked twice removed",
            head("transfer-encoding: chunked, identity\r\n") + "0\r\n\r\n" + &hidden,
        ),
        (
            "an unknown coding",
            head("transfer-encoding: xchunked\r\n") + "0\r\n\r\n" + &hidden,
        ),
        (
            "a broken chunk",
            head("transfer-encoding: chunked\r\n") + "zz\r\n{}\r\n0\r\n\r\n" + &hidden,
        ),
        (
            "chunked in disguise",
            head("transfer-encoding: \x0bchunked\r\n") + "0\r\n\r\n" + &hidden,
        ),
        (
            "a folded line",
            head("transfer-encoding:\r\n chunked\r\n") + "0\r\n\r\n" + &hidden,
        ),
        (
            "a folded length",
            head("content-length: 2\r\n 0\r\n") + "{}" + &hidden,
        ),
        (
            "two lengths in one",
            head("content-length: 2, 3\r\n") + "{}" + &hidden,
        ),
        (
            "a length in hex",
            head("content-length: 0x2\r\n") + "{}" + &hidden,
        ),
        (
            "a negative length",
            head("content-length: -2\r\n") + "{}" + &hidden,
        ),
        (
            "a chunk size that overflows",
            head("transfer-encoding: chunked\r\n") + "10000000000000002\r\n{}\r\n0\r\n\r\n" + &hidden,
        ),
        (
            "a chunk size with a sign",
            head("transfer-encoding: chunked\r\n") + "+2\r\n{}\r\n0\r\n\r\n" + &hidden,
        ),
        (
            "a chunk longer than its size",
            head("transfer-encoding: chunked\r\n") + "2\r\n{}{}\r\n0\r\n\r\n" + &hidden,
        ),
        (
            "a null in a name",
            head("content\0-length: 2\r\n") + "{}" + &hidden,
        ),
        (
            "a space before the colon",
            head("content-length : 2\r\n") + "{}" + &hidden,
        ),
    ] {
        let answer = fixture.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{name}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{name}: {answer}");
        assert_eq!(fixture.seen(), 0, "{name} was handed on");
    }
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let fixture = start_accepting().await;
    let answer = fixture
        .raw(head(&format!("x-large: {}\r\n", "x".repeat(200_000))).as_bytes())
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 431") || answer.is_empty(),
        "{answer}"
    );
}

#[tokio::test]
async fn a_body_that_stops_coming_is_408_and_its_connection_is_closed() {
    let fixture = start_accepting().await;
    let mut stream = fixture.connect().await;
    stream
        .write_all((head("content-length: 100\r\n") + "{").as_bytes())
        .await
        .unwrap();
    let started = Instant::now();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(BODY_IDLE_DEADLINE + Duration::from_secs(5), read)
        .await
        .unwrap()
        .unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(started.elapsed() >= BODY_IDLE_DEADLINE);
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"),
        "{answer}"
    );
    assert!(answer.contains("connection: close"));
    assert_eq!(fixture.edge.held_bytes(), 0);
}
