//! Intake: bytes of a request into typed, checked, converted columns, and these into records.
//!
//! Pure computing: no I/O, no clock, no async. The steps, each a module: [`body`] splits the request
//! into events, [`json`] parses one, [`row`] checks it and writes it into [`column`]s ([`convert`],
//! [`literal`], [`nested`], [`units`], [`time`]), [`identity`] hashes it, and [`encode`] joins rows of several requests into
//! records. [`schema`] is the dataset, compiled once.
//!
//! The memory of a request is that of its columns plus one event's parse, whatever the body.
//!
//! # Why a row is rejected
//! The rest of its request is taken. One error a row, the first found.
//!
//! | code | the row |
//! |---|---|
//! | `missing_field` | lacks a field that is required, always or by another's value |
//! | `null_not_allowed` | has null in a required field that is not nullable |
//! | `wrong_type` | has a value of another JSON type than its field takes, or a fraction in an integer |
//! | `out_of_range` | has a number or time that its type cannot hold, after its unit's conversion |
//! | `bad_timestamp` | has a time that is not RFC 3339 |
//! | `epoch_without_unit` | has a number as a time, in a field without `epoch` |
//! | `bad_decimal`, `bad_date`, `bad_uuid`, `bad_address` | has a text that is none |
//! | `too_many_digits` | has a decimal with more digits than its column, or a number, keeps |
//! | `not_in_enum` | has a value that its enum does not list |
//! | `over_fixed_length` | has a string longer than its fixed length |
//! | `too_old`, `too_new` | is outside of `time.max_past`, `time.max_future` |
//! | `below_min`, `above_max` | has a number or time outside of its field's range |
//! | `too_short`, `too_long` | has a string or map outside of its field's lengths |
//! | `pattern_mismatch` | has a string that does not match its field's pattern |
//! | `value_not_allowed` | has a value that is none of its field's `values` |
//! | `unknown_unit` | names a unit that there is not, or that measures something else |
//! | `missing_unit` | names no unit where its field needs one |
//! | `unknown_field` | has a member that the schema does not know, and the dataset rejects these |
//! | `duplicate_field` | has a field, or a path of JSON, twice |
//! | `too_deep` | is nested deeper than 32 |
//! | `too_many_members` | has more than 4,096 members, its map fields included |
//! | `event_too_large` | has more than 1 MiB of JSON, or columns that no record holds |
//! | `malformed_json` | is no JSON (NDJSON only) |
//! | `not_utf8` | is not UTF-8 (NDJSON only) |
//! | `not_an_object` | is JSON, but no object |
//!
//! # Why a request is refused whole
//! 404 `unknown_dataset`; 400 `empty_body`, `malformed_json` (an object or array that is broken
//! anywhere), `not_an_object` (a lone scalar); 413 `too_many_events`, `too_many_partitions`,
//! `columns_too_large`.
//! An element of an array that is too large or too deep is only a rejected row: it is not parsed to
//! its end, so whether it is JSON behind that point is not known.

mod arrow;
pub mod body;
mod check;
mod column;
mod convert;
mod copies;
mod drift;
pub mod encode;
mod entries;
mod fault;
mod hashed;
pub mod identity;
mod json;
mod literal;
mod nested;
mod observed;
mod request;
mod row;
pub mod schema;
mod spread;
mod strings;
pub mod time;
pub mod units;
mod version;

#[cfg(test)]
mod tests;

pub use drift::{DatasetDrift, Drift, DriftReport, Proposal, RejectedRows, UnknownField, types_of};
pub use encode::{EncodeError, build_records};
pub use identity::RecordTemplate;
pub use observed::{Observed, Shape};
pub use schema::Schema;
pub use spread::Spread;

use crate::tenant_rate::TenantRate;
use arc_swap::ArcSwap;
use arrow_array::RecordBatch;
use hashbrown::HashMap;
use json::Parser;
use parking_lot::Mutex;
use sluice_common::config::overrides::names_of;
use sluice_common::config::{self, Dataset};
use sluice_common::error::Problem;
use sluice_common::ids::{Name, TenantId};
use sluice_common::record::RequestSpan;
use sluice_common::wire::intake::{IntakeRequest, RowsAnswer};
use std::sync::Arc;

/// Parsers kept for the next request: about one a core is in use at once.
const SPARE_PARSERS: usize = 16;

/// Rows of one request, to become (part of) a record.
#[derive(Debug, Clone)]
pub struct Pending {
    /// Of the log; rows of other partitions are in other records.
    pub partition: u16,
    /// Rows of equal templates may share a record.
    pub template: Arc<RecordTemplate>,
    pub batch: RecordBatch,
    /// Whether these are some rows of more: dictionaries may hold what only the others use.
    pub is_part: bool,
    /// One a row.
    pub keys: Vec<u128>,
    /// One a row where the identity is the `Idempotency-Key`, else empty.
    pub fingerprints: Vec<u32>,
    /// Covers all rows. The request's totals are in the span of its first pending only.
    pub span: RequestSpan,
    /// Bytes of columns and keys, before compression.
    pub bytes: usize,
}

