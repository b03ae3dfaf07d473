//! The columns of a table that can be both read and inserted into, and a hash of a row over them.

use super::{Site, odd, text};
use serde_json::Value;
use sluice_common::ids::Name;

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub name: String,
    pub kind: String,
}

impl Column {
    /// Its name in statements.
    pub fn quoted(&self) -> String {
        format!("`{}`", self.name.replace('\\', "\\\\").replace('`', "\\`"))
    }
}

/// The columns of a table, in its order.
pub(super) async fn of(site: &Site<'_>, table: &Name) -> Result<Vec<Column>, String> {
    let sql = format!(
        "SELECT name, type FROM system.columns WHERE database = '{}' AND table = '{table}' \
         AND default_kind NOT IN ('MATERIALIZED', 'ALIAS', 'EPHEMERAL') ORDER BY position",
        site.server.client.database()
    );
    let rows = site.rows(&format!("looking at table {table}"), &sql, &[]).await?;
    let column = |row: &Vec<Value>| {
        Some(Column {
            name: text(row, 0)?.to_owned(),
            kind: text(row, 1)?.to_owned(),
        })
    };
    rows.iter()
        .map(column)
        .collect::<Option<_>>()
        .ok_or_else(|| odd(table))
}

/// Columns that two tables have, whatever their types, as the first has them.
pub(super) fn shared(one: &[Column], other: &[Column]) -> Vec<Column> {
    let in_other = |column: &&Column| other.iter().any(|same| same.name == column.name);
    one.iter().filter(in_other).cloned().collect()
}

/// Fails where two tables do not have the same columns of the same types.
pub(super) async fn must_agree(site: &Site<'_>, table: &Name, other: &Name) -> Result<(), String> {
    let (here, there) = (of(site, table).await?, of(site, other).await?);
    let by_name = |mut columns: Vec<Column>| {
        columns.sort_by(|a, b| a.name.cmp(&b.name));
        columns
    };
    let (here, there) = (by_name(here), by_name(there));
    if here == there {
        return Ok(());
    }
    let lacks = |one: &[Column], other: &[Column]| -> Vec<String> {
        let unlike = one.iter().filter(|column| !other.contains(column));
        unlike.map(|column| column.name.clone()).collect()
    };
    let mut unlike = lacks(&here, &there);
    unlike.extend(lacks(&there, &here));
    unlike.sort();
    unlike.dedup();
    Err(format!(
        "tables {table} and {other} differ in columns ({}): was {table} altered since? Discard the replay, and plan anew",
        unlike.join(", ")
    ))
}

/// A hash of a row's columns, of any type, as an expression.
pub(super) fn hash(columns: &[Column]) -> String {
    let names: Vec<String> = columns.iter().map(Column::quoted).collect();
    // Not the columns themselves: a hash of a NULL is NULL, and that of some values depends on how a part holds them.
    format!("sipHash64(formatRow('RowBinary', {}))", names.join(", "))
}

/// What [`hash`] needs: the bytes of a JSON value otherwise depend on which of its paths a part keeps apart.
pub(super) fn hash_settings(columns: &[Column]) -> Vec<(&'static str, &'static str)> {
    let json = columns.iter().any(|column| column.kind.contains("JSON"));
    let of_json = ("output_format_binary_write_json_as_string", "1");
    json.then_some(of_json).into_iter().collect()
}
