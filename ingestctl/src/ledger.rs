//! `ingestctl ledger`: the books, and whether they balance.

use crate::exit::{EXIT_CODES, Exit};
use crate::output::{OutputArgs, TextTable};
use crate::remote::AdminArgs;
use clap::Args;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sluice_common::books::BooksLine;
use sluice_common::config::Period;
use sluice_common::ids::{Name, TenantId};
use sluice_common::process::Failure;

/// Shows what became of every event received, by tenant, dataset and minute.
///
/// In each line, received = stored + duplicate + dead-lettered + rejected + in flight. In flight is what the
/// log holds and ClickHouse does not have yet, and what is set aside with a broken table. A line that
/// does not balance is marked, and the exit code is 2.
///
/// Examples:
///
///   ingestctl ledger --since 15m
///
///   ingestctl ledger --since 1d --tenant acme --output json
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub struct LedgerArgs {
    /// How far to look back: 15m, 1h, 7d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = period)]
    since: String,
    /// One tenant only.
    #[arg(long, value_name = "ID", value_parser = tenant)]
    tenant: Option<TenantId>,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    output: OutputArgs,
}

fn period(text: &str) -> Result<String, String> {
    let parsed = text.parse::<Period>().map(|_| text.to_owned());
    parsed.map_err(|error| error.to_string())
}

fn tenant(text: &str) -> Result<TenantId, String> {
    TenantId::new(text).map_err(|error| error.to_string())
}

/// What the route answers.
#[derive(Debug, Deserialize)]
struct Told {
    lines: Vec<BooksLine>,
    notes: Vec<String>,
}

/// A line as it is printed.
#[derive(Debug, Serialize)]
struct Line {
    tenant: TenantId,
    dataset: Name,
    minute: String,
    received: i64,
    stored: i64,
    duplicate: i64,
    dead_lettered: i64,
    rejected: i64,
    in_flight: i64,
}

impl LedgerArgs {
    /// Asks and prints.
    ///
    /// # Errors
    /// [`Failure`] where the books cannot be read.
    pub async fn run(self) -> Result<Exit, Failure> {
        let tenant = self.tenant.as_ref();
        let tenant = tenant.map_or_else(String::new, |tenant| format!("&tenant={tenant}"));
        let path = format!("/admin/v1/ledger?since={}{tenant}", self.since);
        let told: Told = serde_json::from_value(self.admin.remote()?.get(&path).await?)?;
        for note in &told.notes {
            eprintln!("note: {note}");
        }
        let balanced = told.lines.iter().all(|line| line.imbalance() == 0);
        let lines: Vec<Line> = told.lines.iter().map(Line::of).collect();
        self.output.print(&lines, || table(&told.lines))?;
        Ok(if balanced { Exit::Good } else { Exit::Attention })
    }
}

impl Line {
    fn of(line: &BooksLine) -> Self {
        Self {
            tenant: line.tenant.clone(),
            dataset: line.dataset.clone(),
            minute: minute(line.minute_s),
            received: line.received,
            stored: line.stored,
            duplicate: line.duplicate,
            dead_lettered: line.dead_lettered,
            rejected: line.rejected,
            in_flight: line.in_flight,
        }
    }
}

fn minute(seconds: u64) -> String {
    let time = i64::try_from(seconds)
        .ok()
        .and_then(|s| Timestamp::from_second(s).ok());
    time.map_or_else(|| seconds.to_string(), |time| time.to_string())
}

fn counts(line: &BooksLine) -> [i64; 6] {
    [
        line.received,
        line.stored,
        line.duplicate,
        line.dead_lettered,
        line.rejected,
        line.in_flight,
    ]
}

fn table(lines: &[BooksLine]) -> String {
    let mut table = TextTable::new(&[
        "MINUTE",
        "TENANT",
        "DATASET",
        ">RECEIVED",
        ">STORED",
        ">DUPLICATE",
        ">DEAD-LETTERED",
        ">REJECTED",
        ">IN FLIGHT",
        "",
    ]);
    let (mut totals, mut off) = ([0; 6], 0);
    for line in lines {
        let numbers = counts(line);
        totals.iter_mut().zip(numbers).for_each(|(sum, n)| *sum += n);
        off += line.imbalance().unsigned_abs();
        let mark = match line.imbalance() {
            0 => String::new(),
            events => format!("off by {events}"),
        };
        let names = [
            minute(line.minute_s),
            line.tenant.to_string(),
            line.dataset.to_string(),
        ];
        table.row(
            names
                .into_iter()
                .chain(numbers.map(|n| n.to_string()))
                .chain([mark]),
        );
    }
    let names = ["total".to_owned(), String::new(), String::new()];
    table.row(
        names
            .into_iter()
            .chain(totals.map(|n| n.to_string()))
            .chain([String::new()]),
    );
    let verdict = if off == 0 {
        "balanced".to_owned()
    } else {
        format!("NOT balanced: off by {off} events")
    };
    format!("{table}{verdict}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stored: i64) -> BooksLine {
        let tenant = TenantId::new("acme").expect("valid");
        let dataset = Name::new("events").expect("valid");
        let mut line = BooksLine::new(tenant, dataset, 1_795_231_800);
        (line.received, line.stored, line.rejected, line.in_flight) = (10, stored, 1, 2);
        line
    }

    #[test]
    fn the_table_ends_with_totals_and_whether_they_balance() {
        let text = table(&[line(7), line(7)]);
        assert!(text.contains("2026-11-21T03:30:00Z  acme    events"), "{text}");
        assert!(
            text.contains("total") && text.contains("20") && text.ends_with("balanced\n"),
            "{text}"
        );
        let text = table(&[line(7), line(5)]);
        assert!(
            text.contains("off by 2") && text.ends_with("NOT balanced: off by 2 events\n"),
            "{text}"
        );
    }
}
