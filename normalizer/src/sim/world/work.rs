//! What clients send, and what they know of it.

use super::World;
use crate::log::{EmbeddedLog, ReadError};
use crate::sim::append::{Draft, append};
use crate::sim::oracle::Logged;
use sluice_common::ids::Offset;
use std::collections::VecDeque;
use std::sync::Arc;

/// What is left of the clients' work.
pub(super) struct Work {
    pub(super) batches: VecDeque<Vec<Draft>>,
    pub(super) log: Vec<Logged>,
    /// Sent when the process died: nobody knows whether it is in the log.
    pub(super) in_doubt: Option<Vec<Draft>>,
    pub(super) window_ms: u64,
}

impl Work {
    /// Appends a batch; the process may die of it.
    pub(super) fn send(&mut self, world: &World, log: &EmbeddedLog, batch: Vec<Draft>) -> Result<(), String> {
        let content = batch.iter().map(|draft| draft.content(self.window_ms)).collect();
        let outcome = append(log, content);
        let life = Arc::clone(&world.life.lock());
        let recorder = life.recorder.lock().clone();
        recorder.into_iter().for_each(|recorder| recorder.wait_for_mark());
        if life.is_dead() {
            self.in_doubt = Some(batch);
            return Ok(());
        }
        let at = outcome.map_err(|error| format!("an append failed: {error}"))?;
        if at.first != self.log.len() as u64 {
            return Err(format!(
                "appended at {} where {} was due",
                at.first,
                self.log.len()
            ));
        }
        let at_ms = at.append_ms;
        self.log
            .extend(batch.into_iter().map(|draft| Logged { draft, at_ms }));
        world.say(|| format!("acknowledged up to {}", self.log.len()));
        Ok(())
    }

    /// Every acknowledged record is there, and of the batch in doubt a beginning; the client sends it again.
    pub(super) fn recovered(&mut self, log: &EmbeddedLog, committed: Offset) -> Result<(), String> {
        let (known, end) = (self.log.len() as u64, *log.durable_end().borrow());
        if end < known {
            return Err(format!("acknowledged up to {known}, and the log ends at {end}"));
        }
        if log.first_offset() > committed {
            return Err("the log begins behind what is committed".into());
        }
        let in_doubt = self.in_doubt.take().unwrap_or_default();
        let mut doubtful = in_doubt.iter();
        let mut at = log.first_offset();
        while at < end {
            let records = match log.read(at, 1 << 20) {
                Ok(records) => records,
                // What is stored and sealed may go at any time.
                Err(ReadError::OutOfReach { first }) if first <= committed => {
                    at = first;
                    continue;
                }
                Err(error) => return Err(format!("the log cannot be read: {error}")),
            };
            for record in records {
                if at >= known {
                    let draft = doubtful.next().ok_or("the log holds what nobody sent")?.clone();
                    let at_ms = record.place.append_ms;
                    self.log.push(Logged { draft, at_ms });
                }
                let expected = self.log[usize::try_from(at).unwrap()]
                    .draft
                    .rows
                    .iter()
                    .map(|row| row.0);
                if !record.keys().eq(expected) {
                    return Err(format!("record {at} is another than was sent"));
                }
                at += 1;
            }
        }
        if !in_doubt.is_empty() {
            self.batches.push_front(in_doubt);
        }
        Ok(())
    }
}
