//! `ingestctl replay`: writes what the log still has once more, beside the live tables, and puts it in
//! their place where a person says so.

mod client;
mod diff;
mod follow;
mod picture;
mod plan;
mod promote;
mod run;
#[cfg(test)]
mod tests;

use crate::exit::{EXIT_CODES, Exit};
use crate::output::OutputArgs;
use crate::remote::AdminArgs;
use clap::error::ErrorKind;
use clap::{Args, Subcommand};
use client::{Act, Replays};
use sluice_common::process::Failure;
use sluice_common::replay::ReplayId;

/// Writes what the log still has once more, into tables beside the live ones.
///
/// It first prints the plan: the records, events, times, tenants and tables that it will touch, and what is
/// outside the log's reach. With --dry-run it ends there; else it asks, or takes --yes. The live tables are
/// not written to: what is replayed goes into a shadow table of each, with the live table's DDL, and repeats
/// are left out as they were. Then `replay diff` holds both against each other, `replay promote` puts the
/// shadow in the live table's place, `replay discard` drops it.
///
/// Ctrl-C pauses it; `replay resume` goes on. Exit code 2 where it ends paused.
///
/// Examples:
///
///   ingestctl replay --from=earliest --to=latest --shadow --dry-run
///
///   ingestctl replay --since 2h --until 30m --tenant acme --shadow
///
///   ingestctl replay --from=1200 --to=4800 --shadow --yes --output json
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_long_help = EXIT_CODES
)]
pub struct ReplayArgs {
    #[command(subcommand)]
    verb: Option<ReplayVerb>,
    #[command(flatten)]
    run: run::RunArgs,
}

#[derive(Debug, Subcommand)]
enum ReplayVerb {
    List(ListArgs),
    Show(ShowArgs),
    Pause(PauseArgs),
    Resume(ResumeArgs),
    Diff(diff::DiffArgs),
    Promote(promote::PromoteArgs),
    Discard(promote::DiscardArgs),
}

/// Lists replays, the newest first: who ordered them, when, and what became of them.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
struct ListArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// One replay, as `replay list` names it.
#[derive(Debug, Args)]
struct One {
    /// Its id, as `replay list` shows it.
    id: ReplayId,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Shows one replay whole: its plan, how far it is, and what promoting has done.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
struct ShowArgs {
    #[command(flatten)]
    one: One,
}

/// Stops a replay where it is; `replay resume` goes on from there.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
struct PauseArgs {
    #[command(flatten)]
    one: One,
}

/// Goes on with a replay that was paused or has failed, and shows its progress.
///
/// What is written already is not written again. Ctrl-C pauses it; exit code 2 where it ends paused.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
struct ResumeArgs {
    #[command(flatten)]
    one: One,
}

impl ReplayArgs {
    /// Refuses a replay that does not say where it writes to.
    ///
    /// # Errors
    /// A wrong command line, as clap tells of it.
    pub fn checked(self) -> Result<Self, clap::Error> {
        if self.verb.is_some() || self.run.shadow {
            return Ok(self);
        }
        Err(clap::Error::raw(
            ErrorKind::MissingRequiredArgument,
            "a replay writes beside the live tables and never into them: say that this is what you want with --shadow\n",
        ))
    }

    /// Asks the normalizer.
    ///
    /// # Errors
    /// Where it does not answer, or refuses.
    pub async fn run(self) -> Result<Exit, Failure> {
        match self.verb {
            None => self.run.run().await,
            Some(ReplayVerb::List(args)) => {
                let told = Replays::of(&args.admin)?.list().await?;
                args.output.print(&told, || picture::list(&told))?;
                Ok(Exit::Good)
            }
            Some(ReplayVerb::Show(ShowArgs { one })) => {
                let told = Replays::of(&one.admin)?.told(one.id).await?;
                one.output.print(&told, || picture::whole(&told))?;
                Ok(Exit::Good)
            }
            Some(ReplayVerb::Pause(PauseArgs { one })) => {
                let replays = Replays::of(&one.admin)?;
                let told = replays.act(one.id, Act::Pause).await?;
                let told = replays.stopped(told).await?;
                one.output.print(&told, || picture::ended(&told))?;
                Ok(Exit::Good)
            }
            Some(ReplayVerb::Resume(ResumeArgs { one })) => {
                let replays = Replays::of(&one.admin)?;
                let told = replays.act(one.id, Act::Resume).await?;
                run::finish(&replays, told, &one.output).await
            }
            Some(ReplayVerb::Diff(args)) => args.run().await,
            Some(ReplayVerb::Promote(args)) => args.run().await,
            Some(ReplayVerb::Discard(args)) => args.run().await,
        }
    }
}
