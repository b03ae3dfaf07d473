//! Who may send how much: the gate, each tenant's share of what is drained, and its share of the room that
//! is left in the log. Pure: time and the log's state go in.

use super::drain::{Drain, seconds};
use super::level::level;
use super::tenant::Tenant;
use super::{Load, View, Why};
use sluice_common::clock::UnixMs;
use sluice_common::config::Weight;
use sluice_common::ids::TenantId;
use sluice_common::limits::{
    GRANT_AGE, GRANT_BACKLOG_PERCENT, GRANT_ROOM_FACTOR, GRANT_STANDING, GRANT_TENANTS,
};
use std::collections::HashMap;

/// Between two looks at who asks for what.
const TURN_MS: u64 = 250;
/// Granted of what is drained while the log is late or half full; the rest takes the backlog down.
const GRANTED: f64 = 0.9;
/// Where a queue stands it is kept to this part of what it may be, give or take the jitter: several that stand before
/// one ClickHouse do not turn at once.
const KEPT: f64 = 0.8;
const JITTER: f64 = 0.05;
/// By what it is longer or shorter it would be as it should in so many seconds: slower than it can be seen.
const ADJUST_S: f64 = 5.0;
/// Granted at least, however long it is: clients are served meanwhile.
const LEAST: f64 = 0.75;
/// Where no queue stands, by how much more is granted each turn: what is measured is what was granted then. Twice as
/// much after 0.8 s; all at once would be a flood before anything is seen of it.
const EASED: f64 = 1.2;
/// Granted at most, in times of what was drained.
const MOST: f64 = 1_000.0;
/// What a tenant is told to wait at most.
const MAX_WAIT_MS: u64 = 30_000;
/// What a tenant is told to wait for room while nothing is drained: nobody knows.
const STALL_WAIT_MS: u64 = 5_000;
/// The shortest wait: a look around comes no more often.
const MIN_WAIT_MS: u64 = 50;

/// What a partition's last range told of a queue is true for so long, or for so many times what ranges take.
const STANDING_MS: u64 = 10_000;
const STANDING_GAPS: f64 = 3.0;

/// A range that was committed.
#[derive(Debug, Clone, Copy)]
pub struct Committed {
    pub partition: u16,
    /// Append time of its oldest record.
    pub oldest_ms: UnixMs,
    /// For how long all of it had waited when its turn came; none where it was not full by then: it took all that there
    /// was.
    pub waited_ms: Option<u64>,
}

impl Committed {
    /// Of a partition, with the append times of its oldest and its newest record; `full` or not, after one that was
    /// committed at `before`.
    #[must_use]
    pub fn after(
        before: Option<UnixMs>,
        partition: u16,
        (oldest_ms, newest_ms): (UnixMs, UnixMs),
        full: bool,
    ) -> Self {
        // Full when the one before it was done, so it had to wait for nothing else.
        let waited_ms = before
            .filter(|_| full)
            .and_then(|before| before.checked_sub(newest_ms));
        Self {
            partition,
            oldest_ms,
            waited_ms,
        }
    }
}

/// A refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    pub why: Why,
    /// When the tenant will have room, as far as can be said.
    pub retry_after_ms: u64,
}

/// All tenants' shares.
#[derive(Debug)]
pub struct Shares {
    drain: Drain,
    tenants: HashMap<TenantId, Tenant>,
    late_ms: u64,
    /// Of each partition: when its last range was committed, and for how long that had waited.
    standing: HashMap<u16, (UnixMs, u64)>,
    /// Others write and read the log too: what stands in it is not all known here.
    shared: bool,
    /// Where it is shut: the part of the bounds that the backlog is kept to.
    shut: Option<f64>,
    /// Part of what is drained that is granted.
    granted: f64,
    stalled: bool,
    /// For each unit of weight, a second.
    level: Load,
    capacity: Load,
    turned_ms: UnixMs,
    random: u64,
}

impl Shares {
    /// An open gate; `seed` is for the jitter. `shared`: with others.
    #[must_use]
    pub fn new(seed: u64, shared: bool) -> Self {
        Self {
            shared,
            granted: GRANTED,
            drain: Drain::default(),
            tenants: HashMap::new(),
            late_ms: GRANT_AGE.as_secs() * 1_000,
            standing: HashMap::new(),
            shut: None,
            stalled: false,
            level: Load::default(),
            capacity: Load::default(),
            turned_ms: 0,
            random: seed,
        }
    }

    /// The age of the backlog at which the gate shuts, at least [`GRANT_AGE`].
    pub fn set_late(&mut self, ms: u64) {
        self.late_ms = ms.max(GRANT_AGE.as_secs() * 1_000);
    }

