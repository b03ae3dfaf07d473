//! Checks of values: the first value that passes and the first that does not, and what contradicts.

use super::*;
use sluice_common::limits::MAX_QUOTED_BYTES;

/// The code that `value` is rejected with as `n`, if it is.
fn code(intake: &Intake, value: &str) -> Option<String> {
    let parsed = lines(intake, format!(r#"{{"n":{value}}}"#));
    let error = parsed.answer.errors.first();
    assert_eq!(
        error.is_none(),
        parsed.answer.accepted == 1,
        "{:?}",
        parsed.answer
    );
    error.map(|error| error.code.to_string())
}

/// A field, values that pass and values that do not, with their codes.
type Case = (
    &'static str,
    &'static [&'static str],
    &'static [(&'static str, &'static str)],
);

const CASES: &[Case] = &[
    (
        "type: nullable(int8), min: -5, max: 5",
        &["-5", "5", "null"],
        &[("-6", "below_min"), ("6", "above_max")],
    ),
    (
        "type: nullable(uint64), max: 18446744073709551614",
        &["\"18446744073709551614\""],
        &[("18446744073709551615", "above_max")],
    ),
    (
        "type: nullable(float64), min: 0.1, max: 1e3",
        &["0.1", "1000"],
        &[("0.09", "below_min"), ("1000.1", "above_max")],
    ),
    (
        "type: nullable(float32), min: 0.5",
        &["0.5"],
        &[("0.49", "below_min")],
    ),
    (
        "type: nullable(datetime64(3)), epoch: ms, min: \"2026-01-01T00:00:00Z\", max: 1767225600001",
        &["1767225600000", "\"2026-01-01T01:00:00.001+01:00\""],
        &[("1767225599999", "below_min"), ("1767225600002", "above_max")],
    ),
    (
        "type: nullable(uint64), unit: {from: KiBy, to: By}, min: 2048, max: 4096",
        &["2", "4"],
        &[("1", "below_min"), ("4.01", "above_max")],
    ),
    (
        "type: nullable(string), min_length: 2, max_length: 3",
        &["\"ab\"", "\"é\"", "\"abc\""],
        &[("\"a\"", "too_short"), ("\"éé\"", "too_long")],
    ),
    (
        "type: nullable(low_cardinality(string)), pattern: '^[a-z]+$'",
        &["\"a\"", "null"],
        &[("\"A\"", "pattern_mismatch"), ("\"\"", "pattern_mismatch")],
    ),
    (
        "type: nullable(string), values: [a, b]",
        &["\"b\"", "null"],
        &[("\"c\"", "value_not_allowed")],
    ),
    (
        "type: nullable(low_cardinality(string)), values: [a]",
        &["\"a\""],
        &[("\"\"", "value_not_allowed")],
    ),
    (
        "type: nullable(uint16), values: [200, 404]",
        &["200", "4.04e2"],
        &[("500", "value_not_allowed")],
    ),
    (
        "type: nullable(float64), values: [0, 0.5]",
        &["-0.0", "0.5"],
        &[("0.25", "value_not_allowed")],
    ),
    (
        "type: nullable(bool), values: [true]",
        &["true"],
        &[("false", "value_not_allowed")],
    ),
    (
        "type: \"map(string,string)\", max_length: 2",
        &[
            "{}",
            "null",
            r#"{"a":1,"b":null,"c":2}"#,
            r#"{"a":1,"a":2,"b":1}"#,
        ],
        &[(r#"{"a":1,"b":2,"c":3}"#, "too_long")],
    ),
    (
        "type: \"map(string,string)\", min_length: 1, required: true",
        &[r#"{"a":1}"#],
        &[("{}", "too_short"), ("null", "null_not_allowed")],
    ),
    (
        "type: \"nullable(decimal(10, 2))\", min: \"1.50\", max: 2",
        &["\"1.5\"", "2"],
        &[("\"1.49\"", "below_min"), ("\"2.01\"", "above_max")],
    ),
    (
        "type: nullable(date), min: \"2026-01-01\"",
        &["\"2026-01-01\""],
        &[("\"2025-12-31\"", "below_min")],
    ),
    (
        "type: array(string), max_length: 2",
        &["[]", r#"["a","b"]"#],
        &[(r#"["a","b","c"]"#, "too_long")],
    ),
    (
        "type: \"map(string, uint8)\", max_length: 1",
        &["{}", r#"{"a":1,"a":2}"#],
        &[(r#"{"a":1,"b":2}"#, "too_long")],
    ),
    (
        "type: nullable(uuid), values: [\"00000000-0000-0000-0000-00000000000A\"]",
        &["\"00000000-0000-0000-0000-00000000000a\""],
        &[("\"00000000-0000-0000-0000-00000000000b\"", "value_not_allowed")],
    ),
];

#[test]
fn each_check_passes_its_limit_and_refuses_the_next_value() {
    for (field, good, bad) in CASES {
        let intake = fields(&format!("{{name: n, {field}}}"));
        for value in *good {
            assert_eq!(code(&intake, value), None, "{field}: {value}");
        }
        for (value, expected) in *bad {
            assert_eq!(
                code(&intake, value).as_deref(),
                Some(*expected),
                "{field}: {value}"
            );
        }
    }
}

#[test]
fn a_message_names_the_limit_and_quotes_little() {
    let long = "x".repeat(5_000);
    for (field, value, expected) in [
        (
            "type: nullable(int8), min: 5",
            "4".to_owned(),
            "got 4, which is below the minimum of 5",
        ),
        (
            "type: nullable(uint64), unit: {from: KiBy, to: By}, min: 2048",
            "1".to_owned(),
            "got 1, which after the unit's conversion is below the minimum of 2048",
        ),
        (
            "type: nullable(string), max_length: 9",
            format!("\"{long}\""),
            "which is longer than 9 bytes or entries",
        ),
        (
            "type: nullable(string), pattern: '^a$'",
            format!("\"{long}\""),
            "which does not match the pattern \"^a$\"",
        ),
        (
            "type: nullable(string), values: [a, b]",
            format!("\"{long}\""),
            "which is none of the allowed values [\"a\",\"b\"]",
        ),
        (
            &format!("type: nullable(string), values: [{long}]"),
            "\"a\"".to_owned(),
            "allowed values [\"xxx",
        ),
    ] {
        let intake = fields(&format!("{{name: n, {field}}}"));
        let answer = lines(&intake, format!(r#"{{"n":{value}}}"#)).answer;
        let message = &answer.errors[0].message;
        assert!(message.contains(expected), "{message}");
        assert!(message.len() < 3 * MAX_QUOTED_BYTES, "{message}");
    }
}

#[test]
fn a_field_is_required_where_another_has_one_of_its_values() {
    let intake = fields(
        "{name: status, type: uint16, default: 500}, {name: why, type: nullable(string), \
         required_if: {field: status, is: [500, 503]}}, {name: tags, type: \"map(string,string)\", \
         required_if: {field: why, is: [null]}}",
    );
    for (body, missing) in [
        (r#"{"status":500,"why":"x"}"#, None),
        (r#"{"why":"x","status":503}"#, None),
        (r#"{"status":200,"tags":{}}"#, None),
        (r#"{"status":5e2}"#, Some("why")),
        (r#"{"status":503,"tags":{}}"#, Some("why")),
        // The other's default counts.
        (r#"{"tags":{}}"#, Some("why")),
        (r#"{"status":200}"#, Some("tags")),
        (r#"{"status":200,"why":null}"#, Some("tags")),
        (r#"{"status":500,"why":null,"tags":{}}"#, None),
    ] {
        let answer = lines(&intake, body).answer;
        let got = answer
            .errors
            .first()
            .map(|error| (error.field.as_str(), error.code.as_ref()));
        assert_eq!(got, missing.map(|field| (field, "missing_field")), "{body}");
    }
    let answer = lines(&intake, r#"{"status":503}"#).answer;
    assert!(
        answer.errors[0].message.contains("by the value of `status`"),
        "{answer:?}"
    );
}

#[test]
fn a_required_map_must_be_sent() {
    let intake = fields("{name: m, type: \"map(string,string)\", required: true}");
    assert_eq!(lines(&intake, "{}").answer.errors[0].code, "missing_field");
    assert_eq!(lines(&intake, r#"{"m":{}}"#).answer.accepted, 1);
}

#[test]
fn checks_that_contradict_each_other_or_the_type_are_config_errors() {
    for (field, parts) in [
        ("type: nullable(int8), min: 6, max: 5", ["min 6", "max 5"]),
        ("type: nullable(int8), min: 128", ["128", "out_of_range"]),
        ("type: nullable(int8), min: 0.5", ["0.5", "wrong_type"]),
        ("type: nullable(string), min: 5", ["`min`", "numbers"]),
        ("type: nullable(bool), max: true", ["`max`", "numbers"]),
        ("type: nullable(int8), max_length: 5", ["`max_length`", "strings"]),
        (
            "type: nullable(string), min_length: 3, max_length: 2",
            ["min_length 3", "max_length 2"],
        ),
        ("type: nullable(int8), pattern: x", ["`pattern`", "strings"]),
        ("type: nullable(string), pattern: '('", ["pattern", "("]),
        (
            "type: nullable(string), pattern: '(a{1000}){1000}'",
            ["pattern", "size limit"],
        ),
        ("type: \"map(string,string)\", values: [{}]", ["`values`", "maps"]),
        ("type: nullable(string), values: []", ["values", "empty"]),
        ("type: nullable(uint8), values: [256]", ["256", "out_of_range"]),
        (
            "type: nullable(uint8), values: [5, 9], max: 8",
            ["value 9", "maximum of 8"],
        ),
        (
            "type: nullable(string), values: [abc], max_length: 2",
            ["\"abc\"", "longer than 2"],
        ),
        ("type: uint8, default: 9, max: 8", ["default", "maximum of 8"]),
        ("type: string, default: c, values: [a, b]", ["default", "none of"]),
        (
            "type: \"map(string,string)\", default: {a: b}, min_length: 2",
            ["default", "shorter than 2"],
        ),
        ("type: uint8, min: 1", ["its type's zero", "nullable"]),
        ("type: string, values: [a]", ["its type's zero", "default"]),
        (
            "type: \"map(string,string)\", min_length: 1",
            ["its type's zero", "required"],
        ),
        (
            "type: nullable(uint8), required_if: {field: x, is: [1]}",
            ["required_if", "not a field"],
        ),
        (
            "type: nullable(uint8), required_if: {field: n, is: [1]}",
            ["required_if", "itself"],
        ),
        (
            "type: uint8, required: true, required_if: {field: ok, is: [a]}",
            ["required_if", "anyway"],
        ),
        (
            "type: nullable(uint8), required_if: {field: ok, is: []}",
            ["required_if", "empty"],
        ),
        (
            "type: nullable(uint8), required_if: {field: ok, is: [7]}",
            ["required_if", "wrong_type"],
        ),
    ] {
        let yaml = format!(
            "datasets: [{{name: broken, fields: [{{name: n, {field}}}, {{name: ok, type: string}}]}}]"
        );
        let problems = Intake::new(&config(&yaml).datasets, SECRET).err().expect(field);
        assert_eq!(problems.len(), 1, "{problems:?}");
        for part in parts.iter().copied().chain(["broken", "`n`"]) {
            assert!(problems[0].contains(part), "{part} in {problems:?}");
        }
    }
}

#[test]
fn checks_change_the_schemas_version_and_no_checks_leave_it() {
    let version = |field: &str| {
        let intake = fields(&format!("{{name: n, {field}}}"));
        intake.schema("events", &acme()).expect("there").version()
    };
    let plain = version("type: nullable(uint8)");
    assert_eq!(plain, version("type: nullable(uint8)"));
    let checks = ["min: 1", "max: 1", "values: [1]", "unit: {from: s, to: s}"];
    let versions: std::collections::HashSet<u64> = checks
        .iter()
        .map(|check| version(&format!("type: nullable(uint8), {check}")))
        .chain([plain])
        .collect();
    assert_eq!(versions.len(), checks.len() + 1);
}
