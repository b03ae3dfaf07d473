//! Reading all admin listeners at one moment.

use super::scrape::Scrape;
use super::{Reading, ServiceState, State};
use crate::remote::{Remote, RemoteError};
use sluice_common::clock::Clock;

/// Whether it is ready, what `/readyz` says, and the text of `/metrics`; or why there is none.
pub type Answer = Result<(bool, String, String), String>;

/// Asks every listener once. One that does not answer is part of the picture, not an error.
pub async fn read(remote: &Remote, clock: &dyn Clock) -> Reading {
    let mut services = Vec::with_capacity(remote.addresses().len());
    for address in remote.addresses() {
        let answer = ask(remote, address).await.map_err(|error| match error {
            RemoteError::Unreachable { reason, .. } | RemoteError::NotSluice { reason, .. } => reason,
            RemoteError::Refused { detail, .. } => detail,
        });
        services.push(service(address, answer, clock.now_ms()));
    }
    Reading {
        at_ms: clock.now_ms(),
        services,
    }
}

async fn ask(remote: &Remote, address: &str) -> Result<(bool, String, String), RemoteError> {
    let (ready, why) = remote.text(address, "/readyz").await?;
    let (status, metrics) = remote.text(address, "/metrics").await?;
    if !status.is_success() || !metrics.contains("sluice_build_info") {
        return Err(RemoteError::NotSluice {
            address: address.to_owned(),
            reason: "it is not Sluice's admin listener".into(),
        });
    }
    Ok((ready.is_success(), why.trim().to_owned(), metrics))
}

/// One listener's answer as part of a reading at `now_ms`.
#[must_use]
pub fn service(address: &str, answer: Answer, now_ms: u64) -> (ServiceState, Scrape) {
    let (ready, why, metrics) = match answer {
        Ok(answer) => answer,
        Err(reason) => return (unreachable(address, reason), Scrape::default()),
    };
    let scrape = Scrape::parse(&metrics);
    let started = scrape.get("process_start_time_seconds", &[]);
    let uptime_s = started.map(|started| (now_ms as f64 / 1_000.0 - started).max(0.0));
    let used = scrape.get("process_cpu_seconds_total", &[]);
    let state = ServiceState {
        address: address.to_owned(),
        roles: roles(&scrape),
        state: if ready { State::Ready } else { State::NotReady },
        reason: (!ready).then_some(why),
        version: scrape.by("sluice_build_info", "version").into_keys().next(),
        uptime_s,
        memory_bytes: scrape.get("process_resident_memory_bytes", &[]),
        cpu: used.zip(uptime_s).map(|(used, uptime)| used / uptime.max(1.0)),
    };
    (state, scrape)
}

fn unreachable(address: &str, reason: String) -> ServiceState {
    ServiceState {
        address: address.to_owned(),
        roles: Vec::new(),
        state: State::Unreachable,
        reason: Some(reason),
        version: None,
        uptime_s: None,
        memory_bytes: None,
        cpu: None,
    }
}

/// A process is what its queues are.
fn roles(scrape: &Scrape) -> Vec<&'static str> {
    let marks = [
        ("edge", "edge"),
        ("intake", "normalizer"),
        ("sink", "sink-writer"),
    ];
    let is_there = |queue: &str| {
        scrape
            .get("sluice_queue_limit_bytes", &[("queue", queue)])
            .is_some()
    };
    marks
        .into_iter()
        .filter(|(queue, _)| is_there(queue))
        .map(|(_, role)| role)
        .collect()
}
