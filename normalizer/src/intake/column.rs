//! One column while its rows are written: plain vectors, because a rejected row must be taken back.

use super::convert::Cell;
use super::schema::{map_fields, time_unit};
use arrow_array::builder::BooleanBufferBuilder;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow_array::{ArrayRef, ArrowPrimitiveType, BooleanArray, MapArray, PrimitiveArray, StructArray};
use arrow_array::{
    TimestampMicrosecondArray, TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray,
};
use arrow_buffer::{NullBuffer, NullBufferBuilder, OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field as ArrowField, TimeUnit};
use sluice_common::config::Kind;
use sluice_common::dictionary::{Interner, strings};
use std::sync::Arc;

/// A column and its nulls.
pub struct Column {
    values: Values,
    nulls: NullBufferBuilder,
    rows: usize,
}

enum Values {
    Text(Texts),
    Dictionary(Vec<i32>, Interner),
    Bool(BooleanBufferBuilder),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    UInt8(Vec<u8>),
    UInt16(Vec<u16>),
    UInt32(Vec<u32>),
    UInt64(Vec<u64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Time(TimeUnit, Vec<i64>),
    Map(Maps),
}

/// Strings end to end.
struct Texts {
    /// One more than there are strings; the first is 0.
    offsets: Vec<i32>,
    data: Vec<u8>,
}

/// Maps end to end.
pub struct Maps {
    /// Entries before each map; one more than there are maps.
    offsets: Vec<i32>,
    keys: Texts,
    values: Texts,
}

/// What a column knew before the current row, where its own rows do not say it.
pub type Mark = usize;

impl Column {
    /// An empty column of `kind`; `key` is the secret of its dictionary's hash.
    #[must_use]
    pub fn new(kind: Kind, key: &[u8; 16]) -> Self {
        let values = match kind {
            Kind::String => Values::Text(Texts::new()),
            Kind::LowCardinalityString => Values::Dictionary(Vec::new(), Interner::new(key)),
            Kind::Bool => Values::Bool(BooleanBufferBuilder::new(0)),
            Kind::Int8 => Values::Int8(Vec::new()),
            Kind::Int16 => Values::Int16(Vec::new()),
            Kind::Int32 => Values::Int32(Vec::new()),
            Kind::Int64 => Values::Int64(Vec::new()),
            Kind::UInt8 => Values::UInt8(Vec::new()),
            Kind::UInt16 => Values::UInt16(Vec::new()),
            Kind::UInt32 => Values::UInt32(Vec::new()),
            Kind::UInt64 => Values::UInt64(Vec::new()),
            Kind::Float32 => Values::Float32(Vec::new()),
            Kind::Float64 => Values::Float64(Vec::new()),
            Kind::DateTime | Kind::DateTime64(_) => Values::Time(time_unit(kind), Vec::new()),
            Kind::MapStringString => Values::Map(Maps::new()),
        };
        Self {
            values,
            nulls: NullBufferBuilder::new(0),
            rows: 0,
        }
    }

    /// Rows written.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// What [`Self::truncate`] needs besides the rows to return to here.
    #[must_use]
    pub fn mark(&self) -> Mark {
        if let Values::Dictionary(_, dictionary) = &self.values {
            dictionary.len()
        } else {
            0
        }
    }

    /// Appends a value that fits, and says how many bytes it took besides its fixed part. Null, and
    /// what does not fit (there is none behind [`super::convert`]), is the type's zero.
    pub fn push(&mut self, cell: Cell<'_>) -> usize {
        self.rows += 1;
        self.nulls.append(cell != Cell::Null);
        let whole = if let Cell::Int(value) = cell { value } else { 0 };
        let float = if let Cell::Float(value) = cell { value } else { 0.0 };
        let text = if let Cell::Text(text) = cell { text } else { "" };
        match &mut self.values {
            Values::Text(texts) => {
                texts.push(text);
                return text.len();
            }
            Values::Dictionary(keys, dictionary) => {
                let (key, grown) = if cell == Cell::Null {
                    (0, 0)
                } else {
                    dictionary.intern(text)
                };
                keys.push(key);
                return grown;
            }
            Values::Bool(bits) => bits.append(cell == Cell::Bool(true)),
            Values::Int8(values) => values.push(narrow(whole)),
            Values::Int16(values) => values.push(narrow(whole)),
            Values::Int32(values) => values.push(narrow(whole)),
            Values::Int64(values) => values.push(narrow(whole)),
            Values::UInt8(values) => values.push(narrow(whole)),
            Values::UInt16(values) => values.push(narrow(whole)),
            Values::UInt32(values) => values.push(narrow(whole)),
            Values::UInt64(values) => values.push(narrow(whole)),
            Values::Float32(values) => values.push(float as f32),
            Values::Float64(values) => values.push(float),
            Values::Time(unit, values) => {
                let time = if let Cell::Time(time) = cell {
                    time
                } else {
                    Default::default()
                };
                values.push(time.ticks(per_second(*unit)));
            }
            Values::Map(maps) => maps.close(),
        }
        0
    }

