//! What verbs print: one JSON document, or tables for people; never both. Progress goes to stderr.

use clap::{Args, ValueEnum};
use serde::Serialize;
use sluice_common::process::Failure;
use std::fmt;
use std::io::Write as _;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One document on stdout.
    Json,
    /// Text for people.
    Table,
}

/// The option that all verbs with results have: `#[command(flatten)]` it.
#[derive(Debug, Clone, Args)]
pub struct OutputArgs {
    /// How results are printed: text for people, or one JSON document on stdout.
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Output::Table)]
    pub output: Output,
}

impl OutputArgs {
    /// Prints `result`: as JSON, or as `text` writes it.
    ///
    /// # Errors
    /// Where stdout cannot be written; a reader that went away (`| head`) is no error.
    pub fn print(&self, result: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let mut document = match self.output {
            Output::Json => serde_json::to_string_pretty(result)?,
            Output::Table => text(),
        };
        if !document.ends_with('\n') {
            document.push('\n');
        }
        match std::io::stdout().lock().write_all(document.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Whether people read it.
    #[must_use]
    pub fn is_table(&self) -> bool {
        self.output == Output::Table
    }
}

/// Columns under their titles. Numbers, and what is told to be, stand right.
#[derive(Debug, Clone)]
pub struct TextTable {
    titles: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    /// A table with these titles. A title that begins with `>` makes its column stand right.
    #[must_use]
    pub fn new(titles: &[&str]) -> Self {
        Self {
            titles: titles.iter().map(|&title| title.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; it has as many cells as there are titles.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for TextTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let right: Vec<bool> = self.titles.iter().map(|title| title.starts_with('>')).collect();
        let titles: Vec<String> = self
            .titles
            .iter()
            .map(|title| title.trim_start_matches('>').to_owned())
            .collect();
        let rows: Vec<&Vec<String>> = std::iter::once(&titles).chain(&self.rows).collect();
        let width = |at: usize| {
            let cells = rows.iter().filter_map(|row| row.get(at));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..titles.len()).map(width).collect();
        for row in rows {
            let mut line = String::new();
            for (at, cell) in row.iter().enumerate() {
                let width = widths.get(at).copied().unwrap_or(0);
                if right.get(at) == Some(&true) {
                    line += &format!("{cell:>width$}  ");
                } else {
                    line += &format!("{cell:<width$}  ");
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_their_titles() {
        let mut table = TextTable::new(&["TENANT", ">EVENTS"]);
        table.row(["a".into(), "12".into()]);
        table.row(["longer-name".into(), "3".into()]);
        let text = "TENANT       EVENTS\na                12\nlonger-name       3\n";
        assert_eq!(table.to_string(), text);
    }
}
