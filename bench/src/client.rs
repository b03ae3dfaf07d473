//! One connection of a generator. HTTP/1.1 by hand: it costs a fraction of a library, and what generators use on
//! their core is part of every latency that they measure.

use bytes::{Buf as _, Bytes};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A client gives up after this: above every deadline of the server's.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long what is left of a body may take to go out once its answer is there.
const REST_DEADLINE: Duration = Duration::from_secs(5);
/// An answer is a few hundred bytes.
const READ_BYTES: usize = 1024;
const MAX_ANSWER_BYTES: usize = 64 * 1024;
const MAX_HEADER_LINES: usize = 64;

/// What the server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<Duration>,
    /// `Sluice-Outcome` is `unknown`.
    pub unknown: bool,
    /// The connection goes on.
    keep: bool,
}

impl Answer {
    /// 202: all of it is durable.
    #[must_use]
    pub fn is_acknowledged(&self) -> bool {
        self.status == 202
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    /// No connection was to be had: nothing was sent.
    Connect,
    /// A connection that had been used was gone before the first byte of an answer: a server may close one that is
    /// idle just when it is used again.
    Stale,
    /// The connection ended within an exchange.
    Ended,
    /// None within a minute.
    Late,
}

/// A connection to one place, made when it is needed and again when it was lost.
#[derive(Debug)]
pub struct Client {
    address: String,
    head: String,
    stream: Option<TcpStream>,
    used: bool,
}

impl Client {
    /// One that posts events with this key.
    #[must_use]
    pub fn new(address: &str, key: &str) -> Self {
        let head = format!(
            "POST /v1/events/events HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\ncontent-type: \
             application/x-ndjson\r\ncontent-length: "
        );
        Self {
            address: address.to_owned(),
            head,
            stream: None,
            used: false,
        }
    }

    /// Goes to another place from now on.
    pub fn turn_to(&mut self, address: &str) {
        if self.address != address {
            address.clone_into(&mut self.address);
            self.stream = None;
        }
    }

    /// Sends `body`, once.
    ///
    /// # Errors
    /// [`NoAnswer`]; the connection is made anew for the next one.
    pub async fn post(&mut self, body: Bytes) -> Result<Answer, NoAnswer> {
        // A server closes a connection that is idle for long; what came of that is seen before anything is sent.
        let open = |stream: &TcpStream| {
            let seen = stream.try_read(&mut [0; 1]);
            seen.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        let mut stream = match self.stream.take().filter(open) {
            Some(stream) => stream,
            None => {
                self.used = false;
                connect(&self.address).await.map_err(|_| NoAnswer::Connect)?
            }
        };
        let head = format!("{}{}\r\n\r\n", self.head, body.len());
        let exchange = timeout(PATIENCE, exchange(&mut stream, head.into(), body)).await;
        let used = std::mem::replace(&mut self.used, true);
        match exchange.map_err(|_| NoAnswer::Late)? {
            Ok(answer) => {
                self.stream = answer.keep.then_some(stream);
                Ok(answer)
            }
            Err(_) if used => Err(NoAnswer::Stale),
            Err(_) => Err(NoAnswer::Ended),
        }
    }
}

async fn connect(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends and reads at a time: a refusal may come before all is sent.
async fn exchange(stream: &mut TcpStream, head: Bytes, body: Bytes) -> io::Result<Answer> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::with_capacity(READ_BYTES, read);
    let mut whole = head.chain(body);
    let writing = write.write_all_buf(&mut whole);
    tokio::pin!(writing);
    let reading = answer(&mut read);
    tokio::pin!(reading);
    let mut sent = None;
    let mut answer = loop {
        tokio::select! {
            biased;
            answer = &mut reading => break answer?,
            // Where it fails the server may still have answered before it closed.
            done = &mut writing, if sent.is_none() => sent = Some(done.is_ok()),
        }
    };
    if answer.keep && sent.is_none() {
        sent = timeout(REST_DEADLINE, writing)
            .await
            .map(|done| done.is_ok())
            .ok();
    }
    answer.keep &= sent == Some(true);
    Ok(answer)
}

async fn answer(stream: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> io::Result<Answer> {
    let mut answer = Answer {
        status: 0,
        retry_after: None,
        unknown: false,
        keep: true,
    };
    let (mut line, mut length) = (String::new(), 0);
    for _ in 0..MAX_HEADER_LINES {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = line.trim_end();
        if text.is_empty() {
            return body_of(stream, length).await.map(|()| answer);
        }
        if answer.status == 0 {
            let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
            answer.status = status.ok_or(io::ErrorKind::InvalidData)?;
        } else if let Some((name, value)) = text.split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().map_err(|_| io::ErrorKind::InvalidData)?,
                "connection" if value.eq_ignore_ascii_case("close") => answer.keep = false,
                "retry-after" => answer.retry_after = value.parse().ok().map(Duration::from_secs),
                "sluice-outcome" => answer.unknown = value == "unknown",
                _ => {}
            }
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

async fn body_of(stream: &mut (impl tokio::io::AsyncBufRead + Unpin), length: usize) -> io::Result<()> {
    if length > MAX_ANSWER_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    stream.read_exact(&mut vec![0; length]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn read(text: &str) -> io::Result<Answer> {
        answer(&mut BufReader::new(text.as_bytes())).await
    }

    #[tokio::test]
    async fn an_answer_says_its_status_when_to_come_again_and_whether_the_connection_goes_on() {
        let taken = read("HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}")
            .await
            .unwrap();
        assert!(taken.is_acknowledged() && taken.keep && taken.retry_after.is_none());
        let refused =
            "HTTP/1.1 503 x\r\nretry-after: 2\r\nsluice-outcome: unknown\r\nConnection: close\r\n\r\n";
        let refused = read(refused).await.unwrap();
        assert!(!refused.is_acknowledged() && !refused.keep && refused.unknown);
        assert_eq!(refused.retry_after, Some(Duration::from_secs(2)));
        for broken in [
            "",
            "HTTP/1.1 202 Accepted\r\n",
            "no\r\n\r\n",
            "HTTP/1.1 200 x\r\ncontent-length: 9\r\n\r\n",
        ] {
            assert!(read(broken).await.is_err(), "{broken:?}");
        }
    }

    #[tokio::test]
    async fn a_refusal_before_the_body_is_read_is_seen_and_the_next_request_has_a_connection_of_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            for status in [429, 202] {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.read_exact(&mut [0; 16]).await.unwrap();
                let text = format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        });
        let mut client = Client::new(&address, "slc_x_0");
        assert_eq!(client.post(vec![b'x'; 1000].into()).await.unwrap().status, 429);
        assert!(
            client
                .post(vec![b'x'; 1000].into())
                .await
                .unwrap()
                .is_acknowledged()
        );
        server.await.unwrap();
        assert_eq!(client.post(Bytes::new()).await, Err(NoAnswer::Connect));
    }
}
