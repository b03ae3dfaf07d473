//! What Sluice is held to, and whether it keeps it.

use super::measure::{HALF, Measured};
use crate::report::Report;
use indicatif::HumanCount;

/// `dedup.memory` of the config that is measured: the default.
const DEDUP_MEMORY_MIB: f64 = 256.0;
/// How much more may be held in the last third of a run with repeating events than in the second: what an allocator
/// keeps.
const FLAT: f64 = 1.1;

/// What stands in the way of goals, by how they begin: what is known of it, whatever a run found.
const LIMITS: [(&str, &str); 12] = [
    (
        "stored events/s, 1000",
        "every processor is in use, and ClickHouse has the larger part of it; where the goal was set, direct inserts of 10,000-event bodies reached 614,000 events/s, so look at the ratios",
    ),
    (
        "times direct inserts of 10,000",
        "a direct insert leaves its merges for after the load, where stored events/s does not count them (its CPU an event does); beside Sluice, which still drains its log, they are within the time",
    ),
    (
        "CPU an event, our services",
        "the normalizer (parse, hash, columns, encode, dedup) has three quarters of it; where the goal was set, direct inserts of 10,000-event bodies cost 2.9 µs an event",
    ),
    (
        "stored events/s, 10 events",
        "what a request costs whatever its size: allocations, Arrow columns made and dropped for a few rows, spans; they are gathered only after they were made",
    ),
    (
        "stored events/s, 1 event",
        "as with 10 events a request: what a request costs whatever its size",
    ),
    (
        "acknowledgement p",
        "the log's fdatasync waits behind what ClickHouse writes to the same disk, and the two for processors",
    ),
    (
        "freshness p95 at full load",
        "senders are held to what is drained once ranges wait for over 1 s for their turn; what came in until then, the first seconds of a run, waits longer",
    ),
    (
        "peak resident memory, three",
        "records between log, dedup and blocks, and what the allocator keeps for ten seconds",
    ),
    (
        "peak resident memory under",
        "bodies of 864 clients that are held while they wait in the edge's queue (`EDGE_BODY_BYTES` is 256 MiB, decoded), and the above",
    ),
    (
        "main load: most that waits",
        "what waits is kept to 0.8 s of what is drained, which moves with ClickHouse's merges",
    ),
    (
        "100 million live keys: stored",
        "each new key asks 18 filters, reads that no cache has at 117 MB of them, and buckets are merged",
    ),
    (
        "most memory in the last third",
        "what the allocator keeps for ten seconds moves with the load",
    ),
];

/// One goal.
#[derive(Debug, Clone, PartialEq)]
pub struct Goal {
    pub what: String,
    pub wanted: String,
    pub found: String,
    /// None: not measured by this command.
    pub met: Option<bool>,
}

impl Goal {
    /// What is known to stand in its way.
    pub fn limit(&self) -> Option<&'static str> {
        let of = LIMITS.iter().find(|(begins, _)| self.what.starts_with(begins));
        of.map(|(_, limit)| *limit)
    }

    fn new(what: &str, wanted: &str, found: String, met: bool) -> Self {
        Self {
            what: what.into(),
            wanted: wanted.into(),
            found,
            met: Some(met),
        }
    }

    fn open(what: &str, wanted: &str, why: &str) -> Self {
        Self {
            what: what.into(),
            wanted: wanted.into(),
            found: why.into(),
            met: None,
        }
    }
}

/// All of them, in the page's order.
#[must_use]
pub fn goals(of: &Measured) -> Vec<Goal> {
    let mut goals = throughput(of);
    goals.extend(cost(of));
    goals.extend(small(of));
    goals.extend(latency(of));
    goals.extend(memory(of));
    goals.extend(live_keys(of));
    goals.extend(starts(of));
    goals
}

