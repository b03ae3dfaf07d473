//! `ingestctl schema drift`, on what events of a running Sluice show.

use crate::command::run;
use serde_json::json;
use sluice_common::config::FieldType;
use sluice_normalizer::intake::{Shape, types_of};
use sluice_sink_writer::ddl::clickhouse_type;
use sluice_tests::{Deployment, Part, Shape as Deployed, eventually};
use std::time::Duration;

const DATASET: &str = r#"
datasets:
  - name: events
    fields:
      - {name: id, type: string, required: true}
      - {name: n, type: nullable(uint8)}
    unknown_fields: drop
    dedup: {key: [id]}
"#;

#[test]
fn a_proposed_column_has_the_type_that_its_field_would_make() {
    for shape in [
        Shape::Bool,
        Shape::Whole,
        Shape::LargeWhole,
        Shape::Number,
        Shape::Time,
        Shape::Text,
        Shape::Object,
    ] {
        let (field, column) = types_of(shape).expect("a proposal");
        let parsed = FieldType::parse(field).expect("known");
        assert_eq!(clickhouse_type(&parsed), column);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_shown_and_its_statement_and_field_end_it() {
    let mut deployment = Deployment::start_with(Deployed::ThreeProcesses, DATASET).await;
    let send = async |deployment: &Deployment, id: &str| {
        let event = json!({"id": id, "n": 1, "userName": "ada"}).to_string();
        let answer = deployment.tenant(0).post("/v1/events/events", event).await;
        assert_eq!(answer.expect("an answer").status, 202);
    };
    let drift = |deployment: &Deployment, more: &[&str]| {
        let (edge, normalizer) = (deployment.admin(Part::Edge), deployment.admin(Part::Normalizer));
        let admin = format!("{},{}", edge.base(), normalizer.base());
        run(&[&["schema", "drift", "--admin", &admin], more].concat())
    };
    assert_eq!(drift(&deployment, &[]).code, 0);
    send(&deployment, "a").await;
    let bad = json!({"id": "b", "n": 256}).to_string();
    let answer = deployment.tenant(0).post("/v1/events/events", bad).await;
    assert_eq!(answer.expect("an answer").status, 422);

    let shown = drift(&deployment, &["--dataset", "events"]);
    assert_eq!(shown.code, 2, "{shown:?}");
    for part in [
        "userName",
        "text",
        "out_of_range",
        "- {name: username, type: nullable(string), from: \"userName\"}",
    ] {
        assert!(shown.stdout.contains(part), "{part} in {}", shown.stdout);
    }
    assert_eq!(drift(&deployment, &["--dataset", "nothing"]).code, 1);
    let report = drift(&deployment, &["--output", "json"]).json();
    let proposal = &report["datasets"][0]["unknown"][0]["proposal"];
    let alter = proposal["alter"].as_str().expect("a statement");
    deployment.clickhouse().query(alter).await.expect("altered");

    let config = std::fs::read_to_string(deployment.config()).expect("read");
    let line = format!(
        "      {}\n    unknown_fields:",
        proposal["field"].as_str().expect("a line")
    );
    std::fs::write(deployment.config(), config.replace("    unknown_fields:", &line)).expect("written");
    for part in [Part::Edge, Part::Normalizer, Part::SinkWriter] {
        deployment.kill(part);
    }
    for part in [Part::SinkWriter, Part::Normalizer, Part::Edge] {
        deployment.bring_up(part).await.expect("ready");
    }
    send(&deployment, "c").await;
    let sql = "SELECT id, username FROM telemetry.events ORDER BY id FORMAT TSV";
    eventually("the new column", Duration::from_secs(30), async || {
        let rows = deployment.clickhouse().query(sql).await.ok()?;
        (rows == "a\t\\N\nc\tada").then_some(())
    })
    .await;
    assert_eq!(drift(&deployment, &[]).code, 0);
}
