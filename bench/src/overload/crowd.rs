//! Clients that each send one request after the other, and what they were answered.
//!
//! A request that was not acknowledged is sent again, the same bytes: that is what clients are told to do, and it
//! keeps each client's acknowledged ids without gaps, so that counts are the ledger.

use crate::body::Body;
use crate::client::{Answer, Client, NoAnswer};
use crate::latency::Latency;
use bytes::Bytes;
use serde::Serialize;
use sluice_common::process::Failure;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How a client of the crowd goes on after a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    /// It waits as long as it was told to.
    Waits,
    /// It does not: it sends again when its next request is due.
    Storms,
}

/// How a crowd sends, for a while.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Requests a second of all its clients; none: each sends as soon as it is answered.
    pub rate: Option<f64>,
    pub until: Instant,
    /// What is sent before is not counted.
    pub from: Instant,
}

/// What a crowd's requests came to.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Tally {
    /// Requests that were sent, each as often as it was.
    pub attempts: u64,
    /// Events that were acknowledged.
    pub acknowledged: u64,
    /// Answers by status.
    pub answers: BTreeMap<u16, u64>,
    /// Of the 503, those that do not say that nothing was taken.
    pub unknown: u64,
    /// Refusals without `Retry-After`.
    pub without_retry_after: u64,
    /// No connection was to be had.
    pub not_connected: u64,
    /// A connection that had been used was gone when its next request came.
    pub stale: u64,
    /// A request was begun on a new connection, and no answer came.
    pub unanswered: u64,
    /// Moments at which something was due while the client still waited: what an open loop would have sent.
    pub held_back: u64,
    /// To a 202.
    #[serde(skip)]
    pub taken: Latency,
    /// To any other answer.
    #[serde(skip)]
    pub refused: Latency,
    /// Attempts, and refusals, by second since the begin.
    #[serde(skip)]
    pub seconds: Vec<(u64, u64)>,
}

impl Tally {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.acknowledged += other.acknowledged;
        for (status, count) in &other.answers {
            *self.answers.entry(*status).or_default() += count;
        }
        self.unknown += other.unknown;
        self.without_retry_after += other.without_retry_after;
        self.not_connected += other.not_connected;
        self.stale += other.stale;
        self.unanswered += other.unanswered;
        self.held_back += other.held_back;
        self.taken.merge(&other.taken);
        self.refused.merge(&other.refused);
        let longer = self.seconds.len().max(other.seconds.len());
        self.seconds.resize(longer, (0, 0));
        for (sum, second) in self.seconds.iter_mut().zip(&other.seconds) {
            *sum = (sum.0 + second.0, sum.1 + second.1);
        }
    }

    /// Answers of this status.
    #[must_use]
    pub fn of(&self, status: u16) -> u64 {
        self.answers.get(&status).copied().unwrap_or_default()
    }

    fn note(&mut self, answer: Result<&Answer, NoAnswer>, events: u64, took: Duration, second: usize) {
        self.attempts += 1;
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, (0, 0));
        }
        self.seconds[second].0 += 1;
        match answer {
            Ok(answer) => {
                *self.answers.entry(answer.status).or_default() += 1;
                if answer.is_acknowledged() {
                    self.acknowledged += events;
                    self.taken.record(took);
                    return;
                }
                self.seconds[second].1 += 1;
                self.refused.record(took);
                self.unknown += u64::from(answer.unknown);
                self.without_retry_after += u64::from(answer.retry_after.is_none());
            }
            Err(NoAnswer::Connect) => self.not_connected += 1,
            Err(NoAnswer::Stale) => self.stale += 1,
            Err(NoAnswer::Ended | NoAnswer::Late) => self.unanswered += 1,
        }
    }
}

/// One client.
#[derive(Debug)]
struct One {
    client: Client,
    body: Body,
    manners: Manners,
    /// Sent, and not acknowledged yet.
    open: Option<Bytes>,
    /// When it may come again.
    not_before: Option<Instant>,
    /// Events that were acknowledged, over all that it ever sent.
    acknowledged: u64,
    tally: Tally,
}

