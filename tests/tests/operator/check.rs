//! `check` against a real ClickHouse.

use crate::command::{Outcome, run};
use sluice_tests::{Deployment, Shape};

fn check(deployment: &Deployment, more: &[&str]) -> Outcome {
    let (config, data) = (deployment.config(), deployment.data());
    let paths = [
        "--config",
        config.to_str().expect("text"),
        "--data-dir",
        data.to_str().expect("text"),
    ];
    run(&[&["check"][..], &paths, more].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_did_to_a_table_is_told_and_its_own_tables_are_good() {
    let deployment = Deployment::start_with(Shape::ThreeProcesses, "dedup: {keys_per_tenant: 1M}").await;
    let good = check(&deployment, &["--output", "json"]);
    assert_eq!(
        (good.code, good.json()["result"].as_str()),
        (0, Some("good")),
        "{good:?}"
    );
    let production = check(&deployment, &["--production"]);
    assert_eq!(production.code, 2, "{production:?}");
    assert!(
        production.stdout.contains("fsync_after_insert = 1"),
        "{production:?}"
    );
    let clickhouse = deployment.clickhouse();
    for sql in [
        "CREATE TABLE telemetry.copy (service String) ENGINE = MergeTree ORDER BY service",
        "CREATE MATERIALIZED VIEW telemetry.at_insert TO telemetry.copy AS SELECT service FROM telemetry.events",
        "CREATE MATERIALIZED VIEW telemetry.by_itself REFRESH EVERY 1 DAY TO telemetry.copy AS SELECT service FROM \
         telemetry.events",
        "ALTER TABLE telemetry.events MODIFY TTL toDateTime(timestamp) + INTERVAL 8 DAY",
        "ALTER TABLE telemetry.events MODIFY SETTING non_replicated_deduplication_window = 0",
    ] {
        clickhouse
            .query(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    let weak = check(&deployment, &[]);
    assert_eq!(weak.code, 2, "{weak:?}");
    for part in ["telemetry.at_insert", "its TTL is 192 h", "token window is 0"] {
        assert!(weak.stdout.contains(part), "{part} in {weak:?}");
    }
    assert!(
        !weak.stdout.contains("by_itself"),
        "a refreshable view is no danger: {weak:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_printed_ddl_is_taken_by_clickhouse_as_it_is() {
    let deployment = Deployment::start(Shape::ThreeProcesses).await;
    let ddl = run(&["check", "--ddl"]);
    assert_eq!(ddl.code, 0);
    let clickhouse = deployment.clickhouse();
    let text = ddl.stdout.replace("`telemetry`", "`printed`");
    for sql in text.split(';').filter(|sql| !sql.trim().is_empty()) {
        clickhouse
            .query(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    let tables = clickhouse
        .query("SELECT count() FROM system.tables WHERE database = 'printed'")
        .await;
    assert!(tables.expect("a count").parse::<u32>().expect("a number") >= 3);
    let replicated = run(&["check", "--ddl", "--replicated", "--on-cluster", "main"]).stdout;
    assert!(
        replicated.contains("ReplicatedMergeTree(") && replicated.contains("ON CLUSTER `main`"),
        "{replicated}"
    );
    assert!(
        replicated.contains("at-least-once until they are tested"),
        "{replicated}"
    );
}
