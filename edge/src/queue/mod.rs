//! The fair queue: where whole bodies wait for a normalizer.
//!
//! A request takes a [`Turn`] before it is passed on. Where a normalizer's [`Window`] has room and nobody waits it
//! goes straight through; else it waits in its tenant's lane ([`lanes`]), and whoever ends gives its place on. There
//! is no task and no timer between the two, but one timer while a busy normalizer, or a tenant it said so of, is
//! left alone.
//!
//! Who waits holds nothing but its own body: a client that goes away takes its request out of the queue. Each lane
//! is bounded by its tenant's bytes (admission), by [`QUEUE_REQUESTS`], in time by the queue's deadline and, where it
//! stands, by the target ([`standing`]).

mod lanes;
mod pace;
mod standing;
mod window;

use crate::admission::{LEAST_CHARGE, Shed};
use crate::gate::Gate;
use lanes::{Lanes, Next, Room, Waiting};
use pace::Pace;
use parking_lot::Mutex;
use sluice_common::config::Weight;
use sluice_common::ids::TenantId;
use sluice_common::limits::{ABSENT_REST, BUSY_HOLD, EDGE_QUEUE_DEADLINE, QUEUE_REQUESTS};
use sluice_common::metrics::{Gauge, Histogram, Metrics};
use sluice_common::wire::intake::BusyScope;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};
use window::{End, Window};

/// One request's claim to a turn; the same through all its tries.
#[derive(Debug, Clone)]
pub struct Ticket {
    tenant: TenantId,
    weight: Weight,
    cost: u64,
    since: Instant,
    deadline: Instant,
    again: bool,
}

impl Ticket {
    /// For a body of `bytes` that is whole at `now`.
    #[must_use]
    pub fn new(tenant: &TenantId, weight: Weight, bytes: usize, now: Instant) -> Self {
        Self {
            tenant: tenant.clone(),
            weight,
            cost: bytes.max(LEAST_CHARGE) as u64,
            since: now,
            deadline: now + EDGE_QUEUE_DEADLINE,
            again: false,
        }
    }

    /// Its last try was in vain, and that is not to count against its tenant: it goes to the head of its lane.
    pub fn again(&mut self) {
        self.again = true;
    }

    /// Begins to wait anew at `now`.
    pub fn renew(&mut self, now: Instant) {
        (self.since, self.deadline) = (now, now + EDGE_QUEUE_DEADLINE);
    }

    /// Whether it has waited for as long as it may.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.deadline
    }
}

type Grant = oneshot::Sender<Result<Turn, Shed>>;

/// The queue of one edge.
#[derive(Debug)]
pub struct FairQueue {
    state: Mutex<State>,
    /// Shut where no normalizer has had room for long.
    gate: Arc<Gate>,
    metrics: Metrics,
}

#[derive(Debug)]
struct State {
    lanes: Lanes<Grant>,
    outlets: Vec<Outlet>,
    /// The outlet to be looked at first.
    first: usize,
    pace: Pace,
    /// When a timer will look after holds.
    wake: Option<Instant>,
}

/// One normalizer.
#[derive(Debug, Default)]
struct Outlet {
    window: Window,
    held_until: Option<Instant>,
    /// Until when it is left alone, because it could not be reached: where another can.
    absent_until: Option<Instant>,
}

impl Outlet {
    fn is_held(&self, now: Instant) -> bool {
        self.held_until.is_some_and(|until| now < until)
    }

    fn is_absent(&self, now: Instant) -> bool {
        self.absent_until.is_some_and(|until| now < until)
    }
}

/// The right to have one request under way. Dropped, its place is given on.
#[derive(Debug)]
pub struct Turn {
    queue: Arc<FairQueue>,
    tenant: TenantId,
    cost: u64,
    outlet: usize,
    at: Instant,
    ended: bool,
    /// The normalizer has answered.
    reached: bool,
}

