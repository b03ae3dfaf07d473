//! Settling one declared range: calls, verdicts, generations (R13, R14).
//!
//! The sink-writer acts and persists nothing; this state machine decides and persists first. It ends
//! when every sub-batch is proven, or when it is told to stop; what cannot be settled stays declared,
//! is retried with back-off and raises an alarm.

use super::Proof;
use sluice_common::limits::{INSERT_DEADLINE, INSERT_DEADLINE_MAX, RETRY_BACKOFF_MAX, RETRY_BACKOFF_MIN};
use sluice_common::wire::sink::{Piece, Steps, SubKey, SubReport, SubTask, Verdict};
use std::collections::BTreeMap;
use std::time::Duration;

/// Where one sub-batch stands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sub {
    generation: u32,
    proven: bool,
}

/// New generations that one sub-batch gets before a person has to look: a crash poisons a token once,
/// while rows that are there and cannot be read (a row policy, a TTL, another server) would be written
/// again under each new one.
const MAX_GENERATION: u32 = 3;
/// After so many failures in a row the list of sub-batches is learned anew: the table may have been
/// described, or partitioned, otherwise since.
const LEARN_AGAIN: u32 = 5;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Call the sink-writer.
    Call(Plan),
    /// Make these generations durable, then go on.
    Persist(Vec<SubTask>),
    /// Wait, say why, then go on.
    Wait {
        delay: Duration,
        reason: String,
        alarm: bool,
    },
    /// Every sub-batch is proven.
    Proven,
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub attempt: u32,
    pub steps: Steps,
    pub tasks: Option<Vec<SubTask>>,
    pub timeout: Duration,
}

/// The state machine of one range. It does no I/O and reads no clock.
#[derive(Debug)]
pub struct Settling {
    proof: Proof,
    /// Of the range's rows of the books, which are a function of it and so are not declared.
    books: Proof,
    /// Generations that were durable when the intent was found.
    bumped: Vec<SubTask>,
    /// Known after the first answer that named them.
    subs: Option<BTreeMap<SubKey, Sub>>,
    /// Declared by this process and not yet sent: a clean answer to the first attempt is proof.
    fresh: bool,
    /// Rows that were just stored could not be read back: verification itself is broken.
    blind: bool,
    verify_first_attempt: bool,
    attempt: u32,
    failures: u32,
    then: Option<Next>,
}

impl Settling {
    /// A range that this process has just declared.
    #[must_use]
    pub fn declared(proof: Proof, verify: bool) -> Self {
        Self::new(proof, Vec::new(), true, verify)
    }

    /// An intent found at start: whatever was sent is unknown.
    #[must_use]
    pub fn found(proof: Proof, bumped: Vec<SubTask>) -> Self {
        Self::new(proof, bumped, false, true)
    }

    /// The same with rows of the books, which go out with it.
    #[must_use]
    pub fn with_books(mut self, books: Proof) -> Self {
        self.books = books;
        self
    }

    fn new(proof: Proof, bumped: Vec<SubTask>, fresh: bool, verify_first_attempt: bool) -> Self {
        let (subs, attempt, failures, then) = (None, 0, 0, None);
        Self {
            proof,
            books: Proof::default(),
            bumped,
            subs,
            fresh,
            blind: false,
            verify_first_attempt,
            attempt,
            failures,
            then,
        }
    }

    /// What to do now.
    pub fn advance(&mut self) -> Next {
        if let Some(next) = self.then.take() {
            return next;
        }
        if self
            .subs
            .as_ref()
            .is_some_and(|subs| subs.values().all(|sub| sub.proven))
        {
            return Next::Proven;
        }
        self.attempt += 1;
        Next::Call(Plan {
            attempt: self.attempt,
            steps: self.steps(),
            tasks: self.tasks(),
            timeout: self.timeout(),
        })
    }

    fn steps(&self) -> Steps {
        if self.fresh {
            return if self.verify_first_attempt {
                Steps::FIRST_VERIFIED
            } else {
                Steps::FIRST
            };
        }
        // Generations that were bumped before a crash belong to sub-batches whose list is not known
        // yet: learn it first, without sending anything under an old generation.
        let insert = self.subs.is_some() || self.bumped.is_empty();
        Steps {
            insert,
            verify_after: insert,
            ..Steps::AGAIN
        }
    }

    fn tasks(&self) -> Option<Vec<SubTask>> {
        let open = self.subs.as_ref()?.iter().filter(|(_, state)| !state.proven);
        Some(
            open.map(|(sub, state)| SubTask {
                sub: sub.clone(),
                generation: state.generation,
            })
            .collect(),
        )
    }

