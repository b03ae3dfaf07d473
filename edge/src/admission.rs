//! Who may be read now: byte permits before a body is read, and a gate that remembers that the
//! normalizer has no room.
//!
//! Both exist once a tenant, so that what one tenant holds or is refused never costs another.

use crate::respond::Refusal;
use parking_lot::Mutex;
use sluice_common::limits::{EDGE_BODY_BYTES, EDGE_QUEUE_DEADLINE, EDGE_TENANT_BODY_BYTES};
use sluice_common::metered::{ByteBudget, BytePermit};
use std::time::Duration;
use tokio::time::Instant;

/// Taken for every body, however short: what a request costs besides its bytes.
pub const LEAST_CHARGE: usize = 4 * 1024;

/// One tenant's share, and its gate.
#[derive(Debug)]
pub struct TenantAdmission {
    bytes: ByteBudget,
    pub gate: Gate,
}

impl Default for TenantAdmission {
    fn default() -> Self {
        Self {
            bytes: ByteBudget::new(EDGE_TENANT_BODY_BYTES),
            gate: Gate::default(),
        }
    }
}

/// The bytes that all bodies of this edge may take together.
#[derive(Debug, Clone)]
pub struct Admission {
    all: ByteBudget,
}

impl Default for Admission {
    fn default() -> Self {
        Self::new(ByteBudget::new(EDGE_BODY_BYTES))
    }
}

impl Admission {
    /// Admission within `all`.
    #[must_use]
    pub fn new(all: ByteBudget) -> Self {
        Self { all }
    }

    /// Bytes held by all bodies now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.all.held()
    }

    /// Takes room for a body of `bytes`, before any of it is read.
    ///
    /// # Errors
    /// [`Shed`]: nothing was taken.
    pub fn enter(&self, tenant: &TenantAdmission, bytes: usize, now: Instant) -> Result<BodyPermit, Shed> {
        tenant.gate.enter(now)?;
        let bytes = bytes.max(LEAST_CHARGE);
        let own = tenant.bytes.try_take(bytes).ok_or(Shed::TenantBytes)?;
        let all = self.all.try_take(bytes).ok_or(Shed::EdgeBytes)?;
        Ok(BodyPermit { own, all })
    }
}

/// Bytes held for one body, of its tenant's share and of the whole.
#[derive(Debug)]
pub struct BodyPermit {
    own: BytePermit,
    all: BytePermit,
}

impl BodyPermit {
    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.all.bytes()
    }

    /// Takes room until `bytes` are held.
    ///
    /// # Errors
    /// [`Shed`]: the body cannot be read on.
    pub fn grow_to(&mut self, bytes: usize) -> Result<(), Shed> {
        let grow = |permit: &mut BytePermit| permit.try_grow(bytes.saturating_sub(permit.bytes()));
        if !grow(&mut self.own) {
            return Err(Shed::TenantBytes);
        }
        if grow(&mut self.all) {
            Ok(())
        } else {
            Err(Shed::EdgeBytes)
        }
    }
}

/// Why there was no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Shed {
    #[error("this tenant's requests already hold {EDGE_TENANT_BODY_BYTES} bytes")]
    TenantBytes,
    #[error("the edge's memory for request bodies is used up")]
    EdgeBytes,
    #[error("the service behind the edge has had no room for this tenant")]
    Closed { retry_after: Duration },
}

impl Shed {
    /// All values of the metric's label.
    pub const REASONS: [&str; 4] = ["tenant_bytes", "edge_bytes", "gate", "queue_deadline"];

    /// The metric's label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TenantBytes => "tenant_bytes",
            Self::EdgeBytes => "edge_bytes",
            Self::Closed { .. } => "gate",
        }
    }
}

impl From<Shed> for Refusal {
    fn from(shed: Shed) -> Self {
        let retry_after = match shed {
            Shed::TenantBytes | Shed::EdgeBytes => Duration::from_secs(1),
            Shed::Closed { retry_after } => retry_after,
        };
        Self::overloaded(shed.reason(), &shed.to_string(), retry_after)
    }
}

/// Least time between two probes of a closed gate.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// Remembers that the normalizer said "busy". While it was said for less than the queue's deadline,
/// requests go on and wait in the queue; after that they are refused before their body is read, but
/// for a probe now and then. Any other answer opens the gate, and so does silence.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    #[default]
    Open,
    Closed {
        since: Instant,
        /// Until when the normalizer asked to be left alone.
        until: Instant,
        next_probe: Instant,
    },
}

