//! `ingestctl config`: which configs were in force, what a new one would change, and the way back.
//!
//! All of it works on files, and so without a running Sluice: the history is in the data directory, and
//! running services take the config file as soon as it changes.

mod consequence;
mod diff;
mod history;

use crate::exit::{EXIT_CODES, Exit};
use clap::{Args, Subcommand};
use sluice_common::config::reference;
use sluice_common::process::Failure;
use std::io::Write as _;

/// Lists, shows, compares and restores configs.
///
/// Each config that was in force is kept in DIR/config-history: the newest 50. Running services take a
/// changed config file by themselves, within two seconds, or at once on SIGHUP; an invalid one is refused
/// whole.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub struct ConfigArgs {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    History(history::HistoryArgs),
    Show(history::ShowArgs),
    Rollback(history::RollbackArgs),
    Diff(diff::DiffArgs),
    Reference(ReferenceArgs),
}

/// Prints every key of the config file as a page in Markdown: what it takes, its default, what it means.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
struct ReferenceArgs {}

impl ReferenceArgs {
    fn run(self) -> Result<Exit, Failure> {
        std::io::stdout().write_all(reference::markdown().as_bytes())?;
        Ok(Exit::Good)
    }
}

impl ConfigArgs {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] saying what to do.
    pub fn run(self) -> Result<Exit, Failure> {
        match self.verb {
            ConfigVerb::History(args) => args.run(),
            ConfigVerb::Show(args) => args.run(),
            ConfigVerb::Rollback(args) => args.run(),
            ConfigVerb::Diff(args) => args.run(),
            ConfigVerb::Reference(args) => args.run(),
        }
    }
}
