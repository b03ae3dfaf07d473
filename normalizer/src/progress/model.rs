//! A model of ClickHouse that refuses rows, loses answers and poisons tokens, under a settling that is
//! killed at any step: each row ends with exactly one outcome.

use super::plan::{Next, Plan, Rules, Why};
use super::settle::Settling;
use super::{Marks, Proof};
use proptest::prelude::*;
use sluice_common::classify::Class;
use sluice_common::ids::Name;
use sluice_common::wire::sink::{Piece, SubKey, SubReport, SubTask, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const RULES: Rules = Rules {
    quarantine: true,
    park_after: None,
    mend: false,
};

/// One table of two partitions, with rows `0..rows`; even ones are of part `0`.
struct Server {
    rows: u64,
    bad: BTreeSet<u64>,
    stored: BTreeMap<u64, u32>,
    tokens: BTreeSet<(SubKey, u32)>,
    /// Each at most once: a sub-batch gets only so many generations.
    poisoned: BTreeSet<SubKey>,
}

/// What befalls one insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Luck {
    Good,
    /// It is carried out, and the answer is lost.
    NoAnswer,
    /// The token is recorded, the rows are not stored, and the answer is lost.
    Poisoned,
    /// It never arrives.
    Lost,
}

impl Server {
    fn of(&self, sub: &SubKey) -> Vec<u64> {
        let part: u64 = sub.part.parse().expect("a number");
        let all: Vec<u64> = (0..self.rows).filter(|o| o % 2 == part).collect();
        match sub.piece {
            Piece::Rows { from, to } => all[from as usize..to as usize].to_vec(),
            Piece::Whole | Piece::Quarantined | Piece::Entry(_) => all,
        }
    }

    fn verify(&self, rows: &[u64]) -> Verdict {
        let found: u64 = rows
            .iter()
            .map(|o| u64::from(self.stored.get(o).copied().unwrap_or(0)))
            .sum();
        match found {
            0 => Verdict::NoneThere,
            _ if found == rows.len() as u64 => Verdict::Done,
            found => Verdict::Between { found },
        }
    }

    fn insert(&mut self, task: &SubTask, rows: &[u64], luck: Luck) -> Verdict {
        let unknown = Verdict::Unknown { reason: "cut".into() };
        let poisoned = luck == Luck::Poisoned && self.poisoned.insert(task.sub.clone());
        if luck == Luck::Lost {
            return unknown;
        }
        if rows.iter().any(|o| self.bad.contains(o)) {
            return match luck {
                Luck::Good => Verdict::Refused {
                    code: 469,
                    message: "violated".into(),
                    class: Class::Quarantine,
                },
                Luck::NoAnswer | Luck::Poisoned | Luck::Lost => unknown,
            };
        }
        if self.tokens.insert((task.sub.clone(), task.generation)) && !poisoned {
            rows.iter().for_each(|o| *self.stored.entry(*o).or_default() += 1);
        }
        match (luck, self.verify(rows)) {
            (Luck::Good, Verdict::NoneThere) => Verdict::CleanButNone,
            (Luck::Good, found) => found,
            (Luck::NoAnswer | Luck::Poisoned | Luck::Lost, _) => unknown,
        }
    }

    /// A server that is not reached: nothing is sent.
    fn silence(&mut self, plan: &Plan) -> Vec<SubReport> {
        let reports = self.answer(plan, || Luck::Lost).into_iter();
        let unsent = |report| SubReport {
            verdict: Verdict::Unsent {
                reason: "refused".into(),
            },
            ..report
        };
        reports.map(unsent).collect()
    }

    fn answer(&mut self, plan: &Plan, mut luck: impl FnMut() -> Luck) -> Vec<SubReport> {
        let whole = || {
            ["0", "1"].map(|part| SubTask {
                sub: SubKey::whole(Name::new("t").expect("valid"), part),
                generation: 0,
            })
        };
        let tasks = plan.tasks.clone().unwrap_or_else(|| whole().to_vec());
        let mut reports = Vec::new();
        for task in tasks {
            let rows = self.of(&task.sub);
            let first = if plan.steps.verify_first {
                self.verify(&rows)
            } else {
                Verdict::NoneThere
            };
            let verdict = if first == Verdict::NoneThere && plan.steps.insert {
                self.insert(&task, &rows, luck())
            } else {
                first
            };
            let proof = Proof::of(rows.iter().copied());
            reports.push(SubReport {
                sub: task.sub,
                rows: proof.rows,
                sum_o: proof.sum_o,
                sum_o2: proof.sum_o2,
                verdict,
            });
        }
        reports
    }
}

