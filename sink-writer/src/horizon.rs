//! Has progress gone backwards (R19)? The highest provenance at or past an offset, table by table.

use crate::client::{Client, ServerError};
use crate::ddl::DEAD_LETTERS;
use crate::servers::{Server, Servers};
use crate::tables::DescribeError;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::Value;
use sluice_common::books::LEDGER;
use sluice_common::ids::Name;
use sluice_common::wire::sink::{Horizon, HorizonTold};
use tokio::time::Instant;

/// Asks the server that is named, or all. One that does not answer is told, not taken for empty.
///
/// # Errors
/// A sentence, where no server answered: then nothing is known.
pub async fn ask(servers: &Servers, horizon: &Horizon) -> Result<HorizonTold, String> {
    let deadline = Instant::now() + horizon.timeout;
    let mut told = HorizonTold::default();
    let mut asked = match &horizon.server {
        Some(pin) => vec![servers.find(Some(pin)).await?],
        None => servers.all().to_vec(),
    };
    if asked.len() > 1 {
        // A server that hangs is not waited for to the deadline, while another can be asked.
        let seen = servers.seen().await.servers;
        let down = seen.into_iter().filter(|server| !server.up);
        let down: Vec<String> = down.map(|server| server.id.name).collect();
        asked.retain(|server| !down.contains(&server.name));
        let silent = down.iter().map(|name| format!("{name}: it does not answer"));
        told.not_asked.extend(silent);
    }
    let mut answers = Vec::with_capacity(asked.len());
    for server in &asked {
        answers.push(of(server, horizon, deadline).boxed());
    }
    for (server, answer) in asked.iter().zip(join_all(answers).await) {
        match answer {
            Ok(found) => {
                told.found.extend(found);
                told.asked.push(server.id());
            }
            Err(reason) => told.not_asked.push(format!("{}: {reason}", server.name)),
        }
    }
    if told.asked.is_empty() {
        return Err(told.not_asked.join("; "));
    }
    Ok(told)
}

/// Asks each table in turn; tables that are missing or without provenance hold no rows of ours.
async fn of(server: &Server, horizon: &Horizon, deadline: Instant) -> Result<Vec<(Name, u64)>, String> {
    let (client, tables) = (&server.client, &server.tables);
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
