//! What `top` shows: the last picture, a little history, and what keys have chosen.

use crate::picture::{Snapshot, Tenant};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::collections::VecDeque;

/// Seconds of history that are kept: more than a screen is wide.
const HISTORY: usize = 512;

/// What tenants are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    Events,
    Bytes,
    Rejected,
    Name,
}

impl Sort {
    /// The title of the column.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Events => "events/s",
            Self::Bytes => "bytes/s",
            Self::Rejected => "rejected",
            Self::Name => "tenant",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Events => Self::Bytes,
            Self::Bytes => Self::Rejected,
            Self::Rejected => Self::Name,
            Self::Name => Self::Events,
        }
    }
}

/// The state of the screen.
#[derive(Debug)]
pub struct View {
    addresses: String,
    picture: Option<Snapshot>,
    freshness_ms: VecDeque<Option<u64>>,
    accepted: VecDeque<Option<u64>>,
    pub sort: Sort,
    pub paused: bool,
}

impl View {
    /// Nothing was read yet.
    #[must_use]
    pub fn new(addresses: &[String]) -> Self {
        Self {
            addresses: addresses.join(", "),
            picture: None,
            freshness_ms: VecDeque::new(),
            accepted: VecDeque::new(),
            sort: Sort::Events,
            paused: false,
        }
    }

    /// Takes a new picture, unless the screen is held.
    pub fn show(&mut self, picture: Snapshot) {
        if self.paused {
            return;
        }
        if picture.interval_s > 0.0 {
            // Times and rates of a screen: far below what u64 holds.
            let ms = picture.freshness.p95_s.map(|seconds| (seconds * 1_000.0) as u64);
            remember(&mut self.freshness_ms, ms);
            remember(&mut self.accepted, Some(picture.flow.accepted as u64));
        }
        self.picture = Some(picture);
    }

    /// The last picture.
    #[must_use]
    pub fn picture(&self) -> Option<&Snapshot> {
        self.picture.as_ref()
    }

    /// Where it is read.
    #[must_use]
    pub fn addresses(&self) -> &str {
        &self.addresses
    }

    /// The last `width` seconds of the freshness' 95th percentile in ms; nothing where nothing was stored.
    #[must_use]
    pub fn freshness_ms(&self, width: usize) -> Vec<Option<u64>> {
        last(&self.freshness_ms, width)
    }

    /// The last `width` seconds of events taken.
    #[must_use]
    pub fn accepted(&self, width: usize) -> Vec<Option<u64>> {
        last(&self.accepted, width)
    }

    /// The tenants as they are to be listed.
    #[must_use]
    pub fn tenants(&self) -> Vec<&Tenant> {
        let mut tenants: Vec<&Tenant> = self.picture.iter().flat_map(|picture| &picture.tenants).collect();
        // They come by rate, and the sort is stable.
        match self.sort {
            Sort::Events => {}
            Sort::Bytes => tenants.sort_by(|a, b| b.bytes_per_s.total_cmp(&a.bytes_per_s)),
            Sort::Rejected => tenants.sort_by(|a, b| b.rejected.total_cmp(&a.rejected)),
            Sort::Name => tenants.sort_by(|a, b| a.tenant.cmp(&b.tenant)),
        }
        tenants
    }

    /// Takes a key; whether it ends the picture.
    #[must_use]
    pub fn key(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let KeyCode::Char(letter) = key.code else {
            return key.code == KeyCode::Esc;
        };
        match letter {
            'q' => return true,
            'c' if control => return true,
            's' => self.sort = self.sort.next(),
            'p' | ' ' => self.paused = !self.paused,
            _ => {}
        }
        false
    }
}

fn remember(history: &mut VecDeque<Option<u64>>, value: Option<u64>) {
    if history.len() == HISTORY {
        history.pop_front();
    }
    history.push_back(value);
}

fn last(history: &VecDeque<Option<u64>>, width: usize) -> Vec<Option<u64>> {
    let skipped = history.len().saturating_sub(width);
    history.iter().skip(skipped).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::tests::recorded;

    #[test]
    fn keys_sort_hold_and_end() {
        let (before, after) = recorded();
        let mut view = View::new(&[]);
        view.show(Snapshot::of(&after, Some(&before)));
        let press =
            |view: &mut View, letter| view.key(KeyEvent::new(KeyCode::Char(letter), KeyModifiers::NONE));
        for sort in [Sort::Bytes, Sort::Rejected, Sort::Name, Sort::Events] {
            assert!(!press(&mut view, 's'));
            assert_eq!(view.sort, sort);
        }
        assert!(!press(&mut view, 'p'));
        view.show(Snapshot::of(&before, None));
        assert_eq!(
            view.picture().map(|picture| picture.at_ms),
            Some(after.at_ms),
            "held"
        );
        assert!(press(&mut view, 'q'));
        assert!(view.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    }
}
