//! Has progress gone backwards (R19)? The highest provenance at or past an offset, table by table.

use crate::client::{Client, ServerError};
use crate::ddl::DEAD_LETTERS;
use crate::tables::{DescribeError, Tables};
use serde_json::Value;
use sluice_common::books::LEDGER;
use sluice_common::ids::Name;
use sluice_common::wire::sink::Horizon;
use tokio::time::Instant;

/// Asks each table in turn; tables that are missing or without provenance hold no rows of ours.
///
/// # Errors
/// A sentence, where a table could not be asked: then nothing is known of it.
pub async fn ask(client: &Client, tables: &Tables, horizon: &Horizon) -> Result<Vec<(Name, u64)>, String> {
    let deadline = Instant::now() + horizon.timeout;
    let mut found = Vec::new();
    for name in &with_our_own(&horizon.tables) {
        let table = match tables.get(name, deadline).await {
            Ok(table) => table,
            Err(DescribeError::Missing(_)) => continue,
            Err(error @ DescribeError::Server(_)) => return Err(format!("table {name}: {error}")),
        };
        if !table.verifiable {
            continue;
        }
        match highest(client, horizon, name, deadline).await {
            Ok(highest) => found.extend(highest.map(|o| (name.clone(), o))),
            Err(error) => {
                tables.forget(name);
                return Err(format!("table {name}: {error}"));
            }
        }
    }
    Ok(found)
}

/// Every partition also writes our own tables.
fn with_our_own(tables: &[Name]) -> Vec<Name> {
    let own = [DEAD_LETTERS, LEDGER].into_iter().flat_map(Name::new);
    tables.iter().cloned().chain(own).collect()
}

async fn highest(
    client: &Client,
    horizon: &Horizon,
    table: &Name,
    deadline: Instant,
) -> Result<Option<u64>, ServerError> {
    let sql = format!(
        "SELECT count(), max(_src_o) FROM `{}`.`{table}` WHERE _src_l = {} AND _src_p = {} AND _src_o >= {} \
         SETTINGS select_sequential_consistency = 1",
        client.database(),
        horizon.log.0,
        horizon.partition,
        horizon.from_o
    );
    let rows = client.rows(&sql, deadline).await?;
    let number = |at: usize| rows.first().and_then(|row| row.get(at)).and_then(Value::as_u64);
    match (number(0), number(1)) {
        (Some(0), Some(_)) => Ok(None),
        (Some(_), Some(highest)) => Ok(Some(highest)),
        (None, _) | (_, None) => Err(ServerError::Uncertain("the answer is not what was asked".into())),
    }
}
