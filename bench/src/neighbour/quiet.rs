//! A quiet tenant: a steady pace within its quota, each answer measured from when its request was due.

use super::schedule::{Schedule, Side};
use crate::body::Body;
use crate::client::Client;
use crate::latency::Latency;
use std::time::Duration;
use tokio::time::sleep_until;

/// So that one slow answer does not hold up the next request.
pub const CONNECTIONS: u32 = 4;

/// What one connection of a tenant sends.
#[derive(Debug, Clone)]
pub struct Pace {
    pub address: String,
    pub key: String,
    pub events_per_request: usize,
    /// Between two requests of the tenant, over all its connections.
    pub between: Duration,
    /// The first one, after the begin.
    pub offset: Duration,
    pub now_ms: u64,
    pub schedule: Schedule,
}

/// One side of one round.
#[derive(Debug, Clone, Default)]
pub struct Phase {
    pub latency: Latency,
    /// 429.
    pub over_quota: u64,
    /// 503.
    pub refused: u64,
    /// Another answer, or none.
    pub other: u64,
}

impl Phase {
    /// Adds another connection's.
    pub fn merge(&mut self, other: &Self) {
        self.latency.merge(&other.latency);
        self.over_quota += other.over_quota;
        self.refused += other.refused;
        self.other += other.other;
    }
}

/// One round.
#[derive(Debug, Clone, Default)]
pub struct Round {
    pub alone: Phase,
    pub together: Phase,
}

impl Round {
    /// Adds another's.
    pub fn merge(&mut self, other: &Self) {
        self.alone.merge(&other.alone);
        self.together.merge(&other.together);
    }
}

impl Pace {
    /// Sends until the schedule is over; what became of it, by round. `number` tells this connection's events from
    /// all others' of this tenant.
    pub async fn run(self, number: u32) -> Vec<Round> {
        let mut body = Body::render(0, number, self.events_per_request, self.now_ms);
        let mut client = Client::new(&self.address, &self.key);
        let mut rounds = vec![Round::default(); self.schedule.rounds];
        let mut due = self.schedule.begun + self.offset;
        loop {
            sleep_until(due).await;
            // Counted where it was due, however late it is sent.
            let Some(moment) = self.schedule.at(due) else {
                return rounds;
            };
            let sent = body.renew();
            let answer = client.post(sent.clone()).await;
            body.give_back(sent);
            if moment.counts {
                let round = &mut rounds[moment.round];
                let phase = match moment.side {
                    Side::Alone => &mut round.alone,
                    Side::Together => &mut round.together,
                };
                match answer.map(|answer| answer.status) {
                    Ok(202) => phase.latency.record(due.elapsed()),
                    Ok(429) => phase.over_quota += 1,
                    Ok(503) => phase.refused += 1,
                    Ok(_) | Err(_) => phase.other += 1,
                }
            }
            due += self.between * CONNECTIONS;
        }
    }
}
