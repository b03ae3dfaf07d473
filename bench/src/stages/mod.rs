//! The stages of an event's way, each alone and in this process: what `cargo bench` times, and what
//! `sluice-bench instructions` counts the instructions of.
//!
//! A stage is made for so many rounds, with all that they take prepared, so that a round is the stage's own work.

mod dedup;
mod intake;
mod quota;
mod record;
mod sink;

/// Events of a request, and of a record.
pub const EVENTS: usize = 1_000;

/// The work of a round.
pub type Round = Box<dyn FnMut()>;

/// One stage.
#[derive(Clone, Copy)]
pub struct Stage {
    pub name: &'static str,
    /// What a round works on: events, or requests.
    pub items: u64,
    make: fn(usize) -> Round,
}

/// All of them, in an event's order.
pub const STAGES: [Stage; 9] = [
    Stage {
        name: "quota",
        items: quota::REQUESTS as u64,
        make: quota::charged,
    },
    Stage {
        name: "parse",
        items: EVENTS as u64,
        make: intake::parsed,
    },
    Stage {
        name: "encode",
        items: EVENTS as u64,
        make: intake::encoded,
    },
    Stage {
        name: "log-append",
        items: EVENTS as u64,
        make: record::written,
    },
    Stage {
        name: "log-read",
        items: EVENTS as u64,
        make: record::read,
    },
    Stage {
        name: "dedup-insert",
        items: EVENTS as u64,
        make: dedup::new_keys,
    },
    Stage {
        name: "dedup-lookup",
        items: EVENTS as u64,
        make: dedup::repeats,
    },
    Stage {
        name: "dedup-merge",
        items: dedup::MERGED as u64,
        make: dedup::sealed_and_merged,
    },
    Stage {
        name: "ipc",
        items: EVENTS as u64,
        make: sink::block,
    },
];

impl Stage {
    /// Makes it ready for at most so many rounds.
    #[must_use]
    pub fn ready(&self, rounds: usize) -> Round {
        (self.make)(rounds)
    }
}

/// Runs a round. Instructions are counted within this function alone, which is found by its name.
#[inline(never)]
pub fn measured_round(round: &mut dyn FnMut()) {
    round();
}
