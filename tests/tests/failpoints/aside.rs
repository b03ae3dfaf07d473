//! Points where rows are refused, set aside with their table, and tried again as dead letters.
//!
//! One round: a constraint refuses some rows of a load (their letters are written); the table goes away (what
//! comes is set aside) and is back (it is settled); the constraint goes and all letters are tried again. Then every
//! acknowledged event is a row, as the oracle has it. A round has room for some cases in each of its parts.

use super::trial::Trial;
use super::{Scenario, TURNS, Wish, points_of, wishes};
use serde_json::{Value, json};
use sluice_common::failpoint::Point;
use sluice_tests::failpoints::{Case, park_soon};
use sluice_tests::{Part, Shape, eventually};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
/// Hits of points that a whole round reaches at least.
const HITS: u64 = 3;
/// Letters that one order tries again.
const ORDER: usize = 3;
/// Refuses one event of five thousand, by its number: fewer of a range than make it the table that is at fault.
const REFUSE: &str =
    "ALTER TABLE telemetry.events ADD CONSTRAINT few CHECK intDiv(ifNull(size_bytes, 0), 1024) % 5000 != 7";
const TAKE_ALL: &str = "ALTER TABLE telemetry.events DROP CONSTRAINT few";
const AWAY: &str = "RENAME TABLE telemetry.events TO telemetry.events_away";
const BACK: &str = "RENAME TABLE telemetry.events_away TO telemetry.events";

/// A part of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part3 {
    Refused,
    /// While the table is away.
    Aside,
    /// Once it is back.
    Settled,
    Letters,
}

fn part_of_round(point: Point) -> Option<Part3> {
    let parts = [
        (Part3::Refused, vec![Point::MarksPersist, Point::MarksPersisted]),
        (Part3::Aside, vec![Point::UnitWrite, Point::UnitWritten]),
        (
            Part3::Settled,
            vec![
                Point::UnitMarks,
                Point::UnitMarked,
                Point::UnitRemove,
                Point::UnitRemoved,
            ],
        ),
        (
            Part3::Letters,
            vec![Point::LetterStored, Point::LetterBooked, Point::LetterDeleted],
        ),
    ];
    parts
        .into_iter()
        .find(|(_, points)| points.contains(&point))
        .map(|(part, _)| part)
}

/// The parts of a round, and how many cases fit into each: what is set aside is settled too quickly for two.
const ROUND: [(Part3, usize); 4] = [
    (Part3::Refused, 2),
    (Part3::Aside, 2),
    (Part3::Settled, 1),
    (Part3::Letters, 3),
];

pub async fn sweep() {
    let _turn = TURNS.acquire().await.expect("never closed");
    let name = "failpoints of rows aside";
    let mut trial = Trial::start_prepared(Shape::ThreeProcesses, name, "", park_soon).await;
    // Once its tables are there.
    trial.check("the start").await;
    let mut left = wishes(&points_of(Scenario::Aside), &mut trial.rng);
    while !left.is_empty() {
        let mut round = Vec::new();
        for (part, room) in ROUND {
            for _ in 0..room {
                let next = left
                    .iter()
                    .position(|wish| part_of_round(wish.point) == Some(part));
                round.extend(next.map(|at| (part, left.remove(at))));
            }
        }
        run(&mut trial, &round).await;
    }
    trial.sum_up().await;
}

async fn run(trial: &mut Trial, round: &[(Part3, Wish)]) {
    let of = |part: Part3| -> Vec<Wish> {
        let wishes = round.iter().filter(|(of, _)| *of == part);
        wishes.map(|(_, wish)| *wish).collect()
    };
    let refuses = !of(Part3::Refused).is_empty() || !of(Part3::Letters).is_empty();
    let load = trial.oracle.load(&trial.deployment);
    if refuses {
        change(trial, REFUSE).await;
        happen(trial, of(Part3::Refused)).await;
        some_letters(trial).await;
    }
    if !of(Part3::Aside).is_empty() || !of(Part3::Settled).is_empty() {
        set_aside(trial, of(Part3::Aside), of(Part3::Settled)).await;
    }
    load.stop().await;
    no_units(trial).await;
    if refuses {
        change(trial, TAKE_ALL).await;
        retry_all(trial, of(Part3::Letters)).await;
    }
    trial.check(&format!("{round:?}")).await;
}

