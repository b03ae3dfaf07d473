//! A partition's start: is the state of one piece (R19), what did dedup know, what became of the
//! range that was declared.

use super::drive::{Driver, Start};
use super::range::OpenRange;
use super::{Pump, PumpError};
use crate::dedup::DedupError;
use crate::log::ReadError;
use crate::progress::Intent;
use crate::runtime::{block_in_place, sleep};
use sluice_common::failpoint::{self, Safety};
use sluice_common::ids::{Name, Offset, source_o};
use sluice_common::limits::{INSERT_DEADLINE_MAX, LOG_READ_BYTES, RETRY_BACKOFF_MAX, RETRY_BACKOFF_MIN};
use sluice_common::record::Record;
use sluice_common::wire::sink::Horizon;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Why a partition must not start.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error(
        "the dedup state covers records up to {applied}, but only {committed} are committed: progress went \
         backwards (an old copy was restored?). Restore log, progress and dedup together, from one moment"
    )]
    DedupAhead { applied: Offset, committed: Offset },
    #[error(
        "dedup needs the log from record {need}, and it begins at {first}: within the dedup window repeats would \
         be stored twice. Restore the dedup directory, or accept that with --accept-window-loss"
    )]
    WindowLost { need: Offset, first: Offset },
    #[error(
        "the declared range {a}..{b} does not come out as it was declared: the log or the dedup state was changed. \
         Restore log, progress and dedup together"
    )]
    IntentDiffers { a: Offset, b: Offset },
    #[error(transparent)]
    Ahead(#[from] RowsAhead),
}

/// Rows that no range of this process's progress can have written (R19).
#[derive(Debug, thiserror::Error)]
#[error(
    "table {table} already holds rows of this log past record {end} (up to {found}): progress went backwards \
     (an old copy was restored?), and going on would store events twice or lose them. Restore the newest copy, and \
     do not delete those rows to get on"
)]
pub struct RowsAhead {
    table: Name,
    end: Offset,
    found: Offset,
}

/// Between two looks whether a bucket of the dedup state has been sealed.
const SEAL_WAIT: Duration = Duration::from_millis(20);
pub(super) const HORIZON_DEADLINE: Duration = Duration::from_secs(20);

impl Pump {
    /// Unknown → ready to read on. `None`: told to stop before that.
    pub(super) async fn recover(&mut self) -> Result<Option<()>, PumpError> {
        let progress = self.store.lock().state().clone();
        let from = self.dedup_start(progress.committed)?;
        self.replay(from, progress.committed).await?;
        let found = match &progress.intent {
            Some(intent) => Some(self.decide_intent(intent).await?),
            None => None,
        };
        self.note_dedup();
        if self.check_horizon(progress.end()).await?.is_none() {
            return Ok(None);
        }
        if self.leaves() {
            return Ok(None);
        }
        self.next = OpenRange::at(progress.end());
        if let (Some(closed), Some(intent)) = (found, progress.intent) {
            tracing::info!(
                a = intent.range.a,
                b = intent.range.b,
                "verifying the range that was declared before the stop"
            );
            let server = intent.server.or_else(|| self.driver.servers.first());
            // They were asked just now.
            let server = server.ok_or(PumpError::Stopped)?;
            self.settle(Arc::new(closed.close()), Start::Found(intent.marks), server);
        }
        Ok(Some(()))
    }

    /// Where the log has to be read from so that dedup knows what it knew.
    fn dedup_start(&self, committed: Offset) -> Result<Offset, PumpError> {
        let first = self.log.first_offset();
        if let Some(applied) = self.dedup.applied() {
            if applied > committed {
                return Err(RecoverError::DedupAhead { applied, committed }.into());
            }
            if applied < first {
                return Err(RecoverError::WindowLost { need: applied, first }.into());
            }
            return Ok(applied);
        }
        // No state at all: one window of log rebuilds it (R7).
        let (start, need) = self.window_start(committed)?;
        if need >= first {
            return Ok(start.max(first));
        }
        if self.accept_window_loss {
            tracing::warn!(
                first,
                "the dedup window is lost as accepted: repeats of older events will be stored"
            );
            return Ok(first);
        }
        Err(RecoverError::WindowLost { need, first }.into())
    }

    /// A place at or before the first record that lies within one window of the last committed one; and from where on
    /// the log is needed, as far as can be said: records below its first one are gone, and they matter unless the
    /// first is already too old to.
    fn window_start(&self, committed: Offset) -> Result<(Offset, Offset), PumpError> {
        let first = self.log.first_offset();
        if committed == 0 {
            return Ok((first, first));
        }
        if committed <= first {
            return Ok((first, 0));
        }
        // The pump's own place in the log is left alone.
        let beside = self.log.beside();
        let newest = block_in_place(|| beside.read(committed - 1, 1))?;
        let Some(newest) = newest.first() else {
            return Ok((first, 0));
        };
        let window_ms = self
            .store
            .lock()
            .state()
            .window_ms
            .unwrap_or(0)
            .max(self.taken.max_window_ms);
        let since = newest.place.append_ms.saturating_sub(window_ms);
        if self.store.lock().is_shared() {
            // Twice the window, where the log has it: an `Idempotency-Key`'s first content may be older than one.
            let start = block_in_place(|| self.log.appended_since(since.saturating_sub(window_ms)))?;
            let is_whole = first == 0 || block_in_place(|| self.log.appended_since(since))? > first;
            return Ok((start, if is_whole { first } else { 0 }));
        }
        let oldest = block_in_place(|| beside.read(first, 1))?;
        let reaches_back = |oldest: &Record| oldest.place.append_ms <= since;
        let is_whole = first == 0 || oldest.first().is_some_and(reaches_back);
        Ok((first, if is_whole { first } else { 0 }))
    }

