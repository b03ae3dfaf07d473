//! Asking a person before something is done.

use sluice_common::process::Failure;
use std::io::{BufRead, IsTerminal as _, Write as _};

/// What is asked, and what is said where it is not done.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Without `[y/N]`.
    pub text: &'a str,
    /// What would be done; said where nobody can be asked.
    pub what: &'a str,
    /// Said after a no.
    pub refused: &'a str,
}

impl Question<'_> {
    /// Asks on the terminal. Where stdin is none, `--yes` has to be given.
    ///
    /// # Errors
    /// A no, or nobody to ask.
    pub fn ask(self) -> Result<(), Failure> {
        let stdin = std::io::stdin();
        let is_terminal = stdin.is_terminal();
        self.ask_of(is_terminal, &mut stdin.lock())
    }

    fn ask_of(self, is_terminal: bool, answers: &mut impl BufRead) -> Result<(), Failure> {
        if !is_terminal {
            return Err(Failure::new(format!("{}: say so with --yes", self.what)));
        }
        eprint!("{} [y/N] ", self.text);
        std::io::stderr().flush()?;
        let mut answer = String::new();
        answers.read_line(&mut answer)?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(Failure::new(self.refused)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(is_terminal: bool, answer: &str) -> Result<(), String> {
        let question = Question {
            text: "Drop it?",
            what: "it would be dropped",
            refused: "nothing was dropped",
        };
        let outcome = question.ask_of(is_terminal, &mut answer.as_bytes());
        outcome.map_err(|failure| failure.to_string())
    }

    #[test]
    fn only_a_yes_is_one_and_only_on_a_terminal() {
        for yes in ["y\n", "Y\n", "yes\n", " y "] {
            assert_eq!(asked(true, yes), Ok(()), "{yes:?}");
        }
        for no in ["", "\n", "n\n", "yess\n", "no\ny\n"] {
            assert_eq!(asked(true, no), Err("nothing was dropped".into()), "{no:?}");
        }
        let message = "it would be dropped: say so with --yes".to_owned();
        assert_eq!(asked(false, "y\n"), Err(message));
    }
}
