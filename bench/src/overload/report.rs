//! What an overload did, as a table or JSON.

use super::crowd::Tally;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub shape: String,
    pub events_per_request: usize,
    /// Events acknowledged a second, clients that send as soon as they are answered.
    pub peak: f64,
    pub seconds: u64,
    /// Over the peak: what was sent by clients that do not wait.
    pub times: f64,
    pub offered: f64,
    /// Events acknowledged a second under overload, all clients.
    pub goodput: f64,
    pub goodput_of_peak: f64,
    pub storming: Figures,
    pub waiting: Figures,
    /// At half the peak, right after the overload.
    pub after: Figures,
    /// Until nobody was refused any more.
    pub last_refusal_after_s: u64,
    /// From the overload's end until the backlog was no older than in peace, with half the peak coming in.
    pub drained_after_s: f64,
    /// From the end of all load until the log was empty.
    pub empty_after_s: f64,
    /// Highest backlog that was seen.
    pub backlog_mib: f64,
    pub memory: Vec<Memory>,
    pub memory_budget_mib: f64,
    /// Calls of the normalizer that were made again.
    pub retries: f64,
    pub acknowledged: u64,
    pub stored: u64,
    /// Sent, never acknowledged, and perhaps stored.
    pub open: u64,
    pub shed: Vec<Shed>,
}

/// One crowd in one phase.
#[derive(Debug, Serialize)]
pub struct Figures {
    #[serde(flatten)]
    pub tally: Tally,
    pub taken_p50_ms: Option<f64>,
    pub taken_p99_ms: Option<f64>,
    pub refused_p50_ms: Option<f64>,
    pub refused_p99_ms: Option<f64>,
}

impl From<Tally> for Figures {
    fn from(tally: Tally) -> Self {
        Self {
            taken_p50_ms: tally.taken.percentile_ms(50),
            taken_p99_ms: tally.taken.percentile_ms(99),
            refused_p50_ms: tally.refused.percentile_ms(50),
            refused_p99_ms: tally.refused.percentile_ms(99),
            tally,
        }
    }
}

/// One process's peak.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Memory {
    pub name: String,
    pub peak_mib: f64,
}

/// What was shed for one reason.
#[derive(Debug, Serialize)]
pub struct Shed {
    pub reason: String,
    pub requests: f64,
}

/// What a run is held to.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Least of what was to be offered.
    pub offered: f64,
    /// Least goodput, of the peak.
    pub goodput: f64,
    /// Seconds after the overload in which requests may still be refused.
    pub refusals: u64,
    /// Seconds after all load in which the log must be empty.
    pub drain: f64,
}

impl Report {
    /// What is not as it must be.
    #[must_use]
    pub fn complaints(&self, bounds: &Bounds) -> Vec<String> {
        let ours: f64 = self.memory.iter().map(|one| one.peak_mib).sum();
        let meant = self.peak * self.times;
        let unanswered: u64 = self.crowds().map(|(_, one)| one.tally.unanswered).sum();
        let mute: u64 = self.crowds().map(|(_, one)| one.tally.without_retry_after).sum();
        let others: u64 = self
            .crowds()
            .flat_map(|(_, one)| one.tally.answers.iter())
            .filter_map(|(status, count)| (![202, 503].contains(status)).then_some(count))
            .sum();
        let checks = [
            (
                self.offered >= bounds.offered * meant,
                format!("only {:.0} events/s of {meant:.0} were offered", self.offered),
            ),
            (
                self.goodput_of_peak >= bounds.goodput,
                format!(
                    "goodput is {:.2} of the peak, not {}",
                    self.goodput_of_peak, bounds.goodput
                ),
            ),
            (
                ours <= self.memory_budget_mib,
                format!(
                    "{ours:.0} MiB are over the budget of {:.0}",
                    self.memory_budget_mib
                ),
            ),
            (unanswered == 0, format!("{unanswered} requests had no answer")),
            (
                mute == 0,
                format!("{mute} refusals did not say when to come again"),
            ),
            (others == 0, format!("{others} answers were neither 202 nor 503")),
            (
                self.last_refusal_after_s <= bounds.refusals,
                format!(
                    "requests were refused until {} s after it",
                    self.last_refusal_after_s
                ),
            ),
            (
                self.empty_after_s <= bounds.drain,
                format!("the log was empty after {:.1} s", self.empty_after_s),
            ),
            (
                (self.acknowledged..=self.acknowledged + self.open).contains(&self.stored),
                format!(
                    "{} events were acknowledged and {} more may be stored; {} are",
                    self.acknowledged, self.open, self.stored
                ),
            ),
        ];
        checks
            .into_iter()
            .filter(|(holds, _)| !holds)
            .map(|(_, complaint)| complaint)
            .collect()
    }

