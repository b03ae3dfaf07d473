//! Writers that behave as clients do: several at once, repeating, overlapping, giving up, hanging up.

use super::ledger::Ledger;
use super::request::{self, Batch, Outcome};
use crate::{Client, Deployment};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Between two attempts of one request, in ms.
const RETRY_MS: std::ops::Range<u64> = 10..200;
/// Attempts of one request; after them it is given up.
const MAX_ATTEMPTS: usize = 40;
/// A client that waits no longer than this hangs up in the middle of it, in ms.
const HASTY_MS: std::ops::Range<u64> = 1..25;
/// A client's own deadline.
const PATIENCE: Duration = Duration::from_secs(10);

/// The way of a retry that brings the same request or its events back.
const GIVES_UP: f64 = 0.1;
const REPEATS_AFTER_ACK: f64 = 0.05;
const SENDS_TWICE_AT_ONCE: f64 = 0.05;
const OVERLAPS: f64 = 0.15;
const HAS_A_TWIN: f64 = 0.1;
const IS_HASTY: f64 = 0.04;

/// How much is sent.
#[derive(Debug, Clone)]
pub struct Style {
    pub writers: u64,
    /// Events of the largest request.
    pub max_events: usize,
    /// Between two requests of one writer, in ms.
    pub pause_ms: std::ops::Range<u64>,
    /// Of [`request::DATASETS`], how many there are.
    pub datasets: usize,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            writers: 4,
            max_events: 500,
            pause_ms: 5..40,
            datasets: 1,
        }
    }
}

/// Writers at work.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts writers of all tenants; each draws from a generator of its own.
    #[must_use]
    pub fn start(deployment: &Deployment, ledger: &Arc<Ledger>, seed: u64, style: &Style) -> Self {
        let (stop, stopped) = watch::channel(false);
        let clients: Vec<Client> = (0..deployment.tenants.len())
            .map(|n| deployment.tenant(n))
            .collect();
        let writers = (0..style.writers).map(|n| {
            let writer = Writer {
                style: style.clone(),
                ledger: Arc::clone(ledger),
                clients: clients.clone(),
                rng: StdRng::seed_from_u64(seed.wrapping_add(n)),
                stopped: stopped.clone(),
                before: Vec::new(),
            };
            tokio::spawn(writer.run())
        });
        Self {
            stop,
            writers: writers.collect(),
        }
    }

    /// Stops them; returns when each has its last answer.
    ///
    /// # Panics
    /// Where one panicked.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for writer in self.writers {
            writer.await.expect("no writer panics");
        }
    }
}

struct Writer {
    style: Style,
    ledger: Arc<Ledger>,
    clients: Vec<Client>,
    rng: StdRng,
    stopped: watch::Receiver<bool>,
    /// The events of the request before this one.
    before: Vec<u64>,
}

impl Writer {
    async fn run(mut self) {
        while !*self.stopped.borrow() {
            let batch = self.draw();
            self.deliver(&batch).await;
            if self.rng.random_bool(HAS_A_TWIN) {
                // The same ids under another tenant are other events.
                let tenant = (batch.tenant + 1) % self.clients.len();
                let twin = Batch::new(tenant, batch.events.clone(), &mut self.rng);
                self.deliver(&twin).await;
            }
            self.before = batch.events;
            self.pause(self.style.pause_ms.clone()).await;
        }
    }

    fn draw(&mut self) -> Batch {
        // Small requests are as common as large ones: 1 to the most by powers.
        let most = self.style.max_events;
        let power = self.rng.random_range(0.0..(most as f64).ln());
        let count = (power.exp() as usize).clamp(1, most);
        let dataset = self.rng.random_range(0..self.style.datasets);
        let mut events = request::of_dataset(dataset, self.ledger.new_events(count));
        let before = self.before.first().map(|event| request::dataset_of(*event));
        if before == Some(dataset) && request::has_key(dataset) && self.rng.random_bool(OVERLAPS) {
            let again = self.before.iter().copied().filter(|_| self.rng.random_bool(0.3));
            events.extend(again.collect::<Vec<_>>());
        }
        let tenant = self.rng.random_range(0..self.clients.len());
        Batch::new(tenant, events, &mut self.rng)
    }

    /// Sends a request until it is acknowledged or given up.
    async fn deliver(&mut self, batch: &Batch) {
        for _ in 0..MAX_ATTEMPTS {
            let outcome = if self.rng.random_bool(SENDS_TWICE_AT_ONCE) {
                tokio::join!(self.attempt(batch, PATIENCE), self.attempt(batch, PATIENCE)).0
            } else {
                let deadline = self.deadline();
                self.attempt(batch, deadline).await
            };
            match outcome {
                Outcome::Acked => {
                    if !self.rng.random_bool(REPEATS_AFTER_ACK) {
                        return;
                    }
                }
                Outcome::Refused | Outcome::Unknown => {
                    if *self.stopped.borrow() || self.rng.random_bool(GIVES_UP) {
                        return;
                    }
                    self.pause(RETRY_MS).await;
                }
            }
        }
    }

    fn deadline(&mut self) -> Duration {
        if self.rng.random_bool(IS_HASTY) {
            Duration::from_millis(self.rng.random_range(HASTY_MS))
        } else {
            PATIENCE
        }
    }

    async fn attempt(&self, batch: &Batch, deadline: Duration) -> Outcome {
        let client = self.clients[batch.tenant].clone().with_timeout(deadline);
        let (outcome, wait) = request::attempt(&client, &self.ledger, batch).await;
        if !wait.is_zero() {
            // Over its quota: comes again when it is told to, or is stopped before.
            let mut stopped = self.stopped.clone();
            tokio::time::timeout(wait, stopped.changed()).await.ok();
        }
        outcome
    }

    /// Waits a random while, or until it is stopped.
    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        let pause = Duration::from_millis(self.rng.random_range(ms));
        // Whichever comes first is fine.
        tokio::time::timeout(pause, self.stopped.changed()).await.ok();
    }
}
