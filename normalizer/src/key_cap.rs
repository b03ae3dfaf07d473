//! R9: how many events one tenant may append within the widest dedup window. Counted on appends, an
//! upper bound of the keys that dedup must remember; over it intake answers 429 and dedup never has to
//! refuse.

use parking_lot::Mutex;
use sluice_common::clock::UnixMs;
use sluice_common::ids::TenantId;
use std::collections::{HashMap, VecDeque};

/// The window is counted in so many steps: the cap is exact to a 24th of it.
const STEPS: u64 = 24;

/// Events by tenant over the window.
#[derive(Debug)]
pub struct KeyCap(Mutex<Counts>);

#[derive(Debug)]
struct Counts {
    limit: u64,
    step_ms: u64,
    steps: VecDeque<Step>,
}

#[derive(Debug)]
struct Step {
    number: u64,
    events: HashMap<TenantId, u64>,
}

/// Events that do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverCap {
    /// How many may come within the window.
    pub most: u64,
    pub window_ms: u64,
    /// How many more may come now.
    pub left: u64,
    /// Until so many have left the window that these fit, if no others come. None: they are more than `most`.
    pub wait_ms: Option<u64>,
}

impl KeyCap {
    /// A cap of `limit` events in `window_ms`; `known` are those that dedup remembers at start.
    #[must_use]
    pub fn new(limit: u64, window_ms: u64, known: HashMap<TenantId, u64>, now: UnixMs) -> Self {
        let step_ms = (window_ms / STEPS).max(1);
        let number = now / step_ms;
        // When they came is not known: spread over the window they leave it as evenly as they came.
        let share = |events: u64| events.div_ceil(STEPS);
        let events: HashMap<_, _> = known
            .into_iter()
            .map(|(tenant, events)| (tenant, share(events)))
            .collect();
        let steps = (0..STEPS).rev().map(|back| Step {
            number: number.saturating_sub(back),
            events: events.clone(),
        });
        Self(Mutex::new(Counts {
            limit,
            step_ms,
            steps: steps.collect(),
        }))
    }

    /// Puts another cap and window in force; what was counted stays counted for as long as the new window
    /// asks for it.
    pub fn set(&self, limit: u64, window_ms: u64) {
        let mut counts = self.0.lock();
        let step_ms = (window_ms / STEPS).max(1);
        let old = std::mem::take(&mut counts.steps);
        for step in old {
            let number = step.number * counts.step_ms / step_ms;
            if counts.steps.back().is_none_or(|last| last.number < number) {
                counts.steps.push_back(Step {
                    number,
                    events: HashMap::new(),
                });
            }
            if let Some(last) = counts.steps.back_mut() {
                for (tenant, events) in step.events {
                    *last.events.entry(tenant).or_default() += events;
                }
            }
        }
        (counts.limit, counts.step_ms) = (limit, step_ms);
    }

    /// Gives back what was charged for events that were not appended.
    pub fn refund(&self, tenant: &TenantId, events: u64) {
        let steps = &mut self.0.lock().steps;
        if let Some(held) = steps.back_mut().and_then(|step| step.events.get_mut(tenant)) {
            *held = held.saturating_sub(events);
        }
    }

    /// Charges `events` to the tenant.
    ///
    /// # Errors
    /// [`OverCap`]: nothing is charged.
    pub fn charge(&self, tenant: &TenantId, events: u64, now: UnixMs) -> Result<(), OverCap> {
        let mut counts = self.0.lock();
        let number = now / counts.step_ms;
        while let Some(step) = counts.steps.front()
            && step.number + STEPS < number
        {
            counts.steps.pop_front();
        }
        let held = counts.held(tenant);
        if held + events > counts.limit {
            return Err(OverCap {
                most: counts.limit,
                window_ms: counts.step_ms * STEPS,
                left: counts.limit.saturating_sub(held),
                wait_ms: counts.wait(tenant, events, now),
            });
        }
        let steps = &mut counts.steps;
        if steps.back().is_none_or(|step| step.number < number) {
            steps.push_back(Step {
                number,
                events: HashMap::new(),
            });
        }
        if let Some(step) = steps.back_mut() {
            *step.events.entry(tenant.clone()).or_default() += events;
        }
        Ok(())
    }
}

impl Counts {
    fn held(&self, tenant: &TenantId) -> u64 {
        self.steps.iter().filter_map(|step| step.events.get(tenant)).sum()
    }

    /// How many milliseconds until so many of the tenant's events have left the window that `events` more fit.
    fn wait(&self, tenant: &TenantId, events: u64, now: UnixMs) -> Option<u64> {
        let stays = self.limit.checked_sub(events)?;
        let mut held = self.held(tenant);
        let last = self.steps.iter().find(|step| {
            held -= step.events.get(tenant).copied().unwrap_or(0);
            held <= stays
        })?;
        let leaves = (last.number + STEPS + 1) * self.step_ms;
        Some(leaves.saturating_sub(now).max(1_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_over_its_cap_is_told_how_long_and_hurts_no_other() {
        let (a, b) = (
            TenantId::new("a").expect("valid"),
            TenantId::new("b").expect("valid"),
        );
        let cap = KeyCap::new(100, 24_000, HashMap::from([(a.clone(), 48)]), 1_000_000);
        assert_eq!(cap.charge(&a, 52, 1_000_000), Ok(()));
        cap.refund(&a, 2);
        assert_eq!(cap.charge(&a, 2, 1_000_000), Ok(()));
        let over = cap.charge(&a, 1, 1_000_500).expect_err("over");
        assert_eq!((over.most, over.window_ms, over.left), (100, 24_000, 0));
        let wait = over.wait_ms.expect("it fits once there is room");
        assert_eq!(cap.charge(&b, 100, 1_000_500), Ok(()));
        assert_eq!(
            cap.charge(&a, 1, 1_000_500 + wait),
            Ok(()),
            "whoever waits that long is let in"
        );
    }

    #[test]
    fn whoever_waits_as_told_is_let_in_and_a_step_earlier_is_not() {
        let a = TenantId::new("a").expect("valid");
        let cap = KeyCap::new(100, 24_000, HashMap::new(), 1_000_000);
        for second in 0..10 {
            assert_eq!(cap.charge(&a, 10, 1_000_000 + second * 1_000), Ok(()));
        }
        let over = cap.charge(&a, 35, 1_009_500).expect_err("over");
        let wait = over.wait_ms.expect("it fits once there is room");
        let early = cap.charge(&a, 35, 1_009_500 + wait - 1_000);
        assert_eq!(early.expect_err("three steps have left").left, 30);
        assert_eq!(cap.charge(&a, 35, 1_009_500 + wait), Ok(()));
        let never = cap.charge(&a, 101, 2_000_000).expect_err("over");
        assert_eq!((never.left, never.wait_ms), (100, None));
    }

    #[test]
    fn another_cap_and_window_keep_what_was_counted() {
        let a = TenantId::new("a").expect("valid");
        let cap = KeyCap::new(100, 24_000, HashMap::new(), 1_000_000);
        for second in 0..10 {
            assert_eq!(cap.charge(&a, 10, 1_000_000 + second * 1_000), Ok(()));
        }
        cap.set(110, 240_000);
        assert_eq!(cap.charge(&a, 10, 1_010_000), Ok(()));
        assert!(cap.charge(&a, 1, 1_010_000).is_err(), "100 were counted before");
        assert!(
            cap.charge(&a, 1, 1_200_000).is_err(),
            "the wider window still asks for them"
        );
        cap.set(110, 24_000);
        assert_eq!(cap.charge(&a, 110, 1_300_000), Ok(()));
    }
}