/// One step's fate: kill before it, and how inserts end.
type Step = (bool, Vec<u8>);

/// Settles under these fates; the durable marks at the end, and how often it was killed.
fn settle(server: &mut Server, steps: &[Step], changes: &BTreeMap<usize, BTreeSet<u64>>) -> Marks {
    let proof = Proof::of(0..server.rows);
    let mut durable = Marks::default();
    let mut settling = Settling::declared(proof, RULES, false);
    for at in 0..5_000 {
        if let Some(bad) = changes.get(&at) {
            server.bad = bad.clone();
        }
        let step = steps.get(at);
        let next = settling.advance();
        let killed = step.is_some_and(|(kill, _)| *kill);
        match next {
            Next::Proven => return settling.marks().clone(),
            Next::Call(plan) => {
                let mut fates = step.map_or(&[][..], |(_, fates)| fates).iter();
                let reports = server.answer(&plan, || match fates.next() {
                    Some(0) => Luck::NoAnswer,
                    Some(1) => Luck::Poisoned,
                    Some(2) => Luck::Lost,
                    Some(_) | None => Luck::Good,
                });
                settling.reported(&reports, Duration::ZERO);
            }
            // Killed before it was durable, or after.
            Next::Persist(marks) if !killed => durable = marks,
            Next::Persist(_) | Next::Wait { .. } => {}
            Next::Park(tables) => panic!("nothing is to be set aside: {tables:?}"),
        }
        if killed {
            settling = Settling::found(proof, RULES, durable.clone());
        }
    }
    panic!("it does not end: {:?}", settling.troubles());
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(
        (prop::bool::weighted(0.2), prop::collection::vec(0u8..8, 0..4)),
        0..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn each_row_has_one_outcome_however_often_it_is_killed_and_whatever_the_table_takes_meanwhile(
        rows in 2u64..120,
        bad in prop::collection::btree_set(0u64..120, 0..12),
        steps in steps(),
        changes in prop::collection::btree_map(0usize..60, prop::collection::btree_set(0u64..120, 0..12), 0..3),
    ) {
        let mut server = Server { rows, bad, stored: BTreeMap::new(), tokens: BTreeSet::new(), poisoned: BTreeSet::new() };
        let marks = settle(&mut server, &steps, &changes);
        let dead: Vec<u64> = marks.dead.iter().map(|one| one.o).collect();
        for o in 0..rows {
            let outcomes = server.stored.get(&o).copied().unwrap_or(0) as usize
                + dead.iter().filter(|one| **one == o).count();
            prop_assert_eq!(outcomes, 1, "row {} of {}: dead {:?}, stored {:?}", o, rows, dead, server.stored);
        }
    }
}

#[test]
fn without_changes_exactly_the_bad_rows_are_dead() {
    let bad: BTreeSet<u64> = [0, 1, 2, 63, 64, 99].into();
    let mut server = Server {
        rows: 100,
        bad: bad.clone(),
        stored: BTreeMap::new(),
        tokens: BTreeSet::new(),
        poisoned: BTreeSet::new(),
    };
    let marks = settle(&mut server, &[], &BTreeMap::new());
    assert_eq!(marks.dead.iter().map(|one| one.o).collect::<BTreeSet<_>>(), bad);
    assert_eq!(marks.split.len(), 2);
}

#[test]
fn a_table_that_refuses_most_rows_is_set_aside_and_none_of_them_is_given_up() {
    let mut server = Server {
        rows: 1_000,
        bad: (0..1_000).step_by(2).collect(),
        stored: BTreeMap::new(),
        tokens: BTreeSet::new(),
        poisoned: BTreeSet::new(),
    };
    let park_after = Some(Duration::from_secs(10));
    let rules = Rules { park_after, ..RULES };
    let other = SubReport {
        sub: SubKey::whole(Name::new("other").expect("valid"), "all"),
        rows: 1,
        sum_o: 5_000,
        sum_o2: 25_000_000,
        verdict: Verdict::Done,
    };
    let mut settling = Settling::declared(Proof::of((0..1_000).chain([5_000])), rules, true);
    for _ in 0..40 {
        match settling.advance() {
            Next::Call(plan) => {
                let mut plan = plan;
                if let Some(tasks) = &mut plan.tasks {
                    tasks.retain(|task| task.sub.table.as_str() == "t");
                }
                let mut reports = server.answer(&plan, || Luck::Good);
                reports.push(other.clone());
                settling.reported(&reports, Duration::ZERO);
            }
            Next::Park(tables) => {
                let table = Name::new("t").expect("valid");
                assert_eq!(tables[&table].why, Why::TooMany);
                assert_eq!(settling.marks().dead.len(), 0);
                settling.set_aside(tables.keys(), (Proof::of([5_000]), Proof::default()));
                assert_eq!(settling.advance(), Next::Proven);
                return;
            }
            Next::Persist(_) | Next::Wait { .. } => {}
            Next::Proven => panic!("it cannot be"),
        }
    }
    panic!("it is not set aside");
}

/// What befalls one step with two servers: kill before it, which servers are down, how inserts end.
type Moment = (bool, [bool; 2], Vec<u8>);

/// Settles at two servers: where it may, a range goes to the other one when its own is down. The marks are
/// durable, and so is the server.
fn settle_at_two(servers: &mut [Server; 2], moments: &[Moment], may: impl Fn(&Settling) -> bool) {
    let proof = Proof::of(0..servers[0].rows);
    let (mut pin, mut durable) = (0, Marks::default());
    let mut settling = Settling::declared(proof, RULES, false);
    for at in 0..5_000 {
        let (kill, down, fates) = moments.get(at).cloned().unwrap_or_default();
        match settling.advance() {
            Next::Proven => return,
            Next::Call(plan) if down[pin] => {
                let reports = servers[pin].silence(&plan);
                settling.reported(&reports, Duration::ZERO);
            }
            Next::Call(plan) => {
                let mut fates = fates.iter();
                let reports = servers[pin].answer(&plan, || match fates.next() {
                    Some(0) => Luck::NoAnswer,
                    Some(1) => Luck::Poisoned,
                    Some(2) => Luck::Lost,
                    Some(_) | None => Luck::Good,
                });
                settling.reported(&reports, Duration::ZERO);
            }
            Next::Persist(marks) => durable = marks,
            Next::Wait { .. } if may(&settling) && down[pin] && !down[1 - pin] => pin = 1 - pin,
            Next::Wait { .. } => {}
            Next::Park(tables) => panic!("nothing is to be set aside: {tables:?}"),
        }
        if kill {
            settling = Settling::found(proof, RULES, durable.clone());
        }
    }
    panic!("it does not end: {:?}", settling.troubles());
}

fn two(rows: u64) -> [Server; 2] {
    let server = || Server {
        rows,
        bad: BTreeSet::new(),
        stored: BTreeMap::new(),
        tokens: BTreeSet::new(),
        poisoned: BTreeSet::new(),
    };
    [server(), server()]
}

fn copies(servers: &[Server; 2], o: u64) -> u32 {
    servers
        .iter()
        .map(|server| server.stored.get(&o).copied().unwrap_or(0))
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn a_row_is_once_on_one_of_two_servers_whichever_are_down_and_however_often_it_is_killed(
        rows in 2u64..20,
        moments in prop::collection::vec(
            (prop::bool::weighted(0.1), [any::<bool>(), any::<bool>()], prop::collection::vec(0u8..5, 0..3)),
            0..40,
        ),
    ) {
        let mut servers = two(rows);
        settle_at_two(&mut servers, &moments, Settling::untouched);
        for o in 0..rows {
            prop_assert_eq!(copies(&servers, o), 1, "row {}", o);
        }
    }
}

#[test]
fn a_range_that_went_to_another_server_though_it_may_have_been_sent_would_be_doubled() {
    // The first server takes the rows, and is down before its answer is heard.
    let lost_answers = vec![0, 0];
    let down = |first: bool| (false, [first, false], Vec::new());
    let moments = [
        (false, [false, false], lost_answers),
        down(true),
        down(true),
        down(true),
    ];
    let mut servers = two(4);
    settle_at_two(&mut servers, &moments, |_| true);
    assert_eq!(copies(&servers, 0), 2, "this is why it stays where it was sent");
    let mut servers = two(4);
    settle_at_two(&mut servers, &moments, Settling::untouched);
    assert_eq!(copies(&servers, 0), 1);
}
