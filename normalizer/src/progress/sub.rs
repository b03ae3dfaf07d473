//! One sub-batch of a settling: where it stands, what it is a piece of, how its trouble is told.

use super::walk::Walk;
use sluice_common::books::{DEAD_LETTERS, LEDGER};
use sluice_common::classify::Class;
use sluice_common::ids::Name;
use sluice_common::wire::sink::{Piece, SubKey, SubReport, Verdict};

/// Where one sub-batch stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sub {
    pub(super) rows: u64,
    pub(super) state: State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Open,
    Walked(Walk),
    /// All rows have their outcome.
    Proven,
}

impl Sub {
    /// All rows of it, or of a node of its walk, have their outcome.
    pub(super) fn settle(&mut self, node: Option<(u32, u32)>) {
        match (&mut self.state, node) {
            (State::Walked(walk), Some(node)) => walk.settle(node),
            (State::Open | State::Walked(_) | State::Proven, _) => self.state = State::Proven,
        }
        self.state = std::mem::replace(&mut self.state, State::Proven).ended();
    }
}

impl State {
    /// A walk at its end is proven.
    pub(super) fn ended(self) -> Self {
        match self {
            Self::Walked(walk) if walk.is_done() => Self::Proven,
            Self::Open | Self::Walked(_) | Self::Proven => self,
        }
    }
}

/// The sub-batch that a piece of rows belongs to.
pub(super) fn root(sub: &SubKey) -> SubKey {
    match sub.piece {
        Piece::Rows { .. } => SubKey {
            piece: Piece::Whole,
            ..sub.clone()
        },
        Piece::Whole | Piece::Quarantined | Piece::Entry(_) => sub.clone(),
    }
}

pub(super) fn piece(root: &SubKey, (from, to): (u32, u32)) -> SubKey {
    SubKey {
        piece: Piece::Rows { from, to },
        ..root.clone()
    }
}

pub(super) fn is_sound(canary: &SubKey, other: &SubKey, one: &Sub) -> bool {
    canary.table != other.table || one.state == State::Proven
}

/// Whether a refusal means that the rows have to be told apart.
pub(super) fn is_walked(class: Class, root: &SubKey) -> bool {
    class == Class::Quarantine && root.piece == Piece::Whole && is_data(&root.table)
}

/// Whether it is a tenant's table. Our own are not walked through: what is refused is told there.
#[must_use]
pub fn is_data(table: &Name) -> bool {
    ![LEDGER, DEAD_LETTERS].contains(&table.as_str())
}

/// Blocks have at most 500,000 rows.
pub(super) fn count(rows: u64) -> u32 {
    u32::try_from(rows).unwrap_or(u32::MAX)
}

pub(super) fn describe(report: &SubReport) -> String {
    let (table, part, rows) = (&report.sub.table, &report.sub.part, report.rows);
    let what = match &report.verdict {
        Verdict::Between { found } => {
            format!("{found} of {rows} rows are there: something else wrote or deleted rows")
        }
        Verdict::Refused { code, message, .. } => format!("ClickHouse refuses the rows (code {code}): {message}"),
        Verdict::Unsent { reason } | Verdict::Unknown { reason } => reason.clone(),
        Verdict::CleanButNone => {
            "ClickHouse takes the rows and does not show them: look for a row policy on our user, a TTL that is \
             shorter than the backlog, or several servers behind one URL"
                .into()
        }
        Verdict::Done | Verdict::NoneThere => String::new(),
    };
    format!("{table}/{part}: {what}")
}
