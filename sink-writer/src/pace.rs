//! How near the tables are to too many parts: what the normalizer asks now and then of those that it writes.

use crate::client::{Client, ServerError};
use serde_json::Value;
use sluice_common::ids::Name;
use sluice_common::wire::sink::{PartsLine, PartsQuery};
use tokio::time::Instant;

/// ClickHouse's own defaults, where it does not tell.
const DELAY: u64 = 1_000;
const THROW: u64 = 3_000;

/// The fullest partition of each table asked for, and where its inserts are delayed and refused.
///
/// # Errors
/// [`ServerError`].
pub async fn parts(client: &Client, query: &PartsQuery) -> Result<Vec<PartsLine>, ServerError> {
    let deadline = Instant::now() + query.timeout;
    let names: Vec<String> = query.tables.iter().map(|name| format!("'{name}'")).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let (database, names) = (client.database(), names.join(","));
    // A setting of the table's own is in its definition, any other is the server's.
    let sql = format!(
        "SELECT t.name, t.engine_full, p.n, \
         (SELECT toUInt64OrZero(any(value)) FROM system.merge_tree_settings WHERE name = 'parts_to_delay_insert'), \
         (SELECT toUInt64OrZero(any(value)) FROM system.merge_tree_settings WHERE name = 'parts_to_throw_insert') \
         FROM (SELECT name, engine_full FROM system.tables WHERE database = '{database}' AND name IN ({names})) AS t \
         LEFT JOIN (SELECT table, max(n) AS n FROM (SELECT table, partition_id, count() AS n FROM system.parts \
         WHERE database = '{database}' AND table IN ({names}) AND active GROUP BY table, partition_id) GROUP BY table) AS p \
         ON t.name = p.table"
    );
    let rows = client.rows(&sql, deadline).await?;
    Ok(rows.iter().filter_map(|row| line(row)).collect())
}

fn line(row: &[Value]) -> Option<PartsLine> {
    let text = |at: usize| row.get(at).and_then(Value::as_str);
    let number = |at: usize| row.get(at).and_then(Value::as_u64);
    let own = text(1)?;
    let limit = |name: &str, servers: usize, otherwise: u64| {
        let servers = number(servers).filter(|limit| *limit > 0);
        setting(own, name).or(servers).unwrap_or(otherwise)
    };
    Some(PartsLine {
        table: Name::new(text(0)?).ok()?,
        parts: number(2)?,
        delay: limit("parts_to_delay_insert", 3, DELAY),
        throw: limit("parts_to_throw_insert", 4, THROW),
    })
}

/// A setting in a table's definition.
fn setting(engine_full: &str, name: &str) -> Option<u64> {
    let (_, rest) = engine_full.split_once(&format!("{name} = "))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_s_own_thresholds_count_before_the_server_s() {
        let row =
            |own: &str| line(&[json!("t"), json!(own), json!(7), json!(1_500), json!(0)]).expect("a line");
        let own = row("MergeTree ORDER BY o SETTINGS parts_to_delay_insert = 20, parts_to_throw_insert = 40");
        assert_eq!((own.parts, own.delay, own.throw), (7, 20, 40));
        let servers = row("MergeTree ORDER BY o SETTINGS index_granularity = 8192");
        assert_eq!((servers.delay, servers.throw), (1_500, THROW));
        assert!(line(&[json!("t")]).is_none());
    }
}
