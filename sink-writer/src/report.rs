//! What `ingestctl check` says of ClickHouse: reachable or not, how far its clock is off, and of each
//! table what is degraded.

use crate::client::{Client, ServerError};
use crate::ddl::DEAD_LETTERS;
use crate::tables::{self, DescribeError};
use serde_json::Value;
use sluice_common::books::LEDGER;
use sluice_common::clock::SharedClock;
use sluice_common::config::{self, Dataset, Field};
use sluice_common::ids::Name;
use tokio::time::Instant;

/// The server and its tables.
#[derive(Debug, Clone)]
pub struct ServerReport {
    /// Version and clock, or why it was not reached.
    pub server: Result<ServerFacts, ServerError>,
    pub tables: Vec<TableReport>,
}

/// What the server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    pub version: String,
    /// Its clock minus ours, in ms, within the time of the round trip.
    pub clock_skew_ms: i64,
}

/// One table.
#[derive(Debug, Clone)]
pub struct TableReport {
    pub table: Name,
    pub state: TableState,
}

/// Whether a table can be written, and how well.
#[derive(Debug, Clone)]
pub enum TableState {
    /// Exactly once.
    Good,
    /// It works, and this is missing.
    Degraded(Vec<String>),
    /// It is not there: `up` creates it.
    Missing,
    Unusable(Vec<String>),
    Unreachable(ServerError),
}

pub(crate) async fn describe_all(
    client: &Client,
    datasets: &[Dataset],
    clock: &SharedClock,
    deadline: Instant,
) -> ServerReport {
    let server = facts(client, clock, deadline).await;
    let mut wanted: Vec<(Name, Vec<&Field>)> = config::tables(datasets)
        .into_iter()
        .map(|plan| (plan.name.clone(), plan.fields))
        .collect();
    let own = [DEAD_LETTERS, LEDGER].into_iter().flat_map(Name::new);
    wanted.extend(own.map(|table| (table, Vec::new())));
    let mut tables = Vec::with_capacity(wanted.len());
    for (table, fields) in wanted {
        let state = state(client, &table, &fields, deadline).await;
        tables.push(TableReport { table, state });
    }
    ServerReport { server, tables }
}

async fn facts(client: &Client, clock: &SharedClock, deadline: Instant) -> Result<ServerFacts, ServerError> {
    let before = clock.now_ms();
    let rows = client
        .rows("SELECT version(), toUnixTimestamp64Milli(now64(3))", deadline)
        .await?;
    let middle = before.midpoint(clock.now_ms());
    let row = rows.first().map_or(&[][..], Vec::as_slice);
    let (Some(version), Some(now)) = (
        row.first().and_then(Value::as_str),
        row.get(1).and_then(Value::as_i64),
    ) else {
        return Err(ServerError::Uncertain(
            "what answers at this address is not ClickHouse".into(),
        ));
    };
    let ours = i64::try_from(middle).unwrap_or(i64::MAX);
    Ok(ServerFacts {
        version: version.to_owned(),
        clock_skew_ms: now - ours,
    })
}

async fn state(client: &Client, name: &Name, fields: &[&Field], deadline: Instant) -> TableState {
    let table = match tables::describe(client, name, deadline).await {
        Ok(table) => table,
        Err(DescribeError::Missing(_)) => return TableState::Missing,
        Err(DescribeError::Server(error)) => return TableState::Unreachable(error),
    };
    let left_out = fields
        .iter()
        .filter(|field| table.column(field.name.as_str()).is_none());
    let mut notes = table.notes.clone();
    notes.extend(left_out.map(|field| format!("it has no column {}, whose values are left out", field.name)));
    if table.placement.is_err() {
        TableState::Unusable(notes)
    } else if notes.is_empty() {
        TableState::Good
    } else {
        TableState::Degraded(notes)
    }
}
