//! One partition: what it holds is kept beside the live table, and the shadow's takes its place.

use super::{GENTLE, Site, beside, columns, number, odd};
use sluice_common::ids::Name;

/// ClickHouse makes ids of these, and of no more than so many.
const MAX_PART_CHARS: usize = 200;
const GRANT: &str = "SELECT, INSERT, ALTER DELETE";

/// Keeps what a live partition holds.
///
/// Once the live partition holds what the shadow's does, it has been swapped already: what was kept stays as it
/// is, and so it does where there is nothing to keep.
pub(super) async fn save(site: &Site<'_>, table: &Name, part: &str) -> Result<(), String> {
    check(part)?;
    site.table(table).await?;
    let shadow = site.shadow_of(table).await?;
    let before = site.before(table);
    beside::make(site, table, &before).await?;
    if count(site, table, part).await? == 0 {
        return Ok(());
    }
    if count(site, &before, part).await? > 0
        && content(site, table, part).await? == content(site, &shadow, part).await?
    {
        return Ok(());
    }
    replace(site, (&before, table), part).await
}

/// Puts the shadow's partition in the place of the live one, at once for every reader.
///
/// Rows of other writers that came since both were compared would go with what is replaced: then it is refused.
pub(super) async fn swap(
    site: &Site<'_>,
    (table, part): (&Name, &str),
    (live, compared): (u64, u64),
) -> Result<(), String> {
    check(part)?;
    site.table(table).await?;
    let shadow = site.shadow_of(table).await?;
    columns::must_agree(site, table, &shadow).await?;
    // Older servers would empty the live partition.
    let rows = count(site, &shadow, part).await?;
    if rows == 0 {
        return Err(format!(
            "{shadow} has no rows in partition {part}, so it is not put in the live one's place: did they expire, or were \
             they deleted? Discard the replay, and plan anew"
        ));
    }
    let now = count(site, table, part).await?;
    if rows != compared || (now != live && now != rows) {
        return Err(format!(
            "partition {part} of table {table} has {now} rows and {shadow} {rows}; when they were compared it were {live} and \
             {compared}: does somebody else write to them?"
        ));
    }
    let swapped = replace(site, (table, &shadow), part).await;
    site.server.tables.forget(table);
    swapped
}

async fn replace(site: &Site<'_>, (to, from): (&Name, &Name), part: &str) -> Result<(), String> {
    let sql = format!(
        "ALTER TABLE {} REPLACE PARTITION ID '{part}' FROM {}",
        site.full(to),
        site.full(from)
    );
    let doing = format!("putting partition {part} of table {from} into {to}");
    let done = site.act((&doing, GRANT), &sql, &[]).await;
    done.map_err(|error| {
        if error.contains("code 122:") || error.contains("code 36:") {
            format!(
                "{error}; tables {to} and {from} are not alike any more: discard the replay, and plan anew"
            )
        } else {
            error
        }
    })
}

fn check(part: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if part.is_empty() || part.len() > MAX_PART_CHARS || !part.chars().all(fine) {
        return Err(format!(
            "{part:?} is no id of a partition: ask which ones the shadow covers"
        ));
    }
    Ok(())
}

async fn count(site: &Site<'_>, table: &Name, part: &str) -> Result<u64, String> {
    let parts = site.parts(table).await?;
    Ok(parts
        .iter()
        .find(|(id, _)| id == part)
        .map_or(0, |(_, rows)| *rows))
}

/// Rows of a partition, and the sum of their hashes.
async fn content(site: &Site<'_>, table: &Name, part: &str) -> Result<(u64, u64), String> {
    let mut columns = columns::of(site, table).await?;
    columns.sort_by(|a, b| a.name.cmp(&b.name));
    let sql = format!(
        "SELECT count(), sum({}) FROM {} WHERE _partition_id = '{part}'",
        columns::hash(&columns),
        site.full(table)
    );
    let mut settings = GENTLE.to_vec();
    settings.extend(columns::hash_settings(&columns));
    let rows = site
        .rows(&format!("summing table {table}"), &sql, &settings)
        .await?;
    let sums = rows
        .first()
        .and_then(|row| Some((number(row, 0)?, number(row, 1)?)));
    sums.ok_or_else(|| odd(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_an_id_of_a_partition_gets_into_a_statement() {
        for fine in ["all", "20261121", "-5-7", "0cc175b9c0f1b6a831c399e269772661"] {
            check(fine).expect(fine);
        }
        let long = "7".repeat(MAX_PART_CHARS + 1);
        for bad in ["", "x'", "a b", "a\\", "ä", &long] {
            check(bad).expect_err(bad);
        }
    }
}
