//! A record's columns, out of its Arrow IPC stream, which may be packed.
//!
//! Records come from a log, but over a socket too, and a normalizer may go wrong. Arrow's readers make room
//! for whatever length they are told before they look whether it is there, and assert where parts do not add
//! up. So each message is looked at before they see it:
//!
//! - lengths are of bytes that are there, and what the buffers unpack to fits the [`Room`] of the call;
//! - the schema has only types that intake writes;
//! - each array has buffers, and its bitmap has a bit for each of its values.
//!
//! What the buffers hold (offsets, UTF-8, keys of dictionaries) Arrow checks itself. The checks are a few
//! comparisons a buffer, and nothing is copied: columns that are not packed stay where the frame has them.

use arrow_array::{ArrayRef, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::convert::fb_to_schema;
use arrow_ipc::reader::{read_dictionary, read_record_batch};
use arrow_ipc::{DateUnit, Endianness, Field, Message, Precision, Type};
use arrow_schema::{ArrowError, DataType, Schema, SchemaRef};
use bytes::Bytes;
use sluice_common::limits::MAX_CALL_COLUMN_BYTES;
use sluice_common::packed::{BadPacked, is_packed, unpack, unpacked_bytes};
use std::collections::HashMap;
use std::sync::Arc;

/// Begins each message.
const CONTINUATION: [u8; 4] = [0xFF; 4];
/// Before what is packed: how long it was, or -1 where it is not packed after all.
const PREFIX_BYTES: usize = 8;

/// Why a stream is not a record's columns.
#[derive(Debug, thiserror::Error)]
pub enum BadColumns {
    #[error("{need} bytes of its columns are said to follow, and {have} do")]
    Short { need: i64, have: usize },
    #[error("a message of its columns does not verify: {0}")]
    Message(String),
    #[error("its columns have {0}")]
    Order(&'static str),
    #[error("its column {0:?} is of a type that no record has")]
    Type(String),
    #[error("an array of its columns has {0}")]
    Array(&'static str),
    #[error("with its columns those of the call unpack to more than {MAX_CALL_COLUMN_BYTES} bytes")]
    TooLarge,
    #[error("it has {found} rows, its frame says {expected}")]
    Rows { found: i64, expected: u32 },
    #[error(transparent)]
    Packed(#[from] BadPacked),
    #[error(transparent)]
    Arrow(#[from] ArrowError),
}

/// Bytes that the records of one call may still unpack to.
#[derive(Debug)]
pub struct Room {
    columns: usize,
    /// Whole streams, which hold a little more than the columns in them.
    streams: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            columns: MAX_CALL_COLUMN_BYTES,
            streams: 2 * MAX_CALL_COLUMN_BYTES,
        }
    }
}

impl Room {
    fn take(&mut self, bytes: usize) -> Result<(), BadColumns> {
        self.columns = self.columns.checked_sub(bytes).ok_or(BadColumns::TooLarge)?;
        Ok(())
    }

    /// A record's body as a stream.
    fn unpack(&mut self, body: Bytes) -> Result<Bytes, BadColumns> {
        if is_packed(&body) {
            let bytes = unpacked_bytes(&body)?;
            self.streams = self.streams.checked_sub(bytes).ok_or(BadColumns::TooLarge)?;
        }
        Ok(unpack(body)?)
    }
}

/// The batch of `rows` rows in a record's body: a stream of a schema, dictionaries, and one batch.
///
/// # Errors
/// [`BadColumns`]; never panics on any input.
pub fn read(body: Bytes, rows: u32, room: &mut Room) -> Result<RecordBatch, BadColumns> {
    let mut rest = Buffer::from(room.unpack(body)?);
    let schema = read_schema(&mut rest)?;
    let mut dictionaries = HashMap::new();
    loop {
        let metadata = next_metadata(&mut rest)?;
        let message = verified(&metadata)?;
        let body = take(&mut rest, message.bodyLength())?;
        if let Some(batch) = message.header_as_record_batch() {
            if batch.length() != i64::from(rows) {
                return Err(BadColumns::Rows {
                    found: batch.length(),
                    expected: rows,
                });
            }
            let mut arrays = Arrays::of(&batch, &body, room)?;
            let mut fields = schema.fields().iter();
            fields.try_for_each(|field| arrays.check(field.data_type()))?;
            let version = message.version();
            return Ok(read_record_batch(
                &body,
                batch,
                schema,
                &dictionaries,
                None,
                &version,
            )?);
        }
        add_dictionary(&message, &body, &schema, &mut dictionaries, room)?;
    }
}

fn read_schema(rest: &mut Buffer) -> Result<SchemaRef, BadColumns> {
    let metadata = next_metadata(rest)?;
    let message = verified(&metadata)?;
    take(rest, message.bodyLength())?;
    let schema = message
        .header_as_schema()
        .ok_or(BadColumns::Order("no schema at their start"))?;
    let fields = schema
        .fields()
        .ok_or(BadColumns::Order("a schema without fields"))?;
    if schema.endianness() != Endianness::Little {
        return Err(BadColumns::Order("another byte order"));
    }
    for field in fields {
        check_field(field)?;
    }
    Ok(Arc::new(fb_to_schema(schema)))
}

/// The metadata of the next message; its body follows.
fn next_metadata(rest: &mut Buffer) -> Result<Buffer, BadColumns> {
    let head = take(rest, 8)?;
    let (mark, length) = head.as_slice().split_at(4);
    if mark != CONTINUATION {
        return Err(BadColumns::Order("no mark before a message"));
    }
    let length = i32::from_le_bytes([length[0], length[1], length[2], length[3]]);
    if length == 0 {
        return Err(BadColumns::Order("no batch"));
    }
    take(rest, i64::from(length))
}

fn verified(metadata: &Buffer) -> Result<Message<'_>, BadColumns> {
    arrow_ipc::root_as_message(metadata).map_err(|error| BadColumns::Message(error.to_string()))
}

/// The first `bytes` of what is left.
fn take(rest: &mut Buffer, bytes: i64) -> Result<Buffer, BadColumns> {
    let length = usize::try_from(bytes).ok().filter(|length| *length <= rest.len());
    let length = length.ok_or(BadColumns::Short {
        need: bytes,
        have: rest.len(),
    })?;
    let taken = rest.slice_with_length(0, length);
    rest.advance(length);
    Ok(taken)
}

fn add_dictionary(
    message: &Message<'_>,
    body: &Buffer,
    schema: &Schema,
    dictionaries: &mut HashMap<i64, ArrayRef>,
    room: &mut Room,
) -> Result<(), BadColumns> {
    let dictionary = message.header_as_dictionary_batch();
    let dictionary = dictionary.ok_or(BadColumns::Order("a message of another kind"))?;
    let batch = dictionary
        .data()
        .ok_or(BadColumns::Order("an empty dictionary"))?;
    if dictionary.isDelta() {
        return Err(BadColumns::Order("a dictionary that goes on"));
    }
    Arrays::of(&batch, body, room)?.check(&DataType::Utf8)?;
    read_dictionary(body, dictionary, schema, dictionaries, &message.version())?;
    Ok(())
}

/// Whether a field is of a type that intake writes: Arrow panics at some that it does not know.
fn check_field(field: Field<'_>) -> Result<(), BadColumns> {
    let is_sound = match (field.dictionary(), field.type_type()) {
        (Some(dictionary), Type::Utf8) => {
            let index = dictionary.indexType();
            index.is_some_and(|index| index.bitWidth() == 32 && index.is_signed())
        }
        (Some(_), _) => false,
        (None, Type::List | Type::Map) => has_children(field, 1)?,
        (None, Type::Struct_) => has_children(field, 2)?,
        (None, _) => is_plain(field),
    };
    if is_sound {
        Ok(())
    } else {
        Err(BadColumns::Type(field.name().unwrap_or_default().to_owned()))
    }
}

fn has_children(field: Field<'_>, count: usize) -> Result<bool, BadColumns> {
    let children = field.children().into_iter().flatten();
    let mut seen = 0;
    for child in children {
        check_field(child)?;
        seen += 1;
    }
    let is_whole = field.type_type() != Type::Map || field.type_as_map().is_some();
    Ok(seen == count && is_whole)
}

fn is_plain(field: Field<'_>) -> bool {
    match field.type_type() {
        Type::Bool | Type::Utf8 => true,
        Type::Int => field
            .type_as_int()
            .is_some_and(|int| [8, 16, 32, 64].contains(&int.bitWidth())),
        Type::FloatingPoint => field
            .type_as_floating_point()
            .is_some_and(|float| [Precision::SINGLE, Precision::DOUBLE].contains(&float.precision())),
        Type::Date => field
            .type_as_date()
            .is_some_and(|date| date.unit() == DateUnit::DAY),
        Type::Timestamp => field
            .type_as_timestamp()
            .is_some_and(|time| time.unit().variant_name().is_some()),
        Type::FixedSizeBinary => field
            .type_as_fixed_size_binary()
            .is_some_and(|binary| binary.byteWidth() == 16),
        Type::Decimal => field.type_as_decimal().is_some_and(|decimal| {
            let digits = match decimal.bitWidth() {
                128 => 38,
                256 => 76,
                _ => 0,
            };
            (1..=digits).contains(&decimal.precision())
                && (0..=decimal.precision()).contains(&decimal.scale())
        }),
        _ => false,
    }
}

/// The arrays of one message, in the order in which Arrow reads them.
struct Arrays {
    /// Values of each array, and how many of them are null.
    nodes: std::vec::IntoIter<(i64, i64)>,
    /// What each buffer holds once it is unpacked, in bytes.
    buffers: std::vec::IntoIter<usize>,
}

impl Arrays {
    /// Takes what the buffers unpack to out of the room.
    fn of(batch: &arrow_ipc::RecordBatch<'_>, body: &[u8], room: &mut Room) -> Result<Self, BadColumns> {
        if batch
            .variadicBufferCounts()
            .is_some_and(|counts| !counts.is_empty())
        {
            return Err(BadColumns::Array("views, which no record has"));
        }
        let is_packed = batch.compression().is_some();
        let buffers = batch.buffers().into_iter().flatten();
        let sizes = buffers.map(|buffer| {
            let bytes = within(body, buffer)?;
            let size = if is_packed { unpacked(bytes)? } else { bytes.len() };
            room.take(size).map(|()| size)
        });
        let sizes = sizes.collect::<Result<Vec<_>, _>>()?;
        let nodes = batch.nodes().into_iter().flatten();
        let nodes: Vec<_> = nodes.map(|node| (node.length(), node.null_count())).collect();
        Ok(Self {
            nodes: nodes.into_iter(),
            buffers: sizes.into_iter(),
        })
    }

    /// Looks at the next array, of a type that [`check_field`] let through.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "Arrow has 40 types; of those that are left the others have one buffer beside the bitmap"
    )]
    fn check(&mut self, of: &DataType) -> Result<(), BadColumns> {
        self.head()?;
        match of {
            DataType::List(item) | DataType::Map(item, _) => {
                self.of_width(4)?;
                self.check(item.data_type())
            }
            DataType::Struct(fields) => fields.iter().try_for_each(|field| self.check(field.data_type())),
            DataType::Utf8 => self.of_width(4).and_then(|()| self.buffer()).map(drop),
            DataType::Dictionary(_, _) => self.of_width(4),
            DataType::Decimal128(_, _) => self.of_width(16),
            DataType::Decimal256(_, _) => self.of_width(32),
            _ => self.buffer().map(drop),
        }
    }

    /// How long an array is, and its bitmap.
    fn head(&mut self) -> Result<(), BadColumns> {
        let (length, nulls) = self.nodes.next().ok_or(BadColumns::Array("no length"))?;
        let bitmap = self.buffer()?;
        let length = usize::try_from(length)
            .ok()
            .filter(|length| length / 8 <= MAX_CALL_COLUMN_BYTES);
        let length = length.ok_or(BadColumns::Array("a length that nothing has"))?;
        let nulls = usize::try_from(nulls).ok().filter(|nulls| *nulls <= length);
        let nulls = nulls.ok_or(BadColumns::Array("another number of nulls than values"))?;
        if nulls > 0 && bitmap < length.div_ceil(8) {
            return Err(BadColumns::Array("fewer bits than values"));
        }
        Ok(())
    }

    /// Passes a buffer of offsets, keys or digits, which Arrow looks at as whole numbers.
    fn of_width(&mut self, bytes: usize) -> Result<(), BadColumns> {
        if self.buffer()?.is_multiple_of(bytes) {
            Ok(())
        } else {
            Err(BadColumns::Array("a buffer that ends within a value"))
        }
    }

    fn buffer(&mut self) -> Result<usize, BadColumns> {
        self.buffers.next().ok_or(BadColumns::Array("a buffer too few"))
    }
}

