//! Bodies: how they are split, and what a broken one costs.

use super::*;
use http::StatusCode;
use sluice_common::limits::{MAX_EVENT_BYTES, MAX_EVENTS_PER_REQUEST};
use std::path::PathBuf;

fn refused(format: BodyFormat, body: impl Into<Bytes>) -> Problem {
    parse(&default_intake(), format, body).expect_err("must be refused")
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read(path).expect("a readable file"))
        })
        .collect();
    files.sort();
    files
}

#[test]
fn objects_arrays_and_lines_are_taken_alike() {
    let intake = default_intake();
    let (a, b) = (event("a", ""), event("b", ""));
    let forms = [
        (BodyFormat::Ndjson, format!("{a}\r\n\n{b}\n")),
        (BodyFormat::Auto, format!("{a}\n{b}")),
        (BodyFormat::Json, format!("[{a},{b}]")),
        (BodyFormat::Auto, format!(" [{a} , {b}] ")),
    ];
    let expected = rows_of(&lines(&intake, format!("{a}\n{b}")).pending);
    for (format, body) in forms {
        let parsed = parse(&intake, format, body.clone()).expect("taken");
        assert_eq!(rows_of(&parsed.pending), expected, "{body}");
        assert_eq!((parsed.answer.accepted, parsed.pending[0].span.taken), (2, 2));
    }
    assert_eq!(
        parse(&intake, BodyFormat::Json, a)
            .expect("taken")
            .answer
            .accepted,
        1
    );
}

#[test]
fn no_events_are_zeros_and_no_body_is_a_refusal() {
    let intake = default_intake();
    for (format, body) in [
        (BodyFormat::Json, "[]"),
        (BodyFormat::Auto, " [ ] "),
        (BodyFormat::Ndjson, "\n\r\n  \n"),
        (BodyFormat::Auto, "\n"),
    ] {
        let parsed = parse(&intake, format, body).expect("taken");
        assert_eq!(
            (parsed.answer, parsed.pending.len()),
            (Default::default(), 0),
            "{body}"
        );
    }
    for format in [BodyFormat::Json, BodyFormat::Ndjson, BodyFormat::Auto] {
        assert_eq!(refused(format, "").code, "empty_body");
    }
}

