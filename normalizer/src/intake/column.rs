//! One column while its rows are written: plain vectors, because a rejected row must be taken back.

use super::arrow::{arrow_type, primitive, time_unit, times};
use super::convert::Cell;
use super::hashed::{hashed_address, hashed_bytes, hashed_decimal, hashed_float, hashed_whole};
use super::strings::{Maps, Texts, as_i32};
use arrow_array::builder::BooleanBufferBuilder;
use arrow_array::types::{
    Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{
    ArrayRef, BooleanArray, Decimal128Array, Decimal256Array, FixedSizeBinaryArray, ListArray, MapArray,
    StructArray,
};
use arrow_buffer::{Buffer, NullBufferBuilder, OffsetBuffer, ScalarBuffer, i256};
use arrow_schema::{ArrowError, DataType, TimeUnit};
use sluice_common::config::Kind;
use sluice_common::dictionary::Interner;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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
    /// With precision and scale.
    Decimal(u8, u8, Vec<i128>),
    WideDecimal(u8, u8, Vec<i256>),
    Date(Vec<i32>),
    Uuid(Vec<[u8; 16]>),
    /// As text, because ClickHouse takes no other form of an IPv6 address from Arrow that is not a
    /// UUID's too; and the address of a row that has none.
    Address(Texts, IpAddr),
    Map(Maps),
    /// Entries before each map, one more than there are maps; and the maps' type.
    Entries(Vec<i32>, Texts, Box<Column>, DataType),
    /// Elements before each array, one more than there are arrays; and the arrays' type.
    List(Vec<i32>, Box<Column>, DataType),
}

/// What a column knew before the current row, where its own rows do not say it.
pub type Mark = usize;

impl Values {
    fn new(kind: &Kind, key: Option<&[u8; 16]>) -> Self {
        match kind {
            Kind::LowCardinalityString | Kind::Enum(_) => match key {
                Some(key) => Self::Dictionary(Vec::new(), Interner::new(key)),
                None => Self::Text(Texts::new()),
            },
            Kind::String | Kind::FixedString(_) | Kind::Json => Self::Text(Texts::new()),
            Kind::Bool => Self::Bool(BooleanBufferBuilder::new(0)),
            Kind::Int8 => Self::Int8(Vec::new()),
            Kind::Int16 => Self::Int16(Vec::new()),
            Kind::Int32 => Self::Int32(Vec::new()),
            Kind::Int64 => Self::Int64(Vec::new()),
            Kind::UInt8 => Self::UInt8(Vec::new()),
            Kind::UInt16 => Self::UInt16(Vec::new()),
            Kind::UInt32 => Self::UInt32(Vec::new()),
            Kind::UInt64 => Self::UInt64(Vec::new()),
            Kind::Float32 => Self::Float32(Vec::new()),
            Kind::Float64 => Self::Float64(Vec::new()),
            Kind::DateTime(_) | Kind::DateTime64(..) => Self::Time(time_unit(kind), Vec::new()),
            Kind::Decimal { precision, scale } if *precision <= 38 => {
                Self::Decimal(*precision, *scale, Vec::new())
            }
            Kind::Decimal { precision, scale } => Self::WideDecimal(*precision, *scale, Vec::new()),
            Kind::Date | Kind::Date32 => Self::Date(Vec::new()),
            Kind::Uuid => Self::Uuid(Vec::new()),
            Kind::Ipv4 => Self::Address(Texts::new(), Ipv4Addr::UNSPECIFIED.into()),
            Kind::Ipv6 => Self::Address(Texts::new(), Ipv6Addr::UNSPECIFIED.into()),
            Kind::MapStringString => Self::Map(Maps::new()),
            Kind::Map(inner) => {
                let values = Box::new(Column::new(&inner.kind, None));
                Self::Entries(vec![0], Texts::new(), values, arrow_type(kind))
            }
            Kind::Array(inner) => {
                let items = Box::new(Column::new(&inner.kind, None));
                Self::List(vec![0], items, arrow_type(kind))
            }
        }
    }
}

impl Column {
    /// An empty column of `kind`; `key` is the secret of its dictionary's hash. Without one, which is
    /// so within arrays and maps, there is no dictionary.
    #[must_use]
    pub fn new(kind: &Kind, key: Option<&[u8; 16]>) -> Self {
        Self {
            values: Values::new(kind, key),
            nulls: NullBufferBuilder::new(0),
            rows: 0,
        }
    }

