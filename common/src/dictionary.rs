//! Dictionaries of `low_cardinality(string)` columns: each distinct string once, in order of first use.

use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef, DictionaryArray, Int32Array, StringArray};
use arrow_buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::ArrowError;
use hashbrown::HashTable;
use siphasher::sip::SipHasher13;
use std::sync::Arc;

/// Distinct strings and their numbers. The hash is keyed, so that no tenant can send strings that
/// all fall into one bucket.
pub struct Interner {
    hasher: SipHasher13,
    table: HashTable<u32>,
    /// One more than there are strings; the first is 0.
    offsets: Vec<i32>,
    data: Vec<u8>,
    /// The number asked for last: neighbours are often equal.
    last: usize,
}

impl Interner {
    /// An empty dictionary.
    #[must_use]
    pub fn new(key: &[u8; 16]) -> Self {
        Self {
            hasher: SipHasher13::new_with_key(key),
            table: HashTable::new(),
            offsets: vec![0],
            data: Vec::new(),
            last: 0,
        }
    }

    /// Strings in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of string `number`.
    #[must_use]
    pub fn get(&self, number: usize) -> &[u8] {
        slice(&self.offsets, &self.data, number)
    }

    /// The number of `text`, and how many bytes the dictionary grew.
    pub fn intern(&mut self, text: &str) -> (i32, usize) {
        if self.last < self.len() && self.get(self.last) == text.as_bytes() {
            return (as_i32(self.last), 0);
        }
        let hash = self.hasher.hash(text.as_bytes());
        let (offsets, data) = (&self.offsets, &self.data);
        let same = |number: &u32| slice(offsets, data, *number as usize) == text.as_bytes();
        if let Some(number) = self.table.find(hash, same) {
            self.last = *number as usize;
            return (as_i32(self.last), 0);
        }
        self.last = self.len();
        let number = u32::try_from(self.last).expect("a block has at most 500,000 strings");
        self.data.extend_from_slice(text.as_bytes());
        self.offsets.push(as_i32(self.data.len()));
        let (hasher, offsets, data) = (&self.hasher, &self.offsets, &self.data);
        let rehash = |number: &u32| hasher.hash(slice(offsets, data, *number as usize));
        self.table.insert_unique(hash, number, rehash);
        (as_i32(self.last), text.len() + 4)
    }

    /// Forgets all strings but the first `len`: those that a rejected row brought.
    pub fn truncate(&mut self, len: usize) {
        for number in len..self.len() {
            let hash = self.hasher.hash(self.get(number));
            if let Ok(entry) = self.table.find_entry(hash, |other| *other as usize == number) {
                entry.remove();
            }
        }
        self.offsets.truncate(len + 1);
        self.data
            .truncate(self.offsets.last().map_or(0, |end| *end as usize));
    }

    /// The column of `keys` into this dictionary.
    ///
    /// # Errors
    /// Only where the keys are not this dictionary's.
    pub fn into_array(mut self, keys: Vec<i32>, nulls: Option<NullBuffer>) -> Result<ArrayRef, ArrowError> {
        if self.is_empty() {
            // A column of nulls: their keys are 0, and readers may look that up.
            self.intern("");
        }
        let values = strings(self.offsets, self.data)?;
        let keys = Int32Array::try_new(ScalarBuffer::from(keys), nulls)?;
        Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(
            keys,
            Arc::new(values),
        )?))
    }
}

/// A string column of buffers that came from `str`s.
///
/// # Errors
/// Where offsets and bytes contradict each other.
pub fn strings(offsets: Vec<i32>, data: Vec<u8>) -> Result<StringArray, ArrowError> {
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    StringArray::try_new(offsets, Buffer::from_vec(data), None)
}

/// Joins dictionary columns into one with one dictionary that holds only what is used.
///
/// # Errors
/// Where a column is not a dictionary of strings.
pub fn join(columns: &[ArrayRef], key: &[u8; 16]) -> Result<ArrayRef, ArrowError> {
    let rows = columns.iter().map(|column| column.len()).sum();
    let mut joined = Interner::new(key);
    let (mut keys, mut nulls) = (
        Vec::with_capacity(rows),
        arrow_buffer::NullBufferBuilder::new(rows),
    );
    for column in columns {
        let wrong = || ArrowError::SchemaError("a dictionary column was expected".to_owned());
        let column = column
            .as_any()
            .downcast_ref::<DictionaryArray<Int32Type>>()
            .ok_or_else(wrong)?;
        let values = column
            .values()
            .as_any()
            .downcast_ref::<StringArray>()
            .ok_or_else(wrong)?;
        let mut renumbered = vec![None; values.len()];
        for row in 0..column.len() {
            let number = column.key(row);
            nulls.append(number.is_some());
            keys.push(number.map_or(0, |number| {
                *renumbered[number].get_or_insert_with(|| joined.intern(values.value(number)).0)
            }));
        }
    }
    joined.into_array(keys, nulls.finish())
}

fn slice<'d>(offsets: &[i32], data: &'d [u8], number: usize) -> &'d [u8] {
    &data[offsets[number] as usize..offsets[number + 1] as usize]
}

fn as_i32(length: usize) -> i32 {
    i32::try_from(length).expect("a batch's bytes are far below 2 GiB")
}
