//! How much may be under way to one normalizer: a window that follows what it can do.
//!
//! What waits in the edge waits in fair order; what waits in the normalizer waits in the order in which it came. So
//! as little as possible is to wait there. The window, in requests and in bytes,
//!
//! * opens by one for each windowful of answers (below [`SLOW_START`] by one for each answer) while it is in use;
//! * closes by a tenth where answers take twice as long as the same size usually takes, never below [`SLOW_START`]:
//!   slowness alone must not keep group commit from having a group;
//! * closes by half where the normalizer says "busy", or does not answer, down to one request.
//!
//! It closes at most once in the time that an answer takes, since what is under way was sent before. Pure: time is
//! passed in.

use sluice_common::aimd::Aimd;
use sluice_common::limits::{FORWARD_BYTES_PER_REQUEST, FORWARD_REQUESTS, FORWARD_REQUESTS_FIRST};
use std::time::Duration;
use tokio::time::Instant;

/// Below it the window opens fast, and slow answers do not close it.
const SLOW_START: f64 = 16.0;
/// An answer that takes twice the usual time, and this much more, is slow.
const SLACK: Duration = Duration::from_millis(10);
/// The usual time of the smallest class is never taken for more than this: else a standing queue becomes usual.
const MOST_USUAL: Duration = Duration::from_millis(50);
/// How long the fastest answer of a class stands for the usual one: for this, and at most twice this.
const MEMORY: Duration = Duration::from_secs(15);
/// Bodies of up to 64 KiB, and then each class four times as large.
const CLASSES: usize = 6;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Durable.
    Done,
    /// Nothing that says how busy the normalizer is.
    Neutral,
    /// "Busy", or no answer.
    Overload,
}

/// The window of one normalizer.
#[derive(Debug)]
pub(super) struct Window {
    aimd: Aimd,
    requests: usize,
    bytes: u64,
    /// The most requests under way, of the last windowful of answers.
    peak: usize,
    answers: usize,
    usual: [Usual; CLASSES],
}

impl Default for Window {
    fn default() -> Self {
        Self {
            aimd: Aimd::new(FORWARD_REQUESTS_FIRST, FORWARD_REQUESTS),
            requests: 0,
            bytes: 0,
            peak: 0,
            answers: 0,
            usual: [Usual::default(); CLASSES],
        }
    }
}

impl Window {
    /// Requests that may be under way, at least 1.
    pub(super) fn limit(&self) -> usize {
        self.aimd.limit()
    }

    /// Requests under way.
    pub(super) fn requests(&self) -> usize {
        self.requests
    }

    /// Whether one more request may go.
    pub(super) fn has_room(&self) -> bool {
        self.requests < self.limit()
    }

    /// Whether the bytes are used up.
    pub(super) fn is_full_of_bytes(&self) -> bool {
        self.bytes >= self.limit() as u64 * FORWARD_BYTES_PER_REQUEST
    }

    /// One of `cost` bytes goes.
    pub(super) fn begin(&mut self, cost: u64) {
        self.requests += 1;
        self.bytes += cost;
    }

    /// It ended, having begun at `at`.
    pub(super) fn end(&mut self, cost: u64, at: Instant, end: End, now: Instant) {
        let in_use = self.is_in_use();
        self.requests = self.requests.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(cost);
        match end {
            End::Neutral => {}
            End::Overload => self.aimd.lower(0.5, 1.0, at, now),
            End::Done => {
                let took = now.saturating_duration_since(at);
                if self.usual[class(cost)].is_slow(took, most_usual(class(cost)), now) {
                    self.aimd.lower(0.9, SLOW_START.min(self.aimd.exact()), at, now);
                } else if in_use {
                    self.open();
                }
            }
        }
    }

    /// Whether at least half of it was needed lately: else answers say nothing of how far it may open.
    fn is_in_use(&mut self) -> bool {
        self.peak = self.peak.max(self.requests);
        self.answers += 1;
        let in_use = self.peak * 2 >= self.limit() || self.is_full_of_bytes();
        if self.answers >= self.limit() {
            (self.answers, self.peak) = (0, self.requests);
        }
        in_use
    }

    fn open(&mut self) {
        if self.aimd.exact() < SLOW_START {
            self.aimd.raise();
        } else {
            self.aimd.raise_by_round();
        }
    }
}

