//! `ingestctl replay diff`: a live table and its shadow, held against each other.

use super::One;
use super::client::{Act, Replays};
use super::follow::Look;
use super::picture::grouped;
use crate::exit::{EXIT_CODES, Exit};
use crate::output::TextTable;
use clap::Args;
use serde::Serialize;
use sluice_common::ids::offset_of;
use sluice_common::moment;
use sluice_common::process::Failure;
use sluice_common::replay::{DiffLine, ReplayId, ReplayTold, TableDiff};

/// Holds what a replay wrote against the live tables, row by row, by provenance.
///
/// By hour of append and tenant: how many rows each side has, how many are on one side only, differ in their
/// content, or are there twice. Exit code 2 where anything differs.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub(super) struct DiffArgs {
    #[command(flatten)]
    one: One,
}

/// A comparison as it is printed.
#[derive(Debug, Serialize)]
struct Compared<'a> {
    id: ReplayId,
    equal: bool,
    tables: &'a [TableDiff],
}

impl DiffArgs {
    /// Orders the comparison, waits for it, prints it.
    pub(super) async fn run(self) -> Result<Exit, Failure> {
        let replays = Replays::of(&self.one.admin)?;
        let told = compared(&replays, self.one.id).await?;
        let Some(tables) = &told.diff else {
            let reason = told.reason.as_deref().unwrap_or("no reason is told");
            return Err(Failure::new(format!("they could not be compared: {reason}")));
        };
        let compared = Compared {
            id: told.id,
            equal: tables.iter().all(is_equal),
            tables,
        };
        self.one.output.print(&compared, || text(tables))?;
        Ok(if compared.equal {
            Exit::Good
        } else {
            Exit::Attention
        })
    }
}

/// The replay once its comparison is there.
pub(super) async fn compared(replays: &Replays, id: ReplayId) -> Result<ReplayTold, Failure> {
    let told = replays.act(id, Act::Diff).await?;
    let mut said = None;
    let show = |look: Look<'_>| {
        let line = match look {
            Look::Told(told) if told.comparing => "comparing".to_owned(),
            Look::Told(_) => return,
            Look::Silent(reason) => format!("waits for an answer: {reason}"),
        };
        if said.as_ref() != Some(&line) {
            eprintln!("{line}");
            said = Some(line);
        }
    };
    replays.follow(told, |told| !told.comparing, show).await
}

/// Whether both sides have the same rows. Lines that differ are told before others, so one that is not told
/// differs only where one that is told does.
fn is_equal(table: &TableDiff) -> bool {
    table.examples.is_empty() && table.lines.iter().all(DiffLine::is_equal)
}

/// All tables, each with its verdict.
fn text(tables: &[TableDiff]) -> String {
    let parts: Vec<String> = tables.iter().map(table).collect();
    parts.join("\n")
}

fn table(diff: &TableDiff) -> String {
    let mut out = format!("{} and {}\n", diff.table, diff.shadow);
    out += &lines(diff);
    if diff.omitted > 0 {
        out += &format!(
            "{} more lines are not told: those that differ come first\n",
            grouped(diff.omitted)
        );
    }
    if !diff.examples.is_empty() {
        out += &format!("\n{}", examples(diff));
    }
    let verdict = if is_equal(diff) {
        "The same rows are in both.\n"
    } else {
        "They are NOT the same.\n"
    };
    out + verdict
}

fn counts(line: &DiffLine) -> [u64; 6] {
    [
        line.live,
        line.shadow,
        line.only_live,
        line.only_shadow,
        line.differing,
        line.doubled,
    ]
}

fn lines(diff: &TableDiff) -> String {
    let mut table = TextTable::new(&[
        "HOUR (UTC)",
        "TENANT",
        ">LIVE",
        ">SHADOW",
        ">ONLY LIVE",
        ">ONLY SHADOW",
        ">DIFFERING",
        ">DOUBLED",
        "EQUAL",
    ]);
    let mut totals = [0_u64; 6];
    for line in &diff.lines {
        let numbers = counts(line);
        for (total, number) in totals.iter_mut().zip(numbers) {
            *total = total.saturating_add(number);
        }
        let equal = if line.is_equal() { "yes" } else { "NO" };
        let names = [
            moment::text(line.hour_s.saturating_mul(1_000)),
            line.tenant.clone(),
        ];
        table.row(
            names
                .into_iter()
                .chain(numbers.map(grouped))
                .chain([equal.into()]),
        );
    }
    let names = ["total".to_owned(), String::new()];
    table.row(
        names
            .into_iter()
            .chain(totals.map(grouped))
            .chain([String::new()]),
    );
    table.to_string()
}

fn examples(diff: &TableDiff) -> String {
    let mut table = TextTable::new(&["EXAMPLE", "TENANT", "LOG", ">PARTITION", ">RECORD", ">_src_o"]);
    for row in &diff.examples {
        table.row([
            row.what.replace('_', " "),
            row.tenant.clone(),
            row.log.to_string(),
            row.partition.to_string(),
            offset_of(row.source_o).to_string(),
            row.source_o.to_string(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_common::ids::LogId;
    use sluice_common::replay::DiffRow;

    fn line(tenant: &str, live: u64) -> DiffLine {
        DiffLine {
            hour_s: 1_795_230_000,
            tenant: tenant.into(),
            live,
            shadow: 1_000,
            only_shadow: 1_000 - live,
            live_sum: live.to_string(),
            shadow_sum: "1000".into(),
            ..DiffLine::default()
        }
    }

    fn diff(live: u64) -> TableDiff {
        TableDiff {
            table: "events".into(),
            shadow: "events_shadow_r00c0ffee".into(),
            lines: vec![line("acme", 1_000), line("demo", live)],
            omitted: 0,
            examples: Vec::new(),
        }
    }

    #[test]
    fn a_diff_has_a_line_for_each_hour_and_tenant_and_a_verdict() {
        let mut one = diff(998);
        one.examples.push(DiffRow {
            what: "only_shadow".into(),
            tenant: "demo".into(),
            log: LogId(0xab),
            partition: 0,
            source_o: 1201 << 16 | 3,
        });
        one.omitted = 2;
        let expected = "\
events and events_shadow_r00c0ffee
HOUR (UTC)            TENANT   LIVE  SHADOW  ONLY LIVE  ONLY SHADOW  DIFFERING  DOUBLED  EQUAL
2026-11-21T03:00:00Z  acme    1,000   1,000          0            0          0        0  yes
2026-11-21T03:00:00Z  demo      998   1,000          0            2          0        0  NO
total                         1,998   2,000          0            2          0        0
2 more lines are not told: those that differ come first

EXAMPLE      TENANT  LOG               PARTITION  RECORD    _src_o
only shadow  demo    00000000000000ab          0    1201  78708739
They are NOT the same.
";
        assert_eq!(text(&[one]), expected);
        assert!(text(&[diff(1_000)]).ends_with("The same rows are in both.\n"));
    }

    #[test]
    fn what_has_other_sums_is_not_equal_and_what_is_not_told_changes_no_verdict() {
        assert!(is_equal(&diff(1_000)));
        let mut omitted = diff(1_000);
        omitted.omitted = 1;
        let mut sums = diff(1_000);
        sums.lines[0].live_sum = "7".into();
        assert!(is_equal(&omitted));
        for other in [sums, diff(999)] {
            assert!(!is_equal(&other), "{other:?}");
        }
    }
}
