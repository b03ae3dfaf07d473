//! What a noisy neighbour cost the others, as a table or JSON.

use super::noisy::Noise;
use super::quiet::{Phase, Round};
use serde::Serialize;
use std::fmt::Write as _;
use std::time::Duration;

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub shape: String,
    pub rounds: usize,
    pub seconds_a_phase: u64,
    /// Each tenant's, events a second.
    pub quota: u32,
    /// The noisy tenant's load over its quota.
    pub times: u32,
    pub tenants: Vec<Tenant>,
    /// All quiet tenants in one.
    pub all: Tenant,
    pub noisy: Rates,
    pub processes: Vec<Process>,
}

/// A quiet tenant; medians over the rounds.
#[derive(Debug, Serialize)]
pub struct Tenant {
    pub name: String,
    /// Requests that were acknowledged, over all rounds.
    pub requests: u64,
    pub alone_p50_ms: f64,
    pub alone_p99_ms: f64,
    pub together_p50_ms: f64,
    pub together_p99_ms: f64,
    /// p99 together over p99 alone.
    pub ratio: f64,
    /// Whatever was no acknowledgement, on both sides.
    pub over_quota: u64,
    pub refused: u64,
    pub other: u64,
}

/// The noisy tenant's events a second while it is beside the others.
#[derive(Debug, Serialize)]
pub struct Rates {
    pub offered: f64,
    pub accepted: f64,
    pub over_quota: f64,
    pub refused: f64,
    pub other: f64,
    /// What it sends elsewhere while it is away.
    pub offered_elsewhere: f64,
}

/// What part of a core a process used.
#[derive(Debug, Serialize)]
pub struct Process {
    pub name: String,
    pub alone: f64,
    pub together: f64,
}

impl Tenant {
    /// Of its rounds.
    #[must_use]
    pub fn of(name: String, rounds: &[Round]) -> Self {
        let of = |percent, side: fn(&Round) -> &Phase| {
            let figures = rounds
                .iter()
                .map(|round| side(round).latency.percentile_ms(percent));
            median(figures.map(Option::unwrap_or_default).collect())
        };
        let sum = |count: fn(&Phase) -> u64| -> u64 {
            let both = rounds.iter().flat_map(|round| [&round.alone, &round.together]);
            both.map(count).sum()
        };
        let (alone, together) = (of(99, |round| &round.alone), of(99, |round| &round.together));
        Self {
            name,
            requests: sum(|phase| phase.latency.count()),
            alone_p50_ms: of(50, |round| &round.alone),
            alone_p99_ms: alone,
            together_p50_ms: of(50, |round| &round.together),
            together_p99_ms: together,
            ratio: if alone > 0.0 { together / alone } else { f64::MAX },
            over_quota: sum(|phase| phase.over_quota),
            refused: sum(|phase| phase.refused),
            other: sum(|phase| phase.other),
        }
    }

    fn line(&self) -> String {
        format!(
            "{:<8} {:>8}  {:>8.1} {:>8.1}  {:>8.1} {:>8.1}  {:>6.2}  {:>5} {:>5} {:>6}\n",
            self.name,
            self.requests,
            self.alone_p50_ms,
            self.alone_p99_ms,
            self.together_p50_ms,
            self.together_p99_ms,
            self.ratio,
            self.over_quota,
            self.refused,
            self.other
        )
    }
}

impl Rates {
    /// Of what was counted over `time`, on each side.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub fn of(noise: &Noise, time: Duration) -> Self {
        let rate = |events: u64| events as f64 / time.as_secs_f64();
        Self {
            offered: rate(noise.offered),
            accepted: rate(noise.accepted),
            over_quota: rate(noise.over_quota),
            refused: rate(noise.refused),
            other: rate(noise.other),
            offered_elsewhere: rate(noise.offered_elsewhere),
        }
    }
}

