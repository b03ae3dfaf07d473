//! What was acknowledged and cannot become a row of its table, and copies of what was rejected: one row
//! each of `dead_letters`, with the provenance of the row that it stands for. The topic of dead letters gets the same.

use crate::assemble::{Column, milliseconds, runs, stamps};
use crate::block::{Sights, placement_of};
use crate::ddl::DEAD_LETTERS;
use crate::json::row_json;
use crate::place::ALL;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use arrow_array::{RecordBatch, StringArray, UInt32Array};
use jiff::Timestamp;
use serde::Serialize;
use sluice_common::ids::{LogId, Name, source_o};
use sluice_common::letters::LetterId;
use sluice_common::limits::MAX_LETTER_BYTES;
use sluice_common::record::Record;
use sluice_common::wire::sink::SubKey;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Ends a payload that was cut.
pub(crate) const CUT_MARK: &str = "… (cut)";

/// One dead letter.
#[derive(Debug, Clone, Copy)]
pub struct Letter<'a> {
    record: &'a Record,
    partition: u16,
    batch: &'a RecordBatch,
    row: u32,
    stage: &'static str,
    code: &'a str,
    message: &'a str,
    field: &'a str,
    /// Place of the event in its request, where it is known.
    event_index: Option<u32>,
    /// What the client sent; none where the row is decoded.
    payload: Option<&'a str>,
}

/// A letter as the topic of dead letters has it: columns of its row, and what `ingestctl dlq` calls it. The provenance
/// is in the message's headers: numbers of 64 bits are not safe in every reader of JSON.
#[derive(Serialize)]
struct Told<'a> {
    id: LetterId,
    tenant: &'a str,
    dataset: &'a str,
    stage: &'a str,
    code: &'a str,
    message: &'a str,
    field: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_index: Option<u32>,
    request_id: String,
    payload: String,
    ingested_at: String,
}

impl<'a> Letter<'a> {
    /// The same `Idempotency-Key` identity with other content (R3).
    pub fn conflict(record: &'a Record, partition: u16, batch: &'a RecordBatch, row: u32) -> Self {
        let message = "an event with the same Idempotency-Key and index, and other content, came before it";
        Self {
            record,
            partition,
            batch,
            row,
            stage: "dedup",
            code: "idempotency_conflict",
            message,
            field: "",
            event_index: None,
            payload: None,
        }
    }

    /// The copy of a row that intake rejected: the record says all of it.
    pub fn rejected(record: &'a Record, partition: u16, batch: &'a RecordBatch, row: u32) -> Self {
        let text = |name: &str| {
            let column = batch
                .column_by_name(name)
                .and_then(|column| column.as_string_opt::<i32>());
            column.map_or("", |column| column.value(row as usize))
        };
        let index = batch.column_by_name("event_index");
        let index = index.and_then(|column| column.as_primitive_opt::<UInt32Type>());
        Self {
            record,
            partition,
            batch,
            row,
            stage: "intake",
            code: text("code"),
            message: text("message"),
            field: text("field"),
            event_index: index.map(|column| column.value(row as usize)),
            payload: Some(text("payload")),
        }
    }

    /// A row that was refused alone (R15).
    pub fn refused(
        record: &'a Record,
        partition: u16,
        batch: &'a RecordBatch,
        row: u32,
        (code, message): (&'a str, &'a str),
    ) -> Self {
        let stage = "insert";
        Self {
            record,
            partition,
            batch,
            row,
            stage,
            code,
            message,
            field: "",
            event_index: None,
            payload: None,
        }
    }

    /// The request that the row came with, in hex.
    fn request_id(&self) -> String {
        let request = self.record.request_of(self.row);
        request.map_or_else(String::new, |request| request.to_string())
    }

    /// `_src_o`.
    pub fn source_o(&self) -> u64 {
        source_o(self.record.place.offset, self.row)
    }

    /// What was sent, or the row as JSON; cut to `most` bytes, and marked then.
    fn payload(&self, most: usize) -> String {
        let sent = self.payload.map(str::to_owned);
        let mut text = sent.unwrap_or_else(|| row_json(self.batch, self.row as usize));
        if text.len() > most {
            text.truncate(text.floor_char_boundary(most.saturating_sub(CUT_MARK.len())));
            text.push_str(CUT_MARK);
        }
        text
    }

