//! What befalls a run by chance: drawn from its seed.

use super::World;
use crate::sim::sink::Luck;
use crate::sim::time::sleep;
use rand::Rng as _;
use sluice_common::ids::Name;
use std::time::Duration;

impl World {
    pub(super) async fn let_time_pass(&self) {
        let wait = {
            let random = &mut self.inner.lock().random;
            match random.random_range(0..10) {
                0 => random.random_range(5_000..30_000),
                1..=4 => random.random_range(300..3_000),
                _ => random.random_range(0..300),
            }
        };
        sleep(Duration::from_millis(wait)).await;
    }

    pub(super) fn break_something(&self) {
        let now = self.now();
        let mut inner = self.inner.lock();
        let (trouble, random) = (self.trouble, &mut inner.random);
        if random.random_bool(0.1 * trouble) {
            let down = Duration::from_millis(random.random_range(10..60_000));
            let mut servers = self.servers.lock();
            let place = random.random_range(0..servers.len());
            servers[place].stop(now, now + down);
        }
        if random.random_bool(0.1 * trouble) {
            let table = ["a", "b", "c", "ledger", "dead_letters"][random.random_range(0..5)];
            let until = now + Duration::from_secs(random.random_range(1..120));
            let code = [60, 16, 241, 252][random.random_range(0..4)];
            inner.broken.insert(Name::new(table).unwrap(), (until, code));
        }
    }

    pub(super) fn heal(&self) {
        let mut inner = self.inner.lock();
        inner.healed = true;
        inner.broken.clear();
        let now = self.now();
        for server in self.servers.lock().iter_mut().filter(|server| !server.is_up(now)) {
            server.stop(now, now);
        }
    }

    pub(super) fn chance_of(&self, part: f64) -> bool {
        self.inner.lock().random.random_bool(part)
    }

    /// Whether something fails that fails so often in a storm.
    pub fn chance(&self, part: f64) -> bool {
        let mut inner = self.inner.lock();
        let trouble = if inner.healed { 0.0 } else { self.trouble };
        inner.random.random_bool(part * trouble)
    }

    pub async fn travel(&self) {
        let wait = self.inner.lock().random.random_range(1..40);
        sleep(Duration::from_millis(wait)).await;
    }

    pub fn fate(&self, table: &Name) -> Luck {
        let now = self.now();
        let mut inner = self.inner.lock();
        if inner.healed {
            return Luck::Good;
        }
        if let Some((_, code)) = inner.broken.get(table).filter(|(until, _)| now < *until) {
            return Luck::Refused(*code);
        }
        if !inner.random.random_bool(0.5 * self.trouble) {
            return Luck::Good;
        }
        match inner.random.random_range(0..12) {
            0 | 1 => Luck::NoAnswer,
            2 | 3 => Luck::Lost,
            4 => Luck::Refused(252),
            5 => Luck::Refused(241),
            6 => Luck::Poisoned {
                down: Duration::from_millis(inner.random.random_range(1..10_000)),
            },
            7 | 8 => Luck::Held {
                until: Duration::from_millis(inner.random.random_range(1..200_000)),
                works: inner.random.random(),
            },
            9 => Luck::StoredAndRefused(6),
            _ => Luck::Good,
        }
    }
}
