//! Every type of field at its edges, against what ClickHouse itself stores and returns.

mod cases;
mod tables;

use cases::{Case, FIELDS};
use serde_json::{Value, json};
use sluice_tests::{Deployment, Shape, eventually};
use std::time::Duration;

/// How ClickHouse writes rows here: nothing that a JSON reader would round.
const FORMAT: &str = "SETTINGS output_format_json_quote_64bit_integers = 1, output_format_json_quote_decimals = 1 \
                      FORMAT JSONEachRow";

/// A Sluice with one dataset that has a field of every type, and two of times.
async fn sluice() -> Deployment {
    let field = |case: &Case| format!("      - {{name: {}, {}}}\n", case.name, case.field);
    let fields: Vec<String> = FIELDS.iter().map(field).collect();
    let datasets = format!(
        "datasets:\n  - name: types\n    dedup: {{key: [id]}}\n    fields:\n      - {{name: id, type: string, required: true}}\n{}{}",
        fields.concat(),
        tables::DATASETS,
    );
    Deployment::start_with(Shape::AllInOne, &datasets).await
}

/// One event for each good value of each field, by its id.
fn good() -> Vec<(String, &'static str, &'static str, Value)> {
    let values = |case: &'static Case| {
        let number = |(at, (sent, stored)): (usize, &(&'static str, &'static str))| {
            let stored = serde_json::from_str(stored).unwrap_or_else(|e| panic!("{stored}: {e}"));
            (format!("{}/{at}", case.name), case.name, *sent, stored)
        };
        case.good.iter().enumerate().map(number).collect::<Vec<_>>()
    };
    FIELDS.iter().flat_map(values).collect()
}

async fn rows(sluice: &Deployment, table: &str, expected: usize) -> Vec<Value> {
    let sql = format!("SELECT * FROM {table} ORDER BY id {FORMAT}");
    let text = eventually("all rows", Duration::from_secs(30), async || {
        let text = sluice.clickhouse().query(&sql).await.ok()?;
        (text.lines().count() >= expected).then_some(text)
    })
    .await;
    let row = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    text.lines().map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_holds_its_edges_and_refuses_what_lies_beyond() {
    let sluice = sluice().await;
    stored_as_clickhouse_itself_would(&sluice).await;
    refused_with_code_field_and_place(&sluice).await;
    zeros_and_defaults_are_clickhouse_s(&sluice).await;
    tables::other_types_hold_every_value(&sluice).await;
    tables::late_events_are_counted(&sluice).await;
}

async fn stored_as_clickhouse_itself_would(sluice: &Deployment) {
    let good = good();
    let lines: Vec<String> = good
        .iter()
        .map(|(id, field, sent, _)| format!("{{\"id\":\"{id}\",\"{field}\":{sent}}}"))
        .collect();
    let answer = sluice.tenant(0).post("/v1/events/types", lines.join("\n")).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.json()["rejected"], 0, "{}", answer.text());
    let ours = rows(sluice, "telemetry.types", good.len()).await;

    // What ClickHouse stores when it reads the stored form itself.
    let clickhouse = sluice.clickhouse();
    let control = "CREATE TABLE telemetry.control AS telemetry.types";
    clickhouse.query(control).await.expect("a second table");
    let lines: Vec<String> = good
        .iter()
        .map(|(id, field, _, stored)| json!({"id": id, *field: stored}).to_string())
        .collect();
    let insert = format!(
        "INSERT INTO telemetry.control SETTINGS input_format_try_infer_dates = 0, \
         input_format_try_infer_datetimes = 0, input_format_json_read_bools_as_numbers = 0 FORMAT JSONEachRow\n{}",
        lines.join("\n")
    );
    clickhouse.query(&insert).await.expect("inserted");
    let theirs = rows(sluice, "telemetry.control", good.len()).await;

    let find = |rows: &[Value], id: &str, field: &str| {
        let row = rows.iter().find(|row| row["id"] == id);
        row.map_or(Value::Null, |row| row[field].clone())
    };
    let mut wrong = Vec::new();
    for (id, field, sent, stored) in &good {
        let (ours, theirs) = (find(&ours, id, field), find(&theirs, id, field));
        if ours != *stored || theirs != *stored {
            wrong.push(format!(
                "{id}: sent {sent}, expected {stored}, stored {ours}; ClickHouse: {theirs}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), sluice.last_words());
}

async fn refused_with_code_field_and_place(sluice: &Deployment) {
    let mut wrong = Vec::new();
    for case in FIELDS {
        let lines: Vec<String> = (0..)
            .zip(case.bad)
            .map(|(at, (sent, ..)): (usize, _)| {
                format!("{{\"id\":\"bad/{}/{at}\",\"{}\":{sent}}}", case.name, case.name)
            })
            .collect();
        let answer = sluice.tenant(0).post("/v1/events/types", lines.join("\n")).await;
        let answer = answer.expect("an answer").json();
        for (at, (sent, code, part)) in case.bad.iter().enumerate() {
            let error = &answer["errors"][at];
            let message = error["message"].as_str().unwrap_or_default();
            if error["code"] != *code || error["field"] != case.name || !message.contains(part) {
                wrong.push(format!(
                    "{}: {sent} is not {code} {part:?} but {error}",
                    case.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// An event with nothing but its id: each field is the default that it names, null, or what a ClickHouse
/// row has of a column that it was not given.
async fn zeros_and_defaults_are_clickhouse_s(sluice: &Deployment) {
    let event = json!({"id": "zero"}).to_string();
    let answer = sluice.tenant(0).post("/v1/events/types", event.clone()).await;
    assert_eq!(answer.expect("an answer").status, 202);
    let insert = format!("INSERT INTO telemetry.control FORMAT JSONEachRow\n{event}");
    sluice.clickhouse().query(&insert).await.expect("inserted");
    let expected = good().len() + 1;
    let pick = |rows: Vec<Value>| rows.into_iter().find(|row| row["id"] == "zero").expect("the row");
    let ours = pick(rows(sluice, "telemetry.types", expected).await);
    let theirs = pick(rows(sluice, "telemetry.control", expected).await);
    for case in FIELDS {
        let stored = case.default.map(|text| serde_json::from_str(text).expect("JSON"));
        let stored = stored.unwrap_or_else(|| theirs[case.name].clone());
        assert_eq!(ours[case.name], stored, "{}", case.name);
    }
}
