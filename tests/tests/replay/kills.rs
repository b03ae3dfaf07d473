//! A kill at each step of a replay and of its promotion, and the same again after the restart.

use super::{ROWS, Stand, Sums, TURNS};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use serde_json::json;
use sluice_common::failpoint::Point;
use sluice_tests::failpoints::{Action, Case, Failpoints, is_full};
use sluice_tests::{Deployment, Part, Shape, finally, oracle};
use std::time::Duration;

const POINTS: [Point; 4] = [
    Point::ReplayPersist,
    Point::ReplayPersisted,
    Point::ReplayAct,
    Point::ReplayActed,
];
const FIRED: Duration = Duration::from_secs(30);
/// Of all troubles, those that a run takes; `SLUICE_SWEEP=full` takes all.
const CHOSEN: usize = 8;
/// How late a step is, in ms.
const LATE_MS: u64 = 500;

pub(super) async fn stand(shape: Shape, extra: &str) -> (Stand, Failpoints) {
    let mut points = None;
    let deployment = Deployment::start_prepared(3, shape, extra, |dir| points = Some(Failpoints::below(dir)));
    let deployment = deployment.await;
    (Stand { deployment }, points.expect("prepared"))
}

pub(super) async fn rise(stand: &mut Stand) {
    stand.deployment.kill(Part::Up);
    stand.deployment.bring_up(Part::Up).await.expect("ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_a_replay_goes_on_and_its_promotion_too() {
    let _turn = TURNS.acquire().await;
    let (mut stand, mut points) = stand(Shape::AllInOne, "").await;
    for tenant in 0..3 {
        stand.send(tenant, 0..40_000).await;
        stand.send(tenant, 10_000..30_000).await;
    }
    let killed = kills(&mut stand, &mut points, 1..=8).await;
    assert!(killed >= 12, "{killed}");
    let told = stand.run(&stand.everything().await).await;
    assert_eq!(
        stand.diff(told["id"].as_str().expect("an id")).await,
        Sums::equal(120_000)
    );
}

/// Kills at each of these hits of each point, and sees that nothing has changed; how many kills that were.
pub(super) async fn kills(
    stand: &mut Stand,
    points: &mut Failpoints,
    hits: std::ops::RangeInclusive<u64>,
) -> u64 {
    stand.drained().await;
    let before = stand.sql(ROWS).await;
    let mut killed = 0;
    for nth in hits {
        let mut fired = 0;
        for point in POINTS {
            let hurt = format!(
                "ALTER TABLE telemetry.events DELETE WHERE _src_o % 13 = {} SETTINGS mutations_sync = 2",
                nth % 13
            );
            stand.sql(&hurt).await;
            let case = Case {
                point,
                action: Action::Kill,
                nth,
            };
            points.arm(case);
            fired += killed_at(stand, points, case).await;
            points.disarm();
            stand.drained().await;
            assert_eq!(stand.sql(ROWS).await, before, "{case}");
        }
        killed += fired;
        // Each point is hit less often than this case asks for.
        if fired == 0 {
            break;
        }
    }
    println!("{killed} kills at steps of replays and promotions");
    killed
}

/// Runs, promotes and discards everything, whatever is killed by it; how often it was.
async fn killed_at(stand: &mut Stand, points: &Failpoints, case: Case) -> u64 {
    let mut killed = 0;
    let plan = stand.everything().await;
    let id = plan["id"].as_str().expect("an id").to_owned();
    let admin = stand.deployment.admin(Part::Normalizer);
    let admin = admin
        .with("content-type", "application/json")
        .with_timeout(super::DEADLINE);
    for (path, body, phase) in [
        (
            "/admin/v1/replay".to_owned(),
            json!({"plan": id, "who": "kills"}),
            "done",
        ),
        (format!("/admin/v1/replay/{id}/promote"), json!({}), "promoted"),
    ] {
        // The answer may be lost with the process.
        let ordered = admin.post(&path, body.to_string()).await;
        let well = ordered.as_ref().is_ok_and(|answer| answer.status == 200);
        assert!(well || points.has_fired(), "{ordered:?}");
        if !well || !quiet(stand, points, &id, phase).await {
            points.fired(case, FIRED).await;
            rise(stand).await;
            killed += 1;
        }
        let known = stand.show(&id).await;
        if known["code"] == "replay_unknown" {
            // Killed before anything was durable: nothing had begun.
            let left = format!("SELECT count() FROM system.tables WHERE name LIKE '%{id}'");
            assert_eq!(stand.sql(&left).await, "0");
            points.disarm();
            let told = stand.run(&stand.everything().await).await;
            stand.promote(told["id"].as_str().expect("an id"), false).await;
            return killed;
        }
        if phase == "promoted" && known["phase"] == "done" {
            stand.promote(&id, false).await;
        }
        stand.until(&id, phase).await;
    }
    // Its tables are dropped in peace.
    points.disarm();
    stand.on(&id, "discard", &json!({})).await;
    killed
}

/// A disk or a ClickHouse that fails once at a step, or is late there.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_or_is_late_at_a_step_a_replay_is_resumed_and_promoted_all_the_same() {
    let _turn = TURNS.acquire().await;
    let (stand, mut points) = stand(Shape::AllInOne, "").await;
    stand.send(0, 0..20_000).await;
    stand.send(1, 0..20_000).await;
    stand.drained().await;
    let before = stand.sql(ROWS).await;
    let mut cases: Vec<Case> = POINTS.into_iter().flat_map(troubles).collect();
    if !is_full() {
        let mut rng = StdRng::seed_from_u64(oracle::seed("troubles of a replay"));
        cases = cases.choose_multiple(&mut rng, CHOSEN).copied().collect();
    }
    for case in cases {
        println!("{case}");
        let hurt = "ALTER TABLE telemetry.events DELETE WHERE _src_o % 13 = 5 SETTINGS mutations_sync = 2";
        stand.sql(hurt).await;
        points.arm(case);
        let id = seen_through(&stand, &points).await;
        assert!(points.has_fired(), "{case}");
        points.disarm();
        stand.on(&id, "discard", &json!({})).await;
        stand.drained().await;
        assert_eq!(stand.sql(ROWS).await, before, "{case}");
    }
}

