//! Settling one declared range: calls, verdicts, generations (R13, R14), the walk to refused rows (R15),
//! and tables that are set aside (R16).
//!
//! The sink-writer acts and persists nothing; this state machine decides and persists first. It ends
//! when every sub-batch is proven, walked to its end or set aside with its table, or when it is told to
//! stop; what cannot be settled stays declared, is retried with back-off and raises an alarm.

mod pauses;

use super::plan::{Next, Plan, Rules, Trouble, Why};
use super::sub::{State, Sub, count, describe, is_data, is_sound, is_walked, piece, root};
use super::walk::Walk;
use super::{DeadRow, Marks, Proof};
use sluice_common::classify::Class;
use sluice_common::ids::Name;
use sluice_common::limits::{
    INSERT_DEADLINE, INSERT_DEADLINE_MAX, MAX_BAD_ROWS, MAX_DEAD_ROWS, MAX_SUB_BATCHES,
};
use sluice_common::wire::sink::{Piece, Steps, SubKey, SubReport, SubTask, Verdict};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// New generations that one sub-batch gets before a person has to look: a crash poisons a token once,
/// while rows that are there and cannot be read (a row policy, a TTL, another server) would be written
/// again under each new one.
const MAX_GENERATION: u32 = 3;
/// After so many failures in a row the list of sub-batches is learned anew: the table may have been
/// described, or partitioned, otherwise since.
const LEARN_AGAIN: u32 = 5;
/// Bytes of a refusal's message that are kept with a row.
pub const MAX_DEAD_MESSAGE: usize = 200;

/// The state machine of one range. It does no I/O and reads no clock.
#[derive(Debug)]
pub struct Settling {
    proof: Proof,
    /// Of rows of the books, which are a function of what is declared.
    books: Proof,
    rules: Rules,
    /// What is durable once [`Next::Persist`] was carried out.
    marks: Marks,
    /// Known after the first answer that named them.
    subs: Option<BTreeMap<SubKey, Sub>>,
    /// Tables with marks on parts that they no longer have; nothing is sent to them.
    strayed: BTreeSet<Name>,
    troubles: BTreeMap<Name, Trouble>,
    /// Declared by this process and not yet sent: a clean answer to the first attempt is proof.
    fresh: bool,
    /// Some attempt may have gone out: only then is it bound to its server (R14).
    touched: bool,
    /// The server answered lately.
    answering: bool,
    /// Rows that were just stored could not be read back: verification itself is broken.
    blind: bool,
    verify_first_attempt: bool,
    attempt: u32,
    failures: u32,
    then: VecDeque<Next>,
}

/// What a report led to.
enum Took {
    /// Nothing that matters, or progress.
    Well,
    Trouble(Why, bool),
}

impl Settling {
    /// A range that this process has just declared.
    #[must_use]
    pub fn declared(proof: Proof, rules: Rules, verify: bool) -> Self {
        Self::new(proof, rules, Marks::default(), (true, verify))
    }

    /// An intent found at start: whatever was sent is unknown.
    #[must_use]
    pub fn found(proof: Proof, rules: Rules, marks: Marks) -> Self {
        Self::new(proof, rules, marks, (false, true))
    }

    /// The same with rows of the books, which go out with it.
    #[must_use]
    pub fn with_books(mut self, books: Proof) -> Self {
        self.books = books;
        self
    }

    fn new(proof: Proof, rules: Rules, marks: Marks, (fresh, verify): (bool, bool)) -> Self {
        Self {
            proof,
            books: Proof::default(),
            rules,
            marks,
            subs: None,
            strayed: BTreeSet::new(),
            troubles: BTreeMap::new(),
            fresh,
            touched: !fresh,
            answering: false,
            blind: false,
            verify_first_attempt: verify,
            attempt: 0,
            failures: 0,
            then: VecDeque::new(),
        }
    }

    /// What is durable of it.
    #[must_use]
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// What its tables suffer from.
    #[must_use]
    pub fn troubles(&self) -> &BTreeMap<Name, Trouble> {
        &self.troubles
    }