    fn crowds(&self) -> impl Iterator<Item = (&'static str, &Figures)> {
        [
            ("storming", &self.storming),
            ("waiting", &self.waiting),
            ("after", &self.after),
        ]
        .into_iter()
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{}: {} events a request\n\n\
             {:<44}{:>12.0}\n{:<44}{:>12.0}  ({:.1} x the peak, {} s)\n{:<44}{:>12.0}  ({:.0} % of the peak)\n\n",
            self.shape,
            self.events_per_request,
            "peak, acknowledged events/s",
            self.peak,
            "offered by clients that do not wait",
            self.offered,
            self.offered / self.peak,
            self.seconds,
            "goodput, acknowledged events/s",
            self.goodput,
            self.goodput_of_peak * 100.0,
        );
        text += &format!(
            "{:<10} {:>9} {:>8} {:>8} {:>8} {:>6} {:>6} {:>9} {:>17} {:>17}\n",
            "clients",
            "attempts",
            "202",
            "503",
            "unknown",
            "no ans",
            "stale",
            "held back",
            "202 p50/p99 ms",
            "503 p50/p99 ms"
        );
        for (name, one) in self.crowds() {
            let tally = &one.tally;
            text += &format!(
                "{name:<10} {:>9} {:>8} {:>8} {:>8} {:>6} {:>6} {:>9} {:>17} {:>17}\n",
                tally.attempts,
                tally.of(202),
                tally.of(503),
                tally.unknown,
                tally.unanswered + tally.not_connected,
                tally.stale,
                tally.held_back,
                pair(one.taken_p50_ms, one.taken_p99_ms),
                pair(one.refused_p50_ms, one.refused_p99_ms),
            );
        }
        text.push('\n');
        for (name, value) in self.facts() {
            // Writing to a String cannot fail.
            writeln!(text, "{name:<52}{value:>14}").ok();
        }
        text
    }

    /// What is no figure of a crowd.
    fn facts(&self) -> Vec<(String, String)> {
        let mut facts = Vec::new();
        let mut line = |name: &str, value: String| facts.push((name.to_owned(), value));
        line(
            "last refusal, s after the overload",
            self.last_refusal_after_s.to_string(),
        );
        line(
            "backlog young again, s after it, at half the peak",
            format!("{:.1}", self.drained_after_s),
        );
        line(
            "log empty, s after the end of all load",
            format!("{:.1}", self.empty_after_s),
        );
        line("backlog at most, MiB", format!("{:.0}", self.backlog_mib));
        line(
            "calls to the sink-writer made again",
            format!("{:.0}", self.retries),
        );
        for one in &self.memory {
            line(&format!("{}: peak MiB", one.name), format!("{:.0}", one.peak_mib));
        }
        line("memory budget, MiB", format!("{:.0}", self.memory_budget_mib));
        line(
            "events acknowledged / stored / perhaps besides",
            format!("{} / {} / {}", self.acknowledged, self.stored, self.open),
        );
        for one in &self.shed {
            line(&format!("shed: {}", one.reason), format!("{:.0}", one.requests));
        }
        facts
    }
}

fn pair(a: Option<f64>, b: Option<f64>) -> String {
    match (a, b) {
        (Some(a), Some(b)) => format!("{a:.1} / {b:.1}"),
        (None | Some(_), _) => "-".to_owned(),
    }
}
