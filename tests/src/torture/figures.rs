//! What was done to Sluice and what it did: figures of one round, and of all.

use crate::oracle::verdict::{Tally, Verdict};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Of one round or more.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    pub rounds: u64,
    /// SIGKILLs by part.
    pub kills: BTreeMap<String, u64>,
    /// Of those, kills of processes that had just been started after one.
    pub recoveries: u64,
    pub stops: u64,
    pub restarts: u64,
    pub network: u64,
    /// Tables taken away and brought back.
    pub tables: u64,
    /// Volumes filled and freed, by whose they are.
    pub full: BTreeMap<String, u64>,
    /// Rows that ClickHouse refused: dead letters.
    pub letters: u64,
    /// Those that were tried again and are rows.
    pub retried: u64,
    /// Rounds with two edges and two sink-writers.
    pub twins: u64,
    /// From a restart to the first acknowledged event.
    pub slowest_ready: Duration,
    /// Parts that took longer than they may.
    pub late: Vec<String>,
    pub tally: Tally,
    /// Highest resident memory of any process of ours.
    pub peak_mib: u64,
}

impl Figures {
    /// A round is over.
    pub fn end(&mut self, verdict: &Verdict, peak_mib: u64) {
        self.rounds = 1;
        self.tally = verdict.total();
        self.peak_mib = peak_mib;
    }

    /// SIGKILLs of all parts.
    #[must_use]
    pub fn killed(&self) -> u64 {
        self.kills.values().sum()
    }

    /// Adds a round's.
    pub fn add(&mut self, other: Self) {
        self.rounds += other.rounds;
        let counts = [(&mut self.kills, other.kills), (&mut self.full, other.full)];
        for (sums, more) in counts {
            for (name, count) in more {
                *sums.entry(name).or_default() += count;
            }
        }
        self.recoveries += other.recoveries;
        self.stops += other.stops;
        self.restarts += other.restarts;
        self.network += other.network;
        self.tables += other.tables;
        self.letters += other.letters;
        self.retried += other.retried;
        self.twins += other.twins;
        self.slowest_ready = self.slowest_ready.max(other.slowest_ready);
        self.late.extend(other.late);
        self.tally.add(&other.tally);
        self.peak_mib = self.peak_mib.max(other.peak_mib);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tally = &self.tally;
        let rows: [(&str, String); 18] = [
            (
                "rounds",
                format!("{} ({} with two edges and sink-writers)", self.rounds, self.twins),
            ),
            ("SIGKILLs", counted(&self.kills)),
            (
                "of those within 0.4 s of a start after one",
                self.recoveries.to_string(),
            ),
            ("SIGSTOPs", self.stops.to_string()),
            ("SIGTERMs and restarts", self.restarts.to_string()),
            ("network faults", self.network.to_string()),
            ("tables taken away and back", self.tables.to_string()),
            ("volumes filled and freed", counted(&self.full)),
            (
                "dead letters",
                format!("{} ({} of them still)", self.letters, tally.letters),
            ),
            ("dead letters stored by a retry", self.retried.to_string()),
            ("events acknowledged", tally.acked.to_string()),
            ("events refused", tally.refused.to_string()),
            (
                "events unknown",
                format!("{} ({} of them stored)", tally.unknown, tally.unknown_stored),
            ),
            ("events stored", tally.stored.to_string()),
            ("lost / doubled", format!("{} / {}", tally.lost, tally.doubled)),
            (
                "another tenant's / another event's / never sent / refused / letters of nothing",
                format!(
                    "{} / {} / {} / {} / {}",
                    tally.strayed, tally.mangled, tally.never_sent, tally.refused_stored, tally.unasked
                ),
            ),
            (
                "slowest ready again",
                format!("{:.1} s", self.slowest_ready.as_secs_f64()),
            ),
            ("most memory of a process", format!("{} MiB", self.peak_mib)),
        ];
        for (name, figure) in rows {
            writeln!(f, "| {name:<80} | {figure:<100} |")?;
        }
        Ok(())
    }
}

/// The sum, and of what it is made.
fn counted(counts: &BTreeMap<String, u64>) -> String {
    let parts: Vec<String> = counts.iter().map(|(name, n)| format!("{name} {n}")).collect();
    format!("{} ({})", counts.values().sum::<u64>(), parts.join(", "))
}
