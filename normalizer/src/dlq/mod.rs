//! Control routes of dead letters: looking through them, and settling them by hand.
//!
//! ClickHouse is reached through the sink-writer alone. Orders name letters, not filters: what a person
//! saw in a list is what is settled. A letter of a range that is not committed, or that is set aside, is
//! left alone: its range may be verified again, and counts rows and letters by their provenance.

mod query;
mod settle;

use crate::service::IntakeService;
use axum::extract::{Path, RawQuery, State};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use sluice_common::admin::Refused;
use sluice_common::ids::{Name, offset_of};
use sluice_common::letters::{Letter, LetterId, LettersAsk, LettersCall, LettersTold, Settled};
use sluice_common::limits::{MAX_LETTERS_DISCARDED, MAX_LETTERS_RETRIED};
use sluice_common::serve::PeerAddress;
use sluice_common::wire::sink::{SinkReply, SinkRequest};
use sluice_common::wire::transport::Seam;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

/// How long ClickHouse may take to answer a question.
const READ_DEADLINE: Duration = Duration::from_secs(20);
/// How long one order may take; what was not reached by then is told as unknown.
const ORDER_DEADLINE: Duration = Duration::from_secs(45);
/// Characters of an order's reason that are logged.
const MAX_LOGGED_CHARS: usize = 200;

/// What the routes stand on.
pub struct DeadLetters {
    pub sink: Seam<SinkRequest>,
    pub service: Arc<IntakeService>,
    /// One order at a time: two would settle the same letter at once.
    pub gate: Arc<Semaphore>,
}

/// The answer of the list.
#[derive(Debug, Serialize)]
struct Listed {
    /// Newest first.
    letters: Vec<Letter>,
    /// What is not listed, each a sentence; empty where the list is complete.
    notes: Vec<String>,
}

/// The answer of an order.
#[derive(Debug, Serialize)]
struct Told {
    letters: Vec<Settled>,
}

/// Which letters to try again.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetryOrder {
    ids: Vec<LetterId>,
    /// Whether events whose identity is taken are stored as rows of their own.
    #[serde(default)]
    conflicts: bool,
}

/// Which letters to delete.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiscardOrder {
    ids: Vec<LetterId>,
    /// How they were chosen, for the log.
    #[serde(default)]
    chosen_by: String,
}

type Shared = State<Arc<DeadLetters>>;

impl DeadLetters {
    /// The routes.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/admin/v1/dlq", get(list))
            .route("/admin/v1/dlq/{id}", get(show))
            .route("/admin/v1/dlq/retry", post(retry))
            .route("/admin/v1/dlq/discard", post(discard))
            .with_state(Arc::new(self))
    }

    async fn ask(&self, ask: LettersAsk, timeout: Duration) -> Result<(LettersTold, Vec<String>), Refused> {
        let call = SinkRequest::Letters(LettersCall { ask, timeout });
        let reason = match self.sink.clone().oneshot(call).await {
            Ok(SinkReply::Letters(told, silent)) => return Ok((told, silent)),
            Ok(other) => other.not_an_answer(),
            Err(never) => match never {},
        };
        Err(unusable(format!(
            "dead letters cannot be reached in ClickHouse now: {reason}; asking again does no harm"
        )))
    }

    /// Letters, and the servers that were not asked because they do not answer.
    async fn letters(&self, ask: LettersAsk) -> Result<(Vec<Letter>, Vec<String>), Refused> {
        match self.ask(ask, READ_DEADLINE).await? {
            (LettersTold::Letters(letters), silent) => Ok((letters, silent)),
            (LettersTold::Settled(_), _) => Err(odd()),
        }
    }

    async fn settled(&self, ask: LettersAsk, timeout: Duration) -> Result<Vec<Settled>, Refused> {
        match self.ask(ask, timeout).await? {
            (LettersTold::Settled(settled), _) => Ok(settled),
            (LettersTold::Letters(_), _) => Err(odd()),
        }
    }

    /// Whether the letter's range may be verified or sent once more. Letters of other logs are of ranges
    /// that this normalizer does not settle.
    fn is_in_flight(&self, id: LetterId) -> bool {
        if id.log != self.service.log.id() {
            return false;
        }
        let Some(work) = self.service.owned.get(id.partition) else {
            // Another process works on it, which alone can say.
            return true;
        };
        let offset = offset_of(id.source_o);
        // In this order: what is set aside is on the shelf before its range is committed.
        if offset >= work.committed() {
            return true;
        }
        let units = work.shelf.units();
        units.iter().any(|(unit, _)| (unit.a..unit.b).contains(&offset))
    }
}

