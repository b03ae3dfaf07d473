//! `docs/openapi.yaml` against the routes in the code and against real answers.

use crate::shared::{LIMITED_EVENTS, LIMITED_KEY, sluice};
use http::Method;
use serde_json::Value;
use sluice_tests::client::Answer;
use sluice_tests::{Client, now_ms};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document() -> Value {
    let text = std::fs::read_to_string(root().join("docs/openapi.yaml")).expect("the document");
    serde_saphyr::from_str(&text).expect("YAML")
}

/// `(path, method)` of every operation.
fn operations(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().expect("paths");
    let methods =
        |item: &Value| -> Vec<String> { item.as_object().expect("an item").keys().cloned().collect() };
    paths
        .iter()
        .flat_map(|(path, item)| methods(item).into_iter().map(|method| (path.clone(), method)))
        .filter(|(_, method)| ["get", "post", "put", "delete", "patch"].contains(&method.as_str()))
        .collect()
}

/// What stands in `.route(PATH, method(…))` of a source file; a constant is looked up in the same file.
fn routes(file: &str) -> BTreeSet<(String, String)> {
    let text = std::fs::read_to_string(root().join(file)).expect("a source");
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut found = BTreeSet::new();
    for rest in text.split(".route(").skip(1) {
        let (place, rest) = rest.split_once(',').expect("a path and its method");
        // `get(list).post(add)`, on a line of its own where it is long.
        let line = rest.trim_start().lines().next().unwrap_or_default();
        let place = place.trim();
        let path = match place.strip_prefix('"') {
            Some(literal) => literal.trim_end_matches('"').to_owned(),
            None => {
                let constant = format!("const {place}: &str = \"");
                let value = text.split(&constant).nth(1).expect("the constant");
                value.split('"').next().unwrap_or_default().to_owned()
            }
        };
        let methods = ["get", "post", "put", "delete", "patch"];
        let named = methods.into_iter().filter(|method| {
            line.starts_with(&format!("{method}(")) || line.contains(&format!(").{method}("))
        });
        found.extend(named.map(|method| (path.clone(), method.to_owned())));
    }
    found
}

#[test]
fn the_document_names_every_route_and_no_other() {
    let mut in_code = BTreeSet::new();
    for file in [
        "edge/src/routes.rs",
        "common/src/admin/mod.rs",
        "normalizer/src/admin.rs",
        "normalizer/src/ledger.rs",
        "normalizer/src/dlq/mod.rs",
        "normalizer/src/parked/routes.rs",
        "normalizer/src/replay/routes.rs",
        "common/src/reload.rs",
        "edge/src/handlers/tenants.rs",
    ] {
        in_code.extend(routes(file));
    }
    assert_eq!(operations(&document()), in_code);
}

/// The part of the document that `$ref` leads to.
fn resolve<'d>(document: &'d Value, part: &'d Value) -> &'d Value {
    let Some(reference) = part["$ref"].as_str() else {
        return part;
    };
    let pointer = reference
        .strip_prefix('#')
        .expect("a reference within the document");
    let found = document.pointer(pointer);
    resolve(
        document,
        found.unwrap_or_else(|| panic!("{reference} leads nowhere")),
    )
}

/// Whether a value is what a schema of ours says: types, required and known members, items.
fn check(document: &Value, schema: &Value, value: &Value, place: &str) {
    let schema = resolve(document, schema);
    let is = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("string") => value.is_string(),
        other => panic!("{place}: type {other:?} is not checked here"),
    };
    assert!(is, "{place}: {value} is no {}", schema["type"]);
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().expect("a name");
        assert!(value.get(name).is_some(), "{place}: {name} is missing in {value}");
    }
    for (name, member) in value.as_object().into_iter().flatten() {
        let known = &schema["properties"][name.as_str()];
        assert!(!known.is_null(), "{place}: {name} is not documented");
        check(document, known, member, &format!("{place}.{name}"));
    }
    for item in value.as_array().into_iter().flatten() {
        check(document, &schema["items"], item, &format!("{place}[]"));
    }
}

