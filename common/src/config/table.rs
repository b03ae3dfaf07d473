//! Target tables: each holds the union of the columns that its datasets write.

use super::{Dataset, Field};
use crate::ids::Name;

/// One table, and what goes to it.
#[derive(Debug)]
pub struct TablePlan<'c> {
    pub name: &'c Name,
    /// At least one; they agree on everything about the table but its columns, and on the types of those
    /// that they share.
    pub datasets: Vec<&'c Dataset>,
    /// Each column once, in order of first appearance.
    pub fields: Vec<&'c Field>,
}

/// The tables of some datasets, in order of first appearance.
#[must_use]
pub fn tables(datasets: &[Dataset]) -> Vec<TablePlan<'_>> {
    let mut plans: Vec<TablePlan<'_>> = Vec::new();
    for dataset in datasets {
        let known = plans.iter().position(|plan| plan.name == dataset.table());
        let at = known.unwrap_or_else(|| {
            plans.push(TablePlan {
                name: dataset.table(),
                datasets: Vec::new(),
                fields: Vec::new(),
            });
            plans.len() - 1
        });
        plans[at].add(dataset);
    }
    plans
}

impl<'c> TablePlan<'c> {
    fn add(&mut self, dataset: &'c Dataset) {
        self.datasets.push(dataset);
        for field in &dataset.fields {
            if self.field(&field.name).is_none() {
                self.fields.push(field);
            }
        }
    }

    fn field(&self, name: &Name) -> Option<&'c Field> {
        self.fields.iter().find(|field| field.name == *name).copied()
    }

    /// The dataset that says how the table is laid out: any, since they agree.
    #[must_use]
    pub fn layout(&self) -> &'c Dataset {
        self.datasets[0]
    }

    /// What the datasets do not agree on, each a sentence.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let first = self.layout();
        let mut found = Vec::new();
        for other in &self.datasets[1..] {
            let mut differ = |what: &str, ours: String, theirs: String| {
                if ours != theirs {
                    found.push(format!(
                        "datasets: {} and {} share table {} and differ in {what} ({ours} and {theirs}): make them equal, \
                         or give one another `table`",
                        first.name, other.name, self.name
                    ));
                }
            };
            let partition = |one: &Dataset| one.partition_by.to_string();
            differ("partition_by", partition(first), partition(other));
            differ("order_by", order_by(first), order_by(other));
            differ("ttl", ttl(first), ttl(other));
            for field in &other.fields {
                if let Some(known) = self.field(&field.name) {
                    let what = format!("the type of `{}`", field.name);
                    differ(&what, known.field_type.to_string(), field.field_type.to_string());
                }
            }
        }
        found
    }
}

/// The columns of the primary key.
fn order_by(dataset: &Dataset) -> String {
    let columns: Vec<String> = dataset.sorting().iter().map(ToString::to_string).collect();
    columns.join(", ")
}

fn ttl(dataset: &Dataset) -> String {
    let time = dataset.time.as_ref().map(|time| &time.field);
    match (dataset.ttl, time) {
        (Some(ttl), Some(field)) => format!("{} ms by {field}", ttl.ms()),
        (ttl, _) => ttl.map_or_else(|| "none".to_owned(), |ttl| format!("{} ms", ttl.ms())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loaded;
    use std::path::Path;

    fn load(yaml: &str) -> Result<Loaded, String> {
        Loaded::parse(yaml, Path::new("x"), Path::new("/")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_table_has_the_columns_of_all_its_datasets_once() {
        let loaded = load(
            "datasets: [{name: a, table: t, fields: [{name: x, type: string}, {name: y, type: int8}]}, \
             {name: b, fields: [{name: x, type: bool}]}, \
             {name: c, table: t, fields: [{name: z, type: bool}, {name: y, type: int8}]}]",
        );
        let config = loaded.expect("valid").config;
        let plans = tables(&config.datasets);
        let shown = |plan: &TablePlan<'_>| {
            let fields: Vec<&str> = plan.fields.iter().map(|field| field.name.as_str()).collect();
            format!("{} {} {}", plan.name, plan.datasets.len(), fields.join(","))
        };
        assert_eq!(
            plans.iter().map(shown).collect::<Vec<_>>(),
            ["t 2 x,y,z", "b 1 x"]
        );
    }

    #[test]
    fn datasets_of_one_table_that_differ_are_refused_with_what_differs() {
        let time = "{name: at, type: datetime, required: true}, {name: of, type: datetime, required: true}";
        for (one, other, what) in [
            (
                "fields: [{name: x, type: string}]",
                "fields: [{name: x, type: nullable(string)}]",
                "the type of `x`",
            ),
            (
                "partition_by: toDate(at)",
                "partition_by: toYYYYMM(at)",
                "partition_by",
            ),
            ("partition_by: toDate(at)", "partition_by: none", "partition_by"),
            (
                "order_by: [tenant, at]",
                "order_by: [at]",
                "order_by (tenant, at and at)",
            ),
            ("time: {field: at}", "time: {field: of}", "order_by"),
            (
                "ttl: 30d, time: {field: at}",
                "ttl: 31d, time: {field: at}",
                "ttl",
            ),
            ("ttl: 30d, time: {field: at}", "time: {field: at}", "ttl"),
            (
                "ttl: 30d, order_by: [at], time: {field: at}",
                "ttl: 30d, order_by: [at], time: {field: of}",
                "ttl",
            ),
        ] {
            let dataset = |name: &str, text: &str| {
                let fields = if text.contains("fields:") {
                    String::new()
                } else {
                    format!("fields: [{time}], ")
                };
                format!("{{name: {name}, table: t, {fields}{text}}}")
            };
            let yaml = format!("datasets: [{}, {}]", dataset("a", one), dataset("b", other));
            let text = load(&yaml).expect_err(&yaml);
            let parts = ["a and b share table t and differ in", what];
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }
}
