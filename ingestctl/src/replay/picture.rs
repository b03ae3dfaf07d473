//! Replays as text: the list, one whole, and what to do next.

use super::plan::{self, live_tables};
use crate::output::TextTable;
use indicatif::HumanCount;
use sluice_common::ids::{Name, Offset};
use sluice_common::moment;
use sluice_common::replay::{Beside, Phase, ReplayPlan, ReplayTold, Span, Touched};

/// `1,000,000`.
pub(super) fn grouped(number: u64) -> String {
    HumanCount(number).to_string()
}

pub(super) fn events_of(touched: &[Touched]) -> u64 {
    touched.iter().fold(0, |sum, one| sum.saturating_add(one.events))
}

/// As JSON has it.
pub(super) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Running => "running",
        Phase::Paused => "paused",
        Phase::Failed => "failed",
        Phase::Done => "done",
        Phase::Promoting => "promoting",
        Phase::Promoted => "promoted",
        Phase::Discarded => "discarded",
    }
}

fn joined<'a>(names: impl IntoIterator<Item = &'a Name>) -> String {
    let names: Vec<&str> = names.into_iter().map(Name::as_str).collect();
    names.join(", ")
}

/// `events, orders`.
pub(super) fn live(plan: &ReplayPlan) -> String {
    joined(live_tables(plan))
}

/// `events_shadow_r00c0ffee, …`.
pub(super) fn shadows(plan: &ReplayPlan) -> String {
    joined(&plan.shadow_tables)
}

/// `events_before_r00c0ffee, …`: what promoting makes.
pub(super) fn before(plan: &ReplayPlan) -> String {
    let tables = live_tables(plan).into_iter();
    let tables: Vec<Name> = tables.map(|live| plan.id.table(live, Beside::Before)).collect();
    joined(&tables)
}

