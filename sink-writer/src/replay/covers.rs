//! Whether a shadow covers the live rows of its partitions, and copying those that it lacks.

use super::{GENTLE, KEY, Site, columns, number, odd, sentence};
use crate::client::ServerError;
use serde_json::Value;
use sluice_common::ids::Name;
use sluice_common::replay::PartCover;
use std::time::Duration;
use tokio::time::Instant;

/// Rows of the shadow whose provenance the server holds in memory at once: some 100 MB.
const ROWS_AT_ONCE: u64 = 2_000_000;
/// A statement that was answered lives on for a moment under its query id.
const ENDED: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// One partition of the shadow, and what keeps its missing rows from being copied.
struct Cover {
    told: PartCover,
    /// Provenances of which the live partition has several rows, and the shadow none.
    repeated: u64,
}

/// One line a partition of the shadow, in the order of their ids.
pub(super) async fn covers(site: &Site<'_>, table: &Name) -> Result<Vec<PartCover>, String> {
    site.table(table).await?;
    let shadow = site.shadow_of(table).await?;
    let covers = look(site, table, &shadow).await?;
    Ok(covers.into_iter().map(|cover| cover.told).collect())
}

async fn look(site: &Site<'_>, table: &Name, shadow: &Name) -> Result<Vec<Cover>, String> {
    let parts = site.parts(shadow).await?;
    if parts.is_empty() {
        return Ok(Vec::new());
    }
    let live = site.parts(table).await?;
    let mut covers: Vec<Cover> = parts
        .iter()
        .map(|(part, shadow)| Cover {
            told: PartCover {
                part: part.clone(),
                shadow: *shadow,
                live: live.iter().find(|(same, _)| same == part).map_or(0, |(_, n)| *n),
                ..PartCover::default()
            },
            repeated: 0,
        })
        .collect();
    let ids: Vec<&str> = parts.iter().map(|(part, _)| part.as_str()).collect();
    let reach = reach(site, shadow).await?;
    let sql = statement((&site.full(table), &site.full(shadow)), &ids, &reach);
    let doing = format!("holding table {table} against {shadow}");
    for row in site.rows(&doing, &sql, &GENTLE).await? {
        let number = |at: usize| number(&row, at).ok_or_else(|| odd(table));
        // Number 0 is all that lies in other partitions.
        let at = usize::try_from(number(0)?).unwrap_or(usize::MAX);
        if let Some(cover) = at.checked_sub(1).and_then(|at| covers.get_mut(at)) {
            cover.told.uncovered = number(1)?;
            cover.told.doubled = number(2)?;
            cover.told.elsewhere = number(3)?;
            cover.repeated = number(4)?;
        }
    }
    Ok(covers)
}

/// Which live rows outside the shadow's partitions may be the shadow's too: those of its records.
async fn reach(site: &Site<'_>, shadow: &Name) -> Result<String, String> {
    let ours = format!("_src_l = {}", site.log.0);
    let sql = format!(
        "SELECT _src_p, min(_src_o), max(_src_o) FROM {} WHERE {ours} GROUP BY _src_p ORDER BY _src_p",
        site.full(shadow)
    );
    let rows = site
        .rows(&format!("looking at table {shadow}"), &sql, &GENTLE)
        .await?;
    let of_partition = |row: &Vec<Value>| {
        let (partition, first, last) = (number(row, 0)?, number(row, 1)?, number(row, 2)?);
        Some(format!(
            "(_src_p = {partition} AND _src_o BETWEEN {first} AND {last})"
        ))
    };
    let reach: Option<Vec<String>> = rows.iter().map(of_partition).collect();
    match reach.ok_or_else(|| odd(shadow))?.as_slice() {
        [] => Ok("0".to_owned()),
        reach => Ok(format!("{ours} AND ({})", reach.join(" OR "))),
    }
}

/// By the number of the shadow's partition, counted from 1.
fn statement((live, shadow): (&str, &str), parts: &[&str], reach: &str) -> String {
    let list = in_list(parts);
    let numbers: Vec<String> = (1..=parts.len()).map(|number| number.to_string()).collect();
    let number = format!(
        "transform(toString(_partition_id), [{list}], [{}], 0)",
        numbers.join(",")
    );
    format!(
        "SELECT toUInt64(if(ns > 0, at_shadow, at_live)) AS at, sumIf(nl, ns = 0), countIf(ns > 1), \
         countIf(ns > 0 AND outside > 0), countIf(ns = 0 AND nl > 1) FROM (SELECT {KEY}, countIf(side = 1) AS ns, \
         countIf(side = 0 AND n > 0) AS nl, countIf(side = 0 AND n = 0) AS outside, \
         maxIf(n, side = 1) AS at_shadow, maxIf(n, side = 0) AS at_live FROM (\
         SELECT toUInt8(0) AS side, toUInt64({number}) AS n, {KEY} FROM {live} WHERE _partition_id IN ({list}) OR ({reach}) \
         UNION ALL SELECT toUInt8(1) AS side, toUInt64({number}) AS n, {KEY} FROM {shadow}) GROUP BY {KEY}) GROUP BY at"
    )
}

