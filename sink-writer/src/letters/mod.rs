//! Dead letters by hand: looking through them, storing their rows after all, deleting them.

mod read;
mod retry;

use crate::client::{Client, ServerError};
use crate::tables::{DescribeError, Tables};
use retry::Retry;
use sluice_common::ids::Name;
use sluice_common::letters::{LetterId, LetterTask, LettersAsk, LettersCall, LettersTold, Outcome, Settled};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;

/// Answers a question about dead letters.
///
/// # Errors
/// A sentence, where nothing could be asked; what was done to single letters is in their outcomes.
pub(crate) async fn answer(
    client: &Client,
    tables: &Tables,
    call: LettersCall,
) -> Result<LettersTold, String> {
    let deadline = Instant::now() + call.timeout;
    let told = |error: ServerError| format!("table dead_letters: {error}");
    match call.ask {
        LettersAsk::List { filter, limit } => {
            let found = read::list(client, &filter, limit, deadline).await;
            found.map(LettersTold::Letters).map_err(told)
        }
        LettersAsk::Heads(ids) => {
            let found = read::heads(client, &ids, deadline).await;
            found.map(LettersTold::Letters).map_err(told)
        }
        LettersAsk::Show(id) => {
            let found = read::show(client, id, deadline).await.map_err(told)?;
            Ok(LettersTold::Letters(found.into_iter().collect()))
        }
        LettersAsk::Retry(tasks) => {
            let retry = Retry {
                client,
                tables,
                deadline,
            };
            Ok(LettersTold::Settled(retry.all(tasks).await))
        }
        LettersAsk::Discard(tasks) => {
            let settled = discard(client, tables, tasks, deadline).await?;
            Ok(LettersTold::Settled(settled))
        }
    }
}

/// Deletes letters but those whose rows are stored: a retry was cut short between row and books, and only
/// another one books it.
async fn discard(
    client: &Client,
    tables: &Tables,
    tasks: Vec<LetterTask>,
    deadline: Instant,
) -> Result<Vec<Settled>, String> {
    let mut by_table: BTreeMap<Name, Vec<LetterId>> = BTreeMap::new();
    for task in &tasks {
        if let Some(table) = &task.table {
            by_table.entry(table.clone()).or_default().push(task.id);
        }
    }
    let mut stored = BTreeSet::new();
    for (name, ids) in by_table {
        match tables.get(&name, deadline).await {
            Ok(table) if table.verifiable => {
                let found = read::stored(client, &name, &ids, deadline).await;
                stored.extend(found.map_err(|error| format!("table {name}: {error}"))?);
            }
            // A retry stores nothing there.
            Ok(_) | Err(DescribeError::Missing(_)) => {}
            Err(error @ DescribeError::Server(_)) => return Err(format!("table {name}: {error}")),
        }
    }
    let (kept, gone): (Vec<LetterTask>, Vec<LetterTask>) =
        tasks.into_iter().partition(|task| stored.contains(&task.id));
    let gone: Vec<LetterId> = gone.into_iter().map(|task| task.id).collect();
    read::delete(client, &gone, deadline)
        .await
        .map_err(|error| format!("table dead_letters: {error}"))?;
    let kept = kept.into_iter().map(|task| {
        let message = "its row is stored, and not booked yet: `ingestctl dlq retry` finishes that";
        Settled::refused(task.id, "row_stored", message)
    });
    let gone = gone.into_iter().map(|id| Settled::plain(id, Outcome::Discarded));
    Ok(kept.chain(gone).collect())
}
