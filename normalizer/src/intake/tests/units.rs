//! Units that the event itself names, and the count of conversions.

use super::*;
use std::fmt::Write as _;

const FIELDS: &str = "{name: value, type: nullable(int64), unit: {unit_from: unit, to: By}}, \
    {name: rate, type: float64, unit: {unit_from: rate_unit, from: KiBy/s, to: By/s}}, \
    {name: rate_unit, type: string}, {name: plain, type: uint8}";

fn code(intake: &Intake, body: &'static str) -> (String, String, String) {
    let answer = lines(intake, body).answer;
    assert_eq!((answer.accepted, answer.rejected), (0, 1), "{body}");
    let error = &answer.errors[0];
    (error.field.clone(), error.code.to_string(), error.message.clone())
}

fn some(values: [&str; 4]) -> Vec<Option<String>> {
    values
        .iter()
        .map(|value| (*value != "null").then(|| (*value).to_owned()))
        .collect()
}

#[test]
fn the_events_own_unit_counts_wherever_it_stands_in_the_event() {
    let intake = fields(FIELDS);
    for (body, expected) in [
        (r#"{"value":3,"unit":"KiBy"}"#, ["3072", "0.0", "", "0"]),
        (r#"{"unit":"KiBy","value":3}"#, ["3072", "0.0", "", "0"]),
        (
            r#"{"unit":"kBy{sent}","plain":1,"value":"2"}"#,
            ["2000", "0.0", "", "1"],
        ),
        (r#"{"unit":"bit","value":12}"#, ["2", "0.0", "", "0"]),
        (r#"{"rate":1}"#, ["null", "1024.0", "", "0"]),
        (
            r#"{"rate":1,"rate_unit":"MBy/min"}"#,
            ["null", "16666.666666666668", "MBy/min", "0"],
        ),
        (r#"{"rate":1,"rate_unit":null}"#, ["null", "1024.0", "", "0"]),
        // Without a value the unit is not looked at, and is no unknown member either.
        (r#"{"unit":"parsec"}"#, ["null", "0.0", "", "0"]),
        (r#"{"value":null}"#, ["null", "0.0", "", "0"]),
    ] {
        assert_eq!(only_row(&lines(&intake, body)), some(expected), "{body}");
    }
}

#[test]
fn a_unit_that_is_missing_unknown_or_of_another_kind_rejects_the_row() {
    let intake = fields(FIELDS);
    for (body, field, expected) in [
        (r#"{"value":3}"#, "value", "missing_unit"),
        (r#"{"value":3,"unit":null}"#, "value", "missing_unit"),
        (r#"{"value":3,"unit":""}"#, "value", "unknown_unit"),
        (r#"{"value":3,"unit":"KB"}"#, "value", "unknown_unit"),
        (r#"{"value":3,"unit":"ms"}"#, "value", "unknown_unit"),
        (r#"{"value":3,"unit":7}"#, "value", "unknown_unit"),
        (r#"{"rate":3,"rate_unit":"By"}"#, "rate", "unknown_unit"),
        (r#"{"unit":"By","unit":"By"}"#, "", "duplicate_field"),
        (
            r#"{"value":9223372036854775807,"unit":"KiBy"}"#,
            "value",
            "out_of_range",
        ),
        (r#"{"value":true,"unit":"KiBy"}"#, "value", "wrong_type"),
    ] {
        let (got_field, got_code, message) = code(&intake, body);
        assert_eq!(
            (got_field.as_str(), got_code.as_str()),
            (field, expected),
            "{body}: {message}"
        );
    }
    let (.., message) = code(&intake, r#"{"value":3,"unit":"KB"}"#);
    assert_eq!(
        message,
        "`unit` is the string \"KB\", expected a UCUM unit that converts into By, like \"By\""
    );
}

#[test]
fn the_default_is_in_the_default_unit() {
    let intake = fields("{name: n, type: uint64, default: 2, unit: {unit_from: unit, from: KiBy, to: By}}");
    assert_eq!(
        only_row(&lines(&intake, r#"{"unit":"MBy"}"#)),
        [Some("2048".into())]
    );
}

#[test]
fn conversions_of_taken_rows_are_counted_by_field_over_record_boundaries() {
    let intake = fields(
        "{name: a, type: uint64, unit: {from: KiBy, to: By}}, {name: b, type: float64, unit: {unit_from: u, to: s}}, \
         {name: t, type: string}",
    );
    let mut body = String::new();
    let text = "x".repeat(1_000);
    for n in 0..2_000 {
        let _ = writeln!(body, r#"{{"a":{n},"b":1,"u":"ms","t":"{text}"}}"#);
        body.push_str("{\"a\":1}\n{\"a\":1,\"b\":2}\n");
    }
    let parsed = lines(&intake, body);
    assert!(parsed.pending.len() > 1);
    assert_eq!((parsed.answer.accepted, parsed.answer.rejected), (4_000, 2_000));
    let counts: Vec<_> = parsed
        .conversions
        .iter()
        .map(|(field, count)| (field.as_str(), *count))
        .collect();
    assert_eq!(counts, [("a", 4_000), ("b", 2_000)]);
}
