//! Values of every type, from JSON to ClickHouse and back.

use crate::shared::{rows, sluice};
use serde_json::{Value, json};
use sluice_tests::now_ms;

const TEXT: &str = "\"quoted\" \\ 'single' \n\t\u{0} \u{1f} ü 漢字 😀 \u{2028} \u{10ffff}";

/// An event, and the row that it becomes; integers of 64 bits as text, as ClickHouse writes them.
type Case = (Value, Value);

fn least() -> Case {
    let event = json!({
        "s": "", "lc": "", "b": false,
        "i8": i8::MIN, "i16": i16::MIN, "i32": i32::MIN, "i64": i64::MIN,
        "u8": 0, "u16": 0, "u32": 0, "u64": 0,
        "f32": f64::from(f32::MIN), "f64": f64::MIN,
        "dt": 0, "d0": "1900-01-01T00:00:00Z", "d3": -1, "d6": 1, "d9": -1, "m": {},
        "n_s": "", "n_lc": "", "n_b": false, "n_i64": i64::MIN, "n_u8": 0, "n_f64": 5e-324,
        "n_dt": "1970-01-01T00:00:00Z", "n_d3": "1969-12-31T23:59:59.999Z",
        "def_s": "", "def_u": 0, "def_b": false, "def_m": {"other": "x"},
        "the.old-Name": "", "size_kib": 0, "took_ms": 0,
    });
    let mut row = event.clone();
    let found = row.as_object_mut().expect("an object");
    for name in ["i64", "n_i64"] {
        found.insert(name.into(), json!(i64::MIN.to_string()));
    }
    found.insert("u64".into(), json!("0"));
    for (name, time) in [
        ("dt", "1970-01-01 00:00:00"),
        ("d0", "1900-01-01 00:00:00"),
        ("d3", "1969-12-31 23:59:59.999"),
        ("d6", "1970-01-01 00:00:00.000001"),
        ("d9", "1969-12-31 23:59:59.999999999"),
        ("n_dt", "1970-01-01 00:00:00"),
        ("n_d3", "1969-12-31 23:59:59.999"),
    ] {
        found.insert(name.into(), json!(time));
    }
    rename(found, "", json!("0"), json!(0));
    (event, row)
}

fn most() -> Case {
    let event = json!({
        "s": TEXT, "lc": TEXT, "b": true,
        "i8": i8::MAX, "i16": i16::MAX, "i32": i32::MAX, "i64": i64::MAX,
        "u8": u8::MAX, "u16": u16::MAX, "u32": u32::MAX, "u64": u64::MAX,
        "f32": f64::from(f32::MAX), "f64": f64::MAX,
        "dt": u32::MAX, "d0": "2299-12-31T23:59:59Z", "d3": "2026-11-21T03:30:30.123456789+01:00",
        "d6": "2026-11-21t03:30:30.123456z", "d9": "2262-04-11T23:47:14.999999999Z",
        "m": {"a": TEXT, "n": 1.5, "o": {"deep": [1, null]}, "t": true, "gone": null},
        "n_s": TEXT, "n_lc": TEXT, "n_b": true, "n_i64": i64::MAX.to_string(), "n_u8": 2.55e2,
        "n_f64": -0.1, "n_dt": "2106-02-07T06:28:15Z", "n_d3": "2299-12-31T23:59:59.999Z",
        "def_s": "sent", "def_u": u32::MAX, "def_b": true, "def_m": {},
        "the.old-Name": TEXT, "size_kib": 1.5, "took_ms": 1500,
    });
    let mut row = event.clone();
    let found = row.as_object_mut().expect("an object");
    for (name, value) in [
        ("i64", json!(i64::MAX.to_string())),
        ("n_i64", json!(i64::MAX.to_string())),
        ("u64", json!(u64::MAX.to_string())),
        ("n_u8", json!(255)),
        ("dt", json!("2106-02-07 06:28:15")),
        ("d0", json!("2299-12-31 23:59:59")),
        ("d3", json!("2026-11-21 02:30:30.123")),
        ("d6", json!("2026-11-21 03:30:30.123456")),
        ("d9", json!("2262-04-11 23:47:14.999999999")),
        ("n_dt", json!("2106-02-07 06:28:15")),
        ("n_d3", json!("2299-12-31 23:59:59.999")),
        (
            "m",
            json!({"a": TEXT, "n": "1.5", "o": "{\"deep\":[1,null]}", "t": "true"}),
        ),
    ] {
        found.insert(name.into(), value);
    }
    rename(found, TEXT, json!("1536"), json!(1.5));
    (event, row)
}

