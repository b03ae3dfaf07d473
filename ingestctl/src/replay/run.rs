//! `ingestctl replay --from --to --shadow`: plan, ask, run.

use super::client::Replays;
use super::follow::Progress;
use super::picture::{self, events_of, grouped, shadows};
use super::plan;
use crate::confirm::Question;
use crate::exit::Exit;
use crate::output::OutputArgs;
use crate::remote::{AdminArgs, RemoteError};
use clap::Args;
use serde::Serialize;
use sluice_common::clock::{Clock as _, SystemClock, UnixMs};
use sluice_common::ids::{Name, TenantId};
use sluice_common::moment;
use sluice_common::process::Failure;
use sluice_common::replay::{End, Phase, ReplayAsk, ReplayId, ReplayOrder, ReplayPlan, ReplayTold, Touched};

/// What is replayed, and how.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The first record: an offset, or `earliest` for the oldest that the log has. Default with --since or --until: earliest.
    #[arg(long, value_name = "OFFSET", value_parser = end, required_unless_present_any = ["since", "until"])]
    from: Option<End>,
    /// The record to stop before: an offset, or `latest` for all that is committed. Default with --since or --until: latest.
    #[arg(long, value_name = "OFFSET", value_parser = end, required_unless_present_any = ["since", "until"])]
    to: Option<End>,
    /// Writes into shadow tables, beside the live ones. There is no other way, and it must be said.
    #[arg(long)]
    pub(super) shadow: bool,
    /// One partition of the log only.
    #[arg(long, value_name = "P")]
    partition: Option<u16>,
    /// Records appended since then: a time back from now (1h, 7d) or a moment (2026-11-21T03:00:00Z).
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Records appended before then.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// One tenant only.
    #[arg(long, value_name = "ID", value_parser = tenant)]
    tenant: Option<TenantId>,
    /// One dataset only.
    #[arg(long, value_name = "NAME", value_parser = name)]
    dataset: Option<Name>,
    /// Writes at most so many events a second, in place of the plan's cap.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    events_per_second: Option<u64>,
    /// Prints the plan and ends. Nothing is touched.
    #[arg(long)]
    dry_run: bool,
    /// Runs the plan without asking.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    output: OutputArgs,
}

fn end(text: &str) -> Result<End, String> {
    match text {
        "earliest" => Ok(End::Earliest),
        "latest" => Ok(End::Latest),
        _ => text
            .parse()
            .map(End::Offset)
            .map_err(|_| "it is an offset, `earliest` or `latest`".into()),
    }
}

fn tenant(text: &str) -> Result<TenantId, String> {
    TenantId::new(text).map_err(|error| error.to_string())
}

fn name(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|error| error.to_string())
}

/// What is printed at the end: the plan, and what came of it.
#[derive(Debug, Serialize)]
struct Ended<'a> {
    #[serde(flatten)]
    plan: &'a ReplayPlan,
    phase: Phase,
    read: &'a [Touched],
    written: u64,
    left_out: u64,
    reason: Option<&'a str>,
}

impl<'a> Ended<'a> {
    fn of(told: &'a ReplayTold) -> Self {
        Self {
            plan: &told.plan,
            phase: told.phase,
            read: &told.read,
            written: told.written,
            left_out: told.left_out,
            reason: told.reason.as_deref(),
        }
    }
}

impl RunArgs {
    /// Prints the plan; then asks, begins it and follows it.
    pub(super) async fn run(self) -> Result<Exit, Failure> {
        let ask = self.ask(SystemClock.now_ms())?;
        let replays = Replays::of(&self.admin)?;
        let mut plan = replays.plan(&ask).await?;
        if let Some(cap) = self.events_per_second {
            plan.events_per_second = cap;
        }
        if self.dry_run || plan.decisions.is_none() {
            self.output.print(&plan, || plan::text(&plan))?;
            return self.not_run();
        }
        if self.output.is_table() {
            self.output.print(&plan, || plan::text(&plan))?;
        } else {
            eprintln!("{}", plan::text(&plan));
        }
        if !self.yes {
            confirm(&plan)?;
        }
        let order = ReplayOrder {
            plan: plan.id,
            who: who(),
            events_per_second: self.events_per_second,
        };
        let told = replays
            .begin(&order)
            .await
            .map_err(|error| begun(plan.id, error))?;
        finish(&replays, told, &self.output).await
    }

    fn not_run(&self) -> Result<Exit, Failure> {
        if self.dry_run {
            return Ok(Exit::Good);
        }
        Err(Failure::new(
            "nobody can tell any more which rows are repeats, so it cannot be run; the plan's notes say why. Nothing was touched",
        ))
    }

    fn ask(&self, now_ms: UnixMs) -> Result<ReplayAsk, Failure> {
        let time = |option: &str, text: &Option<String>| {
            let text = text.as_ref().map(|text| moment::parse(text, now_ms));
            text.transpose()
                .map_err(|error| Failure::new(format!("{option} {error}")))
        };
        Ok(ReplayAsk {
            from: self.from.unwrap_or(End::Earliest),
            to: self.to.unwrap_or(End::Latest),
            since_ms: time("--since", &self.since)?,
            until_ms: time("--until", &self.until)?,
            partition: self.partition,
            tenant: self.tenant.clone(),
            dataset: self.dataset.clone(),
        })
    }
}

