//! Caps on connections, and HTTP/2 connections that attack.

use crate::frames::{
    DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, RESET, frame, frames, head, preface,
};
use crate::harness::{
    Fixture, KEY, NARROW, accepted, eventually, read_head, start_accepting, start_as, two_tenants,
};
use futures_util::stream;
use http_body_util::{Full, StreamBody};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sluice_common::limits::MAX_H2_RESETS;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;

async fn capped(total: u32, per_address: u32) -> Fixture {
    let caps = format!("edge: {{connections: {{total: {total}, per_address: {per_address}}}}}\n");
    start_as(&(caps + &two_tenants()), None, |_| async { accepted(1) }).await
}

async fn capped_by_tenant(per_tenant: u32) -> Fixture {
    let caps = format!("edge: {{connections: {{per_tenant: {per_tenant}}}}}\n");
    start_as(&(caps + &two_tenants()), None, |_| async { accepted(1) }).await
}

async fn connect_from(fixture: &Fixture, last: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
    socket.connect(fixture.address).await.unwrap()
}

fn request() -> String {
    format!("POST /v1/events/events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: 2\r\n\r\n{{}}")
}

async fn answer(stream: &mut TcpStream) -> String {
    // One that was closed at once may reset already.
    stream.write_all(request().as_bytes()).await.ok();
    read_answer(stream).await
}

/// One answer, head and body.
async fn read_answer(stream: &mut TcpStream) -> String {
    let head = read_head(stream).await;
    let Some((_, length)) = head.split_once("content-length: ") else {
        return head;
    };
    let length = length.split("\r\n").next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    head + &String::from_utf8(body).unwrap()
}

fn sheds(fixture: &Fixture, reason: &str, n: u64) -> bool {
    let line = format!("sluice_shed_total{{reason=\"{reason}\",where=\"edge\"}} {n}\n");
    fixture.metrics.render().contains(&line)
}

#[tokio::test]
async fn one_address_has_its_cap_and_another_is_served() {
    let fixture = capped(100, 2).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = connect_from(&fixture, 1).await;
        assert!(answer(&mut stream).await.starts_with("HTTP/1.1 202"));
        held.push(stream);
    }
    let mut third = connect_from(&fixture, 1).await;
    assert_eq!(answer(&mut third).await, "", "closed at once");
    assert!(sheds(&fixture, "address_connections", 1));
    let mut other = connect_from(&fixture, 2).await;
    assert!(answer(&mut other).await.starts_with("HTTP/1.1 202"));
    assert!(fixture.metrics.render().contains("sluice_connections 3\n"));
    drop(held);
    eventually("the places are free", || {
        fixture.metrics.render().contains("sluice_connections 1\n")
    })
    .await;
}

#[tokio::test]
async fn idle_connections_keep_no_new_one_out_and_one_with_a_request_is_never_closed() {
    let fixture = capped(3, 3).await;
    let mut sending = fixture.connect().await;
    let half = request();
    sending
        .write_all(&half.as_bytes()[..half.len() - 1])
        .await
        .unwrap();
    eventually("its body is awaited", || fixture.edge.held_bytes() > 0).await;
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut stream = fixture.connect().await;
        assert!(answer(&mut stream).await.starts_with("HTTP/1.1 202"));
        idle.push(stream);
    }
    let mut early = connect_from(&fixture, 2).await;
    assert_eq!(answer(&mut early).await, "", "nobody was idle for a second");
    assert!(sheds(&fixture, "connections", 1));
    let served = async {
        loop {
            let mut stream = connect_from(&fixture, 3).await;
            if answer(&mut stream).await.starts_with("HTTP/1.1 202") {
                return stream;
            }
        }
    };
    let _new = tokio::time::timeout(Duration::from_secs(5), served)
        .await
        .unwrap();
    let mut rest = Vec::new();
    let gone = idle[0].read_to_end(&mut rest);
    let gone = tokio::time::timeout(Duration::from_secs(5), gone).await;
    assert!(gone.is_ok(), "the longest idle gave way");
    sending.write_all(b"}").await.unwrap();
    assert!(read_head(&mut sending).await.starts_with("HTTP/1.1 202"));
}

