//! The page, and its plots.

use super::goals::{self, thousands};
use super::measure::{Beside, Measured};
use super::plot::{Bars, Line, Picture, Plot};
use crate::live_keys::LiveKeys;
use crate::report::{Process, Report};
use std::fmt::Write as _;

/// What others cost, in microseconds of CPU an event, ClickHouse included where nothing else is said; of a machine of two
/// cores too, but for what is published.
const PEERS: [(&str, f64); 4] = [
    ("Rotel, OTLP logs, in memory, no acknowledged durability", 6.7),
    (
        "Vector, http to ClickHouse, without acknowledgements: two cores at 120,000/s, the generator included",
        16.7,
    ),
    (
        "Vector with end-to-end acknowledgements: two cores at 79,000/s, the generator included",
        25.3,
    ),
    (
        "GlassFlow 3.2, as it publishes: 51,000/s of 1.5 KB on 11.6 cores, without ClickHouse",
        227.0,
    ),
];
/// The load that costs are told for.
const EVENTS_A_SECOND: f64 = 400_000.0;

/// The page in Markdown; plots are in `folder` beside it.
#[must_use]
pub fn text(of: &Measured, folder: &str) -> String {
    let mut text = head(of);
    text += &goals_table(of);
    text += &limits(of);
    text += &cores_table(of);
    text += &stages_table(&of.apart);
    text += "\n## Plots\n\nThe runs of the main load have a reader beside them that asks ClickHouse for its events 20 times a second, and is part of the cost; those of other sizes and before many keys have none.\n";
    for (name, picture) in pictures(of) {
        // Writing to a String cannot fail.
        write!(text, "\n![{}]({folder}/{name}.svg)\n", picture.title()).ok();
    }
    text
}

fn head(of: &Measured) -> String {
    let machine = &of.machine;
    format!(
        "# Performance\n\n\
         Written by `sluice-bench performance` (here with `--seconds {} --rounds {}`): do not edit, run it again. Generator, Sluice and ClickHouse share the machine; what \
         is compared took turns in rounds, of which the one in the middle by stored events is shown; three processes, rising load, repeated events and overload were one run each. Everything was on: validation, units, dedup (24 h), durable acknowledgement, exactly-once inserts, \
         provenance. Every acknowledged event was counted in ClickHouse, once, or the run would have failed. Absolute figures of two machines say little: compare within one run.\n\n\
         {}, {} cores, {:.0} GiB, Linux {}, {}; Sluice {} ({}), ClickHouse {}; {}.\n",
        of.seconds,
        of.rounds,
        machine.cpu,
        machine.cores,
        machine.memory_gib,
        machine.kernel,
        machine.file_system,
        of.version,
        machine.profile,
        of.clickhouse,
        of.day,
    )
}

fn goals_table(of: &Measured) -> String {
    let mut text = "\n## Goals\n\n| goal | wanted | found | |\n|---|---|---|---|\n".to_owned();
    for goal in goals::goals(of) {
        let met = match goal.met {
            Some(true) => "met",
            Some(false) => "**not met**",
            None => "open",
        };
        writeln!(
            text,
            "| {} | {} | {} | {met} |",
            goal.what, goal.wanted, goal.found
        )
        .ok();
    }
    text
}

/// What stands in the way of those that are not met.
fn limits(of: &Measured) -> String {
    let unmet = goals::goals(of)
        .into_iter()
        .filter(|goal| goal.met == Some(false));
    let line = |goal: goals::Goal| Some(format!("- **{}**: {}.\n", goal.what, goal.limit()?));
    let lines: String = unmet.filter_map(line).collect();
    if lines.is_empty() {
        return lines;
    }
    format!("\n### What stands in the way\n\n{lines}")
}

/// What a load costs, ours beside others.
fn cores_table(of: &Measured) -> String {
    let cores = |micros: f64| micros * EVENTS_A_SECOND / 1e6;
    let mut text = format!(
        "\n## Cores that {} events/s cost\n\nCPU of all but the generator, by the event, at the most that was taken: not each way takes as much on this machine.\n\n| way | CPU an event, µs | cores |\n|---|---|---|\n",
        thousands(EVENTS_A_SECOND)
    );
    let measured = [
        Some(&of.main.sluice),
        Some(&of.main.async_insert),
        of.main.plain_insert.as_ref(),
    ];
    for report in measured.into_iter().flatten() {
        let micros = report.cpu();
        writeln!(
            text,
            "| {}, {} events a request | {micros:.2} | {:.2} |",
            report.system,
            report.events_per_request,
            cores(micros)
        )
        .ok();
    }
    for (name, micros) in PEERS {
        writeln!(
            text,
            "| {name} (not measured here) | {micros:.2} | {:.2} |",
            cores(micros)
        )
        .ok();
    }
    text
}

/// Where the time goes: three processes, each with its own.
fn stages_table(apart: &Report) -> String {
    let mut text = "\n## Where the time goes\n\nThe main load through three processes, which also speak with each other.\n\n\
                    | process | CPU an event, µs | peak MiB |\n|---|---|---|\n"
        .to_owned();
    for one in &apart.processes {
        writeln!(
            text,
            "| {} | {:.2} | {:.0} |",
            one.name, one.cpu_seconds_per_million, one.peak_rss_mib
        )
        .ok();
    }
    text
}