/// As it is shown: what looks met is met.
fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn throughput(of: &Measured) -> Vec<Goal> {
    let (main, ours) = (&of.main, of.main.sluice.stored_per_second);
    let gathered = hundredths(ours / main.async_insert.stored_per_second);
    let mut goals = vec![
        Goal::new(
            "stored events/s, 1000 events a request, 16 connections",
            "≥ 600,000",
            thousands(ours),
            ours >= 600_000.0,
        ),
        Goal::new(
            "times direct async inserts of the same requests",
            "≥ 1.8",
            format!("{gathered:.2}"),
            gathered >= 1.8,
        ),
    ];
    if let Some(plain) = &main.plain_insert {
        let plainly = hundredths(ours / plain.stored_per_second);
        goals.push(Goal::new(
            "times direct inserts of 10,000-event bodies",
            "≥ 1",
            format!("{plainly:.2}"),
            plainly >= 1.0,
        ));
    }
    let (middle, last) = thirds(&main.sluice.backlog);
    goals.push(Goal::new(
        "main load: most that waits in the log in the last third, beside the second third",
        &format!("≤ {FLAT} times"),
        format!("{middle:.0} → {last:.0} MiB"),
        middle > 0.0 && last <= middle * FLAT,
    ));
    goals
}

fn cost(of: &Measured) -> Vec<Goal> {
    let ours = &of.main.sluice;
    let own = hundredths(ours.own_cpu());
    let mut goals = vec![Goal::new(
        "CPU an event, our services",
        "≤ 1.2 µs",
        format!("{own:.2} µs"),
        own <= 1.2,
    )];
    if let Some(plain) = &of.main.plain_insert {
        let (all, without) = (hundredths(ours.cpu()), hundredths(plain.cpu()));
        goals.push(Goal::new(
            "CPU an event, ClickHouse included, beside direct inserts of 10,000-event bodies",
            &format!("≤ {without:.2} µs"),
            format!("{all:.2} µs"),
            all <= without,
        ));
    }
    goals
}

fn small(of: &Measured) -> Vec<Goal> {
    let (tens, ones) = (of.tens.sluice.stored_per_second, of.ones.sluice.stored_per_second);
    vec![
        Goal::new(
            "stored events/s, 10 events a request, 64 connections",
            "≥ 250,000",
            thousands(tens),
            tens >= 250_000.0,
        ),
        Goal::new(
            "stored events/s, 1 event a request, 64 connections",
            "≥ 40,000",
            thousands(ones),
            ones >= 40_000.0,
        ),
        Goal::open(
            "OTLP logs, 1000 records a request, beside Rotel",
            "≥ 1.5 times",
            "Sluice does not take OTLP yet",
        ),
    ]
}

fn latency(of: &Measured) -> Vec<Goal> {
    let mut goals = Vec::new();
    if let Some(half) = of.rising.iter().find(|one| one.percent == HALF) {
        let half = &half.report;
        goals.push(at_most("acknowledgement p50 at half load", 5.0, half.ack_p50_ms));
        goals.push(at_most("acknowledgement p99 at half load", 20.0, half.ack_p99_ms));
        goals.push(freshness("half", 1_000.0, half));
    }
    goals.push(freshness("full", 3_000.0, &of.main.sluice));
    goals
}

fn freshness(load: &str, most_ms: f64, of: &Report) -> Goal {
    let what = format!("freshness p95 at {load} load, {} probes", of.probes);
    at_most(&what, most_ms, of.freshness_p95_ms)
}

fn at_most(what: &str, most_ms: f64, found_ms: Option<f64>) -> Goal {
    let found = found_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
    let is_met = found_ms.is_some_and(|ms| ms <= most_ms);
    Goal::new(what, &format!("≤ {most_ms} ms"), found, is_met)
}

fn memory(of: &Measured) -> Vec<Goal> {
    let peak: f64 = of.main.sluice.ours().map(|one| one.peak_rss_mib).sum();
    let most = 300.0 + DEDUP_MEMORY_MIB;
    let (middle, last) = thirds(&of.repeating.resident);
    vec![
        Goal::new(
            "peak resident memory, three services in one process, full load",
            &format!("≤ 300 MiB + `dedup.memory` ({DEDUP_MEMORY_MIB:.0} MiB)"),
            format!("{peak:.0} MiB"),
            peak <= most,
        ),
        Goal::new(
            "most memory in the last third of a run with repeating events, beside the second third",
            &format!("≤ {FLAT} times"),
            format!("{middle:.0} → {last:.0} MiB"),
            middle > 0.0 && last <= middle * FLAT,
        ),
        under_overload(of, most),
    ]
}

