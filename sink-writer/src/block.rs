//! From a range's records to one block a sub-batch.
//!
//! Rows are split by (table, ClickHouse partition), in log order, and every byte of a block is a
//! function of the records and the table's columns: no clock, no random, no map order. The token's
//! checksum is of the provenance alone, so that a table that gained a column between two attempts does
//! not change the token.

use crate::assemble::{self, Column, Refusal};
use crate::columns::{self, Room};
use crate::ddl::DEAD_LETTERS;
use crate::dead_letters::{self, Letter};
use crate::ledger;
use crate::place::{self, Placement};
use crate::route::{self, Groups, Routed};
use crate::tables::{DescribeError, Table};
use arrow_array::{Array, RecordBatch};
use arrow_schema::Schema;
use bytes::Bytes;
use sluice_common::books::{LEDGER, LedgerRow};
use sluice_common::ids::{LogId, Name, source_o};
use sluice_common::limits::{MAX_BLOCK_ROWS, MAX_SENT_BLOCK_BYTES};
use sluice_common::record::Record;
use sluice_common::wire::sink::{Piece, RangeRecord, RefusedRows, SubKey, SubTask};
use std::collections::HashMap;
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
    /// Lowest and highest provenance.
    pub first_o: u64,
    pub last_o: u64,
    /// The provenance row by row, where a range of it would meet rows of other sub-batches.
    pub among: Vec<u64>,
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
    /// No partition can hold them: nothing is ever sent.
    Unplaced,
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
pub struct Slice<'a> {
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
    first: u64,
    last: u64,
    hash: Xxh3,
}

impl Sums {
    fn of(numbers: impl Iterator<Item = u64>) -> Self {
        let mut sums = Self {
            first: u64::MAX,
            ..Self::default()
        };
        for o in numbers {
            sums.rows += 1;
            sums.first = sums.first.min(o);
            sums.last = sums.last.max(o);
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
    pub quarantined: Vec<RefusedRows>,
    /// `None`: all sub-batches, whole.
    pub tasks: Option<Vec<SubTask>>,
}

impl Source {
    /// The pieces of one table's partition that are asked for, of those that `may` be there.
    fn pieces(&self, table: &Name, part: &str, may: impl Fn(&Piece) -> bool) -> Vec<Piece> {
        let tasks = self.tasks.iter().flatten().map(|task| &task.sub);
        tasks
            .filter(|sub| sub.table == *table && sub.part == part && may(&sub.piece))
            .map(|sub| sub.piece)
            .collect()
    }

    fn asks(&self, key: &SubKey) -> bool {
        let asked = |tasks: &Vec<SubTask>| tasks.iter().any(|task| task.sub == *key);
        self.tasks.as_ref().is_none_or(asked)
    }
}

/// Builds the sub-batches of a range that are asked for, ordered by key.
///
/// # Errors
/// [`BadRange`]: nothing of such a range can be sent.
pub fn build(source: &Source, sights: &Sights) -> Result<Vec<SubBatch>, BadRange> {
    let records = &source.records;
    let mut room = Room::default();
    let batches = records
        .iter()
        .map(|one| decode(&one.record, &mut room))
        .collect::<Result<Vec<_>, _>>()?;
    let refusals = route::refusals(&source.quarantined);
    let mut routed = Routed {
        partition: source.partition,
        ..Routed::default()
    };
    for (one, batch) in records.iter().zip(&batches) {
        let placement = placement_of(&one.record.meta.table, sights);
        routed.add(one, batch, placement.as_ref(), &refusals);
    }
    let mut subs = of_rows(source, &routed.groups, sights)?;
    subs.extend(of_letters(source, &routed.letters, Piece::Whole, sights)?);
    subs.extend(of_letters(source, &routed.refused, Piece::Quarantined, sights)?);
    subs.extend(of_books(source, sights)?);
    subs.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(subs)
}

fn of_rows(source: &Source, groups: &Groups<'_>, sights: &Sights) -> Result<Vec<SubBatch>, BadRange> {
    let mut subs = Vec::with_capacity(groups.len());
    for ((table, part), slices) in groups {
        let pieces = match &source.tasks {
            None => vec![Piece::Whole],
            Some(_) => source.pieces(table, part, |piece| {
                matches!(piece, Piece::Whole | Piece::Rows { .. })
            }),
        };
        for piece in pieces {
            let slices = match piece {
                Piece::Rows { from, to } => cut(slices, from, to),
                Piece::Whole | Piece::Quarantined | Piece::Entry(_) => slices.clone(),
            };
            if slices.is_empty() {
                continue;
            }
            let key = SubKey {
                table: table.clone(),
                part: part.clone(),
                piece,
            };
            let numbers = slices.iter().flat_map(|slice| {
                let offset = slice.record.place.offset;
                slice.rows.iter().map(move |row| source_o(offset, *row))
            });
            let sums = Sums::of(numbers);
            subs.push(finish(key, sums, sights, |table| assemble::rows(&slices, table))?);
        }
    }
    Ok(subs)
}

/// Rows `[from, to)` of some slices, counted through.
fn cut<'a>(slices: &[Slice<'a>], from: u32, to: u32) -> Vec<Slice<'a>> {
    let (mut begun, mut kept) = (0usize, Vec::new());
    for slice in slices {
        let inside = |at: u32| (at as usize).saturating_sub(begun).min(slice.rows.len());
        let rows = &slice.rows[inside(from)..inside(to).max(inside(from))];
        if !rows.is_empty() {
            kept.push(Slice {
                rows: rows.to_vec(),
                ..slice.clone()
            });
        }
        begun += slice.rows.len();
    }
    kept
}

