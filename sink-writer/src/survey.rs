//! What `ingestctl check` asks of an existing table beyond whether it can be written: what else hangs on it,
//! and how it keeps rows. Nothing here is asked on the hot path.

use crate::client::{Client, ServerError};
use serde_json::Value;
use sluice_common::config::Dataset;
use tokio::time::Instant;

/// What hangs on a table, and how it keeps rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Materialized views that run at each insert into it.
    pub insert_time_views: Vec<String>,
    /// After how long ClickHouse deletes a row, by the dataset's time field, in seconds.
    pub ttl: Ttl,
    /// Whether an insert is on disk when it is answered.
    pub synced: bool,
    pub replicated: bool,
}

/// A table's delete-TTL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Ttl {
    /// It has none.
    #[default]
    None,
    /// Seconds after the dataset's time field.
    After(i64),
    /// It has one that is not a span after that field.
    Other(String),
}

/// The moment at which a TTL's expression is tried out: it has to be a whole number of seconds.
const TRIED_AT: i64 = 1_000_000_000;

/// Looks at a dataset's table; nothing where it does not exist.
///
/// # Errors
/// [`ServerError`].
pub async fn survey(
    client: &Client,
    dataset: &Dataset,
    deadline: Instant,
) -> Result<Option<Survey>, ServerError> {
    let (database, table) = (client.database(), dataset.table());
    let sql = format!(
        "SELECT engine, engine_full, dependencies_table FROM system.tables \
         WHERE database = '{database}' AND name = '{table}'"
    );
    let rows = client.rows(&sql, deadline).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let text = |at: usize| row.get(at).and_then(Value::as_str).unwrap_or_default();
    let (engine, engine_full) = (text(0), text(1));
    let dependents = row
        .get(2)
        .and_then(Value::as_array)
        .is_some_and(|names| !names.is_empty());
    let insert_time_views = if dependents {
        views(client, dataset, deadline).await?
    } else {
        Vec::new()
    };
    Ok(Some(Survey {
        insert_time_views,
        ttl: ttl(client, dataset, ttl_of(engine_full), deadline).await?,
        synced: setting(engine_full, "fsync_after_insert") == Some("1"),
        replicated: engine.starts_with("Replicated"),
    }))
}

/// Views that read from the table at each insert: refreshable ones run by themselves.
async fn views(client: &Client, dataset: &Dataset, deadline: Instant) -> Result<Vec<String>, ServerError> {
    let (database, table) = (client.database(), dataset.table());
    let sql = format!(
        "SELECT concat(database, '.', name) FROM system.tables WHERE engine = 'MaterializedView' \
         AND match(create_table_query, '\\\\sREFRESH\\\\s+(EVERY|AFTER)\\\\s') = 0 AND has((SELECT \
         arrayMap((d, t) -> concat(d, '.', t), dependencies_database, dependencies_table) FROM system.tables \
         WHERE database = '{database}' AND name = '{table}'), concat(database, '.', name)) ORDER BY name"
    );
    let rows = client.rows(&sql, deadline).await?;
    let names = rows.iter().filter_map(|row| row.first()?.as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Has the server work the TTL out for one moment: only it knows its own expressions.
async fn ttl(
    client: &Client,
    dataset: &Dataset,
    expression: Option<&str>,
    deadline: Instant,
) -> Result<Ttl, ServerError> {
    let Some(expression) = expression else {
        return Ok(Ttl::None);
    };
    let other = || Ttl::Other(expression.to_owned());
    let Some(time) = &dataset.time else {
        return Ok(other());
    };
    let sql = format!(
        "SELECT toInt64(toUnixTimestamp({expression})) - {TRIED_AT} FROM \
         (SELECT toDateTime64({TRIED_AT}, 3, 'UTC') AS `{}`)",
        time.field
    );
    match client.rows(&sql, deadline).await {
        Ok(rows) => {
            let seconds = rows.first().and_then(|row| row.first()?.as_i64());
            Ok(seconds.map_or_else(other, Ttl::After))
        }
        // Its expression asks for other columns, or is none.
        Err(ServerError::Definite { .. }) => Ok(other()),
        Err(error @ (ServerError::Unreached(_) | ServerError::Uncertain(_))) => Err(error),
    }
}

/// The first expression after ` TTL `, where rows are deleted by it.
fn ttl_of(engine_full: &str) -> Option<&str> {
    let rest = engine_full.split_once(" TTL ")?.1;
    let rest = rest.split_once(" SETTINGS ").map_or(rest, |(rest, _)| rest);
    let mut depth = 0_usize;
    let end = rest.find(|c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    let first = rest.get(..end.unwrap_or(rest.len()))?.trim();
    Some(first.strip_suffix(" DELETE").unwrap_or(first))
}

fn setting<'a>(engine_full: &'a str, name: &str) -> Option<&'a str> {
    let rest = engine_full.split_once(&format!("{name} = "))?.1;
    rest.split(|c: char| c == ',' || c.is_whitespace()).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_found_among_the_rest() {
        let full = "MergeTree PARTITION BY toDate(t) ORDER BY t TTL toDateTime(t) + toIntervalSecond(60) SETTINGS \
                    index_granularity = 8192, fsync_after_insert = 1";
        assert_eq!(ttl_of(full), Some("toDateTime(t) + toIntervalSecond(60)"));
        assert_eq!(setting(full, "fsync_after_insert"), Some("1"));
        assert_eq!(setting(full, "index_granularity"), Some("8192"));
        assert_eq!(
            ttl_of("MergeTree ORDER BY t SETTINGS index_granularity = 8192"),
            None
        );
        assert_eq!(
            ttl_of("MergeTree ORDER BY t TTL dateAdd(DAY, 3, t) DELETE, t + toIntervalDay(1) TO DISK 'x'"),
            Some("dateAdd(DAY, 3, t)")
        );
    }
}
