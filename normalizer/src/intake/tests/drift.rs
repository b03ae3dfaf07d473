//! The drift report: what it names, what it proposes, and where it ends.

use super::*;
use crate::intake::{DatasetDrift, Drift, Shape};
use sluice_common::ids::Name;
use sluice_common::limits::{MAX_DRIFT_NAME_BYTES, MAX_DRIFT_NAMES};

fn report_of(intake: &Intake, drift: &Drift) -> DatasetDrift {
    let database = Name::new("telemetry").expect("valid");
    drift
        .report(intake.schemas().iter(), &database)
        .datasets
        .remove(0)
}

fn send(intake: &Intake, drift: &Drift, body: impl Into<Bytes>, now: u64) {
    let parsed = lines(intake, body);
    drift.add(
        &intake.schema("events", &acme()).expect("there"),
        parsed.observed,
        now,
    );
}

fn loose() -> Intake {
    intake("datasets: [{name: events, table: t, unknown_fields: drop, fields: [{name: n, type: int8}]}]")
}

#[test]
fn each_kind_of_value_gets_a_field_and_its_statement() {
    for (values, shape, field, column) in [
        (
            &["true", "false", "null"][..],
            Shape::Bool,
            Some("nullable(bool)"),
            "Nullable(Bool)",
        ),
        (
            &["1", "-1", "9223372036854775807"],
            Shape::Whole,
            Some("nullable(int64)"),
            "Nullable(Int64)",
        ),
        (
            &["1", "9223372036854775808"],
            Shape::LargeWhole,
            Some("nullable(uint64)"),
            "Nullable(UInt64)",
        ),
        (
            &["1", "1.5"],
            Shape::Number,
            Some("nullable(float64)"),
            "Nullable(Float64)",
        ),
        (
            &["\"2026-11-21T03:30:30Z\""],
            Shape::Time,
            Some("nullable(datetime64(3))"),
            "Nullable(DateTime64(3, 'UTC'))",
        ),
        (
            &["\"2026-11-21T03:30:30Z\"", "\"soon\""],
            Shape::Text,
            Some("nullable(string)"),
            "Nullable(String)",
        ),
        (
            &["{}"],
            Shape::Object,
            Some("\"map(string, string)\""),
            "Map(LowCardinality(String), String)",
        ),
        (&["null"], Shape::Null, None, ""),
        (&["[1]"], Shape::Array, None, ""),
        (&["1", "\"x\""], Shape::Mixed, None, ""),
    ] {
        let (intake, drift) = (loose(), Drift::default());
        for value in values {
            send(&intake, &drift, format!("{{\"x\":{value}}}"), 5);
        }
        let unknown = &report_of(&intake, &drift).unknown[0];
        let seen = (unknown.shape, unknown.count);
        assert_eq!(seen, (shape, values.len() as u64), "{values:?}");
        let expected = field.map(|field| {
            (
                format!("- {{name: x, type: {field}}}"),
                format!("ALTER TABLE `telemetry`.`t` ADD COLUMN IF NOT EXISTS `x` {column}"),
            )
        });
        let proposal = unknown.proposal.clone();
        assert_eq!(proposal.map(|one| (one.field, one.alter)), expected, "{values:?}");
        let line = unknown
            .proposal
            .as_ref()
            .map_or("- {name: x, type: bool}", |one| &one.field);
        config(&format!("datasets: [{{name: e, fields: [{}]}}]", &line[2..]));
    }
}

#[test]
fn a_proposed_name_is_a_columns_and_the_member_is_read_from_its_own() {
    for (member, field) in [
        (
            "userId",
            Some("- {name: userid, type: nullable(bool), from: \"userId\"}"),
        ),
        (
            "http.status",
            Some("- {name: http_status, type: nullable(bool), from: \"http.status\"}"),
        ),
        ("2nd", Some("- {name: _2nd, type: nullable(bool), from: \"2nd\"}")),
        (
            "a\\\"`; DROP",
            Some("- {name: a____drop, type: nullable(bool), from: \"a\\\"`; DROP\"}"),
        ),
        ("N", None),
        ("tenant", None),
        ("", None),
    ] {
        let (intake, drift) = (loose(), Drift::default());
        let name = member.replace("\\\"", "\"");
        let member = serde_json::Value::from(name.as_str());
        send(&intake, &drift, format!("{{{member}:true}}"), 5);
        let proposal = report_of(&intake, &drift).unknown[0].proposal.clone();
        assert_eq!(proposal.map(|one| one.field).as_deref(), field, "{member}");
    }
}

#[test]
fn counts_add_up_over_requests_and_record_boundaries_and_the_latest_time_stays() {
    let (intake, drift) = (loose(), Drift::default());
    send(&intake, &drift, "{\"n\":1,\"a\":1}\n".repeat(60_000), 7);
    send(
        &intake,
        &drift,
        "{\"a\":1,\"n\":999}\n{\"n\":\"x\"}\n{\"n\":1000}\n[]",
        6,
    );
    let report = report_of(&intake, &drift);
    let unknown = &report.unknown[0];
    assert_eq!(
        (unknown.name.as_str(), unknown.count, unknown.last_seen_ms),
        ("a", 60_001, 7)
    );
    let rejected: Vec<_> = report
        .rejected
        .iter()
        .map(|one| (one.field.as_str(), one.code.as_str(), one.count, one.last_seen_ms))
        .collect();
    assert_eq!(
        rejected,
        [
            ("n", "out_of_range", 2, 6),
            ("", "not_an_object", 1, 6),
            ("n", "wrong_type", 1, 6)
        ]
    );
}

#[test]
fn members_that_are_rejected_or_go_into_a_map_are_seen_too() {
    for unknown in ["reject", "rest"] {
        let intake = intake(&format!(
            "datasets: [{{name: events, unknown_fields: {unknown}, fields: [{{name: rest, type: \"map(string,string)\"}}]}}]"
        ));
        let drift = Drift::default();
        send(&intake, &drift, r#"{"a":1}"#, 5);
        assert_eq!(report_of(&intake, &drift).unknown[0].name, "a", "{unknown}");
    }
}

#[test]
fn hostile_names_are_counted_and_not_kept() {
    let (intake, drift) = (loose(), Drift::default());
    let long = "x".repeat(MAX_DRIFT_NAME_BYTES + 1);
    send(&intake, &drift, format!("{{\"{long}\":1}}"), 5);
    for request in 0..4 {
        let body: String = (0..MAX_DRIFT_NAMES)
            .map(|n| format!("{{\"m{request}_{n}\":1}}\n"))
            .collect();
        send(&intake, &drift, body, 5);
    }
    let report = report_of(&intake, &drift);
    assert_eq!(report.unknown.len(), MAX_DRIFT_NAMES);
    assert_eq!(report.unknown_others, 3 * MAX_DRIFT_NAMES as u64 + 1);
}
