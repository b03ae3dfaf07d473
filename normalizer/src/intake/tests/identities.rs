//! Identities: what makes two events the same.

use super::*;
use sluice_common::record::{Identity, RecordMeta};

const KEYED: &str = "{name: events, dedup: {key: [id, n], window: 2h}, fields: [{name: id, type: string, required: true}, \
                     {name: n, type: uint16, required: true}, {name: v, type: nullable(float64)}]}";
const UNKEYED: &str = "{name: events, unknown_fields: m, fields: [{name: v, type: nullable(float64)}, \
                       {name: m, type: \"map(string,string)\"}]}";

fn dataset(dataset: &str) -> Intake {
    intake(&format!("datasets: [{dataset}]"))
}

fn pending(intake: &Intake, body: &str, change: impl FnOnce(&mut IntakeRequest)) -> Pending {
    let mut request = request(BodyFormat::Ndjson, body.to_owned());
    change(&mut request);
    intake
        .parse(&request, NOW_MS, &mut |_| true)
        .expect("taken")
        .pending
        .remove(0)
}

fn meta(pending: &Pending) -> RecordMeta {
    serde_json::from_slice(&pending.template.meta).expect("meta")
}

#[test]
fn the_datasets_key_decides_whatever_the_request_is() {
    let intake = dataset(KEYED);
    let first = pending(&intake, r#"{"id":"a","n":1}"#, |_| {});
    let again = pending(
        &intake,
        "{\"id\":\"b\",\"n\":1}\n{ \"n\":1.0, \"id\":\"\\u0061\", \"v\":3 }",
        |request| {
            request.request = RequestId(99);
            request.idempotency_key = Some("k".into());
        },
    );
    assert_eq!(first.keys[0], again.keys[1]);
    assert_ne!(first.keys[0], again.keys[0]);
    assert!(again.fingerprints.is_empty());
    assert_eq!(
        (meta(&again).identity, meta(&again).window_ms),
        (Identity::Key, 7_200_000)
    );
}

#[test]
fn neighbouring_key_values_do_not_run_together() {
    let yaml = KEYED.replace("uint16", "string");
    let intake = dataset(&yaml);
    let keys = |body: &str| pending(&intake, body, |_| {}).keys;
    assert_ne!(keys(r#"{"id":"ab","n":"c"}"#), keys(r#"{"id":"a","n":"bc"}"#));
    assert_ne!(keys(r#"{"id":"","n":"abc"}"#), keys(r#"{"id":"abc","n":""}"#));
}

#[test]
fn another_tenant_dataset_or_secret_is_another_key() {
    let intake_a = dataset(KEYED);
    let body = r#"{"id":"a","n":1}"#;
    let first = pending(&intake_a, body, |_| {}).keys[0];
    let other = pending(&intake_a, body, |request| {
        request.tenant = TenantId::new("other").expect("valid")
    });
    assert_ne!(first, other.keys[0]);
    let renamed = dataset(&KEYED.replace("name: events", "name: others"));
    assert_ne!(
        first,
        pending(&renamed, body, |request| request.dataset = "others".into()).keys[0]
    );
    let datasets = config(&format!("datasets: [{KEYED}]")).datasets;
    let secret = Intake::new(&datasets, [9; 32]).unwrap_or_else(|problems| panic!("{problems:?}"));
    assert_ne!(first, pending(&secret, body, |_| {}).keys[0]);
}

#[test]
fn a_widened_column_keeps_its_events_identities() {
    let body = r#"{"id":"a","n":1}"#;
    let narrow = pending(&dataset(KEYED), body, |_| {});
    let wide = pending(&dataset(&KEYED.replace("uint16", "int64")), body, |_| {});
    assert_eq!(narrow.keys, wide.keys);
    assert_ne!(meta(&narrow).schema_version, meta(&wide).schema_version);
}

#[test]
fn an_idempotency_key_counts_rejected_rows_and_tells_content_apart() {
    let intake = dataset(UNKEYED);
    let send = |body: &str| {
        pending(&intake, body, |request| {
            request.idempotency_key = Some("order-7".into())
        })
    };
    let first = send("broken\n{\"v\":1,\"a\":\"x\",\"b\":\"y\"}");
    let again = send("{}\n { \"b\":\"y\", \"v\":1.0, \"a\":\"x\" }");
    assert_eq!(
        (first.keys[0], first.fingerprints[0]),
        (again.keys[1], again.fingerprints[1])
    );
    let other = send("{}\n{\"v\":2,\"a\":\"x\",\"b\":\"y\"}");
    assert_eq!(first.keys[0], other.keys[1]);
    assert_ne!(first.fingerprints[0], other.fingerprints[1]);
    assert_eq!(
        (meta(&first).identity, meta(&first).window_ms),
        (Identity::IdempotencyKey, 86_400_000)
    );
}

#[test]
fn without_any_key_the_request_and_the_index_identify_for_a_quarter_hour() {
    let intake = dataset(UNKEYED);
    let first = pending(&intake, "{}\n{}", |_| {});
    assert_eq!(first.keys, pending(&intake, "{\"v\":5}\n{}", |_| {}).keys);
    assert_ne!(first.keys[0], first.keys[1]);
    let other = pending(&intake, "{}\n{}", |request| request.request = RequestId(8));
    assert_ne!(first.keys, other.keys);
    assert!(first.fingerprints.is_empty());
    assert_eq!(
        (meta(&first).identity, meta(&first).window_ms),
        (Identity::Request, 900_000)
    );
}

#[test]
fn the_hashes_are_frozen() {
    let keyed = pending(&dataset(KEYED), r#"{"id":"a","n":1,"v":-0.0}"#, |_| {});
    let unkeyed = dataset(UNKEYED);
    let idempotent = pending(&unkeyed, r#"{"v":1}"#, |request| {
        request.idempotency_key = Some("k".into())
    });
    let plain = pending(&unkeyed, "{}", |_| {});
    let found = (
        keyed.keys[0],
        idempotent.keys[0],
        idempotent.fingerprints[0],
        plain.keys[0],
    );
    assert_eq!(
        found, FROZEN,
        "events of the last window would be taken for new ones"
    );
}

const FROZEN: (u128, u128, u32, u128) = (
    31_793_438_737_448_564_574_270_250_679_534_745_939,
    75_698_504_659_419_491_810_390_417_463_658_047_895,
    1_630_893_983,
    178_667_132_490_204_907_433_267_387_063_574_901_340,
);

#[test]
fn templates_are_made_once_and_the_version_follows_the_schema() {
    let intake = dataset(KEYED);
    let body = r#"{"id":"a","n":1}"#;
    let (a, b) = (pending(&intake, body, |_| {}), pending(&intake, body, |_| {}));
    assert!(std::sync::Arc::ptr_eq(&a.template, &b.template));
    let version = |yaml: &str| dataset(yaml).schema("events", &acme()).expect("there").version();
    assert_eq!(version(KEYED), version(KEYED));
    assert_ne!(version(KEYED), version(&KEYED.replace("float64", "float32")));
    assert_ne!(
        version(KEYED),
        version(&KEYED.replace("name: events", "name: events, table: t"))
    );
}

/// The request of these messages of a partition, by place.
fn messages(intake: &Intake, origin: &str, messages: &[(u32, &str)]) -> Parsed {
    let mut body = Vec::new();
    for (place, value) in messages {
        assert!(sluice_common::wire::messages::push(
            &mut body,
            *place,
            value.as_bytes()
        ));
    }
    let mut request = request(BodyFormat::Messages, body);
    request.idempotency_key = Some(origin.into());
    parse_request(intake, &request).unwrap_or_else(|problem| panic!("{problem:?}"))
}

#[test]
fn a_message_is_identified_by_where_it_lies_however_requests_are_cut() {
    let intake = dataset(UNKEYED);
    let keys = |origin: &str, list: &[(u32, &str)]| messages(&intake, origin, list).pending.remove(0).keys;
    let (one, two) = (r#"{"v":1}"#, r#"{"v":1,"x":2}"#);
    let whole = keys("kafka/0/0/t/i", &[(7, one), (8, one), (10, two)]);
    assert_eq!(whole[0], keys("kafka/0/0/t/i", &[(7, one)])[0]);
    assert_eq!(whole[1..], keys("kafka/0/0/t/i", &[(8, one), (10, two)]));
    let mut all = whole;
    for origin in [
        "kafka/1/0/t/i",
        "kafka/0/1/t/i",
        "kafka/0/0/u/i",
        "kafka/0/0/t/another",
    ] {
        all.extend(keys(origin, &[(7, one), (8, one)]));
    }
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count, "equal contents elsewhere are other events");
    // Where the dataset has a key, it decides.
    let intake = dataset(KEYED);
    let event = r#"{"id":"a","n":1}"#;
    let client = pending(&intake, event, |_| {});
    assert_eq!(
        client.keys[0],
        messages(&intake, "kafka/0/0/t/i", &[(7, event)]).pending[0].keys[0]
    );
}

#[test]
fn a_message_that_is_no_event_is_told_apart_from_its_neighbours_and_leaves_a_copy() {
    let intake = dataset(UNKEYED);
    let high = "kafka/3/1/orders/i";
    let list = [
        (4, r#"{"v":1}"#),
        (5, "{\n"),
        (6, ""),
        (7, " {\"v\":2}\n"),
        (8, "[{\"v\":2}]"),
    ];
    let parsed = messages(&intake, high, &list);
    assert_eq!((parsed.answer.accepted, parsed.answer.rejected), (2, 3));
    let offset = |place: u64| (1_u64 << 32) + place;
    let told: Vec<_> = parsed
        .answer
        .errors
        .iter()
        .map(|one| {
            (
                one.index,
                one.code.as_ref(),
                one.message.split(" (Kafka").nth(1).expect("where").to_owned(),
            )
        })
        .collect();
    let place = |place: u64| format!(" topic orders, partition 3, offset {})", offset(place));
    assert_eq!(
        told,
        [
            (5, "malformed_json", place(5)),
            (6, "malformed_json", place(6)),
            (8, "not_an_object", place(8)),
        ]
    );
    // The dataset does not keep what it rejects: of messages it does, since nobody else is told.
    let copies = parsed.pending.last().expect("copies");
    assert_eq!(rows_of(std::slice::from_ref(copies)).len(), 3);
}