/// A request, parsed.
#[derive(Debug)]
pub struct Parsed {
    /// The schema that it was read with; the one in force may be another by now.
    pub schema: Arc<Schema>,
    /// Rows, and copies of rejected ones. Each within the rows of a record and [`sluice_common::limits::TARGET_RECORD_BYTES`], unless a
    /// single row is larger. Empty where no row was taken and no copy is kept.
    pub pending: Vec<Pending>,
    /// The mark of a request of which every row was rejected: no rows, and how many were (R20).
    pub mark: Option<Pending>,
    /// Rejected rows of which no copy is kept for want of budget, or of room in one request.
    pub copies_dropped: [(&'static str, u64); 2],
    /// What the client is told once all pendings are durable.
    pub answer: RowsAnswer,
    /// Members of taken events that `unknown_fields: drop` dropped.
    pub dropped_members: u64,
    /// Values of taken events that were converted from one unit into another, by field.
    pub conversions: Vec<(Name, u64)>,
    /// What the drift report counts.
    pub observed: Observed,
    /// Taken events that are older than [`sluice_common::limits::LATE_EVENT`].
    pub late_events: u64,
}

/// Why nothing of a request is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotParsed {
    /// The request as a whole is wrong.
    Refused(Problem),
    /// There is no room for its columns now.
    Full,
}

impl From<Problem> for NotParsed {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

/// A dataset's schemas: one for all tenants, and those of tenants that it treats otherwise.
pub struct Family {
    common: Arc<Schema>,
    own: HashMap<TenantId, Arc<Schema>>,
}

impl Family {
    fn compile(dataset: &Dataset) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut own = HashMap::new();
        let common = Schema::compile(dataset);
        for over in &dataset.overrides {
            match Schema::compile(&dataset.overridden(over)) {
                Ok(schema) => {
                    let schema = Arc::new(schema);
                    own.extend(
                        over.tenants
                            .iter()
                            .map(|tenant| (tenant.clone(), Arc::clone(&schema))),
                    );
                }
                Err(found) => {
                    // What is wrong with the dataset itself is told once.
                    let known = common.as_ref().err();
                    let new = found
                        .into_iter()
                        .filter(|text| known.is_none_or(|known| !known.contains(text)));
                    problems.extend(new.map(|text| format!("{text} ({})", names_of(over))));
                }
            }
        }
        match common {
            Ok(common) if problems.is_empty() => Ok(Self {
                common: Arc::new(common),
                own,
            }),
            Ok(_) => Err(problems),
            Err(mut found) => {
                found.extend(problems);
                Err(found)
            }
        }
    }
}

/// Compiled datasets by name.
pub type Schemas = HashMap<String, Family>;

/// All datasets, and the secret of the log. A request is read to its end with the schema that it found,
/// whatever is put in force meanwhile.
pub struct Intake {
    schemas: ArcSwap<Schemas>,
    secret: [u8; 32],
    spare: Mutex<Vec<Parser>>,
    copy_budget: TenantRate,
}

impl Intake {
    /// Compiles the datasets.
    ///
    /// # Errors
    /// Every problem of every dataset, each a sentence.
    pub fn compile(datasets: &[Dataset]) -> Result<Schemas, Vec<String>> {
        let (mut schemas, mut problems) = (HashMap::new(), Vec::new());
        for dataset in datasets {
            match Family::compile(dataset) {
                Ok(family) => {
                    schemas.insert(dataset.name.as_str().to_owned(), family);
                }
                Err(found) => problems.extend(found),
            }
        }
        if problems.is_empty() {
            Ok(schemas)
        } else {
            Err(problems)
        }
    }

    /// Compiles the datasets. `secret` is the log's: whoever hashes with another one makes repeats new.
    ///
    /// # Errors
    /// Every problem of every dataset, each a sentence.
    pub fn new(datasets: &[Dataset], secret: [u8; 32]) -> Result<Self, Vec<String>> {
        Ok(Self {
            schemas: ArcSwap::from_pointee(Self::compile(datasets)?),
            secret,
            spare: Mutex::new(Vec::new()),
            copy_budget: TenantRate::new(config::DeadLetters::default().bytes_per_second.0),
        })
    }

    /// The same with another budget for copies of rejected rows, in bytes a second of each tenant.
    #[must_use]
    pub fn with_copy_budget(mut self, bytes_per_second: u64) -> Self {
        self.copy_budget = TenantRate::new(bytes_per_second);
        self
    }

    /// The dataset of that name, as that tenant has it.
    #[must_use]
    pub fn schema(&self, dataset: &str, tenant: &TenantId) -> Option<Arc<Schema>> {
        let schemas = self.schemas.load();
        let family = schemas.get(dataset)?;
        Some(Arc::clone(family.own.get(tenant).unwrap_or(&family.common)))
    }

    /// Puts other schemas in force, all at once, for requests that come from now on.
    pub fn replace(&self, schemas: Schemas) {
        self.schemas.store(Arc::new(schemas));
    }

    /// All datasets, as all tenants have them.
    #[must_use]
    pub fn schemas(&self) -> Vec<Arc<Schema>> {
        let schemas = self.schemas.load();
        schemas
            .values()
            .map(|family| Arc::clone(&family.common))
            .collect()
    }

    /// Parses, checks and converts a request's rows. `now_ms` is our clock, for the age of events. `room`
    /// is asked for the bytes by which the columns outgrow the body, and says whether there are so many.
    ///
    /// # Errors
    /// [`NotParsed`]: nothing of the request is taken then.
    pub fn parse(
        &self,
        request: &IntakeRequest,
        now_ms: u64,
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Parsed, NotParsed> {
        let mut parser = self.spare.lock().pop().unwrap_or_default();
        let parsed = request::parse(self, request, now_ms, (&mut parser, room));
        let mut spare = self.spare.lock();
        if parser.is_worth_keeping() && spare.len() < SPARE_PARSERS {
            spare.push(parser);
        }
        parsed
    }
}
