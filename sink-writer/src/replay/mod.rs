//! A replay's questions and acts: shadow tables, what live tables hold, and putting one in the other's place.
//!
//! Everything of one replay happens at one server, and may be asked again: an answer that never came
//! says nothing about what was done. A statement that is still on its way when it is given up must do no harm
//! whenever it arrives, so:
//! - rows are copied ([`covers`]) by what is missing at that moment, under one query id a table;
//! - a partition takes another's place ([`swap`]) out of a shadow that is dropped before rows come in again;
//! - only tables that bear the replay's id are ever dropped ([`beside`]).
//!
//! Facts (ClickHouse 26.7, measured): `CREATE TABLE … AS` copies engine, keys, codecs, TTL, settings, indexes
//! and projections; `REPLACE PARTITION` keeps the insert tokens of the rows that it replaces, and brings none
//! along, while `DROP PARTITION` takes them away; a table that is not partitioned has the partition id `all`;
//! an empty source is refused (code 36), and older releases empty the target instead.

mod beside;
mod columns;
mod compare;
mod covers;
mod facts;
mod swap;

use crate::client::ServerError;
use crate::servers::{Server, Servers};
use crate::tables::{DescribeError, Table, describe};
use serde_json::Value;
use sluice_common::ids::{LogId, Name, Offset};
use sluice_common::replay::{Beside, ReplayCall, ReplayId, SinkAsk, SinkTold};
use tokio::time::Instant;

/// What a row's place is known by.
const KEY: &str = "_src_l, _src_p, _src_o";
/// One past the highest offset: 48 bits.
const END_OF_OFFSETS: Offset = 1 << 48;
/// Under these, reading much leaves the live path its processor and memory: an aggregate goes to disk at
/// 256 MiB, and fails at 1 GiB.
const GENTLE: [(&str, &str); 6] = [
    ("max_threads", "1"),
    ("priority", "10"),
    ("os_thread_priority", "10"),
    ("max_bytes_before_external_group_by", "268435456"),
    ("max_memory_usage", "1073741824"),
    ("select_sequential_consistency", "1"),
];

/// Carries out one call at the server that it names, or that new ranges go to.
///
/// # Errors
/// A sentence that says what to do.
pub(crate) async fn answer(servers: &Servers, call: ReplayCall) -> Result<SinkTold, String> {
    let pinned = match &call.server {
        Some(server) => Some(servers.find(Some(server)).await?),
        None => None,
    };
    let site = Site {
        server: pinned.as_deref().unwrap_or_else(|| servers.in_use()),
        id: call.id,
        log: call.log,
        partition: call.partition,
        deadline: Instant::now() + call.timeout,
    };
    match call.ask {
        SinkAsk::Facts {
            table,
            datasets,
            since_s,
            until_s,
            from,
            below,
        } => {
            let minutes = facts::Minutes {
                since_s,
                until_s,
                from,
                below,
            };
            let mut facts = facts::facts(&site, &table, &datasets, minutes).await?;
            facts.servers = u32::try_from(servers.distinct().len()).unwrap_or(u32::MAX);
            Ok(SinkTold::Facts(facts))
        }
        SinkAsk::Kept { table, from, to } => facts::kept(&site, &table, (from, to)).await.map(SinkTold::Kept),
        SinkAsk::Letters { from, to } => facts::letters(&site, (from, to)).await.map(SinkTold::Kept),
        SinkAsk::Prepare { tables } => beside::prepare(&site, &tables).await.map(done),
        SinkAsk::Compare { table, tenant, spans } => {
            let diff = compare::compare(&site, &table, tenant.as_ref(), &spans).await;
            diff.map(SinkTold::Compared)
        }
        SinkAsk::Covers { table } => covers::covers(&site, &table).await.map(SinkTold::Covers),
        SinkAsk::Fill { table } => covers::fill(&site, &table).await.map(SinkTold::Filled),
        SinkAsk::Save { table, part } => swap::save(&site, &table, &part).await.map(done),
        SinkAsk::Swap {
            table,
            part,
            live,
            shadow,
        } => swap::swap(&site, (&table, &part), (live, shadow)).await.map(done),
        SinkAsk::Fence { tables } => beside::drop_beside(&site, &tables, &[Beside::Shadow])
            .await
            .map(done),
        SinkAsk::Shadows { tables } => beside::shadows(&site, tables).await.map(SinkTold::Shadows),
        SinkAsk::Drop { tables } => {
            let both = [Beside::Shadow, Beside::Before];
            beside::drop_beside(&site, &tables, &both).await.map(done)
        }
    }
}

fn done((): ()) -> SinkTold {
    SinkTold::Done
}

/// Where one call happens, and for which replay.
struct Site<'s> {
    server: &'s Server,
    id: ReplayId,
    log: LogId,
    partition: u16,
    deadline: Instant,
}