/// What is not sent is the default, else null, else the type's zero; null of a nullable stays null.
fn absent() -> Case {
    let event = json!({"n_s": null, "n_i64": null, "size_kib": null});
    let row = json!({
        "s": "", "lc": "", "b": false, "i8": 0, "i16": 0, "i32": 0, "i64": "0", "u8": 0, "u16": 0, "u32": 0,
        "u64": "0", "f32": 0, "f64": 0, "dt": "1970-01-01 00:00:00", "d0": "1970-01-01 00:00:00",
        "d3": "1970-01-01 00:00:00.000", "d6": "1970-01-01 00:00:00.000000",
        "d9": "1970-01-01 00:00:00.000000000", "m": {},
        "n_s": null, "n_lc": null, "n_b": null, "n_i64": null, "n_u8": null, "n_f64": null, "n_dt": null,
        "n_d3": null, "def_s": "as default", "def_u": 7, "def_b": true, "def_m": {"k": "v"}, "renamed": "",
        "size": null, "took_s": null,
    });
    (event, row)
}

fn rename(row: &mut serde_json::Map<String, Value>, renamed: &str, size: Value, took: Value) {
    for name in ["the.old-Name", "size_kib", "took_ms"] {
        row.remove(name);
    }
    row.insert("renamed".into(), json!(renamed));
    row.insert("size".into(), size);
    row.insert("took_s".into(), took);
}

/// Columns of fields that stand there to refuse; their values have a test of their own (`types`).
const REFUSING: &str = "dec, day, uid, ip, en, fs, limited, texted, listed, sized";

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_type_come_back_as_they_were_sent() {
    let sluice = sluice().await;
    let at = now_ms() / 1000;
    let cases = [("least", least()), ("most", most()), ("absent", absent())];
    let mut events = Vec::new();
    for (name, (event, _)) in &cases {
        let mut event = event.clone();
        event["id"] = json!(name);
        event["at"] = json!(rfc3339(at));
        events.push(event);
    }
    let answer = sluice
        .tenant(0)
        .post("/v1/events/everything", Value::from(events).to_string())
        .await;
    let answer = answer.expect("an answer");
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["rejected"]),
        (202, &json!(0)),
        "{}",
        answer.text()
    );
    let clickhouse = sluice.clickhouse();
    for (name, (_, expected)) in cases {
        let sql = format!(
            "SELECT * EXCEPT (ingested_at, _src_l, _src_p, _src_o) EXCEPT ({REFUSING}) FROM telemetry.everything \
             WHERE tenant = 't0' AND id = '{name}' \
             SETTINGS output_format_json_quote_64bit_integers = 1 FORMAT JSONEachRow"
        );
        let row: Value = serde_json::from_str(&rows(&clickhouse, &sql).await).expect("one row");
        assert_eq!(row["tenant"], "t0");
        assert_eq!(row["at"], rfc3339(at).replace('T', " ").replace('Z', ".000"));
        for (column, value) in expected.as_object().expect("an object") {
            assert!(
                same(&row[column], value),
                "{name}.{column}: {} is not {value}",
                row[column]
            );
        }
        assert_eq!(
            row.as_object().expect("an object").len(),
            expected.as_object().map_or(0, |row| row.len() + 3)
        );
    }
}

/// Numbers by value: 0 and 0.0 are one, and a 32-bit float is printed shorter than a double.
fn same(found: &Value, sent: &Value) -> bool {
    match (found.as_f64(), sent.as_f64()) {
        (Some(found), Some(sent)) => {
            found == sent || found as f32 == sent as f32 && sent.abs() > 3.4e38 && sent.abs() < 3.5e38
        }
        _ => found == sent,
    }
}

/// Whole seconds since 1970 as RFC 3339.
pub fn rfc3339(seconds: u64) -> String {
    let days = i64::try_from(seconds / 86_400).expect("in range") + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let of_year_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * of_year_era + of_year_era / 4 - of_year_era / 100);
    let month = (5 * of_year + 2) / 153;
    let (day, month) = (
        of_year - (153 * month + 2) / 5 + 1,
        if month < 10 { month + 3 } else { month - 9 },
    );
    let year = of_year_era + era * 400 + i64::from(month <= 2);
    let of_day = seconds % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60
    )
}
