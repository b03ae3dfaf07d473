//! What a person must know of a change of the config, beyond its key.

use serde::Serialize;
use serde_json::Value;
use sluice_common::config::diff::{Change, When};
use sluice_common::config::{Config, Dataset};

/// A change and what comes of it.
#[derive(Debug, Serialize)]
pub(super) struct Judged {
    #[serde(flatten)]
    pub change: Change,
    pub consequence: Option<String>,
}

/// Adds to each change what comes of it.
pub(super) fn judge(changes: Vec<Change>, before: &Config, after: &Config) -> Vec<Judged> {
    let judged = changes.into_iter().map(|change| Judged {
        consequence: consequence(&change, before, after),
        change,
    });
    judged.collect()
}

fn consequence(change: &Change, before: &Config, after: &Config) -> Option<String> {
    if change.when == When::AtRestart {
        return Some(format!("{}: takes effect at the next start", change.key));
    }
    let mut steps = change.key.splitn(3, '.');
    match (steps.next()?, steps.next(), steps.next()) {
        ("tenants", Some(id), rest) => tenant(id, rest, change),
        ("datasets", Some(name), rest) => {
            dataset(name, rest, change, (before.dataset(name), after.dataset(name)))
        }
        (_, _, _) => None,
    }
}

fn tenant(id: &str, rest: Option<&str>, change: &Change) -> Option<String> {
    match rest {
        None if change.after == Value::Null => Some(format!(
            "tenant {id} goes: its requests are answered 401; its rows stay"
        )),
        Some("keys") => Some(format!(
            "tenant {id}: keys that are no longer listed are answered 401 at once"
        )),
        None | Some(_) => None,
    }
}

type Pair<'a> = (Option<&'a Dataset>, Option<&'a Dataset>);

fn dataset(name: &str, rest: Option<&str>, change: &Change, pair: Pair<'_>) -> Option<String> {
    let Some(rest) = rest else {
        return (change.after == Value::Null).then(|| {
            format!("dataset {name} goes: its requests are answered 404; what is in the log is still written, its table stays")
        });
    };
    let steps: Vec<&str> = rest.split('.').collect();
    match steps.as_slice() {
        ["dedup", ..] => Some(format!(
            "dataset {name}: retries across a change of its dedup may be stored twice"
        )),
        ["table"] => Some(format!(
            "dataset {name}: what is in the log still goes to {}; a table that is missing is created",
            pair.0.map_or("?", |one| one.table().as_str())
        )),
        ["partition_by" | "order_by", ..] => Some(format!(
            "dataset {name}: a table that is there keeps its own {}; to change it, make a new table",
            steps[0]
        )),
        ["fields", field, more @ ..] => self::field(name, field, more, change, pair),
        _ => None,
    }
}

fn field(name: &str, field: &str, more: &[&str], change: &Change, pair: Pair<'_>) -> Option<String> {
    let is_key = |one: Option<&Dataset>| {
        let dedup = one.and_then(|one| one.dedup.as_ref());
        dedup.is_some_and(|dedup| dedup.key.iter().any(|key| key.as_str() == field))
    };
    if is_key(pair.0) || is_key(pair.1) {
        return Some(format!(
            "dataset {name}: {field} is part of its dedup key; retries across the change may be stored twice"
        ));
    }
    match (more, change.after == Value::Null) {
        ([], true) => Some(format!(
            "dataset {name}: column {field} stays in the table and gets its default from now on"
        )),
        (["type"], _) => Some(format!(
            "dataset {name}: until column {field} is altered, rows that do not fit its type are not written"
        )),
        (_, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_common::config::Loaded;
    use sluice_common::config::diff::changes;
    use std::path::Path;

    fn told(before: &str, after: &str) -> Vec<String> {
        let read = |text: &str| {
            Loaded::parse(text, Path::new("x"), Path::new("/"))
                .expect("valid")
                .config
        };
        let (before, after) = (read(before), read(after));
        let judged = judge(changes(&before, &after), &before, &after);
        judged.into_iter().filter_map(|one| one.consequence).collect()
    }

    #[test]
    fn what_a_person_must_know_is_said() {
        let before = "datasets: [{name: a, fields: [{name: k, type: string, required: true}, {name: x, type: string}, {name: y, type: uint8}], \
                      dedup: {key: [k]}}, {name: b, fields: [{name: k, type: string}]}]\ntenants: [{id: t, keys: []}]";
        for (from, to, part) in [
            (
                "dedup: {key: [k]}",
                "dedup: {key: [k], window: 1h}",
                "stored twice",
            ),
            ("name: a, ", "name: a, table: c, ", "still goes to a"),
            (
                "{name: k, type: string, required: true}",
                "{name: k, type: uint8, required: true}",
                "dedup key",
            ),
            (", {name: x, type: string}", "", "stays in the table"),
            ("type: uint8", "type: uint16", "until column y is altered"),
            (
                ", {name: b, fields: [{name: k, type: string}]}",
                "",
                "answered 404",
            ),
            ("[{id: t, keys: []}]", "[]", "answered 401"),
        ] {
            let told = told(before, &before.replace(from, to));
            assert!(told.len() == 1 && told[0].contains(part), "{part}: {told:?}");
        }
        assert!(told(before, &format!("{before}\nlog: {{retain: 1h}}"))[0].contains("next start"));
    }
}