impl Site<'_> {
    fn shadow(&self, table: &Name) -> Name {
        self.id.table(table, Beside::Shadow)
    }

    fn before(&self, table: &Name) -> Name {
        self.id.table(table, Beside::Before)
    }

    /// A table's name in statements.
    fn full(&self, table: &Name) -> String {
        format!("`{}`.`{table}`", self.server.client.database())
    }

    /// The table as it is now; never made, and never from memory.
    async fn look(&self, table: &Name) -> Result<Option<Table>, String> {
        match describe(&self.server.client, table, self.deadline).await {
            Ok(described) => Ok(Some(described)),
            Err(DescribeError::Missing(_)) => Ok(None),
            Err(DescribeError::Server(error)) => {
                Err(sentence(&format!("looking at table {table}"), "SELECT", &error))
            }
        }
    }

    /// A table that must be there, with rows that can be told apart.
    async fn table(&self, table: &Name) -> Result<Table, String> {
        let found = self.look(table).await?;
        let found = found.ok_or_else(|| {
            format!("table {table} does not exist: create it (`ingestctl check --ddl` prints how)")
        })?;
        match refusal(&found) {
            Some(why) => Err(why),
            None => Ok(found),
        }
    }

    /// The shadow of a table, which must be there.
    async fn shadow_of(&self, table: &Name) -> Result<Name, String> {
        let shadow = self.shadow(table);
        match self.look(&shadow).await? {
            Some(_) => Ok(shadow),
            None => Err(format!(
                "replay {} has no shadow of table {table}: `{shadow}` was dropped; discard the replay, and plan anew",
                self.id
            )),
        }
    }

    async fn rows(
        &self,
        doing: &str,
        sql: &str,
        settings: &[(&str, &str)],
    ) -> Result<Vec<Vec<Value>>, String> {
        let asked = self.server.client.rows_with(sql, settings, self.deadline).await;
        asked.map_err(|error| sentence(doing, "SELECT", &error))
    }

    /// Runs a statement without rows that takes `grant`.
    async fn act(
        &self,
        (doing, grant): (&str, &str),
        sql: &str,
        settings: &[(&str, &str)],
    ) -> Result<(), String> {
        let acted = self.server.client.rows_with(sql, settings, self.deadline).await;
        acted.map(|_| ()).map_err(|error| sentence(doing, grant, &error))
    }

    /// Rows by partition id, in order.
    async fn parts(&self, table: &Name) -> Result<Vec<(String, u64)>, String> {
        let sql = format!(
            "SELECT _partition_id AS part, count() FROM {} GROUP BY part ORDER BY part",
            self.full(table)
        );
        let rows = self
            .rows(&format!("counting table {table}"), &sql, &GENTLE)
            .await?;
        let part = |row: &Vec<Value>| Some((text(row, 0)?.to_owned(), number(row, 1)?));
        rows.iter()
            .map(part)
            .collect::<Option<_>>()
            .ok_or_else(|| odd(table))
    }
}

/// Why a table's rows cannot be replayed, if so.
fn refusal(table: &Table) -> Option<String> {
    (!table.verifiable).then(|| {
        format!(
            "table {} cannot be replayed: it takes an engine that keeps every row apart (MergeTree, ReplicatedMergeTree or \
             SharedMergeTree) and the columns {KEY}",
            table.name
        )
    })
}

/// `_src_o` of the first row of a record, for any offset that may be asked for.
fn first_o(offset: Offset) -> u64 {
    if offset < END_OF_OFFSETS {
        offset << 16
    } else {
        u64::MAX
    }
}

/// What failed, and what to do about it.
fn sentence(doing: &str, grant: &str, error: &ServerError) -> String {
    match error {
        ServerError::Definite { code: 497, message } => format!(
            "{doing}: ClickHouse code 497: {message}; GRANT {grant} ON the database to the account in `clickhouse.user` \
             (docs/operations.md, \"What the account in ClickHouse must be allowed\")"
        ),
        ServerError::Definite { code: 216, .. } => {
            format!("{doing}: an earlier try of it still runs (ClickHouse code 216): try again in a while")
        }
        ServerError::Definite {
            code: code @ (159 | 160),
            ..
        } => format!("{doing}: it did not end in its time (ClickHouse code {code}): try again"),
        ServerError::Definite { code: 243, message } => {
            format!("{doing}: ClickHouse code 243: {message}; make room on its disk, and try again")
        }
        ServerError::Definite { code: 241, message } => {
            format!("{doing}: ClickHouse code 241: {message}; try again once it has memory to spare")
        }
        ServerError::Definite { code, message } => format!("{doing}: ClickHouse code {code}: {message}"),
        ServerError::Unreached(reason) => {
            format!(
                "{doing}: ClickHouse was not reached, so nothing was done: {reason}; try again once it answers"
            )
        }
        ServerError::Uncertain(reason) => {
            format!("{doing}: {reason}; whether it was done is not known: try again, which does it once")
        }
    }
}

fn odd(table: &Name) -> String {
    format!("table {table}: the answer is not what was asked: does a proxy stand before ClickHouse?")
}

fn text(row: &[Value], at: usize) -> Option<&str> {
    row.get(at)?.as_str()
}

fn number(row: &[Value], at: usize) -> Option<u64> {
    row.get(at)?.as_u64()
}