/// The narrow tenant's request.
async fn answer_narrow(stream: &mut TcpStream) -> String {
    let request = format!(
        "POST /v1/events/other HTTP/1.1\r\nhost: x\r\nx-api-key: {NARROW}\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    read_answer(stream).await
}

#[tokio::test]
async fn one_tenant_has_its_cap_of_connections_and_another_is_served() {
    let fixture = capped_by_tenant(2).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = fixture.connect().await;
        for _ in 0..3 {
            assert!(answer_narrow(&mut stream).await.starts_with("HTTP/1.1 202"));
            assert!(answer(&mut stream).await.starts_with("HTTP/1.1 202"));
        }
        held.push(stream);
    }
    let seen = fixture.seen();
    let mut third = fixture.connect().await;
    let refused = answer(&mut third).await;
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
    for part in [
        "connection: close",
        "retry-after: ",
        "ratelimit-policy: \"tenant-connections\";q=2;qu=\"connections\"",
        "ratelimit: \"tenant-connections\";r=0",
        "too_many_connections",
    ] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
    let closed = third.read_u8().await;
    assert!(closed.is_err(), "its connection is closed");
    assert_eq!(fixture.seen(), seen);
    assert!(sheds(&fixture, "tenant_connections", 1));
    assert!(answer(&mut held[0]).await.starts_with("HTTP/1.1 202"));
    drop(held.remove(0));
    eventually("its place is free", || {
        fixture.metrics.render().contains("sluice_connections 1\n")
    })
    .await;
    assert!(
        answer(&mut fixture.connect().await)
            .await
            .starts_with("HTTP/1.1 202")
    );
}

#[tokio::test]
async fn a_connection_that_carries_another_tenants_requests_too_is_refused_and_not_closed() {
    let fixture = capped_by_tenant(1).await;
    let mut own = fixture.connect().await;
    assert!(answer(&mut own).await.starts_with("HTTP/1.1 202"));
    let mut shared = fixture.connect().await;
    assert!(answer_narrow(&mut shared).await.starts_with("HTTP/1.1 202"));
    let refused = answer(&mut shared).await;
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
    assert!(!refused.contains("connection: close"), "{refused}");
    assert!(answer_narrow(&mut shared).await.starts_with("HTTP/1.1 202"));
}

#[tokio::test]
async fn an_http2_connection_over_its_tenants_cap_is_answered_and_ended() {
    let fixture = capped_by_tenant(1).await;
    let mut own = fixture.connect().await;
    assert!(answer(&mut own).await.starts_with("HTTP/1.1 202"));
    let io = TokioIo::new(fixture.connect().await);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let body = Full::new(bytes::Bytes::from_static(b"{}"));
    let answer = sender.send_request(fixture.events().body(body).unwrap()).await;
    assert_eq!(answer.unwrap().status(), 429);
    let ended = tokio::time::timeout(Duration::from_secs(5), connection).await;
    ended.expect("it is told to go").unwrap().unwrap();
}

/// `streams` requests that are reset at once, in one piece.
fn resets(streams: u32) -> Vec<u8> {
    let one = |n: u32| {
        [
            frame(HEADERS, END_HEADERS, 2 * n + 1, &head()),
            frame(RESET, 0, 2 * n + 1, &8u32.to_be_bytes()),
        ]
        .concat()
    };
    (0..streams).flat_map(one).collect()
}

/// Sends a flood; the connection is ended, and it is told why.
async fn is_told_to_calm_down(client: &mut TcpStream, flood: &[u8]) {
    let (mut read, mut write) = client.split();
    let mut said = Vec::new();
    let ended = async {
        let sending = async { write.write_all(flood).await.ok() };
        tokio::join!(sending, read.read_to_end(&mut said))
    };
    let ended = tokio::time::timeout(Duration::from_secs(10), ended).await;
    assert!(ended.is_ok(), "the connection is ended");
    let said = frames(&said);
    let told = said.iter().find(|(kind, ..)| *kind == GOAWAY);
    let (.., told) = told.expect("it is told why");
    assert_eq!(told[4..8], ENHANCE_YOUR_CALM.to_be_bytes());
}

