//! Datasets that treat some tenants otherwise.

use super::*;

const YAML: &str = "datasets: [{name: events, unknown_fields: drop, \
    fields: [{name: n, type: nullable(uint64), unit: {from: KiBy, to: By}}, {name: s, type: string, default: x}], \
    overrides: [{tenants: [strict, stricter], unknown_fields: reject, fields: [{name: n, max: 2048}, \
    {name: s, required: true, max_length: 3}]}, {tenants: [bytes], fields: [{name: n, from: bytes, \
    unit: {from: By, to: By}}]}]}]";

fn send(intake: &Intake, tenant: &str, body: &'static str) -> Parsed {
    let mut request = request(BodyFormat::Ndjson, body);
    request.tenant = TenantId::new(tenant).expect("valid");
    parse_request(intake, &request).expect("parsed")
}

#[test]
fn each_tenant_has_its_own_rules_and_all_have_the_same_columns() {
    let intake = intake(YAML);
    let code = |tenant: &str, body: &'static str| {
        let errors = send(&intake, tenant, body).answer.errors;
        errors.first().map(|error| error.code.to_string())
    };
    for (tenant, body, expected) in [
        ("acme", r#"{"n":3,"more":1}"#, None),
        ("strict", r#"{"n":2,"s":"abc"}"#, None),
        ("strict", r#"{"n":3,"s":"abc"}"#, Some("above_max")),
        ("stricter", r#"{"n":2}"#, Some("missing_field")),
        ("stricter", r#"{"s":"abcd"}"#, Some("too_long")),
        ("stricter", r#"{"s":"a","more":1}"#, Some("unknown_field")),
        ("bytes", r#"{"bytes":3,"n":1}"#, None),
    ] {
        assert_eq!(code(tenant, body).as_deref(), expected, "{tenant} {body}");
    }
    let value = |tenant: &str, body: &'static str| rows_of(&send(&intake, tenant, body).pending)[0].clone();
    assert_eq!(
        value("acme", r#"{"n":3}"#),
        [Some("3072".into()), Some("x".into())]
    );
    assert_eq!(
        value("bytes", r#"{"bytes":3}"#),
        [Some("3".into()), Some("x".into())]
    );
}

#[test]
fn the_record_carries_the_version_of_the_tenants_own_schema() {
    let intake = intake(YAML);
    let version = |tenant: &str| {
        let tenant = TenantId::new(tenant).expect("valid");
        intake.schema("events", &tenant).expect("there").version()
    };
    assert_eq!(version("acme"), version("other"));
    assert_eq!(version("strict"), version("stricter"));
    assert!(version("acme") != version("strict") && version("bytes") != version("strict"));
    let meta = &send(&intake, "strict", r#"{"s":"a"}"#).pending[0].template.meta;
    let meta: serde_json::Value = serde_json::from_slice(meta).expect("json");
    assert_eq!(meta["schema_version"].as_u64(), Some(version("strict")));
}

#[test]
fn a_problem_of_an_override_names_the_tenants_and_one_of_the_dataset_is_told_once() {
    let problems = |yaml: &str| {
        Intake::new(&config(yaml).datasets, SECRET)
            .err()
            .expect("refused")
    };
    let found = problems(&YAML.replace("max: 2048", "min: 2, max: 1"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("`n`") && found[0].contains("overrides for strict, stricter"),
        "{found:?}"
    );
    let found = problems(&YAML.replace("default: x", "default: 7"));
    assert_eq!(found.len(), 1, "{found:?}");
}
