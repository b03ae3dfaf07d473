//! `ingestctl replay promote` and `discard`: the shadow takes the live table's place, or goes.

use super::One;
use super::client::{Act, Replays};
use super::follow::Look;
use super::picture::{self, before, live, phase, shadows};
use super::run::who;
use crate::confirm::Question;
use crate::exit::{EXIT_CODES, Exit};
use clap::Args;
use sluice_common::process::Failure;
use sluice_common::replay::{Phase, PromoteOrder, ReplayId, ReplayTold};

/// Puts what a replay wrote in the live tables' place.
///
/// The rows that come in for these tables are set aside meanwhile and go in afterwards; clients notice
/// nothing. The shadow is caught up to the end of the log and compared, then its partitions are swapped in,
/// each at once. The former rows stay in tables beside. It is refused where the live table has rows that the
/// shadow does not have: --row-wise copies those into it first.
///
/// A promotion goes on by itself, after a restart too, whatever becomes of this command.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub(super) struct PromoteArgs {
    #[command(flatten)]
    one: One,
    /// Copies live rows that the shadow does not have into it first: they stay.
    #[arg(long)]
    row_wise: bool,
    /// Promotes without asking.
    #[arg(long)]
    yes: bool,
}

/// Drops the tables of a replay: its shadow, and after a promotion what was there before. Live tables stay as they are.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub(super) struct DiscardArgs {
    #[command(flatten)]
    one: One,
    /// Drops them without asking.
    #[arg(long)]
    yes: bool,
}

impl PromoteArgs {
    /// Asks, orders it, and prints its steps as they are done.
    pub(super) async fn run(self) -> Result<Exit, Failure> {
        let replays = Replays::of(&self.one.admin)?;
        if !self.yes {
            promotion(&replays.told(self.one.id).await?, self.row_wise).ask_person()?;
        }
        let order = PromoteOrder {
            who: who(),
            row_wise: self.row_wise,
        };
        let told = promoted(&replays, &self.one, order).await?;
        if told.phase == Phase::Promoted {
            self.one.output.print(&told, || picture::ended(&told))?;
            return Ok(Exit::Good);
        }
        if !self.one.output.is_table() {
            self.one.output.print(&told, String::new)?;
        }
        Err(refusal(&told))
    }
}

/// The replay once its promotion has ended, one way or another.
async fn promoted(replays: &Replays, one: &One, order: PromoteOrder) -> Result<ReplayTold, Failure> {
    let told = replays.promote(one.id, order).await?;
    let mut steps = Steps::default();
    let following = replays.follow(
        told,
        |told| told.phase != Phase::Promoting,
        |look| steps.show(look),
    );
    following.await
}

/// Prints each step once.
#[derive(Debug, Default)]
struct Steps {
    seen: usize,
    waits: Option<String>,
}

impl Steps {
    fn show(&mut self, look: Look<'_>) {
        for line in self.news(look) {
            eprintln!("{line}");
        }
    }

    fn news(&mut self, look: Look<'_>) -> Vec<String> {
        let mut lines = Vec::new();
        let waits = match look {
            Look::Told(told) => {
                lines.extend(told.steps.iter().skip(self.seen).cloned());
                self.seen = told.steps.len();
                told.reason.clone().filter(|_| told.phase == Phase::Promoting)
            }
            Look::Silent(reason) => Some(reason.to_owned()),
        };
        if waits != self.waits {
            lines.extend(waits.iter().map(|reason| format!("waits: {reason}")));
            self.waits = waits;
        }
        lines
    }
}

fn refusal(told: &ReplayTold) -> Failure {
    let id = told.id;
    let reason = told.reason.as_deref().unwrap_or("no reason is told");
    Failure::new(format!(
        "replay {id} was not promoted and is {}: {reason}",
        phase(told.phase)
    ))
}

/// A question whose texts are its own.
#[derive(Debug)]
struct Asked {
    text: String,
    what: String,
    refused: &'static str,
}

impl Asked {
    fn ask_person(&self) -> Result<(), Failure> {
        let Self { text, what, refused } = self;
        Question { text, what, refused }.ask()
    }
}