    /// The letter as a JSON object; what has no value is left out. Its payload is cut to `most` bytes.
    pub fn json(&self, most: usize) -> String {
        let (meta, place) = (&self.record.meta, self.record.place);
        let ingested_at = Timestamp::from_millisecond(milliseconds(place.append_ms));
        let told = Told {
            id: LetterId {
                log: place.log,
                partition: self.partition,
                source_o: self.source_o(),
            },
            tenant: meta.tenant.as_str(),
            dataset: meta.dataset.as_str(),
            stage: self.stage,
            code: self.code,
            message: self.message,
            field: self.field,
            event_index: self.event_index,
            request_id: self.request_id(),
            payload: self.payload(most),
            ingested_at: ingested_at.map_or_else(|_| String::new(), |time| time.to_string()),
        };
        serde_json::to_string(&told).expect("texts and numbers have a JSON form")
    }
}

/// Splits letters by the partition of `dead_letters` that they fall into.
pub(crate) fn by_partition<'a>(letters: &[Letter<'a>], sights: &Sights) -> BTreeMap<SubKey, Vec<Letter<'a>>> {
    let mut groups: BTreeMap<SubKey, Vec<Letter<'a>>> = BTreeMap::new();
    let Ok(table) = Name::new(DEAD_LETTERS) else {
        return groups;
    };
    let placement = placement_of(&table, sights);
    for letter in letters {
        let seconds = milliseconds(letter.record.place.append_ms).div_euclid(1_000);
        let part = placement
            .as_ref()
            .map_or_else(|| ALL.to_owned(), |placement| placement.id(seconds));
        groups
            .entry(SubKey::whole(table.clone(), part))
            .or_default()
            .push(*letter);
    }
    groups
}

/// The rows as JSON, each cut at its share of [`MAX_LETTER_BYTES`]: a range is never cut again, so its
/// letters must always fit one block. The share is a function of the range, as every byte must be.
fn payloads(letters: &[Letter<'_>]) -> Column {
    let share = MAX_LETTER_BYTES / letters.len().max(1);
    let array = StringArray::from_iter_values(letters.iter().map(|letter| letter.payload(share)));
    Column {
        name: "payload".into(),
        array: Arc::new(array),
    }
}

/// The columns of some letters.
pub(crate) fn columns(letters: &[Letter<'_>]) -> Vec<Column> {
    let labels = |name: &str, of: fn(&Letter<'_>) -> String| {
        let texts: Vec<String> = letters.iter().map(of).collect();
        Column {
            name: name.into(),
            array: runs(texts.iter().map(|text| (text.as_str(), 1))),
        }
    };
    let mut columns = vec![
        labels("tenant", |letter| letter.record.meta.tenant.to_string()),
        labels("dataset", |letter| letter.record.meta.dataset.to_string()),
        labels("stage", |letter| letter.stage.to_owned()),
        labels("code", |letter| letter.code.to_owned()),
        labels("field", |letter| letter.field.to_owned()),
        texts("message", letters.iter().map(|letter| letter.message.to_owned())),
        texts("request_id", letters.iter().map(Letter::request_id)),
        Column {
            name: "event_index".into(),
            array: Arc::new(UInt32Array::from_iter(
                letters.iter().map(|letter| letter.event_index),
            )),
        },
        payloads(letters),
    ];
    let times = letters
        .iter()
        .map(|letter| milliseconds(letter.record.place.append_ms))
        .collect();
    let log = letters.first().map_or(LogId(0), |letter| letter.record.place.log);
    let partition = letters.first().map_or(0, |letter| letter.partition);
    columns.extend(stamps(
        times,
        log,
        partition,
        letters.iter().map(Letter::source_o).collect(),
    ));
    columns
}

/// Texts of which few are the same.
fn texts(name: &str, values: impl Iterator<Item = String>) -> Column {
    Column {
        name: name.into(),
        array: Arc::new(StringArray::from_iter_values(values)),
    }
}