    fn timeout(&self) -> Duration {
        INSERT_DEADLINE
            .saturating_mul(1 << self.failures.min(4))
            .min(INSERT_DEADLINE_MAX)
    }

    /// Takes the reports of a call. Declared → sent → proven, bumped or waiting.
    pub fn reported(&mut self, reports: &[SubReport]) {
        let fresh = std::mem::take(&mut self.fresh);
        if let Err(reason) = self.learn(reports) {
            self.failures += 1;
            self.then = Some(self.wait(reason, true));
            return;
        }
        let (mut trouble, mut alarm, mut poisoned) = (Vec::new(), false, false);
        for report in reports {
            let Some(sub) = self.subs.as_mut().and_then(|subs| subs.get_mut(&report.sub)) else {
                continue;
            };
            match &report.verdict {
                Verdict::Done => sub.proven = true,
                // A token that was never sent before cannot be poisoned: these rows are not to be seen.
                Verdict::CleanButNone if fresh || self.blind || sub.generation >= MAX_GENERATION => {
                    self.blind |= fresh;
                    alarm = true;
                    trouble.push(describe(report));
                }
                Verdict::CleanButNone => {
                    sub.generation += 1;
                    poisoned = true;
                }
                // Only where nothing was inserted: the next call inserts.
                Verdict::NoneThere => {}
                Verdict::Between { .. } | Verdict::Refused { .. } => {
                    alarm = true;
                    trouble.push(describe(report));
                }
                Verdict::Unknown { .. } => trouble.push(describe(report)),
            }
        }
        self.then = if poisoned {
            Some(Next::Persist(self.generations()))
        } else if trouble.is_empty() {
            self.failures = 0;
            None
        } else {
            self.failures += 1;
            if self.failures.is_multiple_of(LEARN_AGAIN) {
                self.bumped = self.generations();
                self.subs = None;
            }
            Some(self.wait(trouble.join("; "), alarm))
        };
    }

    /// The call never began: the sink-writer had no room. The attempt does not count.
    pub fn busy(&mut self, retry_after: Duration) {
        self.attempt -= 1;
        let delay = retry_after.clamp(RETRY_BACKOFF_MIN, RETRY_BACKOFF_MAX);
        self.then = Some(Next::Wait {
            delay,
            reason: "the sink-writer is full".into(),
            alarm: false,
        });
    }

    /// The call had no answer that can be used: what it did is unknown.
    pub fn failed(&mut self, reason: String) {
        self.fresh = false;
        self.failures += 1;
        self.then = Some(self.wait(reason, false));
    }

    fn wait(&self, reason: String, alarm: bool) -> Next {
        let delay = RETRY_BACKOFF_MIN.saturating_mul(1 << (self.failures.saturating_sub(1)).min(10));
        // A minute of trouble is something that a person should know of.
        Next::Wait {
            delay: delay.min(RETRY_BACKOFF_MAX),
            reason,
            alarm: alarm || self.failures >= 10,
        }
    }

    /// All generations that differ from the first, those of sub-batches of an earlier list included.
    fn generations(&self) -> Vec<SubTask> {
        let mut all: BTreeMap<SubKey, u32> = self
            .bumped
            .iter()
            .map(|task| (task.sub.clone(), task.generation))
            .collect();
        let now = self
            .subs
            .iter()
            .flatten()
            .filter(|(_, state)| state.generation > 0);
        all.extend(now.map(|(sub, state)| (sub.clone(), state.generation)));
        all.into_iter()
            .map(|(sub, generation)| SubTask { sub, generation })
            .collect()
    }

    /// The first answer names all sub-batches; they must add up to what was declared.
    fn learn(&mut self, reports: &[SubReport]) -> Result<(), String> {
        if self.subs.is_some() {
            return Ok(());
        }
        let (mut sum, mut books) = (Proof::default(), Proof::default());
        for report in reports {
            let to = match report.sub.piece {
                Piece::Whole => &mut sum,
                Piece::Entry(_) => &mut books,
            };
            to.merge(report.rows, report.sum_o, report.sum_o2);
        }
        if books != self.books {
            return Err(format!(
                "the sink-writer has {} rows of the books where the range has {}: are all services of one release?",
                books.rows, self.books.rows
            ));
        }
        if sum != self.proof {
            return Err(format!(
                "the sink-writer splits the range into {} rows where {} were declared: are all services of one release?",
                sum.rows, self.proof.rows
            ));
        }
        let generation = |sub: &SubKey| {
            self.bumped
                .iter()
                .find(|one| one.sub == *sub)
                .map_or(0, |one| one.generation)
        };
        let subs = reports.iter().map(|report| {
            (
                report.sub.clone(),
                Sub {
                    generation: generation(&report.sub),
                    proven: false,
                },
            )
        });
        self.subs = Some(subs.collect());
        Ok(())
    }
}

