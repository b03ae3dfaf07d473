//! Group commit: rows of several requests into as few records as hold them (R2).
//!
//! Pendings of one template and partition are joined in their order. They are packed by their bytes before
//! compression, of which a record takes as many as fit it even where nothing compresses; so the size
//! is right by construction, and checked: a frame over the limit is halved by rows.
//!
//! A pending without rows is the mark of a request of which every row was rejected (R20): it adds its
//! span, to the rows of others where there are any.

use super::Pending;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow_schema::{ArrowError, DataType};
use sluice_common::dictionary;
use sluice_common::limits::{MAX_RECORD_BYTES, MAX_RECORD_ROWS};
use sluice_common::packed;
use sluice_common::record::{RecordContent, RequestSpan, SPAN_BYTES};
use std::sync::Arc;

/// What a stream is longer than its columns: its schema, and what says where each buffer lies.
const FRAMING_BYTES: usize = 4 * 1024;
/// Column bytes of one record: its limit, less what meta and Arrow's own framing may take.
const PACK_BYTES: usize = MAX_RECORD_BYTES - 128 * 1024;

/// Why rows could not be made a record. None is expected: intake has checked the rows.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("Arrow refused the columns: {0}; this is a fault of ours, please report it")]
    Arrow(#[from] ArrowError),
    #[error(
        "one row makes a record of {bytes} bytes, over the limit; this is a fault of ours, please report it"
    )]
    RowTooLarge { bytes: usize },
}

/// Rows to become one record, and which pendings they came from.
struct Draft {
    batch: RecordBatch,
    keys: Vec<u128>,
    fingerprints: Vec<u32>,
    /// Contiguous from row 0; each with the pending that it belongs to.
    spans: Vec<(RequestSpan, usize)>,
}

/// Makes the records of a group, each with the pendings (by their place in `group`) that have rows in
/// it. A pending is durable once all records that name it are.
///
/// # Errors
/// [`EncodeError`], in which case no record of the group may be used.
pub fn build_records(group: Vec<Pending>) -> Result<Vec<(RecordContent, Vec<usize>)>, EncodeError> {
    build_within(&group, PACK_BYTES, MAX_RECORD_BYTES)
}

/// As [`build_records`], with other limits.
pub(super) fn build_within(
    group: &[Pending],
    pack_bytes: usize,
    frame_bytes: usize,
) -> Result<Vec<(RecordContent, Vec<usize>)>, EncodeError> {
    let mut records = Vec::new();
    for pack in pack(group, pack_bytes) {
        let template = &group[pack[0]].template;
        let mut drafts = vec![join(group, &pack)?];
        while let Some(draft) = drafts.pop() {
            let content = draft.encode(template.meta.clone())?;
            if content.frame_bytes() <= frame_bytes {
                records.push((content, draft.pendings()));
                continue;
            }
            let (first, second) = draft.halve(&template.inner_key)?;
            drafts.extend([second, first]);
        }
    }
    Ok(records)
}

/// Which pendings go together, in order of the first of each.
fn pack(group: &[Pending], pack_bytes: usize) -> Vec<Vec<usize>> {
    struct Open {
        members: Vec<usize>,
        rows: usize,
        bytes: usize,
    }
    let mut packs: Vec<Open> = Vec::new();
    // The newest pack of each template; a group has few templates.
    let mut newest: Vec<usize> = Vec::new();
    let says = |pending: &Pending| !pending.keys.is_empty() || pending.span.rejected > 0;
    for (at, pending) in group.iter().enumerate().filter(|(_, pending)| says(pending)) {
        let (rows, bytes) = (pending.keys.len(), pending.bytes + SPAN_BYTES);
        let same = |pack: &&mut usize| same_template(&group[packs[**pack].members[0]], pending);
        let open = newest.iter_mut().find(same);
        if let Some(open) = &open
            && packs[**open].rows + rows <= MAX_RECORD_ROWS
            && packs[**open].bytes + bytes <= pack_bytes
        {
            let open = &mut packs[**open];
            open.members.push(at);
            open.rows += rows;
            open.bytes += bytes;
            continue;
        }
        let place = packs.len();
        match open {
            Some(open) => *open = place,
            None => newest.push(place),
        }
        packs.push(Open {
            members: vec![at],
            rows,
            bytes,
        });
    }
    packs.into_iter().map(|pack| pack.members).collect()
}

fn same_template(a: &Pending, b: &Pending) -> bool {
    let same = || Arc::ptr_eq(&a.template, &b.template) || a.template.meta == b.template.meta;
    a.partition == b.partition && same()
}

fn join(group: &[Pending], pack: &[usize]) -> Result<Draft, EncodeError> {
    let first = &group[pack[0]];
    let with_rows: Vec<&Pending> = pack
        .iter()
        .map(|at| &group[*at])
        .filter(|one| !one.keys.is_empty())
        .collect();
    let key = &first.template.inner_key;
    let batch = match with_rows[..] {
        [] => first.batch.clone(),
        [only] if only.is_part => compacted(&only.batch, key)?,
        [only] => only.batch.clone(),
        _ => {
            let batches: Vec<&RecordBatch> = with_rows.iter().map(|one| &one.batch).collect();
            join_batches(&batches, key)?
        }
    };
    let mut draft = Draft {
        batch,
        keys: Vec::new(),
        fingerprints: Vec::new(),
        spans: Vec::with_capacity(pack.len()),
    };
    for at in pack {
        let pending = &group[*at];
        let span = RequestSpan {
            first_row: as_u32(draft.keys.len()),
            rows: as_u32(pending.keys.len()),
            ..pending.span
        };
        draft.spans.push((span, *at));
        draft.keys.extend_from_slice(&pending.keys);
        draft.fingerprints.extend_from_slice(&pending.fingerprints);
    }
    Ok(draft)
}