    /// The maps of a map column, to add entries before [`Self::push`] closes the row.
    pub fn maps(&mut self) -> Option<&mut Maps> {
        if let Values::Map(maps) = &mut self.values {
            Some(maps)
        } else {
            None
        }
    }

    /// Takes back all rows but the first `rows`, and what a row in the making added.
    pub fn truncate(&mut self, rows: usize, mark: Mark) {
        self.rows = rows;
        self.nulls.truncate(rows);
        match &mut self.values {
            Values::Text(texts) => texts.truncate(rows),
            Values::Dictionary(keys, dictionary) => {
                keys.truncate(rows);
                dictionary.truncate(mark);
            }
            Values::Bool(bits) => bits.truncate(rows),
            Values::Int8(values) => values.truncate(rows),
            Values::Int16(values) => values.truncate(rows),
            Values::Int32(values) => values.truncate(rows),
            Values::Int64(values) | Values::Time(_, values) => values.truncate(rows),
            Values::UInt8(values) => values.truncate(rows),
            Values::UInt16(values) => values.truncate(rows),
            Values::UInt32(values) => values.truncate(rows),
            Values::UInt64(values) => values.truncate(rows),
            Values::Float32(values) => values.truncate(rows),
            Values::Float64(values) => values.truncate(rows),
            Values::Map(maps) => maps.truncate(rows),
        }
    }

    /// Appends the value of `row` in the form that is hashed: see [`super::identity`].
    pub fn write_hashed(&self, row: usize, out: &mut Vec<u8>) {
        if !self.nulls.is_valid(row) {
            return out.push(0);
        }
        match &self.values {
            Values::Text(texts) => hashed_bytes(texts.get(row), out),
            Values::Dictionary(keys, dictionary) => hashed_bytes(dictionary.get(keys[row] as usize), out),
            Values::Bool(bits) => out.extend_from_slice(&[2, u8::from(bits.get_bit(row))]),
            Values::Int8(values) => hashed_whole(values[row].into(), out),
            Values::Int16(values) => hashed_whole(values[row].into(), out),
            Values::Int32(values) => hashed_whole(values[row].into(), out),
            Values::Int64(values) => hashed_whole(values[row].into(), out),
            Values::UInt8(values) => hashed_whole(values[row].into(), out),
            Values::UInt16(values) => hashed_whole(values[row].into(), out),
            Values::UInt32(values) => hashed_whole(values[row].into(), out),
            Values::UInt64(values) => hashed_whole(values[row].into(), out),
            Values::Float32(values) => hashed_float(values[row].into(), out),
            Values::Float64(values) => hashed_float(values[row], out),
            Values::Time(unit, values) => {
                let nanos = i128::from(values[row]) * i128::from(1_000_000_000 / per_second(*unit));
                out.push(5);
                out.extend_from_slice(&nanos.to_le_bytes());
            }
            Values::Map(maps) => maps.write_hashed(row, out),
        }
    }

    /// Whole seconds since 1970 of `row`, in a time column.
    #[must_use]
    pub fn seconds(&self, row: usize) -> Option<i64> {
        let Values::Time(unit, values) = &self.values else {
            return None;
        };
        Some(values[row].div_euclid(per_second(*unit)))
    }

    /// The finished column.
    ///
    /// # Errors
    /// Only where this module contradicts itself.
    pub fn finish(mut self) -> Result<ArrayRef, ArrowError> {
        let nulls = self.nulls.finish();
        Ok(match self.values {
            Values::Text(texts) => Arc::new(texts.finish(nulls)?),
            Values::Dictionary(keys, dictionary) => return dictionary.into_array(keys, nulls),
            Values::Bool(mut bits) => Arc::new(BooleanArray::new(bits.finish(), nulls)),
            Values::Int8(values) => primitive::<Int8Type>(values, nulls)?,
            Values::Int16(values) => primitive::<Int16Type>(values, nulls)?,
            Values::Int32(values) => primitive::<Int32Type>(values, nulls)?,
            Values::Int64(values) => primitive::<Int64Type>(values, nulls)?,
            Values::UInt8(values) => primitive::<UInt8Type>(values, nulls)?,
            Values::UInt16(values) => primitive::<UInt16Type>(values, nulls)?,
            Values::UInt32(values) => primitive::<UInt32Type>(values, nulls)?,
            Values::UInt64(values) => primitive::<UInt64Type>(values, nulls)?,
            Values::Float32(values) => primitive::<Float32Type>(values, nulls)?,
            Values::Float64(values) => primitive::<Float64Type>(values, nulls)?,
            Values::Time(unit, values) => times(unit, ScalarBuffer::from(values), nulls)?,
            Values::Map(maps) => maps.finish()?,
        })
    }
}

impl Texts {
    fn new() -> Self {
        Self {
            offsets: vec![0],
            data: Vec::new(),
        }
    }