    /// A tenant asks to send a body of so many bytes. What is reserved for it, to be given back with
    /// [`Self::done`]; nothing where it is one tenant too many to be remembered.
    ///
    /// # Errors
    /// [`Refused`]: its share is used up.
    pub fn ask(
        &mut self,
        (tenant, weight): (&TenantId, Weight),
        body: usize,
        view: View,
    ) -> Result<Option<Load>, Refused> {
        self.turn(view);
        let now = view.now;
        if !self.tenants.contains_key(tenant) && self.tenants.len() >= GRANT_TENANTS {
            self.tenants.retain(|_, one| !one.is_idle(now));
            if self.tenants.len() >= GRANT_TENANTS {
                return Ok(None);
            }
        }
        let newcomer = || Tenant::new(now);
        let one = self.tenants.entry(tenant.clone()).or_insert_with(newcomer);
        let load = one.asks(weight, real(body), now);
        if self.shut.is_some() {
            self.check(tenant, view)?;
        }
        if let Some(one) = self.tenants.get_mut(tenant) {
            one.reserve(load);
        }
        Ok(Some(load))
    }

    fn check(&mut self, tenant: &TenantId, view: View) -> Result<(), Refused> {
        let now = view.now;
        let room = self.room(tenant, view);
        let (level, stalled) = (self.level, self.stalled);
        let Some(one) = self.tenants.get_mut(tenant) else {
            return Ok(());
        };
        let over = one.backlog + one.reserved().bytes - room;
        let refused = if over >= 0.0 {
            let drained = one.weight * level.bytes;
            let wait = if stalled {
                STALL_WAIT_MS
            } else {
                wait_ms(over / drained)
            };
            Some((Why::Room, wait))
        } else if stalled || self.shared {
            // Of a shared log: whose rows fill which partition is not known here, and one that is slow must hold back
            // nobody but its tenants.
            None
        } else {
            let wait = one.wait(level, now);
            (wait > 0.0).then(|| (Why::Drain, wait_ms(wait)))
        };
        let Some((why, retry_after_ms)) = refused else {
            return Ok(());
        };
        one.refused(now);
        Err(Refused { why, retry_after_ms })
    }

    /// What of the log may be this tenant's: its part, by weight among those that send or have something in
    /// it, of a multiple of what is free. So whoever fills it leaves room, and a newcomer finds some.
    fn room(&self, tenant: &TenantId, view: View) -> f64 {
        let here = |one: &&Tenant| one.is_active(view.now) || one.backlog > 0.0;
        let weights: f64 = self.tenants.values().filter(here).map(|one| one.weight).sum();
        let reserved: f64 = self.tenants.values().map(|one| one.reserved().bytes).sum();
        let weight = self.tenants.get(tenant).map_or(1.0, |one| one.weight);
        let free = wide(view.limit_bytes) - wide(view.backlog_bytes) - reserved;
        GRANT_ROOM_FACTOR * free.max(0.0) * weight / weights.max(weight)
    }

    /// A request has ended; where its rows were appended its body tells of the next ones.
    pub fn done(&mut self, tenant: &TenantId, reserved: Load, appended: Option<usize>) {
        if let Some(one) = self.tenants.get_mut(tenant) {
            one.release(reserved);
            if let Some(body) = appended {
                one.took(real(body));
            }
        }
    }

    /// So much of the log is the tenant's now.
    pub fn wrote(&mut self, tenant: &TenantId, load: Load) {
        if let Some(one) = self.tenants.get_mut(tenant) {
            one.wrote(load);
        }
    }

    /// A range was committed: all of it, and of each tenant what was written since the start.
    pub fn committed(&mut self, all: Load, of: &HashMap<TenantId, Load>, range: Committed, now: UnixMs) {
        match range.waited_ms {
            Some(waited) => self.standing.insert(range.partition, (now, waited)),
            None => self.standing.remove(&range.partition),
        };
        let busy = self.standing_ms(now).is_some();
        self.drain.committed(all, range.oldest_ms, busy, now);
        for (tenant, load) in of {
            if let Some(one) = self.tenants.get_mut(tenant) {
                one.backlog = (one.backlog - load.bytes).max(0.0);
            }
        }
    }

    /// What a partition's ranges told is true no more.
    pub fn left(&mut self, partition: u16) {
        self.standing.remove(&partition);
    }

    /// For how long full ranges waited lately, whole; none where nothing stands behind them.
    fn standing_ms(&self, now: UnixMs) -> Option<u64> {
        let long_s = (self.drain.gap_s() * STANDING_GAPS).max(seconds(STANDING_MS));
        // Where the clock was stepped back nothing is known until the next range.
        let is_recent = |at: UnixMs| now.checked_sub(at).is_some_and(|ago| seconds(ago) < long_s);
        let lately = self.standing.values().filter(|(at, _)| is_recent(*at));
        lately.map(|(_, waited)| *waited).max()
    }