    /// Makes room for so many rows, as far as it is known what they take.
    pub fn reserve(&mut self, rows: usize) {
        match &mut self.values {
            Values::Text(texts) | Values::Address(texts, _) => texts.reserve(rows),
            Values::Dictionary(keys, _) => keys.reserve(rows),
            Values::Bool(bits) => bits.reserve(rows),
            Values::Int8(values) => values.reserve(rows),
            Values::Int16(values) => values.reserve(rows),
            Values::Int32(values) | Values::Date(values) => values.reserve(rows),
            Values::Int64(values) | Values::Time(_, values) => values.reserve(rows),
            Values::UInt8(values) => values.reserve(rows),
            Values::UInt16(values) => values.reserve(rows),
            Values::UInt32(values) => values.reserve(rows),
            Values::UInt64(values) => values.reserve(rows),
            Values::Float32(values) => values.reserve(rows),
            Values::Float64(values) => values.reserve(rows),
            Values::Decimal(_, _, values) => values.reserve(rows),
            Values::WideDecimal(_, _, values) => values.reserve(rows),
            Values::Uuid(values) => values.reserve(rows),
            Values::Map(maps) => maps.reserve(rows),
            Values::Entries(offsets, ..) | Values::List(offsets, ..) => offsets.reserve(rows),
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
        let is_null = matches!(cell, Cell::Null);
        self.nulls.append(!is_null);
        let whole = if let Cell::Int(value) = cell { value } else { 0 };
        let float = if let Cell::Float(value) = cell { value } else { 0.0 };
        let text = if let Cell::Text(text) = cell { text } else { "" };
        match &mut self.values {
            Values::Text(texts) => {
                texts.push(text);
                return text.len();
            }
            Values::Dictionary(keys, dictionary) => {
                let (key, grown) = if is_null { (0, 0) } else { dictionary.intern(text) };
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
            Values::Decimal(_, _, values) => values.push(decimal(cell).to_i128().unwrap_or_default()),
            Values::WideDecimal(_, _, values) => values.push(decimal(cell)),
            Values::Date(values) => values.push(if let Cell::Date(days) = cell { days } else { 0 }),
            Values::Uuid(values) => values.push(if let Cell::Uuid(bytes) = cell {
                bytes
            } else {
                [0; 16]
            }),
            Values::Address(texts, none) => {
                let address = if let Cell::Address(address) = cell {
                    address
                } else {
                    *none
                };
                return texts.push_with(|out| write_address(address, out));
            }
            Values::Map(maps) => maps.close(),
            Values::Entries(offsets, keys, _, _) => offsets.push(as_i32(keys.len())),
            Values::List(offsets, items, _) => offsets.push(as_i32(items.rows)),
        }
        0
    }

    /// Appends the text that `write` appends, which is UTF-8, in a column of strings or JSON, and says
    /// how many bytes it took.
    pub fn push_text(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        let Values::Text(texts) = &mut self.values else {
            return self.push(Cell::Null);
        };
        self.rows += 1;
        self.nulls.append_non_null();
        texts.push_with(write)
    }

    /// The column of the values within an array or a map, to add some before [`Self::push`] closes the
    /// row. A map also takes a key for each, with [`Self::push_key`].
    pub fn inner(&mut self) -> Option<&mut Column> {
        if let Values::List(_, inner, _) | Values::Entries(_, _, inner, _) = &mut self.values {
            Some(inner)
        } else {
            None
        }
    }

    /// Adds the key of the next value of a map, and says how many bytes it took.
    pub fn push_key(&mut self, key: &str) -> usize {
        if let Values::Entries(_, keys, _, _) = &mut self.values {
            keys.push(key);
        }
        key.len() + 4
    }

    /// Entries of the array or map that was written last; 0 in a column of other things.
    #[must_use]
    pub fn last_length(&self) -> usize {
        let (Values::List(offsets, ..) | Values::Entries(offsets, ..)) = &self.values else {
            return 0;
        };
        match offsets.as_slice() {
            [.., start, end] => usize::try_from(end - start).unwrap_or_default(),
            _ => 0,
        }
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
            Values::Decimal(_, _, values) => values.truncate(rows),
            Values::WideDecimal(_, _, values) => values.truncate(rows),
            Values::Date(values) => values.truncate(rows),
            Values::Uuid(values) => values.truncate(rows),
            Values::Address(texts, _) => texts.truncate(rows),
            Values::Map(maps) => maps.truncate(rows),
            Values::Entries(offsets, keys, values, _) => {
                let entries = end_after(offsets, rows);
                keys.truncate(entries);
                values.truncate(entries, 0);
            }
            Values::List(offsets, items, _) => items.truncate(end_after(offsets, rows), 0),
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
            Values::Decimal(_, scale, values) => hashed_decimal(i256::from_i128(values[row]), *scale, out),
            Values::WideDecimal(_, scale, values) => hashed_decimal(values[row], *scale, out),
            Values::Date(values) => {
                out.push(8);
                out.extend_from_slice(&values[row].to_le_bytes());
            }
            Values::Uuid(values) => {
                out.push(9);
                out.extend_from_slice(&values[row]);
            }
            Values::Address(texts, _) => hashed_address(texts.get(row), out),
            Values::Map(maps) => maps.write_hashed(row, out),
            Values::Entries(offsets, keys, values, _) => {
                let mut entries: Vec<_> = span(offsets, row).collect();
                entries.sort_unstable_by_key(|entry| keys.get(*entry));
                out.push(6);
                out.extend_from_slice(&as_i32(entries.len()).to_le_bytes());
                for entry in entries {
                    hashed_bytes(keys.get(entry), out);
                    values.write_hashed(entry, out);
                }
            }
            Values::List(offsets, items, _) => {
                let items_of_row = span(offsets, row);
                out.push(11);
                out.extend_from_slice(&as_i32(items_of_row.len()).to_le_bytes());
                items_of_row.for_each(|item| items.write_hashed(item, out));
            }
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
            Values::Decimal(precision, scale, values) => {
                let array = Decimal128Array::try_new(ScalarBuffer::from(values), nulls)?;
                Arc::new(array.with_precision_and_scale(precision, as_i8(scale))?)
            }
            Values::WideDecimal(precision, scale, values) => {
                let array = Decimal256Array::try_new(ScalarBuffer::from(values), nulls)?;
                Arc::new(array.with_precision_and_scale(precision, as_i8(scale))?)
            }
            Values::Date(values) => primitive::<Date32Type>(values, nulls)?,
            Values::Uuid(values) => {
                let bytes = Buffer::from_vec(values.into_flattened());
                Arc::new(FixedSizeBinaryArray::try_new(16, bytes, nulls)?)
            }
            Values::Address(texts, _) => Arc::new(texts.finish(nulls)?),
            Values::Map(maps) => maps.finish()?,
            Values::Entries(offsets, keys, values, of) => entries(offsets, keys, *values, &of)?,
            Values::List(offsets, items, of) => list(offsets, *items, &of)?,
        })
    }
}

