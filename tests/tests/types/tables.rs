//! Tables of other types, columns that change theirs, and late events.

use serde_json::{Value, json};
use sluice_tests::{Deployment, Part, eventually, now_ms};
use std::time::Duration;

/// Datasets whose tables are made anew by the tests, and one with times.
pub const DATASETS: &str = r#"  - name: wider
    fields:
      - {name: e, type: "enum('a', 'b')"}
      - {name: fs, type: fixed_string(4)}
      - {name: ip, type: ipv4}
      - {name: d, type: date32}
      - {name: dec, type: "decimal(9, 2)"}
      - {name: doc, type: json}
      - {name: tags, type: array(string)}
      - {name: m, type: "map(string, uint8)"}
  - name: parsed
    fields:
      - {name: u, type: string}
      - {name: ip4, type: string}
      - {name: ip6, type: string}
      - {name: e, type: string}
      - {name: doc, type: string}
      - {name: us, type: array(string)}
  - name: unfit
    fields:
      - {name: u, type: uuid}
  - name: timed
    fields:
      - {name: at, type: datetime, required: true, epoch: s}
    time: {field: at, max_past: 7d}
"#;

async fn make(sluice: &Deployment, table: &str, columns: &str) {
    let clickhouse = sluice.clickhouse();
    for sql in [
        format!("DROP TABLE telemetry.{table} SYNC"),
        format!(
            "CREATE TABLE telemetry.{table} ({columns}, tenant String, ingested_at DateTime64(3, 'UTC'), _src_l UInt64, \
             _src_p UInt16, _src_o UInt64) ENGINE = MergeTree ORDER BY tenant \
             SETTINGS non_replicated_deduplication_window = 10000"
        ),
    ] {
        clickhouse.query(&sql).await.expect("made");
    }
}

async fn send(sluice: &Deployment, dataset: &str, event: &Value) {
    let path = format!("/v1/events/{dataset}");
    let answer = sluice
        .tenant(0)
        .post(&path, event.to_string())
        .await
        .expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.text());
}

async fn row(sluice: &Deployment, sql: &str) -> Value {
    let sql = format!("{sql} {}", super::FORMAT);
    let text = eventually("a row", Duration::from_secs(20), async || {
        let text = sluice.clickhouse().query(&sql).await.ok()?;
        (!text.is_empty()).then_some(text)
    })
    .await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

pub async fn other_types_hold_every_value(sluice: &Deployment) {
    make(
        sluice,
        "wider",
        "e String, fs LowCardinality(String), ip Nullable(String), d Nullable(Date32), dec Decimal(38, 4), doc String, \
         tags Array(LowCardinality(Nullable(String))), m Map(String, Nullable(UInt64))",
    )
    .await;
    let event = json!({"e": "b", "fs": "ab", "ip": "1.2.3.4", "d": "2026-11-21", "dec": "1.25",
        "doc": {"z": null, "a": [1, 2.5]}, "tags": ["x", ""], "m": {"k": 255}});
    send(sluice, "wider", &event).await;
    let expected = json!({"e": "b", "fs": "ab", "ip": "1.2.3.4", "d": "2026-11-21", "dec": "1.25",
        "doc": "{\"a\":[1,2.5],\"z\":null}", "tags": ["x", ""], "m": {"k": "255"}});
    assert_eq!(
        row(
            sluice,
            "SELECT e, fs, ip, d, dec, doc, tags, m FROM telemetry.wider"
        )
        .await,
        expected
    );

    make(
        sluice,
        "parsed",
        "u UUID, ip4 IPv4, ip6 IPv6, e Enum8('x' = 1, 'y' = 2), doc JSON, us Array(UUID)",
    )
    .await;
    let id = "00112233-4455-6677-8899-aabbccddeeff";
    let event = json!({"u": id, "ip4": "1.2.3.4", "ip6": "::1", "e": "y", "doc": "{\"a\":true}", "us": [id]});
    send(sluice, "parsed", &event).await;
    let mut expected = event;
    expected["doc"] = json!({"a": true});
    assert_eq!(
        row(sluice, "SELECT u, ip4, ip6, e, doc, us FROM telemetry.parsed").await,
        expected
    );
}

pub async fn late_events_are_counted(sluice: &Deployment) {
    let now = now_ms() / 1_000;
    for age in [0, 3_500, 3_700, 6 * 86_400] {
        send(sluice, "timed", &json!({"at": now - age})).await;
    }
    let late = sluice.metric(Part::Up, "sluice_late_events_total", "timed").await;
    assert_eq!(late.to_string(), "2");
}
