//! Strings, and maps of strings, of one column: end to end, with the places where each ends.

use super::arrow::map_fields;
use super::hashed::hashed_bytes;
use arrow_array::{ArrayRef, MapArray, StringArray, StructArray};
use arrow_buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field as ArrowField};
use sluice_common::dictionary::strings;
use std::sync::Arc;

/// Strings end to end.
pub struct Texts {
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

impl Texts {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            offsets: vec![0],
            data: Vec::new(),
        }
    }

    /// Makes room for so many; how long they are is not known.
    pub fn reserve(&mut self, rows: usize) {
        self.offsets.reserve(rows);
    }

    /// Adds one.
    pub fn push(&mut self, text: &str) {
        self.data.extend_from_slice(text.as_bytes());
        self.offsets.push(as_i32(self.data.len()));
    }

    /// Adds the one that `write` appends, which is UTF-8, and says how many bytes it took.
    pub fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        let before = self.data.len();
        write(&mut self.data);
        self.offsets.push(as_i32(self.data.len()));
        self.data.len() - before
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The bytes of one.
    #[must_use]
    pub fn get(&self, row: usize) -> &[u8] {
        &self.data[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }

    /// Takes back all but the first `rows`.
    pub fn truncate(&mut self, rows: usize) {
        self.offsets.truncate(rows + 1);
        self.data
            .truncate(self.offsets.last().map_or(0, |end| *end as usize));
    }

    /// The finished column.
    ///
    /// # Errors
    /// Only where this module contradicts itself.
    pub fn finish(self, nulls: Option<NullBuffer>) -> Result<StringArray, ArrowError> {
        let (offsets, data, _) = strings(self.offsets, self.data)?.into_parts();
        StringArray::try_new(offsets, data, nulls)
    }
}

impl Maps {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            offsets: vec![0],
            keys: Texts::new(),
            values: Texts::new(),
        }
    }

    /// Makes room for so many maps; what they hold is not known.
    pub fn reserve(&mut self, rows: usize) {
        self.offsets.reserve(rows);
    }

    /// Adds an entry to the row in the making; `write` appends the value's text, which is UTF-8.
    /// Says how many bytes it took.
    pub fn add(&mut self, key: &str, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        self.keys.push(key);
        key.len() + self.values.push_with(write) + 8
    }

    /// Ends the row in the making.
    pub fn close(&mut self) {
        self.offsets.push(as_i32(self.keys.len()));
    }

    /// Takes back all but the first `rows`, and what a row in the making added.
    pub fn truncate(&mut self, rows: usize) {
        self.offsets.truncate(rows + 1);
        let entries = self.offsets.last().map_or(0, |end| *end as usize);
        self.keys.truncate(entries);
        self.values.truncate(entries);
    }

    /// Appends the hashed form of `row`, its entries in the order of their keys: a map sent in another
    /// order is the same.
    pub fn write_hashed(&self, row: usize, out: &mut Vec<u8>) {
        let mut entries: Vec<_> = (self.offsets[row] as usize..self.offsets[row + 1] as usize).collect();
        entries.sort_unstable_by_key(|entry| self.keys.get(*entry));
        out.push(6);
        out.extend_from_slice(&as_i32(entries.len()).to_le_bytes());
        for entry in entries {
            hashed_bytes(self.keys.get(entry), out);
            hashed_bytes(self.values.get(entry), out);
        }
    }

    /// The finished column.
    ///
    /// # Errors
    /// Only where this module contradicts itself.
    pub fn finish(self) -> Result<ArrayRef, ArrowError> {
        let (keys, values) = (self.keys.finish(None)?, self.values.finish(None)?);
        let entries = StructArray::try_new(map_fields(), vec![Arc::new(keys), Arc::new(values)], None)?;
        let field = Arc::new(ArrowField::new("entries", DataType::Struct(map_fields()), false));
        let offsets = OffsetBuffer::new(ScalarBuffer::from(self.offsets));
        Ok(Arc::new(MapArray::try_new(field, offsets, entries, None, false)?))
    }
}

/// A length as Arrow's offsets have it.
pub fn as_i32(length: usize) -> i32 {
    i32::try_from(length).expect("a batch's bytes are far below 2 GiB")
}
