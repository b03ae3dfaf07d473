//! Exit codes, the same for every verb but `up`, and the way a verb is run.

use sluice_common::process::Failure;
use std::process::ExitCode;

/// The end of every verb's `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0   done, and all is well
  1   failed; stderr says why and what to do
  2   done, and something needs your attention
  64  the command line is wrong";

/// Wrong arguments (`EX_USAGE`): 2 is taken.
pub const USAGE: u8 = 64;

/// How a verb that did its work ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// All is well.
    Good,
    /// Something needs the operator's attention.
    Attention,
    /// It failed, and what was printed says why.
    Failed,
}

/// Runs a verb on a small runtime. A failure is one line on stderr and code 1.
pub fn run(verb: impl Future<Output = Result<Exit, Failure>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    finish(match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(verb);
            // A name that is still being resolved is not waited for.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Failure::from(error)),
    })
}

/// The exit code of an outcome, and its line on stderr.
pub fn finish(outcome: Result<Exit, Failure>) -> ExitCode {
    match outcome {
        Ok(Exit::Good) => ExitCode::SUCCESS,
        Ok(Exit::Attention) => ExitCode::from(2),
        Ok(Exit::Failed) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}
