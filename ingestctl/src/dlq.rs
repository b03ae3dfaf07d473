//! `ingestctl dlq`: dead letters, looked through and settled by hand.

use crate::confirm::Question;
use crate::exit::{EXIT_CODES, Exit};
use crate::output::{OutputArgs, TextTable};
use crate::remote::{AdminArgs, Remote};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sluice_common::ids::{Name, TenantId};
use sluice_common::letters::{Letter, LetterId, Settled};
use sluice_common::limits::{MAX_LETTERS_DISCARDED, MAX_LETTERS_LISTED, MAX_LETTERS_RETRIED};
use sluice_common::moment;
use sluice_common::process::Failure;
use std::collections::BTreeMap;

/// The reason of an event whose identity is taken by another content.
const CONFLICT: &str = "idempotency_conflict";

/// Shows dead letters, stores them after all, or deletes them.
///
/// A dead letter is an acknowledged event that ClickHouse refused as a row, or whose Idempotency-Key was
/// taken by another content; or, for datasets with `keep_rejected`, the copy of a row that intake
/// rejected. Mend what refused it, then `dlq retry`: each row is stored once, however often it is
/// retried, and the books follow.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub struct DlqArgs {
    #[command(subcommand)]
    verb: DlqVerb,
}

#[derive(Debug, Subcommand)]
enum DlqVerb {
    List(ListArgs),
    #[command(after_long_help = EXIT_CODES)]
    Show(ShowArgs),
    Retry(RetryArgs),
    Discard(DiscardArgs),
}

/// Lists dead letters, the newest first.
///
/// Examples:
///
///   ingestctl dlq list --since 1d
///
///   ingestctl dlq list --tenant acme --dataset orders --reason clickhouse_469
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Shows one dead letter with its payload.
#[derive(Debug, Args)]
struct ShowArgs {
    /// Its id, as `dlq list` shows it.
    id: LetterId,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Stores the rows of dead letters, and deletes those letters.
///
/// What ClickHouse refuses again stays. Events whose Idempotency-Key was taken by another content are
/// stored, as rows of their own, only where they are named by id or by `--reason idempotency_conflict`.
/// Copies of rejected rows are sent in again as new events. Exit code 2 where a letter stays.
///
/// Examples:
///
///   ingestctl dlq retry --dataset orders --reason clickhouse_469
///
///   ingestctl dlq retry 3f9c0a1b2c3d4e5f-0-65537
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
struct RetryArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Deletes dead letters for good. Their events stay counted as dead-lettered.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
struct DiscardArgs {
    #[command(flatten)]
    which: Which,
    /// Deletes without asking.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Letters by id, or by filter.
#[derive(Debug, Args)]
struct Which {
    /// Ids, as `dlq list` shows them; without any, the newest that the options select.
    #[arg(value_name = "ID")]
    ids: Vec<LetterId>,
    #[command(flatten)]
    filter: FilterArgs,
}

/// Which letters.
#[derive(Debug, Args)]
struct FilterArgs {
    /// One tenant only.
    #[arg(long, value_name = "ID", value_parser = tenant)]
    tenant: Option<TenantId>,
    /// One dataset only.
    #[arg(long, value_name = "NAME", value_parser = name)]
    dataset: Option<Name>,
    /// One reason only: the column CODE, like clickhouse_469.
    #[arg(long, value_name = "CODE", value_parser = name)]
    reason: Option<Name>,
    /// One stage only: insert, dedup, or intake for copies of rejected rows.
    #[arg(long, value_name = "STAGE", value_parser = name)]
    stage: Option<Name>,
    /// Events received since then: a time back from now (1h, 7d) or a moment (2026-11-21T03:00:00Z).
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Events received before then.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// At most so many letters, the newest.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=MAX_LETTERS_LISTED as i64))]
    limit: u32,
}

fn tenant(text: &str) -> Result<TenantId, String> {
    TenantId::new(text).map_err(|error| error.to_string())
}

fn name(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|error| error.to_string())
}

#[derive(Debug, Deserialize)]
struct Listed {
    letters: Vec<Letter>,
}

#[derive(Debug, Deserialize)]
struct Told {
    letters: Vec<Settled>,
}

/// A letter as it is printed.
#[derive(Debug, Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    letter: &'a Letter,
}