fn in_list(parts: &[&str]) -> String {
    let parts: Vec<String> = parts.iter().map(|part| format!("'{part}'")).collect();
    parts.join(",")
}

/// Copies live rows of the shadow's partitions that the shadow has nowhere; how many.
///
/// What is missing is found out by each statement itself, so that one that comes late copies nothing twice; two
/// at once cannot be, for they have one query id. Live rows without provenance of their own cannot be told
/// apart, so that a copy of them that was cut short could not be completed: they are refused.
pub(super) async fn fill(site: &Site<'_>, table: &Name) -> Result<u64, String> {
    site.table(table).await?;
    let shadow = site.shadow_of(table).await?;
    columns::must_agree(site, table, &shadow).await?;
    let covers = look(site, table, &shadow).await?;
    let doubled: u64 = covers.iter().map(|cover| cover.told.doubled).sum();
    if doubled > 0 {
        return Err(format!(
            "{doubled} rows are more than once in {shadow}: did somebody write there? Discard the replay, and plan anew"
        ));
    }
    let repeated: u64 = covers.iter().map(|cover| cover.repeated).sum();
    if repeated > 0 {
        return Err(format!(
            "table {table} has several rows of one provenance ({KEY}) for {repeated} provenances that the shadow does not have, \
             so they cannot be copied one by one: delete surplus rows, or give rows of your own distinct ones"
        ));
    }
    let missing: u64 = covers.iter().map(|cover| cover.told.uncovered).sum();
    if missing == 0 {
        return Ok(0);
    }
    copy(site, table, &shadow, &covers).await?;
    let after = look(site, table, &shadow).await?;
    let (left, doubled) = after.iter().fold((0, 0), |(left, doubled), cover| {
        (left + cover.told.uncovered, doubled + cover.told.doubled)
    });
    if doubled > 0 {
        return Err(format!(
            "{doubled} rows are more than once in {shadow} after copying: discard the replay, and plan anew"
        ));
    }
    if left > 0 {
        return Err(format!(
            "{left} rows of table {table} are still not in {shadow}: they came in while others were copied, or expire: try again"
        ));
    }
    Ok(missing)
}

async fn copy(site: &Site<'_>, table: &Name, shadow: &Name, covers: &[Cover]) -> Result<(), String> {
    let parts: Vec<&str> = covers.iter().map(|cover| cover.told.part.as_str()).collect();
    let rows: u64 = covers.iter().map(|cover| cover.told.shadow).sum();
    let slices = rows.div_ceil(ROWS_AT_ONCE).max(1);
    let names = columns::of(site, table).await?;
    let names: Vec<String> = names.iter().map(columns::Column::quoted).collect();
    let names = names.join(", ");
    let (live, shadow_full) = (site.full(table), site.full(shadow));
    for slice in 0..slices {
        let of_slice = format!("cityHash64({KEY}) % {slices} = {slice}");
        let sql = format!(
            "INSERT INTO {shadow_full} ({names}) SELECT {names} FROM {live} WHERE _partition_id IN ({}) AND {of_slice} \
             AND ({KEY}) NOT IN (SELECT {KEY} FROM {shadow_full} WHERE {of_slice})",
            in_list(&parts)
        );
        let doing = format!("copying rows of table {table} into {shadow}");
        let copied = insert(site, shadow, &sql, slice > 0).await;
        copied.map_err(|error| sentence(&doing, "SELECT, INSERT", &error))?;
    }
    Ok(())
}

/// Runs one statement under the table's query id. After one of ours, its end is waited for.
async fn insert(site: &Site<'_>, shadow: &Name, sql: &str, follows: bool) -> Result<(), ServerError> {
    let id = format!("sluice-replay-fill-{shadow}");
    let mut settings = GENTLE.to_vec();
    settings.extend([
        ("query_id", id.as_str()),
        ("replace_running_query", "0"),
        // Rows that are copied again after somebody deleted them are no repeats.
        ("insert_deduplicate", "0"),
        ("async_insert", "0"),
        ("max_insert_threads", "1"),
        ("max_partitions_per_insert_block", "0"),
    ]);
    let until = (Instant::now() + ENDED).min(site.deadline);
    loop {
        let done: Result<Vec<Vec<Value>>, _> =
            site.server.client.rows_with(sql, &settings, site.deadline).await;
        match done {
            Err(ServerError::Definite { code: 216, .. }) if follows && Instant::now() < until => {
                tokio::time::sleep(ASK_AGAIN).await;
            }
            Ok(_) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