fn class(cost: u64) -> usize {
    let steps = (cost >> 16).checked_ilog2().map_or(0, |log| log as usize / 2 + 1);
    steps.min(CLASSES - 1)
}

/// Four times the size takes up to four times as long.
fn most_usual(class: usize) -> Duration {
    MOST_USUAL * 4u32.pow(u32::try_from(class).unwrap_or(0))
}

/// The time that answers of one class take.
#[derive(Debug, Clone, Copy, Default)]
struct Usual {
    /// The fastest of this memory and of the one before.
    fastest: [Option<Duration>; 2],
    since: Option<Instant>,
    /// Smoothed over some eight answers.
    smooth: Option<Duration>,
}

impl Usual {
    fn is_slow(&mut self, took: Duration, most: Duration, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= MEMORY {
            self.fastest = [None, self.fastest[0]];
            self.since = Some(now);
        }
        self.fastest[0] = Some(self.fastest[0].map_or(took, |fastest| fastest.min(took)));
        let smooth = self.smooth.map_or(took, |smooth| smooth * 7 / 8 + took / 8);
        self.smooth = Some(smooth);
        let fastest = self.fastest.iter().flatten().min().copied().unwrap_or(took);
        smooth > fastest.min(most) * 2 + SLACK
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    /// Sends and ends `n` requests one window at a time, each taking `took`.
    fn run(window: &mut Window, now: &mut Instant, n: usize, took: Duration, end: End) {
        let mut left = n;
        while left > 0 {
            let batch = window.limit().min(left);
            let at = *now;
            (0..batch).for_each(|_| window.begin(4_096));
            *now += took;
            (0..batch).for_each(|_| window.end(4_096, at, end, *now));
            left -= batch;
        }
    }

    #[test]
    fn overload_closes_the_window_to_one_and_answers_open_it_again() {
        let (mut window, mut now) = (Window::default(), Instant::now());
        run(&mut window, &mut now, 2_000, 5 * MS, End::Overload);
        assert_eq!(window.limit(), 1);
        assert!(window.has_room(), "one always goes");
        run(&mut window, &mut now, 15, 5 * MS, End::Done);
        assert_eq!(window.limit(), 16, "the first come fast");
        run(&mut window, &mut now, 5_000, 5 * MS, End::Done);
        assert!(window.limit() > 64, "{}", window.limit());
    }

    #[test]
    fn slow_answers_close_the_window_but_leave_a_group() {
        let (mut window, mut now) = (Window::default(), Instant::now());
        run(&mut window, &mut now, 200, 5 * MS, End::Done);
        let before = window.limit();
        run(&mut window, &mut now, 300, 60 * MS, End::Done);
        assert!(window.limit() < before * 2 / 3, "{} of {before}", window.limit());
        run(&mut window, &mut now, 3_000, 60 * MS, End::Done);
        assert_eq!(window.limit(), 16);
    }

    #[test]
    fn one_group_of_busy_answers_closes_the_window_once() {
        let (mut window, now) = (Window::default(), Instant::now());
        let first = window.limit();
        (0..first).for_each(|_| window.begin(1));
        (0..first).for_each(|_| window.end(1, now, End::Overload, now + MS));
        assert_eq!(window.limit(), first / 2);
    }

    #[test]
    fn a_window_that_is_not_used_does_not_open() {
        let (mut window, mut now) = (Window::default(), Instant::now());
        for _ in 0..10_000 {
            window.begin(1);
            now += MS;
            window.end(1, now, End::Done, now);
        }
        assert_eq!(window.limit(), Window::default().limit());
    }

    proptest! {
        #[test]
        fn the_limit_stays_between_one_and_its_ceiling_and_nothing_leaks(
            ends in proptest::collection::vec((0u8..3, 0u64..10_000, 1u64..100_000_000), 1..400)
        ) {
            let (mut window, mut now) = (Window::default(), Instant::now());
            for (end, took, cost) in ends {
                let at = now;
                window.begin(cost);
                now += Duration::from_millis(took);
                let end = [End::Done, End::Neutral, End::Overload][usize::from(end)];
                window.end(cost, at, end, now);
                prop_assert!(window.limit() >= 1 && window.aimd.exact() <= FORWARD_REQUESTS);
                prop_assert!(window.has_room() && !window.is_full_of_bytes());
            }
            prop_assert_eq!((window.requests(), window.bytes), (0, 0));
        }
    }
}