fn under_overload(of: &Measured, most: f64) -> Goal {
    let what = "peak resident memory under three times what can be taken, 864 clients";
    let wanted = format!("≤ {most:.0} MiB");
    match &of.storm {
        Some(storm) => {
            let peak: f64 = storm.memory.iter().map(|one| one.peak_mib).sum();
            let found = format!(
                "{peak:.0} MiB (limits: {:.0}); goodput {:.0} % of the peak",
                storm.memory_budget_mib,
                storm.goodput_of_peak * 100.0
            );
            Goal::new(what, &wanted, found, peak <= most)
        }
        None => Goal::open(what, &wanted, "not measured"),
    }
}

fn live_keys(of: &Measured) -> Vec<Goal> {
    let (Some(few), Some(many)) = (of.live.first(), of.live.last()) else {
        return Vec::new();
    };
    let share = many.stored_per_second / few.stored_per_second;
    let keys = format!("{} million live keys", many.millions);
    vec![
        Goal::new(
            &format!(
                "{keys}: stored events/s, beside those with {} million at first",
                few.millions
            ),
            "≥ 80 %",
            format!("{:.0} %", share * 100.0),
            share >= 0.8,
        ),
        Goal::new(
            &format!("{keys}: disk of each"),
            "≤ 40 B",
            format!("{:.1} B", many.disk_bytes),
            many.disk_bytes <= 40.0,
        ),
        Goal::new(
            &format!("{keys}: memory of each"),
            "≤ 1.5 B",
            format!("{:.2} B", many.memory_bytes),
            many.memory_bytes <= 1.5,
        ),
        Goal::new(
            &format!("{keys}, all sealed: start to ready"),
            "≤ 10 s",
            format!("{:.1} s", many.ready_s),
            many.ready_s <= 10.0,
        ),
    ]
}

/// The most that was held in the second third of a run, and in the last.
fn thirds(held: &[(f64, f64)]) -> (f64, f64) {
    let end = held.last().map_or(0.0, |(at, _)| *at);
    let most = |from: f64, to: f64| {
        let within = held.iter().filter(|(at, _)| (from..=to).contains(at));
        within.map(|(_, mib)| *mib).fold(0.0, f64::max)
    };
    (most(end / 3.0, end * 2.0 / 3.0), most(end * 2.0 / 3.0, end))
}

fn starts(of: &Measured) -> Vec<Goal> {
    let took = |report: &Report, name: &str| {
        let process = report.processes.iter().find(|one| one.name == name);
        process.and_then(|one| one.ready_ms)
    };
    vec![
        at_most(
            "start to ready, empty, the edge",
            100.0,
            took(&of.apart, "sluice-edge"),
        ),
        at_most(
            "start to ready, empty, all in one, without ClickHouse's own start",
            500.0,
            took(&of.main.sluice, "ingestctl"),
        ),
    ]
}

/// 1,234,567.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of events"
)]
pub fn thousands(value: f64) -> String {
    HumanCount(value.round() as u64).to_string()
}

#[cfg(test)]
pub mod tests {
    use super::super::machine::Machine;
    use super::super::measure::{Beside, Rising};
    use super::super::storm::Storm;
    use super::*;
    use crate::live_keys::LiveKeys;
    use crate::overload::Memory;
    use crate::report::Process;

    pub fn report(system: &str, rate: f64, cpu: f64) -> Report {
        let process = |name: &str, cpu_seconds_per_million| Process {
            name: name.into(),
            cpu_seconds_per_million,
            peak_rss_mib: 400.0,
            ready_ms: Some(90.0),
        };
        Report {
            system: system.into(),
            events_per_request: 1_000,
            connections: 16,
            events: 1_000_000,
            acknowledged_per_second: rate,
            stored_per_second: rate,
            processes: vec![
                process("ingestctl", cpu),
                process("sluice-edge", 0.0),
                process("clickhouse", 1.0),
                process("generator", 5.0),
            ],
            ack_p50_ms: Some(4.0),
            ack_p99_ms: Some(30.0),
            freshness_p50_ms: Some(400.0),
            freshness_p95_ms: Some(700.0),
            probes: 10,
            refused: 0,
            resident: vec![(1.0, 100.0), (5.0, 200.0), (9.0, 260.0)],
            backlog: vec![(1.0, 50.0), (5.0, 30.0), (9.0, 31.0)],
        }
    }