/// An error at the steps of the run, and at each of the promotion; a delay in the middle of that.
fn troubles(point: Point) -> Vec<Case> {
    let is_act = matches!(point, Point::ReplayAct | Point::ReplayActed);
    // Acts: 1, 2 make the shadow, 3 keeps the live partition, 4 replaces it, 5 fences. States: 1 the order's, 2, 3 a range's,
    // 4 the end's; 5 to 8 the promotion's.
    let (errors, late): (&[u64], u64) = if is_act {
        (&[1, 3, 4, 5], 4)
    } else {
        (&[2, 3, 5, 6, 7, 8], 6)
    };
    let case = |action, nth| Case { point, action, nth };
    let mut cases: Vec<Case> = errors.iter().map(|nth| case(Action::Error, *nth)).collect();
    cases.push(case(Action::Delay(LATE_MS), late));
    cases
}

/// Has everything replayed and promoted, and orders again what an error has ended; its id.
async fn seen_through(stand: &Stand, points: &Failpoints) -> String {
    let plan = stand.everything().await;
    let id = plan["id"].as_str().expect("an id").to_owned();
    for wanted in ["done", "promoted"] {
        finally(&format!("{id} {wanted}"), super::DEADLINE, async || {
            let told = stand.show(&id).await;
            let (path, order) = match told["phase"].as_str() {
                Some(phase) if phase == wanted => return Ok(()),
                None => ("/admin/v1/replay".to_owned(), json!({"plan": id, "who": "kills"})),
                Some("failed" | "paused") => (format!("/admin/v1/replay/{id}/resume"), json!({})),
                Some("done") => (format!("/admin/v1/replay/{id}/promote"), json!({})),
                Some(_) => return Err(told.to_string()),
            };
            let (status, answer) = stand.ask(&path, &order).await;
            assert!(status == 200 || points.has_fired(), "{path}: {answer}");
            Err(format!("{told}; {path}: {answer}"))
        })
        .await;
    }
    id
}

/// Waits until it is in a phase, or the process is killed: whether it was the former.
pub(super) async fn quiet(stand: &Stand, points: &Failpoints, id: &str, phase: &str) -> bool {
    let path = format!("/admin/v1/replay/{id}");
    finally(&format!("{id} {phase}"), super::DEADLINE, async || {
        let answer = stand.deployment.admin(Part::Normalizer).get(&path).await;
        match answer {
            Err(_) if points.has_fired() => Ok(false),
            Ok(answer) if answer.json()["phase"] == phase => Ok(true),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}
