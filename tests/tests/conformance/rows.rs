//! One request with every kind of bad row: each is told, and the good rows among them are stored.

use crate::shared::{rows, sluice};
use crate::values::rfc3339;
use serde_json::{Value, json};
use sluice_tests::now_ms;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// A bad row's text, and the code and field that it must get.
struct Bad(Vec<u8>, &'static str, &'static str);

/// A row with `members` besides what is required.
fn with(members: &str) -> Vec<u8> {
    format!(
        "{{\"id\":\"bad\",\"at\":{:?},{members}}}",
        rfc3339(now_ms() / 1000)
    )
    .into_bytes()
}

/// A row with another time.
fn at(time: &str) -> Vec<u8> {
    format!("{{\"id\":\"bad\",\"at\":{time}}}").into_bytes()
}

fn presence() -> Vec<Bad> {
    let now = rfc3339(now_ms() / 1000);
    vec![
        Bad(b"{}".to_vec(), "missing_field", "id"),
        Bad(b"{\"id\":\"bad\"}".to_vec(), "missing_field", "at"),
        Bad(
            format!("{{\"id\":null,\"at\":{now:?}}}").into_bytes(),
            "null_not_allowed",
            "id",
        ),
        Bad(with("\"nope\":1"), "unknown_field", "nope"),
        Bad(
            with("\"renamed\":\"by its new name\""),
            "unknown_field",
            "renamed",
        ),
        Bad(with("\"s\":\"a\",\"s\":\"b\""), "duplicate_field", "s"),
        Bad(b"5".to_vec(), "not_an_object", ""),
        Bad(b"[{}]".to_vec(), "not_an_object", ""),
    ]
}

fn types() -> Vec<Bad> {
    let wrong = [
        ("\"s\":5", "s"),
        ("\"s\":{}", "s"),
        ("\"lc\":true", "lc"),
        ("\"b\":1", "b"),
        ("\"b\":\"true\"", "b"),
        ("\"i8\":\"5\"", "i8"),
        ("\"i32\":1.5", "i32"),
        ("\"u64\":\"x\"", "u64"),
        ("\"f64\":\"1\"", "f64"),
        ("\"dt\":true", "dt"),
        ("\"m\":[]", "m"),
        ("\"m\":\"x\"", "m"),
        ("\"n_u8\":[1]", "n_u8"),
        ("\"size_kib\":\"big\"", "size"),
    ];
    wrong
        .map(|(members, field)| Bad(with(members), "wrong_type", field))
        .into()
}

fn ranges() -> Vec<Bad> {
    let out = [
        ("\"i8\":128", "i8"),
        ("\"i8\":-129", "i8"),
        ("\"i16\":32768", "i16"),
        ("\"i32\":-2147483649", "i32"),
        ("\"i64\":9223372036854775808", "i64"),
        ("\"u8\":-1", "u8"),
        ("\"u8\":256", "u8"),
        ("\"u16\":65536", "u16"),
        ("\"u32\":4294967296", "u32"),
        ("\"u64\":-1", "u64"),
        ("\"u64\":\"18446744073709551616\"", "u64"),
        ("\"f32\":3.5e38", "f32"),
        ("\"f64\":1e400", ""),
        ("\"dt\":\"1969-12-31T23:59:59Z\"", "dt"),
        ("\"dt\":4294967296", "dt"),
        ("\"d3\":\"2300-01-01T00:00:00Z\"", "d3"),
        ("\"d9\":\"2262-04-11T23:47:16Z\"", "d9"),
        ("\"size_kib\":18014398509481984", "size"),
    ];
    out.map(|(members, field)| Bad(with(members), "out_of_range", field))
        .into()
}

fn forms() -> Vec<Bad> {
    let bad = [
        ("\"dec\":\"much\"", "bad_decimal", "dec"),
        ("\"dec\":\"1.234\"", "too_many_digits", "dec"),
        ("\"day\":\"2026-02-30\"", "bad_date", "day"),
        ("\"uid\":\"6ba7b810\"", "bad_uuid", "uid"),
        ("\"ip\":\"10.0.0.256\"", "bad_address", "ip"),
        ("\"en\":\"c\"", "not_in_enum", "en"),
        ("\"fs\":\"12345\"", "over_fixed_length", "fs"),
    ];
    bad.map(|(members, code, field)| Bad(with(members), code, field))
        .into()
}

fn checks() -> Vec<Bad> {
    let bad = [
        ("\"limited\":0", "below_min", "limited"),
        ("\"limited\":6", "above_max", "limited"),
        ("\"texted\":\"a\"", "too_short", "texted"),
        ("\"texted\":\"abcd\"", "too_long", "texted"),
        ("\"texted\":\"A1\"", "pattern_mismatch", "texted"),
        ("\"listed\":\"z\"", "value_not_allowed", "listed"),
        ("\"sized\":1,\"sized_unit\":\"s\"", "unknown_unit", "sized"),
        ("\"sized\":1", "missing_unit", "sized"),
    ];
    bad.map(|(members, code, field)| Bad(with(members), code, field))
        .into()
}

