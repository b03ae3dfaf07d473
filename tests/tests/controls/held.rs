//! A network before ClickHouse that holds requests back: whole, and whoever sent them may be long gone.

use sluice_tests::eventually;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Passes everything on, or holds what contains a word.
pub struct Held {
    port: u16,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

struct State {
    word: &'static str,
    clickhouse: AtomicU16,
    holding: AtomicBool,
    held: AtomicUsize,
    answered: AtomicUsize,
    released: watch::Sender<bool>,
}

impl Held {
    /// One that holds nothing yet.
    pub async fn start(word: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(State {
            word,
            clickhouse: AtomicU16::new(0),
            holding: AtomicBool::new(false),
            held: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            released: watch::Sender::new(false),
        });
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, Arc::clone(&shared)));
            }
        });
        Self {
            port,
            state,
            accepting,
        }
    }

    /// Changes a config so that it leads here, and from here to where it led.
    pub fn put_before_clickhouse(&self, config: &Path) {
        const URL: &str = "clickhouse: {url: \"http://127.0.0.1:";
        let text = std::fs::read_to_string(config).expect("a config");
        let (before, rest) = text.split_once(URL).expect("a ClickHouse");
        let (port, after) = rest.split_once('"').expect("a port");
        self.state
            .clickhouse
            .store(port.parse().expect("a number"), Ordering::Relaxed);
        std::fs::write(config, format!("{before}{URL}{}\"{after}", self.port)).expect("written");
    }

    /// From now on requests with the word are held.
    pub fn hold(&self) {
        self.state.holding.store(true, Ordering::Relaxed);
    }

    /// New requests pass; those that are held stay so.
    pub fn let_pass(&self) {
        self.state.holding.store(false, Ordering::Relaxed);
    }

    /// Waits until so many are held.
    pub async fn holds(&self, count: usize, deadline: Duration) {
        eventually("held requests", deadline, async || {
            (self.state.held.load(Ordering::Relaxed) >= count).then_some(())
        })
        .await;
    }

    /// Lets all go that are held, and waits until ClickHouse has answered them.
    pub async fn release(&self, deadline: Duration) {
        self.state.released.send_replace(true);
        eventually("answers to what was held", deadline, async || {
            let held = self.state.held.load(Ordering::Relaxed);
            (self.state.answered.load(Ordering::Relaxed) >= held).then_some(())
        })
        .await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(client: TcpStream, state: Arc<State>) {
    let port = state.clickhouse.load(Ordering::Relaxed);
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (is_held, was_held) = watch::channel(false);
    let back = tokio::spawn(answers(from_server, to_client, was_held, Arc::clone(&state)));
    // A connection that breaks off is the client's affair.
    requests(from_client, to_server, is_held, &state).await.ok();
    back.await.ok();
}

async fn requests(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    is_held: watch::Sender<bool>,
    state: &State,
) -> std::io::Result<()> {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let read = client.read(&mut bytes).await?;
        if read == 0 {
            return Ok(());
        }
        let word = state.word.as_bytes();
        let has_word = bytes[..read].windows(word.len()).any(|window| window == word);
        if has_word && state.holding.load(Ordering::Relaxed) {
            let mut kept = bytes[..read].to_vec();
            state.held.fetch_add(1, Ordering::Relaxed);
            is_held.send_replace(true);
            let mut released = state.released.subscribe();
            // The rest of it, until its sender is gone or it may go.
            tokio::select! {
                _ = client.read_to_end(&mut kept) => {}
                _ = released.wait_for(|released| *released) => {}
            }
            released.wait_for(|released| *released).await.ok();
            server.write_all(&kept).await?;
            continue;
        }
        server.write_all(&bytes[..read]).await?;
    }
}

/// Answers to what was held are counted, whether or not anybody is there to read them.
async fn answers(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    was_held: watch::Receiver<bool>,
    state: Arc<State>,
) {
    let mut bytes = vec![0; 64 * 1024];
    let mut counted = false;
    while let Ok(read) = server.read(&mut bytes).await {
        if read == 0 {
            return;
        }
        if *was_held.borrow() && !counted {
            counted = true;
            state.answered.fetch_add(1, Ordering::Relaxed);
        }
        client.write_all(&bytes[..read]).await.ok();
    }
}