impl FairQueue {
    /// A queue before `normalizers` of them.
    #[must_use]
    pub fn new(normalizers: usize, gate: Arc<Gate>, metrics: Metrics) -> Arc<Self> {
        let state = State {
            lanes: Lanes::default(),
            outlets: (0..normalizers).map(|_| Outlet::default()).collect(),
            first: 0,
            pace: Pace::default(),
            wake: None,
        };
        let queue = Arc::new(Self {
            state: Mutex::new(state),
            gate,
            metrics,
        });
        queue.show(normalizers);
        queue
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges")]
    fn show(self: &Arc<Self>, normalizers: usize) {
        let metrics = &self.metrics;
        metrics.announce(Histogram::QueueWait, &[]);
        let queue = Arc::downgrade(self);
        metrics.watch(Gauge::QueueRequests, &[("queue", "edge")], move || {
            queue
                .upgrade()
                .map_or(0.0, |queue| queue.state.lock().lanes.len() as f64)
        });
        for number in 0..normalizers {
            let name = number.to_string();
            let labels = [("normalizer", name.as_str())];
            let (under_way, limit) = (Arc::downgrade(self), Arc::downgrade(self));
            let read = move |queue: &std::sync::Weak<Self>, read: fn(&Window) -> usize| {
                let queue = queue.upgrade();
                queue.map_or(0.0, |queue| {
                    read(&queue.state.lock().outlets[number].window) as f64
                })
            };
            metrics.watch(Gauge::ForwardRequests, &labels, move || {
                read(&under_way, Window::requests)
            });
            metrics.watch(Gauge::ForwardLimit, &labels, move || read(&limit, Window::limit));
        }
    }

    /// Waits for the ticket's turn. Dropped while it waits, it is out of the queue.
    ///
    /// # Errors
    /// [`Shed`]: the queue is full, stands, or the ticket's time is over.
    pub async fn turn(self: &Arc<Self>, ticket: &Ticket) -> Result<Turn, Shed> {
        let now = Instant::now();
        let (waiting, granted) = {
            let mut state = self.state.lock();
            if let Some(outlet) = state.pass(ticket, now) {
                return Ok(self.granted(ticket.tenant.clone(), ticket.cost, outlet, now));
            }
            if ticket.is_over(now) {
                return Err(state.shed(&ticket.tenant, Shed::queue_deadline));
            }
            let waiting = state.enqueue(ticket)?;
            (waiting, self.pump(&mut state, now))
        };
        self.grant(granted);
        let answer = timeout_at(ticket.deadline, waiting).await;
        let turn = match answer {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) => Err(Shed::queue_deadline(Duration::ZERO)),
            Err(_) => Err(self.state.lock().shed(&ticket.tenant, Shed::queue_deadline)),
        };
        let waited = now.elapsed().as_secs_f64();
        self.metrics.record(Histogram::QueueWait, waited, &[]);
        turn
    }

    fn granted(self: &Arc<Self>, tenant: TenantId, cost: u64, outlet: usize, at: Instant) -> Turn {
        Turn {
            queue: Arc::clone(self),
            tenant,
            cost,
            outlet,
            at,
            ended: false,
            reached: false,
        }
    }

    /// Takes those who may go on, or must be refused, out of their lanes.
    fn pump(self: &Arc<Self>, state: &mut State, now: Instant) -> Vec<(Grant, Result<Turn, Shed>)> {
        let mut granted = Vec::new();
        while let Some((outlet, room)) = state.room(now) {
            match state.lanes.next(now, room, Grant::is_closed) {
                None => break,
                Some(Next::Serve(tenant, one)) => {
                    state.begin(outlet, one.cost, now);
                    granted.push((one.item, Ok(self.granted(tenant, one.cost, outlet, now))));
                }
                Some(Next::Refuse(tenant, one)) => {
                    granted.push((one.item, Err(state.shed(&tenant, Shed::queue_target))));
                }
            }
        }
        granted
    }

    /// Tells them. Whoever went away in this moment gives its place on.
    fn grant(self: &Arc<Self>, mut granted: Vec<(Grant, Result<Turn, Shed>)>) {
        while let Some((grant, turn)) = granted.pop() {
            if let Err(Ok(mut turn)) = grant.send(turn) {
                turn.ended = true;
                let now = Instant::now();
                let mut state = self.state.lock();
                state.end(&turn, End::Neutral, now);
                granted.extend(self.pump(&mut state, now));
            }
        }
    }

    fn release(self: &Arc<Self>, turn: &Turn, end: End) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.end(turn, end, now);
        let granted = self.pump(&mut state, now);
        drop(state);
        self.grant(granted);
    }

    /// Sees to it that holds which are over are seen.
    fn wake_by(self: &Arc<Self>, state: &mut State, at: Instant) {
        if state.wake.is_some_and(|wake| wake <= at) {
            return;
        }
        state.wake = Some(at);
        let queue = Arc::downgrade(self);
        tokio::spawn(async move {
            sleep_until(at).await;
            if let Some(queue) = queue.upgrade() {
                queue.woken(at);
            }
        });
    }

    fn woken(self: &Arc<Self>, at: Instant) {
        let now = Instant::now().max(at);
        let mut state = self.state.lock();
        if state.wake == Some(at) {
            state.wake = None;
        }
        if let Some(next) = state.next_release(now) {
            self.wake_by(&mut state, next);
        }
        let granted = self.pump(&mut state, now);
        drop(state);
        self.grant(granted);
    }
}

impl State {
    /// A normalizer that takes one more, if any does, and from whom. One that could not be reached would take all of them:
    /// it is left alone for a while, unless that is so of each.
    fn room(&self, now: Instant) -> Option<(usize, Room)> {
        let count = self.outlets.len();
        let order = (0..count).map(|n| (self.first + n) % count);
        let all_absent = self.outlets.iter().all(|outlet| outlet.is_absent(now));
        let open = |n: &usize| {
            let outlet = &self.outlets[*n];
            outlet.window.has_room() && !outlet.is_held(now) && (all_absent || !outlet.is_absent(now))
        };
        let mut open = order.filter(open);
        let first = open.next()?;
        let roomy = std::iter::once(first)
            .chain(open)
            .find(|n| !self.outlets[*n].window.is_full_of_bytes());
        Some(roomy.map_or((first, Room::FirstOnly), |n| (n, Room::All)))
    }

