//! The promise held against the rows (`docs/reliability.md`: what is checked after every drain).

use super::ledger::{Fate, Identity};
use std::collections::{HashMap, HashSet};
use std::fmt;

/// Examples of one fault and tenant in the report.
const MAX_EXAMPLES: u64 = 5;

/// What the table holds of one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub tenant: String,
    pub event_id: String,
    /// How often it is there, as a row or as a dead letter.
    pub copies: u64,
    /// Copies that are dead letters.
    pub letters: u64,
    /// Dead letters of an event that nothing refuses.
    pub unasked: u64,
    /// Copies whose payload names another tenant.
    pub strayed: u64,
    /// Copies whose payload is another event's.
    pub mangled: u64,
}

impl Row {
    /// One line of the oracle's query.
    ///
    /// # Panics
    /// Where it is not.
    #[must_use]
    pub fn parse(line: &str) -> Self {
        let mut cells = line.split('\t');
        let mut text = || cells.next().expect("seven cells").to_owned();
        let (tenant, event_id) = (text(), text());
        let mut number = || text().parse().expect("a count");
        Self {
            tenant,
            event_id,
            copies: number(),
            letters: number(),
            unasked: number(),
            strayed: number(),
            mangled: number(),
        }
    }
}

/// One tenant's events, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub sent: u64,
    pub acked: u64,
    /// Refused at every attempt.
    pub refused: u64,
    /// Neither acknowledged nor always refused.
    pub unknown: u64,
    /// Identities that are stored, as a row or as a dead letter.
    pub stored: u64,
    /// Those that are a dead letter.
    pub letters: u64,
    /// Of the unknown, those that are stored.
    pub unknown_stored: u64,
    /// Acknowledged, and not stored.
    pub lost: u64,
    /// Rows and letters beyond the first of an identity.
    pub doubled: u64,
    /// Stored, and never sent by this tenant.
    pub never_sent: u64,
    /// Stored, though every attempt was refused.
    pub refused_stored: u64,
    /// Rows that name another tenant in their payload.
    pub strayed: u64,
    /// Rows with another event's payload.
    pub mangled: u64,
    /// Dead letters of events that nothing refuses.
    pub unasked: u64,
}

/// What the report tells of each tenant; `maybe` is what of the unknown is stored.
const COLUMNS: [&str; 14] = [
    "sent",
    "acked",
    "refused",
    "unknown",
    "maybe",
    "stored",
    "letters",
    "lost",
    "doubled",
    "unsent",
    "unrefused",
    "strayed",
    "mangled",
    "unasked",
];

impl Tally {
    fn cells(&self) -> [String; 14] {
        [
            self.sent,
            self.acked,
            self.refused,
            self.unknown,
            self.unknown_stored,
            self.stored,
            self.letters,
            self.lost,
            self.doubled,
            self.never_sent,
            self.refused_stored,
            self.strayed,
            self.mangled,
            self.unasked,
        ]
        .map(|count| count.to_string())
    }

    fn faults(&self) -> u64 {
        self.lost
            + self.doubled
            + self.never_sent
            + self.refused_stored
            + self.strayed
            + self.mangled
            + self.unasked
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.acked += other.acked;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.stored += other.stored;
        self.letters += other.letters;
        self.unknown_stored += other.unknown_stored;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.never_sent += other.never_sent;
        self.refused_stored += other.refused_stored;
        self.strayed += other.strayed;
        self.mangled += other.mangled;
        self.unasked += other.unasked;
    }
}

/// What the oracle has to say.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    pub tenants: Vec<(String, Tally)>,
    pub examples: Vec<String>,
    /// Answers that no client should see, panics, memory over budget.
    pub complaints: Vec<String>,
    /// The command that runs the same again.
    pub replay: String,
    pub last_words: String,
}

impl Verdict {
    /// All tenants together.
    #[must_use]
    pub fn total(&self) -> Tally {
        let mut sum = Tally::default();
        for (_, tally) in &self.tenants {
            sum.add(tally);
        }
        sum
    }