fn describe(report: &SubReport) -> String {
    let (table, part, rows) = (&report.sub.table, &report.sub.part, report.rows);
    let what = match &report.verdict {
        Verdict::Between { found } => {
            format!("{found} of {rows} rows are there: something else wrote or deleted rows")
        }
        Verdict::Refused { code, message, .. } => format!("ClickHouse refuses the rows (code {code}): {message}"),
        Verdict::Unknown { reason } => reason.clone(),
        Verdict::CleanButNone => {
            "ClickHouse takes the rows and does not show them: look for a row policy on our user, a TTL that is \
             shorter than the backlog, or several servers behind one URL"
                .into()
        }
        Verdict::Done | Verdict::NoneThere => String::new(),
    };
    format!("{table}/{part}: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_common::books::Entry;
    use sluice_common::ids::Name;

    fn key(part: &str) -> SubKey {
        SubKey::whole(Name::new("events").expect("valid"), part)
    }

    fn report(part: &str, verdict: Verdict) -> SubReport {
        SubReport {
            sub: key(part),
            rows: 1,
            sum_o: 3,
            sum_o2: 9,
            verdict,
        }
    }

    fn proof(subs: u64) -> Proof {
        Proof {
            rows: subs,
            sum_o: 3 * subs,
            sum_o2: 9 * subs,
        }
    }

    fn call(settling: &mut Settling) -> Plan {
        match settling.advance() {
            Next::Call(plan) => plan,
            other @ (Next::Persist(_) | Next::Wait { .. } | Next::Proven) => {
                panic!("a call was expected, not {other:?}")
            }
        }
    }

    fn unknown() -> Verdict {
        Verdict::Unknown { reason: "cut".into() }
    }

    #[test]
    fn a_clean_first_attempt_is_proof() {
        let mut settling = Settling::declared(proof(2), false);
        assert_eq!(call(&mut settling).steps, Steps::FIRST);
        settling.reported(&[report("a", Verdict::Done), report("b", Verdict::Done)]);
        assert_eq!(settling.advance(), Next::Proven);
    }

    #[test]
    fn what_is_unknown_is_verified_before_it_is_sent_again() {
        let mut settling = Settling::declared(proof(2), false);
        call(&mut settling);
        settling.reported(&[report("a", Verdict::Done), report("b", unknown())]);
        assert!(matches!(settling.advance(), Next::Wait { alarm: false, .. }));
        let plan = call(&mut settling);
        assert_eq!((plan.attempt, plan.steps), (2, Steps::AGAIN));
        assert_eq!(
            plan.tasks,
            Some(vec![SubTask {
                sub: key("b"),
                generation: 0
            }])
        );
        settling.reported(&[report("b", Verdict::Done)]);
        assert_eq!(settling.advance(), Next::Proven);
    }

    #[test]
    fn no_answer_at_all_is_verified_too() {
        let mut settling = Settling::declared(proof(1), false);
        call(&mut settling);
        settling.failed("reset".into());
        assert!(matches!(settling.advance(), Next::Wait { .. }));
        assert_eq!(call(&mut settling).steps, Steps::AGAIN);
    }

    #[test]
    fn a_poisoned_token_gets_a_new_generation_that_is_durable_before_it_is_sent() {
        let mut settling = Settling::found(proof(1), Vec::new());
        assert_eq!(call(&mut settling).steps, Steps::AGAIN);
        settling.reported(&[report("a", Verdict::CleanButNone)]);
        let bumped = vec![SubTask {
            sub: key("a"),
            generation: 1,
        }];
        assert_eq!(settling.advance(), Next::Persist(bumped.clone()));
        assert_eq!(call(&mut settling).tasks, Some(bumped));
    }

    #[test]
    fn rows_that_cannot_be_read_back_are_never_sent_under_a_new_token() {
        let mut settling = Settling::declared(proof(1), true);
        for _ in 0..30 {
            call(&mut settling);
            settling.reported(&[report("a", Verdict::CleanButNone)]);
            assert!(matches!(settling.advance(), Next::Wait { alarm: true, .. }));
        }
    }

    #[test]
    fn a_sub_batch_gets_only_so_many_generations() {
        let mut settling = Settling::found(proof(1), Vec::new());
        let mut persisted = 0;
        for _ in 0..30 {
            call(&mut settling);
            settling.reported(&[report("a", Verdict::CleanButNone)]);
            persisted += u32::from(matches!(settling.advance(), Next::Persist(_)));
        }
        assert_eq!(persisted, MAX_GENERATION);
    }

    #[test]
    fn a_list_of_sub_batches_that_leads_nowhere_is_learned_anew() {
        let mut settling = Settling::declared(proof(1), false);
        for _ in 0..LEARN_AGAIN {
            call(&mut settling);
            settling.reported(&[report("gone", unknown())]);
            assert!(matches!(settling.advance(), Next::Wait { .. }));
        }
        assert_eq!(call(&mut settling).tasks, None);
        settling.reported(&[report("here", Verdict::Done)]);
        assert_eq!(settling.advance(), Next::Proven);
    }

    #[test]
    fn time_outs_and_errors_never_bump_a_generation() {
        let mut settling = Settling::declared(proof(1), false);
        for _ in 0..20 {
            call(&mut settling);
            settling.reported(&[report("a", unknown())]);
            assert!(matches!(settling.advance(), Next::Wait { .. }));
        }
        let tasks = call(&mut settling).tasks;
        assert!(tasks.is_none_or(|tasks| tasks.iter().all(|task| task.generation == 0)));
    }

    #[test]
    fn generations_of_a_found_intent_are_kept() {
        let bumped = vec![SubTask {
            sub: key("a"),
            generation: 2,
        }];
        let mut settling = Settling::found(proof(2), bumped);
        let plan = call(&mut settling);
        assert!(
            !plan.steps.insert && plan.tasks.is_none(),
            "nothing goes out under an old generation"
        );
        settling.reported(&[report("a", Verdict::NoneThere), report("b", Verdict::Done)]);
        let plan = call(&mut settling);
        assert_eq!(
            plan.tasks,
            Some(vec![SubTask {
                sub: key("a"),
                generation: 2
            }])
        );
        assert_eq!(plan.steps, Steps::AGAIN);
    }

    #[test]
    fn a_split_that_does_not_add_up_is_never_taken_for_proof() {
        let mut settling = Settling::declared(proof(2), false);
        call(&mut settling);
        settling.reported(&[report("a", Verdict::Done)]);
        assert!(matches!(settling.advance(), Next::Wait { alarm: true, .. }));
        assert_eq!(call(&mut settling).tasks, None);
    }

    #[test]
    fn the_rows_of_the_books_are_proven_like_any_and_are_not_in_the_declared_proof() {
        let entry = SubKey {
            piece: Piece::Entry(Entry::Range),
            ..key("202611")
        };
        let books = |verdict| SubReport {
            sub: entry.clone(),
            ..report("", verdict)
        };
        // A range of repeats alone, found after a crash: nothing but its row of the books.
        let mut settling = Settling::found(Proof::default(), Vec::new()).with_books(proof(1));
        assert_eq!(call(&mut settling).steps, Steps::AGAIN);
        settling.reported(&[]);
        assert!(
            matches!(settling.advance(), Next::Wait { alarm: true, .. }),
            "the books are missing"
        );
        call(&mut settling);
        settling.reported(&[books(unknown())]);
        assert!(matches!(settling.advance(), Next::Wait { .. }));
        call(&mut settling);
        settling.reported(&[books(Verdict::Done)]);
        assert_eq!(settling.advance(), Next::Proven);
    }

    #[test]
    fn a_busy_sink_writer_costs_no_attempt() {
        let mut settling = Settling::declared(proof(1), false);
        call(&mut settling);
        settling.busy(Duration::from_secs(1));
        assert!(matches!(settling.advance(), Next::Wait { alarm: false, .. }));
        assert_eq!(call(&mut settling).steps, Steps::FIRST);
    }

    #[test]
    fn some_rows_there_raises_an_alarm_and_sends_nothing_new() {
        let mut settling = Settling::found(proof(1), Vec::new());
        call(&mut settling);
        settling.reported(&[report("a", Verdict::Between { found: 1 })]);
        assert!(matches!(settling.advance(), Next::Wait { alarm: true, .. }));
        assert!(call(&mut settling).steps.verify_first);
    }
}
