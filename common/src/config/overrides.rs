//! What a dataset asks of some tenants and not of others: checks, required fields, defaults, units, names
//! of members. Never what decides its table or the identity of its events.

use super::validate::check_dataset;
use super::{Config, Count, Zone};
use super::{Dataset, EpochUnit, Field, FieldType, RequiredIf, Unit, UnknownFields};
use crate::ids::{Name, TenantId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashSet;

/// What is different for some tenants.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Whom it is for.
    pub tenants: Vec<TenantId>,
    /// What happens to members that the schema does not name.
    pub unknown_fields: Option<UnknownFields>,
    /// What is different about fields.
    #[serde(default)]
    pub fields: Vec<FieldOverride>,
}

/// One field, as some tenants have it: what is given replaces what the dataset says.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FieldOverride {
    /// The field.
    pub name: Name,
    /// May be repeated here, and must be the dataset's.
    #[serde(rename = "type")]
    pub field_type: Option<FieldType>,
    /// Where it becomes true, a default and `required_if` of the dataset end.
    pub required: Option<bool>,
    /// Taken where the event has no value.
    pub default: Option<Value>,
    /// The member of the event that it is read from.
    pub from: Option<String>,
    /// A conversion.
    pub unit: Option<Unit>,
    /// Unit of a time given as a number since 1970.
    pub epoch: Option<EpochUnit>,
    /// Zone of a time without an offset.
    pub timezone: Option<Zone>,
    /// Least value, in the column's unit.
    pub min: Option<Value>,
    /// Largest value, in the column's unit.
    pub max: Option<Value>,
    /// Least length.
    pub min_length: Option<Count>,
    /// Largest length.
    pub max_length: Option<Count>,
    /// Regular expression that a string must match somewhere.
    pub pattern: Option<String>,
    /// The values that are allowed.
    pub values: Option<Vec<Value>>,
    /// Required where another field has one of these values.
    pub required_if: Option<RequiredIf>,
}

impl Dataset {
    /// The dataset as the tenants of `over` have it.
    #[must_use]
    pub fn overridden(&self, over: &Override) -> Self {
        let mut dataset = self.clone();
        dataset.overrides = Vec::new();
        if let Some(unknown) = &over.unknown_fields {
            dataset.unknown_fields = unknown.clone();
        }
        for change in &over.fields {
            let fields = &mut dataset.fields;
            if let Some(field) = fields.iter_mut().find(|field| field.name == change.name) {
                change.apply(field);
            }
        }
        dataset
    }
}

impl FieldOverride {
    fn apply(&self, field: &mut Field) {
        fn replace<T: Clone>(old: &mut Option<T>, new: &Option<T>) {
            if new.is_some() {
                old.clone_from(new);
            }
        }
        if let Some(required) = self.required {
            field.required = required;
            if required {
                field.default = None;
                field.required_if = None;
            }
        }
        replace(&mut field.default, &self.default);
        replace(&mut field.from, &self.from);
        replace(&mut field.unit, &self.unit);
        replace(&mut field.epoch, &self.epoch);
        replace(&mut field.timezone, &self.timezone);
        replace(&mut field.min, &self.min);
        replace(&mut field.max, &self.max);
        replace(&mut field.min_length, &self.min_length);
        replace(&mut field.max_length, &self.max_length);
        replace(&mut field.pattern, &self.pattern);
        replace(&mut field.values, &self.values);
        replace(&mut field.required_if, &self.required_if);
    }
}

