//! Rows of the books as sub-batches of their range (R20): the pump counts, the sink-writer writes.

use crate::assemble::{Column, runs, stamps};
use crate::block::{Sights, placement_of};
use crate::client::{Client, ServerError};
use crate::place::ALL;
use crate::servers::{Server, Servers};
use arrow_array::{ArrayRef, Int64Array, TimestampSecondArray};
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::Value;
use sluice_common::books::{BooksLine, BooksQuery, LEDGER, LedgerRow, SettledPart};
use sluice_common::ids::{LogId, Name, TenantId};
use sluice_common::wire::sink::{Piece, SubKey};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use tokio::time::Instant;

/// Splits rows by the partition of `ledger` that they fall into, and by kind.
pub(crate) fn by_partition<'a>(
    rows: &'a [LedgerRow],
    sights: &Sights,
) -> BTreeMap<SubKey, Vec<&'a LedgerRow>> {
    let mut groups: BTreeMap<SubKey, Vec<&LedgerRow>> = BTreeMap::new();
    let Ok(table) = Name::new(LEDGER) else {
        return groups;
    };
    let placement = placement_of(&table, sights);
    for row in rows {
        let key = SubKey {
            table: table.clone(),
            part: placement
                .as_ref()
                .map_or_else(|| ALL.to_owned(), |placement| placement.id(seconds(row))),
            piece: Piece::Entry(row.entry),
        };
        groups.entry(key).or_default().push(row);
    }
    groups
}

/// The columns of some rows.
pub(crate) fn columns(rows: &[&LedgerRow], log: LogId, partition: u16) -> Vec<Column> {
    let text = |name: &str, of: fn(&LedgerRow) -> &str| Column {
        name: name.into(),
        array: runs(rows.iter().map(|row| (of(row), 1))),
    };
    let count = |name: &str, of: fn(&LedgerRow) -> i64| Column {
        name: name.into(),
        array: Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| of(row)))),
    };
    let minutes = TimestampSecondArray::from_iter_values(rows.iter().map(|row| seconds(row)));
    let minutes: ArrayRef = Arc::new(minutes.with_timezone("UTC"));
    let mut columns = vec![
        text("tenant", |row| row.tenant.as_str()),
        text("dataset", |row| row.dataset.as_str()),
        Column {
            name: "minute".into(),
            array: minutes,
        },
        text("entry", |row| row.entry.label()),
        count("received", |row| row.received),
        count("stored", |row| row.stored),
        count("duplicate", |row| row.duplicate),
        count("dead_lettered", |row| row.dead_lettered),
        count("rejected", |row| row.rejected),
        count("parked", |row| row.parked),
    ];
    let times = rows
        .iter()
        .map(|row| seconds(row).saturating_mul(1_000))
        .collect();
    let sources = rows.iter().map(|row| row.source_o).collect();
    columns.extend(stamps(times, log, partition, sources));
    columns
}

/// Sums over all servers that answer, and who does not: the rows of a range are on the server that took it.
///
/// # Errors
/// A sentence, where no server answered.
pub(crate) async fn all_sums(
    servers: &Servers,
    asked: &BooksQuery,
) -> Result<(Vec<BooksLine>, Vec<String>), String> {
    let distinct = servers.distinct();
    let mut answers = Vec::with_capacity(distinct.len());
    for server in &distinct {
        answers.push(of(server, asked).boxed());
    }
    let (mut lines, mut silent, mut shared_told) = (BTreeMap::new(), Vec::new(), false);
    for (server, answer) in distinct.iter().zip(join_all(answers).await) {
        match answer {
            Err(reason) => silent.push(format!("{}: {reason}", server.name)),
            // Another replica of the same rows.
            Ok((true, _)) if shared_told => {}
            Ok((shared, told)) => {
                shared_told |= shared;
                told.into_iter().for_each(|line| merge(&mut lines, line));
            }
        }
    }
    if silent.len() == distinct.len() {
        return Err(format!("table {LEDGER}: {}", silent.join("; ")));
    }
    let mut lines: Vec<BooksLine> = lines.into_values().collect();
    // Stable: within a minute they stay in order of tenant and dataset.
    lines.sort_by_key(|line: &BooksLine| std::cmp::Reverse(line.minute_s));
    lines.truncate(asked.limit as usize);
    Ok((lines, silent))
}