#[tokio::test]
async fn a_flood_of_streams_that_are_reset_at_once_ends_its_connection_and_no_other() {
    let fixture = start_accepting().await;
    let mut attacker = fixture.connect().await;
    let flood = [preface(), resets(20_000)].concat();
    is_told_to_calm_down(&mut attacker, &flood).await;
    assert!(fixture.seen() < 20_000, "{}", fixture.seen());
    let other = fixture.send_once(fixture.events(), b"{}").await;
    assert!(other.status.is_success());
    eventually("nothing is held", || fixture.edge.held_bytes() == 0).await;
}

#[tokio::test]
async fn a_client_that_cancels_as_many_streams_as_it_may_is_served_on_its_connection() {
    let fixture = start_accepting().await;
    let mut client = fixture.connect().await;
    let cancelled = u32::try_from(MAX_H2_RESETS).unwrap() - 8;
    let last = 2 * cancelled + 1;
    let request = [
        preface(),
        resets(cancelled),
        frame(HEADERS, END_HEADERS, last, &head()),
        frame(DATA, END_STREAM, last, b"{}"),
    ];
    client.write_all(&request.concat()).await.unwrap();
    let mut said = Vec::new();
    let answered = async {
        loop {
            assert!(client.read_buf(&mut said).await.unwrap() > 0, "it was closed");
            let frames = frames(&said);
            assert!(frames.iter().all(|(kind, ..)| *kind != GOAWAY), "it was ended");
            if frames
                .iter()
                .any(|(kind, stream, _)| (*kind, *stream) == (DATA, last))
            {
                return;
            }
        }
    };
    let answered = tokio::time::timeout(Duration::from_secs(10), answered).await;
    answered.expect("an answer");
}

/// Bytes of the body that comes one by one: as many frames as h2 keeps before they are read. It counts 255 bytes for
/// each, against half of the connection's window of 4 MiB.
const TINY: usize = 8_000;

#[tokio::test]
async fn a_body_in_frames_of_one_byte_is_taken_and_holds_up_nobody() {
    let fixture = start_accepting().await;
    let io = TokioIo::new(fixture.connect().await);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let half_sent = Arc::new(Semaphore::new(0));
    let go_on = Arc::new(Semaphore::new(0));
    let (tells, waits) = (Arc::clone(&half_sent), Arc::clone(&go_on));
    let pieces = stream::unfold(0, move |n| {
        let (tells, waits) = (Arc::clone(&tells), Arc::clone(&waits));
        async move {
            if n == TINY / 2 {
                tells.add_permits(1);
                waits.acquire().await.unwrap().forget();
            }
            let byte: &'static [u8] = match n {
                0 => b"{",
                1 => b"}",
                _ => b" ",
            };
            let frame = http_body::Frame::data(bytes::Bytes::from_static(byte));
            (n < TINY).then_some((Ok::<_, Infallible>(frame), n + 1))
        }
    });
    let body = StreamBody::new(Box::pin(pieces));
    let tiny = tokio::spawn(sender.send_request(fixture.events().body(body).unwrap()));
    half_sent.acquire().await.unwrap().forget();
    // In the middle of it another is served, on a connection of its own.
    let other = fixture.send_once(fixture.events(), b"{}").await;
    assert_eq!(other.status, 202);
    go_on.add_permits(1);
    let answer = tokio::time::timeout(Duration::from_secs(10), tiny).await;
    let answer = answer.expect("in time").unwrap().expect("an answer");
    assert_eq!(answer.status(), 202);
    let longest = fixture
        .seen
        .lock()
        .unwrap()
        .iter()
        .map(|one| one.body.len())
        .max();
    assert_eq!(longest, Some(TINY), "it was taken whole");
    connection.abort();
    eventually("nothing is held", || fixture.edge.held_bytes() == 0).await;
}

#[tokio::test]
async fn more_tiny_frames_than_are_read_end_their_connection_and_no_other() {
    let fixture = start_accepting().await;
    let mut client = fixture.connect().await;
    let mut flood = [preface(), frame(HEADERS, END_HEADERS, 1, &head())].concat();
    for _ in 0..20_000 {
        flood.extend(frame(DATA, 0, 1, b" "));
    }
    is_told_to_calm_down(&mut client, &flood).await;
    let other = fixture.send_once(fixture.events(), b"{}").await;
    assert_eq!(other.status, 202);
    eventually("nothing is held", || fixture.edge.held_bytes() == 0).await;
}
