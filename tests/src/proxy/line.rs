//! One connection through the proxy: two pumps, and what its act makes of them.

use super::{Act, Ending, LOOKBACK, Order, Shared, Way};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, watch};

/// Read at once.
const PIECE_BYTES: usize = 64 << 10;

/// How a pump ended.
enum End {
    /// Its source has no more.
    Eof,
    /// Both ways end.
    Both(Ending),
}

/// What is true of one connection.
#[derive(Debug, Default)]
struct State {
    act: Option<Act>,
    /// When it was caught.
    generation: u64,
    /// Of a [`Act::Cut`], what may still pass.
    left: u64,
}

/// The connection as both pumps see it.
struct Line {
    shared: Arc<Shared>,
    state: Mutex<State>,
    /// Counted up where the act changed, so that the other pump looks.
    changed: watch::Sender<u64>,
}

/// Carries `client`'s connection until both sides have ended it, or an act does.
pub(super) async fn carry(client: TcpStream, shared: Arc<Shared>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", shared.to)).await else {
        return;
    };
    // Pieces are passed on as they come.
    if client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
        return;
    }
    let line = Line {
        shared,
        state: Mutex::default(),
        changed: watch::Sender::new(0),
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let ending = {
        let there = line.there(&from_client, to_server);
        let back = line.back(&from_server, to_client);
        tokio::pin!(there, back);
        tokio::select! {
            end = &mut there => match end {
                End::Eof => back.await,
                End::Both(ending) => End::Both(ending),
            },
            end = &mut back => match end {
                End::Eof => there.await,
                End::Both(ending) => End::Both(ending),
            },
        }
    };
    if let End::Both(Ending::Reset) = ending {
        // What cannot be reset any more is closed.
        from_client.as_ref().set_zero_linger().ok();
        from_server.as_ref().set_zero_linger().ok();
    }
}

impl Line {
    fn act(&self) -> Option<Act> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.act.clone()
    }

    fn catch(&self, act: Act) {
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Act::Cut { after, .. } = act {
                state.left = after;
            }
            state.generation = self.shared.generation.load(Ordering::SeqCst);
            state.act = Some(act);
        }
        self.changed.send_modify(|count| *count += 1);
    }

    fn release(&self, generation: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.generation < generation {
            state.act = None;
        }
    }

    /// Of `bytes` more, how many may pass before the cut.
    fn allow(&self, bytes: usize) -> usize {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let allowed = state.left.min(bytes as u64);
        state.left -= allowed;
        allowed as usize
    }

    /// Catches the connection where the rule is for all.
    fn look(&self) {
        if self.act().is_none()
            && self.shared.catches_all()
            && let Some((act, _)) = self.shared.catch(&[], 0)
        {
            self.catch(act);
        }
    }

    /// Waits for an order, or until something may have changed.
    async fn told(
        &self,
        orders: &mut broadcast::Receiver<Order>,
        changed: &mut watch::Receiver<u64>,
    ) -> Order {
        tokio::select! {
            // Both senders outlive this.
            order = orders.recv() => match order {
                Ok(Order::Cut(_) | Order::LeaveClients) if self.act().is_none() => Order::Look,
                Ok(order) => order,
                Err(_) => Order::Look,
            },
            _ = changed.changed() => Order::Look,
        }
    }

    /// Requests.
    async fn there(&self, from: &OwnedReadHalf, to: OwnedWriteHalf) -> End {
        let mut pump = Pump::new(self, Way::There, to);
        let mut piece = vec![0; PIECE_BYTES];
        let mut seen = Vec::new();
        loop {
            self.look();
            let read = tokio::select! {
                read = read(from, &mut piece), if !pump.is_stopped() => read,
                told = self.told(&mut pump.orders, &mut pump.changed) => {
                    if let Some(end) = pump.follow(told).await { return end; }
                    continue;
                }
            };
            let Ok(n @ 1..) = read else {
                return pump.finish().await;
            };
            self.shared.there.fetch_add(n as u64, Ordering::SeqCst);
            let before = seen.len();
            seen.extend_from_slice(&piece[..n]);
            self.shared.count(&seen, before);
            let mut free = 0;
            if self.act().is_none()
                && let Some((act, at)) = self.shared.catch(&seen, before)
            {
                // What came before the marker is none of the act's business.
                free = at.saturating_sub(before);
                self.catch(act);
            }
            seen.drain(..seen.len().saturating_sub(LOOKBACK));
            if let Some(end) = pump.take(&piece[..n], free).await {
                return end;
            }
        }
    }

    /// Answers.
    async fn back(&self, from: &OwnedReadHalf, to: OwnedWriteHalf) -> End {
        let mut pump = Pump::new(self, Way::Back, to);
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = tokio::select! {
                read = read(from, &mut piece), if !pump.is_stopped() => read,
                told = self.told(&mut pump.orders, &mut pump.changed) => {
                    if let Some(end) = pump.follow(told).await { return end; }
                    continue;
                }
            };
            let Ok(n @ 1..) = read else {
                return pump.finish().await;
            };
            self.shared.back.fetch_add(n as u64, Ordering::SeqCst);
            if let Some(end) = pump.take(&piece[..n], 0).await {
                return end;
            }
        }
    }
}

