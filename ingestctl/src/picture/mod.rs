//! One picture of a running Sluice, made of what its admin listeners say: `status` prints it, `top`
//! draws it again and again.

pub mod collect;
pub mod scrape;
pub mod text;

use scrape::{Histogram, Scrape};
use serde::Serialize;
use std::collections::BTreeMap;

/// Backlog above this share of its limit needs attention: at all of it clients get 503.
const BACKLOG_ATTENTION: f64 = 0.8;
/// A backlog older than this needs attention: ClickHouse, or the way there, is slower than events come.
const AGE_ATTENTION_S: f64 = 60.0;

/// What one admin listener said.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceState {
    pub address: String,
    /// `edge`, `normalizer`, `sink-writer`: those that this process runs.
    pub roles: Vec<&'static str>,
    pub state: State,
    /// Why it is not ready, or not reached.
    pub reason: Option<String>,
    pub version: Option<String>,
    pub uptime_s: Option<f64>,
    pub memory_bytes: Option<f64>,
    /// Cores in use, on average since it started: the counter has whole seconds only.
    pub cpu: Option<f64>,
}

/// How one service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Ready,
    NotReady,
    Unreachable,
}

/// All that was read at one moment.
#[derive(Debug, Clone)]
pub struct Reading {
    pub at_ms: u64,
    pub services: Vec<(ServiceState, Scrape)>,
}

/// The picture: levels of now, and rates over an interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    pub at_ms: u64,
    /// What rates are over; 0 where there is only one reading.
    pub interval_s: f64,
    /// What an operator should look at, each a sentence. Empty: all is well.
    pub attention: Vec<String>,
    pub services: Vec<ServiceState>,
    pub flow: Flow,
    pub log: Level,
    pub log_age_s: f64,
    pub log_disk_bytes: f64,
    pub unsettled: bool,
    /// Shares of ranges that wait for their table or server.
    pub parked_units: f64,
    /// By how many events the books miss what was proven.
    pub imbalance_events: f64,
    /// ClickHouse servers that do not answer.
    pub silent_servers: Vec<String>,
    pub queues: Vec<Level>,
    pub dedup_keys: f64,
    pub dedup: Level,
    /// From an event's append to its being queryable.
    pub freshness: Quantiles,
    /// From a request's head to its 2xx.
    pub ack: Quantiles,
    pub tenants: Vec<Tenant>,
    pub shed: Vec<Count>,
    pub errors: Vec<Count>,
    pub dead_letters: Vec<Count>,
    pub alarms: Vec<Count>,
}

/// Events and inserts, a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Flow {
    pub requests: f64,
    pub accepted: f64,
    pub rejected: f64,
    pub bytes: f64,
    pub duplicates: f64,
    pub stored: f64,
    pub inserts: f64,
    pub inserted_rows: f64,
}

/// Bytes against their bound.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Level {
    pub name: String,
    pub bytes: f64,
    pub limit_bytes: f64,
}

impl Level {
    /// How much of the bound is used; 0 where there is none.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        if self.limit_bytes > 0.0 {
            self.bytes / self.limit_bytes
        } else {
            0.0
        }
    }
}

/// Two points of a distribution, in seconds, over the interval; nothing where nothing happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Quantiles {
    pub p50_s: Option<f64>,
    pub p95_s: Option<f64>,
}

/// What one tenant sends.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tenant {
    pub tenant: String,
    pub events_per_s: f64,
    pub bytes_per_s: f64,
    /// Since the edge started.
    pub accepted: f64,
    pub rejected: f64,
}

/// Something that is counted by kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Count {
    pub what: String,
    pub total: f64,
    pub per_s: f64,
}