impl Gate {
    /// Whether a request may go on at `now`.
    ///
    /// # Errors
    /// [`Shed::Closed`].
    pub fn enter(&self, now: Instant) -> Result<(), Shed> {
        let mut state = self.state.lock();
        let State::Closed {
            since,
            until,
            next_probe,
        } = &mut *state
        else {
            return Ok(());
        };
        // closed → open: nobody asked for so long that what was said says nothing any more.
        if now > *until + EDGE_QUEUE_DEADLINE {
            *state = State::Open;
            return Ok(());
        }
        if now <= *since + EDGE_QUEUE_DEADLINE {
            return Ok(());
        }
        // closed → closed, with a probe under way.
        if now >= *next_probe {
            *next_probe = now + PROBE_INTERVAL.max(until.saturating_duration_since(now));
            return Ok(());
        }
        let retry_after = until.saturating_duration_since(now);
        Err(Shed::Closed { retry_after })
    }

    /// The normalizer said "busy" at `now`, and when to come again.
    pub fn busy(&self, now: Instant, retry_after: Duration) {
        let mut state = self.state.lock();
        let next = now + retry_after.max(PROBE_INTERVAL);
        *state = match *state {
            State::Open => State::Closed {
                since: now,
                until: next,
                next_probe: next,
            },
            State::Closed { since, .. } => State::Closed {
                since,
                until: next,
                next_probe: next,
            },
        };
    }

    /// The normalizer took a request, or looked at it: it has room.
    pub fn open(&self) {
        *self.state.lock() = State::Open;
    }

    /// Whether requests are being refused at `now`.
    #[must_use]
    pub fn is_shut(&self, now: Instant) -> bool {
        match *self.state.lock() {
            State::Open => false,
            State::Closed { since, until, .. } => {
                now > since + EDGE_QUEUE_DEADLINE && now <= until + EDGE_QUEUE_DEADLINE
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_gate_shuts_after_the_queue_deadline_lets_probes_through_and_reopens() {
        let (gate, start) = (Gate::default(), Instant::now());
        gate.busy(start, 400 * MS);
        assert_eq!(gate.enter(start + 900 * MS), Ok(()), "the queue is still young");
        gate.busy(start + 900 * MS, 400 * MS);
        let late = start + 1_100 * MS;
        let shut = Err(Shed::Closed {
            retry_after: 200 * MS,
        });
        assert_eq!(gate.enter(late), shut);
        assert!(gate.is_shut(late));
        let probe = start + 1_300 * MS;
        assert_eq!(gate.enter(probe), Ok(()), "one goes through");
        assert!(gate.enter(probe).is_err(), "and only one");
        assert_eq!(
            gate.enter(probe + 100 * MS),
            Ok(()),
            "a lost probe is followed by another"
        );
        gate.open();
        assert_eq!(gate.enter(probe), Ok(()));
        assert!(!gate.is_shut(probe));
    }

    #[test]
    fn silence_opens_a_gate() {
        let (gate, start) = (Gate::default(), Instant::now());
        gate.busy(start, 400 * MS);
        let later = start + 1_401 * MS;
        assert!(!gate.is_shut(later));
        assert_eq!([gate.enter(later), gate.enter(later)], [Ok(()), Ok(())]);
    }

    #[test]
    fn one_tenant_cannot_take_the_room_of_all() {
        let admission = Admission::default();
        let (loud, quiet) = (TenantAdmission::default(), TenantAdmission::default());
        let now = Instant::now();
        let share = EDGE_TENANT_BODY_BYTES;
        let mut held = admission.enter(&loud, share / 2, now).unwrap();
        held.grow_to(share).unwrap();
        assert_eq!(held.grow_to(share + 1), Err(Shed::TenantBytes));
        assert_eq!(admission.enter(&loud, 1, now).unwrap_err(), Shed::TenantBytes);
        let other = admission.enter(&quiet, share, now).unwrap();
        let third = TenantAdmission::default();
        assert_eq!(admission.enter(&third, 1, now).unwrap_err(), Shed::EdgeBytes);
        drop((held, other));
        assert_eq!((admission.held(), third.bytes.held()), (0, 0));
    }
}
