//! What changes between two configs, key by key, and when it takes effect.
//!
//! Both are compared as they are in force, defaults included: `log:` left out and `log: {dir: log}` are the
//! same. Lists of things with names are compared name by name; secrets are never shown.

use super::Config;
use serde::Serialize;
use serde_json::Value;

/// Keys that take effect at once, with all below them. Every other key is read at start only.
const AT_ONCE: [&str; 10] = [
    "tenants",
    "datasets",
    "dead_letters.topic",
    "dedup.keys_per_tenant",
    "edge.quota_share",
    "kafka.brokers",
    "kafka.compression",
    "kafka.max_message_bytes",
    "kafka.sasl",
    "kafka.tls",
];

/// When a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum When {
    #[serde(rename = "now")]
    Now,
    #[serde(rename = "at restart")]
    AtRestart,
}

/// One key that changes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// `datasets.events.fields.status.type`
    pub key: String,
    /// Null where it is new.
    pub before: Value,
    /// Null where it goes.
    pub after: Value,
    pub when: When,
}

/// All keys that differ, section by section in alphabetical order.
#[must_use]
pub fn changes(before: &Config, after: &Config) -> Vec<Change> {
    let value = |config: &Config| serde_json::to_value(config).unwrap_or_default();
    let mut found = Vec::new();
    compare("", &value(before), &value(after), &mut found);
    found
}

/// The keys among them that wait for a restart.
#[must_use]
pub fn at_restart(changes: &[Change]) -> Vec<String> {
    let waiting = changes.iter().filter(|one| one.when == When::AtRestart);
    waiting.map(|one| one.key.clone()).collect()
}

fn compare(key: &str, before: &Value, after: &Value, found: &mut Vec<Change>) {
    if before == after {
        return;
    }
    if let (Some(old), Some(new)) = (members(before), members(after)) {
        let names = old.iter().chain(&new).map(|(name, _)| *name);
        let mut seen: Vec<&str> = Vec::new();
        for name in names {
            if seen.contains(&name) {
                continue;
            }
            seen.push(name);
            compare(&below(key, name), named(&old, name), named(&new, name), found);
        }
        let order = |list: &[(&str, &Value)]| list.iter().map(|(name, _)| (*name).to_owned()).collect();
        let (old, new): (Vec<String>, Vec<String>) = (order(&old), order(&new));
        if before.is_array()
            && old != new
            && old.len() == new.len()
            && new.iter().all(|name| old.contains(name))
        {
            push(&below(key, "(order)"), old.into(), new.into(), found);
        }
        return;
    }
    push(key, shown(before), shown(after), found);
}

fn push(key: &str, before: Value, after: Value, found: &mut Vec<Change>) {
    let covers = |prefix: &&str| {
        let rest = key.strip_prefix(*prefix);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let when = if AT_ONCE.iter().any(covers) {
        When::Now
    } else {
        When::AtRestart
    };
    found.push(Change {
        key: key.to_owned(),
        before,
        after,
        when,
    });
}

fn below(key: &str, name: &str) -> String {
    if key.is_empty() {
        name.to_owned()
    } else {
        format!("{key}.{name}")
    }
}

/// The members of a map, or of a list whose elements all have a name.
fn members(value: &Value) -> Option<Vec<(&str, &Value)>> {
    match value {
        Value::Object(map) => Some(map.iter().map(|(key, value)| (key.as_str(), value)).collect()),
        Value::Array(list) => {
            let elements = list.iter().map(|one| Some((name_of(one)?, one)));
            elements.collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn name_of(one: &Value) -> Option<&str> {
    one.get("id").or_else(|| one.get("name"))?.as_str()
}

fn named<'a>(list: &[(&str, &'a Value)], name: &str) -> &'a Value {
    let found = list.iter().find(|(own, _)| *own == name);
    found.map_or(&Value::Null, |(_, value)| value)
}

/// A value for a person: hashes of API keys only by their beginning.
fn shown(value: &Value) -> Value {
    match value {
        Value::Array(list) => list.iter().map(shown).collect(),
        Value::Object(map) => {
            let member = |(key, value): (&String, &Value)| match value.as_str() {
                Some(hash) if key == "sha256" => {
                    let start: String = hash.chars().take(8).collect();
                    (key.clone(), format!("{start}…").into())
                }
                _ => (key.clone(), shown(value)),
            };
            Value::Object(map.iter().map(member).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loaded;
    use std::path::Path;

    fn diff(before: &str, after: &str) -> Vec<String> {
        let read = |text: &str| {
            Loaded::parse(text, Path::new("x"), Path::new("/"))
                .expect("valid")
                .config
        };
        let found = changes(&read(before), &read(after));
        let line = |one: &Change| format!("{} {} -> {} {:?}", one.key, one.before, one.after, one.when);
        found.iter().map(line).collect()
    }

    #[test]
    fn what_means_the_same_is_no_change() {
        assert!(diff("{}", crate::config::DEFAULT_YAML).is_empty());
        assert!(
            diff(
                "log: {max_bytes: 1GiB}",
                "log: {max_bytes: 1024MiB, dir: log}\nedge:\n"
            )
            .is_empty()
        );
    }

    #[test]
    fn changes_are_named_and_say_when_they_take_effect() {
        let before = "log: {retain: 1h}\ndedup: {keys_per_tenant: 5}\ndatasets:\n- {name: a, fields: [{name: x, type: string}, {name: y, type: string}]}\n- {name: b, fields: [{name: x, type: string}]}\n";
        let after = "log: {retain: 2h}\ndedup: {keys_per_tenant: 6}\ndatasets:\n- {name: a, fields: [{name: y, type: string}, {name: x, type: uint8}]}\n- {name: c, fields: [{name: x, type: string}]}\n";
        let found = diff(before, after);
        assert_eq!(found[0], "datasets.a.fields.x.type \"string\" -> \"uint8\" Now");
        assert!(found[1].starts_with("datasets.a.fields.(order) "), "{found:?}");
        assert!(
            found[2].starts_with("datasets.b {") && found[2].ends_with(" -> null Now"),
            "{found:?}"
        );
        assert!(found[3].starts_with("datasets.c null -> {"), "{found:?}");
        assert_eq!(found[4], "dedup.keys_per_tenant 5 -> 6 Now");
        assert_eq!(found[5], "log.retain \"1h\" -> \"2h\" AtRestart");
        assert_eq!(found.len(), 6, "{found:?}");
    }

    #[test]
    fn secrets_are_not_shown_and_their_change_is() {
        let hash = |digit: char| {
            format!(
                "tenants: [{{id: t, keys: [{{sha256: \"{}\"}}]}}]",
                String::from(digit).repeat(64)
            )
        };
        let keys = diff(&hash('1'), &hash('2'));
        assert_eq!(keys.len(), 1);
        assert!(!keys[0].contains("11111111111"), "{keys:?}");
        let password = diff(
            "clickhouse: {password: canary1}",
            "clickhouse: {password: canary2}",
        );
        assert!(
            password.len() == 1 && !password[0].contains("canary"),
            "{password:?}"
        );
        assert!(password[0].ends_with("AtRestart"));
    }
}
