//! What a run found, as a table or JSON.

use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// Processes that are not ours.
const OTHERS: [&str; 2] = ["clickhouse", "generator"];

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// What was measured.
    pub system: String,
    pub events_per_request: usize,
    pub connections: u32,
    /// Events acknowledged; all of them are in ClickHouse once, or the run fails.
    pub events: u64,
    pub acknowledged_per_second: f64,
    /// From the first request until the last row could be queried.
    pub stored_per_second: f64,
    /// User and system seconds per million events, merges included.
    pub processes: Vec<Process>,
    pub ack_p50_ms: Option<f64>,
    pub ack_p99_ms: Option<f64>,
    /// From the answer to the row being found; absent where the answer comes after that.
    pub freshness_p50_ms: Option<f64>,
    pub freshness_p95_ms: Option<f64>,
    pub probes: u64,
    /// Answers that were no acknowledgement; the generator sent the same again.
    pub refused: u64,
    /// Of our services in all, while events were sent: seconds since the beginning, MiB resident.
    pub resident: Vec<(f64, f64)>,
    /// Of Sluice's log, what was not in ClickHouse yet, in MiB, at those moments; none in what was measured before there
    /// was this.
    #[serde(default)]
    pub backlog: Vec<(f64, f64)>,
}

/// One process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    pub name: String,
    pub cpu_seconds_per_million: f64,
    pub peak_rss_mib: f64,
    /// From its start until it said that it is ready; of our services.
    pub ready_ms: Option<f64>,
}

impl Report {
    /// CPU seconds per million events of all but the generator.
    #[must_use]
    pub fn cpu(&self) -> f64 {
        let measured = self.processes.iter().filter(|one| one.name != "generator");
        measured.map(|one| one.cpu_seconds_per_million).sum()
    }

    /// The same of our services alone.
    #[must_use]
    pub fn own_cpu(&self) -> f64 {
        self.ours().map(|one| one.cpu_seconds_per_million).sum()
    }

    /// Our services.
    pub fn ours(&self) -> impl Iterator<Item = &Process> {
        self.processes
            .iter()
            .filter(|one| !OTHERS.contains(&one.name.as_str()))
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{}: {} events a request, {} connections\n",
            self.system, self.events_per_request, self.connections
        );
        let mut line = |name: &str, value: String| {
            // Writing to a String cannot fail.
            writeln!(text, "  {name:<34}{value:>12}").ok();
        };
        line("events, each stored once", self.events.to_string());
        line(
            "acknowledged events/s",
            format!("{:.0}", self.acknowledged_per_second),
        );
        line("stored events/s", format!("{:.0}", self.stored_per_second));
        line("ack p50 / p99, ms", pair(self.ack_p50_ms, self.ack_p99_ms));
        let of = match self.probes {
            0 => "Sluice's own".to_owned(),
            probes => format!("{probes} probes"),
        };
        line(
            &format!("freshness p50 / p95, ms ({of})"),
            pair(self.freshness_p50_ms, self.freshness_p95_ms),
        );
        line("refused, sent again", self.refused.to_string());
        for one in &self.processes {
            line(
                &format!("{}: CPU s/million", one.name),
                format!("{:.2}", one.cpu_seconds_per_million),
            );
            line(
                &format!("{}: peak MiB", one.name),
                format!("{:.0}", one.peak_rss_mib),
            );
        }
        line("CPU s/million without generator", format!("{:.2}", self.cpu()));
        text
    }
}

fn pair(a: Option<f64>, b: Option<f64>) -> String {
    match (a, b) {
        (Some(a), Some(b)) => format!("{a:.1} / {b:.1}"),
        (None | Some(_), _) => "-".to_owned(),
    }
}

/// The first report against each of the others, as a table.
#[must_use]
pub fn ratios(reports: &[Report]) -> String {
    let [ours, others @ ..] = reports else {
        return String::new();
    };
    let mut text = String::new();
    for other in others {
        let ack = ours.ack_p99_ms.unwrap_or_default() / other.ack_p99_ms.unwrap_or(f64::NAN);
        // Writing to a String cannot fail.
        writeln!(
            text,
            "{} against {}: {:.2} x stored events/s, {:.2} x CPU an event, {ack:.2} x ack p99",
            ours.system,
            other.system,
            ours.stored_per_second / other.stored_per_second,
            ours.cpu() / other.cpu(),
        )
        .ok();
    }
    text
}

/// The run in the middle by stored events per second.
#[must_use]
pub fn median(rounds: Vec<Report>) -> Option<Report> {
    middle(rounds, |round| round.stored_per_second)
}

/// The round in the middle by some figure; of an even number the lower one of the two.
#[must_use]
pub fn middle<T>(mut rounds: Vec<T>, by: impl Fn(&T) -> f64) -> Option<T> {
    rounds.sort_by(|a, b| by(a).total_cmp(&by(b)));
    let middle = rounds.len().checked_sub(1)? / 2;
    Some(rounds.swap_remove(middle))
}