    fn push(&mut self, text: &str) {
        self.data.extend_from_slice(text.as_bytes());
        self.close();
    }

    fn close(&mut self) {
        self.offsets.push(as_i32(self.data.len()));
    }

    fn get(&self, row: usize) -> &[u8] {
        &self.data[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }

    fn truncate(&mut self, rows: usize) {
        self.offsets.truncate(rows + 1);
        self.data
            .truncate(self.offsets.last().map_or(0, |end| *end as usize));
    }

    fn finish(self, nulls: Option<NullBuffer>) -> Result<arrow_array::StringArray, ArrowError> {
        let (offsets, data, _) = strings(self.offsets, self.data)?.into_parts();
        arrow_array::StringArray::try_new(offsets, data, nulls)
    }
}

impl Maps {
    fn new() -> Self {
        Self {
            offsets: vec![0],
            keys: Texts::new(),
            values: Texts::new(),
        }
    }

    /// Adds an entry to the row in the making; `write` appends the value's text, which is UTF-8.
    /// Says how many bytes it took.
    pub fn add(&mut self, key: &str, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        let before = self.values.data.len();
        self.keys.push(key);
        write(&mut self.values.data);
        self.values.close();
        key.len() + self.values.data.len() - before + 8
    }

    fn close(&mut self) {
        self.offsets.push(as_i32(self.keys.offsets.len() - 1));
    }

    fn truncate(&mut self, rows: usize) {
        self.offsets.truncate(rows + 1);
        let entries = self.offsets.last().map_or(0, |end| *end as usize);
        self.keys.truncate(entries);
        self.values.truncate(entries);
    }

    /// Entries in the order of their keys: a map sent in another order is the same.
    fn write_hashed(&self, row: usize, out: &mut Vec<u8>) {
        let mut entries: Vec<_> = (self.offsets[row] as usize..self.offsets[row + 1] as usize).collect();
        entries.sort_unstable_by_key(|entry| self.keys.get(*entry));
        out.push(6);
        out.extend_from_slice(&as_i32(entries.len()).to_le_bytes());
        for entry in entries {
            hashed_bytes(self.keys.get(entry), out);
            hashed_bytes(self.values.get(entry), out);
        }
    }

    fn finish(self) -> Result<ArrayRef, ArrowError> {
        let (keys, values) = (self.keys.finish(None)?, self.values.finish(None)?);
        let entries = StructArray::try_new(map_fields(), vec![Arc::new(keys), Arc::new(values)], None)?;
        let field = Arc::new(ArrowField::new("entries", DataType::Struct(map_fields()), false));
        let offsets = OffsetBuffer::new(ScalarBuffer::from(self.offsets));
        Ok(Arc::new(MapArray::try_new(field, offsets, entries, None, false)?))
    }
}

fn narrow<T: TryFrom<i128> + Default>(value: i128) -> T {
    T::try_from(value).unwrap_or_default()
}

fn as_i32(length: usize) -> i32 {
    i32::try_from(length).expect("a batch's bytes are far below 2 GiB")
}

fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

fn hashed_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(1);
    out.extend_from_slice(&as_i32(bytes.len()).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn hashed_whole(value: i128, out: &mut Vec<u8>) {
    out.push(3);
    out.extend_from_slice(&value.to_le_bytes());
}

fn hashed_float(value: f64, out: &mut Vec<u8>) {
    out.push(4);
    // Adding zero turns -0 into 0: they are equal, so they are one.
    out.extend_from_slice(&(value + 0.0).to_bits().to_le_bytes());
}

fn primitive<T: ArrowPrimitiveType>(
    values: Vec<T::Native>,
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef, ArrowError> {
    Ok(Arc::new(PrimitiveArray::<T>::try_new(
        ScalarBuffer::from(values),
        nulls,
    )?))
}

fn times(
    unit: TimeUnit,
    values: ScalarBuffer<i64>,
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef, ArrowError> {
    Ok(match unit {
        TimeUnit::Second => Arc::new(TimestampSecondArray::try_new(values, nulls)?.with_timezone("UTC")),
        TimeUnit::Millisecond => {
            Arc::new(TimestampMillisecondArray::try_new(values, nulls)?.with_timezone("UTC"))
        }
        TimeUnit::Microsecond => {
            Arc::new(TimestampMicrosecondArray::try_new(values, nulls)?.with_timezone("UTC"))
        }
        TimeUnit::Nanosecond => {
            Arc::new(TimestampNanosecondArray::try_new(values, nulls)?.with_timezone("UTC"))
        }
    })
}