impl Report {
    /// What is not as it must be: nothing of a quiet tenant is refused, and none is slower than `most` times.
    #[must_use]
    pub fn complaints(&self, most: f64) -> Vec<String> {
        let mut complaints = Vec::new();
        for one in self.tenants.iter() {
            if one.over_quota + one.refused + one.other > 0 {
                complaints.push(format!("{} was not always acknowledged", one.name));
            }
            if one.ratio > most {
                complaints.push(format!(
                    "{}: p99 {:.2} times as long, not {most}",
                    one.name, one.ratio
                ));
            }
        }
        // It must have been as noisy as was said, or nothing was shown.
        let meant = f64::from(self.quota) * f64::from(self.times);
        if self.noisy.offered < 0.9 * meant {
            complaints.push(format!(
                "the noisy tenant offered {:.0} events/s of {meant:.0}",
                self.noisy.offered
            ));
        }
        complaints
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{}: {} rounds of 2 x {} s; quotas {} events/s, the noisy one sends {} times that, the others half\n\n\
             {:<8} {:>8}  {:>17}  {:>17}  {:>6}  {:>5} {:>5} {:>6}\n{:<8} {:>8}  {:>8} {:>8}  {:>8} {:>8}  {:>6}\n",
            self.shape,
            self.rounds,
            self.seconds_a_phase,
            self.quota,
            self.times,
            "",
            "",
            "alone",
            "together",
            "p99",
            "",
            "",
            "no",
            "quiet",
            "requests",
            "p50 ms",
            "p99 ms",
            "p50 ms",
            "p99 ms",
            "ratio",
        );
        text.insert_str(
            text.len() - 1,
            &format!("  {:>5} {:>5} {:>6}", "429", "503", "answer"),
        );
        for tenant in self.tenants.iter().chain([&self.all]) {
            text += &tenant.line();
        }
        let noisy = &self.noisy;
        // Writing to a String cannot fail.
        writeln!(
            text,
            "\nnoisy, events/s: offered {:.0}, accepted {:.0} (its quota: {}), 429 {:.0}, 503 {:.0}, other {:.0}; elsewhere {:.0}",
            noisy.offered, noisy.accepted, self.quota, noisy.over_quota, noisy.refused, noisy.other, noisy.offered_elsewhere
        )
        .ok();
        for process in &self.processes {
            writeln!(
                text,
                "{:<20} {:>5.1} % of a core alone, {:>5.1} % together",
                process.name,
                process.alone * 100.0,
                process.together * 100.0
            )
            .ok();
        }
        text
    }
}

/// The middle one; zero of none.
#[must_use]
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len().saturating_sub(1) / 2;
    figures.get(middle).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(alone: u64, together: u64, refused: u64) -> Round {
        let mut round = Round::default();
        round.alone.latency.record(Duration::from_millis(alone));
        round.together.latency.record(Duration::from_millis(together));
        round.together.refused = refused;
        round
    }

    fn report(tenant: Tenant, offered: f64) -> Report {
        Report {
            shape: "all-in-one".to_owned(),
            rounds: 3,
            seconds_a_phase: 1,
            quota: 100,
            times: 50,
            all: Tenant::of("all".to_owned(), &[]),
            tenants: vec![tenant],
            noisy: Rates::of(
                &Noise {
                    offered: offered as u64,
                    ..Noise::default()
                },
                Duration::from_secs(1),
            ),
            processes: Vec::new(),
        }
    }

    #[test]
    fn a_tenant_s_figures_are_medians_and_one_bad_round_is_not_the_ratio() {
        let tenant = Tenant::of(
            "t1".to_owned(),
            &[round(10, 12, 0), round(10, 90, 0), round(10, 12, 0)],
        );
        assert!((1.1..1.3).contains(&tenant.ratio), "{tenant:?}");
        assert!(report(tenant, 5_000.0).complaints(1.5).is_empty());
    }

    #[test]
    fn a_slower_tenant_one_refusal_and_a_tame_neighbour_are_each_a_complaint() {
        let slower = Tenant::of("t1".to_owned(), &[round(10, 20, 0)]);
        assert_eq!(report(slower, 5_000.0).complaints(1.5).len(), 1);
        let refused = Tenant::of("t1".to_owned(), &[round(10, 10, 1)]);
        assert_eq!(report(refused, 5_000.0).complaints(1.5).len(), 1);
        let tame = Tenant::of("t1".to_owned(), &[round(10, 10, 0)]);
        assert_eq!(report(tame, 500.0).complaints(1.5).len(), 1);
    }
}
