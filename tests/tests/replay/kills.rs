//! A kill at each step of a replay and of its promotion, and the same again after the restart.

use super::{ROWS, Stand, Sums, TURNS};
use serde_json::json;
use sluice_common::failpoint::Point;
use sluice_tests::failpoints::{Action, Case, Failpoints};
use sluice_tests::{Deployment, Part, Shape};
use std::time::Duration;

const POINTS: [Point; 4] = [
    Point::ReplayPersist,
    Point::ReplayPersisted,
    Point::ReplayAct,
    Point::ReplayActed,
];
const FIRED: Duration = Duration::from_secs(30);

async fn stand() -> (Stand, Failpoints) {
    let mut points = None;
    let deployment = Deployment::start_prepared(3, Shape::AllInOne, "", |dir| {
        points = Some(Failpoints::below(dir))
    });
    let deployment = deployment.await;
    (Stand { deployment }, points.expect("prepared"))
}

async fn rise(stand: &mut Stand) {
    stand.deployment.kill(Part::Up);
    stand.deployment.bring_up(Part::Up).await.expect("ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_a_replay_goes_on_and_its_promotion_too() {
    let _turn = TURNS.acquire().await;
    let (mut stand, mut points) = stand().await;
    for tenant in 0..3 {
        stand.send(tenant, 0..40_000).await;
        stand.send(tenant, 10_000..30_000).await;
    }
    stand.drained().await;
    let before = stand.sql(ROWS).await;
    let (mut killed, mut nth) = (0, 1);
    // Until each point is hit less often than the case asks for.
    loop {
        let mut fired = 0;
        for point in POINTS {
            stand
                .sql(&format!(
                    "ALTER TABLE telemetry.events DELETE WHERE _src_o % 13 = {} SETTINGS mutations_sync = 2",
                    nth % 13
                ))
                .await;
            let plan = stand.everything().await;
            let id = plan["id"].as_str().expect("an id").to_owned();
            let case = Case {
                point,
                action: Action::Kill,
                nth,
            };
            points.arm(case);
            // The answer may be lost with the process.
            let order = json!({"plan": id, "who": "kills"});
            let admin = stand
                .deployment
                .admin(Part::Normalizer)
                .with("content-type", "application/json");
            let begun = admin.post("/admin/v1/replay", order.to_string()).await;
            if begun.is_err() || !quiet(&stand, &points, &id, "done").await {
                points.fired(case, FIRED).await;
                rise(&mut stand).await;
                (killed, fired) = (killed + 1, fired + 1);
            }
            let known = stand.show(&id).await;
            if known["code"] == "replay_unknown" {
                // Killed before anything was durable: nothing had begun.
                points.disarm();
                assert_eq!(
                    stand
                        .sql(&format!(
                            "SELECT count() FROM system.tables WHERE name LIKE '%{id}'"
                        ))
                        .await,
                    "0"
                );
                continue;
            }
            stand.until(&id, "done").await;
            let promoted = admin.post(&format!("/admin/v1/replay/{id}/promote"), "{}").await;
            assert!(
                promoted.as_ref().is_ok_and(|answer| answer.status == 200) || points.has_fired(),
                "{promoted:?}"
            );
            if promoted.is_err() || !quiet(&stand, &points, &id, "promoted").await {
                points.fired(case, FIRED).await;
                rise(&mut stand).await;
                (killed, fired) = (killed + 1, fired + 1);
                if stand.show(&id).await["phase"] == "done" {
                    stand.promote(&id, false).await;
                }
            }
            points.disarm();
            stand.until(&id, "promoted").await;
            stand.drained().await;
            assert_eq!(stand.sql(ROWS).await, before, "{case}");
            stand.on(&id, "discard", &json!({})).await;
        }
        if fired == 0 || nth >= 8 {
            break;
        }
        nth += 1;
    }
    println!("{killed} kills at steps of replays and promotions");
    assert!(killed >= 12, "{killed}");
    let told = stand.run(&stand.everything().await).await;
    assert_eq!(
        stand.diff(told["id"].as_str().expect("an id")).await,
        Sums::equal(120_000)
    );
}

/// Waits until it is in a phase, or the process is killed: whether it was the former.
async fn quiet(stand: &Stand, points: &Failpoints, id: &str, phase: &str) -> bool {
    let until = std::time::Instant::now() + super::DEADLINE;
    loop {
        let admin = stand.deployment.admin(Part::Normalizer);
        let answer = admin.get(&format!("/admin/v1/replay/{id}")).await;
        match answer {
            Err(_) if points.has_fired() => return false,
            Ok(answer) if answer.json()["phase"] == phase => return true,
            other => assert!(std::time::Instant::now() < until, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