fn times() -> Vec<Bad> {
    let now = now_ms() / 1000;
    let day = 86_400;
    vec![
        Bad(at("\"yesterday\""), "bad_timestamp", "at"),
        Bad(at("\"2026-02-30T00:00:00Z\""), "bad_timestamp", "at"),
        Bad(at("\"2026-11-21T00:00:00\""), "bad_timestamp", "at"),
        Bad(at(&now_ms().to_string()), "epoch_without_unit", "at"),
        Bad(at(&format!("{:?}", rfc3339(now - 8 * day))), "too_old", "at"),
        Bad(at(&format!("{:?}", rfc3339(now + 600))), "too_new", "at"),
    ]
}

fn sizes() -> Vec<Bad> {
    let deep = format!("\"m\":{{\"x\":{}1{}}}", "[".repeat(31), "]".repeat(31));
    let mut many = String::new();
    (0..4_096).for_each(|n| write!(many, ",\"k{n}\":1").expect("written"));
    let large = format!("\"s\":\"{}\"", "x".repeat(1 << 20));
    vec![
        Bad(with(&deep), "too_deep", ""),
        Bad(with(&format!("\"m\":{{\"k\":1{many}}}")), "too_many_members", ""),
        Bad(with(&large), "event_too_large", ""),
    ]
}

fn lines_only() -> Vec<Bad> {
    vec![
        Bad(b"{\"id\":".to_vec(), "malformed_json", ""),
        Bad(b"not json".to_vec(), "malformed_json", ""),
        Bad(b"{\"id\":\"\\ud800\"}".to_vec(), "malformed_json", ""),
        Bad(b"{\"id\":\"\xff\xfe\"}".to_vec(), "not_utf8", ""),
    ]
}

/// Sends `bad` with a good row before each, and checks answer and table.
async fn check(content_type: &str, bad: Vec<Bad>, prefix: &str) -> BTreeSet<String> {
    let sluice = sluice().await;
    let now = rfc3339(now_ms() / 1000);
    let mut events: Vec<Vec<u8>> = Vec::new();
    for (n, Bad(text, _, _)) in bad.iter().enumerate() {
        events.push(format!("{{\"id\":\"{prefix}{n}\",\"at\":{now:?},\"u32\":{n}}}").into_bytes());
        events.push(text.clone());
    }
    let body = if content_type == "application/json" {
        [&b"["[..], &events.join(&b','), b"]"].concat()
    } else {
        events.join(&b'\n')
    };
    let client = sluice.tenant(1).with("content-type", content_type);
    let answer = client
        .post("/v1/events/everything", body)
        .await
        .expect("an answer");
    let told = answer.json();
    assert_eq!(answer.status, 202, "{told}");
    assert_eq!(
        (&told["accepted"], &told["rejected"]),
        (&json!(bad.len()), &json!(bad.len())),
        "{told}"
    );
    assert_eq!(told["errors_omitted"], 0);
    let errors = told["errors"].as_array().expect("errors");
    for (n, (Bad(text, code, field), error)) in bad.iter().zip(errors).enumerate() {
        let text = String::from_utf8_lossy(&text[..text.len().min(100)]);
        assert_eq!(error["index"], json!(2 * n + 1), "{text}: {error}");
        assert_eq!(
            (&error["code"], &error["field"]),
            (&json!(code), &json!(field)),
            "{text}: {error}"
        );
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|message| message.len() > 10),
            "{error}"
        );
    }
    let sql = format!(
        "SELECT count(), sum(u32) FROM telemetry.everything WHERE tenant = 't1' AND startsWith(id, '{prefix}') \
         HAVING count() >= {} FORMAT TSV",
        bad.len()
    );
    let sum = bad.len() * (bad.len() - 1) / 2;
    assert_eq!(
        rows(&sluice.clickhouse(), &sql).await,
        format!("{}\t{sum}", bad.len())
    );
    let none = sluice
        .clickhouse()
        .query("SELECT count() FROM telemetry.everything WHERE id = 'bad'")
        .await;
    assert_eq!(none.as_deref(), Ok("0"));
    bad.iter().map(|bad| bad.1.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_bad_row_is_told_and_costs_no_other_row() {
    let kinds = || {
        presence()
            .into_iter()
            .chain(types())
            .chain(ranges())
            .chain(forms())
            .chain(checks())
            .chain(times())
            .chain(sizes())
    };
    let mut seen = check("application/json", kinds().collect(), "array-").await;
    seen.extend(
        check(
            "application/x-ndjson",
            kinds().chain(lines_only()).collect(),
            "lines-",
        )
        .await,
    );
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../normalizer/src/intake/fault.rs");
    let source = std::fs::read_to_string(source).expect("the faults");
    let codes = source
        .split("fn code(")
        .nth(1)
        .and_then(|rest| rest.split("\n    }").next())
        .expect("codes");
    let known: BTreeSet<String> = codes
        .split("=> \"")
        .skip(1)
        .filter_map(|rest| Some(rest.split('"').next()?.to_owned()))
        .collect();
    assert_eq!(seen, known, "a code of the source was not shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_bad_rows_only_is_422_and_says_so_for_the_first_hundred() {
    let sluice = sluice().await;
    let body = Value::from(vec![json!({}); 250]).to_string();
    let answer = sluice
        .tenant(0)
        .post("/v1/events/everything", body)
        .await
        .expect("an answer");
    let told = answer.json();
    assert_eq!(answer.status, 422, "{told}");
    assert_eq!((&told["accepted"], &told["rejected"]), (&json!(0), &json!(250)));
    assert_eq!(
        (told["errors"].as_array().map(Vec::len), &told["errors_omitted"]),
        (Some(100), &json!(150))
    );
}