    /// Whether every promise was kept.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.complaints.is_empty() && self.total().faults() == 0
    }

    /// # Panics
    /// Where a promise was broken, with the report.
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "{self}");
    }

    fn example(&mut self, fault: &str, seen: u64, what: impl FnOnce() -> String) {
        if seen <= MAX_EXAMPLES {
            self.examples.push(format!("{fault}: {}", what()));
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the oracle's verdict, events by tenant:")?;
        write!(f, "{}", self.table())?;
        for line in self.examples.iter().chain(&self.complaints) {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "again: {}", self.replay)?;
        if self.is_clean() {
            return Ok(());
        }
        write!(f, "{}", self.last_words)
    }
}

impl Verdict {
    /// One line a tenant, and one for all.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = String::new();
        let mut line = |name: &str, cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>9}")).collect();
            table.push_str(&format!("  {name:<6}{}\n", cells.join(" ")));
        };
        line("tenant", &COLUMNS.map(str::to_owned));
        for (name, tally) in &self.tenants {
            line(name, &tally.cells());
        }
        line("all", &self.total().cells());
        table
    }
}

/// Holds `rows` to `fates`; `tenants` are the names of the ledger's numbers.
#[must_use]
pub fn judge(tenants: &[String], fates: &HashMap<Identity, Fate>, rows: Vec<Row>) -> Verdict {
    let mut verdict = Verdict {
        tenants: tenants
            .iter()
            .map(|name| (name.clone(), Tally::default()))
            .collect(),
        ..Verdict::default()
    };
    let mut stored = HashSet::with_capacity(rows.len());
    for row in rows {
        if let Some(identity) = judge_row(&mut verdict, fates, &row) {
            stored.insert(identity);
        }
    }
    for (identity, fate) in fates {
        judge_fate(&mut verdict, *identity, *fate, stored.contains(identity));
    }
    verdict
}

fn judge_row(verdict: &mut Verdict, fates: &HashMap<Identity, Fate>, row: &Row) -> Option<Identity> {
    let Some(place) = verdict.tenants.iter().position(|(name, _)| *name == row.tenant) else {
        let stranger = format!("a row of a tenant that does not exist: {row:?}");
        verdict.complaints.push(stranger);
        return None;
    };
    let number = row.event_id.strip_prefix('e').and_then(|rest| rest.parse().ok());
    let identity = number.map(|number| (place, number));
    let fate = identity.and_then(|identity| fates.get(&identity));
    let tally = &mut verdict.tenants[place].1;
    tally.stored += 1;
    tally.letters += u64::from(row.letters > 0);
    let found = [
        ("doubled", row.copies - 1, &mut tally.doubled),
        ("never sent", u64::from(fate.is_none()), &mut tally.never_sent),
        (
            "stored though refused",
            u64::from(fate.is_some_and(|fate| !fate.may_be_stored())),
            &mut tally.refused_stored,
        ),
        ("under another tenant", row.strayed, &mut tally.strayed),
        ("mangled", row.mangled, &mut tally.mangled),
        (
            "a dead letter though nothing refuses it",
            row.unasked,
            &mut tally.unasked,
        ),
    ];
    let found = found.map(|(fault, more, count)| {
        *count += more;
        (fault, more, *count)
    });
    for (fault, more, count) in found {
        if more > 0 {
            verdict.example(fault, count, || format!("{row:?} {fate:?}"));
        }
    }
    identity
}

fn judge_fate(verdict: &mut Verdict, (tenant, number): Identity, fate: Fate, stored: bool) {
    let tally = &mut verdict.tenants[tenant].1;
    tally.sent += 1;
    if fate.acked {
        tally.acked += 1;
    } else if fate.may_be_stored() {
        tally.unknown += 1;
        tally.unknown_stored += u64::from(stored);
    } else {
        tally.refused += 1;
    }
    if fate.acked && !stored {
        tally.lost += 1;
        let seen = tally.lost;
        verdict.example("lost", seen, || format!("t{tenant} e{number} {fate:?}"));
    }
}
