//! The statements that bring existing tables to a changed config. Pure text, printed and never run: a
//! table of others is not ours to alter.

use crate::ddl;
use sluice_common::config::{Dataset, Field};
use sluice_common::ids::Name;
use std::collections::BTreeMap;

/// `ALTER TABLE` for columns that are new or of another type and for another TTL, in tables that both
/// configs have. Columns that go are left in their table, where they do no harm.
#[must_use]
pub fn statements(before: &[Dataset], after: &[Dataset], database: &Name) -> Vec<String> {
    let mut found = Vec::new();
    let old = by_table(before);
    for (table, datasets) in by_table(after) {
        let Some(old) = old.get(table) else { continue };
        let alter = |what: String| format!("ALTER TABLE `{database}`.`{table}` {what}");
        let (old_columns, new_columns) = (columns(old), columns(&datasets));
        for (name, column) in &new_columns {
            match old_columns.get(name) {
                None => found.push(alter(format!("ADD COLUMN IF NOT EXISTS {column}"))),
                Some(same) if same == column => {}
                Some(_) => found.push(alter(format!("MODIFY COLUMN {column}"))),
            }
        }
        let (old_ttl, new_ttl) = (ttl(old), ttl(&datasets));
        match new_ttl {
            Some(ttl) if old_ttl.as_ref() != Some(&ttl) => found.push(alter(format!("MODIFY TTL {ttl}"))),
            None if old_ttl.is_some() => found.push(alter("REMOVE TTL".to_owned())),
            Some(_) | None => {}
        }
    }
    found.sort();
    found.dedup();
    found
}

fn by_table(datasets: &[Dataset]) -> BTreeMap<&Name, Vec<&Dataset>> {
    let mut tables: BTreeMap<&Name, Vec<&Dataset>> = BTreeMap::new();
    for dataset in datasets {
        tables.entry(dataset.table()).or_default().push(dataset);
    }
    tables
}

/// Each column's definition by its name.
fn columns(datasets: &[&Dataset]) -> BTreeMap<String, String> {
    let fields = datasets.iter().flat_map(|dataset| &dataset.fields);
    fields
        .map(|field: &Field| (field.name.to_string(), ddl::column(field)))
        .collect()
}

fn ttl(datasets: &[&Dataset]) -> Option<String> {
    datasets.iter().find_map(|dataset| ddl::ttl(dataset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_common::config::Loaded;
    use std::path::Path;

    #[test]
    fn new_and_changed_columns_and_ttls_are_altered_and_nothing_is_dropped() {
        let read = |yaml: &str| {
            Loaded::parse(yaml, Path::new("x"), Path::new("/"))
                .expect("valid")
                .config
                .datasets
        };
        let before = "datasets: [{name: a, fields: [{name: x, type: string}, {name: at, type: datetime, required: true}, {name: gone, type: bool}], \
                      time: {field: at, max_past: 1d}, ttl: 9d}]";
        let after = before
            .replace(
                "{name: gone, type: bool}",
                "{name: new, type: \"nullable(uint8)\"}",
            )
            .replace("type: string", "type: low_cardinality(string)")
            .replace("ttl: 9d", "ttl: 10d");
        let database = Name::new("d").expect("valid");
        assert_eq!(
            statements(&read(before), &read(&after), &database),
            [
                "ALTER TABLE `d`.`a` ADD COLUMN IF NOT EXISTS `new` Nullable(UInt8)",
                "ALTER TABLE `d`.`a` MODIFY COLUMN `x` LowCardinality(String)",
                "ALTER TABLE `d`.`a` MODIFY TTL toDateTime(`at`) + toIntervalSecond(864000)",
            ]
        );
        assert!(statements(&read(before), &read(before), &database).is_empty());
        let other = before.replace("[{name: a,", "[{name: b,");
        assert!(
            statements(&read(before), &read(&other), &database).is_empty(),
            "it is made, not altered"
        );
    }
}
