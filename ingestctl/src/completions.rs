//! `ingestctl completions`: what a shell completes.

use crate::exit::{EXIT_CODES, Exit};
use clap::{Args, Command};
use clap_complete::{Shell, generate};
use sluice_common::process::Failure;
use std::io::Write as _;

/// Prints a shell's completions.
///
/// Examples:
///
///   ingestctl completions bash > ~/.local/share/bash-completion/completions/ingestctl
///
///   ingestctl completions zsh > "${fpath[1]}/_ingestctl"
///
///   ingestctl completions fish > ~/.config/fish/completions/ingestctl.fish
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub struct CompletionsArgs {
    /// The shell that reads them.
    #[arg(value_enum)]
    shell: Shell,
}

impl CompletionsArgs {
    /// Prints the completions of `command`.
    ///
    /// # Errors
    /// Where stdout cannot be written.
    pub fn run(&self, mut command: Command) -> Result<Exit, Failure> {
        let mut text = Vec::new();
        generate(self.shell, &mut command, "ingestctl", &mut text);
        std::io::stdout().lock().write_all(&text)?;
        Ok(Exit::Good)
    }
}
