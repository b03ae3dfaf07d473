//! Where each row of a range goes: to its table's partition, to the dead letters, nowhere.

use crate::block::Slice;
use crate::dead_letters::Letter;
use crate::place::{self, Placement};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    TimestampMicrosecondType as Us, TimestampMillisecondType as Ms, TimestampNanosecondType as Ns,
    TimestampSecondType as S,
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use sluice_common::fates::Fate;
use sluice_common::ids::{Name, source_o};
use sluice_common::record::{Holds, Record};
use sluice_common::wire::sink::{RangeRecord, RefusedRows};
use std::collections::{BTreeMap, HashMap};

/// The part of rows that no partition can hold. It is never sent; its rows end as dead letters by the
/// same durable way as rows that ClickHouse refuses.
pub const UNPLACED: &str = "unplaced";

/// Rows by table and part, in log order.
pub type Groups<'a> = BTreeMap<(Name, String), Vec<Slice<'a>>>;

/// The refused rows of a call by their provenance, with code and message.
pub type Refusals<'a> = HashMap<u64, (&'a str, &'a str)>;

/// Looks up rows by their provenance.
#[must_use]
pub fn refusals(quarantined: &[RefusedRows]) -> Refusals<'_> {
    let each = quarantined.iter().flat_map(|one| {
        let (code, message) = (one.code.as_str(), one.message.as_str());
        one.rows.iter().map(move |o| (*o, (code, message)))
    });
    each.collect()
}

/// Where the rows of a range go.
#[derive(Default)]
pub struct Routed<'a> {
    pub partition: u16,
    pub groups: Groups<'a>,
    /// Conflicts of dedup.
    pub letters: Vec<Letter<'a>>,
    /// Rows that were refused.
    pub refused: Vec<Letter<'a>>,
}

impl<'a> Routed<'a> {
    /// Sends each row of a record to its group, or to the dead letters.
    pub fn add(
        &mut self,
        one: &'a RangeRecord,
        batch: &'a RecordBatch,
        placement: Option<&Placement>,
        refusals: &Refusals<'a>,
    ) {
        let (record, partition) = (&one.record, self.partition);
        if record.meta.holds == Holds::RejectedCopies {
            let rows = 0..record.rows();
            self.letters
                .extend(rows.map(|row| Letter::rejected(record, partition, batch, row)));
            return;
        }
        let times = placement.and_then(|by| Times::of(record, batch, by).map(|times| (by, times)));
        let mut parts: BTreeMap<Option<i64>, (String, Vec<u32>)> = BTreeMap::new();
        for (row, fate) in (0..record.rows()).zip(fates(one)) {
            if let Some((code, message)) = refusals.get(&source_o(record.place.offset, row)) {
                let letter = Letter::refused(record, partition, batch, row, (code, message));
                self.refused.push(letter);
                continue;
            }
            match fate {
                Fate::Drop => {}
                Fate::Conflict => self.letters.push(Letter::conflict(record, partition, batch, row)),
                Fate::Keep => {
                    let placed = match &times {
                        Some((by, times)) => times.place(by, row as usize),
                        None => Some((0, 0)),
                    };
                    let by = times.as_ref().map(|(by, _)| *by);
                    // Its name is written once, not for each row.
                    parts
                        .entry(placed.map(|(slot, _)| slot))
                        .or_insert_with(|| (part(by, placed), Vec::new()))
                        .1
                        .push(row);
                }
            }
        }
        for (part, rows) in parts.into_values() {
            let key = (record.meta.table.clone(), part);
            self.groups.entry(key).or_default().push(Slice {
                record,
                partition,
                batch,
                rows,
            });
        }
    }
}

/// The fate of each row; the wire has checked that there are as many as rows.
fn fates(one: &RangeRecord) -> impl Iterator<Item = Fate> + '_ {
    (0..=u16::MAX).map(|row| one.fates.of(row))
}

/// The times of a record by which its rows are placed.
enum Times {
    /// One for all: the append time, or none is needed.
    Same(i64),
    Each(Vec<Option<i64>>),
}

impl Times {
    /// `None` where the record lacks the column.
    fn of(record: &Record, batch: &RecordBatch, placement: &Placement) -> Option<Self> {
        let append = i64::try_from(record.place.append_ms / 1_000).unwrap_or(i64::MAX);
        match placement.column() {
            None | Some("ingested_at") => Some(Self::Same(append)),
            Some(column) => seconds(batch.column_by_name(column)?.as_ref()).map(Self::Each),
        }
    }

    /// The row's slot and time; `None` where it cannot be placed.
    fn place(&self, placement: &Placement, row: usize) -> Option<(i64, i64)> {
        let seconds = match self {
            Self::Same(seconds) => *seconds,
            Self::Each(seconds) => (*seconds.get(row)?)?,
        };
        if placement.column().is_none() {
            return Some((0, seconds));
        }
        placement.slot(seconds).ok().map(|slot| (slot, seconds))
    }
}

/// The part of a row's place.
fn part(by: Option<&Placement>, placed: Option<(i64, i64)>) -> String {
    match (by, placed) {
        (_, None) => UNPLACED.into(),
        (None, Some(_)) => place::ALL.into(),
        (Some(by), Some((_, seconds))) => by.id(seconds),
    }
}

/// Whole seconds of a timestamp column; `None` where it is none.
fn seconds(array: &dyn Array) -> Option<Vec<Option<i64>>> {
    let DataType::Timestamp(unit, _) = array.data_type() else {
        return None;
    };
    let scaled = |values: Vec<Option<i64>>, by: i64| {
        values
            .into_iter()
            .map(|value| value.map(|value| value.div_euclid(by)))
            .collect()
    };
    Some(match unit {
        TimeUnit::Second => scaled(array.as_primitive::<S>().iter().collect(), 1),
        TimeUnit::Millisecond => scaled(array.as_primitive::<Ms>().iter().collect(), 1_000),
        TimeUnit::Microsecond => scaled(array.as_primitive::<Us>().iter().collect(), 1_000_000),
        TimeUnit::Nanosecond => scaled(array.as_primitive::<Ns>().iter().collect(), 1_000_000_000),
    })
}
