//! The first bytes of a connection: read within a deadline, then given back to whoever serves it.

use crate::limits::HEADER_DEADLINE;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

const H2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Waits until the client has said, in time, which version of HTTP it speaks; `None` where it does not. Until
/// then nothing else bounds how long it holds its connection.
pub(super) async fn spoken<IO: AsyncRead + Unpin>(mut io: IO) -> Option<Replay<IO>> {
    let mut head = [0; H2_PREFACE.len()];
    let mut length = 0;
    let version = async {
        while length < head.len() && head[..length] == H2_PREFACE[..length] {
            match io.read(&mut head[length..]).await {
                Ok(0) | Err(_) => return None,
                Ok(more) => length += more,
            }
        }
        Some(length)
    };
    let end = tokio::time::timeout(HEADER_DEADLINE, version).await.ok()??;
    Some(Replay {
        head,
        left: 0..end,
        io,
    })
}

/// A connection whose first bytes are read once more.
pub(super) struct Replay<IO> {
    head: [u8; H2_PREFACE.len()],
    left: std::ops::Range<usize>,
    io: IO,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Replay<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let start = self.left.start;
        let end = self.left.end.min(start + buf.remaining());
        buf.put_slice(&self.head[start..end]);
        self.left.start = end;
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Replay<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    async fn told(pieces: &[&[u8]]) -> Option<Vec<u8>> {
        let (mut client, server) = tokio::io::duplex(64);
        let reading = tokio::spawn(spoken(server));
        for piece in pieces {
            client.write_all(piece).await.expect("written");
            tokio::task::yield_now().await;
        }
        drop(client);
        let mut all = Vec::new();
        let mut replay = reading.await.expect("no panic")?;
        replay.read_to_end(&mut all).await.expect("read");
        Some(all)
    }

    #[tokio::test]
    async fn the_first_bytes_are_read_again_however_they_came() {
        for pieces in [
            &[&b"GET / HTTP/1.1\r\n"[..], b"\r\n"][..],
            &[b"P", b"OST / HTTP/1.1"],
            &[&H2_PREFACE[..5], &H2_PREFACE[5..], b"frames"],
        ] {
            assert_eq!(told(pieces).await, Some(pieces.concat()));
        }
        assert_eq!(told(&[]).await, None, "nothing was said");
        assert_eq!(told(&[b"PRI * HT"]).await, None, "the end within the preface");
    }
}
