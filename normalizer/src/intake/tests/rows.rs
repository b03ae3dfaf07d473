//! Rows: what each type takes, and what it refuses.

use super::*;
use sluice_common::limits::MAX_QUOTED_BYTES;

/// Sends a good row, the bad one, and a good row; both good ones must be taken.
fn rejected(intake: &Intake, good: &str, bad: &str) -> (String, String, String) {
    let parsed = lines(intake, format!("{good}\n{bad}\n{good}"));
    assert_eq!(
        (parsed.answer.accepted, parsed.answer.rejected),
        (2, 1),
        "{bad}: {:?}",
        parsed.answer
    );
    let rows = rows_of(&parsed.pending);
    assert_eq!((rows.len(), &rows[0]), (2, &rows[1]), "{bad}");
    let span = parsed.pending[0].span;
    assert_eq!((span.rows, span.taken, span.rejected), (2, 2, 1));
    let error = &parsed.answer.errors[0];
    assert_eq!(error.index, 1, "{bad}");
    (error.field.clone(), error.code.to_string(), error.message.clone())
}

#[test]
fn every_fault_has_its_code_and_field_and_good_rows_are_kept() {
    let default = default_intake();
    let huge = "y".repeat(1_000_000);
    let deep = format!(",\"x\":{}{}", "[".repeat(40), "]".repeat(40));
    let cases = [
        (
            r#"{"event_id":"b","timestamp":"2026-11-21T03:30:30Z"}"#.to_owned(),
            "service",
            "missing_field",
        ),
        (
            event("b", "").replace("\"api\"", "null"),
            "service",
            "null_not_allowed",
        ),
        (event("b", "").replace("\"api\"", "7"), "service", "wrong_type"),
        (event("b", r#","status":2.5"#), "status", "wrong_type"),
        (event("b", r#","status":"200""#), "status", "wrong_type"),
        (event("b", r#","attributes":"x""#), "attributes", "wrong_type"),
        (event("b", r#","duration_ms":true"#), "duration_ms", "wrong_type"),
        (event("b", r#","status":65536"#), "status", "out_of_range"),
        (event("b", r#","status":-1"#), "status", "out_of_range"),
        (
            event("b", r#","size_kib":18446744073709551615"#),
            "size_bytes",
            "out_of_range",
        ),
        (event("b", r#","x":1e999"#), "", "out_of_range"),
        (
            event("b", "").replace("2026-11-21T", "2026-11-21 at "),
            "timestamp",
            "bad_timestamp",
        ),
        (
            event("b", "").replace("2026-11-21T03", "2026-11-13T03"),
            "timestamp",
            "too_old",
        ),
        (
            event("b", "").replace("03:30:30.123", "03:35:30.124"),
            "timestamp",
            "too_new",
        ),
        (event("b", r#","service":"x""#), "service", "duplicate_field"),
        (event("b", &deep), "", "too_deep"),
        (event(&huge, ""), "", "event_too_large"),
        (event("b", "")[1..].to_owned(), "", "malformed_json"),
        ("[]".to_owned(), "", "not_an_object"),
        ("\"x\"".to_owned(), "", "not_an_object"),
    ];
    for (bad, field, code) in cases {
        let (got_field, got_code, message) = rejected(&default, &event("a", ""), &bad);
        assert_eq!(
            (got_field.as_str(), got_code.as_str()),
            (field, code),
            "{message}"
        );
        assert!(message.len() > 20 && message.len() < 400, "{message}");
    }
}

#[test]
fn an_epoch_without_a_unit_an_unknown_member_and_bad_utf_8_have_codes_too() {
    let plain = fields("{name: at, type: datetime}, {name: n, type: int8}");
    assert_eq!(rejected(&plain, "{}", r#"{"at":1}"#).1, "epoch_without_unit");
    let (field, code, _) = rejected(&plain, "{}", r#"{"zebra":1}"#);
    assert_eq!((field.as_str(), code.as_str()), ("zebra", "unknown_field"));
    let mut body = b"{\"n\":1}\n{\"n\":\"".to_vec();
    body.extend_from_slice(b"\xff\"}\n{}");
    let answer = lines(&plain, body).answer;
    assert_eq!(
        (
            answer.accepted,
            answer.errors[0].code.as_ref(),
            answer.errors[0].index
        ),
        (2, "not_utf8", 1)
    );
}

#[test]
fn a_message_says_what_was_got_and_what_is_expected_and_quotes_little() {
    let default = default_intake();
    let (.., message) = rejected(&default, &event("a", ""), &event("b", r#","status":70000"#));
    assert_eq!(
        message,
        "got 70000, which is out of range, expected a whole number from 0 to 65535"
    );
    let long = "é".repeat(5_000);
    let (.., message) = rejected(
        &default,
        &event("a", ""),
        &event("b", &format!(r#","status":"{long}""#)),
    );
    assert!(
        message.contains("got the string \"éé") && message.len() < 2 * MAX_QUOTED_BYTES,
        "{message}"
    );
    let plain = fields("{name: n, type: int8}");
    let (field, ..) = rejected(&plain, "{}", &format!(r#"{{"{long}":1}}"#));
    assert_eq!(field.len(), MAX_QUOTED_BYTES);
}

#[test]
fn the_default_event_becomes_its_columns() {
    let body = event(
        "a",
        r#","host":"h1","name":"GET","duration_ms":12,"status":200,"size_kib":3,"attributes":{"k":"v"},"extra":true"#,
    );
    let row = only_row(&lines(&default_intake(), body));
    let expected = [
        "a",
        "1795231830123",
        "api",
        "h1",
        "GET",
        "12.0",
        "200",
        "3072",
        "extra=true;k=v",
    ];
    assert_eq!(row, expected.map(|text| Some(text.to_owned())));
    let row = only_row(&lines(&default_intake(), event("a", "")));
    let empty = Some(String::new());
    assert_eq!(row[3..], [empty.clone(), empty.clone(), None, None, None, empty]);
}

#[test]
fn integers_take_whole_numbers_and_wide_ones_strings_too() {
    let types = [
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    ];
    for (at, name) in types.iter().enumerate() {
        let intake = fields(&format!("{{name: n, type: {name}}}"));
        let take = |value: &str| {
            let parsed = lines(&intake, format!("{{\"n\":{value}}}"));
            parsed
                .pending
                .first()
                .map(|pending| table(&pending.batch)[0][0].clone().expect("not null"))
        };
        let bits = 8u32 << (at % 4);
        let (low, high) = if at < 4 {
            (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
        } else {
            (0, (1i128 << bits) - 1)
        };
        for value in [low, high, 0, 7] {
            assert_eq!(take(&value.to_string()), Some(value.to_string()), "{name}");
            let quoted = take(&format!("\"{value}\""));
            assert_eq!(quoted, (bits == 64).then(|| value.to_string()), "{name}");
        }
        assert_eq!(
            (take("3.0"), take("1e2")),
            (Some("3".into()), Some("100".into())),
            "{name}"
        );
        for bad in [
            (low - 1).to_string(),
            (high + 1).to_string(),
            "1.5".into(),
            "1e30".into(),
            "true".into(),
        ] {
            assert_eq!(take(&bad), None, "{name} {bad}");
        }
    }
    let wide = fields("{name: n, type: int64}");
    for bad in [
        "\"\"",
        "\"-\"",
        "\"+1\"",
        "\" 1\"",
        "\"1.0\"",
        "\"99999999999999999999999\"",
        "\"9223372036854775808\"",
    ] {
        assert_eq!(
            lines(&wide, format!("{{\"n\":{bad}}}")).answer.rejected,
            1,
            "{bad}"
        );
    }
}

#[test]
fn floats_never_become_infinite() {
    let intake = fields("{name: a, type: float32}, {name: b, type: float64, unit: {from: TBy, to: bit}}");
    let row = |body: &'static str| only_row(&lines(&intake, body));
    assert_eq!(
        row(r#"{"a":0.1,"b":1}"#),
        [Some("0.1".into()), Some("8000000000000.0".into())]
    );
    assert_eq!(row(r#"{"a":-0.0}"#)[0], Some("-0.0".into()));
    for bad in [r#"{"a":1e39}"#, r#"{"a":-1e39}"#, r#"{"b":1e300}"#] {
        assert_eq!(lines(&intake, bad).answer.errors[0].code, "out_of_range", "{bad}");
    }
}

#[test]
fn units_convert_fractions_and_round_half_away_from_zero() {
    let intake = fields(
        "{name: size, type: uint64, from: kib, unit: {from: KiBy, to: By}}, \
         {name: took, type: int32, unit: {from: us, to: ms}}",
    );
    let row = only_row(&lines(&intake, r#"{"kib":1.5,"took":-1500}"#));
    assert_eq!(row, [Some("1536".into()), Some("-2".into())]);
    let row = only_row(&lines(&intake, r#"{"kib":"2","took":1499.9}"#));
    assert_eq!(row, [Some("2048".into()), Some("1".into())]);
}

#[test]
fn times_are_cut_to_their_precision_and_kept_in_clickhouses_range() {
    let all: Vec<_> = (0..10)
        .map(|digits| format!("{{name: d{digits}, type: datetime64({digits}), epoch: s}}"))
        .collect();
    let intake = fields(&all.join(","));
    let nanos = 1_700_000_000_123_456_789i64;
    for digits in 0..10u32 {
        let row = only_row(&lines(
            &intake,
            format!(r#"{{"d{digits}":"2023-11-14T22:13:20.123456789Z"}}"#),
        ));
        let per_tick = 10i64.pow(match digits {
            0 => 9,
            1..=3 => 6,
            4..=6 => 3,
            _ => 0,
        });
        let cut = nanos - nanos % 10i64.pow(9 - digits);
        assert_eq!(
            row[digits as usize],
            Some((cut / per_tick).to_string()),
            "{digits}"
        );
        for bad in ["1899-12-31T23:59:59Z", "2300-01-01T00:00:00Z"] {
            let answer = lines(&intake, format!(r#"{{"d{digits}":"{bad}"}}"#)).answer;
            assert_eq!(answer.errors[0].code, "out_of_range", "{digits} {bad}");
        }
    }
    assert_eq!(
        only_row(&lines(&intake, r#"{"d3":1700000000.123}"#))[3],
        Some("1700000000123".into())
    );
    assert_eq!(
        only_row(&lines(&intake, r#"{"d3":-1.5}"#))[3],
        Some("-1500".into())
    );
    assert_eq!(
        lines(&intake, r#"{"d9":"2263-01-01T00:00:00Z"}"#).answer.rejected,
        1
    );
    assert_eq!(
        lines(&intake, r#"{"d3":18446744073709551615}"#).answer.rejected,
        1
    );
    let plain = fields("{name: at, type: datetime, epoch: ms}");
    assert_eq!(only_row(&lines(&plain, r#"{"at":1999}"#)), [Some("1".into())]);
    for bad in ["-1", "4294967296000", "1.5", "true", "\"1969-12-31T23:59:59Z\""] {
        assert_eq!(
            lines(&plain, format!("{{\"at\":{bad}}}")).answer.rejected,
            1,
            "{bad}"
        );
    }
}

#[test]
fn the_age_bounds_include_their_edges() {
    let default = default_intake();
    let at = |ms: u64| {
        lines(
            &default,
            format!(r#"{{"event_id":"a","service":"s","timestamp":{ms}}}"#),
        )
        .answer
    };
    let (week, five) = (7 * 86_400_000, 300_000);
    assert_eq!((at(NOW_MS - week).accepted, at(NOW_MS + five).accepted), (1, 1));
    assert_eq!(at(NOW_MS - week - 1).errors[0].code, "too_old");
    assert_eq!(at(NOW_MS + five + 1).errors[0].code, "too_new");
}

#[test]
fn a_request_over_too_many_partitions_is_413_and_rejected_rows_do_not_count() {
    let yaml = "datasets: [{name: events, partition_by: toStartOfHour(at), \
                fields: [{name: at, type: datetime, required: true, epoch: s}, {name: n, type: int8}]}]";
    let intake = intake(yaml);
    let body = |hours: u64, n: i32| -> String {
        (0..hours)
            .map(|hour| format!("{{\"at\":{},\"n\":{n}}}\n", NOW_MS / 1_000 - hour * 3_600))
            .collect()
    };
    assert_eq!(lines(&intake, body(24, 1) + &body(24, 1)).answer.accepted, 48);
    assert_eq!(lines(&intake, body(24, 1) + &body(30, 999)).answer.accepted, 24);
    let problem = parse(&intake, BodyFormat::Ndjson, body(25, 1)).expect_err("refused");
    assert_eq!(
        (problem.status().as_u16(), problem.code.as_ref()),
        (413, "too_many_partitions")
    );
}

#[test]
fn maps_hold_text_and_the_fields_own_entries_win() {
    let default = default_intake();
    let map = |more: &str| {
        only_row(&lines(&default, event("a", more)))[8]
            .clone()
            .expect("a map")
    };
    assert_eq!(
        map(r#","attributes":{"s":"x","i":-3,"f":1.50,"b":false,"n":null,"e":1e300}"#),
        "s=x;i=-3;f=1.5;b=false;e=1e300"
    );
    assert_eq!(
        map(r#","attributes":{"o":{"a":[1,"\"\n",null],"b":{}},"l":[]}"#),
        r#"o={"a":[1,"\"\n",null],"b":{}};l=[]"#
    );
    assert_eq!(map(r#","attributes":{"k":"1","k":"2"}"#), "k=2");
    assert_eq!(map(r#","k":"top","attributes":{"k":"own"},"z":"z""#), "z=z;k=own");
    assert_eq!(map(r#","k":"1","k":"2","gone":null"#), "k=2");
    assert_eq!(map(r#","attributes":null"#), "");
    let many: String = (0..40).map(|n| format!(",\"k{}\":{n}", n % 20)).collect();
    let expected: Vec<_> = (20..40).map(|n| format!("k{}={n}", n % 20)).collect();
    assert_eq!(map(&many), expected.join(";"));
}

#[test]
fn unknown_members_are_dropped_and_counted_where_the_dataset_says_so() {
    let intake = intake("datasets: [{name: events, unknown_fields: drop, fields: [{name: n, type: int8}]}]");
    let parsed = lines(&intake, "{\"n\":1,\"a\":1,\"b\":{\"c\":2}}\n{\"a\":1,\"n\":999}");
    assert_eq!((parsed.answer.accepted, parsed.dropped_members), (1, 2));
    let parsed = lines(&intake, "{\"n\":1,\"a\":1}\n".repeat(60_000));
    assert!(parsed.pending.len() > 1);
    assert_eq!((parsed.answer.accepted, parsed.dropped_members), (60_000, 60_000));
}

#[test]
fn what_is_not_sent_is_the_default_or_null_or_zero() {
    let intake = fields(
        "{name: a, type: string, default: x}, {name: b, type: nullable(int8), default: 5}, {name: c, type: bool}, \
         {name: d, type: nullable(string)}, {name: e, type: datetime}, {name: f, type: uint64, default: 2, \
         unit: {from: KiBy, to: By}}, {name: g, type: \"map(string,string)\", default: {k: v}}, \
         {name: h, type: float32, default: 0.5}, {name: i, type: nullable(low_cardinality(string)), default: null}",
    );
    let some = |text: &str| Some(text.to_owned());
    let absent = [
        some("x"),
        some("5"),
        some("false"),
        None,
        some("0"),
        some("2048"),
        some("k=v"),
        some("0.5"),
        None,
    ];
    assert_eq!(only_row(&lines(&intake, "{}")), absent);
    let nulls = r#"{"a":null,"b":null,"c":null,"d":null,"e":null,"f":null,"g":null,"h":null,"i":null}"#;
    let mut expected = absent;
    expected[1] = None;
    assert_eq!(only_row(&lines(&intake, nulls)), expected);
}

#[test]
fn a_dataset_that_cannot_work_is_refused_with_dataset_and_field() {
    for (field, parts) in [
        (
            "{name: n, type: uint8, unit: {from: KiBy, to: ms}}",
            ["an amount of data", "a time"],
        ),
        (
            "{name: n, type: uint8, unit: {from: KB, to: By}}",
            ["\"KB\"", "not known"],
        ),
        (
            "{name: n, type: string, unit: {from: KiBy, to: By}}",
            ["numbers", "string"],
        ),
        (
            "{name: n, type: uint8, unit: {to: By}}",
            ["`from`", "`unit_from`"],
        ),
        (
            "{name: n, type: uint8, unit: {unit_from: u, to: KB}}",
            ["\"KB\"", "not known"],
        ),
        (
            "{name: n, type: uint8, unit: {unit_from: u, to: By}, default: 1}",
            ["default has no unit", "`from`"],
        ),
        (
            "{name: n, type: uint8, default: 256}",
            ["default 256", "out_of_range"],
        ),
        ("{name: n, type: bool, default: 1}", ["default 1", "wrong_type"]),
        (
            "{name: n, type: \"map(string,string)\", default: {a: 1}}",
            ["default", "object of strings"],
        ),
        (
            "{name: n, type: datetime, default: soon}",
            ["default", "bad_timestamp"],
        ),
    ] {
        let yaml = format!("datasets: [{{name: broken, fields: [{field}, {{name: ok, type: string}}]}}]");
        let problems = Intake::new(&config(&yaml).datasets, SECRET)
            .err()
            .expect("refused");
        assert_eq!(problems.len(), 1);
        for part in parts.iter().copied().chain(["broken", "`n`"]) {
            assert!(problems[0].contains(part), "{part} in {problems:?}");
        }
    }
}
