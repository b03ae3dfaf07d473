//! What is known of one tenant: what it asks for, what it may still take, and what of the log is its own.

use super::Load;
use super::drain::seconds;
use super::level::Claim;
use sluice_common::clock::UnixMs;
use sluice_common::config::Weight;

/// How long a tenant counts as sending after it last did.
const ACTIVE_MS: u64 = 10_000;
/// How long one that was refused is taken to want whatever there is.
const WANTS_MORE_MS: u64 = 3_000;
/// Seconds over which what it asks for is smoothed.
const DEMAND_S: f64 = 2.0;
/// Room above what it asked for lately.
const DEMAND_ROOM: f64 = 1.1;
/// What it may take at once, in seconds of its rate; and one request may go into debt.
const BURST_S: f64 = 1.0;
/// The same for one that was not held back until now: all that it sent is in the queue that is to get shorter.
const FIRST_S: f64 = 0.25;
/// What is kept of the learned sizes from one turn to the next.
const KEEP: f64 = 0.95;

/// One tenant's state.
#[derive(Debug)]
pub struct Tenant {
    pub weight: f64,
    /// Of requests under way, as estimated.
    reserved: Load,
    under_way: u32,
    /// Its bytes of the log that are not committed.
    pub backlog: f64,
    balance: Load,
    refilled_ms: UnixMs,
    asked: Load,
    demand: Load,
    refused_ms: Option<UnixMs>,
    seen_ms: UnixMs,
    /// Body bytes that were taken, and what they became in the log: both fade.
    bodies: f64,
    written: Load,
}

impl Tenant {
    /// One that has just come.
    #[must_use]
    pub fn new(now: UnixMs) -> Self {
        Self {
            weight: 1.0,
            reserved: Load::default(),
            under_way: 0,
            backlog: 0.0,
            balance: Load {
                bytes: f64::INFINITY,
                rows: f64::INFINITY,
            },
            refilled_ms: now,
            asked: Load::default(),
            demand: Load::default(),
            refused_ms: None,
            seen_ms: now,
            bodies: 0.0,
            written: Load::default(),
        }
    }

    /// It asks for a body of so many bytes: what that will be in the log, as far as its bodies tell.
    pub fn asks(&mut self, weight: Weight, body: f64, now: UnixMs) -> Load {
        self.weight = f64::from(weight.get());
        self.seen_ms = now;
        let load = if self.bodies > 0.0 {
            self.written * (body / self.bodies)
        } else {
            Load {
                bytes: body,
                rows: 1.0,
            }
        };
        self.asked = self.asked + load;
        load
    }

    /// What requests under way will be in the log, as estimated.
    #[must_use]
    pub fn reserved(&self) -> Load {
        self.reserved
    }

    /// A request is under way, which will be so much.
    pub fn reserve(&mut self, load: Load) {
        self.reserved = self.reserved + load;
        self.under_way += 1;
    }

    /// One has ended, for which so much was reserved.
    pub fn release(&mut self, load: Load) {
        self.reserved = (self.reserved + load * -1.0).at_least_zero();
        self.under_way = self.under_way.saturating_sub(1);
        if self.under_way == 0 {
            // Sums of fractions leave something.
            self.reserved = Load::default();
        }
    }

    /// What it had to be refused.
    pub fn refused(&mut self, now: UnixMs) {
        self.refused_ms = Some(now);
    }

    /// Whether it was refused lately.
    #[must_use]
    pub fn wants_more(&self, now: UnixMs) -> bool {
        self.refused_ms
            .is_some_and(|at| now.saturating_sub(at) < WANTS_MORE_MS)
    }

    /// A body became rows of the log.
    pub fn took(&mut self, body: f64) {
        self.bodies += body;
    }

    /// So much of the log is its own now.
    pub fn wrote(&mut self, load: Load) {
        self.backlog += load.bytes;
        self.written = self.written + load;
        self.balance = self.balance + load * -1.0;
    }

    /// Takes note of the time since the last turn.
    pub fn turn(&mut self, passed_s: f64) {
        let fresh = (passed_s / DEMAND_S).min(1.0);
        self.demand = self.demand * (1.0 - fresh) + self.asked * (fresh / passed_s);
        self.asked = Load::default();
        self.bodies *= KEEP;
        self.written = self.written * KEEP;
        if self.bodies < 1.0 {
            // Long past; and what fades for ever is too small to divide by.
            (self.bodies, self.written) = (0.0, Load::default());
        }
    }

    /// Its claims on bytes and on rows.
    #[must_use]
    pub fn claims(&self, now: UnixMs) -> (Claim, Claim) {
        let demand = if self.wants_more(now) {
            Load {
                bytes: f64::INFINITY,
                rows: f64::INFINITY,
            }
        } else {
            self.demand * DEMAND_ROOM
        };
        let weight = self.weight;
        let claim = |demand| Claim { weight, demand };
        (claim(demand.bytes), claim(demand.rows))
    }

    /// Whether it has asked lately.
    #[must_use]
    pub fn is_active(&self, now: UnixMs) -> bool {
        now.saturating_sub(self.seen_ms) < ACTIVE_MS
    }

    /// Whether nothing has to be remembered of it.
    #[must_use]
    pub fn is_idle(&self, now: UnixMs) -> bool {
        !self.is_active(now) && self.backlog <= 0.0 && self.under_way == 0
    }

    /// Nothing holds it back any more.
    pub fn free(&mut self) {
        self.balance = Load {
            bytes: f64::INFINITY,
            rows: f64::INFINITY,
        };
        self.refused_ms = None;
    }

    /// Seconds until it may take more, at so much a second for each unit of weight; 0: now.
    pub fn wait(&mut self, level: Load, now: UnixMs) -> f64 {
        let passed = seconds(now.saturating_sub(self.refilled_ms));
        self.refilled_ms = now;
        let rate = level * self.weight;
        let more = self.balance + rate * passed;
        let burst_s = if more.bytes.is_finite() { BURST_S } else { FIRST_S };
        self.balance = Load {
            bytes: more.bytes.min(rate.bytes * burst_s),
            rows: more.rows.min(rate.rows * burst_s),
        };
        let left = self.balance + self.reserved * -1.0;
        let wait = |left: f64, rate: f64| if left > 0.0 { 0.0 } else { -left / rate };
        // What is free after it is more than nothing.
        let wait = wait(left.bytes, rate.bytes).max(wait(left.rows, rate.rows));
        if wait.is_nan() { f64::INFINITY } else { wait }
    }
}