impl Snapshot {
    /// The picture that `now` and an earlier reading give; without one all rates are 0.
    #[must_use]
    pub fn of(now: &Reading, before: Option<&Reading>) -> Self {
        // Counters of a listener that was silent then, or is now, would look like a burst.
        let before = before.filter(|before| reached(before) == reached(now));
        let interval_s = before.map_or(0.0, |before| {
            now.at_ms.saturating_sub(before.at_ms) as f64 / 1_000.0
        });
        let pair = Pair {
            now: joined(now),
            before: before.map(joined),
            interval_s,
        };
        let services = now.services.iter().map(|(state, _)| state.clone()).collect();
        let mut snapshot = pair.snapshot(now.at_ms, services);
        snapshot.attention = snapshot.wants();
        snapshot
    }

    /// Whether any listener answered.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.services.iter().any(|one| one.state != State::Unreachable)
    }

    fn wants(&self) -> Vec<String> {
        let mut found = Vec::new();
        for one in self.services.iter().filter(|one| one.state != State::Ready) {
            let reason = one.reason.as_deref().unwrap_or_default();
            found.push(match one.state {
                State::NotReady => format!("{} is {reason}", one.address),
                State::Unreachable | State::Ready => format!("{} does not answer: {reason}", one.address),
            });
        }
        if self.unsettled {
            found.push(
                "a declared range cannot be settled and is retried: the log line of the alarm says why"
                    .into(),
            );
        }
        if self.log.ratio() >= BACKLOG_ATTENTION {
            let percent = self.log.ratio() * 100.0;
            found.push(format!(
                "the log's backlog is at {percent:.0} % of log.max_bytes: at 100 % clients get 503"
            ));
        }
        if self.log_age_s > AGE_ATTENTION_S {
            let age = text::duration(self.log_age_s);
            found.push(format!(
                "the oldest event that is not yet stored is {age} old: look at ClickHouse"
            ));
        }
        if self.parked_units > 0.0 {
            found.push("rows are set aside and wait for their table: `ingestctl parked list`".into());
        }
        if self.imbalance_events > 0.0 {
            found.push(
                "the books do not balance: the log names the range, `ingestctl ledger` the minutes".into(),
            );
        }
        for server in &self.silent_servers {
            found.push(format!("ClickHouse {server} does not answer"));
        }
        found.extend(self.risen());
        found
    }

    /// What was counted during the interval and should not be.
    fn risen(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (counts, what) in [
            (&self.shed, "requests are shed"),
            (&self.alarms, "alarms are raised"),
        ] {
            let risen: Vec<&str> = counts
                .iter()
                .filter(|one| one.per_s > 0.0)
                .map(|one| one.what.as_str())
                .collect();
            if !risen.is_empty() {
                found.push(format!("{what}: {}", risen.join(", ")));
            }
        }
        found
    }
}

fn reached(reading: &Reading) -> Vec<&str> {
    let states = reading.services.iter().map(|(state, _)| state);
    let reached = states.filter(|one| one.state != State::Unreachable);
    reached.map(|one| one.address.as_str()).collect()
}

fn silent_servers(now: &Scrape) -> Vec<String> {
    let servers = now.by("sluice_clickhouse_up", "server").into_iter();
    servers
        .filter(|(_, up)| *up == 0.0)
        .map(|(server, _)| server)
        .collect()
}

fn joined(reading: &Reading) -> Scrape {
    let mut all = Scrape::default();
    for (_, scrape) in &reading.services {
        all.join(scrape.clone());
    }
    all
}

/// Two moments.
struct Pair {
    now: Scrape,
    before: Option<Scrape>,
    interval_s: f64,
}