fn of_letters(
    source: &Source,
    letters: &[Letter<'_>],
    piece: Piece,
    sights: &Sights,
) -> Result<Vec<SubBatch>, BadRange> {
    let mut subs = Vec::new();
    for (part, letters) in dead_letters::by_partition(letters, sights) {
        let key = SubKey { piece, ..part };
        if !source.asks(&key) {
            continue;
        }
        let sums = Sums::of(letters.iter().map(Letter::source_o));
        let mut sub = finish(key, sums, sights, |table| {
            assemble::fit(dead_letters::columns(&letters), table)
        })?;
        if piece == Piece::Quarantined {
            sub.among = letters.iter().map(Letter::source_o).collect();
        }
        subs.push(sub);
    }
    Ok(subs)
}

fn of_books(source: &Source, sights: &Sights) -> Result<Vec<SubBatch>, BadRange> {
    let mut subs = Vec::new();
    for (key, rows) in ledger::by_partition(&source.ledger, sights) {
        if !source.asks(&key) {
            continue;
        }
        let sums = Sums::of(rows.iter().map(|row| row.source_o));
        let mut sub = finish(key, sums, sights, |table| {
            assemble::fit(ledger::columns(&rows, source.log, source.partition), table)
        })?;
        sub.among = rows.iter().map(|row| row.source_o).collect();
        subs.push(sub);
    }
    Ok(subs)
}

fn decode(record: &Record, room: &mut Room) -> Result<RecordBatch, BadRange> {
    if record.rows() == 0 {
        return Ok(RecordBatch::new_empty(Arc::new(Schema::empty())));
    }
    columns::read(record.body(), record.rows(), room).map_err(|error| BadRange::Record {
        offset: record.place.offset,
        reason: error.to_string(),
    })
}

/// How rows of `table` are placed; `None` where nobody knows.
pub(crate) fn placement_of(table: &Name, sights: &Sights) -> Option<Placement> {
    match sights.get(table)? {
        Sight::Known(table) => table.placement.as_ref().ok().cloned(),
        Sight::Hidden { placement, .. } => placement.clone(),
    }
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
        _ if key.part == route::UNPLACED => Content::Unplaced,
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
        first_o: sums.first,
        last_o: sums.last,
        among: Vec::new(),
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

/// The tables that a call's rows go to.
#[must_use]
pub fn tables_of(source: &Source) -> Vec<Name> {
    let records = source.records.iter();
    let mut tables: Vec<Name> = records.map(|one| one.record.meta.table.clone()).collect();
    let has_letters =
        !source.quarantined.is_empty() || source.records.iter().any(|one| !one.fates.conflicts().is_empty());
    let own = [(DEAD_LETTERS, has_letters), (LEDGER, !source.ledger.is_empty())];
    let own = own.into_iter().filter(|(_, needed)| *needed);
    tables.extend(own.flat_map(|(table, _)| Name::new(table)));
    tables.sort();
    tables.dedup();
    tables
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, NullArray};
    use sluice_common::config::PartitionBy;

    #[test]
    fn a_block_of_more_rows_than_one_may_have_is_never_made() {
        let placement = Placement::configured(&PartitionBy::None);
        let table = Arc::new(Table::for_tests(&["a"], placement));
        let key = SubKey::whole(table.name.clone(), "all");
        let of = |rows: usize| {
            let array: ArrayRef = Arc::new(NullArray::new(rows));
            encode(
                &key,
                vec![Column {
                    name: "a".into(),
                    array,
                }],
                &table,
            )
        };
        assert!(matches!(of(MAX_BLOCK_ROWS), Ok(Content::Block { .. })));
        let rows = MAX_BLOCK_ROWS + 1;
        assert!(matches!(of(rows), Err(BadRange::TooLarge { rows: found, .. }) if found == rows));
    }
}
