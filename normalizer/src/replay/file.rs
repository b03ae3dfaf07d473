//! A replay's state on disk.
//!
//! # Constraints
//! A start must find every replay as it was last made durable: what is declared is proven or sent again under
//! the tokens it had, and a table whose rows are set aside for a promotion stays so. Few and small: tens of
//! files of some KiB. One that is at work is kept twice a range, beside a log whose syncs people wait for: so in place,
//! without a commit of the file system's journal (0.05 ms against 0.3 ms of a fresh file, sync, rename and sync of
//! the directory, measured on an idle disk in November 2026).
//!
//! # Bytes
//! `replay/ID.state`: two slots ([`crate::slots`]) with magic `SLR2`, version 2; the payload is [`State`] as JSON. Version 1
//! knew one partition and no legs. Before there were slots: magic `SLRP` and the JSON of version 1 once ([`crate::framed`]).
//! Both are read still.
//!
//! # Write
//! The first time in a process, and where it outgrows its slot, a fresh file is made and renamed; else in place. A
//! failure leaves the old state or the new one, and nobody knows which: the replay stops, what the disk has is what a
//! start goes on from, and the next write makes a fresh file.
//!
//! # Delete
//! Of replays that ended (promoted and discarded, or discarded) the newest 100 are kept for the list.
//!
//! # Recovery
//! `ID.state.new` is what a crash left, and is removed. A file that does not check out is told and left alone: nothing
//! acknowledged is in it. Directories `ID.dedup` are of no use after a stop, and are removed.

use super::sink::Part;
use crate::framed::unframe;
use crate::log::embedded::PARTITION;
use crate::progress::Intent;
use crate::slots::{Format, HEAD_BYTES, Slots, SlotsError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sluice_common::disk::Dir;
use sluice_common::failpoint::{self, Point};
use sluice_common::ids::{Name, Offset};
use sluice_common::replace::OWNER_ONLY;
use sluice_common::replay::{Decisions, Phase, ReplayId, ReplayTold};
use sluice_common::servers::ServerId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

/// 2: by partition. What 1 had of the one that it knew is read as its leg.
const FORMAT: Format = Format {
    magic: *b"SLR2",
    versions: RangeInclusive::new(1, 2),
};
/// The first layout's.
const FIRST: ([u8; 4], u16) = (*b"SLRP", 1);
/// Of one slot, at least; twice what a state needs where that is more.
const SLOT_BYTES: usize = 64 << 10;
const SUFFIX: &str = ".state";
const DEDUP_SUFFIX: &str = ".dedup";
/// Replays that are kept in the list after they ended.
const MAX_ENDED: usize = 100;

/// All that a start goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What is told of it; comparisons are not kept.
    pub told: ReplayTold,
    /// What is read, in this order.
    pub legs: Vec<Leg>,
    /// Where all of it happens.
    pub server: ServerId,
    /// What is declared of the shadow, and not proven: of the first leg that is not at its end.
    #[serde(default)]
    pub intent: Option<Intent>,
    #[serde(default)]
    pub promotion: Option<Promotion>,
}

/// What is replayed of one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    pub partition: u16,
    /// The next record to be read.
    pub next: Offset,
    /// Records below are read: the plan's end, later that of what is caught up.
    pub end: Offset,
    /// How it is known which rows are repeats, by live table.
    pub decisions: BTreeMap<Name, Decisions>,
    /// The widest dedup window of the records.
    pub window_ms: u64,
    /// The log is asked for from here on, if dedup has to decide anew.
    pub needs: Offset,
    /// Live tables without a row of it: they may be gone.
    pub empty: BTreeSet<Name>,
}

/// How far a promotion is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    pub row_wise: bool,
    /// Partitions of a log that is shared may say that the tables are held.
    #[serde(default)]
    pub told: bool,
    /// Partitions by live table that are to be replaced, in this order.
    #[serde(default)]
    pub parts: Vec<(Name, Part)>,
    /// How many of them are kept beside their table: these may be replaced from now on.
    #[serde(default)]
    pub saved: usize,
    /// How many of them are replaced.
    #[serde(default)]
    pub swapped: usize,
}

impl State {
    /// The live tables.
    pub fn tables(&self) -> BTreeSet<&Name> {
        self.legs.iter().flat_map(|leg| leg.decisions.keys()).collect()
    }

    /// What is read now; none where all is.
    #[must_use]
    pub fn leg(&self) -> Option<&Leg> {
        self.legs.iter().find(|leg| leg.next < leg.end)
    }

    /// What is replayed of a partition.
    pub fn leg_of(&mut self, partition: u16) -> Option<&mut Leg> {
        self.legs.iter_mut().find(|leg| leg.partition == partition)
    }

    /// What is told of it, with the places that are told.
    #[must_use]
    pub fn telling(&self) -> ReplayTold {
        ReplayTold {
            next: self.legs.iter().map(|leg| (leg.partition, leg.next)).collect(),
            ..self.told.clone()
        }
    }

    /// Whether a replacement of a live partition may be on its way.
    #[must_use]
    pub fn is_replacing(&self) -> bool {
        let saved = self
            .promotion
            .as_ref()
            .is_some_and(|promotion| promotion.saved > 0);
        saved && self.told.phase == Phase::Promoting
    }

    /// Whether a task works on it.
    #[must_use]
    pub fn is_at_work(&self) -> bool {
        match self.told.phase {
            Phase::Running | Phase::Promoting => true,
            Phase::Paused | Phase::Failed | Phase::Done | Phase::Promoted | Phase::Discarded => false,
        }
    }

