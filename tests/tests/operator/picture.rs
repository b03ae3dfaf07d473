//! `status` and `top` of a Sluice that runs, and of one that does not.

use crate::command::{events, run};
use sluice_tests::{Deployment, Part, Shape, eventually};
use std::time::Duration;

/// All admin listeners of three processes, or the one of one.
pub fn admin(deployment: &Deployment) -> String {
    let parts = [Part::Edge, Part::Normalizer, Part::SinkWriter];
    let mut urls: Vec<String> = parts.iter().map(|part| deployment.admin_url(*part)).collect();
    urls.dedup();
    urls.join(",")
}

async fn in_shape(shape: Shape, services: usize) {
    let mut deployment = Deployment::start(shape).await;
    let body = events("p", 50);
    let answer = deployment
        .tenant(0)
        .post("/v1/events/events", body)
        .await
        .expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.text());
    let admin = admin(&deployment);
    let picture = eventually("all rows in the picture", Duration::from_secs(30), async || {
        let outcome = run(&["status", "--admin", &admin, "--output", "json"]);
        let picture = outcome.json();
        let stored = deployment
            .metric(Part::Normalizer, "sluice_events_total", "stored")
            .await;
        (stored >= 50.0 && outcome.code == 0).then_some(picture)
    })
    .await;
    assert_eq!(picture["services"].as_array().map(Vec::len), Some(services));
    assert_eq!(picture["tenants"][0]["tenant"], "t0", "{picture}");
    assert_eq!(picture["tenants"][0]["accepted"], 50.0, "{picture}");
    assert!(picture["log"]["limit_bytes"].as_f64() > Some(0.0), "{picture}");
    let text = run(&["status", "--admin", &admin]);
    assert_eq!(text.code, 0, "{text:?}");
    assert!(
        text.stdout.contains("ready") && text.stdout.contains("t0"),
        "{text:?}"
    );
    let frame = run(&[
        "top", "--once", "--width", "80", "--height", "24", "--admin", &admin,
    ]);
    assert_eq!((frame.code, frame.stdout.lines().count()), (0, 24), "{frame:?}");
    assert!(
        frame.stdout.contains("t0") && frame.stdout.contains("backlog"),
        "{frame:?}"
    );
    let one = run(&["top", "--output", "json", "--admin", &admin]);
    assert_eq!(one.json()["tenants"][0]["tenant"], "t0");
    away(&mut deployment, &admin);
}

/// Part of it is away, then all of it.
fn away(deployment: &mut Deployment, admin: &str) {
    match deployment.shape {
        Shape::AllInOne => deployment.kill(Part::Up),
        Shape::ThreeProcesses => {
            deployment.kill(Part::SinkWriter);
            let part = run(&["status", "--admin", admin]);
            assert_eq!(part.code, 2, "{part:?}");
            assert!(
                part.stdout.contains("ATTENTION") && part.stdout.contains("NOT REACHED"),
                "{part:?}"
            );
            deployment.kill(Part::Normalizer);
            deployment.kill(Part::Edge);
        }
    }
    for verb in [&["status"][..], &["top", "--once"]] {
        let none = run(&[verb, &["--admin", admin]].concat());
        assert_eq!(none.code, 1, "{none:?}");
        assert!(
            none.stderr.contains("does not answer") && none.stderr.contains("--admin"),
            "{none:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_is_shown_and_its_absence_is_told() {
    in_shape(Shape::AllInOne, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_processes_are_shown_as_one_picture_and_a_missing_one_is_told() {
    in_shape(Shape::ThreeProcesses, 3).await;
}