fn promotion(told: &ReplayTold, row_wise: bool) -> Asked {
    let plan = &told.plan;
    let (live, shadows, before) = (live(plan), shadows(plan), before(plan));
    let filled = if row_wise {
        "  2. Live rows that the shadow does not have are copied into it.\n"
    } else {
        "  2. It is refused, with nothing changed, where the shadow does not have every live row.\n"
    };
    Asked {
        text: format!(
            "Promote {id}:\n\
             \x20 1. New rows of {live} are set aside, and {shadows} catches up to the end of the log.\n\
             {filled}\
             \x20 3. Both are held against each other, row by row of provenance, and what the live partitions hold is kept in {before}.\n\
             \x20 4. The partitions are swapped, and the rows that were set aside go in.\n\
             Do it?",
            id = told.id
        ),
        what: format!("partitions of {live} would be replaced by those of {shadows}"),
        refused: "nothing was touched",
    }
}

impl DiscardArgs {
    /// Asks, and has them dropped.
    pub(super) async fn run(self) -> Result<Exit, Failure> {
        let replays = Replays::of(&self.one.admin)?;
        if !self.yes {
            let asked = match replays.told(self.one.id).await {
                Ok(told) => disposal(&told),
                // This normalizer may hold tables for it all the same.
                Err(error) if error.code() == Some("replay_unknown") => stranger(self.one.id),
                Err(error) => return Err(error.into()),
            };
            asked.ask_person()?;
        }
        let told = replays.act(self.one.id, Act::Discard).await?;
        self.one.output.print(&told, || picture::ended(&told))?;
        Ok(Exit::Good)
    }
}

fn disposal(told: &ReplayTold) -> Asked {
    let tables = match told.phase {
        Phase::Promoting | Phase::Promoted => {
            format!("{}, {}", shadows(&told.plan), before(&told.plan))
        }
        Phase::Running | Phase::Paused | Phase::Failed | Phase::Done | Phase::Discarded => {
            shadows(&told.plan)
        }
    };
    Asked {
        text: format!("Drop {tables} for good?"),
        what: format!("{tables} would be dropped for good"),
        refused: "nothing was dropped",
    }
}

/// One that another normalizer began.
fn stranger(id: ReplayId) -> Asked {
    Asked {
        text: format!(
            "This normalizer does not know replay {id}. If another one began it and cannot end it any more: drop its shadows for \
             good, and have the tables that it holds here take rows again?"
        ),
        what: format!("the shadows of replay {id} would be dropped for good"),
        refused: "nothing was dropped",
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::told;
    use super::*;

    #[test]
    fn each_step_and_what_it_waits_for_is_printed_once() {
        let (mut steps, mut told) = (Steps::default(), told(Phase::Promoting));
        told.steps = vec!["orders is set aside".into()];
        assert_eq!(steps.news(Look::Told(&told)), ["orders is set aside"]);
        assert!(steps.news(Look::Told(&told)).is_empty());
        told.steps.push("orders: caught up".into());
        told.reason = Some("ClickHouse does not answer".into());
        let expected = ["orders: caught up", "waits: ClickHouse does not answer"];
        assert_eq!(steps.news(Look::Told(&told)), expected);
        assert!(steps.news(Look::Told(&told)).is_empty());
        assert_eq!(steps.news(Look::Silent("gone")), ["waits: gone"]);
        assert!(steps.news(Look::Silent("gone")).is_empty());
    }

    #[test]
    fn a_person_is_told_what_will_be_done() {
        let done = told(Phase::Done);
        let text = promotion(&done, false).text;
        for words in [
            "Promote r00c0ffee:",
            "1. New rows of clicks, orders are set aside",
            "2. It is refused, with nothing changed",
            "kept in clicks_before_r00c0ffee, orders_before_r00c0ffee.",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(
            promotion(&done, true)
                .text
                .contains("2. Live rows that the shadow does not have are copied")
        );
        let drop = "Drop clicks_shadow_r00c0ffee, orders_shadow_r00c0ffee for good?";
        assert_eq!(disposal(&done).text, drop);
        assert!(
            disposal(&told(Phase::Promoted))
                .text
                .contains("orders_before_r00c0ffee")
        );
    }

    #[test]
    fn a_promotion_that_is_refused_says_why_and_what_to_do() {
        let mut refused = told(Phase::Done);
        refused.reason =
            Some("the shadow does not have 3 live rows of orders: --row-wise copies them first".into());
        let message = refusal(&refused).to_string();
        assert!(
            message.contains("r00c0ffee was not promoted and is done: the shadow does not have 3"),
            "{message}"
        );
    }
}