#[test]
fn a_broken_line_is_one_rejected_row_and_a_broken_element_refuses_the_body() {
    let (good, bad) = (event("a", ""), r#"{"event_id":"#);
    let parsed = lines(
        &default_intake(),
        format!("{bad}\n{good}\nnot json\n\u{1}\n{good}"),
    );
    assert_eq!((parsed.answer.accepted, parsed.answer.rejected), (2, 3));
    let errors = parsed
        .answer
        .errors
        .iter()
        .map(|error| (error.index, error.code.as_ref()));
    assert_eq!(
        errors.collect::<Vec<_>>(),
        [
            (0, "malformed_json"),
            (2, "malformed_json"),
            (3, "malformed_json")
        ]
    );
    for body in [
        format!("[{good},{bad}]"),
        format!("[{good},{good}"),
        format!("[{good} {good}]"),
    ] {
        let problem = refused(BodyFormat::Json, body);
        assert_eq!(
            (problem.status(), problem.code.as_ref()),
            (StatusCode::BAD_REQUEST, "malformed_json")
        );
        assert!(problem.detail.contains("byte"), "{}", problem.detail);
    }
}

#[test]
fn a_dataset_that_is_not_there_is_404() {
    let mut request = request(BodyFormat::Json, "[]");
    request.dataset = "é".repeat(100);
    let problem = parse_request(&default_intake(), &request).expect_err("refused");
    assert_eq!(
        (problem.status(), problem.code.as_ref()),
        (StatusCode::NOT_FOUND, "unknown_dataset")
    );
}

#[test]
fn more_events_than_the_limit_are_413_however_they_stand() {
    let body = "{}\n".repeat(MAX_EVENTS_PER_REQUEST);
    let parsed = lines(&default_intake(), body.clone());
    assert_eq!(parsed.answer.rejected as usize, MAX_EVENTS_PER_REQUEST);
    assert_eq!(
        (parsed.answer.errors.len(), parsed.answer.errors_omitted),
        (100, 65_436)
    );
    let problem = refused(BodyFormat::Ndjson, body + "{}");
    assert_eq!(
        (problem.status(), problem.code.as_ref()),
        (StatusCode::PAYLOAD_TOO_LARGE, "too_many_events")
    );
    let array = format!("[{}{{}}]", "{},".repeat(MAX_EVENTS_PER_REQUEST));
    assert_eq!(refused(BodyFormat::Json, array).code, "too_many_events");
}

#[test]
fn the_own_corpus_ends_as_its_file_names_say() {
    let intake = default_intake();
    let files = files(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus/json"));
    assert!(files.len() >= 35, "{}", files.len());
    for (name, body) in files {
        let result = parse(&intake, BodyFormat::Json, body.clone());
        if let Some(code) = name.strip_prefix("body_") {
            let problem = result.expect_err(&name);
            assert!(code.starts_with(problem.code.as_ref()), "{name}: {problem:?}");
        } else if let Some(code) = name.strip_prefix("row_") {
            let answer = result
                .unwrap_or_else(|problem| panic!("{name}: {problem:?}"))
                .answer;
            assert_eq!((answer.accepted, answer.rejected), (0, 1), "{name}");
            assert!(
                code.starts_with(answer.errors[0].code.as_ref()),
                "{name}: {:?}",
                answer.errors
            );
        } else {
            let answer = result
                .unwrap_or_else(|problem| panic!("{name}: {problem:?}"))
                .answer;
            assert!(
                answer.accepted > 0 && answer.rejected == 0,
                "{name}: {:?}",
                answer.errors
            );
        }
        let _ = parse(&intake, BodyFormat::Ndjson, body.clone());
        let _ = parse(&intake, BodyFormat::Auto, body);
    }
}

#[test]
fn hostile_bodies_are_refused_or_rejected_and_end_nothing() {
    let intake = default_intake();
    let million = 1_000_000;
    let keys: String = (0..million).map(|n| format!("\"k{n}\":1,")).collect();
    let one_mb_number = "9".repeat(million);
    let few_keys: String = (0..5_000).map(|n| format!(",\"k{n}\":1")).collect();
    let cases = [
        ("[".repeat(million), "malformed_json"),
        ("{\"a\":".repeat(million), "event_too_large"),
        ("{\"a\":".repeat(100_000), "too_deep"),
        (
            format!("{}{}", "[".repeat(million), "]".repeat(million)),
            "event_too_large",
        ),
        (format!("{}{}", "[".repeat(1_000), "]".repeat(1_000)), "too_deep"),
        (format!("{{{keys}\"z\":1}}"), "event_too_large"),
        (event("a", &few_keys), "too_many_members"),
        (
            event("a", &format!(",\"attributes\":{{\"z\":1{few_keys}}}")),
            "too_many_members",
        ),
        (
            event("a", &format!(",\"duration_ms\":{one_mb_number}")),
            "out_of_range",
        ),
        (one_mb_number, "not_an_object"),
        (
            event("a", &format!(",\"x\":\"{}\"", "\\u0000".repeat(100_000))),
            "",
        ),
        (event(&"x".repeat(MAX_EVENT_BYTES), ""), "event_too_large"),
        (event(&"x".repeat(MAX_EVENT_BYTES - 200), ""), "event_too_large"),
        (format!("\"{}", "\\".repeat(million)), "malformed_json"),
        (",".repeat(million), "malformed_json"),
    ];
    for (body, expected) in cases {
        let start = &body[..body.len().min(40)].to_owned();
        for format in [BodyFormat::Ndjson, BodyFormat::Auto, BodyFormat::Json] {
            let code = match parse(&intake, format, body.clone()) {
                Ok(parsed) => parsed
                    .answer
                    .errors
                    .first()
                    .map_or(String::new(), |error| error.code.to_string()),
                Err(problem) => problem.code.to_string(),
            };
            if format == BodyFormat::Json {
                assert_eq!(code, expected, "{start}");
            }
        }
    }
}

#[test]
fn json_test_suite_ends_as_its_file_names_say() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus/jsontestsuite");
    let intake = default_intake();
    let files = files(&folder);
    assert_eq!(files.len(), 318);
    for (name, body) in files {
        let as_lines = parse(&intake, BodyFormat::Ndjson, body.clone());
        let as_json = parse(&intake, BodyFormat::Json, body);
        match name.as_bytes()[0] {
            b'n' => {
                let problem = as_json.expect_err(&name);
                assert_eq!(problem.status(), StatusCode::BAD_REQUEST, "{name}");
                assert!(
                    as_lines.map_or(true, |parsed| parsed.answer.accepted == 0),
                    "{name}"
                );
            }
            b'y' => assert!(
                as_json.map_or_else(|problem| problem.code == "not_an_object", |_| true),
                "{name}"
            ),
            _ => {}
        }
    }
}

#[test]
fn a_small_body_of_wide_rows_is_413_with_a_number_that_fits() {
    let names: Vec<_> = (0..300)
        .map(|n| format!("{{name: f{n}, type: uint64}}"))
        .collect();
    let intake = fields(&names.join(","));
    let problem = parse(&intake, BodyFormat::Ndjson, "{}\n".repeat(65_536)).expect_err("refused");
    assert_eq!(
        (problem.status().as_u16(), problem.code.as_ref()),
        (413, "columns_too_large")
    );
    let number = problem.detail.split("at most ").nth(2).expect("a number");
    let number: usize = number
        .split(' ')
        .next()
        .expect("a number")
        .parse()
        .expect("a number");
    assert!(number > 20_000, "{number}");
    assert_eq!(
        lines(&intake, "{}\n".repeat(number)).answer.accepted,
        number as u64
    );
}

#[test]
fn columns_that_outgrow_the_body_are_paid_for_as_they_are_made() {
    let names: Vec<_> = (0..300)
        .map(|n| format!("{{name: f{n}, type: uint64}}"))
        .collect();
    let intake = fields(&names.join(","));
    let request = request(BodyFormat::Ndjson, "{}\n".repeat(4_000));
    let mut paid = 0;
    let parsed = intake.parse(&request, NOW_MS, &mut |more| {
        paid += more;
        true
    });
    let columns: usize = parsed.expect("taken").pending.iter().map(|one| one.bytes).sum();
    assert!(columns > 10_000_000);
    assert_eq!(paid, columns - request.body.len());
    let mut room = 2_000_000usize;
    let refused = intake.parse(&request, NOW_MS, &mut |more| {
        let left = room.checked_sub(more);
        room = left.unwrap_or(room);
        left.is_some()
    });
    assert_eq!(refused.err(), Some(NotParsed::Full));
    assert!(
        room < 1_000_000,
        "it stopped as soon as there was no room: {room}"
    );
    // What is as large as its body is not asked for.
    let body = format!("{{\"f0\":1,\"f1\":\"{}\"}}", "1".repeat(10));
    let small = super::request(BodyFormat::Json, format!("{body}{}", " ".repeat(4_000)));
    assert!(intake.parse(&small, NOW_MS, &mut |_| false).is_ok());
}