    fn live(millions: u64, stored_per_second: f64) -> LiveKeys {
        LiveKeys {
            millions,
            stored_per_second,
            cpu: 3.0,
            own_cpu: 1.5,
            disk_bytes: 25.5,
            memory_bytes: 1.6,
            ready_s: 4.0,
        }
    }

    pub fn measured() -> Measured {
        let beside = |rate, plain: Option<f64>| Beside {
            sluice: report("sluice", rate, 1.1),
            async_insert: report("async", 300_000.0, 3.0),
            plain_insert: plain.map(|rate| report("plain", rate, 2.0)),
        };
        Measured {
            machine: Machine {
                cpu: "a CPU".into(),
                cores: 2,
                memory_gib: 8.0,
                kernel: "6".into(),
                file_system: "ext4".into(),
                profile: "release".into(),
            },
            clickhouse: "26.7".into(),
            version: "0.1.0".into(),
            day: "2026-11-22".into(),
            seconds: 60,
            rounds: 3,
            main: beside(610_000.0, Some(615_000.0)),
            tens: beside(260_000.0, None),
            ones: beside(39_000.0, None),
            sizes: vec![beside(40_000.0, None), beside(600_000.0, None)],
            apart: report("apart", 500_000.0, 0.5),
            rising: vec![Rising {
                percent: 50,
                report: report("half", 300_000.0, 1.1),
            }],
            repeating: report("repeating", 300_000.0, 1.0),
            live: vec![live(1, 400_000.0), live(100, 332_000.0)],
            stages: vec![("parse".into(), 0.5), ("encode".into(), 0.2)],
            storm: Some(Storm {
                peak: 200_000.0,
                times: 3.0,
                goodput_of_peak: 0.95,
                memory: vec![Memory {
                    name: "ingestctl".into(),
                    peak_mib: 900.0,
                }],
                memory_budget_mib: 3_000.0,
            }),
        }
    }

    #[test]
    fn each_goal_is_told_with_its_figure_and_whether_it_is_met() {
        let goals = goals(&measured());
        let of = |word: &str| {
            let found = goals.iter().find(|goal| goal.what.contains(word));
            found.map(|goal| (goal.found.as_str(), goal.met)).expect(word)
        };
        assert_eq!(of("1000 events a request, 16"), ("610,000", Some(true)));
        assert_eq!(of("async"), ("2.03", Some(true)));
        assert_eq!(of("times direct inserts of 10,000"), ("0.99", Some(false)));
        assert_eq!(of("our services"), ("1.10 µs", Some(true)));
        assert_eq!(of("million live keys: stored"), ("83 %", Some(true)));
        assert_eq!(of("million live keys: memory"), ("1.60 B", Some(false)));
        assert_eq!(of("1 event a request"), ("39,000", Some(false)));
        assert_eq!(of("p50 at half"), ("4.0 ms", Some(true)));
        assert_eq!(of("p99 at half"), ("30.0 ms", Some(false)));
        assert_eq!(of("repeating"), ("200 → 260 MiB", Some(false)));
        assert_eq!(of("the edge"), ("90.0 ms", Some(true)));
        assert_eq!(of("waits in the log"), ("30 → 31 MiB", Some(true)));
        assert_eq!(
            of("three times"),
            ("900 MiB (limits: 3000); goodput 95 % of the peak", Some(false))
        );
        assert_eq!(of("OTLP").1, None);
        for (begins, _) in LIMITS {
            assert!(goals.iter().any(|goal| goal.what.starts_with(begins)), "{begins}");
        }
    }
}
