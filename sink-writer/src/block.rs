//! From a range's records to one block a sub-batch.
//!
//! Rows are split by (table, ClickHouse partition), in log order, and every byte of a block is a
//! function of the records and the table's columns: no clock, no random, no map order. The token's
//! checksum is of the provenance alone, so that a table that gained a column between two attempts does
//! not change the token.

use crate::assemble::{self, Column, Refusal};
use crate::ddl::DEAD_LETTERS;
use crate::dead_letters::{self, Letter};
use crate::ledger;
use crate::place::{self, Placement};
use crate::tables::{DescribeError, Table};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    TimestampMicrosecondType as Us, TimestampMillisecondType as Ms, TimestampNanosecondType as Ns,
    TimestampSecondType as S,
};
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::StreamReader;
use arrow_schema::{DataType, Schema, TimeUnit};
use bytes::{Buf, Bytes};
use sluice_common::books::{LEDGER, LedgerRow};
use sluice_common::fates::Fate;
use sluice_common::ids::{LogId, Name, source_o};
use sluice_common::limits::{MAX_BLOCK_ROWS, MAX_SENT_BLOCK_BYTES};
use sluice_common::record::{Holds, Record};
use sluice_common::wire::sink::{RangeRecord, SubKey};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// What is known of a range's tables, by name.
pub type Sights = HashMap<Name, Sight>;

/// What is known of one table.
#[derive(Debug, Clone)]
pub enum Sight {
    Known(Arc<Table>),
    /// Not described; rows are placed as they were last, so that their sub-batches can be named.
    Hidden {
        why: DescribeError,
        placement: Option<Placement>,
    },
}

/// One sub-batch, ready to be sent or refused.
#[derive(Debug)]
pub struct SubBatch {
    pub key: SubKey,
    pub rows: u64,
    pub sum_o: u64,
    pub sum_o2: u64,
    /// Of the provenance, for the token.
    pub checksum: u64,
    pub content: Content,
    /// Columns of the records that the table does not have.
    pub left_out: Vec<String>,
}

/// What can be done with a sub-batch.
#[derive(Debug)]
pub enum Content {
    Block {
        columns: Vec<String>,
        body: Bytes,
        table: Arc<Table>,
    },
    /// Not sendable: nothing was sent by this call.
    Refused {
        refusal: Refusal,
        table: Arc<Table>,
    },
    Hidden(DescribeError),
}

/// A range that breaks the contract between pump and sink-writer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRange {
    #[error("record {offset} does not decode: {reason}")]
    Record { offset: u64, reason: String },
    #[error("sub-batch {table}/{part} has {rows} rows and {bytes} bytes, over the limits of one block")]
    TooLarge {
        table: Name,
        part: String,
        rows: usize,
        bytes: usize,
    },
}

/// Rows of one record that go to the same place.
#[derive(Debug, Clone)]
pub(crate) struct Piece<'a> {
    pub record: &'a Record,
    /// Partition of the log: `_src_p`.
    pub partition: u16,
    pub batch: &'a RecordBatch,
    pub rows: Vec<u32>,
}

/// Σ over the provenance of some rows, wrapping as ClickHouse's UInt64 does.
#[derive(Default)]
struct Sums {
    rows: u64,
    o: u64,
    o2: u64,
    hash: Xxh3,
}

impl Sums {
    fn of(numbers: impl Iterator<Item = u64>) -> Self {
        let mut sums = Self::default();
        for o in numbers {
            sums.rows += 1;
            sums.o = sums.o.wrapping_add(o);
            sums.o2 = sums.o2.wrapping_add(o.wrapping_mul(o));
            sums.hash.update(&o.to_le_bytes());
        }
        sums
    }
}

/// What a range's sub-batches are built from.
#[derive(Debug)]
pub struct Source {
    pub log: LogId,
    pub partition: u16,
    pub records: Vec<RangeRecord>,
    pub ledger: Vec<LedgerRow>,
}

