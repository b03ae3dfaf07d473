//! The version of a dataset's schema: a hash of all that decides how an event becomes a row.

use super::schema::member;
use sluice_common::config::{Dataset, Field};

/// Stable over restarts and machines.
#[must_use]
pub fn of(dataset: &Dataset) -> u64 {
    let mut text = format!(
        "1|{}|{}|{:?}|{:?}|{}",
        dataset.name,
        dataset.table(),
        dataset.unknown_fields,
        dataset.dedup,
        dataset.partition_by
    );
    for field in &dataset.fields {
        let default = field.default.as_ref().map(ToString::to_string);
        text.push_str(&format!(
            "|{}|{}|{}|{}|{default:?}|{:?}|{:?}",
            field.name,
            field.field_type,
            field.required,
            member(field),
            field
                .unit
                .as_ref()
                .map(|unit| (&unit.from, &unit.unit_from, &unit.to)),
            field.epoch
        ));
        if let Some(zone) = &field.timezone {
            text.push_str(&format!("|timezone {zone}"));
        }
        text.push_str(&checks_text(field));
    }
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}

/// Empty where there is no check, so that such a schema's version is what it always was.
fn checks_text(field: &Field) -> String {
    let list = |values: &Vec<serde_json::Value>| serde_json::Value::from(values.clone()).to_string();
    let required_if = field.required_if.as_ref();
    let parts = [
        ("min", field.min.as_ref().map(ToString::to_string)),
        ("max", field.max.as_ref().map(ToString::to_string)),
        ("min_length", field.min_length.map(|length| length.0.to_string())),
        ("max_length", field.max_length.map(|length| length.0.to_string())),
        ("pattern", field.pattern.clone()),
        ("values", field.values.as_ref().map(list)),
        (
            "required_if",
            required_if.map(|rule| format!("{} {}", rule.field, list(&rule.is))),
        ),
    ];
    let parts = parts
        .into_iter()
        .filter_map(|(key, text)| Some(format!("|{key}={}", text?)));
    parts.collect()
}