impl DlqArgs {
    /// Asks the normalizer.
    ///
    /// # Errors
    /// Where it does not answer, or refuses.
    pub async fn run(self) -> Result<Exit, Failure> {
        match self.verb {
            DlqVerb::List(args) => {
                let letters = args.filter.list(&args.admin.remote()?).await?;
                let lines: Vec<Line<'_>> = letters.iter().map(Line::of).collect();
                args.output.print(&lines, || table(&letters))?;
                Ok(Exit::Good)
            }
            DlqVerb::Show(args) => {
                let path = format!("/admin/v1/dlq/{}", args.id);
                let letter: Letter = serde_json::from_value(args.admin.remote()?.get(&path).await?)?;
                args.output.print(&Line::of(&letter), || whole(&letter))?;
                Ok(Exit::Good)
            }
            DlqVerb::Retry(args) => args.run().await,
            DlqVerb::Discard(args) => args.run().await,
        }
    }
}

impl FilterArgs {
    async fn list(&self, remote: &Remote) -> Result<Vec<Letter>, Failure> {
        let path = format!("/admin/v1/dlq?{}", self.query()?);
        let listed: Listed = serde_json::from_value(remote.get(&path).await?)?;
        Ok(listed.letters)
    }

    /// The question, which is also how an order says what it was chosen by.
    fn query(&self) -> Result<String, Failure> {
        let mut parts = vec![format!("limit={}", self.limit)];
        let names = [
            ("tenant", self.tenant.as_ref().map(ToString::to_string)),
            ("dataset", self.dataset.as_ref().map(ToString::to_string)),
            ("reason", self.reason.as_ref().map(ToString::to_string)),
            ("stage", self.stage.as_ref().map(ToString::to_string)),
            ("since", self.since.clone()),
            ("until", self.until.clone()),
        ];
        for (key, text) in names {
            let Some(text) = text else { continue };
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_:.+".contains(c);
            if !text.chars().all(plain) {
                return Err(Failure::new(format!(
                    "--{key} {text:?} has characters that no {key} has"
                )));
            }
            parts.push(format!("{key}={text}"));
        }
        Ok(parts.join("&"))
    }
}

impl Which {
    async fn ids(&self, remote: &Remote) -> Result<Vec<LetterId>, Failure> {
        if !self.ids.is_empty() {
            return Ok(self.ids.clone());
        }
        let letters = self.filter.list(remote).await?;
        Ok(letters.iter().map(|letter| letter.id).collect())
    }

    fn chosen_by(&self) -> Result<String, Failure> {
        if self.ids.is_empty() {
            return self.filter.query();
        }
        Ok("ids".into())
    }
}

impl RetryArgs {
    async fn run(self) -> Result<Exit, Failure> {
        let remote = self.admin.remote()?;
        let by_reason = self
            .which
            .filter
            .reason
            .as_ref()
            .is_some_and(|reason| reason.as_str() == CONFLICT);
        let conflicts = by_reason || !self.which.ids.is_empty();
        let mut ids = self.which.ids(&remote).await?;
        // In the order in which they came.
        ids.reverse();
        let mut settled = Vec::with_capacity(ids.len());
        for some in ids.chunks(MAX_LETTERS_RETRIED) {
            let order = json!({ "ids": some, "conflicts": conflicts });
            settled.extend(order_of(&remote, "/admin/v1/dlq/retry", &order).await?);
            if ids.len() > MAX_LETTERS_RETRIED {
                eprintln!("{} of {} letters tried", settled.len(), ids.len());
            }
        }
        finish(&self.output, &settled)
    }
}

impl DiscardArgs {
    async fn run(self) -> Result<Exit, Failure> {
        let remote = self.admin.remote()?;
        let ids = self.which.ids(&remote).await?;
        if !self.yes && !ids.is_empty() {
            confirm(ids.len())?;
        }
        let chosen_by = self.which.chosen_by()?;
        let mut settled = Vec::with_capacity(ids.len());
        for some in ids.chunks(MAX_LETTERS_DISCARDED) {
            let order = json!({ "ids": some, "chosen_by": chosen_by });
            settled.extend(order_of(&remote, "/admin/v1/dlq/discard", &order).await?);
        }
        finish(&self.output, &settled)
    }
}

async fn order_of(remote: &Remote, path: &str, order: &Value) -> Result<Vec<Settled>, Failure> {
    let told: Told = serde_json::from_value(remote.post(path, order).await?)?;
    Ok(told.letters)
}

fn confirm(letters: usize) -> Result<(), Failure> {
    let question = Question {
        text: &format!("Delete {letters} dead letters for good?"),
        what: &format!("{letters} letters would be deleted for good"),
        refused: "nothing was deleted",
    };
    question.ask()
}