impl Pair {
    fn snapshot(&self, at_ms: u64, services: Vec<ServiceState>) -> Snapshot {
        let now = &self.now;
        Snapshot {
            at_ms,
            interval_s: self.interval_s,
            attention: Vec::new(),
            services,
            flow: self.flow(),
            log: level(
                "log",
                now.sum("sluice_log_backlog_bytes", &[]),
                now.sum("sluice_log_backlog_limit_bytes", &[]),
            ),
            log_age_s: now.sum("sluice_log_backlog_age_seconds", &[]),
            log_disk_bytes: now.sum("sluice_log_disk_bytes", &[]),
            unsettled: now.sum("sluice_unsettled", &[]) > 0.0,
            parked_units: now.sum("sluice_parked_units", &[]),
            imbalance_events: now.sum("sluice_ledger_imbalance_events", &[]),
            silent_servers: silent_servers(now),
            queues: self.queues(),
            dedup_keys: now.sum("sluice_dedup_keys", &[]),
            dedup: level(
                "dedup",
                now.sum("sluice_dedup_disk_bytes", &[]),
                now.sum("sluice_dedup_limit_bytes", &[]),
            ),
            freshness: quantiles(&self.distribution("sluice_freshness_seconds")),
            ack: quantiles(&self.distribution("sluice_ack_duration_seconds")),
            tenants: self.tenants(),
            shed: self.counts(|one| one.by_both("sluice_shed_total", ("where", "reason"))),
            errors: self.counts(|one| one.by("sluice_clickhouse_errors_total", "class")),
            dead_letters: self.counts(|one| one.by("sluice_dead_letters_total", "reason")),
            alarms: self.counts(|one| one.by("sluice_alarms_total", "reason")),
        }
    }

    /// Counts a second; a counter that fell belongs to a process that began anew.
    fn rate(&self, now: f64, before: Option<f64>) -> f64 {
        match (&self.before, self.interval_s > 0.0) {
            (Some(_), true) => {
                let before = before.unwrap_or(0.0);
                let more = if now < before { now } else { now - before };
                more / self.interval_s
            }
            (Some(_) | None, _) => 0.0,
        }
    }

    fn rate_of(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let before = self.before.as_ref().map(|before| before.sum(name, labels));
        self.rate(self.now.sum(name, labels), before)
    }

    fn flow(&self) -> Flow {
        let events =
            |stage, outcome| self.rate_of("sluice_events_total", &[("stage", stage), ("outcome", outcome)]);
        Flow {
            requests: self.rate_of("sluice_http_requests_total", &[]),
            accepted: events("edge", "accepted"),
            rejected: events("edge", "rejected"),
            bytes: self.rate_of("sluice_bytes_total", &[("stage", "edge")]),
            duplicates: events("dedup", "duplicate"),
            stored: events("sink", "stored"),
            inserts: self.rate_of("sluice_insert_rows_count", &[]),
            inserted_rows: self.rate_of("sluice_insert_rows_sum", &[]),
        }
    }

    /// In the order of an event's way.
    fn queues(&self) -> Vec<Level> {
        let limits = self.now.by("sluice_queue_limit_bytes", "queue");
        let held = self.now.by("sluice_queue_bytes", "queue");
        let known = ["edge", "intake", "log", "sink"];
        let others = limits
            .keys()
            .map(String::as_str)
            .filter(|name| !known.contains(name));
        let names = known.into_iter().chain(others);
        names
            .filter_map(|name| {
                Some(level(
                    name,
                    held.get(name).copied().unwrap_or(0.0),
                    *limits.get(name)?,
                ))
            })
            .collect()
    }

    fn tenants(&self) -> Vec<Tenant> {
        let events = |one: &Scrape, outcome: &str| -> BTreeMap<String, f64> {
            let all = one.by("sluice_tenant_events_total", "tenant");
            let of = |tenant: &str| {
                one.sum(
                    "sluice_tenant_events_total",
                    &[("tenant", tenant), ("outcome", outcome)],
                )
            };
            all.into_keys()
                .map(|tenant| (tenant.clone(), of(&tenant)))
                .collect()
        };
        let bytes = self.counts(|one| one.by("sluice_tenant_bytes_total", "tenant"));
        let accepted = self.counts(|one| events(one, "accepted"));
        let rejected = self.counts(|one| events(one, "rejected"));
        let find = |list: &[Count], tenant: &str| list.iter().find(|one| one.what == tenant).cloned();
        let mut tenants: Vec<Tenant> = accepted
            .into_iter()
            .map(|one| Tenant {
                events_per_s: one.per_s + find(&rejected, &one.what).map_or(0.0, |rejected| rejected.per_s),
                bytes_per_s: find(&bytes, &one.what).map_or(0.0, |bytes| bytes.per_s),
                accepted: one.total,
                rejected: find(&rejected, &one.what).map_or(0.0, |rejected| rejected.total),
                tenant: one.what,
            })
            .collect();
        tenants.sort_by(|a, b| {
            b.events_per_s
                .total_cmp(&a.events_per_s)
                .then_with(|| a.tenant.cmp(&b.tenant))
        });
        tenants
    }

