//! How many sub-batches one ClickHouse is given at once, learned from its answers.
//!
//! Additive increase, multiplicative decrease: one more for each round of inserts that went well while all
//! slots were in use, half of them when the server says that it is overloaded or does not answer, a tenth
//! less when inserts take far longer than they used to. Calls of all normalizers share the slots.
//!
//! A table that keeps failing has no slot: its circuit is open, and all such tables share one probe. So a
//! table that answers slowly, or not at all, costs others nothing.

use crate::client::ServerError;
use parking_lot::Mutex;
use sluice_common::aimd::Aimd;
use sluice_common::classify::{Class, classify};
use sluice_common::ids::Name;
use sluice_common::limits::{
    CIRCUIT_FAILURES, CIRCUIT_TABLES, CLICKHOUSE_SLOTS, CLICKHOUSE_SLOTS_MAX, CLICKHOUSE_SLOTS_MIN,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex as Turn, Notify, OwnedMutexGuard};
use tokio::time::Instant;

/// What an overload leaves.
const OVERLOADED: f64 = 0.5;
/// What slowness leaves.
const SLOWED: f64 = 0.9;
/// Slow: so many times what is usual, and at least [`SLOW_MIN`].
const SLOW_TIMES: f64 = 4.0;
const SLOW_MIN: Duration = Duration::from_secs(2);
/// How fast what is usual follows inserts that are quicker, and slower.
const FOLLOW_DOWN: f64 = 0.2;
const FOLLOW_UP: f64 = 0.02;

/// How one insert ended, as far as the server's load is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    Well,
    /// It says that it has too much to do, or says nothing.
    Overloaded,
    /// The rows or the table are at fault: it tells nothing of the load.
    Other,
}

impl Sign {
    /// Of an answer.
    #[must_use]
    pub fn of(answer: &Result<(), ServerError>) -> Self {
        match answer {
            Ok(()) => Self::Well,
            Err(ServerError::Unreached(_) | ServerError::Uncertain(_)) => Self::Overloaded,
            Err(ServerError::Definite { code, .. }) => match classify(*code) {
                Class::Retry => Self::Overloaded,
                Class::Quarantine | Class::Alarm => Self::Other,
            },
        }
    }
}

/// The number of slots, as a pure function of what was seen.
#[derive(Debug, Clone)]
pub struct Load {
    aimd: Aimd,
    usual_s: Option<f64>,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            aimd: Aimd::new(CLICKHOUSE_SLOTS, CLICKHOUSE_SLOTS_MAX),
            usual_s: None,
        }
    }
}

impl Load {
    /// The number of slots.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.aimd.limit()
    }

    /// One insert, begun at `begun` while `busy` slots were taken, ended `now`.
    pub fn ended(&mut self, sign: Sign, busy: usize, begun: Instant, now: Instant) {
        let took = now.saturating_duration_since(begun);
        match sign {
            Sign::Other => {}
            Sign::Overloaded => self.aimd.lower(OVERLOADED, CLICKHOUSE_SLOTS_MIN, begun, now),
            Sign::Well => {
                let slow = self.is_slow(took);
                self.learn(took.as_secs_f64());
                if slow {
                    self.aimd.lower(SLOWED, CLICKHOUSE_SLOTS_MIN, begun, now);
                } else if busy >= self.slots() {
                    self.aimd.raise_by_round();
                }
            }
        }
    }

    fn is_slow(&self, took: Duration) -> bool {
        let usual = self.usual_s.unwrap_or(f64::INFINITY);
        took >= SLOW_MIN && took.as_secs_f64() > usual * SLOW_TIMES
    }

    fn learn(&mut self, took_s: f64) {
        let usual = self.usual_s.get_or_insert(took_s);
        let follow = if took_s < *usual { FOLLOW_DOWN } else { FOLLOW_UP };
        *usual += (took_s - *usual) * follow;
    }
}

#[derive(Debug, Default)]
struct State {
    load: Load,
    busy: usize,
    /// Failures in a row, by table; a table that answers is not here.
    failing: HashMap<Name, u32>,
}

/// The slots of one server. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Limiter(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    freed: Notify,
    probe: Arc<Turn<()>>,
}

/// The right to work on one sub-batch. Dropping it lets the next one in.
#[derive(Debug)]
pub struct Slot {
    limiter: Limiter,
    table: Name,
    /// Of a table whose circuit is open.
    probe: Option<OwnedMutexGuard<()>>,
}

impl Slot {
    /// An insert that it was for has ended. The error, where it is one of the table or the server, not of rows.
    pub fn ended<'a>(&self, answer: &'a Result<(), ServerError>, begun: Instant) -> Option<&'a ServerError> {
        let mut state = self.limiter.0.state.lock();
        let busy = state.busy;
        state.load.ended(Sign::of(answer), busy, begun, Instant::now());
        let works = is_answer(answer);
        if works {
            state.failing.remove(&self.table);
        } else if state.failing.len() < CIRCUIT_TABLES || state.failing.contains_key(&self.table) {
            let failures = state.failing.entry(self.table.clone()).or_default();
            *failures = failures.saturating_add(1);
        }
        drop(state);
        self.limiter.0.freed.notify_waiters();
        answer.as_ref().err().filter(|_| !works)
    }
}