    /// Whether it is certain that no byte of an insert has gone out: it may be sent to another server.
    #[must_use]
    pub fn untouched(&self) -> bool {
        !self.touched
    }

    /// Whether the server answers other questions: tells its trouble from that of our own tables.
    pub fn answering(&mut self, answering: bool) {
        self.answering = answering;
    }

    /// Tables with sub-batches that are not proven; `None` before they are known.
    #[must_use]
    pub fn unsettled(&self) -> Option<BTreeSet<Name>> {
        let subs = self.subs.as_ref()?.iter();
        let open = subs.filter(|(_, sub)| sub.state != State::Proven);
        Some(open.map(|(key, _)| key.table.clone()).collect())
    }

    /// What to do now.
    pub fn advance(&mut self) -> Next {
        if let Some(next) = self.then.pop_front() {
            return next;
        }
        let is_proven = |sub: &Sub| sub.state == State::Proven;
        if self
            .subs
            .as_ref()
            .is_some_and(|subs| subs.values().all(is_proven))
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
        // Marks that were made before a crash belong to sub-batches whose list is not known yet: learn
        // it first, without sending anything under an old generation, or whole.
        let Marks {
            bumped, split, dead, ..
        } = &self.marks;
        let insert = self.subs.is_some() || (bumped.is_empty() && split.is_empty() && dead.is_empty());
        Steps {
            insert,
            verify_after: insert,
            ..Steps::AGAIN
        }
    }

    fn tasks(&self) -> Option<Vec<SubTask>> {
        let subs = self.subs.as_ref()?;
        let mut tasks = Vec::new();
        for (key, sub) in subs.iter().filter(|(key, _)| !self.strayed.contains(&key.table)) {
            match &sub.state {
                State::Open => tasks.push(self.task(key.clone())),
                State::Walked(walk) => tasks.extend(walk.nodes().map(|node| self.task(piece(key, node)))),
                State::Proven => {}
            }
        }
        tasks.truncate(MAX_SUB_BATCHES);
        tasks.extend(self.canary(subs).map(|key| self.task(key.clone())));
        Some(tasks)
    }