fn join_batches(batches: &[&RecordBatch], key: &[u8; 16]) -> Result<RecordBatch, ArrowError> {
    let schema = batches[0].schema();
    let columns = (0..schema.fields().len()).map(|column| {
        let parts: Vec<ArrayRef> = batches
            .iter()
            .map(|batch| Arc::clone(batch.column(column)))
            .collect();
        if is_dictionary(&parts[0]) {
            return dictionary::join(&parts, key);
        }
        let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
        arrow_select::concat::concat(&parts)
    });
    RecordBatch::try_new(Arc::clone(&schema), columns.collect::<Result<_, _>>()?)
}

/// The batch with dictionaries that hold only what its rows use.
fn compacted(batch: &RecordBatch, key: &[u8; 16]) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter();
    let columns = columns.map(|column| compact(Arc::clone(column), key));
    RecordBatch::try_new(batch.schema(), columns.collect::<Result<_, _>>()?)
}

fn compact(column: ArrayRef, key: &[u8; 16]) -> Result<ArrayRef, ArrowError> {
    if is_dictionary(&column) {
        return dictionary::join(std::slice::from_ref(&column), key);
    }
    Ok(column)
}

fn is_dictionary(column: &ArrayRef) -> bool {
    matches!(column.data_type(), DataType::Dictionary(_, _))
}

impl Draft {
    fn encode(&self, meta: bytes::Bytes) -> Result<RecordContent, EncodeError> {
        let stream = match self.keys[..] {
            [] => Vec::new(),
            _ => ipc(&self.batch)?,
        };
        Ok(RecordContent {
            meta,
            spans: self.spans.iter().map(|(span, _)| *span).collect(),
            keys: self.keys.clone(),
            fingerprints: self.fingerprints.clone(),
            // All of the stream, with its schema and dictionaries: whoever reads the columns holds it unpacked.
            column_bytes: u32::try_from(stream.len()).unwrap_or(u32::MAX),
            body: packed::pack(stream),
        })
    }

    fn pendings(&self) -> Vec<usize> {
        self.spans.iter().map(|(_, pending)| *pending).collect()
    }

    fn halve(&self, key: &[u8; 16]) -> Result<(Self, Self), EncodeError> {
        let rows = self.keys.len();
        if rows < 2 {
            let bytes = self.encode(bytes::Bytes::new())?.frame_bytes();
            return Err(EncodeError::RowTooLarge { bytes });
        }
        let middle = rows / 2;
        Ok((self.part(0, middle, key)?, self.part(middle, rows, key)?))
    }

    /// Rows `from..to`, with dictionaries that hold only what these use.
    fn part(&self, from: usize, to: usize, key: &[u8; 16]) -> Result<Self, EncodeError> {
        let rows = self.keys.len();
        let prints = if self.fingerprints.is_empty() {
            &[][..]
        } else {
            &self.fingerprints[from..to]
        };
        Ok(Self {
            batch: compacted(&self.batch.slice(from, to - from), key)?,
            keys: self.keys[from..to].to_vec(),
            fingerprints: prints.to_vec(),
            spans: self
                .spans
                .iter()
                .filter_map(|(span, at)| Some((clip(span, from, to, rows)?, *at)))
                .collect(),
        })
    }
}

/// The part of a span within rows `from..to` of `all`. The totals of its request stay with its first row;
/// a span without rows goes to the part that has the row after it, or the last.
fn clip(span: &RequestSpan, from: usize, to: usize, all: usize) -> Option<RequestSpan> {
    let (start, end) = (span.first_row as usize, (span.first_row + span.rows) as usize);
    if start == end {
        let here = start >= from && (start < to || to == all);
        return here.then(|| RequestSpan {
            first_row: as_u32(start - from),
            ..*span
        });
    }
    let (first, last) = (start.max(from), end.min(to));
    let (taken, rejected) = if start >= from {
        (span.taken, span.rejected)
    } else {
        (0, 0)
    };
    (first < last).then(|| RequestSpan {
        first_row: as_u32(first - from),
        rows: as_u32(last - first),
        taken,
        rejected,
        ..*span
    })
}

/// One batch as an Arrow IPC stream.
///
/// # Errors
/// Where Arrow refuses the batch.
pub(super) fn ipc(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let options = IpcWriteOptions::try_new(8, false, arrow_ipc::MetadataVersion::V5)?;
    let room = Vec::with_capacity(column_bytes(batch)?.min(PACK_BYTES) + FRAMING_BYTES);
    let mut writer = StreamWriter::try_new_with_options(room, &batch.schema(), options)?;
    writer.write(batch)?;
    writer.into_inner()
}

/// What the rows of a batch take, whatever its buffers have room for; more where they are a part of lists or maps.
fn column_bytes(batch: &RecordBatch) -> Result<usize, ArrowError> {
    let columns = batch.columns().iter();
    columns
        .map(|column| column.to_data().get_slice_memory_size())
        .sum()
}

fn as_u32(rows: usize) -> u32 {
    u32::try_from(rows).expect("a record has at most 65,536 rows")
}
