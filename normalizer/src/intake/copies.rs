//! Copies of rejected rows, for datasets with `keep_rejected`: what was sent and why it was not taken,
//! to become rows of `dead_letters`.
//!
//! A copy is no event: it has no identity, dedup lets it pass, and no book counts it. It travels
//! through the log as a row of a record of its own kind, in the group of the request that it comes
//! from, so it is there exactly once if the answer is; a request that is sent again is rejected, and
//! copied, again. What a tenant's copies may take is a budget: what is over it is counted and not kept.

use super::identity::RecordTemplate;
use super::{Intake, Pending, Schema};
use arrow_array::{ArrayRef, RecordBatch, StringArray, UInt32Array};
use arrow_schema::{ArrowError, DataType, Field, Schema as ArrowSchema, SchemaRef};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sluice_common::clock::UnixMs;
use sluice_common::limits::{MAX_REJECTED_COPY_BYTES, TARGET_RECORD_BYTES};
use sluice_common::record::RequestSpan;
use sluice_common::wire::intake::{BodyFormat, IntakeRequest, RowError};
use std::sync::{Arc, LazyLock};

/// Ends a copy that was cut.
const CUT_MARK: &str = "… (cut)";
/// Begins the copy of a row that is not UTF-8.
const BASE64_MARK: &str = "base64:";
/// What a copy takes besides its text.
const COPY_OVERHEAD_BYTES: usize = 128;

static COLUMNS: LazyLock<SchemaRef> = LazyLock::new(|| {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    let mut fields = ["code", "field", "message", "payload"].map(text).to_vec();
    fields.push(Field::new("event_index", DataType::UInt32, false));
    Arc::new(ArrowSchema::new(fields))
});

/// The copies of one request.
pub(super) struct Copies<'s> {
    intake: &'s Intake,
    schema: &'s Schema,
    request: &'s IntakeRequest,
    now_ms: UnixMs,
    kept: Vec<(RowError, String)>,
    bytes: usize,
    /// Rows over the tenant's budget.
    pub over_budget: u64,
    /// Rows over what one request may keep.
    pub over_request: u64,
}

impl<'s> Copies<'s> {
    pub fn new(intake: &'s Intake, schema: &'s Schema, request: &'s IntakeRequest, now_ms: UnixMs) -> Self {
        Self {
            intake,
            schema,
            request,
            now_ms,
            kept: Vec::new(),
            bytes: 0,
            over_budget: 0,
            over_request: 0,
        }
    }

    /// Keeps a row as it was sent, within the budget.
    pub fn keep(&mut self, error: RowError, sent: &[u8]) {
        let payload_bytes = sent.len().min(MAX_REJECTED_COPY_BYTES);
        let bytes = payload_bytes + error.field.len() + error.message.len() + COPY_OVERHEAD_BYTES;
        let budget = &self.intake.copy_budget;
        // The budget is against clients; a source is the operator's, and its messages have no client that is told.
        let is_source = self.request.format == BodyFormat::Messages;
        if self.bytes + bytes > TARGET_RECORD_BYTES {
            self.over_request += 1;
        } else if is_source || budget.take(&self.request.tenant, bytes as u64, self.now_ms) {
            self.bytes += bytes;
            self.kept.push((error, payload(sent)));
        } else {
            self.over_budget += 1;
        }
    }

    /// The copies as rows to be appended; none where none was kept.
    ///
    /// # Errors
    /// Where Arrow refuses them.
    pub fn finish(self, span: RequestSpan) -> Result<Option<Pending>, ArrowError> {
        if self.kept.is_empty() {
            return Ok(None);
        }
        let text = |of: fn(&(RowError, String)) -> &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(self.kept.iter().map(of)))
        };
        let index = UInt32Array::from_iter_values(self.kept.iter().map(|(error, _)| error.index));
        let columns = vec![
            text(|one| &one.0.code),
            text(|one| &one.0.field),
            text(|one| &one.0.message),
            text(|one| &one.1),
            Arc::new(index),
        ];
        let template = RecordTemplate::for_copies(self.schema, &self.request.tenant, &self.intake.secret)
            .map_err(|error| ArrowError::InvalidArgumentError(error.to_string()))?;
        let rows = u32::try_from(self.kept.len()).unwrap_or(u32::MAX);
        Ok(Some(Pending {
            partition: 0,
            template: Arc::new(template),
            batch: RecordBatch::try_new(Arc::clone(&COLUMNS), columns)?,
            is_part: false,
            keys: vec![0; self.kept.len()],
            fingerprints: Vec::new(),
            span: RequestSpan { rows, ..span },
            bytes: self.bytes,
        }))
    }
}

/// The row as text: cut to whole characters, and in Base64 where it is not UTF-8.
fn payload(sent: &[u8]) -> String {
    let room = MAX_REJECTED_COPY_BYTES;
    match std::str::from_utf8(sent) {
        Ok(text) if text.len() <= room => text.to_owned(),
        Ok(text) => {
            let cut = &text[..text.floor_char_boundary(room - CUT_MARK.len())];
            format!("{cut}{CUT_MARK}")
        }
        Err(_) => {
            let most = (room - BASE64_MARK.len() - CUT_MARK.len()) / 4 * 3;
            let (part, mark) = if sent.len() > most {
                (&sent[..most], CUT_MARK)
            } else {
                (sent, "")
            };
            format!("{BASE64_MARK}{}{mark}", STANDARD.encode(part))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_what_was_sent_as_far_as_text_and_its_cap_allow() {
        assert_eq!(payload(b"{\"a\": 1}"), "{\"a\": 1}");
        assert_eq!(payload(&[0xFF, 0x00]), "base64:/wA=");
        let long = "ü".repeat(MAX_REJECTED_COPY_BYTES);
        let cut = payload(long.as_bytes());
        assert!(cut.len() <= MAX_REJECTED_COPY_BYTES && cut.ends_with("ü… (cut)"));
        let cut = payload(&vec![0xFF; MAX_REJECTED_COPY_BYTES]);
        assert!(
            cut.len() <= MAX_REJECTED_COPY_BYTES && cut.starts_with("base64:") && cut.ends_with(CUT_MARK)
        );
    }
}