    /// A proven sub-batch of a table without trouble, asked for again: it tells whether ClickHouse
    /// answers for other tables while one is in trouble.
    fn canary<'a>(&self, subs: &'a BTreeMap<SubKey, Sub>) -> Option<&'a SubKey> {
        let sound = |(key, sub): &(&SubKey, &Sub)| {
            sub.state == State::Proven && subs.iter().all(|(other, one)| is_sound(key, other, one))
        };
        let proven = subs.iter().filter(sound).min_by_key(|(_, sub)| sub.rows);
        proven.map(|(key, _)| key)
    }

    fn task(&self, sub: SubKey) -> SubTask {
        let known = self.marks.bumped.iter().find(|one| one.sub == sub);
        let generation = known.map_or(0, |one| one.generation);
        SubTask { sub, generation }
    }

    fn timeout(&self) -> Duration {
        INSERT_DEADLINE
            .saturating_mul(1 << self.failures.min(4))
            .min(INSERT_DEADLINE_MAX)
    }

    /// Takes the reports of a call, `now` after the settling began. Declared → sent → proven, walked,
    /// bumped, set aside or waiting.
    pub fn reported(&mut self, reports: &[SubReport], now: Duration) {
        let fresh = std::mem::take(&mut self.fresh);
        let unsent = |report: &SubReport| matches!(report.verdict, Verdict::Unsent { .. });
        self.touched |= reports.is_empty() || !reports.iter().all(unsent);
        if let Err(reason) = self.learn(reports) {
            self.failures += 1;
            let wait = self.wait(reason, true);
            self.then.push_back(wait);
            return;
        }
        let before = self.marks.clone();
        let too_many = self.too_many(reports);
        let (mut said, mut alarm, mut failing) = (Vec::new(), false, BTreeMap::new());
        for report in reports {
            match self.take(report, fresh, &too_many) {
                Took::Well => {}
                Took::Trouble(why, is_alarm) => {
                    alarm |= is_alarm;
                    said.push(describe(report));
                    failing.insert(report.sub.table.clone(), (why, describe(report)));
                }
            }
        }
        for table in &self.strayed {
            let reason = format!("{table}: it was partitioned anew after some of its rows had been refused");
            (alarm, said) = (true, [said, vec![reason.clone()]].concat());
            failing.insert(table.clone(), (Why::Repartitioned, reason));
        }
        if self.marks != before {
            self.then.push_back(Next::Persist(self.marks.clone()));
        }
        let due = self.note(reports, failing, now);
        self.go_on(due, &said, alarm);
    }

    /// Trouble → set aside, or a wait; none → on.
    fn go_on(&mut self, due: BTreeMap<Name, Trouble>, said: &[String], alarm: bool) {
        if said.is_empty() {
            self.failures = 0;
            return;
        }
        self.failures += 1;
        if !due.is_empty() {
            self.then.push_back(Next::Park(due));
            return;
        }
        if self.failures.is_multiple_of(LEARN_AGAIN) {
            self.subs = None;
        }
        let wait = self.wait(said.join("; "), alarm);
        self.then.push_back(wait);
    }

    /// Keeps the tables' troubles, and says which have to be set aside: in trouble for long, while
    /// ClickHouse answered for others all the time.
    fn note(
        &mut self,
        reports: &[SubReport],
        failing: BTreeMap<Name, (Why, String)>,
        now: Duration,
    ) -> BTreeMap<Name, Trouble> {
        let is_done = |report: &&SubReport| report.verdict == Verdict::Done;
        let alive = reports
            .iter()
            .filter(is_done)
            .any(|report| !failing.contains_key(&report.sub.table));
        // Where nothing but our own tables is sent, no other can tell.
        let only_own = self.subs.iter().flatten().all(|(key, _)| !is_data(&key.table));
        let alive = alive || (only_own && self.answering);
        let is_open = |table: &Name| {
            let mut of_table = reports.iter().filter(|report| report.sub.table == *table);
            of_table.any(|report| report.verdict != Verdict::Done)
        };
        self.troubles
            .retain(|table, _| failing.contains_key(table) || is_open(table));
        for (table, (why, reason)) in failing {
            let known = self.troubles.get(&table).filter(|_| alive);
            let since = known.map_or(now, |trouble| trouble.since);
            self.troubles.insert(table, Trouble { since, why, reason });
        }
        let Some(after) = self.rules.park_after.filter(|_| alive) else {
            return BTreeMap::new();
        };
        let due = self.troubles.iter().filter(|(table, trouble)| {
            let long = now.saturating_sub(trouble.since) >= after;
            long || (trouble.why == Why::TooMany && is_data(table))
        });
        due.map(|(table, trouble)| (table.clone(), trouble.clone()))
            .collect()
    }

    /// One report: its sub-batch, or node of a walk, goes on or is in trouble.
    fn take(&mut self, report: &SubReport, fresh: bool, too_many: &BTreeSet<SubKey>) -> Took {
        let root = root(&report.sub);
        let Some(sub) = self.subs.as_mut().and_then(|subs| subs.get_mut(&root)) else {
            return Took::Well;
        };
        let node = match (&sub.state, report.sub.piece) {
            // all of it is there, found while the list was learned → its walk has nothing to find
            (State::Walked(_), Piece::Whole) if report.verdict == Verdict::Done => {
                sub.state = State::Proven;
                return Took::Well;
            }
            (State::Walked(walk), Piece::Rows { from, to }) if walk.holds((from, to)) => Some((from, to)),
            (State::Open, Piece::Whole | Piece::Quarantined | Piece::Entry(_)) => None,
            // Asked for once more as a canary, or named while the list was learned.
            (State::Open | State::Walked(_) | State::Proven, _) => return Took::Well,
        };
        match &report.verdict {
            Verdict::Done => sub.settle(node),
            // Only where nothing was inserted: the next call inserts.
            Verdict::NoneThere => {}
            Verdict::CleanButNone => return self.vanished(&report.sub, fresh),
            // interior node, partly there → what of it is there is told apart below
            Verdict::Between { .. } => match node {
                Some(node) if node.1 - node.0 > 1 => self.halve(&root, node),
                // one row, there more than once → stays as it is, where a person said so
                Some(_) if self.rules.mend => sub.settle(node),
                None if self.rules.mend && is_walked(Class::Quarantine, &root) => self.split(report),
                Some(_) | None => return Took::Trouble(Why::Between, true),
            },
            Verdict::Refused { class, .. } if !self.rules.quarantine || !is_walked(*class, &root) => {
                return Took::Trouble(Why::Unsettled, true);
            }
            Verdict::Refused { .. } if too_many.contains(&root) => return Took::Trouble(Why::TooMany, true),
            Verdict::Refused { code, message, .. } => self.refused(report, node, *code, message),
            Verdict::Unsent { .. } | Verdict::Unknown { .. } => return Took::Trouble(Why::Unsettled, false),
        }
        Took::Well
    }

    /// Refused for the rows' sake: whole → split, node → halves, one row → dead.
    fn refused(&mut self, report: &SubReport, node: Option<(u32, u32)>, code: u32, message: &str) {
        let root = root(&report.sub);
        match node {
            None => self.split(report),
            Some((from, to)) if to - from > 1 => self.halve(&root, (from, to)),
            Some(node) => {
                self.marks.dead.push(DeadRow {
                    table: root.table.clone(),
                    part: root.part.clone(),
                    row: node.0,
                    // The sum over one row.
                    o: report.sum_o,
                    code,
                    message: shorten(message),
                });
                if let Some(sub) = self.subs.as_mut().and_then(|subs| subs.get_mut(&root)) {
                    sub.settle(Some(node));
                }
            }
        }
    }

    /// From here on it is never sent whole.
    fn split(&mut self, report: &SubReport) {
        if let Some(sub) = self.subs.as_mut().and_then(|subs| subs.get_mut(&report.sub)) {
            sub.state = State::Walked(Walk::begin(count(report.rows), &[]));
        }
        self.marks.split.push(report.sub.clone());
    }

    fn halve(&mut self, root: &SubKey, node: (u32, u32)) {
        let dead = self.marks.dead_in(root);
        let state = self.subs.as_mut().and_then(|subs| subs.get_mut(root));
        if let Some(State::Walked(walk)) = state.map(|sub| &mut sub.state) {
            walk.halve(node, &dead);
        }
    }

    /// Answered clean, and none there → a new generation, where that can help.
    fn vanished(&mut self, sub: &SubKey, fresh: bool) -> Took {
        let generation = self.task(sub.clone()).generation;
        let full = self.marks.bumped.len() >= MAX_SUB_BATCHES;
        // A token that was never sent before cannot be poisoned: these rows are not to be seen.
        if fresh || self.blind || generation >= MAX_GENERATION || full {
            self.blind |= fresh;
            return Took::Trouble(Why::Vanished, true);
        }
        self.marks.bumped.retain(|one| one.sub != *sub);
        let (sub, generation) = (sub.clone(), generation + 1);
        self.marks.bumped.push(SubTask { sub, generation });
        Took::Well
    }

    /// Sub-batches with so many refused rows that it must be the table. Refused nodes do not overlap,
    /// so each stands for a refused row of its own.
    fn too_many(&self, reports: &[SubReport]) -> BTreeSet<SubKey> {
        let mut nodes: BTreeMap<SubKey, (usize, usize)> = BTreeMap::new();
        for report in reports {
            if let (
                Verdict::Refused {
                    class: Class::Quarantine,
                    ..
                },
                Piece::Rows { from, to },
            ) = (&report.verdict, report.sub.piece)
            {
                let (all, single) = nodes.entry(root(&report.sub)).or_default();
                *all += 1;
                *single += usize::from(to - from == 1);
            }
        }
        let dead: usize = nodes.values().map(|(_, single)| single).sum::<usize>() + self.marks.dead.len();
        let over = |(root, (all, single)): (SubKey, (usize, usize))| {
            let of_root = all + self.marks.dead_in(&root).len();
            (of_root > MAX_BAD_ROWS || (single > 0 && dead > MAX_DEAD_ROWS)).then_some(root)
        };
        nodes.into_iter().filter_map(over).collect()
    }

    /// The first answer names all sub-batches; they must add up to what was declared.
    fn learn(&mut self, reports: &[SubReport]) -> Result<(), String> {
        if self.subs.is_some() {
            return Ok(());
        }
        let (mut sum, mut books) = (Proof::default(), Proof::default());
        for report in reports {
            let to = match report.sub.piece {
                Piece::Whole | Piece::Rows { .. } | Piece::Quarantined => &mut sum,
                Piece::Entry(_) => &mut books,
            };
            to.merge(report.rows, report.sum_o, report.sum_o2);
        }
        if (sum, books) != (self.proof, self.books) {
            return Err(format!(
                "the sink-writer splits the range into {} rows and {} of the books where {} and {} were declared: are \
                 all services of one release?",
                sum.rows, books.rows, self.proof.rows, self.books.rows
            ));
        }
        let subs: BTreeMap<SubKey, Sub> = reports
            .iter()
            .map(|one| (one.sub.clone(), self.begin(one)))
            .collect();
        let marked = self.marks.roots();
        let strayed = marked.into_iter().filter(|root| !subs.contains_key(root));
        self.strayed = strayed.map(|root| root.table).collect();
        self.subs = Some(subs);
        Ok(())
    }

    fn begin(&self, report: &SubReport) -> Sub {
        let dead = self.marks.dead_in(&report.sub);
        let state = if dead.is_empty() && !self.marks.split.contains(&report.sub) {
            State::Open
        } else {
            State::Walked(Walk::begin(count(report.rows), &dead)).ended()
        };
        let rows = report.rows;
        Sub { rows, state }
    }
}