fn within<'a>(body: &'a [u8], buffer: &arrow_ipc::Buffer) -> Result<&'a [u8], BadColumns> {
    let place = usize::try_from(buffer.offset())
        .ok()
        .zip(usize::try_from(buffer.length()).ok());
    place
        .and_then(|(from, length)| body.get(from..from.checked_add(length)?))
        .ok_or(BadColumns::Array("a buffer outside its message"))
}

/// What a packed buffer says that it unpacks to. A frame of LZ4 that unpacks to more is refused by Arrow once it
/// has: 255 times its own size at most.
fn unpacked(buffer: &[u8]) -> Result<usize, BadColumns> {
    if buffer.is_empty() {
        return Ok(0);
    }
    let (prefix, packed) = buffer
        .split_first_chunk::<PREFIX_BYTES>()
        .ok_or(BadColumns::Array("a packed buffer without its length"))?;
    match i64::from_le_bytes(*prefix) {
        -1 => Ok(packed.len()),
        length => usize::try_from(length).map_err(|_| BadColumns::TooLarge),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::builder::{
        Int32Builder, ListBuilder, MapBuilder, StringBuilder, StringDictionaryBuilder,
    };
    use arrow_array::types::Int32Type;
    use arrow_array::{BooleanArray, Decimal256Array, FixedSizeBinaryArray, TimestampMicrosecondArray};
    use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
    use arrow_ipc::{CompressionType, MetadataVersion};
    use sluice_common::packed::pack;

    const ROWS: u32 = 20;

    fn batch() -> RecordBatch {
        let rows = ROWS as usize;
        let (mut tags, mut texts) = (StringDictionaryBuilder::<Int32Type>::new(), StringBuilder::new());
        let mut list = ListBuilder::new(Int32Builder::new());
        let mut map = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
        for row in 0..ROWS {
            tags.append_option((row % 3 > 0).then_some("low"));
            texts.append_option((row % 2 > 0).then_some("the same text again and again, so that it packs"));
            list.append_value([Some(1), None, Some(3)]);
            map.keys().append_value("key");
            map.values().append_option((row % 2 > 0).then_some("value"));
            map.append(true).expect("as many keys as values");
        }
        let decimals = Decimal256Array::from_iter((0..ROWS).map(|n| Some(i64::from(n).into())));
        let decimals = decimals.with_precision_and_scale(40, 2).expect("valid");
        let ids = FixedSizeBinaryArray::try_from_iter((0..rows).map(|_| [7u8; 16])).expect("16 bytes each");
        let times = TimestampMicrosecondArray::from_iter_values(0..i64::from(ROWS)).with_timezone("UTC");
        let columns: [(&str, ArrayRef); 8] = [
            ("tag", Arc::new(tags.finish())),
            ("text", Arc::new(texts.finish())),
            ("list", Arc::new(list.finish())),
            ("map", Arc::new(map.finish())),
            ("decimal", Arc::new(decimals)),
            ("id", Arc::new(ids)),
            ("time", Arc::new(times)),
            (
                "flag",
                Arc::new(BooleanArray::from_iter((0..rows).map(|n| Some(n % 2 == 0)))),
            ),
        ];
        let columns = columns.into_iter().map(|(name, column)| (name, column, true));
        RecordBatch::try_from_iter_with_nullable(columns).expect("columns of one length")
    }

    fn stream(packed: bool) -> Vec<u8> {
        let options = IpcWriteOptions::try_new(8, false, MetadataVersion::V5)
            .and_then(|options| options.try_with_compression(packed.then_some(CompressionType::LZ4_FRAME)));
        let batch = batch();
        let mut writer =
            StreamWriter::try_new_with_options(Vec::new(), batch.schema_ref(), options.expect("valid"))
                .expect("a schema");
        writer.write(&batch).expect("written to memory");
        writer.into_inner().expect("written to memory")
    }

    /// As earlier builds packed it, each buffer for itself, among the others.
    fn streams() -> [Vec<u8>; 3] {
        [stream(false), stream(true), pack(stream(false)).to_vec()]
    }

    fn of(stream: &[u8]) -> Result<RecordBatch, BadColumns> {
        read(Bytes::copy_from_slice(stream), ROWS, &mut Room::default())
    }

    #[test]
    fn columns_come_out_as_they_went_in_wherever_they_lie_in_memory() {
        for stream in streams() {
            for shift in [0, 1, 4] {
                let moved = Bytes::from([&vec![0; shift], &stream[..]].concat()).slice(shift..);
                assert_eq!(read(moved, ROWS, &mut Room::default()).expect("sound"), batch());
            }
        }
    }

    #[test]
    fn a_length_of_what_is_not_there_is_refused_before_room_is_made_for_it() {
        let found_by_a_fuzzer = [0x93, 0xcc, 0xb7, 0x7c];
        assert!(matches!(of(&found_by_a_fuzzer), Err(BadColumns::Short { .. })));
        for length in [i32::MAX, -1, i32::MIN] {
            let stream = [&CONTINUATION[..], &length.to_le_bytes(), &[0; 100]].concat();
            let refused = matches!(of(&stream), Err(BadColumns::Short { need, have: 100 }) if need == i64::from(length));
            assert!(refused, "{length}");
        }
    }

    #[test]
    fn a_stream_that_is_cut_anywhere_is_refused_or_lacks_nothing() {
        for stream in streams() {
            for end in 0..stream.len() {
                if let Ok(read) = of(&stream[..end]) {
                    assert_eq!(read, batch(), "cut at {end}");
                }
            }
        }
    }

    #[test]
    fn no_byte_that_is_wrong_makes_it_panic_or_hold_other_rows_than_are_said() {
        for stream in streams() {
            for at in 0..stream.len() {
                for wrong in [0, 1, 7, 0x40, 0x7f, 0x80, 0xff] {
                    let mut broken = stream.clone();
                    broken[at] = wrong;
                    if let Ok(read) = of(&broken) {
                        assert_eq!(read.num_rows(), ROWS as usize, "{wrong} at {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_unpacks_to_more_than_the_call_has_room_for_is_refused_unread() {
        let stream = stream(true);
        let frame = stream
            .windows(4)
            .position(|four| four == [0x04, 0x22, 0x4d, 0x18]);
        let prefix = frame.expect("a frame of LZ4") - PREFIX_BYTES;
        for length in [MAX_CALL_COLUMN_BYTES as i64, i64::MAX, -2] {
            let mut broken = stream.clone();
            broken[prefix..prefix + PREFIX_BYTES].copy_from_slice(&length.to_le_bytes());
            assert!(matches!(of(&broken), Err(BadColumns::TooLarge)), "{length}");
        }
    }

    #[test]
    fn the_records_of_a_call_share_its_room() {
        let all = Room::default();
        for stream in streams().map(Bytes::from) {
            let mut room = Room::default();
            read(stream.clone(), ROWS, &mut room).expect("sound");
            let columns = 2 * (all.columns - room.columns) - 1;
            // What was not packed whole takes none of it.
            let streams = (2 * (all.streams - room.streams)).saturating_sub(1);
            let (ample, tight) = (all.streams, streams);
            for (columns, streams) in [(columns, ample), (all.columns, tight)] {
                let mut room = Room { columns, streams };
                read(stream.clone(), ROWS, &mut room).expect("there is room for one");
                let second = read(stream.clone(), ROWS, &mut room);
                let is_short = columns < all.columns || is_packed(&stream);
                assert_eq!(matches!(second, Err(BadColumns::TooLarge)), is_short);
            }
        }
    }

    #[test]
    fn another_number_of_rows_than_the_frame_s_is_refused() {
        let read = read(stream(false).into(), ROWS + 1, &mut Room::default());
        assert!(matches!(
            read,
            Err(BadColumns::Rows {
                found: 20,
                expected: 21
            })
        ));
    }
}
