//! Clients that send slowly, at every stage of a request: each is given up at its deadline, and nobody waits for one.

use crate::frames::{END_HEADERS, HEADERS, frame, frames, head, preface};
use crate::harness::{Fixture, KEY, eventually, start_accepting};
use sluice_common::limits::{BODY_IDLE_DEADLINE, HEADER_DEADLINE};
use std::io::Write as _;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// What is sent at once, what comes then byte by byte, a second between them, and how it must end.
struct Slow {
    name: &'static str,
    at_once: Vec<u8>,
    then: Vec<u8>,
    end: End,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    /// Without an answer: no request was there.
    Closed,
    TimedOut,
}

/// A request up to the end of its head.
fn begun(extra: &str) -> Vec<u8> {
    format!("POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n{extra}\r\n").into_bytes()
}

fn half_of_a_gzip() -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&b"{\"a\":\"b\"}\n".repeat(1_000)).unwrap();
    let whole = encoder.finish().unwrap();
    whole[..whole.len() / 2].to_vec()
}

fn corpus() -> Vec<Slow> {
    let gzip = begun("content-encoding: gzip\r\ncontent-length: 1000\r\n");
    let head = begun("x-slow: ");
    let head = head[..head.len() - 4].to_vec();
    let of = |name, at_once: &[u8], then: &[u8], end| Slow {
        name,
        at_once: at_once.to_vec(),
        then: then.to_vec(),
        end,
    };
    let long = vec![b'a'; 60];
    let chunked = begun("transfer-encoding: chunked\r\n");
    vec![
        of("nothing at all", b"", b"", End::Closed),
        of("half a request line", b"POST /v1/ev", b"", End::Closed),
        of(
            "a request line byte by byte",
            b"",
            &[b"POST /", &long[..]].concat(),
            End::Closed,
        ),
        of("the bytes of a header one by one", &head, &long, End::Closed),
        of(
            "a head without its last line",
            &begun("")[..begun("").len() - 2],
            b"",
            End::Closed,
        ),
        of("half of the preface", b"PRI * HTT", b"", End::Closed),
        of(
            "the preface byte by byte",
            b"",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            End::Closed,
        ),
        of(
            "a body of a length that stops",
            &[&begun("content-length: 100\r\n")[..], b"{\"a\":"].concat(),
            b"",
            End::TimedOut,
        ),
        of(
            "chunks that stop",
            &[&chunked[..], b"5\r\n{\"a\":\r\n5\r\n"].concat(),
            b"",
            End::TimedOut,
        ),
        // Bytes come, and none of the body.
        of(
            "a chunk's line byte by byte",
            &[&chunked[..], b"5\r\n{\"a\":\r\n5;"].concat(),
            &long,
            End::TimedOut,
        ),
        of(
            "gzip that stops",
            &[&gzip[..], &half_of_a_gzip()].concat(),
            b"",
            End::TimedOut,
        ),
    ]
}

/// What the edge says to it until it closes, and after how long.
async fn suffer(mut stream: TcpStream, slow: &Slow) -> (String, Duration) {
    let started = Instant::now();
    stream.write_all(&slow.at_once).await.unwrap();
    let (mut read, mut write) = stream.split();
    let mut said = Vec::new();
    let drip = async {
        for byte in &slow.then {
            // One that was closed meanwhile says so to whoever reads.
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        std::future::pending::<()>().await;
    };
    let closed = async {
        // A reset is an end as well.
        read.read_to_end(&mut said).await.ok();
    };
    let ended = async {
        tokio::select! {
            () = closed => {}
            () = drip => {}
        }
    };
    let most = HEADER_DEADLINE.max(BODY_IDLE_DEADLINE) + Duration::from_secs(8);
    assert!(timeout(most, ended).await.is_ok(), "{}: still open", slow.name);
    (String::from_utf8_lossy(&said).into_owned(), started.elapsed())
}

fn ends_as_it_must(slow: &Slow, said: &str, after: Duration) {
    let name = slow.name;
    assert!(
        after > Duration::from_secs(5),
        "{name}: it had its time: {after:?}, {said}"
    );
    match slow.end {
        End::Closed => assert_eq!(said, "", "{name}"),
        End::TimedOut => {
            assert!(
                said.starts_with("HTTP/1.1 408") && said.contains("body_timeout"),
                "{name}: {said}"
            );
            assert!(said.contains("connection: close"), "{name}: {said}");
        }
    }
}

/// A body over HTTP/2 that stops: its stream is answered, and its connection need not end.
async fn suffer_over_http2(mut stream: TcpStream) {
    let request = [preface(), frame(HEADERS, END_HEADERS, 1, &head())].concat();
    stream.write_all(&request).await.unwrap();
    let mut said = Vec::new();
    let answered = async {
        let told = |said: &[u8]| {
            frames(said)
                .iter()
                .any(|(.., payload)| payload.windows(12).any(|part| part == b"body_timeout"))
        };
        while !told(&said) {
            assert!(
                stream.read_buf(&mut said).await.unwrap() > 0,
                "closed without an answer"
            );
        }
    };
    let most = BODY_IDLE_DEADLINE + Duration::from_secs(8);
    assert!(
        timeout(most, answered).await.is_ok(),
        "a body over HTTP/2: no answer"
    );
}

async fn connections(fixture: &Fixture, n: usize) {
    let line = format!("sluice_connections {n}\n");
    eventually(&line, || fixture.metrics.render().contains(&line)).await;
}

#[tokio::test]
async fn whatever_comes_slowly_is_given_up_at_its_deadline_and_leaves_nothing() {
    let fixture = start_accepting().await;
    let corpus = corpus();
    let open = corpus.len() + 1;
    let mut ends = Vec::new();
    for slow in corpus {
        let stream = fixture.connect().await;
        ends.push(tokio::spawn(async move {
            let (said, after) = suffer(stream, &slow).await;
            ends_as_it_must(&slow, &said, after);
        }));
    }
    ends.push(tokio::spawn(suffer_over_http2(fixture.connect().await)));
    connections(&fixture, open).await;
    let other = fixture.send_once(fixture.events(), b"{}").await;
    assert_eq!(other.status, 202, "nobody waits for them");
    let ends = futures_util::future::join_all(ends).await;
    let failed: Vec<_> = ends.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{failed:?}");
    connections(&fixture, 0).await;
    assert_eq!((fixture.seen(), fixture.edge.held_bytes()), (1, 0));
}