/// The table goes away, and is back.
async fn set_aside(trial: &mut Trial, aside: Vec<Wish>, settled: Vec<Wish>) {
    change(trial, AWAY).await;
    happen(trial, aside).await;
    units(trial, HITS + 1).await;
    // Armed before it is back: what is set aside is settled at once.
    let settled = settled.first().map(|wish| wish.of(HITS));
    if let Some(case) = settled {
        trial.points.arm(case);
    }
    change(trial, BACK).await;
    if let Some(case) = settled {
        trial.survives(case).await;
    }
}

async fn change(trial: &Trial, sql: &str) {
    let done = trial.deployment.clickhouse().query(sql).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn happen(trial: &mut Trial, wishes: Vec<Wish>) {
    for wish in wishes {
        let case = wish.of(HITS);
        trial.points.arm(case);
        trial.survives(case).await;
    }
}

async fn some_letters(trial: &Trial) {
    eventually("a refused row", DEADLINE, async || {
        let count = "SELECT count() FROM telemetry.dead_letters";
        let count = trial.deployment.clickhouse().query(count).await.ok()?;
        (count.parse::<usize>().ok()? > 2 * ORDER).then_some(())
    })
    .await;
}

/// Waits until so many units, or more, are set aside.
async fn units(trial: &Trial, least: u64) {
    eventually("rows set aside", DEADLINE, async || {
        (count_units(trial).await? >= least).then_some(())
    })
    .await;
}

async fn no_units(trial: &Trial) {
    eventually("nothing set aside", DEADLINE, async || {
        (count_units(trial).await? == 0).then_some(())
    })
    .await;
}

async fn count_units(trial: &Trial) -> Option<u64> {
    let units = trial
        .deployment
        .admin(Part::Normalizer)
        .get("/admin/v1/parked")
        .await
        .ok()?
        .json();
    Some(units["units"].as_array()?.len() as u64)
}

/// Has all letters tried again, a part of them for each case.
async fn retry_all(trial: &mut Trial, wishes: Vec<Wish>) {
    sluice_tests::oracle::drained(&trial.deployment).await;
    let ids = letters(trial).await.expect("the list of letters");
    let size = ids.len().div_ceil(wishes.len().max(1)).max(1);
    let mut wishes = wishes.into_iter();
    for ids in ids.chunks(size) {
        let case = wishes.next().map(|wish| letter_case(wish, ids.len()));
        retry(trial, ids, case).await;
    }
    assert_eq!(wishes.count(), 0, "too few letters");
    assert_eq!(letters(trial).await, Some(Vec::new()));
}

/// Orders letters to be tried again, a few at a time, until none of them is there.
async fn retry(trial: &mut Trial, ids: &[String], case: Option<Case>) {
    if let Some(case) = case {
        trial.points.arm(case);
    }
    let mut waits = case;
    for _ in 0..ids.len() * 4 {
        let Some(there) = letters(trial).await else {
            continue;
        };
        let order: Vec<&String> = ids.iter().filter(|id| there.contains(id)).take(ORDER).collect();
        if order.is_empty() {
            break;
        }
        let admin = trial.deployment.admin(Part::Normalizer);
        let admin = admin.with("content-type", "application/json");
        // A case may cut it short: it is asked for again.
        let order = json!({ "ids": order }).to_string();
        admin.post("/admin/v1/dlq/retry", order).await.ok();
        if let Some(case) = waits.filter(|_| trial.points.has_fired()) {
            trial.comes_back(case).await;
            waits = None;
        }
    }
    assert!(waits.is_none(), "never reached {waits:?}");
}

/// The last hits are those of the letters that are there.
fn letter_case(wish: Wish, letters: usize) -> Case {
    let orders = letters.div_ceil(ORDER);
    let hits = if wish.point == Point::LetterDeleted {
        orders
    } else {
        letters
    };
    wish.of(hits as u64)
}

/// The ids of all letters; none where they cannot be listed now.
async fn letters(trial: &Trial) -> Option<Vec<String>> {
    let listed = trial
        .deployment
        .admin(Part::Normalizer)
        .get("/admin/v1/dlq?limit=1000")
        .await
        .ok()?
        .json();
    let id = |letter: &Value| letter["id"].as_str().map(str::to_owned);
    listed["letters"].as_array()?.iter().map(id).collect()
}