/// Builds all sub-batches of a range, ordered by key.
///
/// # Errors
/// [`BadRange`]: nothing of such a range can be sent.
pub fn build(source: &Source, sights: &Sights) -> Result<Vec<SubBatch>, BadRange> {
    let (partition, records) = (source.partition, &source.records);
    let batches = records
        .iter()
        .map(|one| decode(&one.record))
        .collect::<Result<Vec<_>, _>>()?;
    let mut routed = Routed {
        partition,
        groups: BTreeMap::new(),
        letters: Vec::new(),
    };
    for (one, batch) in records.iter().zip(&batches) {
        routed.add(one, batch, placement_of(&one.record.meta.table, sights).as_ref());
    }
    let mut subs = Vec::with_capacity(routed.groups.len() + 1);
    for (key, pieces) in routed.groups {
        let numbers = pieces.iter().flat_map(|piece| {
            piece
                .rows
                .iter()
                .map(|row| source_o(piece.record.place.offset, *row))
        });
        let sums = Sums::of(numbers);
        subs.push(finish(key, sums, sights, |table| assemble::rows(&pieces, table))?);
    }
    for (key, letters) in dead_letters::by_partition(&routed.letters, sights) {
        let sums = Sums::of(letters.iter().map(|letter| letter.source_o()));
        subs.push(finish(key, sums, sights, |table| {
            assemble::fit(dead_letters::columns(&letters), table)
        })?);
    }
    for (key, rows) in ledger::by_partition(&source.ledger, sights) {
        let sums = Sums::of(rows.iter().map(|row| row.source_o));
        subs.push(finish(key, sums, sights, |table| {
            assemble::fit(ledger::columns(&rows, source.log, partition), table)
        })?);
    }
    subs.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(subs)
}

fn decode(record: &Record) -> Result<RecordBatch, BadRange> {
    let bad = |reason: String| BadRange::Record {
        offset: record.place.offset,
        reason,
    };
    if record.rows() == 0 {
        return Ok(RecordBatch::new_empty(Arc::new(Schema::empty())));
    }
    let mut stream =
        StreamReader::try_new(record.body().reader(), None).map_err(|error| bad(error.to_string()))?;
    let batch = stream.next().ok_or_else(|| bad("it has no batch".into()))?;
    let batch = batch.map_err(|error| bad(error.to_string()))?;
    if batch.num_rows() != record.rows() as usize {
        return Err(bad(format!(
            "it has {} rows, its frame says {}",
            batch.num_rows(),
            record.rows()
        )));
    }
    Ok(batch)
}

/// Where the rows of a range go.
struct Routed<'a> {
    partition: u16,
    groups: BTreeMap<SubKey, Vec<Piece<'a>>>,
    letters: Vec<Letter<'a>>,
}