/// One line a replay.
pub(super) fn list(replays: &[ReplayTold]) -> String {
    if replays.is_empty() {
        return "nothing was replayed".into();
    }
    let mut table = TextTable::new(&[
        "ID", "PHASE", "WHO", "BEGUN", "RECORDS", ">EVENTS", ">WRITTEN", "TABLES", "REASON",
    ]);
    for told in replays {
        table.row([
            told.id.to_string(),
            phase(told.phase).to_owned(),
            told.who.clone(),
            moment::text(told.begun_ms),
            spans(&told.plan.spans),
            grouped(events_of(&told.plan.partitions)),
            grouped(told.written),
            live(&told.plan),
            told.reason.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}

/// `12..40`; of several partitions each with its number: `0: 12..40, 1: 7..9`.
pub(super) fn spans(spans: &[Span]) -> String {
    if let [span] = spans {
        return format!("{}..{}", span.from, span.to);
    }
    let one = |span: &Span| format!("{}: {}..{}", span.partition, span.from, span.to);
    spans.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn next(told: &ReplayTold) -> String {
    if let (1, Some((_, next))) = (told.next.len(), told.next.first_key_value()) {
        return next.to_string();
    }
    let one = |(partition, next): (&u16, &Offset)| format!("{partition}: {next}");
    told.next.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Plan, progress and steps.
pub(super) fn whole(told: &ReplayTold) -> String {
    let read = events_of(&told.read);
    let lines = [
        ("phase", phase(told.phase).to_owned()),
        ("reason", told.reason.clone().unwrap_or_else(|| "-".into())),
        ("who", told.who.clone()),
        ("begun", moment::text(told.begun_ms)),
        ("changed", moment::text(told.changed_ms)),
        ("next record", next(told)),
        ("events read", grouped(read)),
        ("rows written", grouped(told.written)),
        ("rows left out", grouped(told.left_out)),
    ];
    let lines: Vec<String> = lines
        .iter()
        .map(|(name, text)| format!("{name:<14} {text}"))
        .collect();
    let steps: Vec<String> = told.steps.iter().map(|step| format!("step: {step}\n")).collect();
    format!(
        "{}\n{}\n{}{}",
        plan::text(&told.plan),
        lines.join("\n"),
        if steps.is_empty() { "" } else { "\n" },
        steps.concat()
    )
}

/// How it ended, and what can be done now.
pub(super) fn ended(told: &ReplayTold) -> String {
    let (id, plan) = (told.id, &told.plan);
    let reason = told.reason.as_deref().unwrap_or("no reason is told");
    let (written, left_out) = (grouped(told.written), grouped(told.left_out));
    match told.phase {
        Phase::Running => format!("Replay {id} runs: `ingestctl replay show {id}` says how far it is."),
        Phase::Paused => format!(
            "Replay {id} is paused with {written} rows written.\n\
             Next:  ingestctl replay resume {id}    to go on\n\
             or:    ingestctl replay discard {id}   to drop {}\n",
            shadows(plan)
        ),
        Phase::Failed => format!(
            "Replay {id} has FAILED with {written} rows written: {reason}\n\
             Next:  mend that, then  ingestctl replay resume {id}\n\
             or:    ingestctl replay discard {id}   to drop {}\n",
            shadows(plan)
        ),
        Phase::Done => format!(
            "Replay {id} is done: {written} rows are in {}; {left_out} were left out, as repeats or dead letters.\n\
             Next:  ingestctl replay diff {id}      to hold both against each other\n\
             then:  ingestctl replay promote {id}   to put them in the live table's place\n\
             or:    ingestctl replay discard {id}   to drop them\n",
            shadows(plan)
        ),
        Phase::Promoting => format!("Replay {id} is being promoted: `ingestctl replay show {id}`."),
        Phase::Promoted => format!(
            "Replay {id} is promoted: what it wrote is in {}. What was there before is in {}.\n\
             Next:  ingestctl replay discard {id}   to drop that, once nobody needs it\n",
            live(plan),
            before(plan)
        ),
        Phase::Discarded => match &told.reason {
            // Of another normalizer's: what became of it there is not known.
            Some(reason) => format!("Replay {id} is discarded: {reason}."),
            None => format!("Replay {id} is discarded: its tables are dropped."),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::told;
    use super::*;

    #[test]
    fn a_list_says_who_when_and_what() {
        let mut failed = told(Phase::Failed);
        failed.reason = Some("the disk is full".into());
        let expected = "\
ID         PHASE   WHO         BEGUN                 RECORDS     EVENTS  WRITTEN  TABLES          REASON
r00c0ffee  done    ann@node-1  2026-11-21T04:00:00Z  1200..1210   1,000      590  clicks, orders
r00c0ffee  failed  ann@node-1  2026-11-21T04:00:00Z  1200..1210   1,000      590  clicks, orders  the disk is full
";
        assert_eq!(list(&[told(Phase::Done), failed]), expected);
        assert_eq!(list(&[]), "nothing was replayed");
    }

    #[test]
    fn one_whole_has_its_plan_how_far_it_is_and_its_steps() {
        let mut told = told(Phase::Promoting);
        assert!(whole(&told).ends_with("rows left out  10\n"));
        told.steps = vec!["orders is set aside".into(), "orders: caught up to 1300".into()];
        let text = whole(&told);
        assert!(text.starts_with("Replay r00c0ffee: 1,000 events"), "{text}");
        let end = "\
phase          promoting
reason         -
who            ann@node-1
begun          2026-11-21T04:00:00Z
changed        2026-11-21T04:00:05Z
next record    1206
events read    610
rows written   590
rows left out  10

step: orders is set aside
step: orders: caught up to 1300
";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn every_end_says_what_to_do_next() {
        let next = [
            (Phase::Running, "replay show r00c0ffee"),
            (Phase::Paused, "replay resume r00c0ffee"),
            (
                Phase::Failed,
                "mend that, then  ingestctl replay resume r00c0ffee",
            ),
            (Phase::Done, "replay diff r00c0ffee"),
            (Phase::Promoting, "replay show r00c0ffee"),
            (
                Phase::Promoted,
                "in clicks_before_r00c0ffee, orders_before_r00c0ffee.",
            ),
            (Phase::Discarded, "are dropped"),
        ];
        for (phase, words) in next {
            let text = ended(&told(phase));
            assert!(text.contains(words), "{phase:?}: {text}");
        }
        let done = ended(&told(Phase::Done));
        let begin = "Replay r00c0ffee is done: 590 rows are in clicks_shadow_r00c0ffee, orders_shadow_r00c0ffee; 10 were left out";
        assert!(done.starts_with(begin), "{done}");
    }

    #[test]
    fn a_phase_has_the_same_name_as_text_and_in_json() {
        for one in [
            Phase::Running,
            Phase::Paused,
            Phase::Failed,
            Phase::Done,
            Phase::Promoting,
            Phase::Promoted,
            Phase::Discarded,
        ] {
            assert_eq!(serde_json::json!(one), serde_json::json!(phase(one)));
        }
    }
}