/// Checks an answer against what the document says of its status.
fn conforms(document: &Value, answer: &Answer) -> u16 {
    let status = answer.status.as_u16();
    let response = &document["paths"]["/v1/events/{dataset}"]["post"]["responses"][status.to_string()];
    assert!(
        !response.is_null(),
        "{status} is not documented: {}",
        answer.text()
    );
    let response = resolve(document, response);
    let declared = response["headers"].as_object().expect("headers");
    for name in declared.keys() {
        let promised = match name.as_str() {
            "Sluice-Outcome" => status == 503,
            // Of a tenant with a quota.
            "RateLimit-Policy" | "RateLimit" => false,
            _ => true,
        };
        assert!(
            !promised || !answer.header(name).is_empty(),
            "{status} without {name}"
        );
    }
    for name in ["RateLimit-Policy", "RateLimit", "Sluice-Outcome", "Retry-After"] {
        let known = answer.header(name).is_empty() || declared.contains_key(name);
        assert!(known, "{status} with {name}, which is not documented");
    }
    let content = response["content"].as_object().expect("content");
    let (media, content) = content.iter().next().expect("one media type");
    assert_eq!(answer.header("content-type"), media, "{status}");
    check(document, &content["schema"], &answer.json(), &status.to_string());
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn real_answers_are_as_the_document_says() {
    let (document, sluice) = (document(), sluice().await);
    let (known, path) = (sluice.tenant(0), "/v1/events/events");
    let good = format!(
        r#"{{"event_id":"openapi","timestamp":{},"service":"s"}}"#,
        now_ms()
    );
    let mixed = format!("[{good},{{}}]");
    let many = "{}\n".repeat(65_537);
    let limited = sluice.edge().with_key(LIMITED_KEY);
    let cases: Vec<(Client, Method, &str, Vec<u8>, u16)> = vec![
        (known.clone(), Method::POST, path, good.clone().into(), 202),
        (known.clone(), Method::POST, path, mixed.into(), 202),
        (known.clone(), Method::POST, path, "{}".into(), 422),
        (known.clone(), Method::POST, path, "[{".into(), 400),
        (sluice.edge(), Method::POST, path, good.clone().into(), 401),
        (limited, Method::POST, path, good.clone().into(), 403),
        (
            known.clone(),
            Method::POST,
            "/v1/events/nothing",
            good.clone().into(),
            404,
        ),
        (known.clone(), Method::DELETE, path, Vec::new(), 405),
        (known.clone(), Method::POST, path, many.into(), 413),
        (
            known.with("content-type", "text/csv"),
            Method::POST,
            path,
            good.into(),
            415,
        ),
    ];
    for (client, method, path, body, expected) in cases {
        let answer = client.send(method, path, body).await.expect("an answer");
        assert_eq!(conforms(&document, &answer), expected, "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_to_a_tenant_with_a_quota_tells_its_limits_as_the_document_says() {
    let (document, sluice) = (document(), sluice().await);
    let limited = sluice.edge().with_key(LIMITED_KEY);
    let too_many = "{\"id\":\"x\"}\n".repeat(LIMITED_EVENTS + 1);
    for (body, expected) in [
        ("{\"id\":\"limits\"}".to_owned(), 202),
        ("{\"id\":1}".to_owned(), 422),
        (too_many, 413),
    ] {
        let answer = limited.post("/v1/events/loose", body).await.expect("an answer");
        assert_eq!(conforms(&document, &answer), expected, "{}", answer.text());
        for (header, part) in [
            ("ratelimit-policy", "\"tenant-events\";q=10000;qu=\"events\";w=10"),
            ("ratelimit", "\"tenant-events\";r="),
        ] {
            assert!(
                answer.header(header).contains(part),
                "{expected}: {:?}",
                answer.headers
            );
        }
    }
}
