//! Orders: each letter by its stage.

use super::{DeadLetters, ORDER_DEADLINE, READ_DEADLINE, unusable};
use bytes::Bytes;
use sluice_common::admin::Refused;
use sluice_common::config::Weight;
use sluice_common::ids::{Name, RequestId, TenantId};
use sluice_common::letters::{
    Content, DEDUP, INTAKE, Letter, LetterId, LetterTask, LettersAsk, Outcome, Settled,
};
use sluice_common::trace::TraceContext;
use sluice_common::wire::intake::{BodyFormat, IntakeReply, IntakeRequest, RowError};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

/// What the sink-writer's answer may take beyond its own deadline.
const SLACK: Duration = Duration::from_secs(1);

/// A letter that no server has told of.
fn missing(id: LetterId, complete: bool) -> Settled {
    if complete {
        return Settled::plain(id, Outcome::Gone);
    }
    Settled::unknown(id, "the ClickHouse that may have it does not answer")
}

impl DeadLetters {
    /// The right to change letters.
    pub(super) async fn turn(&self) -> Result<SemaphorePermit<'_>, Refused> {
        let turn = self.gate.acquire().await;
        turn.map_err(|_| unusable("the normalizer is stopping".into()))
    }

    /// Stores what was acknowledged, and sends in again what was rejected.
    pub(super) async fn retry(&self, ids: Vec<LetterId>, conflicts: bool) -> Result<Vec<Settled>, Refused> {
        let until = Instant::now() + ORDER_DEADLINE;
        let (mut heads, complete) = self.heads(&ids).await?;
        let (mut settled, mut tasks, mut copies) = (Vec::new(), Vec::new(), Vec::new());
        for id in ids {
            let Some(letter) = heads.remove(&id) else {
                settled.push(missing(id, complete));
                continue;
            };
            match self.plan(&letter, conflicts) {
                Err(stays) => settled.push(stays),
                Ok(_) if letter.stage == INTAKE => copies.push(letter),
                Ok(task) => tasks.push(task),
            }
        }
        if !tasks.is_empty() {
            settled.extend(self.settled(LettersAsk::Retry(tasks), left(until)).await?);
        }
        for letter in copies {
            settled.push(self.send_in(letter, until).await);
        }
        Ok(settled)
    }

    /// Deletes letters.
    pub(super) async fn discard(&self, ids: Vec<LetterId>) -> Result<Vec<Settled>, Refused> {
        let (mut heads, complete) = self.heads(&ids).await?;
        let (mut settled, mut tasks) = (Vec::new(), Vec::new());
        for id in ids {
            match heads.remove(&id) {
                None => settled.push(missing(id, complete)),
                Some(_) if self.is_in_flight(id) => settled.push(in_flight(id)),
                Some(letter) => tasks.push(LetterTask {
                    id,
                    table: self.table(&letter),
                }),
            }
        }
        if !tasks.is_empty() {
            settled.extend(self.settled(LettersAsk::Discard(tasks), ORDER_DEADLINE).await?);
        }
        Ok(settled)
    }

    /// The letters that are there, and whether every server was asked.
    async fn heads(&self, ids: &[LetterId]) -> Result<(BTreeMap<LetterId, Letter>, bool), Refused> {
        let (heads, silent) = self.letters(LettersAsk::Heads(ids.to_vec())).await?;
        let heads = heads.into_iter().map(|letter| (letter.id, letter));
        Ok((heads.collect(), silent.is_empty()))
    }

    /// The table of the letter's row; none for a copy, and where the config has no such dataset any more.
    fn table(&self, letter: &Letter) -> Option<Name> {
        if letter.stage == INTAKE {
            return None;
        }
        let tenant = TenantId::new(&letter.tenant).ok()?;
        let schema = self.service.intake.schema(&letter.dataset, &tenant)?;
        Some(schema.table().clone())
    }

    fn plan(&self, letter: &Letter, conflicts: bool) -> Result<LetterTask, Settled> {
        let id = letter.id;
        if self.is_in_flight(id) {
            return Err(in_flight(id));
        }
        // Most are the same event, with a new timestamp, from a client that tried again: stored only where
        // somebody asked for just these.
        if letter.stage == DEDUP && !conflicts {
            let message = "another content came under its Idempotency-Key before it: name the letter, or \
                           `--reason idempotency_conflict`, to store it as a row of its own";
            return Err(Settled::refused(id, "idempotency_conflict", message));
        }
        let table = self.table(letter);
        if table.as_ref().is_some_and(|table| self.is_held(table)) {
            let message =
                "a replay puts others in the places of its table's rows: ask again when that is over";
            return Err(Settled::refused(id, "in_flight", message));
        }
        if table.is_none() && letter.stage != INTAKE {
            let message = format!(
                "the config has no dataset {}: add it again, or discard the letter",
                letter.dataset
            );
            return Err(Settled::refused(id, "unknown_dataset", message));
        }
        Ok(LetterTask { id, table })
    }

    /// Sends the copy of a rejected row in again, as an event of its own. Once that is durable, the letter
    /// goes; a retry that is cut short between the two is a repeat, which dedup drops.
    async fn send_in(&self, letter: Letter, until: Instant) -> Settled {
        let id = letter.id;
        if left(until) <= SLACK {
            return Settled::unknown(id, "no time was left for it: retry it again");
        }
        let shown = self.letters(LettersAsk::Show(id)).await;
        let content = match shown {
            Ok((shown, _)) => shown.into_iter().next().and_then(|letter| letter.content),
            Err(_) => return Settled::unknown(id, "ClickHouse does not answer"),
        };
        let Some(content) = content else {
            return Settled::plain(id, Outcome::Gone);
        };
        let request = match event_of(&letter, content, left(until)) {
            Ok(request) => request,
            Err(stays) => return stays,
        };
        match self.service.first_fault(&request) {
            Ok(None) => {}
            Ok(Some(error)) => return refused_row(id, error),
            Err(Some(problem)) => return Settled::refused(id, problem.code, problem.detail),
            Err(None) => return Settled::unknown(id, "intake is full"),
        }
        match self.service.handle(request).await {
            IntakeReply::Rows(mut answer) => match answer.errors.pop() {
                Some(error) => refused_row(id, error),
                None => self.drop_copy(id).await,
            },
            IntakeReply::Refused(problem) => Settled::refused(id, problem.code, problem.detail),
            IntakeReply::Busy { reason, .. }
            | IntakeReply::Unavailable { reason, .. }
            | IntakeReply::Unreached { reason } => Settled::unknown(id, reason),
        }
    }

    async fn drop_copy(&self, id: LetterId) -> Settled {
        let task = LetterTask { id, table: None };
        match self.settled(LettersAsk::Discard(vec![task]), READ_DEADLINE).await {
            Ok(_) => Settled::plain(id, Outcome::Accepted),
            Err(_) => {
                let message = "it was taken as an event, and the letter could not be deleted: retry it within the \
                               dedup window, which drops the repeat, or discard it";
                Settled::unknown(id, message)
            }
        }
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

fn in_flight(id: LetterId) -> Settled {
    let message =
        "its range is not settled yet, or some of it is set aside: `ingestctl parked list`; ask again later";
    Settled::refused(id, "in_flight", message)
}

fn refused_row(id: LetterId, error: RowError) -> Settled {
    let place = if error.field.is_empty() {
        String::new()
    } else {
        format!("{}: ", error.field)
    };
    Settled::refused(id, error.code, format!("{place}{}", error.message))
}

/// The request of one event, known by its letter where its dataset has no key.
fn event_of(letter: &Letter, content: Content, timeout: Duration) -> Result<IntakeRequest, Settled> {
    let stays = |message: &str| Settled::refused(letter.id, "not_an_event", message);
    let tenant = TenantId::new(&letter.tenant).map_err(|_| stays("its tenant's id is none"))?;
    let sent = content.payload.trim();
    if !sent.starts_with('{') || !sent.ends_with('}') {
        let message = "its payload is no whole JSON object: it was cut, or was none when it was sent";
        return Err(stays(message));
    }
    Ok(IntakeRequest {
        tenant,
        weight: Weight::default(),
        dataset: letter.dataset.clone(),
        request: RequestId::random(),
        idempotency_key: Some(format!("dlq:{}", letter.id)),
        format: BodyFormat::Json,
        body: Bytes::from(content.payload),
        timeout,
        trace: TraceContext::default(),
    })
}