    /// How long the queue is, in seconds. What stood tells of it when those were appended; what is in the log, at what is
    /// drained now, tells of now.
    fn queue_s(&self, view: View) -> Option<f64> {
        let rate = self.drain.per_second(view.oldest_ms, view.now).bytes;
        let stood = self.standing_ms(view.now)?;
        Some(seconds(stood).min(wide(view.backlog_bytes) / rate))
    }

    /// Whether tenants are held to shares.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        self.shut.is_some()
    }

    /// What all tenants together may send a second; `None` while the gate is open.
    #[must_use]
    pub fn in_force(&self) -> Option<Load> {
        self.shut.map(|_| {
            if self.stalled {
                Load::default()
            } else {
                self.capacity
            }
        })
    }

    /// What is drained a second.
    #[must_use]
    pub fn drained(&self, view: View) -> Load {
        self.drain.per_second(view.oldest_ms, view.now)
    }

    /// Whether the gate is shut and nothing is drained.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.shut.is_some() && self.stalled
    }

    /// Looks who asks for what, and shares out anew.
    pub fn turn(&mut self, view: View) {
        let now = view.now;
        let passed = now.saturating_sub(self.turned_ms);
        if passed < TURN_MS && now >= self.turned_ms {
            return;
        }
        self.turned_ms = now;
        let passed_s = seconds(passed.max(TURN_MS));
        self.tenants.retain(|_, one| !one.is_idle(now));
        self.tenants.values_mut().for_each(|one| one.turn(passed_s));
        self.gate(view);
        let was_stalled = self.stalled;
        self.stalled = self.drain.is_stalled(view.oldest_ms, now);
        if was_stalled && !self.stalled {
            // What was sent into the outage is paid with room, and not once more with what is drained.
            self.tenants.values_mut().for_each(Tenant::free);
        }
        self.capacity = self.drain.per_second(view.oldest_ms, now) * self.granted;
        let active = self.tenants.values().filter(|one| one.is_active(now));
        let (bytes, rows): (Vec<_>, Vec<_>) = active.map(|one| one.claims(now)).unzip();
        self.level = Load {
            bytes: level(self.capacity.bytes, &bytes),
            rows: level(self.capacity.rows, &rows),
        };
    }

    /// Shuts at the bounds; opens below a part of them, once nobody is refused any more.
    fn gate(&mut self, view: View) {
        let now = view.now;
        let queue_s = self.queue_s(view);
        let reach = self.reach(view, queue_s);
        let Some(kept) = self.shut else {
            if reach >= 1.0 {
                self.shut = Some(KEPT + JITTER * self.jitter());
                self.granted = GRANTED;
            }
            return;
        };
        self.granted = match queue_s {
            Some(long_s) => {
                let wanted_s = GRANT_STANDING.as_secs_f64() * kept;
                (1.0 - (long_s - wanted_s) / ADJUST_S).max(LEAST)
            }
            None if reach >= kept => GRANTED,
            None => (self.granted * EASED).min(MOST),
        };
        if reach < kept && !self.tenants.values().any(|one| one.wants_more(now)) {
            self.shut = None;
            self.tenants.values_mut().for_each(Tenant::free);
        }
    }

    /// The backlog in parts of the bounds.
    fn reach(&self, view: View, queue_s: Option<f64>) -> f64 {
        let bound = wide(view.limit_bytes) / 100.0 * f64::from(GRANT_BACKLOG_PERCENT);
        let filled = wide(view.backlog_bytes) / bound.max(1.0);
        let stood = queue_s.unwrap_or(0.0) / GRANT_STANDING.as_secs_f64();
        // What is old and stands behind nothing is on its way: an insert takes long, and fewer events make it no faster.
        let age = match view.oldest_ms {
            Some(oldest) if queue_s.is_some() || self.shared => view.now.saturating_sub(oldest),
            Some(_) | None => 0,
        };
        filled.max(stood).max(wide(age) / wide(self.late_ms))
    }

    /// From -1 to 1.
    fn jitter(&mut self) -> f64 {
        // Knuth's generator; its high bits are good enough to tell intakes apart.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        wide(self.random >> 40) / f64::from(1u32 << 23) - 1.0
    }

    #[cfg(test)]
    pub(super) fn tenants(&self) -> usize {
        self.tenants.len()
    }
}

fn wait_ms(seconds: f64) -> u64 {
    let ms = (seconds * 1_000.0).ceil();
    if ms.is_finite() {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "finite and clamped; as saturates"
        )]
        let ms = ms as u64;
        ms.clamp(MIN_WAIT_MS, MAX_WAIT_MS)
    } else {
        MAX_WAIT_MS
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn wide(n: u64) -> f64 {
    n as f64
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn real(n: usize) -> f64 {
    n as f64
}
