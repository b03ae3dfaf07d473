//! Following a replay until it has ended what it does: polls, with a bar or lines on stderr.

use super::client::Replays;
use super::picture::{self, events_of};
use crate::remote::RemoteError;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use sluice_common::process::Failure;
use sluice_common::replay::ReplayTold;
use std::time::Duration;
use tokio::time::Instant;

const POLL: Duration = Duration::from_millis(200);
/// For how long a normalizer may be silent, as while it is restarted. A replay that runs does not need us.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between lines that say nothing new, where there is no terminal to draw on.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What came of one look.
#[derive(Debug, Clone, Copy)]
pub(super) enum Look<'a> {
    Told(&'a ReplayTold),
    /// Nobody answers for now.
    Silent(&'a str),
}

impl Replays {
    /// Looks at a replay until `is_over` says so, and shows each look.
    ///
    /// # Errors
    /// A refusal, or nobody there for a minute.
    pub(super) async fn follow(
        &self,
        mut told: ReplayTold,
        is_over: fn(&ReplayTold) -> bool,
        mut show: impl FnMut(Look<'_>),
    ) -> Result<ReplayTold, Failure> {
        let mut silent_since = None;
        loop {
            if silent_since.is_none() {
                show(Look::Told(&told));
                if is_over(&told) {
                    return Ok(told);
                }
            }
            tokio::time::sleep(POLL).await;
            match self.told(told.id).await {
                Ok(now) => (told, silent_since) = (now, None),
                Err(error) if is_passing(&error) => {
                    let since = *silent_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > PATIENCE {
                        let message = format!(
                            "{error}. What was ordered may be under way: look with `ingestctl replay show {}`",
                            told.id
                        );
                        return Err(Failure::new(message));
                    }
                    show(Look::Silent(&error.to_string()));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether it is a normalizer's that is being restarted, or busy.
fn is_passing(error: &RemoteError) -> bool {
    match error {
        RemoteError::Unreachable { .. } => true,
        RemoteError::Refused { status, .. } => matches!(status.as_u16(), 503 | 504),
        RemoteError::NotSluice { .. } => false,
    }
}

/// Shows how far a replay is: a bar on a terminal, else lines.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    /// What was said last, and when.
    said: Option<(String, Instant)>,
}

impl Progress {
    /// Nothing is drawn yet.
    pub(super) fn of(told: &ReplayTold) -> Self {
        let bar = ProgressBar::new(events_of(&told.plan.partitions)).with_position(settled(told));
        let template = "{bar:30} {human_pos} of {human_len} events  {per_sec}  {eta} left  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        // What was written before is no part of the rate.
        bar.reset_eta();
        Self { bar, said: None }
    }

    /// Draws, or writes a line where it says something new.
    pub(super) fn show(&mut self, look: Look<'_>) {
        let state = state(look);
        if let Look::Told(told) = look {
            self.bar.set_position(settled(told));
        }
        if !self.bar.is_hidden() {
            self.bar.set_message(state);
            return;
        }
        let is_new = self
            .said
            .as_ref()
            .is_none_or(|(said, at)| *said != state || at.elapsed() >= LINE_EVERY);
        if is_new {
            let (at, of) = (self.bar.position(), self.bar.length().unwrap_or_default());
            eprintln!("{} of {} events  {state}", HumanCount(at), HumanCount(of));
            self.said = Some((state, Instant::now()));
        }
    }

    /// Leaves the bar as it is.
    pub(super) fn end(&self) {
        self.bar.abandon();
    }
}

/// Rows whose fate in the shadow is known.
fn settled(told: &ReplayTold) -> u64 {
    told.written.saturating_add(told.left_out)
}

/// The phase, and what it waits for.
fn state(look: Look<'_>) -> String {
    match look {
        Look::Told(told) => {
            let reason = told.reason.as_deref();
            let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
            format!("{}{reason}", picture::phase(told.phase))
        }
        Look::Silent(reason) => format!("waits for an answer: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::told;
    use super::*;
    use sluice_common::replay::Phase;

    #[test]
    fn a_state_says_the_phase_and_what_it_waits_for() {
        let mut told = told(Phase::Running);
        assert_eq!(state(Look::Told(&told)), "running");
        told.reason = Some("ClickHouse does not answer".into());
        assert_eq!(state(Look::Told(&told)), "running: ClickHouse does not answer");
        let silent = state(Look::Silent("connection refused"));
        assert_eq!(silent, "waits for an answer: connection refused");
        let progress = Progress::of(&told);
        assert_eq!(
            (progress.bar.position(), progress.bar.length()),
            (600, Some(1_000))
        );
    }
}