    async fn replay(&mut self, from: Offset, to: Offset) -> Result<(), PumpError> {
        let mut at = from;
        if to > from {
            tracing::info!(from, to, "reading the log again for the dedup state");
        }
        while at < to {
            for record in self.read(at).await? {
                if record.place.offset >= to {
                    break;
                }
                match block_in_place(|| self.dedup.absorb(&record)) {
                    Err(DedupError::Stalled { .. }) => {
                        self.wait_for_seal().await?;
                        break;
                    }
                    absorbed => absorbed?,
                }
                self.note_table(&record.meta.table);
                at = record.place.offset + 1;
            }
            // Seals what is behind, so that memory stays bounded; all of it is committed.
            block_in_place(|| self.dedup.committed(at))?;
        }
        self.log.set_progress(to, self.dedup.sealed());
        Ok(())
    }

    /// Reads what was there before this start. Brokers that give nothing now are waited for.
    async fn read(&mut self, from: Offset) -> Result<Vec<Record>, PumpError> {
        loop {
            if self.leaves() {
                return Err(PumpError::Stopped);
            }
            match block_in_place(|| self.log.read(from, LOG_READ_BYTES)) {
                Err(ReadError::Unavailable(reason)) => {
                    tracing::warn!(reason, from, "the log cannot be read yet");
                    if self.stop.is_cancelled() {
                        return Err(PumpError::Stopped);
                    }
                    sleep(RETRY_BACKOFF_MIN).await;
                }
                read => return Ok(read?),
            }
        }
    }

    /// Decides the declared range's records again: they must come out the same.
    async fn decide_intent(&mut self, intent: &Intent) -> Result<OpenRange, PumpError> {
        let mut range = OpenRange::at(intent.range.a);
        while range.end() < intent.range.b {
            for record in self.read(range.end()).await? {
                if record.place.offset >= intent.range.b {
                    break;
                }
                self.note_table(&record.meta.table);
                let Some(one) = self.decide(record)? else {
                    self.wait_for_seal().await?;
                    break;
                };
                range.push(one, (&self.taken.batching, 1.0), self.clock.now_ms());
            }
        }
        if range.proof() != intent.proof {
            return Err(RecoverError::IntentDiffers {
                a: intent.range.a,
                b: intent.range.b,
            }
            .into());
        }
        Ok(range)
    }

    /// A table that the log names and the config no longer does is asked for rows too (R19).
    fn note_table(&mut self, table: &Name) {
        if !self.tables.contains(table) {
            self.tables.push(table.clone());
        }
    }

    async fn wait_for_seal(&mut self) -> Result<(), PumpError> {
        if self.stop.is_cancelled() {
            return Err(PumpError::Stopped);
        }
        sleep(SEAL_WAIT).await;
        Ok(())
    }

    /// R19: no row of this log at or past `end` in any table. Waits for ClickHouse as long as it takes;
    /// intake goes on meanwhile.
    async fn check_horizon(&mut self, end: Offset) -> Result<Option<()>, PumpError> {
        let (mut delay, mut timeout) = (RETRY_BACKOFF_MIN, HORIZON_DEADLINE);
        loop {
            self.follow_config();
            let question = Horizon {
                log: self.log.log(),
                partition: self.log.number(),
                server: None,
                from_o: source_o(end, 0),
                tables: self.tables.clone(),
                timeout,
            };
            let reason = match ask_all(self.driver.clone(), question, end).await {
                Ok(()) => {
                    self.driver.in_trouble.store(false, Ordering::Relaxed);
                    return Ok(Some(()));
                }
                Err(Unasked::Ahead(ahead)) => return Err(RecoverError::Ahead(ahead).into()),
                Err(Unasked::Reason(reason)) => reason,
            };
            self.driver.in_trouble.store(true, Ordering::Relaxed);
            tracing::warn!(
                reason,
                "ClickHouse cannot be asked yet; events are taken into the log meanwhile"
            );
            tokio::select! {
                biased;
                () = sleep(delay) => {}
                () = self.stop.cancelled() => return Ok(None),
            }
            delay = (delay * 2).min(RETRY_BACKOFF_MAX);
            timeout = (timeout * 2).min(INSERT_DEADLINE_MAX);
        }
    }
}

/// Why the servers could not be asked, or what they said.
enum Unasked {
    Ahead(RowsAhead),
    Reason(String),
}

/// Asks every server that answers, and which they are. One that does not is asked before anything is sent
/// there.
async fn ask_all(driver: Driver, question: Horizon, end: Offset) -> Result<(), Unasked> {
    let told = driver.caller.horizon(question).await.map_err(Unasked::Reason)?;
    rows_ahead(told.found, end).map_err(Unasked::Ahead)?;
    driver.servers.look().await.map_err(Unasked::Reason)?;
    if !told.not_asked.is_empty() {
        tracing::warn!(
            servers = told.not_asked.join("; "),
            "these ClickHouse servers were not asked for rows past what is committed; each is before rows go there"
        );
    }
    driver.servers.checked(told.asked);
    Ok(())
}

pub(super) fn rows_ahead(found: Vec<(Name, u64)>, end: Offset) -> Result<(), RowsAhead> {
    match found.into_iter().next() {
        Some(_) if !failpoint::is_on(Safety::Horizon) => Ok(()),
        None => Ok(()),
        Some((table, at)) => Err(RowsAhead {
            table,
            end,
            found: at >> 16,
        }),
    }
}