/// Each with the name of its file.
#[must_use]
pub fn pictures(of: &Measured) -> Vec<(&'static str, Picture)> {
    let bars = [
        ("processes", processes(&of.apart)),
        ("stages", stages(&of.stages)),
    ];
    let lines = [
        ("throughput", throughput(&of.sizes)),
        ("cost", cost(&of.sizes)),
        ("acknowledgement", acknowledgement(of)),
        ("freshness", freshness(of)),
        ("memory", memory(of)),
        ("backlog", backlog(of)),
        ("live-keys", live_keys(of)),
    ];
    let bars = bars.map(|(name, bars)| (name, Picture::Bars(bars)));
    let lines = lines.map(|(name, plot)| (name, Picture::Lines(plot)));
    bars.into_iter().chain(lines).collect()
}

/// The main load through three processes.
fn processes(apart: &Report) -> Bars {
    let bar = |one: &Process| (one.name.clone(), one.cpu_seconds_per_million);
    Bars {
        title: "CPU an event by process, 1,000 events a request".into(),
        unit: "µs".into(),
        bars: apart.processes.iter().map(bar).collect(),
    }
}

fn stages(stages: &[(String, f64)]) -> Bars {
    Bars {
        title: "CPU an item by stage, each alone on one thread".into(),
        unit: "µs (quota: a request; the rest: an event or key)".into(),
        bars: stages.to_vec(),
    }
}

fn line(name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Line {
    Line {
        name: name.into(),
        points: points.into_iter().collect(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn size(report: &Report) -> f64 {
    report.events_per_request as f64
}

/// A value of each size, through each way.
fn by_size(sizes: &[Beside], value: impl Fn(&Report) -> f64) -> Vec<Line> {
    let point = |report: &Report| (size(report), value(report));
    vec![
        line("Sluice", sizes.iter().map(|one| point(&one.sluice))),
        line(
            "direct async inserts",
            sizes.iter().map(|one| point(&one.async_insert)),
        ),
    ]
}

fn throughput(sizes: &[Beside]) -> Plot {
    Plot {
        title: "Stored events a second, by events a request (16 connections)".into(),
        x: "events a request".into(),
        y: "stored events/s".into(),
        by_tens: true,
        lines: by_size(sizes, |report| report.stored_per_second),
    }
}

fn cost(sizes: &[Beside]) -> Plot {
    Plot {
        title: "CPU an event, ClickHouse included, by events a request".into(),
        x: "events a request".into(),
        y: "µs".into(),
        by_tens: true,
        lines: by_size(sizes, Report::cpu),
    }
}

/// A latency of a report, where it was seen.
type Latency = fn(&Report) -> Option<f64>;

/// Latencies at each share of the peak; what was not seen is left out.
fn rising(of: &Measured, title: &str, lines: [(&str, Latency); 2]) -> Plot {
    let latency = |(name, value): (&str, Latency)| {
        let points = of
            .rising
            .iter()
            .filter_map(|one| Some((f64::from(one.percent), value(&one.report)?)));
        line(name, points)
    };
    Plot {
        title: title.into(),
        x: "load, percent of the peak".into(),
        y: "ms".into(),
        by_tens: false,
        lines: lines.map(latency).into(),
    }
}

fn acknowledgement(of: &Measured) -> Plot {
    let title = "Acknowledgement under rising load";
    rising(
        of,
        title,
        [("p50", |one| one.ack_p50_ms), ("p99", |one| one.ack_p99_ms)],
    )
}

fn freshness(of: &Measured) -> Plot {
    let title = "From acknowledgement to query under rising load";
    rising(
        of,
        title,
        [
            ("p50", |one| one.freshness_p50_ms),
            ("p95", |one| one.freshness_p95_ms),
        ],
    )
}

fn memory(of: &Measured) -> Plot {
    Plot {
        title: "Resident memory of Sluice over time".into(),
        x: "seconds".into(),
        y: "MiB".into(),
        by_tens: false,
        lines: vec![
            line(
                "full load, distinct events",
                of.main.sluice.resident.iter().copied(),
            ),
            line(
                "half load, the same events again and again",
                of.repeating.resident.iter().copied(),
            ),
        ],
    }
}

fn backlog(of: &Measured) -> Plot {
    Plot {
        title: "What is in the log and not in ClickHouse yet, main load".into(),
        x: "seconds".into(),
        y: "MiB".into(),
        by_tens: false,
        lines: vec![line("Sluice", of.main.sluice.backlog.iter().copied())],
    }
}

fn live_keys(of: &Measured) -> Plot {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let points =
        |value: fn(&LiveKeys) -> f64| of.live.iter().map(move |one| (one.millions as f64, value(one)));
    Plot {
        title: "CPU an event of the main load, by keys that dedup knows".into(),
        x: "millions of live keys".into(),
        y: "µs".into(),
        by_tens: false,
        lines: vec![
            line("with ClickHouse", points(|one| one.cpu)),
            line("Sluice", points(|one| one.own_cpu)),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::super::goals::tests::measured;
    use super::*;

    #[test]
    fn the_page_tells_goals_costs_the_machine_and_every_plot() {
        let measured = measured();
        let page = text(&measured, "performance");
        for words in [
            "a CPU, 2 cores",
            "| stored events/s, 1000 events a request, 16 connections | ≥ 600,000 | 610,000 | met |",
            "| **not met** |",
            "Cores that 400,000 events/s cost",
            "| clickhouse | 1.00 |",
        ] {
            assert!(page.contains(words), "{words}\n{page}");
        }
        for (name, picture) in pictures(&measured) {
            assert!(page.contains(&format!("(performance/{name}.svg)")), "{name}");
            assert!(picture.svg().expect("drawn").contains("<svg"), "{name}");
        }
    }
}
