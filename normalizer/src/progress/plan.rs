//! What a settling asks for, what it may do, and what its tables suffer from.

use super::Marks;
use sluice_common::ids::Name;
use sluice_common::wire::sink::{Steps, SubTask};
use std::collections::BTreeMap;
use std::time::Duration;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Call the sink-writer.
    Call(Plan),
    /// Make these durable, then go on.
    Persist(Marks),
    /// Set these tables aside, then say so with [`Settling::set_aside`](super::settle::Settling::set_aside), or that it failed with
    /// [`Settling::not_set_aside`](super::settle::Settling::not_set_aside).
    Park(BTreeMap<Name, Trouble>),
    /// Wait, say why, then go on.
    Wait {
        delay: Duration,
        reason: String,
        alarm: bool,
    },
    /// Every row has its outcome.
    Proven,
}

/// Why a table's rows are not settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Refused for the table's or the server's sake, or nothing is known.
    Unsettled,
    /// So many rows are refused that it must be the table.
    TooMany,
    /// Some rows are there and some are not; only a person can say what is right.
    Between,
    /// ClickHouse takes the rows and does not show them.
    Vanished,
    /// Partitioned anew after some of its rows had their outcome.
    Repartitioned,
    /// The server that its rows were sent to does not answer, and another takes what comes.
    ServerLost,
    /// Its topic does not take a dataset's events.
    Unpublished,
}

impl Why {
    /// The name that operators see.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Unsettled => "refused",
            Self::TooMany => "too_many_bad_rows",
            Self::Between => "between",
            Self::Vanished => "vanished",
            Self::Repartitioned => "repartitioned",
            Self::ServerLost => "server_lost",
            Self::Unpublished => "unpublished",
        }
    }

    /// Whether sending again may settle it; else it waits for a person.
    #[must_use]
    pub fn heals(self) -> bool {
        match self {
            Self::Unsettled | Self::TooMany | Self::ServerLost | Self::Unpublished => true,
            Self::Between | Self::Vanished | Self::Repartitioned => false,
        }
    }
}

/// A table's trouble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Since the settling began.
    pub since: Duration,
    pub why: Why,
    pub reason: String,
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub attempt: u32,
    pub steps: Steps,
    pub tasks: Option<Vec<SubTask>>,
    pub timeout: Duration,
}

/// What a settling may do besides sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Walk through sub-batches whose rows are refused.
    pub quarantine: bool,
    /// Set a table aside that is in trouble for so long, while ClickHouse takes others. Our own too.
    pub park_after: Option<Duration>,
    /// Walk through sub-batches of which only some rows are there, and send what is absent; a person
    /// has said so.
    pub mend: bool,
}

impl Rules {
    /// Of what is told of a unit that was set aside: not set aside once more.
    pub const TELLING: Self = Self {
        quarantine: false,
        park_after: None,
        mend: false,
    };
}
