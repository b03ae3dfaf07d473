//! Values within values: their places in errors, their bounds, their identity, their defaults.

use super::*;
use sluice_common::limits::MAX_EVENT_MEMBERS;

fn refused(intake: &Intake, event: &str) -> (String, String, String) {
    let parsed = lines(intake, event.to_owned());
    assert_eq!(parsed.answer.rejected, 1, "{event:.80}");
    let error = &parsed.answer.errors[0];
    (error.field.clone(), error.code.to_string(), error.message.clone())
}

#[test]
fn a_bad_value_within_names_its_place_and_takes_nothing_with_it() {
    let intake = fields(
        "{name: a, type: array(array(uint8))}, {name: m, type: \"map(string,map(string,int8))\"}, {name: z, type: string}",
    );
    for (event, code, place) in [
        (
            r#"{"z":"x","a":[[1],[2,256]]}"#,
            "out_of_range",
            "at a[1][1]: got 256",
        ),
        (r#"{"a":[[1],"x"]}"#, "wrong_type", "at a[1]: got the string"),
        (r#"{"a":[[null]]}"#, "null_not_allowed", "at a[0][0]: got null"),
        (
            r#"{"m":{"k":{"ok":1},"l":{"bad":"1"}}}"#,
            "wrong_type",
            "at m[\"l\"][\"bad\"]",
        ),
    ] {
        let (field, found, message) = refused(&intake, event);
        assert_eq!(
            (field.as_str(), found.as_str()),
            (&message[3..4], code),
            "{message}"
        );
        assert!(message.contains(place), "{message}");
    }
    let good = r#"{"a":[[1,2],[]],"m":{"k":{"x":-1}},"z":"end"}"#;
    let bad = r#"{"m":{"k":{"x":1}},"a":[[3,4,5],[6,256]],"z":"gone"}"#;
    let parsed = lines(&intake, format!("{good}\n{bad}\n{good}"));
    let rows = rows_of(&parsed.pending);
    assert_eq!((rows.len(), &rows[0]), (2, &rows[1]));
    assert_eq!(rows[0][0].as_deref(), Some("[[1,2],[]]"));
}

#[test]
fn bytes_and_members_are_bounded_within_values_too() {
    let intake = fields(
        "{name: a, type: \"array(decimal(76,0))\"}, {name: m, type: \"map(string,uint8)\"}, {name: j, type: json}",
    );
    let many = vec!["1"; 400_000].join(",");
    let (_, code, _) = refused(&intake, &format!(r#"{{"a":[{many}]}}"#));
    assert_eq!(code, "event_too_large");
    let members: Vec<String> = (0..MAX_EVENT_MEMBERS).map(|n| format!("\"k{n}\":1")).collect();
    for field in ["m", "j"] {
        let event = format!(r#"{{"{field}":{{{}}}}}"#, members.join(","));
        assert_eq!(refused(&intake, &event).1, "too_many_members", "{field}");
    }
    let fits = format!(r#"{{"m":{{{}}}}}"#, members[1..].join(","));
    assert_eq!(lines(&intake, fits).answer.accepted, 1);
}

#[test]
fn a_row_s_bytes_are_never_less_than_its_columns_take() {
    let intake = fields(
        "{name: a, type: array(array(nullable(uuid)))}, {name: m, type: \"map(string,array(string))\"}, \
         {name: t, type: \"array(map(string,string))\"}, {name: d, type: \"nullable(decimal(50,1))\"}, \
         {name: j, type: json}, {name: i, type: array(ipv4)}",
    );
    let event = r#"{"a":[["00112233-4455-6677-8899-aabbccddeeff",null],[]],"m":{"key":["x","yy"],"e":[]},
        "t":[{"k":"v"},{}],"d":"1.5","j":{"a":[1,{"b":null}]},"i":["1.2.3.4"]}"#;
    let parsed = lines(&intake, event.replace('\n', " "));
    let pending = &parsed.pending[0];
    let columns = pending.batch.columns().iter();
    let taken: usize = columns
        .map(|column| column.to_data().get_slice_memory_size().expect("a size"))
        .sum();
    // Each run of offsets has one more than it has values; a request holds few.
    let ends = 4 * 12;
    assert!(pending.bytes + ends >= taken, "{} for {taken}", pending.bytes);
    assert!(pending.bytes < 2 * taken, "{} for {taken}", pending.bytes);
}

#[test]
fn equal_values_of_other_types_are_one_event() {
    let key = |typed: &str, value: &str| {
        let yaml = format!(
            "datasets: [{{name: events, fields: [{{name: k, type: \"{typed}\", required: true}}], dedup: {{key: [k]}}}}]"
        );
        lines(&intake(&yaml), format!("{{\"k\":{value}}}")).pending[0].keys[0]
    };
    assert_eq!(key("decimal(10,2)", "\"1.50\""), key("decimal(76,30)", "1.5"));
    assert_eq!(key("ipv4", "\"1.2.3.4\""), key("ipv6", "\"::ffff:1.2.3.4\""));
    assert_eq!(key("date", "\"2026-11-21\""), key("date32", "\"2026-11-21\""));
    assert_eq!(key("enum(a)", "\"a\""), key("string", "\"a\""));
    assert_eq!(
        key("fixed_string(3)", "\"a\""),
        key("fixed_string(9)", "\"a\\u0000\"")
    );
    assert_eq!(
        key("uuid", "\"00112233-4455-6677-8899-AABBCCDDEEFF\""),
        key("uuid", "\"00112233445566778899aabbccddeeff\"")
    );
    assert_ne!(key("decimal(10,2)", "1"), key("int64", "1"));
    assert_ne!(
        key("uuid", "\"00112233445566778899aabbccddeeff\""),
        key("string", "\"00112233445566778899aabbccddeeff\"")
    );
}

#[test]
fn defaults_of_values_within_are_checked_when_the_config_is_read() {
    let row = only_row(&lines(
        &fields(
            "{name: a, type: \"array(array(decimal(4,2)))\", default: [[1, \"2.5\"], []]}, \
             {name: m, type: \"map(string,map(string,string))\", default: {k: {x: 'y'}}}, \
             {name: j, type: json, default: {b: [1, null]}}, {name: e, type: enum(x), default: x}, \
             {name: i, type: \"array(nullable(ipv4))\", default: [null, 1.2.3.4]}",
        ),
        "{}",
    ));
    let found: Vec<_> = row.iter().map(|cell| cell.as_deref().unwrap_or("none")).collect();
    assert_eq!(
        found,
        [
            "[[100,250],[]]",
            "k=x=y",
            r#"{"b":[1,null]}"#,
            "x",
            "[null,1.2.3.4]"
        ]
    );
    for (typed, default) in [
        ("array(uint8)", "[256]"),
        ("array(uint8)", "[null]"),
        ("array(uint8)", "{}"),
        ("map(string,uint8)", "[1]"),
        ("json", "[1]"),
        ("enum(x)", "y"),
        ("date", "2026-02-30"),
        ("decimal(3,1)", "100"),
        ("uuid", "x"),
    ] {
        let yaml = format!(
            "datasets: [{{name: events, fields: [{{name: f, type: \"{typed}\", default: {default}}}]}}]"
        );
        let problems = Intake::new(&config(&yaml).datasets, SECRET).err().expect(typed);
        assert!(problems[0].contains("field `f`: its default"), "{problems:?}");
    }
}

#[test]
fn local_times_are_read_where_the_field_names_its_zone() {
    let intake = fields(
        "{name: t, type: datetime, timezone: Europe/Berlin}, {name: l, type: array(datetime), timezone: Asia/Tokyo}",
    );
    let row = only_row(&lines(
        &intake,
        r#"{"t":"2026-07-01T12:00:00","l":["1970-01-01T09:00:01","1970-01-01T00:00:00Z"]}"#,
    ));
    assert_eq!(row, [Some("1782900000".to_owned()), Some("[1,0]".to_owned())]);
    let (_, code, message) = refused(&intake, r#"{"t":"2026-03-29T02:30:00"}"#);
    assert!(
        code == "bad_timestamp" && message.contains("skipped"),
        "{message}"
    );
}

#[test]
fn late_events_are_those_past_an_hour_that_are_taken() {
    let intake = intake(
        "datasets: [{name: events, fields: [{name: t, type: datetime64(3), required: true, epoch: ms}], \
         time: {field: t, max_past: 1d}}]",
    );
    let times =
        [0, 3_600_000, 3_600_001, 86_400_000, 86_400_001].map(|age| format!("{{\"t\":{}}}", NOW_MS - age));
    let parsed = lines(&intake, times.join("\n"));
    assert_eq!((parsed.answer.accepted, parsed.late_events), (4, 2));
}

#[test]
fn a_request_of_too_many_columns_is_refused_whole() {
    let intake = fields("{name: a, type: \"array(decimal(76,0))\"}");
    let event = format!("{{\"a\":[{}]}}\n", vec!["1"; 25_000].join(","));
    let problem = parse(&intake, BodyFormat::Ndjson, event.repeat(400)).expect_err("too many");
    assert_eq!(problem.code, "columns_too_large");
    assert_eq!(lines(&intake, event.repeat(4)).answer.accepted, 4);
}
