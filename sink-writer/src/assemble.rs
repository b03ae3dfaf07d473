//! The columns of one block: ours beside the records', by name, as the table takes them.

use crate::adapt::{fits, fits_field, meeting_type};
use crate::block::Slice;
use crate::tables::Table;
use arrow_array::cast::AsArray as _;
use arrow_array::types::Int32Type;
use arrow_array::{
    Array, ArrayRef, DictionaryArray, Int32Array, ListArray, RecordBatch, StringArray,
    TimestampMillisecondArray, UInt16Array, UInt32Array, UInt64Array, new_null_array,
};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema};
use bytes::Bytes;
use sluice_common::config::OWN_COLUMNS;
use sluice_common::dictionary;
use sluice_common::ids::{LogId, Name, RequestId, source_o};
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

/// ClickHouse's code for a type mismatch, used for what is refused before it is sent.
const TYPE_MISMATCH: u32 = 53;

/// One column of a block.
#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    pub array: ArrayRef,
}

/// Rows that the table cannot take, found before anything was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: u32,
    pub message: String,
}

impl Refusal {
    /// A refusal by reason of `table`.
    #[must_use]
    pub fn new(table: &Name, why: &str) -> Self {
        Self {
            code: TYPE_MISMATCH,
            message: format!("table {table} cannot be written: {why}"),
        }
    }
}

type Fitted = Result<(Vec<Column>, Vec<String>), Refusal>;

/// The columns of some pieces of records, as far as the table has them; with the names of those that it
/// lacks.
pub(crate) fn rows(pieces: &[Slice<'_>], table: &Table) -> Fitted {
    let (mut kept, mut left_out) = fit(own(pieces), table)?;
    for name in names(pieces) {
        let Some(to) = table.column(&name) else {
            left_out.push(name);
            continue;
        };
        let versions = versions(pieces, &name);
        if let Some(unfit) = versions.iter().find(|version| !fits_field(version, to)) {
            return Err(misfit(table, &name, unfit.data_type(), to));
        }
        let array = gather(pieces, &name, to, &versions).map_err(|error| {
            Refusal::new(
                &table.name,
                &format!("column {name} ({to}) cannot be built: {error}"),
            )
        })?;
        kept.push(Column { name, array });
    }
    Ok((kept, left_out))
}

/// What records of several schema versions say of one column, each once.
fn versions<'p>(pieces: &[Slice<'p>], name: &str) -> Vec<&'p Field> {
    let mut versions: Vec<&Field> = Vec::new();
    for piece in pieces {
        let found = piece.batch.schema_ref().fields().find(name);
        if let Some((_, field)) = found
            && !versions
                .iter()
                .any(|one| one.data_type() == field.data_type() && one.metadata() == field.metadata())
        {
            versions.push(field);
        }
    }
    versions
}

fn misfit(table: &Table, name: &str, from: &DataType, to: &str) -> Refusal {
    let why = format!(
        "column {name} is {} in the dataset and {to} in the table",
        shown(from)
    );
    Refusal::new(&table.name, &why)
}

/// Leaves out what the table lacks, and refuses what it would change.
pub(crate) fn fit(columns: Vec<Column>, table: &Table) -> Fitted {
    let (mut kept, mut left_out) = (Vec::with_capacity(columns.len()), Vec::new());
    for column in columns {
        let from = column.array.data_type();
        match table.column(&column.name) {
            None => left_out.push(column.name),
            Some(to) if fits(from, to) => kept.push(column),
            Some(to) => return Err(misfit(table, &column.name, from, to)),
        }
    }
    Ok((kept, left_out))
}

/// An Arrow type as people call it.
fn shown(from: &DataType) -> String {
    if *from == DataType::FixedSizeBinary(16) {
        "UUID".to_owned()
    } else {
        from.to_string()
    }
}

/// All column names of the records, in order of first appearance.
fn names(pieces: &[Slice<'_>]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for piece in pieces {
        for field in piece.batch.schema_ref().fields() {
            if !OWN_COLUMNS.contains(&field.name().as_str()) && !names.contains(field.name()) {
                names.push(field.name().clone());
            }
        }
    }
    names
}

/// One column of all pieces; a record of another schema version may lack it, or have it narrower.
fn gather(pieces: &[Slice<'_>], name: &str, to: &str, versions: &[&Field]) -> Result<ArrayRef, ArrowError> {
    let mut types = versions.iter().map(|version| version.data_type());
    let first = types.next().unwrap_or(&DataType::Null);
    let meeting = if types.all(|other| other == first) {
        first.clone()
    } else {
        meeting_type(to)
            .ok_or_else(|| ArrowError::CastError(format!("{} versions of it do not meet", versions.len())))?
    };
    let arrays = pieces
        .iter()
        .map(|piece| take(piece, name, &meeting))
        .collect::<Result<Vec<_>, _>>()?;
    if matches!(meeting, DataType::Dictionary(_, _)) {
        // ClickHouse refuses a dictionary that holds a value twice, which plain joining may make.
        return dictionary::join(&arrays, hash_key());
    }
    let arrays: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
    arrow_select::concat::concat(&arrays)
}

/// Keys the hash of dictionary entries, so that no tenant can choose strings that collide. It changes
/// speed only: entries stand in order of first use.
fn hash_key() -> &'static [u8; 16] {
    static KEY: OnceLock<[u8; 16]> = OnceLock::new();
    KEY.get_or_init(|| RequestId::random().0.to_le_bytes())
}