fn entries(offsets: Vec<i32>, keys: Texts, values: Column, of: &DataType) -> Result<ArrayRef, ArrowError> {
    let DataType::Map(entry, _) = of else {
        return Err(ArrowError::SchemaError("a map column is of another type".into()));
    };
    let DataType::Struct(fields) = entry.data_type() else {
        return Err(ArrowError::SchemaError("a map column has no entries".into()));
    };
    let keys: ArrayRef = Arc::new(keys.finish(None)?);
    let both = StructArray::try_new(fields.clone(), vec![keys, values.finish()?], None)?;
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    Ok(Arc::new(MapArray::try_new(
        Arc::clone(entry),
        offsets,
        both,
        None,
        false,
    )?))
}

fn list(offsets: Vec<i32>, items: Column, of: &DataType) -> Result<ArrayRef, ArrowError> {
    let DataType::List(item) = of else {
        return Err(ArrowError::SchemaError(
            "an array column is of another type".into(),
        ));
    };
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    Ok(Arc::new(ListArray::try_new(
        Arc::clone(item),
        offsets,
        items.finish()?,
        None,
    )?))
}

fn span(offsets: &[i32], row: usize) -> std::ops::Range<usize> {
    offsets[row] as usize..offsets[row + 1] as usize
}

/// Cuts the offsets behind `rows` and says where the last of these ends.
fn end_after(offsets: &mut Vec<i32>, rows: usize) -> usize {
    offsets.truncate(rows + 1);
    offsets.last().map_or(0, |end| *end as usize)
}

fn decimal(cell: Cell<'_>) -> i256 {
    if let Cell::Decimal(value) = cell {
        value
    } else {
        i256::ZERO
    }
}

fn write_address(address: IpAddr, out: &mut Vec<u8>) {
    write!(out, "{address}").expect("writing to memory does not fail");
}

fn as_i8(scale: u8) -> i8 {
    i8::try_from(scale).unwrap_or(i8::MAX)
}

fn narrow<T: TryFrom<i128> + Default>(value: i128) -> T {
    T::try_from(value).unwrap_or_default()
}

fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}
