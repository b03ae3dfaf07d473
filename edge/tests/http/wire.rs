//! The wire: early refusals, deadlines, and framing that attackers play with.

use crate::harness::{Fixture, KEY, eventually, read_answers, read_head, start_accepting};
use sluice_common::limits::{BODY_IDLE_DEADLINE, REFUSAL_DRAIN_BYTES};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn head(extra: &str) -> String {
    format!("POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n{extra}\r\n")
}

/// Bytes that `client` has sent and the edge has not read; `None` once the edge has closed its end.
fn unread(fixture: &Fixture, client: SocketAddr) -> Option<u64> {
    let [edge, client] = [fixture.address, client].map(|one| format!(":{:04X}", one.port()));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let end = table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // ESTABLISHED is 1; the queues are `sent:received`.
        let is_it = fields[1].ends_with(&edge) && fields[2].ends_with(&client) && fields[3] == "01";
        is_it.then(|| fields[4].split(':').nth(1).unwrap().to_owned())
    })?;
    Some(u64::from_str_radix(&end, 16).unwrap())
}

/// What hyper reads ahead of whoever takes its frames: the head's limit, 64 KiB.
const READ_AHEAD: usize = 64 * 1024;

/// Sent piece by piece, each once the one before was read: what was sent in the end is what the edge has read.
#[tokio::test]
async fn a_gigabyte_with_a_bad_key_costs_almost_nothing_and_is_answered() {
    let fixture = start_accepting().await;
    let stream = fixture.connect().await;
    let client = stream.local_addr().unwrap();
    let (mut read, mut write) = stream.into_split();
    let request = "POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: wrong\r\ncontent-length: 1073741824\r\n\r\n";
    write.write_all(request.as_bytes()).await.unwrap();
    let (piece, mut sent) = (vec![b' '; 4 * 1024], 0);
    while write.write_all(&piece).await.is_ok() {
        sent += piece.len();
        assert!(
            sent <= REFUSAL_DRAIN_BYTES + 2 * READ_AHEAD,
            "{sent} bytes were read"
        );
        eventually("it is read", || {
            matches!(unread(&fixture, client), None | Some(0))
        })
        .await;
        assert_eq!(fixture.edge.held_bytes(), 0, "none of it is held");
    }
    let mut answer = Vec::new();
    while !answer.ends_with(b"\"}") {
        answer.push(read.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 401") && answer.contains("connection: close"),
        "{answer}"
    );
    assert_eq!(fixture.seen(), 0);
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
            "a bare LF after a chunk's size",
            head("transfer-encoding: chunked\r\n") + "2\n{}\r\n0\r\n\r\n" + &hidden,
        ),
        (
            "a bare LF in a chunk's extension",
            head("transfer-encoding: chunked\r\n") + "2;x\n{}\r\n0\r\n\r\n" + &hidden,
        ),
        (
            "a bare LF after a chunk",
            head("transfer-encoding: chunked\r\n") + "2\r\n{}\n0\r\n\r\n" + &hidden,
        ),
        (
            "a bare LF after the last chunk",
            head("transfer-encoding: chunked\r\n") + "2\r\n{}\r\n0\n\r\n" + &hidden,
        ),
        (
            "a CR in a chunk's extension",
            head("transfer-encoding: chunked\r\n") + "2;\rx\r\n{}\r\n0\r\n\r\n" + &hidden,
        ),
        (
            "a CR alone as a header's end",
            head("x-other: a\rcontent-length: 2\r\n") + "{}" + &hidden,
        ),
        (
            "a CR alone in a value",
            head("content-length: 2\r\nx-other: a\rb\r\n") + "{}" + &hidden,
        ),
        (
            "a CR alone as the head's end",
            head("content-length: 2\r\n").trim_end().to_owned() + "\r\r{}" + &hidden,
        ),
        (
            "a folded line of another header",
            head("content-length: 2\r\nx-other: a\r\n b\r\n") + "{}" + &hidden,
        ),
        (
            "a folded key",
            head("content-length: 2\r\nx-other: a\r\n\tx-api-key: other\r\n") + "{}" + &hidden,
        ),
        (
            "a first header that is folded",
            format!(
                "POST /v1/events/events HTTP/1.1\r\n {}{{}}",
                head("content-length: 2\r\n")
            ) + &hidden,
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

/// A lone LF ends a line of a head, as RFC 9112 2.2 allows: then it does everywhere in the head, and what follows is
/// the one body that the head says.
#[tokio::test]
async fn a_bare_lf_ends_a_line_of_a_head_and_hides_no_request() {
    let fixture = start_accepting().await;
    let hidden =
        "POST /v1/events/other HTTP/1.1\r\nhost: x\r\nx-api-key: wrong\r\ncontent-length: 2\r\n\r\n{}";
    let line = "POST /v1/events/events HTTP/1.1\r\nhost: x\r\n";
    let key = format!("x-api-key: {KEY}");
    let length = format!("content-length: {}", hidden.len());
    for (name, request) in [
        ("a header's end", format!("{line}{key}\n{length}\r\n\r\n{hidden}")),
        (
            "the last header's end",
            format!("{line}{key}\r\n{length}\n\r\n{hidden}"),
        ),
        ("the head's end", format!("{line}{key}\r\n{length}\r\n\n{hidden}")),
        ("both ends", format!("{line}{key}\r\n{length}\n\n{hidden}")),
        (
            "the request line's end",
            format!(
                "{}{key}\r\n{length}\r\n\r\n{hidden}",
                line.replacen("\r\n", "\n", 1)
            ),
        ),
        (
            "all lines",
            format!("{line}{key}\r\n{length}\r\n\r\n").replace("\r\n", "\n") + hidden,
        ),
        (
            "a length in a value's disguise",
            format!("{line}{key}\r\nx-other: a\n{length}\r\n\r\n{hidden}"),
        ),
    ] {
        let before = fixture.seen();
        let answer = fixture.raw(request.as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{name}: {answer}");
        assert!(answer.starts_with("HTTP/1.1 202"), "{name}: {answer}");
        let seen = fixture.seen.lock().unwrap();
        assert_eq!(seen.len(), before + 1, "{name}");
        let last = seen.last().unwrap();
        assert_eq!(
            (last.tenant.as_str(), &last.body[..]),
            ("acme", hidden.as_bytes()),
            "{name}"
        );
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
    assert_eq!(fixture.seen(), 0, "it was handed on");
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