/// An order whose answer was lost may have been taken.
fn begun(id: ReplayId, error: RemoteError) -> Failure {
    match error {
        RemoteError::Unreachable { .. } => Failure::new(format!(
            "{error}. It may have begun: look with `ingestctl replay show {id}`"
        )),
        RemoteError::Refused { .. } | RemoteError::NotSluice { .. } => error.into(),
    }
}

fn confirm(plan: &ReplayPlan) -> Result<(), Failure> {
    let (events, shadows) = (grouped(events_of(&plan.partitions)), shadows(plan));
    let question = Question {
        text: &format!("Replay {events} events into {shadows}?"),
        what: &format!("{events} events would be replayed into {shadows}"),
        refused: "nothing was touched",
    };
    question.ask()
}

/// `user@host`, for the list of replays.
pub(super) fn who() -> String {
    let user = ["USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok());
    let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{user}@{}", host.trim())
}

/// Follows a replay that runs; Ctrl-C pauses it. Prints what came of it.
///
/// # Errors
/// Where it cannot be followed, or paused.
pub(super) async fn finish(
    replays: &Replays,
    told: ReplayTold,
    output: &OutputArgs,
) -> Result<Exit, Failure> {
    let interrupted = async { tokio::signal::ctrl_c().await };
    let told = to_its_end(replays, told, interrupted).await?;
    let ended = Ended::of(&told);
    output.print(&ended, || picture::ended(&told))?;
    Ok(exit(told.phase))
}

/// Follows a replay until it runs no more. Once `interrupted` is there, it is paused.
pub(super) async fn to_its_end(
    replays: &Replays,
    told: ReplayTold,
    interrupted: impl Future<Output = std::io::Result<()>>,
) -> Result<ReplayTold, Failure> {
    let id = told.id;
    let mut progress = Progress::of(&told);
    let followed = {
        let following = replays.follow(
            told,
            |told| told.phase != Phase::Running,
            |look| progress.show(look),
        );
        tokio::select! {
            told = following => Some(told),
            interrupted = interrupted => {
                interrupted?;
                None
            }
        }
    };
    progress.end();
    if let Some(told) = followed {
        return told;
    }
    eprintln!("pausing replay {id}");
    let paused = replays.pause(id).await;
    paused.map_err(|error| {
        Failure::new(format!(
            "replay {id} may go on, as it could not be paused: {error}. Look with `ingestctl replay show {id}`"
        ))
    })
}

fn exit(phase: Phase) -> Exit {
    match phase {
        Phase::Done | Phase::Promoting | Phase::Promoted => Exit::Good,
        Phase::Running | Phase::Paused => Exit::Attention,
        Phase::Failed | Phase::Discarded => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{told, verb};
    use super::*;

    const NOW: UnixMs = 1_795_231_830_000;

    fn asked(args: &[&str]) -> ReplayAsk {
        let args = verb(args).expect("a command line").run;
        args.ask(NOW).expect("an order")
    }

    #[test]
    fn both_ends_are_named_or_the_times_are() {
        let ask = asked(&["--from=1200", "--to=latest", "--shadow"]);
        assert_eq!((ask.from, ask.to), (End::Offset(1200), End::Latest));
        assert_eq!((ask.since_ms, ask.until_ms, ask.partition), (None, None, None));
        let ask = asked(&["--since", "1h", "--until=2026-11-21T03:30:00Z", "--shadow"]);
        assert_eq!((ask.from, ask.to), (End::Earliest, End::Latest));
        assert_eq!(
            (ask.since_ms, ask.until_ms),
            (Some(NOW - 3_600_000), Some(NOW - 30_000))
        );
        let ask = asked(&[
            "--from",
            "earliest",
            "--until",
            "1h",
            "--shadow",
            "--partition",
            "0",
            "--tenant",
            "acme",
        ]);
        assert_eq!((ask.to, ask.partition), (End::Latest, Some(0)));
        assert_eq!(ask.tenant, TenantId::new("acme").ok());
        for bad in [
            &["--shadow"][..],
            &["--from=1", "--shadow"],
            &["--to=1", "--shadow"],
            &["--from=-1", "--to=2", "--shadow"],
            &["--from=1", "--to=newest", "--shadow"],
            &["--since=1h", "--shadow", "--tenant", "a'b"],
            &["--since=1h", "--shadow", "--events-per-second", "0"],
            &["--since=1h", "--shadow", "--partition", "70000"],
        ] {
            verb(bad).expect_err("refused");
        }
        let args = verb(&["--since=yesterday", "--shadow"]).expect("a text").run;
        let error = args.ask(NOW).expect_err("no time").to_string();
        assert!(error.starts_with("--since \"yesterday\" is neither"), "{error}");
    }

    #[test]
    fn what_is_printed_at_the_end_is_the_plan_and_what_came_of_it() {
        let told = told(Phase::Paused);
        let ended = Ended::of(&told);
        let document = serde_json::to_value(&ended).expect("JSON");
        let mut expected = serde_json::to_value(&told.plan).expect("JSON");
        for (name, value) in [
            ("phase", serde_json::json!("paused")),
            ("read", serde_json::json!(told.read)),
            ("written", serde_json::json!(590)),
            ("left_out", serde_json::json!(10)),
            ("reason", serde_json::Value::Null),
        ] {
            assert!(expected.get(name).is_none(), "{name} is no member of a plan");
            expected[name] = value;
        }
        assert_eq!(document, expected);
        assert_eq!(document["id"], "r00c0ffee");
        assert_eq!(document["partitions"][0]["first"], 1200);
    }

    #[test]
    fn who_ordered_it_is_a_user_at_a_host() {
        assert!(who().contains('@'));
    }
}