type Lines = BTreeMap<(TenantId, Name, u64), BooksLine>;

fn merge(lines: &mut Lines, line: BooksLine) {
    let key = (line.tenant.clone(), line.dataset.clone(), line.minute_s);
    match lines.entry(key) {
        Entry::Vacant(free) => drop(free.insert(line)),
        Entry::Occupied(mut known) => known.get_mut().add(&line),
    }
}

/// One server's sums, and whether other servers may show the same rows.
async fn of(server: &Server, asked: &BooksQuery) -> Result<(bool, Vec<BooksLine>), String> {
    let deadline = Instant::now() + asked.timeout;
    let name = Name::new(LEDGER).map_err(|error| error.to_string())?;
    let table = server.tables.get(&name, deadline).await;
    let table = table.map_err(|error| error.to_string())?;
    let lines = sums(&server.client, asked, deadline).await;
    Ok((table.shared, lines.map_err(|error| error.to_string())?))
}

/// Sums of the books by tenant, dataset and minute, newest first.
async fn sums(client: &Client, asked: &BooksQuery, deadline: Instant) -> Result<Vec<BooksLine>, ServerError> {
    let tenant = asked.tenant.as_ref();
    // Ids have no character that would need escaping.
    let tenant = tenant.map_or_else(String::new, |tenant| format!(" AND tenant = '{tenant}'"));
    let others: Vec<String> = asked
        .settled
        .iter()
        .map(|one| one.partition.to_string())
        .collect();
    let mut settled: String = asked.settled.iter().map(of_part).collect();
    if !others.is_empty() {
        settled = format!(
            " AND (_src_l != {} OR _src_p NOT IN ({}){settled})",
            asked.log.0,
            others.join(", ")
        );
    }
    let sql = format!(
        "SELECT tenant, dataset, toUnixTimestamp(minute), sum(received), sum(stored), sum(duplicate), \
         sum(dead_lettered), sum(rejected), sum(parked) FROM `{}`.`{LEDGER}` \
         WHERE minute >= toDateTime({}){settled}{tenant} \
         GROUP BY tenant, dataset, minute ORDER BY minute DESC, tenant, dataset LIMIT {} \
         SETTINGS select_sequential_consistency = 1",
        client.database(),
        asked.since_s,
        asked.limit,
    );
    let rows = client.rows(&sql, deadline).await?;
    let lines = rows.iter().map(|row| line(row));
    let odd = || ServerError::Uncertain("the answer is not what was asked".into());
    lines.collect::<Option<_>>().ok_or_else(odd)
}

/// What of one partition counts, as another alternative.
fn of_part(one: &SettledPart) -> String {
    let without = one.without.iter().map(|range| {
        let (from, to) = (range.a << 16, (range.b << 16) - 1);
        format!(" AND _src_o NOT BETWEEN {from} AND {to}")
    });
    let without: String = without.collect();
    let SettledPart {
        partition, below_o, ..
    } = one;
    format!(" OR (_src_p = {partition} AND _src_o < {below_o}{without})")
}

fn line(row: &[Value]) -> Option<BooksLine> {
    let text = |at: usize| row.get(at)?.as_str();
    let count = |at: usize| row.get(at)?.as_i64();
    Some(BooksLine {
        tenant: TenantId::new(text(0)?).ok()?,
        dataset: Name::new(text(1)?).ok()?,
        minute_s: row.get(2)?.as_u64()?,
        received: count(3)?,
        stored: count(4)?,
        duplicate: count(5)?,
        dead_lettered: count(6)?,
        rejected: count(7)?,
        in_flight: count(8)?,
    })
}

fn seconds(row: &LedgerRow) -> i64 {
    i64::try_from(row.minute_s).unwrap_or(i64::MAX)
}