impl DeadLetters {
    /// Whether rows of a table are set aside for a promotion, here or by whoever works on a partition of the log.
    fn is_held(&self, table: &Name) -> bool {
        self.service.log.is_held(table) || self.service.owned.any(|work| work.shelf.is_held(table))
    }
}

fn unusable(detail: String) -> Refused {
    Refused::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "dead_letters_unreachable",
        detail,
    )
}

fn odd() -> Refused {
    unusable("the sink-writer answers another question: are all services of one release?".into())
}

fn bad(detail: impl Into<String>) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, "bad_admin_request", detail)
}

async fn list(State(dlq): Shared, RawQuery(query): RawQuery) -> Result<Json<Listed>, Refused> {
    let now_ms = dlq.service.clock.now_ms();
    let (filter, limit) = query::parse(query.as_deref().unwrap_or_default(), now_ms).map_err(bad)?;
    let (letters, silent) = dlq.letters(LettersAsk::List { filter, limit }).await?;
    let note =
        |reason: String| format!("letters of a ClickHouse that does not answer are not listed: {reason}");
    let notes = silent.into_iter().map(note).collect();
    Ok(Json(Listed { letters, notes }))
}

async fn show(State(dlq): Shared, Path(id): Path<String>) -> Result<Json<Letter>, Refused> {
    let id = id.parse::<LetterId>().map_err(|error| bad(error.to_string()))?;
    let (found, silent) = dlq.letters(LettersAsk::Show(id)).await?;
    if found.is_empty() && !silent.is_empty() {
        return Err(unusable(format!(
            "the ClickHouse that may have the letter does not answer: {}",
            silent.join("; ")
        )));
    }
    found.into_iter().next().map(Json).ok_or_else(|| {
        let detail = format!("there is no dead letter {id}: it was settled, or has expired");
        Refused::new(StatusCode::NOT_FOUND, "unknown_dead_letter", detail)
    })
}

async fn retry(State(dlq): Shared, Json(order): Json<RetryOrder>) -> Result<Json<Told>, Refused> {
    let ids = distinct(order.ids, MAX_LETTERS_RETRIED)?;
    let _turn = dlq.turn().await?;
    let letters = dlq.retry(ids, order.conflicts).await?;
    Ok(Json(Told { letters }))
}

async fn discard(
    State(dlq): Shared,
    Extension(peer): Extension<PeerAddress>,
    Json(order): Json<DiscardOrder>,
) -> Result<Json<Told>, Refused> {
    let ids = distinct(order.ids, MAX_LETTERS_DISCARDED)?;
    let _turn = dlq.turn().await?;
    let letters = dlq.discard(ids).await?;
    let is_open = |one: &&Settled| one.outcome.is_open();
    let kept = letters.iter().filter(is_open).count();
    let chosen_by: String = order.chosen_by.chars().take(MAX_LOGGED_CHARS).collect();
    tracing::warn!(
        peer = %peer.0,
        discarded = letters.len() - kept,
        kept,
        ?chosen_by,
        first = letters.first().map(|one| one.id.to_string()),
        "dead letters were discarded by hand"
    );
    Ok(Json(Told { letters }))
}

/// The letters of an order, each once.
fn distinct(mut ids: Vec<LetterId>, most: usize) -> Result<Vec<LetterId>, Refused> {
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() || ids.len() > most {
        return Err(bad(format!("name 1 to {most} letters in `ids`")));
    }
    Ok(ids)
}
