//! The tables beside a live one: made like it, and dropped.

use super::{Site, columns, refusal};
use sluice_common::ids::Name;
use sluice_common::replay::Beside;

/// Drops what bears the replay's id, of whatever size.
const ANY_SIZE: [(&str, &str); 2] = [
    ("max_table_size_to_drop", "0"),
    ("max_partition_size_to_drop", "0"),
];

/// Makes the shadows of tables, each where it is not there.
pub(super) async fn prepare(site: &Site<'_>, tables: &[Name]) -> Result<(), String> {
    // All are looked at before any is made.
    for table in tables {
        check(site, table).await?;
    }
    for table in tables {
        make(site, table, &site.shadow(table)).await?;
    }
    Ok(())
}

async fn check(site: &Site<'_>, table: &Name) -> Result<(), String> {
    let Some(live) = site.look(table).await? else {
        let known = site.server.tables.definition(table, table).is_some();
        return known.then_some(()).ok_or_else(|| {
            format!("table {table} does not exist, and no dataset of the config says how to make it: create it first")
        });
    };
    match refusal(&live) {
        Some(why) => Err(why),
        None => check_path(site, table).await,
    }
}

/// A replicated table's path must be one of its own, or the shadow would be taken for its replica.
async fn check_path(site: &Site<'_>, table: &Name) -> Result<(), String> {
    let sql = format!(
        "SELECT engine_full FROM system.tables WHERE database = '{}' AND name = '{table}'",
        site.server.client.database()
    );
    let rows = site.rows(&format!("looking at table {table}"), &sql, &[]).await?;
    let engine = rows
        .first()
        .and_then(|row| row.first()?.as_str())
        .unwrap_or_default();
    if has_fixed_path(engine) {
        return Err(format!(
            "table {table} has a ZooKeeper path of its own that a table like it cannot have: the path must contain {{uuid}}; \
             make a table with such a path, and move the rows there"
        ));
    }
    Ok(())
}

fn has_fixed_path(engine_full: &str) -> bool {
    let Some(rest) = engine_full.strip_prefix("ReplicatedMergeTree('") else {
        return false;
    };
    let path = rest.split('\'').next().unwrap_or_default();
    !path.contains("{uuid}")
}

/// Makes `other` like `table`; where `table` is gone, as the config says. Whatever is there already must have
/// the same columns.
pub(super) async fn make(site: &Site<'_>, table: &Name, other: &Name) -> Result<(), String> {
    let doing = format!("making table {other}");
    let live = site.look(table).await?;
    let sql = match live {
        Some(_) => format!(
            "CREATE TABLE IF NOT EXISTS {} AS {}",
            site.full(other),
            site.full(table)
        ),
        None => site
            .server
            .tables
            .definition(table, other)
            .ok_or_else(|| format!("table {table} does not exist: create it first"))?,
    };
    site.act((&doing, "CREATE TABLE, SELECT"), &sql, &[]).await?;
    site.server.tables.forget(other);
    match live {
        Some(_) => columns::must_agree(site, table, other).await,
        None => Ok(()),
    }
}

/// Tables that have a shadow of this replay.
pub(super) async fn shadows(site: &Site<'_>, mut tables: Vec<Name>) -> Result<Vec<Name>, String> {
    let mut there = Vec::new();
    for table in &tables {
        there.push(site.look(&site.shadow(table)).await?.is_some());
    }
    let mut there = there.into_iter();
    tables.retain(|_| there.next() == Some(true));
    Ok(tables)
}

/// Drops tables of this replay, and no others, and waits until they are gone.
pub(super) async fn drop_beside(site: &Site<'_>, tables: &[Name], which: &[Beside]) -> Result<(), String> {
    for table in tables {
        for beside in which {
            let name = site.id.table(table, *beside);
            if !site.id.owns(&name) {
                return Err(format!("table {name} is not one of replay {}'s", site.id));
            }
            let sql = format!("DROP TABLE IF EXISTS {} SYNC", site.full(&name));
            let doing = format!("dropping table {name}");
            site.act((&doing, "DROP TABLE"), &sql, &ANY_SIZE).await?;
            site.server.tables.forget(&name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_replicated_table_with_a_path_for_itself_alone_is_refused() {
        for fine in [
            "MergeTree ORDER BY x",
            "ReplicatedMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}') ORDER BY x",
            "ReplicatedMergeTree ORDER BY x",
            "SharedMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}') ORDER BY x",
        ] {
            assert!(!has_fixed_path(fine), "{fine}");
        }
        assert!(has_fixed_path(
            "ReplicatedMergeTree('/tables/01/events', '{replica}') ORDER BY x"
        ));
    }
}