/// One way of a connection.
struct Pump<'a> {
    line: &'a Line,
    way: Way,
    /// Gone once that side was told that no more comes.
    to: Option<OwnedWriteHalf>,
    /// What waits for [`Order::Pass`].
    held: Vec<u8>,
    orders: broadcast::Receiver<Order>,
    changed: watch::Receiver<u64>,
}

impl<'a> Pump<'a> {
    fn new(line: &'a Line, way: Way, to: OwnedWriteHalf) -> Self {
        Self {
            line,
            way,
            to: Some(to),
            held: Vec::new(),
            orders: line.shared.orders.subscribe(),
            changed: line.changed.subscribe(),
        }
    }

    /// Whether nothing may be read now.
    fn is_stopped(&self) -> bool {
        matches!(self.line.act(), Some(Act::BlackHole))
    }

    fn is_holding(&self) -> bool {
        match self.line.act() {
            Some(Act::HoldRequest) => self.way == Way::There,
            Some(Act::HoldAnswer) => self.way == Way::Back,
            Some(Act::BlackHole) => true,
            Some(Act::Delay(_) | Act::Cut { .. } | Act::HalfClose(_) | Act::Answer(_)) | None => false,
        }
    }

    /// Passes a piece on, or what its act makes of it; the first `free` bytes go as they are.
    async fn take(&mut self, piece: &[u8], free: usize) -> Option<End> {
        let (before, piece) = piece.split_at(free);
        if !before.is_empty() {
            self.write(before).await;
        }
        if self.is_holding() {
            self.held.extend_from_slice(piece);
            return None;
        }
        match self.line.act() {
            Some(Act::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                self.write(piece).await;
            }
            Some(Act::Cut { way, ending, .. }) if way == self.way => {
                let allowed = self.line.allow(piece.len());
                self.write(&piece[..allowed]).await;
                if allowed < piece.len() {
                    return Some(End::Both(ending));
                }
            }
            Some(Act::HalfClose(way)) if way == self.way => self.close().await,
            Some(Act::Answer(answer)) if self.way == Way::Back => {
                self.write(&answer).await;
                self.close().await;
                return Some(End::Both(Ending::Close));
            }
            Some(
                Act::Cut { .. }
                | Act::BlackHole
                | Act::HalfClose(_)
                | Act::HoldRequest
                | Act::HoldAnswer
                | Act::Answer(_),
            )
            | None => self.write(piece).await,
        }
        None
    }

    /// Does as it is told.
    async fn follow(&mut self, order: Order) -> Option<End> {
        match order {
            Order::Look => {
                if matches!(self.line.act(), Some(Act::HalfClose(way)) if way == self.way) {
                    self.close().await;
                }
            }
            Order::Pass(generation) => {
                self.line.release(generation);
                if !self.is_holding() {
                    let held = std::mem::take(&mut self.held);
                    self.write(&held).await;
                }
            }
            Order::Cut(ending) => return Some(End::Both(ending)),
            Order::LeaveClients => {
                if self.way == Way::Back {
                    self.close().await;
                }
            }
        }
        None
    }

    /// Its source has no more: what is held waits for its order; then the other side is told.
    async fn finish(&mut self) -> End {
        while self.is_holding() {
            let told = self.line.told(&mut self.orders, &mut self.changed).await;
            if let Some(end) = self.follow(told).await {
                return end;
            }
        }
        let held = std::mem::take(&mut self.held);
        self.write(&held).await;
        self.close().await;
        End::Eof
    }

    /// Where the other side is gone, so are the bytes.
    async fn write(&mut self, bytes: &[u8]) {
        if let Some(to) = &mut self.to
            && to.write_all(bytes).await.is_err()
        {
            self.to = None;
        }
    }

    async fn close(&mut self) {
        if let Some(mut to) = self.to.take() {
            // It may be gone already.
            to.shutdown().await.ok();
        }
    }
}

async fn read(from: &OwnedReadHalf, piece: &mut [u8]) -> io::Result<usize> {
    loop {
        from.readable().await?;
        match from.try_read(piece) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return outcome,
        }
    }
}
