//! `ingestctl config` beside a running Sluice: what was in force, what would change, and the way back.

use crate::command::run;
use serde_json::json;
use sluice_tests::{Deployment, Part, Shape, eventually};
use std::time::Duration;

const FIRST: &str = "datasets: [{name: a, fields: [{name: x, type: string}]}]\n";
const SECOND: &str = "datasets: [{name: a, fields: [{name: x, type: string}, {name: y, type: string}]}]\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_config_is_compared_listed_shown_and_rolled_back_while_everything_runs() {
    let deployment = Deployment::start_with(Shape::AllInOne, FIRST).await;
    let file = deployment.config().display().to_string();
    let data = deployment.data().display().to_string();
    let before = std::fs::read_to_string(&file).expect("read");
    let begun = deployment.config_state(Part::Up).await;
    deployment.reload(SECOND).await;

    let old = deployment.path().join("old.yaml").display().to_string();
    std::fs::write(&old, &before).expect("written");
    let diff = run(&[
        "config",
        "diff",
        &file,
        "--config",
        &old,
        "--data-dir",
        &data,
        "--output",
        "json",
    ]);
    assert_eq!(diff.code, 2, "{diff:?}");
    assert_eq!(diff.json()["changes"][0]["key"], "datasets.a.fields.y");
    assert_eq!(diff.json()["changes"][0]["when"], "now");
    let alter = "ALTER TABLE `telemetry`.`a` ADD COLUMN IF NOT EXISTS `y` String CODEC(ZSTD(1))";
    assert_eq!(diff.json()["ddl"], json!([alter]));
    let same = run(&["config", "diff", &file, "--data-dir", &data]);
    assert_eq!((same.code, same.stdout.trim()), (0, "no change"), "{same:?}");

    let history = run(&["config", "history", "--data-dir", &data, "--output", "json"]).json();
    let numbers: Vec<_> = history
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| &one["number"])
        .collect();
    assert_eq!(numbers, [1, 2]);
    assert_eq!(history[0]["sha256"], begun["sha256"]);
    assert_eq!(run(&["config", "show", "1", "--data-dir", &data]).stdout, before);

    let back = run(&["config", "rollback", "1", "--config", &file, "--data-dir", &data]);
    assert_eq!(back.code, 0, "{back:?}");
    assert_eq!(std::fs::read_to_string(&file).expect("read"), before);
    eventually(
        "the old config is in force by itself",
        Duration::from_secs(20),
        async || {
            let state = deployment.config_state(Part::Up).await;
            (state["sha256"] == begun["sha256"] && state["number"] == 3).then_some(())
        },
    )
    .await;
    let missing = run(&["config", "rollback", "99", "--config", &file, "--data-dir", &data]);
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("config history"), "{missing:?}");
}

#[test]
fn an_invalid_file_is_told_line_by_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("new.yaml").display().to_string();
    std::fs::write(&file, "edge:\n  lisen: 1\nlog: {retain: 1 parsec}\n").expect("written");
    let diff = run(&["config", "diff", &file, "--output", "json"]);
    assert_eq!(diff.code, 1, "{diff:?}");
    let problems = &diff.json()["problems"];
    assert_eq!(
        (&problems[0]["line"], &problems[1]["line"]),
        (&json!(2), &json!(3)),
        "{problems}"
    );
}

#[test]
fn the_schema_is_printed() {
    let schema = run(&["check", "--schema"]);
    assert_eq!(schema.code, 0);
    assert_eq!(schema.json()["title"], "Sluice");
}
