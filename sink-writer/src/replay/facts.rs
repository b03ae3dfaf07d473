//! What the books and a live table say, and which rows of records are there.

use super::{GENTLE, Site, first_o, odd, refusal, sentence};
use serde_json::Value;
use sluice_common::books::{DEAD_LETTERS, LEDGER};
use sluice_common::ids::{Name, Offset};
use sluice_common::letters::INTAKE;
use sluice_common::replay::{Facts, KeptRows};

/// Asked while a replay runs, which is to be quick: one thread more than what may take its time, and as nice: it takes a
/// tenth of a second and more, in which the live path inserts.
const LOOKUP: [(&str, &str); 4] = [
    ("max_threads", "2"),
    ("os_thread_priority", "10"),
    ("max_memory_usage", "1073741824"),
    ("select_sequential_consistency", "1"),
];

/// Minutes of append, of rows below an offset.
#[derive(Debug, Clone, Copy)]
pub(super) struct Minutes {
    pub since_s: u64,
    pub until_s: u64,
    pub from: Offset,
    pub below: Offset,
}

/// All facts but the number of servers.
pub(super) async fn facts(
    site: &Site<'_>,
    table: &Name,
    datasets: &[Name],
    minutes: Minutes,
) -> Result<Facts, String> {
    let described = site.look(table).await?;
    let mut facts = booked(site, datasets, minutes).await?;
    match described {
        // What is dropped has no rows.
        None => facts.live = Some(0),
        Some(described) => {
            facts.shared = described.shared;
            let by_time = described
                .column("ingested_at")
                .is_some_and(|kind| kind.contains("DateTime"));
            if by_time && refusal(&described).is_none() {
                facts.live = Some(appended(site, table, minutes).await?);
            }
        }
    }
    Ok(facts)
}

async fn appended(site: &Site<'_>, table: &Name, minutes: Minutes) -> Result<u64, String> {
    let time = |seconds: u64| {
        let ms = i64::try_from(seconds.saturating_mul(1_000)).unwrap_or(i64::MAX);
        format!("fromUnixTimestamp64Milli({ms})")
    };
    // Rows that somebody doubled are one. Grouped, because that goes to disk where it does not fit memory.
    let sql = format!(
        "SELECT count() FROM (SELECT _src_o FROM {} WHERE _src_l = {} AND _src_p = {} AND _src_o >= {} \
         AND _src_o < {} AND ingested_at >= {} AND ingested_at < {} GROUP BY _src_o)",
        site.full(table),
        site.log.0,
        site.partition,
        first_o(minutes.from),
        first_o(minutes.below),
        time(minutes.since_s),
        time(minutes.until_s)
    );
    let rows = site
        .rows(&format!("counting table {table}"), &sql, &GENTLE)
        .await?;
    let count = rows.first().and_then(|row| super::number(row, 0));
    count.ok_or_else(|| odd(table))
}

async fn booked(site: &Site<'_>, datasets: &[Name], minutes: Minutes) -> Result<Facts, String> {
    let ledger = Name::new(LEDGER).map_err(|error| error.to_string())?;
    if site.look(&ledger).await?.is_none() {
        return Err(missing(LEDGER));
    }
    if datasets.is_empty() {
        return Ok(Facts::default());
    }
    let names: Vec<String> = datasets.iter().map(|name| format!("'{name}'")).collect();
    let seconds = |seconds: u64| u32::try_from(seconds).unwrap_or(u32::MAX);
    let sql = format!(
        "SELECT sum(stored), sum(duplicate), sum(dead_lettered), sum(parked) FROM {} \
         WHERE dataset IN ({}) AND minute >= toDateTime({}) AND minute < toDateTime({}) \
         AND _src_l = {} AND _src_p = {} AND _src_o < {}",
        site.full(&ledger),
        names.join(","),
        seconds(minutes.since_s),
        seconds(minutes.until_s),
        site.log.0,
        site.partition,
        first_o(minutes.below)
    );
    let rows = site.rows("summing the books", &sql, &GENTLE).await?;
    let sum = |at: usize| rows.first()?.get(at)?.as_i64();
    let sums = || {
        Some(Facts {
            stored: sum(0)?,
            duplicate: sum(1)?,
            dead_lettered: sum(2)?,
            parked: sum(3)?,
            ..Facts::default()
        })
    };
    sums().ok_or_else(|| odd(&ledger))
}

/// Rows of records `[from, to)` that a live table has. A table that is gone is an error: nothing there would
/// mean that every row is a repeat.
pub(super) async fn kept(
    site: &Site<'_>,
    table: &Name,
    records: (Offset, Offset),
) -> Result<Vec<KeptRows>, String> {
    site.table(table).await?;
    rows_of(site, table, records, "").await
}

/// Rows of records `[from, to)` that are dead letters: refused by ClickHouse, or of an identity that was taken.
pub(super) async fn letters(site: &Site<'_>, records: (Offset, Offset)) -> Result<Vec<KeptRows>, String> {
    let table = Name::new(DEAD_LETTERS).map_err(|error| error.to_string())?;
    if site.look(&table).await?.is_none() {
        return Err(missing(DEAD_LETTERS));
    }
    let refused = format!(" AND stage != '{INTAKE}'");
    rows_of(site, &table, records, &refused).await
}

fn missing(table: &str) -> String {
    format!("table {table} does not exist: create it (`ingestctl check --ddl` prints how)")
}

async fn rows_of(
    site: &Site<'_>,
    table: &Name,
    (from, to): (Offset, Offset),
    condition: &str,
) -> Result<Vec<KeptRows>, String> {
    if from >= to {
        return Ok(Vec::new());
    }
    // Rows that somebody doubled are one.
    let sql = format!(
        "SELECT record, last, if(length(rows) = last + 1, [], arraySort(rows)) FROM (SELECT \
         bitShiftRight(_src_o, 16) AS record, toUInt16(max(bitAnd(_src_o, 65535))) AS last, \
         groupUniqArray(toUInt16(bitAnd(_src_o, 65535))) AS rows \
         FROM {} WHERE _src_l = {} AND _src_p = {} AND _src_o >= {} AND _src_o < {}{condition} \
         GROUP BY record) ORDER BY record",
        site.full(table),
        site.log.0,
        site.partition,
        first_o(from),
        first_o(to)
    );
    let asked = site.server.client.rows_with(&sql, &LOOKUP, site.deadline).await;
    let doing = format!("asking table {table} for rows of records {from} to {to}");
    let rows = asked.map_err(|error| sentence(&doing, "SELECT", &error))?;
    let kept = rows.iter().map(|row| kept_rows(row));
    kept.collect::<Option<_>>().ok_or_else(|| odd(table))
}

fn kept_rows(row: &[Value]) -> Option<KeptRows> {
    let small = |value: &Value| u16::try_from(value.as_u64()?).ok();
    let rows = row.get(2)?.as_array()?.iter().map(small);
    Some(KeptRows {
        offset: row.first()?.as_u64()?,
        last: small(row.get(1)?)?,
        rows: rows.collect::<Option<_>>()?,
    })
}