/// Whether the table works: it took the rows, or said which rows it does not take.
fn is_answer(answer: &Result<(), ServerError>) -> bool {
    match answer {
        Ok(()) => true,
        Err(ServerError::Definite { code, .. }) => classify(*code) == Class::Quarantine,
        Err(ServerError::Unreached(_) | ServerError::Uncertain(_)) => false,
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.probe.is_none() {
            self.limiter.0.state.lock().busy -= 1;
        }
        self.limiter.0.freed.notify_waiters();
    }
}

impl Limiter {
    /// The number of slots now.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.0.state.lock().load.slots()
    }

    /// Those that are taken.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.0.state.lock().busy
    }

    /// Tables whose circuit is open.
    #[must_use]
    pub fn open_circuits(&self) -> usize {
        let state = self.0.state.lock();
        state
            .failing
            .values()
            .filter(|failures| **failures >= CIRCUIT_FAILURES)
            .count()
    }

    /// Whether the table's circuit is open: only probes go there.
    #[must_use]
    pub fn is_open(&self, table: &Name) -> bool {
        let state = self.0.state.lock();
        state
            .failing
            .get(table)
            .is_some_and(|failures| *failures >= CIRCUIT_FAILURES)
    }

    /// A slot for one sub-batch of `table`; `None` where there was none before the deadline.
    pub async fn take(&self, table: &Name, deadline: Instant) -> Option<Slot> {
        tokio::time::timeout_at(deadline, self.wait(table)).await.ok()
    }

    async fn wait(&self, table: &Name) -> Slot {
        let slot = |probe| Slot {
            limiter: self.clone(),
            table: table.clone(),
            probe,
        };
        loop {
            // Before the look: what is freed after it wakes us.
            let freed = self.0.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.is_open(table) {
                let probe = Arc::clone(&self.0.probe).lock_owned().await;
                if self.is_open(table) {
                    return slot(Some(probe));
                }
                continue;
            }
            {
                let mut state = self.0.state.lock();
                if state.busy < state.load.slots() {
                    state.busy += 1;
                    return slot(None);
                }
            }
            freed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overload() -> Result<(), ServerError> {
        Err(ServerError::Definite {
            code: 252,
            message: String::new(),
        })
    }

    fn name(text: &str) -> Name {
        Name::new(text).expect("valid")
    }

    #[test]
    fn overload_halves_once_a_round_down_to_one_and_rounds_without_it_add_one() {
        let (mut load, begin) = (Load::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        let before = load.slots();
        load.ended(Sign::Overloaded, before, at(0), at(10));
        assert_eq!(load.slots(), before / 2);
        load.ended(Sign::Overloaded, before, at(5), at(11));
        assert_eq!(load.slots(), before / 2, "it was sent before");
        for n in 2..20 {
            load.ended(Sign::Overloaded, 1, at(n * 10), at(n * 10 + 5));
        }
        assert_eq!(load.slots(), 1);
        for n in 100..120 {
            load.ended(Sign::Other, 9, at(n * 10), at(n * 10 + 5));
        }
        assert_eq!(load.slots(), 1, "refused rows tell nothing of the load");
        for n in 200..1_000 {
            let busy = load.slots();
            load.ended(Sign::Well, busy, at(n * 10), at(n * 10 + 5));
        }
        assert_eq!(load.slots(), CLICKHOUSE_SLOTS_MAX as usize);
    }

    #[test]
    fn what_is_not_used_does_not_grow_and_slowness_takes_a_tenth() {
        let (mut load, begin) = (Load::default(), Instant::now());
        let mut now = begin;
        let mut insert = |load: &mut Load, busy, ms| {
            let begun = now;
            now += Duration::from_millis(ms);
            load.ended(Sign::Well, busy, begun, now);
        };
        for _ in 0..100 {
            insert(&mut load, 1, 100);
        }
        assert_eq!(load.slots(), CLICKHOUSE_SLOTS as usize);
        for _ in 0..3 {
            insert(&mut load, 4, 3_000);
        }
        assert!(load.slots() < CLICKHOUSE_SLOTS as usize);
    }

    #[tokio::test]
    async fn no_more_are_let_in_than_there_are_slots_and_none_past_the_deadline() {
        let limiter = Limiter::default();
        let (t, soon) = (name("t"), Instant::now() + Duration::from_millis(20));
        let mut held = Vec::new();
        for _ in 0..limiter.slots() {
            held.push(limiter.take(&t, soon).await.expect("free"));
        }
        assert!(limiter.take(&t, soon).await.is_none());
        held.pop();
        let later = Instant::now() + Duration::from_secs(5);
        assert!(limiter.take(&t, later).await.is_some());
    }

    #[tokio::test]
    async fn a_table_that_keeps_failing_has_one_probe_and_costs_others_no_slot() {
        let limiter = Limiter::default();
        let (bad, good) = (name("bad"), name("good"));
        let later = Instant::now() + Duration::from_secs(5);
        for _ in 0..CIRCUIT_FAILURES {
            assert!(!limiter.is_open(&bad));
            let slot = limiter.take(&bad, later).await.expect("free");
            slot.ended(&overload(), Instant::now());
        }
        assert!(limiter.is_open(&bad));
        assert_eq!(limiter.slots(), 1);
        let probe = limiter.take(&bad, later).await.expect("one probe");
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(limiter.take(&bad, soon).await.is_none(), "one at a time");
        let other = limiter.take(&good, later).await.expect("its slot is free");
        other.ended(&Ok(()), Instant::now());
        probe.ended(&Ok(()), Instant::now());
        assert!(!limiter.is_open(&bad), "it has answered");
        assert_eq!(limiter.busy(), 1);
        drop((probe, other));
        assert_eq!(limiter.busy(), 0);
    }
}
