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
//! | `missing_field` | lacks a required field |
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
mod column;
mod convert;
pub mod encode;
mod fault;
pub mod identity;
mod json;
mod literal;
mod nested;
mod request;
mod row;
pub mod schema;
mod strings;
pub mod time;
pub mod units;

#[cfg(test)]
mod tests;

pub use encode::{EncodeError, build_records};
pub use identity::RecordTemplate;
pub use schema::Schema;

use arrow_array::RecordBatch;
use hashbrown::HashMap;
use json::Parser;
use parking_lot::Mutex;
use sluice_common::config::Dataset;
use sluice_common::error::Problem;
use sluice_common::record::RequestSpan;
use sluice_common::wire::intake::{IntakeRequest, RowsAnswer};
use std::sync::Arc;

/// Parsers kept for the next request: about one a core is in use at once.
const SPARE_PARSERS: usize = 16;

/// Rows of one request, to become (part of) a record.
#[derive(Debug, Clone)]
pub struct Pending {
    /// Rows of equal templates may share a record.
    pub template: Arc<RecordTemplate>,
    pub batch: RecordBatch,
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
    /// Each within the rows of a record and [`sluice_common::limits::TARGET_RECORD_BYTES`], unless a
    /// single row is larger. Empty where no row was taken.
    pub pending: Vec<Pending>,
    /// What the client is told once all pendings are durable.
    pub answer: RowsAnswer,
    /// Members of taken events that `unknown_fields: drop` dropped.
    pub dropped_members: u64,
    /// Taken events that are older than [`sluice_common::limits::LATE_EVENT`].
    pub late_events: u64,
}

/// All datasets, and the secret of the log.
pub struct Intake {
    schemas: HashMap<String, Arc<Schema>>,
    secret: [u8; 32],
    spare: Mutex<Vec<Parser>>,
}

impl Intake {
    /// Compiles the datasets. `secret` is the log's: whoever hashes with another one makes repeats new.
    ///
    /// # Errors
    /// Every problem of every dataset, each a sentence.
    pub fn new(datasets: &[Dataset], secret: [u8; 32]) -> Result<Self, Vec<String>> {
        let (mut schemas, mut problems) = (HashMap::new(), Vec::new());
        for dataset in datasets {
            match Schema::compile(dataset) {
                Ok(schema) => {
                    schemas.insert(dataset.name.as_str().to_owned(), Arc::new(schema));
                }
                Err(found) => problems.extend(found),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            schemas,
            secret,
            spare: Mutex::new(Vec::new()),
        })
    }

    /// The dataset of that name.
    #[must_use]
    pub fn schema(&self, dataset: &str) -> Option<&Arc<Schema>> {
        self.schemas.get(dataset)
    }

    /// The names of all datasets.
    pub fn datasets(&self) -> impl Iterator<Item = &str> {
        self.schemas.keys().map(String::as_str)
    }

    /// Parses, checks and converts a request's rows. `now_ms` is our clock, for the age of events.
    ///
    /// # Errors
    /// A [`Problem`] where the request as a whole is wrong: nothing of it is taken then.
    pub fn parse(&self, request: &IntakeRequest, now_ms: u64) -> Result<Parsed, Problem> {
        let mut parser = self.spare.lock().pop().unwrap_or_default();
        let parsed = request::parse(self, request, now_ms, &mut parser);
        let mut spare = self.spare.lock();
        if parser.is_worth_keeping() && spare.len() < SPARE_PARSERS {
            spare.push(parser);
        }
        parsed
    }
}
