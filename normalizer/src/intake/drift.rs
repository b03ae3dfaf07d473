//! Drift: what events have and their datasets do not, since the process started, with the field that
//! could be added and the statement for it. A report only: nothing is ever altered.
//!
//! Bounded: [`MAX_DRIFT_NAMES`] names a dataset, further ones are only counted; rejections by field and
//! code of the schema. Requests hand over their sums, so the locks are taken once a request, and only
//! where there is something to tell.

use super::observed::{Observed, Shape};
use super::schema::Schema;
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use sluice_common::clock::UnixMs;
use sluice_common::ids::Name;
use sluice_common::limits::MAX_DRIFT_NAMES;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Drift of all datasets.
#[derive(Debug, Default)]
pub struct Drift(RwLock<HashMap<Name, Arc<Mutex<Sums>>>>);

/// Of one dataset.
#[derive(Debug, Default)]
struct Sums {
    unknown: BTreeMap<Box<str>, Unknown>,
    other: u64,
    /// By field (empty: the row as a whole) and code.
    rejected: BTreeMap<(Box<str>, &'static str), (u64, UnixMs)>,
}

#[derive(Debug)]
struct Unknown {
    shape: Shape,
    count: u64,
    last_seen: UnixMs,
}

/// The report, as it goes over the admin API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftReport {
    pub datasets: Vec<DatasetDrift>,
}

/// One dataset's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetDrift {
    pub dataset: String,
    pub table: String,
    /// Members that no field reads, most frequent first.
    pub unknown: Vec<UnknownField>,
    /// Unknown members that are in no entry of `unknown`: names too long, or past the bound.
    pub unknown_others: u64,
    /// Rejected rows, most frequent first.
    pub rejected: Vec<RejectedRows>,
}

/// A member that no field reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownField {
    pub name: String,
    pub shape: Shape,
    pub count: u64,
    /// Ms since 1970.
    pub last_seen_ms: UnixMs,
    /// None where the values have no type in common, or no field can be named so.
    pub proposal: Option<Proposal>,
}

/// A field that could be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    pub name: String,
    /// As the config has it.
    #[serde(rename = "type")]
    pub field_type: String,
    /// A line for `fields` of the dataset.
    pub field: String,
    /// The statement that adds the column. It is for the operator to run, before the config names the field.
    pub alter: String,
}

/// Rows rejected for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedRows {
    /// Empty where the row as a whole is to blame.
    pub field: String,
    pub code: String,
    pub count: u64,
    pub last_seen_ms: UnixMs,
}

impl Drift {
    /// Adds what a request showed.
    pub fn add(&self, schema: &Schema, observed: Observed, now: UnixMs) {
        if observed.is_empty() {
            return;
        }
        let known = self.0.read().get(schema.name()).cloned();
        let sums = known.unwrap_or_else(|| {
            let mut all = self.0.write();
            Arc::clone(all.entry(schema.name().clone()).or_default())
        });
        sums.lock().add(schema, observed, now);
    }

    /// The report on these datasets; tables are in `database`.
    #[must_use]
    pub fn report<'s>(&self, schemas: impl Iterator<Item = &'s Arc<Schema>>, database: &Name) -> DriftReport {
        let all = self.0.read();
        let one = |schema: &'s Arc<Schema>| match all.get(schema.name()) {
            Some(sums) => sums.lock().report(schema, database),
            None => Sums::default().report(schema, database),
        };
        let mut datasets: Vec<_> = schemas.map(one).collect();
        datasets.sort_by(|a, b| a.dataset.cmp(&b.dataset));
        DriftReport { datasets }
    }
}

impl Sums {
    fn add(&mut self, schema: &Schema, observed: Observed, now: UnixMs) {
        self.other += observed.other;
        for (name, (shape, count)) in observed.unknown {
            if let Some(known) = self.unknown.get_mut(&name) {
                known.shape = known.shape.and(shape);
                known.count += count;
                known.last_seen = known.last_seen.max(now);
            } else if self.unknown.len() < MAX_DRIFT_NAMES {
                let unknown = Unknown {
                    shape,
                    count,
                    last_seen: now,
                };
                self.unknown.insert(name, unknown);
            } else {
                self.other += count;
            }
        }
        for (slot, code, count) in observed.rejected {
            let field = slot.map_or("", |slot| schema.field_name(slot));
            let entry = self.rejected.entry((field.into(), code)).or_default();
            *entry = (entry.0 + count, entry.1.max(now));
        }
    }

    fn report(&self, schema: &Schema, database: &Name) -> DatasetDrift {
        let mut unknown: Vec<_> = self
            .unknown
            .iter()
            .map(|(name, one)| UnknownField {
                name: name.to_string(),
                shape: one.shape,
                count: one.count,
                last_seen_ms: one.last_seen,
                proposal: propose(schema, database, (name, one.shape)),
            })
            .collect();
        unknown.sort_by_key(|one| std::cmp::Reverse(one.count));
        let mut rejected: Vec<_> = self
            .rejected
            .iter()
            .map(|((field, code), (count, last_seen))| RejectedRows {
                field: field.to_string(),
                code: (*code).to_owned(),
                count: *count,
                last_seen_ms: *last_seen,
            })
            .collect();
        rejected.sort_by_key(|one| std::cmp::Reverse(one.count));
        DatasetDrift {
            dataset: schema.name().to_string(),
            table: schema.table().to_string(),
            unknown,
            unknown_others: self.other,
            rejected,
        }
    }
}

/// Type in the config, and ClickHouse's, of values of a shape. All may be absent, so all may be null.
#[must_use]
pub fn types_of(shape: Shape) -> Option<(&'static str, &'static str)> {
    Some(match shape {
        Shape::Bool => ("nullable(bool)", "Nullable(Bool)"),
        Shape::Whole => ("nullable(int64)", "Nullable(Int64)"),
        Shape::LargeWhole => ("nullable(uint64)", "Nullable(UInt64)"),
        Shape::Number => ("nullable(float64)", "Nullable(Float64)"),
        Shape::Time => ("nullable(datetime64(3))", "Nullable(DateTime64(3, 'UTC'))"),
        Shape::Text => ("nullable(string)", "Nullable(String)"),
        Shape::Object => ("map(string, string)", "Map(LowCardinality(String), String)"),
        Shape::Null | Shape::Array | Shape::Mixed => return None,
    })
}

fn propose(schema: &Schema, database: &Name, (member, shape): (&str, Shape)) -> Option<Proposal> {
    let (field_type, column_type) = types_of(shape)?;
    let name = column_name(member)?;
    if schema.has_field(&name) {
        return None;
    }
    let from = if member == name.as_str() {
        String::new()
    } else {
        format!(", from: {}", serde_json::Value::from(member))
    };
    let quoted = if field_type.contains(' ') {
        format!("\"{field_type}\"")
    } else {
        field_type.to_owned()
    };
    Some(Proposal {
        name: name.to_string(),
        field_type: field_type.to_owned(),
        field: format!("- {{name: {name}, type: {quoted}{from}}}"),
        alter: format!(
            "ALTER TABLE `{database}`.`{}` ADD COLUMN IF NOT EXISTS `{name}` {column_type}",
            schema.table()
        ),
    })
}

/// The member's name as a column's: lower case, and `_` for all that a name has not.
fn column_name(member: &str) -> Option<Name> {
    let mut name: String = member
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        name.insert(0, '_');
    }
    let is_own = sluice_common::config::OWN_COLUMNS.contains(&name.as_str());
    Name::new(&name).ok().filter(|_| !is_own)
}