    /// Whether nothing is left to be done but to show it.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        match self.told.phase {
            Phase::Promoted | Phase::Discarded => true,
            Phase::Running | Phase::Paused | Phase::Failed | Phase::Done | Phase::Promoting => false,
        }
    }
}

/// A replay's file, once this process has written it.
#[derive(Debug, Default)]
pub struct Kept(Option<Slots>);

impl Kept {
    /// Makes a state durable. Blocks for the disk.
    ///
    /// # Errors
    /// Nobody knows then which of the two is there.
    pub fn write(&mut self, dir: &Dir, state: &State) -> io::Result<()> {
        let mut kept = state.clone();
        kept.told = state.telling();
        (kept.told.diff, kept.told.comparing) = (None, false);
        let text = serde_json::to_vec(&kept).map_err(io::Error::other)?;
        failpoint::hit(Point::ReplayPersist)?;
        // After a failed sync a slot may be there that the disk does not have: it is given up.
        let slots = match self.0.take().filter(|slots| slots.fits(text.len())) {
            Some(mut slots) => {
                slots.put(&text)?;
                slots.sync()?;
                slots
            }
            None => fresh(dir, state.told.id, &text)?,
        };
        self.0 = Some(slots);
        failpoint::hit(Point::ReplayPersisted)
    }
}

fn fresh(dir: &Dir, id: ReplayId, text: &[u8]) -> io::Result<Slots> {
    let path = dir.join(format!("{id}{SUFFIX}"));
    let fresh = dir.join(format!("{id}{SUFFIX}.new"));
    let room = SLOT_BYTES.max(2 * (HEAD_BYTES + text.len()));
    let (paths, format) = ((&*fresh, &*path), (FORMAT, room, OWNER_ONLY));
    Slots::create(&dir.disk, paths, format, (text, || Ok(())))
}

/// All states of a directory, which is made where it is missing. Leftovers are removed, and of those that ended
/// the oldest.
///
/// # Errors
/// Any of the directory.
pub fn list(dir: &Dir) -> io::Result<Vec<State>> {
    dir.disk.make_dir(&dir.path, 0o777)?;
    dir.sync()?;
    let mut states = Vec::new();
    for entry in std::fs::read_dir(&dir.path)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.ends_with(DEDUP_SUFFIX) {
            std::fs::remove_dir_all(&path)?;
        } else if name.ends_with(".new") {
            dir.disk.remove(&path)?;
        } else if name.ends_with(SUFFIX) {
            match read(dir, &path)? {
                Ok(state) => states.push(state),
                Err(reason) => {
                    tracing::error!(path = %path.display(), reason, "the state of a replay cannot be used: it is left alone");
                }
            }
        }
    }
    states.sort_by_key(|state| std::cmp::Reverse(state.told.begun_ms));
    let old: Vec<ReplayId> = states
        .iter()
        .filter(|state| state.has_ended())
        .skip(MAX_ENDED)
        .map(|state| state.told.id)
        .collect();
    for id in old {
        remove(dir, id)?;
        states.retain(|state| state.told.id != id);
    }
    Ok(states)
}

/// Removes a replay that never began, or is not to be shown any more.
///
/// # Errors
/// Any of the disk.
pub fn remove(dir: &Dir, id: ReplayId) -> io::Result<()> {
    match dir.disk.remove(&dir.join(format!("{id}{SUFFIX}"))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => dir.sync(),
    }
}

/// Where a replay's own dedup state is.
#[must_use]
pub fn dedup_dir(dir: &Dir, id: ReplayId) -> Dir {
    Dir {
        disk: dir.disk.clone(),
        path: dir.join(format!("{id}{DEDUP_SUFFIX}")),
    }
}

/// What a file says, or why it cannot be used.
fn read(dir: &Dir, path: &Path) -> io::Result<Result<State, String>> {
    let text = match Slots::open(&dir.disk, path, FORMAT) {
        Ok((_, text)) => text,
        Err(SlotsError::Io(error)) => return Err(error),
        Err(newer @ SlotsError::Newer(_)) => return Ok(Err(newer.to_string())),
        Err(SlotsError::Damaged) => {
            let (magic, version) = FIRST;
            match unframe(magic, version..=version, &std::fs::read(path)?) {
                Ok((text, _)) => text.to_vec(),
                Err(reason) => return Ok(Err(reason)),
            }
        }
    };
    let found = serde_json::from_slice(&text).and_then(|found| serde_json::from_value(of_one_leg(found)));
    Ok(found.map_err(|error| error.to_string()))
}

/// A state as it is written now. Before logs had several partitions, what is a leg's stood beside it.
fn of_one_leg(mut state: Value) -> Value {
    if state.get("legs").is_some() {
        return state;
    }
    let (from, to) = (
        state["told"]["plan"]["from"].take(),
        state["told"]["plan"]["to"].take(),
    );
    let next = state["told"]["next"].take();
    let span = json!({"partition": PARTITION, "from": from, "to": to});
    state["told"]["plan"]["spans"] = json!([span]);
    let mut leg = json!({"partition": PARTITION, "next": next, "needs": 0, "empty": []});
    for field in ["end", "decisions", "window_ms", "needs", "empty"] {
        let found = state[field].take();
        if !found.is_null() {
            leg[field] = found;
        }
    }
    state["told"]["next"] = json!({(PARTITION.to_string()): next});
    state["legs"] = json!([leg]);
    state
}
