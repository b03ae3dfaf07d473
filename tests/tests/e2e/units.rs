//! Units, checks and overrides through a whole deployment, as ClickHouse returns what was stored.

use serde_json::{Value, json};
use sluice_tests::{Answer, Deployment, Part, Shape, eventually};
use std::fmt::Write as _;
use std::time::Duration;

/// From, to, numbers sent, and what the column must hold.
type Case = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

/// Into columns of 64 bits.
const WHOLE: &[Case] = &[
    (
        "KiBy",
        "By",
        &[
            ("0", "0"),
            ("1", "1024"),
            ("-9007199254740992", "-9223372036854775808"),
        ],
    ),
    (
        "By",
        "KiBy",
        &[
            ("511", "0"),
            ("512", "1"),
            ("-512", "-1"),
            ("9223372036854775807", "9007199254740992"),
        ],
    ),
    ("bit", "By", &[("3", "0"), ("4", "1")]),
    ("ms", "ns", &[("9223372036854", "9223372036854000000")]),
    ("ns", "s", &[("1499999999", "1"), ("1500000000", "2")]),
    ("1", "%", &[("1", "100"), ("0.005", "1"), ("0.0049", "0")]),
    ("Cel", "K", &[("0", "273"), ("-273", "0")]),
    ("[degF]", "Cel", &[("212", "100"), ("-40", "-40")]),
    ("kHz", "Hz", &[("44.1", "44100")]),
    ("MBy/min", "By/s", &[("6", "100000")]),
    ("{requests}/s", "{requests}/h", &[("2", "7200")]),
    ("kW.h", "J", &[("1", "3600000")]),
];
const FLOAT: &[Case] = &[
    ("us", "ms", &[("1500", "1.5")]),
    ("%", "1", &[("12.5", "0.125")]),
    ("Cel", "K", &[("0", "273.15")]),
    ("By/s", "Mbit/s", &[("125000", "1")]),
];

fn datasets() -> String {
    let mut fields = String::new();
    for (kind, cases) in [("int64", WHOLE), ("float64", FLOAT)] {
        for (at, (from, to, _)) in cases.iter().enumerate() {
            let _ = writeln!(
                fields,
                "      - {{name: {kind}_{at}, type: nullable({kind}), unit: {{from: '{from}', to: '{to}'}}}}"
            );
        }
    }
    format!(
        "\ndatasets:\n  - name: units\n    fields:\n      - {{name: id, type: string, required: true}}\n{fields}{REST}"
    )
}

const REST: &str = r#"
  - name: named
    fields:
      - {name: id, type: string, required: true, pattern: '^[a-z]+$'}
      - {name: size, type: nullable(uint64), unit: {unit_from: unit, to: By}, max: 4096}
      - {name: level, type: low_cardinality(string), default: info, values: [info, error]}
      - {name: why, type: nullable(string), required_if: {field: level, is: [error]}}
    overrides:
      - {tenants: [t1], unknown_fields: drop, fields: [{name: size, from: bytes, unit: {from: By, to: By}}]}
"#;

async fn post(deployment: &Deployment, tenant: usize, dataset: &str, events: &[Value]) -> Answer {
    let body: Vec<String> = events.iter().map(Value::to_string).collect();
    let path = format!("/v1/events/{dataset}");
    let client = deployment
        .tenant(tenant)
        .with("Content-Type", "application/x-ndjson");
    client.post(&path, body.join("\n")).await.expect("an answer")
}

async fn shows(deployment: &Deployment, sql: &str, expected: &str) {
    let mut last = String::new();
    eventually(sql, Duration::from_secs(30), async || {
        last = deployment.clickhouse().query(sql).await.ok()?;
        (last.lines().count() == expected.lines().count()).then_some(())
    })
    .await;
    assert_eq!(last, expected, "{sql}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clickhouse_returns_is_the_converted_value_at_every_boundary() {
    let deployment = Deployment::start_with(Shape::AllInOne, &datasets()).await;
    let (mut events, mut expected) = (Vec::new(), Vec::new());
    for (kind, cases) in [("int64", WHOLE), ("float64", FLOAT)] {
        for (at, (_, _, values)) in cases.iter().enumerate() {
            for (sent, stored) in *values {
                let id = format!("{kind}_{at} {sent}");
                let number: serde_json::Number = sent.parse().expect("a number");
                events.push(json!({"id": &id, format!("{kind}_{at}"): number}));
                expected.push(format!("{id}\t{stored}"));
            }
        }
    }
    let answer = post(&deployment, 0, "units", &events).await;
    assert_eq!(answer.json()["rejected"], 0, "{}", answer.text());
    let columns: Vec<String> = (0..WHOLE.len())
        .map(|at| format!("toString(int64_{at})"))
        .chain((0..FLOAT.len()).map(|at| format!("toString(float64_{at})")))
        .collect();
    let sql = format!(
        "SELECT id, coalesce({}) FROM telemetry.units ORDER BY id FORMAT TSV",
        columns.join(", ")
    );
    expected.sort();
    shows(&deployment, &sql, &expected.join("\n")).await;
    let counted = deployment
        .metric(Part::Up, "sluice_unit_conversions_total", "field=\"int64_0\"")
        .await;
    assert_eq!(counted, 3.0);
    let too_large = post(
        &deployment,
        0,
        "units",
        &[json!({"id": "x", "int64_0": 9_007_199_254_740_992_i64})],
    )
    .await;
    assert_eq!(too_large.json()["errors"][0]["code"], "out_of_range");
}

#[tokio::test(flavor = "multi_thread")]
async fn units_in_events_checks_and_overrides_decide_row_by_row() {
    let deployment = Deployment::start_with(Shape::AllInOne, &datasets()).await;
    let events = [
        json!({"id": "a", "size": 4, "unit": "KiBy"}),
        json!({"id": "b", "unit": "bit", "size": 12, "level": "error", "why": "w"}),
        json!({"id": "c", "size": 4}),
        json!({"id": "d", "size": 4, "unit": "s"}),
        json!({"id": "e", "size": 5, "unit": "KiBy"}),
        json!({"id": "F"}),
        json!({"id": "g", "level": "debug"}),
        json!({"id": "h", "level": "error"}),
        json!({"id": "i", "bytes": 4}),
    ];
    let codes = |answer: &Answer| -> Vec<String> {
        let answer = answer.json();
        let errors = answer["errors"].as_array().expect("errors").clone();
        errors
            .iter()
            .map(|error| format!("{} {}", error["index"], error["code"].as_str().expect("a code")))
            .collect()
    };
    let answer = post(&deployment, 0, "named", &events).await;
    assert_eq!(
        codes(&answer),
        [
            "2 missing_unit",
            "3 unknown_unit",
            "4 above_max",
            "5 pattern_mismatch",
            "6 value_not_allowed",
            "7 missing_field",
            "8 unknown_field"
        ]
    );
    let own = [
        json!({"id": "own", "bytes": 4096, "more": 1}),
        json!({"id": "own", "bytes": 4097}),
    ];
    assert_eq!(codes(&post(&deployment, 1, "named", &own).await), ["1 above_max"]);
    let sql = "SELECT tenant, id, size, level, why FROM telemetry.named ORDER BY id FORMAT TSV";
    shows(
        &deployment,
        sql,
        "t0\ta\t4096\tinfo\t\\N\nt0\tb\t2\terror\tw\nt1\town\t4096\tinfo\t\\N",
    )
    .await;
    let dropped = deployment
        .metric(Part::Up, "sluice_dropped_fields_total", "dataset=\"named\"")
        .await;
    assert_eq!(dropped, 1.0);
}
