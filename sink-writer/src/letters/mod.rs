//! Dead letters by hand: looking through them, storing their rows after all, deleting them.

mod read;
mod retry;

use crate::client::{Client, ServerError};
use crate::servers::{Server, Servers};
use crate::tables::{DescribeError, Tables};
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use retry::Retry;
use sluice_common::ids::Name;
use sluice_common::letters::{
    Letter, LetterId, LetterTask, LettersAsk, LettersCall, LettersTold, Outcome, Settled,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use tokio::time::Instant;

/// Answers a question about dead letters, and says which servers did not answer: a letter is on the server
/// that took its range, and is settled there.
///
/// # Errors
/// A sentence, where nothing could be asked; what was done to single letters is in their outcomes.
pub(crate) async fn answer(
    servers: &Servers,
    call: LettersCall,
) -> Result<(LettersTold, Vec<String>), String> {
    let deadline = Instant::now() + call.timeout;
    let servers = servers.distinct();
    match call.ask {
        LettersAsk::Retry(tasks) => {
            let (settled, silent) = settle(&servers, (tasks, Order::Retry), deadline).await?;
            Ok((LettersTold::Settled(settled), silent))
        }
        LettersAsk::Discard(tasks) => {
            let (settled, silent) = settle(&servers, (tasks, Order::Discard), deadline).await?;
            Ok((LettersTold::Settled(settled), silent))
        }
        ask @ (LettersAsk::List { .. } | LettersAsk::Heads(_) | LettersAsk::Show(_)) => {
            let (letters, silent) = gather(&servers, &ask, deadline).await?;
            Ok((LettersTold::Letters(letters), silent))
        }
    }
}

/// What is to become of letters.
#[derive(Clone, Copy)]
enum Order {
    Retry,
    Discard,
}

/// The letters of one server that are asked for.
async fn letters_of(
    server: &Server,
    ask: &LettersAsk,
    deadline: Instant,
) -> Result<Vec<Letter>, ServerError> {
    match ask {
        LettersAsk::List { filter, limit } => read::list(&server.client, filter, *limit, deadline).await,
        LettersAsk::Heads(ids) => read::heads(&server.client, ids, deadline).await,
        LettersAsk::Show(id) => {
            let found = read::show(&server.client, *id, deadline).await;
            found.map(|letter| letter.into_iter().collect())
        }
        LettersAsk::Retry(_) | LettersAsk::Discard(_) => Ok(Vec::new()),
    }
}

/// The letters of all servers, or why a server did not answer, in the servers' order.
async fn letters_by_server(
    servers: &[Arc<Server>],
    ask: &LettersAsk,
    deadline: Instant,
) -> Vec<Result<Vec<Letter>, String>> {
    let mut asked = Vec::with_capacity(servers.len());
    for server in servers {
        asked.push(letters_of(server, ask, deadline).boxed());
    }
    let answers = join_all(asked).await.into_iter().zip(servers);
    let named = |(answer, server): (Result<_, ServerError>, &Arc<Server>)| {
        answer.map_err(|error| format!("{}: table dead_letters: {error}", server.name))
    };
    answers.map(named).collect()
}

/// The letters of all servers that answer, newest first, each once; and which do not answer.
async fn gather(
    servers: &[Arc<Server>],
    ask: &LettersAsk,
    deadline: Instant,
) -> Result<(Vec<Letter>, Vec<String>), String> {
    let (mut letters, mut silent) = (Vec::new(), Vec::new());
    for answer in letters_by_server(servers, ask, deadline).await {
        match answer {
            Ok(found) => letters.extend(found),
            Err(reason) => silent.push(reason),
        }
    }
    if silent.len() == servers.len() {
        return Err(silent.join("; "));
    }
    if servers.len() > 1 {
        letters.sort_by_key(|letter| std::cmp::Reverse((letter.time_ms, letter.id.source_o, letter.id)));
        // Replicas show the same letter each.
        letters.dedup_by_key(|letter| letter.id);
    }
    if let LettersAsk::List { limit, .. } = ask {
        letters.truncate(*limit as usize);
    }
    Ok((letters, silent))
}

/// Settles letters, each at the server that has it.
async fn settle(
    servers: &[Arc<Server>],
    (tasks, order): (Vec<LetterTask>, Order),
    deadline: Instant,
) -> Result<(Vec<Settled>, Vec<String>), String> {
    if let [only] = servers {
        return Ok((settle_at(only, (tasks, order), deadline).await?, Vec::new()));
    }
    let ids: Vec<LetterId> = tasks.iter().map(|task| task.id).collect();
    let (mut homes, mut silent) = (HashMap::new(), Vec::new());
    let answers = letters_by_server(servers, &LettersAsk::Heads(ids), deadline).await;
    for (at, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(letters) => letters.iter().for_each(|letter| {
                homes.entry(letter.id).or_insert(at);
            }),
            Err(reason) => silent.push(reason),
        }
    }
    let mut settled = Vec::with_capacity(tasks.len());
    for (at, server) in servers.iter().enumerate() {
        let here = tasks.iter().filter(|task| homes.get(&task.id) == Some(&at));
        let here: Vec<LetterTask> = here.cloned().collect();
        if !here.is_empty() {
            settled.extend(settle_at(server, (here, order), deadline).await?);
        }
    }
    let nowhere = tasks.iter().filter(|task| !homes.contains_key(&task.id));
    settled.extend(nowhere.map(|task| match silent.as_slice() {
        [] => Settled::plain(task.id, Outcome::Gone),
        [..] => Settled::unknown(task.id, "the server that may have it does not answer"),
    }));
    Ok((settled, silent))
}

async fn settle_at(
    server: &Server,
    (tasks, order): (Vec<LetterTask>, Order),
    deadline: Instant,
) -> Result<Vec<Settled>, String> {
    let (client, tables) = (&server.client, &*server.tables);
    match order {
        Order::Retry => {
            let retry = Retry {
                client,
                tables,
                deadline,
            };
            Ok(retry.all(tasks).await)
        }
        Order::Discard => discard(client, tables, tasks, deadline).await,
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