fn finish(output: &OutputArgs, settled: &[Settled]) -> Result<Exit, Failure> {
    output.print(&settled, || outcomes(settled))?;
    let is_open = settled.iter().any(|one| one.outcome.is_open());
    Ok(if is_open { Exit::Attention } else { Exit::Good })
}

/// How many ended how, and each letter that stays.
fn outcomes(settled: &[Settled]) -> String {
    if settled.is_empty() {
        return "there are no such dead letters".into();
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for one in settled {
        *counts.entry(one.outcome.label()).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(label, n)| format!("{n} {label}")).collect();
    let mut table = TextTable::new(&["STAYS", "OUTCOME", "CODE", "MESSAGE"]);
    let open: Vec<&Settled> = settled.iter().filter(|one| one.outcome.is_open()).collect();
    for one in &open {
        table.row([
            one.id.to_string(),
            one.outcome.label().to_owned(),
            one.code.clone(),
            one.message.clone(),
        ]);
    }
    let counts = counts.join(", ");
    if open.is_empty() {
        counts
    } else {
        format!("{table}{counts}\n")
    }
}

impl<'a> Line<'a> {
    fn of(letter: &'a Letter) -> Self {
        Self {
            time: moment::text(letter.time_ms),
            letter,
        }
    }
}

fn table(letters: &[Letter]) -> String {
    if letters.is_empty() {
        return "there are no such dead letters".into();
    }
    let mut table = TextTable::new(&[
        "TIME", "TENANT", "DATASET", "STAGE", "CODE", "FIELD", "ID", "MESSAGE",
    ]);
    for letter in letters {
        table.row([
            moment::text(letter.time_ms),
            letter.tenant.clone(),
            letter.dataset.clone(),
            letter.stage.clone(),
            letter.code.clone(),
            letter.field.clone(),
            letter.id.to_string(),
            letter.message.clone(),
        ]);
    }
    table.to_string()
}

fn whole(letter: &Letter) -> String {
    let mut lines = vec![
        ("id", letter.id.to_string()),
        ("time", moment::text(letter.time_ms)),
        ("tenant", letter.tenant.clone()),
        ("dataset", letter.dataset.clone()),
        ("stage", letter.stage.clone()),
        ("code", letter.code.clone()),
        ("message", letter.message.clone()),
        ("field", letter.field.clone()),
    ];
    let mut payload = "";
    if let Some(content) = &letter.content {
        let index = content
            .event_index
            .map_or_else(String::new, |index| index.to_string());
        lines.extend([("request_id", content.request_id.clone()), ("event_index", index)]);
        payload = &content.payload;
    }
    let lines: Vec<String> = lines
        .iter()
        .map(|(name, text)| format!("{name:<12} {text}"))
        .collect();
    format!("{}\n\n{payload}\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use sluice_common::letters::Outcome;

    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        args: DlqArgs,
    }

    fn filter(args: &[&str]) -> Result<FilterArgs, String> {
        let line = ["dlq", "list"].iter().chain(args);
        let line = CommandLine::try_parse_from(line).map_err(|error| error.to_string())?;
        match line.args.verb {
            DlqVerb::List(args) => Ok(args.filter),
            other @ (DlqVerb::Show(_) | DlqVerb::Retry(_) | DlqVerb::Discard(_)) => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn a_filter_is_a_question_of_plain_characters() {
        let all = [
            "--tenant",
            "acme",
            "--reason",
            "clickhouse_469",
            "--since",
            "1h",
            "--limit",
            "7",
        ];
        let query = filter(&all).expect("a filter").query().expect("a question");
        assert_eq!(query, "limit=7&tenant=acme&reason=clickhouse_469&since=1h");
        for bad in [
            ["--tenant", "a'b"],
            ["--reason", "a b"],
            ["--limit", "0"],
            ["--limit", "10001"],
        ] {
            filter(&bad).expect_err("refused");
        }
        let odd = filter(&["--since", "1h&limit=9"]).expect("a text").query();
        assert!(odd.is_err());
    }

    #[test]
    fn what_stays_is_told_by_letter_and_the_rest_is_counted() {
        let id: LetterId = "00000000000000ab-0-65537".parse().expect("an id");
        assert_eq!(outcomes(&[Settled::plain(id, Outcome::Stored)]), "1 stored");
        let text = outcomes(&[
            Settled::plain(id, Outcome::WasThere),
            Settled::refused(id, "clickhouse_469", "violated"),
        ]);
        assert!(
            text.contains("00000000000000ab-0-65537  refused  clickhouse_469  violated"),
            "{text}"
        );
        assert!(text.ends_with("1 refused, 1 was there\n"), "{text}");
    }
}
