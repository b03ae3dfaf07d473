//! Connections that do nothing, peers that are gone, and an orderly end, with a real HTTP/2 client and a mute one.

use super::*;
use axum::routing::get;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http2;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(3_600);
const SOON: Duration = Duration::from_secs(10);

/// Who never tires of a connection.
const PATIENT: Quiet = Quiet {
    h2_idle: None,
    h2_ping: LONG,
    h2_pong: LONG,
    farewell: LONG,
};

#[tokio::test]
async fn a_taken_port_is_told_with_its_address() {
    let first = listen("127.0.0.1:0").await.expect("a port");
    let address = first.local_addr().expect("an address").to_string();
    let error = listen(&address).await.expect_err("taken").to_string();
    assert!(error.contains(&address), "{error}");
}

struct Served {
    address: SocketAddr,
    /// A request for `/slow` is there.
    arrived: Arc<Semaphore>,
    /// Lets its answer out.
    gate: Arc<Semaphore>,
    stop: Stop,
    serving: JoinHandle<()>,
}

async fn served(quiet: Quiet) -> Served {
    let listener = listen("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let [arrived, gate] = [(); 2].map(|()| Arc::new(Semaphore::new(0)));
    let (stop, arrives, opens) = (Stop::new(), Arc::clone(&arrived), Arc::clone(&gate));
    let slow = || async move {
        arrives.add_permits(1);
        opens.acquire().await.expect("open").forget();
    };
    let router = Router::new()
        .route("/", get(|| async { "here" }))
        .route("/slow", get(slow));
    let bounds = Bounds {
        quiet,
        ..Bounds::PUBLIC
    };
    let serving = tokio::spawn(serve(listener, router, bounds, stop.clone()));
    Served {
        address,
        arrived,
        gate,
        stop,
        serving,
    }
}

type Sender = http2::SendRequest<Empty<Bytes>>;

/// A connection of a real client, and how it ended.
async fn client(address: SocketAddr) -> (Sender, JoinHandle<hyper::Result<()>>) {
    let stream = TcpStream::connect(address).await.expect("connected");
    let io = TokioIo::new(stream);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
    (sender, tokio::spawn(connection))
}

async fn ask(sender: &mut Sender, path: &str) -> hyper::Result<http::StatusCode> {
    let request = http::Request::get(format!("http://x{path}")).body(Empty::new());
    let answer = sender.send_request(request.expect("a request")).await?;
    Ok(answer.status())
}

async fn ended<T>(connection: JoinHandle<T>) -> T {
    let ended = timeout(SOON, connection).await.expect("it ends");
    ended.expect("no panic")
}

/// The types of all frames that come until the connection is closed, to a peer that answers none.
async fn frames_for_a_mute_peer(address: SocketAddr) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(hello).await.expect("written");
    let mut all = Vec::new();
    let closed = timeout(SOON, stream.read_to_end(&mut all)).await;
    closed.expect("the connection is closed").ok();
    let (mut kinds, mut rest) = (Vec::new(), &all[..]);
    while let Some(head) = rest.first_chunk::<9>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        kinds.push(head[3]);
        rest = &rest[9 + length..];
    }
    kinds
}

const PING: u8 = 6;
const GOAWAY: u8 = 7;

#[tokio::test]
async fn an_http2_connection_without_a_request_is_ended_by_goaway_and_one_with_a_request_is_not() {
    let idle = Duration::from_millis(500);
    let quiet = Quiet {
        h2_idle: Some(idle),
        ..PATIENT
    };
    let served = served(quiet).await;
    let (mut busy, busy_connection) = client(served.address).await;
    let slow = tokio::spawn(async move { (ask(&mut busy, "/slow").await, busy) });
    served.arrived.acquire().await.expect("open").forget();
    let begun = Instant::now();
    for _ in 0..2 {
        let (mut sender, connection) = client(served.address).await;
        assert_eq!(ask(&mut sender, "/").await.expect("answered"), 200);
        ended(connection).await.expect("an orderly end");
        assert!(sender.is_closed(), "a client sees it before it sends");
    }
    assert!(begun.elapsed() >= idle * 2, "each had its time");
    assert!(!busy_connection.is_finished(), "it carries a request");
    served.gate.add_permits(1);
    let (answer, _busy) = slow.await.expect("no panic");
    assert_eq!(answer.expect("answered"), 200);
    ended(busy_connection).await.expect("an orderly end");
}

#[tokio::test]
async fn a_peer_that_is_told_to_go_and_stays_is_left() {
    let quiet = Quiet {
        h2_idle: Some(Duration::from_millis(50)),
        farewell: Duration::from_millis(50),
        ..PATIENT
    };
    let served = served(quiet).await;
    let frames = frames_for_a_mute_peer(served.address).await;
    assert!(frames.contains(&GOAWAY), "{frames:?}");
}

#[tokio::test]
async fn an_http2_peer_that_answers_no_ping_is_gone_and_one_that_does_stays() {
    let quiet = Quiet {
        h2_ping: Duration::from_millis(100),
        h2_pong: Duration::from_millis(500),
        ..PATIENT
    };
    let served = served(quiet).await;
    let (mut alive, connection) = client(served.address).await;
    let frames = frames_for_a_mute_peer(served.address).await;
    assert!(frames.contains(&PING), "{frames:?}");
    assert!(!connection.is_finished());
    assert_eq!(ask(&mut alive, "/").await.expect("answered"), 200);
}

#[tokio::test]
async fn a_stop_ends_idle_connections_and_lets_requests_be_answered() {
    let served = served(PATIENT).await;
    let (mut idle, idle_connection) = client(served.address).await;
    assert_eq!(ask(&mut idle, "/").await.expect("answered"), 200);
    let (mut busy, _busy_connection) = client(served.address).await;
    let slow = tokio::spawn(async move { ask(&mut busy, "/slow").await });
    served.arrived.acquire().await.expect("open").forget();
    served.stop.cancel();
    ended(idle_connection).await.expect("an orderly end");
    assert!(!served.serving.is_finished(), "a request is under way");
    served.gate.add_permits(1);
    assert_eq!(slow.await.expect("no panic").expect("answered"), 200);
    ended(served.serving).await;
}

/// A head that is begun and never ended: the version of HTTP has no deadline for it, but pings cannot be answered
/// before its end, and they have one.
#[tokio::test]
async fn a_head_over_http2_that_never_ends_ends_its_connection() {
    let quiet = Quiet {
        h2_ping: Duration::from_millis(200),
        h2_pong: Duration::from_millis(500),
        ..PATIENT
    };
    let served = served(quiet).await;
    // `:method: GET` without END_HEADERS, then nothing; the same, and CONTINUATION a byte at a time; the same, and an
    // answer to the ping.
    let more = b"\0\0\x01\x09\0\0\0\0\x01\x86";
    let pong = b"\0\0\x08\x06\x01\0\0\0\0\0\0\0\0\0\0\0\0";
    for then in [&b""[..], more, pong] {
        let mut stream = TcpStream::connect(served.address).await.expect("connected");
        let begun = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\0\0\0\0\x01\x82";
        stream.write_all(begun).await.expect("written");
        let (mut read, mut write) = stream.split();
        let mut said = Vec::new();
        let drip = async {
            while write.write_all(then).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
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
        timeout(SOON, ended).await.expect("the connection is closed");
    }
}
