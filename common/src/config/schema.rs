//! The published JSON Schema, and how values of our own types are written back: both for people and
//! their editors, derived from the types that read the file.
//!
//! Keys and their descriptions come from the fields and their doc comments; here stands what the types
//! of single values are. Texts may also be references, `${NAME}`, so a pattern admits these.

use super::{
    Beginning, ByteSize, Config, Count, Expiry, FieldType, PartitionBy, Period, Share, Text, UnknownFields,
    Weight, Zone, quantity,
};
use crate::ids::{Name, TenantId};
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde::ser::{Serialize, Serializer};
use std::borrow::Cow;

/// The whole file's JSON Schema (draft 2020-12).
#[must_use]
pub fn json() -> serde_json::Value {
    let settings = SchemaSettings::draft2020_12();
    let mut schema = settings.into_generator().into_root_schema_for::<Config>();
    schema.insert("title".to_owned(), "Sluice".into());
    schema.to_value()
}

macro_rules! texts {
    ($($type:ty, $name:literal, $schema:tt;)*) => {$(
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

texts! {
    ByteSize, "ByteSize", {"title": "size", "type": ["string", "integer"], "pattern": "^[0-9]+ *(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)?$|\\$\\{", "minimum": 0, "examples": ["64MiB"]};
    Count, "Count", {"title": "count", "type": ["string", "integer"], "pattern": "^[0-9]+ *(k|M|G)?$|\\$\\{", "minimum": 0, "examples": ["100000", "1G"]};
    Period, "Period", {"title": "period", "type": "string", "pattern": "^[0-9]+ *(ms|s|m|h|d)$|\\$\\{", "examples": ["500ms", "24h", "7d"]};
    Share, "Share", {"title": "share", "type": ["string", "integer"], "pattern": "^ *[0-9]+ *%?$|\\$\\{", "minimum": 1, "maximum": 100, "examples": ["50%"]};
    Expiry, "Expiry", {"title": "time", "type": "string", "format": "date-time", "examples": ["2026-11-21T07:00:00Z"]};
    Beginning, "Beginning", {"title": "`earliest`, `latest` or a time", "type": "string", "examples": ["earliest", "latest", "2026-11-21T07:00:00Z"]};
    Name, "Name", {"title": "name", "type": "string", "pattern": "^[a-z_][a-z0-9_]{0,62}$|\\$\\{"};
    TenantId, "TenantId", {"title": "tenant id", "type": "string", "pattern": "^[a-z0-9][a-z0-9_-]{0,62}$|\\$\\{"};
    Weight, "Weight", {"title": "weight", "type": "integer", "minimum": 1, "maximum": 1000};
    Zone, "Zone", {"title": "time zone", "type": "string", "examples": ["Europe/Berlin"]};
    Text, "Text", {"title": "text", "type": "string", "examples": ["${NAME}", "file:PATH"]};
    FieldType, "FieldType", {"title": "type", "type": "string", "pattern": "^[A-Za-z0-9_]+ *(\\(.*\\))?$|\\$\\{", "examples": ["string", "nullable(uint16)", "datetime64(3)"]};
    PartitionBy, "PartitionBy", {"title": "partition", "type": "string", "pattern": "^(none|(toDate|toMonday|toYYYYMM|toStartOfHour)\\( *[a-z_][a-z0-9_]* *\\))$|\\$\\{"};
    UnknownFields, "UnknownFields", {"title": "`reject`, `drop` or a field", "type": "string", "pattern": "^[a-z_][a-z0-9_]{0,62}$|\\$\\{", "examples": ["reject", "drop"]};
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&quantity::written(self.0, quantity::SIZES))
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&quantity::written(self.ms(), quantity::PERIODS))
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for FieldType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Expiry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Beginning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Zone {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for PartitionBy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::Date(_) | Self::Monday(_) | Self::Month(_) | Self::Hour(_) => serializer.collect_str(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::json;
    use crate::config::{DEFAULT_YAML, Loaded};
    use serde_json::Value;
    use std::collections::BTreeSet;
    use std::path::Path;

    /// Every key of the schema, dotted; lists are passed through. Each has a description.
    fn keys(root: &Value, schema: &Value, at: &str, found: &mut BTreeSet<String>) {
        let target = schema["$ref"]
            .as_str()
            .map(|name| &root["$defs"][name.trim_start_matches("#/$defs/")]);
        let within = target
            .into_iter()
            .chain([&schema["items"]])
            .chain(schema["anyOf"].as_array().into_iter().flatten());
        for inner in within.filter(|inner| inner.is_object()) {
            keys(root, inner, at, found);
        }
        for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
            let dotted = if at.is_empty() {
                key.clone()
            } else {
                format!("{at}.{key}")
            };
            assert!(inner["description"].is_string(), "{dotted} has no description");
            keys(root, inner, &dotted, found);
            found.insert(dotted);
        }
    }

    fn keys_of(value: &Value, at: &str, found: &mut BTreeSet<String>) {
        value
            .as_array()
            .into_iter()
            .flatten()
            .for_each(|one| keys_of(one, at, found));
        for (key, inner) in value.as_object().into_iter().flatten() {
            let dotted = if at.is_empty() {
                key.clone()
            } else {
                format!("{at}.{key}")
            };
            keys_of(inner, &dotted, found);
            found.insert(dotted);
        }
    }

    #[test]
    fn the_schema_has_every_key_of_the_default_config_and_none_of_features_to_come() {
        let schema = json();
        let mut known = BTreeSet::new();
        keys(&schema, &schema, "", &mut known);
        let default: Value = serde_saphyr::from_str(DEFAULT_YAML).expect("YAML");
        let mut used = BTreeSet::new();
        keys_of(&default, "", &mut used);
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(used.len() > 30 && unknown.is_empty(), "{unknown:?}");
        assert!(
            known.contains("tenants.quota.burst")
                && known.contains("edge.tls.client_ca")
                && known.contains("datasets.dedup.window"),
            "{known:?}"
        );
        assert_eq!(schema["additionalProperties"], false);
    }

    #[test]
    fn the_reference_describes_every_key_of_the_schema() {
        let schema = json();
        let mut known = BTreeSet::new();
        keys(&schema, &schema, "", &mut known);
        let page = include_str!("../../../docs/config.md");
        let is_told = |key: &str| {
            // Sections stand as titles, keys of datasets and tenants without their list, `unit` and
            // `required_if` with their members, overrides by the keys that they replace.
            let own = key
                .trim_start_matches("datasets.overrides.")
                .trim_start_matches("datasets.")
                .trim_start_matches("fields.");
            let own = own
                .trim_start_matches("tenants.keys.")
                .trim_start_matches("tenants.quota.")
                .trim_start_matches("tenants.");
            let own = own.trim_start_matches("unit.").trim_start_matches("required_if.");
            page.contains(&format!("`{own}`"))
                || page.contains(&format!("`{own}."))
                || page.contains(&format!("\n## {own}\n"))
                || page.contains(&format!("`.{}`", own.rsplit('.').next().unwrap_or_default()))
                || page.contains(&format!("{own}: "))
        };
        let missing: Vec<_> = known.iter().filter(|key| !is_told(key)).collect();
        assert!(missing.is_empty(), "not in docs/config.md: {missing:?}");
    }

    #[test]
    fn a_config_written_back_means_the_same() {
        let yaml = "log: {max_bytes: 1GiB, retain: 90m}\nedge: {quota_share: 25%}\ntenants: [{id: t, keys: [], quota: {events_per_second: 5k, datasets: {a: {bytes_per_second: 1MiB}}}}]\ndatasets:\n- {name: a, fields: [{name: x, type: \"nullable(uint16)\", default: 3, unit: {from: KiBy, to: By}}, \
                    {name: at, type: datetime, required: true, epoch: ms}], partition_by: toDate(at), unknown_fields: drop}\n";
        for text in [yaml, DEFAULT_YAML] {
            let read = |text: &str| {
                Loaded::parse(text, Path::new("x"), Path::new("/"))
                    .expect("valid")
                    .config
            };
            let first = read(text);
            let written = serde_json::to_string(&first).expect("JSON");
            assert_eq!(written, serde_json::to_string(&read(&written)).expect("JSON"));
            assert!(written.contains("\"dir\":\"log\""), "{written}");
        }
    }
}