fn take(piece: &Slice<'_>, name: &str, meeting: &DataType) -> Result<ArrayRef, ArrowError> {
    let Some(array) = piece.batch.column_by_name(name) else {
        return Ok(new_null_array(meeting, piece.rows.len()));
    };
    let array = if piece.rows.len() == piece.batch.num_rows() {
        array.clone()
    } else {
        arrow_select::take::take(array, &UInt32Array::from(piece.rows.clone()), None)?
    };
    if array.data_type() == meeting {
        return Ok(array);
    }
    let array = uuids_as_text(&array)?;
    let strict = arrow_cast::CastOptions {
        safe: false,
        ..Default::default()
    };
    arrow_cast::cast_with_options(&array, meeting, &strict)
}

/// The array with its UUIDs as text, because that is how they meet with strings; another as it is.
fn uuids_as_text(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if let Some(uuids) = array
        .as_fixed_size_binary_opt()
        .filter(|uuids| uuids.value_length() == 16)
    {
        let texts = uuids.iter().map(|bytes| bytes.map(uuid_text));
        return Ok(Arc::new(StringArray::from_iter(texts)));
    }
    let Some(list) = array.as_list_opt::<i32>() else {
        return Ok(array.clone());
    };
    let items = uuids_as_text(list.values())?;
    let field = Arc::new(Field::new("item", items.data_type().clone(), true));
    let list = ListArray::try_new(field, list.offsets().clone(), items, list.nulls().cloned())?;
    Ok(Arc::new(list))
}

/// The usual form of a UUID.
pub(crate) fn uuid_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn own(pieces: &[Slice<'_>]) -> Vec<Column> {
    let each = || {
        pieces
            .iter()
            .flat_map(|piece| piece.rows.iter().map(move |row| (piece.record, *row)))
    };
    let log = pieces.first().map_or(LogId(0), |piece| piece.record.place.log);
    let partition = pieces.first().map_or(0, |piece| piece.partition);
    let tenants = runs(
        pieces
            .iter()
            .map(|piece| (piece.record.meta.tenant.as_str(), piece.rows.len())),
    );
    let o = each()
        .map(|(record, row)| source_o(record.place.offset, row))
        .collect();
    let times = each()
        .map(|(record, _)| milliseconds(record.place.append_ms))
        .collect();
    let mut columns = vec![Column {
        name: "tenant".into(),
        array: tenants,
    }];
    columns.extend(stamps(times, log, partition, o));
    columns
}

/// `ingested_at` and the provenance.
pub(crate) fn stamps(times: Vec<i64>, log: LogId, partition: u16, o: Vec<u64>) -> [Column; 4] {
    let rows = o.len();
    let array = |name: &str, array: ArrayRef| Column {
        name: name.into(),
        array,
    };
    [
        array(
            "ingested_at",
            Arc::new(TimestampMillisecondArray::from(times).with_timezone("UTC")),
        ),
        array("_src_l", Arc::new(UInt64Array::from_value(log.0, rows))),
        array("_src_p", Arc::new(UInt16Array::from_value(partition, rows))),
        array("_src_o", Arc::new(UInt64Array::from(o))),
    ]
}

pub(crate) fn milliseconds(append_ms: u64) -> i64 {
    i64::try_from(append_ms).unwrap_or(i64::MAX)
}

/// A dictionary column of runs of the same text.
pub(crate) fn runs<'a>(runs: impl Iterator<Item = (&'a str, usize)>) -> ArrayRef {
    let (mut values, mut keys): (Vec<&str>, Vec<i32>) = (Vec::new(), Vec::new());
    for (text, rows) in runs {
        let known = values.iter().position(|value| *value == text);
        let at = known.unwrap_or_else(|| {
            values.push(text);
            values.len() - 1
        });
        keys.extend(std::iter::repeat_n(i32::try_from(at).unwrap_or(i32::MAX), rows));
    }
    let values: ArrayRef = Arc::new(StringArray::from(values));
    Arc::new(DictionaryArray::<Int32Type>::new(Int32Array::from(keys), values))
}

/// One Arrow IPC stream with one batch.
pub(crate) fn encode(columns: Vec<Column>) -> Result<Bytes, Refusal> {
    let field = |column: &Column| Field::new(&column.name, column.array.data_type().clone(), true);
    let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
    let arrays = columns.into_iter().map(|column| column.array).collect();
    let written = RecordBatch::try_new(schema.clone(), arrays).and_then(|batch| {
        let mut writer = StreamWriter::try_new(Vec::with_capacity(batch.get_array_memory_size()), &schema)?;
        writer.write(&batch)?;
        writer.into_inner()
    });
    written.map(Bytes::from).map_err(|error| Refusal {
        code: TYPE_MISMATCH,
        message: format!("the block cannot be encoded: {error}"),
    })
}