impl<'a> Routed<'a> {
    /// Sends each row of a record to its group, or to the dead letters.
    fn add(&mut self, one: &'a RangeRecord, batch: &'a RecordBatch, placement: Option<&Placement>) {
        let (record, partition) = (&one.record, self.partition);
        if record.meta.holds == Holds::RejectedCopies {
            let rows = 0..record.rows();
            self.letters
                .extend(rows.map(|row| Letter::rejected(record, partition, batch, row)));
            return;
        }
        let times = placement.and_then(|by| Times::of(record, batch, by).map(|times| (by, times)));
        let mut pieces: BTreeMap<i64, (String, Vec<u32>)> = BTreeMap::new();
        for (row, fate) in (0..record.rows()).zip(fates(one)) {
            let slot = match &times {
                Some((by, times)) => times.place(by, row as usize),
                None => Some((0, 0)),
            };
            match (fate, slot) {
                (Fate::Drop, _) => {}
                (Fate::Conflict, _) => self.letters.push(Letter::conflict(record, partition, batch, row)),
                (Fate::Keep, None) => self
                    .letters
                    .push(Letter::out_of_range(record, partition, batch, row)),
                (Fate::Keep, Some((slot, seconds))) => {
                    let part = || {
                        times
                            .as_ref()
                            .map_or_else(|| place::ALL.into(), |(by, _)| by.id(seconds))
                    };
                    pieces
                        .entry(slot)
                        .or_insert_with(|| (part(), Vec::new()))
                        .1
                        .push(row);
                }
            }
        }
        for (part, rows) in pieces.into_values() {
            let key = SubKey::whole(record.meta.table.clone(), part);
            self.groups.entry(key).or_default().push(Piece {
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

/// How rows of `table` are placed; `None` where nobody knows.
pub(crate) fn placement_of(table: &Name, sights: &Sights) -> Option<Placement> {
    match sights.get(table)? {
        Sight::Known(table) => table.placement.as_ref().ok().cloned(),
        Sight::Hidden { placement, .. } => placement.clone(),
    }
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

/// Encodes one sub-batch, or says why it cannot be sent.
fn finish(
    key: SubKey,
    sums: Sums,
    sights: &Sights,
    columns: impl FnOnce(&Table) -> Result<(Vec<Column>, Vec<String>), Refusal>,
) -> Result<SubBatch, BadRange> {
    let mut left_out = Vec::new();
    let content = match sights.get(&key.table) {
        Some(Sight::Known(table)) => match usable(&key, table).and_then(|()| columns(table)) {
            Ok((columns, without)) => {
                left_out = without;
                encode(&key, columns, table)?
            }
            Err(refusal) => Content::Refused {
                refusal,
                table: table.clone(),
            },
        },
        Some(Sight::Hidden { why, .. }) => Content::Hidden(why.clone()),
        None => Content::Hidden(DescribeError::Missing(key.table.to_string())),
    };
    let checksum = sums.hash.digest();
    Ok(SubBatch {
        key,
        rows: sums.rows,
        sum_o: sums.o,
        sum_o2: sums.o2,
        checksum,
        content,
        left_out,
    })
}

fn usable(key: &SubKey, table: &Table) -> Result<(), Refusal> {
    let placement = table
        .placement
        .as_ref()
        .map_err(|why| Refusal::new(&table.name, why))?;
    match placement.column() {
        Some(column) if key.part == place::ALL => Err(Refusal::new(
            &table.name,
            &format!("it is partitioned by {column}, which the dataset has not, or not as a time"),
        )),
        Some(_) | None => Ok(()),
    }
}

fn encode(key: &SubKey, columns: Vec<Column>, table: &Arc<Table>) -> Result<Content, BadRange> {
    let too_large = |rows, bytes| {
        Err(BadRange::TooLarge {
            table: key.table.clone(),
            part: key.part.clone(),
            rows,
            bytes,
        })
    };
    let rows = columns.first().map_or(0, |column| column.array.len());
    if rows > MAX_BLOCK_ROWS {
        return too_large(rows, 0);
    }
    let names = columns.iter().map(|column| column.name.clone()).collect();
    let body = match assemble::encode(columns) {
        Ok(body) => body,
        Err(refusal) => {
            return Ok(Content::Refused {
                refusal,
                table: table.clone(),
            });
        }
    };
    if body.len() > MAX_SENT_BLOCK_BYTES {
        return too_large(rows, body.len());
    }
    Ok(Content::Block {
        columns: names,
        body,
        table: table.clone(),
    })
}

/// The tables that a range's rows go to.
#[must_use]
pub fn tables_of(records: &[RangeRecord]) -> Vec<Name> {
    let mut tables: Vec<Name> = records.iter().map(|one| one.record.meta.table.clone()).collect();
    tables.extend([DEAD_LETTERS, LEDGER].into_iter().flat_map(Name::new));
    tables.sort();
    tables.dedup();
    tables
}
