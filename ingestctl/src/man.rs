//! `ingestctl man`: the manual, from the same words as `--help`.

use crate::exit::{EXIT_CODES, Exit};
use clap::{Args, Command};
use clap_mangen::{Man, generate_to};
use sluice_common::process::Failure;
use std::io::Write as _;
use std::path::PathBuf;

/// Prints the manual page, or writes one page for each verb.
///
/// Examples:
///
///   ingestctl man | man -l -
///
///   ingestctl man --dir /usr/local/share/man/man1
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub struct ManArgs {
    /// Write ingestctl.1, ingestctl-check.1 and so on into this directory, which is made if missing.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl ManArgs {
    /// Prints or writes the manual of `command`.
    ///
    /// # Errors
    /// Where stdout or the directory cannot be written.
    pub fn run(&self, command: Command) -> Result<Exit, Failure> {
        let Some(dir) = &self.dir else {
            let mut page = Vec::new();
            Man::new(command).render(&mut page)?;
            std::io::stdout().lock().write_all(&page)?;
            return Ok(Exit::Good);
        };
        let written = std::fs::create_dir_all(dir).and_then(|()| generate_to(command, dir));
        written.map_err(|error| Failure::new(format!("cannot write into {}: {error}", dir.display())))?;
        Ok(Exit::Good)
    }
}