fn shorten(message: &str) -> String {
    message[..message.floor_char_boundary(MAX_DEAD_MESSAGE)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_common::books::Entry;
    use sluice_common::ids::Name;

    const NOW: Duration = Duration::ZERO;
    const RULES: Rules = Rules {
        quarantine: true,
        park_after: Some(Duration::from_secs(10)),
        mend: false,
    };

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
            other @ (Next::Persist(_) | Next::Park(_) | Next::Wait { .. } | Next::Proven) => {
                panic!("a call was expected, not {other:?}")
            }
        }
    }

    fn unknown() -> Verdict {
        Verdict::Unknown { reason: "cut".into() }
    }

    #[test]
    fn a_clean_first_attempt_is_proof() {
        let mut settling = Settling::declared(proof(2), RULES, false);
        assert_eq!(call(&mut settling).steps, Steps::FIRST);
        settling.reported(&[report("a", Verdict::Done), report("b", Verdict::Done)], NOW);
        assert_eq!(settling.advance(), Next::Proven);
    }

    #[test]
    fn what_is_unknown_is_verified_before_it_is_sent_again() {
        let mut settling = Settling::declared(proof(2), RULES, false);
        call(&mut settling);
        settling.reported(&[report("a", Verdict::Done), report("b", unknown())], NOW);
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
        settling.reported(&[report("b", Verdict::Done)], NOW);
        assert_eq!(settling.advance(), Next::Proven);
    }

    #[test]
    fn no_answer_at_all_is_verified_too() {
        let mut settling = Settling::declared(proof(1), RULES, false);
        call(&mut settling);
        settling.failed("reset".into());
        assert!(matches!(settling.advance(), Next::Wait { .. }));
        assert_eq!(call(&mut settling).steps, Steps::AGAIN);
    }

    #[test]
    fn a_poisoned_token_gets_a_new_generation_that_is_durable_before_it_is_sent() {
        let mut settling = Settling::found(proof(1), RULES, Marks::default());
        assert_eq!(call(&mut settling).steps, Steps::AGAIN);
        settling.reported(&[report("a", Verdict::CleanButNone)], NOW);
        let bumped = vec![SubTask {
            sub: key("a"),
            generation: 1,
        }];
        let marks = Marks {
            bumped: bumped.clone(),
            ..Marks::default()
        };
        assert_eq!(settling.advance(), Next::Persist(marks));
        assert_eq!(call(&mut settling).tasks, Some(bumped));
    }

    #[test]
    fn rows_that_cannot_be_read_back_are_never_sent_under_a_new_token() {
        let mut settling = Settling::declared(proof(1), RULES, true);
        for _ in 0..30 {
            call(&mut settling);
            settling.reported(&[report("a", Verdict::CleanButNone)], NOW);
            assert!(matches!(settling.advance(), Next::Wait { alarm: true, .. }));
        }
    }

    #[test]
    fn a_sub_batch_gets_only_so_many_generations() {
        let mut settling = Settling::found(proof(1), RULES, Marks::default());
        let mut persisted = 0;
        for _ in 0..30 {
            call(&mut settling);
            settling.reported(&[report("a", Verdict::CleanButNone)], NOW);
            persisted += u32::from(matches!(settling.advance(), Next::Persist(_)));
        }
        assert_eq!(persisted, MAX_GENERATION);
    }

    #[test]
    fn a_list_of_sub_batches_that_leads_nowhere_is_learned_anew() {
        let mut settling = Settling::declared(proof(1), RULES, false);
        for _ in 0..LEARN_AGAIN {
            call(&mut settling);
            settling.reported(&[report("gone", unknown())], NOW);
            assert!(matches!(settling.advance(), Next::Wait { .. }));
        }
        assert_eq!(call(&mut settling).tasks, None);
        settling.reported(&[report("here", Verdict::Done)], NOW);
        assert_eq!(settling.advance(), Next::Proven);
    }

    #[test]
    fn time_outs_and_errors_never_bump_a_generation() {
        let found = Settling::found(proof(1), RULES, Marks::default());
        for mut settling in [Settling::declared(proof(1), RULES, false), found] {
            for _ in 0..20 {
                call(&mut settling);
                settling.reported(&[report("a", unknown())], NOW);
                assert!(matches!(settling.advance(), Next::Wait { .. }));
            }
            let tasks = call(&mut settling).tasks;
            assert!(tasks.is_none_or(|tasks| tasks.iter().all(|task| task.generation == 0)));
        }
    }

    #[test]
    fn generations_of_a_found_intent_are_kept() {
        let bumped = vec![SubTask {
            sub: key("a"),
            generation: 2,
        }];
        let mut settling = Settling::found(
            proof(2),
            RULES,
            Marks {
                bumped,
                ..Marks::default()
            },
        );
        let plan = call(&mut settling);
        assert!(
            !plan.steps.insert && plan.tasks.is_none(),
            "nothing goes out under an old generation"
        );
        settling.reported(
            &[report("a", Verdict::NoneThere), report("b", Verdict::Done)],
            NOW,
        );
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
        let mut settling = Settling::declared(proof(2), RULES, false);
        call(&mut settling);
        settling.reported(&[report("a", Verdict::Done)], NOW);
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
        let mut settling = Settling::found(Proof::default(), RULES, Marks::default()).with_books(proof(1));
        assert_eq!(call(&mut settling).steps, Steps::AGAIN);
        settling.reported(&[], NOW);
        assert!(
            matches!(settling.advance(), Next::Wait { alarm: true, .. }),
            "the books are missing"
        );
        call(&mut settling);
        settling.reported(&[books(unknown())], NOW);
        assert!(matches!(settling.advance(), Next::Wait { .. }));
        call(&mut settling);
        settling.reported(&[books(Verdict::Done)], NOW);
        assert_eq!(settling.advance(), Next::Proven);
    }

    #[test]
    fn a_busy_sink_writer_costs_no_attempt() {
        let mut settling = Settling::declared(proof(1), RULES, false);
        call(&mut settling);
        settling.busy(Duration::from_secs(1));
        assert!(matches!(settling.advance(), Next::Wait { alarm: false, .. }));
        assert_eq!(call(&mut settling).steps, Steps::FIRST);
    }

    #[test]
    fn some_rows_there_raises_an_alarm_and_sends_nothing_new() {
        let mut settling = Settling::found(proof(1), RULES, Marks::default());
        call(&mut settling);
        settling.reported(&[report("a", Verdict::Between { found: 1 })], NOW);
        assert!(matches!(settling.advance(), Next::Wait { alarm: true, .. }));
        assert!(call(&mut settling).steps.verify_first);
    }
}
