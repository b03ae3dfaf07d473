//! A gate that remembers that the normalizer has no room: for one tenant, or for all.

use crate::admission::Shed;
use parking_lot::Mutex;
use sluice_common::limits::EDGE_QUEUE_DEADLINE;
use std::time::Duration;
use tokio::time::Instant;

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
}
