//! A dataset with columns of many types, and requests to it.

use bytes::Bytes;
use sluice_common::config::{Loaded, Weight};
use sluice_common::ids::{LogId, RequestId, TenantId};
use sluice_common::record::{Placement, Record};
use sluice_common::trace::TraceContext;
use sluice_common::wire::intake::{BodyFormat, IntakeRequest};
use sluice_normalizer::intake::{Intake, build_records};
use std::path::Path;
use std::time::Duration;

/// 2026-11-21T03:30:30Z.
pub const NOW_MS: u64 = 1_795_231_830_000;

const YAML: &str = "datasets:
- name: events
  fields:
  - {name: s, type: nullable(string), max_length: 100}
  - {name: l, type: nullable(low_cardinality(string))}
  - {name: b, type: nullable(bool)}
  - {name: i, type: nullable(int64)}
  - {name: u, type: nullable(uint64)}
  - {name: small, type: nullable(int8)}
  - {name: f, type: nullable(float64)}
  - {name: t, type: nullable(datetime64(6)), epoch: us}
  - {name: dec, type: \"nullable(decimal(12,3))\"}
  - {name: day, type: nullable(date)}
  - {name: uuid, type: nullable(uuid)}
  - {name: ip, type: nullable(ipv6)}
  - {name: enum, type: \"nullable(enum(a,'b c'))\"}
  - {name: fix, type: nullable(fixed_string(4))}
  - {name: list, type: array(nullable(int16))}
  - {name: map, type: \"map(string,uint8)\"}
  - {name: json, type: json}
  - {name: ms, type: nullable(float64), unit: {from: us, to: ms}}
";

/// The intake of that dataset.
pub fn intake() -> Intake {
    let loaded = Loaded::parse(YAML, Path::new("fuzz.yaml"), Path::new("/nowhere"));
    let config = loaded.unwrap_or_else(|error| panic!("{error}")).config;
    Intake::new(&config.datasets, [7; 32]).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// A request with this body.
pub fn request(format: BodyFormat, body: impl Into<Bytes>) -> IntakeRequest {
    IntakeRequest {
        tenant: TenantId::new("acme").expect("valid"),
        weight: Weight::default(),
        dataset: "events".into(),
        request: RequestId(7),
        idempotency_key: None,
        format,
        body: body.into(),
        timeout: Duration::from_secs(1),
        trace: TraceContext::default(),
    }
}

/// A sound record of two rows, one with this text, in the log with id 1 at offset 0.
pub fn frame(text: &str) -> Vec<u8> {
    let body = format!(
        r#"[{{"s":"x","l":"{text}","i":-1,"t":1795231830000000,"list":[1,null],"map":{{"k":1}},"json":{{"a":1}}}},{{"s":null}}]"#
    );
    let parsed = intake().parse(&request(BodyFormat::Json, body), NOW_MS, &mut |_| true);
    let pending = parsed.expect("a sound request").pending;
    let mut frame = Vec::new();
    for (content, _) in build_records(pending).expect("a sound group") {
        let place = Placement {
            log: LogId(1),
            offset: 0,
            append_ms: NOW_MS,
            durable_below: 0,
        };
        content.write(place, &mut frame);
    }
    Record::read(&Bytes::copy_from_slice(&frame)).expect("a sound record");
    frame
}