/// Clients of some tenants that behave alike. They live as long as it does, with their connections and bodies.
#[derive(Debug)]
pub struct Crowd(Vec<One>);

/// Whose clients, and what they send.
#[derive(Debug, Clone)]
pub struct Kind<'a> {
    pub address: &'a str,
    /// Keys of the tenants; clients are theirs in turn.
    pub keys: &'a [String],
    pub clients: u32,
    pub manners: Manners,
    pub events_per_request: usize,
    /// Tells the ids of this crowd from others'.
    pub run: u32,
    pub now_ms: u64,
}

impl Crowd {
    /// Clients of one kind.
    #[must_use]
    pub fn new(kind: &Kind<'_>) -> Self {
        let keys = kind.keys.iter().cycle();
        let clients = (0..kind.clients).zip(keys).map(|(number, key)| One {
            client: Client::new(kind.address, key),
            body: Body::render(kind.run, number, kind.events_per_request, kind.now_ms),
            manners: kind.manners,
            open: None,
            not_before: None,
            acknowledged: 0,
            tally: Tally::default(),
        });
        Self(clients.collect())
    }

    /// Sends at this pace, and waits for the last answers.
    ///
    /// # Errors
    /// Where a client panicked.
    pub async fn send(&mut self, pace: Pace) -> Result<Tally, Failure> {
        let clients = self.0.len();
        let begun = Instant::now();
        let tasks: Vec<_> = self
            .0
            .drain(..)
            .enumerate()
            .map(|(number, one)| tokio::task::spawn_local(one.run(pace, begun, number, clients)))
            .collect();
        let mut sum = Tally::default();
        for task in tasks {
            let mut one = task.await?;
            sum.add(&std::mem::take(&mut one.tally));
            self.0.push(one);
        }
        Ok(sum)
    }

    /// Events that were acknowledged, and that may be stored though they were not.
    #[must_use]
    pub fn stored(&self) -> (u64, u64) {
        let acknowledged = self.0.iter().map(|one| one.acknowledged).sum();
        let open = self.0.iter().filter(|one| one.open.is_some());
        (acknowledged, open.map(|one| one.body.events()).sum())
    }
}

impl One {
    async fn run(mut self, pace: Pace, begun: Instant, number: usize, clients: usize) -> Self {
        let between = pace
            .rate
            .map(|rate| Duration::from_secs_f64(clients as f64 / rate));
        // They take turns instead of all sending at once.
        let turn = between
            .unwrap_or_default()
            .mul_f64(number as f64 / clients as f64);
        let mut due = begun + turn;
        loop {
            let ready = self
                .not_before
                .take()
                .map_or(due, |not_before| due.max(not_before));
            if let Some(between) = between {
                while due + between <= ready {
                    due += between;
                    self.tally.held_back += u64::from(due >= pace.from);
                }
            }
            if ready.max(Instant::now()) >= pace.until {
                return self;
            }
            sleep_until(ready).await;
            self.send(pace.from, begun).await;
            due = between.map_or_else(Instant::now, |between| due + between);
        }
    }

    async fn send(&mut self, from: Instant, begun: Instant) {
        let body = self.open.take().unwrap_or_else(|| self.body.renew());
        let sent = Instant::now();
        let answer = self.client.post(body.clone()).await;
        let now = Instant::now();
        if sent >= from {
            let second = usize::try_from(sent.duration_since(begun).as_secs()).unwrap_or(0);
            self.tally.note(
                answer.as_ref().map_err(|no| *no),
                self.body.events(),
                now - sent,
                second,
            );
        }
        match answer {
            Ok(answer) if answer.is_acknowledged() => {
                self.acknowledged += self.body.events();
                self.body.give_back(body);
            }
            Ok(answer) => {
                let wait = answer.retry_after.filter(|_| self.manners == Manners::Waits);
                self.not_before = wait.map(|wait| now + wait);
                self.open = Some(body);
            }
            Err(_) => self.open = Some(body),
        }
    }
}
