//! The reference of all keys as a page, made from the JSON Schema and so from the types that read the file:
//! a key that is there is on it, with its default, and what is on it is there.

use super::schema;
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// How the page begins.
const HEAD: &str = "\
# Every key

Made by `ingestctl config reference` from the types that read the file; a test holds it to them. What the keys mean
together, and when a change takes effect: [config.md](config.md). `[]` is a list's every element.
";

/// The page, in Markdown.
#[must_use]
pub fn markdown() -> String {
    let root = schema::json();
    let mut page = HEAD.to_owned();
    section(&root, &root, "", &mut page);
    page
}

/// The keys of one object, then those of the objects in it.
fn section(root: &Value, object: &Value, at: &str, page: &mut String) {
    let Some(keys) = object["properties"].as_object() else {
        return;
    };
    let (inner, plain): (Vec<_>, Vec<_>) = keys.iter().partition(|(_, key)| object_of(root, key).is_some());
    let required = |key: &str| {
        let listed = object["required"].as_array();
        listed.is_some_and(|names| names.iter().any(|name| name == key))
    };
    if !at.is_empty() {
        let _ = write!(page, "\n## `{at}`\n\n{}\n", text(&object["description"]));
    }
    if !plain.is_empty() {
        page.push_str("\n| key | takes | default | |\n|---|---|---|---|\n");
    }
    for (name, key) in plain {
        let default = default_of(key, required(name));
        let _ = writeln!(
            page,
            "| `{name}` | {} | {default} | {} |",
            takes(root, key),
            text(&key["description"])
        );
    }
    for (name, key) in inner {
        let Some((mark, object)) = object_of(root, key) else {
            continue;
        };
        let dot = if at.is_empty() { "" } else { "." };
        // What the key means says more than what its type is.
        let mut object = object.clone();
        if let Some(description) = key.get("description") {
            object["description"] = description.clone();
        }
        section(root, &object, &format!("{at}{dot}{name}{mark}"), page);
    }
}

/// The object that a key holds, and how it stands there: itself, as elements of a list, under names.
fn object_of<'a>(root: &'a Value, key: &'a Value) -> Option<(&'static str, &'a Value)> {
    let alternatives = key["anyOf"].as_array().into_iter().flatten();
    for one in std::iter::once(key).chain(alternatives) {
        let named = one["patternProperties"].as_object();
        let named = named.and_then(|patterns| patterns.values().next());
        for (mark, held) in [
            ("", Some(one)),
            ("[]", one.get("items")),
            (".NAME", one.get("additionalProperties")),
            (".NAME", named),
        ] {
            let Some(held) = held else { continue };
            let held = resolved(root, held);
            if held["properties"].is_object() {
                return Some((mark, held));
            }
        }
    }
    None
}

fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(name) => &root["$defs"][name.trim_start_matches("#/$defs/")],
        None => schema,
    }
}

/// What may stand there, in words.
fn takes(root: &Value, key: &Value) -> String {
    let key = match key["anyOf"].as_array() {
        Some(any) => any.iter().find(|one| one["type"] != "null").unwrap_or(key),
        None => key,
    };
    let key = resolved(root, key);
    if key["items"].is_object() {
        return format!("list of: {}", takes(root, &key["items"]));
    }
    if let Some(choices) = choices(key) {
        return choices;
    }
    let word = match key["title"].as_str() {
        Some(title) => title.to_owned(),
        None => types(key),
    };
    let bounds = match (key["minimum"].as_i64(), key["maximum"].as_i64()) {
        (Some(least), Some(most)) => format!(", {least} to {most}"),
        (Some(_) | None, None) | (None, Some(_)) => String::new(),
    };
    let examples = key["examples"].as_array().into_iter().flatten();
    let examples: Vec<String> = examples.map(code).collect();
    match examples.as_slice() {
        [] => word + &bounds,
        some => format!("{word}{bounds}: {}", some.join(", ")),
    }
}

/// The values of a key that has few.
fn choices(key: &Value) -> Option<String> {
    let listed = key["enum"].as_array().into_iter().flatten().map(code);
    let variants = key["oneOf"].as_array().into_iter().flatten();
    let all: Vec<String> = listed.chain(variants.filter_map(variant)).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// One of several forms: a word, or a map of one key.
fn variant(one: &Value) -> Option<String> {
    let key = |keys: &Map<String, Value>| keys.keys().next().map(|key| format!("`{{{key}: …}}`"));
    let word = one.get("const").map(code);
    word.or_else(|| one["properties"].as_object().and_then(key))
}

/// The words of JSON Schema's types.
const TYPES: [(&str, &str); 6] = [
    ("string", "text"),
    ("integer", "whole number"),
    ("number", "number"),
    ("boolean", "`true`, `false`"),
    ("object", "map"),
    ("array", "list"),
];

fn types(key: &Value) -> String {
    let types = &key["type"];
    let is = |name: &str| {
        let several = types.as_array();
        several.map_or(types == name, |several| several.iter().any(|one| one == name))
    };
    let known = TYPES.iter().filter(|(name, _)| is(name));
    let words: Vec<&str> = known.map(|(_, word)| *word).collect();
    if words.is_empty() {
        "any value".to_owned()
    } else {
        words.join(" or ")
    }
}

fn default_of(key: &Value, required: bool) -> String {
    match key.get("default") {
        _ if required => "required".to_owned(),
        None | Some(Value::Null) => "none".to_owned(),
        Some(Value::Array(list)) if list.is_empty() => "none".to_owned(),
        Some(Value::Object(map)) if Map::is_empty(map) => "none".to_owned(),
        Some(value) => code(value),
    }
}

fn code(value: &Value) -> String {
    match value {
        Value::String(text) => format!("`{text}`"),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            format!("`{value}`")
        }
    }
}

/// A description on one line of a table.
fn text(description: &Value) -> String {
    let text = description.as_str().unwrap_or_default();
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::markdown;

    #[test]
    fn the_page_in_the_docs_is_the_one_that_the_types_make() {
        let page = include_str!("../../../docs/config-keys.md");
        assert!(
            page == markdown(),
            "docs/config-keys.md is old: `ingestctl config reference > docs/config-keys.md`"
        );
    }

    #[test]
    fn a_key_stands_with_what_it_takes_and_its_default() {
        let page = markdown();
        for line in [
            "| `max_bytes` | size: `64MiB` | `8GiB` | What is not yet stored may take so much; over it clients get 503. |",
            "| `kind` | `embedded`, `kafka` | `embedded` | Which log there is. |",
            "## `datasets[].fields[]`",
            "| `id` | tenant id | required | In the column `tenant` of every row. |",
        ] {
            assert!(page.contains(line), "{line}");
        }
    }
}