    /// One more is under way to a normalizer: the next one is looked at first from now on. Of one that could not be reached
    /// it is to find out, and others wait for that.
    fn begin(&mut self, outlet: usize, cost: u64, now: Instant) {
        let chosen = &mut self.outlets[outlet];
        chosen.window.begin(cost);
        if chosen.absent_until.is_some() {
            chosen.absent_until = Some(now + ABSENT_REST);
        }
        self.first = (outlet + 1) % self.outlets.len();
    }

    /// Lets a ticket straight through where nobody waits and there is room.
    fn pass(&mut self, ticket: &Ticket, now: Instant) -> Option<usize> {
        if self.lanes.len() > 0 {
            return None;
        }
        let (outlet, room) = self.room(now)?;
        let passes = self.lanes.pass(&ticket.tenant, room, now);
        passes.then(|| {
            self.begin(outlet, ticket.cost, now);
            outlet
        })
    }

    fn enqueue(&mut self, ticket: &Ticket) -> Result<oneshot::Receiver<Result<Turn, Shed>>, Shed> {
        let tenant = &ticket.tenant;
        self.lanes.trim(tenant, Grant::is_closed);
        if self.lanes.len_of(tenant) >= QUEUE_REQUESTS {
            return Err(self.shed(tenant, Shed::queue_full));
        }
        let (item, waiting) = oneshot::channel();
        let one = Waiting {
            cost: ticket.cost,
            since: ticket.since,
            item,
        };
        let weight = ticket.weight.get();
        if ticket.again {
            self.lanes.put_back(tenant, weight, one);
        } else {
            self.lanes.push(tenant, weight, one);
        }
        Ok(waiting)
    }

    /// `shed` with the time that what stands before a newcomer takes.
    fn shed(&self, tenant: &TenantId, shed: fn(Duration) -> Shed) -> Shed {
        shed(self.pace.time_for(self.lanes.before(tenant)))
    }

    fn end(&mut self, turn: &Turn, end: End, now: Instant) {
        self.lanes.ended(&turn.tenant);
        let outlet = &mut self.outlets[turn.outlet];
        if turn.reached {
            outlet.absent_until = None;
        }
        outlet.window.end(turn.cost, turn.at, end, now);
        if end == End::Done {
            self.pace.add(turn.cost, now);
        }
    }

    /// Ends holds that are over. When the next one is.
    fn next_release(&mut self, now: Instant) -> Option<Instant> {
        let held = self.outlets.iter();
        let held = held.flat_map(|outlet| outlet.held_until.into_iter().chain(outlet.absent_until));
        let outlets = held.filter(|until| *until > now).min();
        self.lanes.release(now).into_iter().chain(outlets).min()
    }
}

impl Turn {
    /// Which normalizer it is for.
    #[must_use]
    pub fn normalizer(&self) -> usize {
        self.outlet
    }

    /// The rows are durable.
    pub fn done(mut self) {
        self.reached = true;
        self.queue.gate.open();
        self.finish(End::Done);
    }

    /// It was answered in a way that says nothing of how busy the normalizer is; `took` that it is not.
    pub fn answered(mut self, took: bool) {
        self.reached = true;
        if took {
            self.queue.gate.open();
        }
        self.finish(End::Neutral);
    }

    /// It could not be reached at `now`: nothing of the request was taken. Whether there is another that may take it.
    pub fn absent(mut self, now: Instant) -> bool {
        let mut state = self.queue.state.lock();
        let until = now + ABSENT_REST;
        state.outlets[self.outlet].absent_until = Some(until);
        let another = state.outlets.iter().any(|outlet| !outlet.is_absent(now));
        self.queue.wake_by(&mut state, until);
        drop(state);
        self.finish(End::Neutral);
        another
    }

    /// There was no answer.
    pub fn lost(mut self) {
        self.finish(End::Overload);
    }

    /// The answer was "busy": come again after `hint`. What waits is held back, those of this tenant or all.
    pub fn busy(mut self, scope: BusyScope, hint: Duration, now: Instant) {
        self.reached = true;
        let until = now + hint.min(BUSY_HOLD);
        let mut state = self.queue.state.lock();
        let end = match scope {
            BusyScope::Tenant => {
                state.lanes.hold(&self.tenant, until);
                End::Neutral
            }
            BusyScope::All => {
                let outlet = &mut state.outlets[self.outlet];
                outlet.held_until = outlet.held_until.max(Some(until));
                let shut = |outlet: &Outlet| outlet.is_held(now) || outlet.is_absent(now);
                if state.outlets.iter().all(shut) {
                    self.queue.gate.busy(now, hint);
                }
                End::Overload
            }
        };
        self.queue.wake_by(&mut state, until);
        drop(state);
        self.finish(end);
    }

    fn finish(&mut self, end: End) {
        self.ended = true;
        let queue = Arc::clone(&self.queue);
        queue.release(self, end);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.ended {
            self.finish(End::Neutral);
        }
    }
}