    fn counts(&self, read: impl Fn(&Scrape) -> BTreeMap<String, f64>) -> Vec<Count> {
        let before = self.before.as_ref().map(&read).unwrap_or_default();
        let counts = read(&self.now).into_iter().map(|(what, total)| Count {
            per_s: self.rate(total, before.get(&what).copied()),
            what,
            total,
        });
        counts.collect()
    }

    fn distribution(&self, name: &str) -> Histogram {
        let now = self.now.histogram(name);
        match &self.before {
            Some(before) => now.since(&before.histogram(name)),
            None => now,
        }
    }
}

fn level(name: &str, bytes: f64, limit_bytes: f64) -> Level {
    Level {
        name: name.to_owned(),
        bytes,
        limit_bytes,
    }
}

fn quantiles(of: &Histogram) -> Quantiles {
    Quantiles {
        p50_s: of.quantile(0.5),
        p95_s: of.quantile(0.95),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two scrapes of a real run under load, a second apart, as one process's.
    pub(crate) fn recorded() -> (Reading, Reading) {
        let reading = |text: &str, at_ms| Reading {
            at_ms,
            services: vec![collect::service(
                "http://127.0.0.1:9464",
                Ok((true, "ok".into(), text.into())),
                at_ms,
            )],
        };
        (
            reading(include_str!("recorded/before.txt"), 1_763_712_000_000),
            reading(include_str!("recorded/after.txt"), 1_763_712_001_000),
        )
    }

    #[test]
    fn rates_are_over_the_interval_and_a_restart_counts_from_zero() {
        let (before, after) = recorded();
        let picture = Snapshot::of(&after, Some(&before));
        assert_eq!(picture.services[0].roles, ["edge", "normalizer", "sink-writer"]);
        assert!(picture.flow.accepted > 1_000.0, "{:?}", picture.flow);
        assert!(picture.freshness.p95_s.is_some_and(|p95| p95 > 0.0 && p95 < 10.0));
        assert!(
            picture
                .tenants
                .windows(2)
                .all(|two| two[0].events_per_s >= two[1].events_per_s)
        );
        let restarted = Snapshot::of(&before, Some(&after));
        assert!(restarted.flow.accepted >= 0.0);
        assert_eq!(Snapshot::of(&after, None).flow, Flow::default());
    }

    #[test]
    fn what_needs_attention_is_told() {
        let text = "sluice_log_backlog_bytes{partition=\"0\"} 90\nsluice_log_backlog_limit_bytes 100\n\
                    sluice_log_backlog_age_seconds{partition=\"0\"} 120\nsluice_unsettled{partition=\"0\"} 1\n";
        let service = |answer| collect::service("http://a", answer, 0);
        let reading = Reading {
            at_ms: 0,
            services: vec![
                service(Ok((false, "not ready: the log is full".into(), text.into()))),
                collect::service("http://b", Err("connection refused".into()), 0),
            ],
        };
        let told = Snapshot::of(&reading, None).attention.join("\n");
        for part in [
            "the log is full",
            "http://b does not answer",
            "90 %",
            "2m 0s",
            "settled",
        ] {
            assert!(told.contains(part), "{part} in\n{told}");
        }
    }
}