/// What is wrong with the overrides of a dataset, each a sentence.
pub(super) fn problems(config: &Config, dataset: &Dataset, found: &mut Vec<String>) {
    let mut seen = HashSet::new();
    for over in &dataset.overrides {
        let mut add = |text: String| found.push(format!("datasets: {}: overrides: {text}", dataset.name));
        if over.tenants.is_empty() {
            add("`tenants` is empty: name at least one".into());
        }
        for tenant in &over.tenants {
            if !seen.insert(tenant) {
                add(format!(
                    "tenant {tenant} is named twice: put all of it into one entry"
                ));
            }
            if !config.tenants.is_empty() && !config.tenants.iter().any(|one| one.id == *tenant) {
                add(format!("tenant {tenant} is not defined"));
            }
        }
        let mut names = HashSet::new();
        for change in &over.fields {
            if !names.insert(&change.name) {
                add(format!("field `{}` is named twice", change.name));
            }
            match dataset.fields.iter().find(|field| field.name == change.name) {
                None => add(format!(
                    "`{}` is not a field of the dataset: columns are the same for all tenants",
                    change.name
                )),
                Some(field) if is_other(change, field) => add(format!(
                    "field `{}` has another type than the dataset's {}: columns are the same for all tenants",
                    change.name, field.field_type
                )),
                Some(_) => {}
            }
        }
        let mut own = Vec::new();
        check_dataset(&dataset.overridden(over), &mut own);
        let mut plain = Vec::new();
        check_dataset(dataset, &mut plain);
        let new = own.into_iter().filter(|text| !plain.contains(text));
        found.extend(new.map(|text| format!("{text} ({})", names_of(over))));
    }
}

fn is_other(change: &FieldOverride, field: &Field) -> bool {
    let own = change.field_type.as_ref();
    own.is_some_and(|own| *own != field.field_type)
}

/// Whom an override is for, in words.
#[must_use]
pub fn names_of(over: &Override) -> String {
    let names: Vec<&str> = over.tenants.iter().map(TenantId::as_str).collect();
    format!("overrides for {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loaded;
    use std::path::Path;

    fn load(overrides: &str) -> Result<Config, String> {
        let yaml = format!(
            "tenants: [{{id: acme, keys: []}}, {{id: beta, keys: []}}]\n\
             datasets: [{{name: d, fields: [{{name: x, type: uint8, default: 3, max: 9}}, \
             {{name: k, type: string, required: true}}], dedup: {{key: [k]}}, overrides: [{overrides}]}}]"
        );
        let loaded = Loaded::parse(&yaml, Path::new("x"), Path::new("/"));
        loaded
            .map(|loaded| loaded.config)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_given_replaces_and_the_rest_stays() {
        let config = load(
            "{tenants: [acme], unknown_fields: drop, fields: [{name: x, type: uint8, required: true, min: 2}]}, \
             {tenants: [beta], fields: [{name: x, max: 5}]}",
        );
        let config = config.expect("valid");
        let dataset = &config.datasets[0];
        let acme = dataset.overridden(&dataset.overrides[0]);
        let x = &acme.fields[0];
        assert_eq!(
            (acme.unknown_fields, x.required, &x.default),
            (UnknownFields::Drop, true, &None)
        );
        assert_eq!((x.min.clone(), x.max.clone()), (Some(2.into()), Some(9.into())));
        let beta = dataset.overridden(&dataset.overrides[1]);
        assert_eq!(
            (&beta.fields[0].max, &beta.fields[0].default),
            (&Some(5.into()), &Some(3.into()))
        );
    }

    #[test]
    fn what_would_change_table_or_identity_is_refused() {
        for (overrides, part) in [
            ("{tenants: []}", "`tenants` is empty"),
            ("{tenants: [acme, acme]}", "named twice"),
            ("{tenants: [acme]}, {tenants: [acme]}", "named twice"),
            ("{tenants: [gamma]}", "gamma is not defined"),
            ("{tenants: [acme], fields: [{name: y}]}", "`y` is not a field"),
            (
                "{tenants: [acme], fields: [{name: x}, {name: x}]}",
                "`x` is named twice",
            ),
            (
                "{tenants: [acme], fields: [{name: x, type: uint16}]}",
                "another type than the dataset's uint8",
            ),
            (
                "{tenants: [acme], fields: [{name: k, required: false}]}",
                "overrides for acme",
            ),
            (
                "{tenants: [acme], fields: [{name: x, from: k}]}",
                "reads a member that another field reads",
            ),
            ("{tenants: [acme], unknown_fields: k}", "unknown_fields"),
            ("{tenants: [acme], table: other}", "table"),
            ("{tenants: [acme], dedup: {window: 1h}}", "dedup"),
        ] {
            let text = load(overrides).expect_err(overrides);
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
