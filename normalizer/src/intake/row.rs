//! One event, as tape nodes, into one row of columns: all or nothing.
//!
//! - A member is looked up by the place that it had in the event before, and by name only where that
//!   fails: senders repeat themselves.
//! - `null` for a nullable field is null; for any other it is as if it had not been sent, so a
//!   required one is refused. What was not sent is the default, else null, else the type's zero.
//! - A top-level member sent twice is rejected; within a map the last one wins.
//! - A map takes strings as they are, all else as compact JSON, and leaves out nulls. Members that the
//!   schema does not know go into the same map as the field's own entries, which win where both name
//!   one key.

use super::column::{Column, Mark};
use super::convert::{self, Cell};
use super::fault::{Fault, RowFault};
use super::json;
use super::nested::{self, Allowance};
use super::schema::{Default as FieldDefault, FieldPlan, Schema, UnknownPlan};
use super::strings::Maps;
use super::time::Moment;
use arrow_buffer::i256;
use hashbrown::HashMap;
use simd_json::Node;
use sluice_common::config::Kind;
use sluice_common::limits::{LATE_EVENT, MAX_EVENT_MEMBERS};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Entries up to which duplicates are looked for one by one.
const FEW_ENTRIES: usize = 16;
/// In `order`: the member at this place is none of the schema's.
const UNKNOWN: u16 = u16::MAX;

/// Writes the rows of one request.
pub struct RowWriter<'s> {
    schema: &'s Schema,
    now_ms: u64,
    /// The field that the member at each place had in the event before.
    order: Vec<u16>,
    /// Per field: the number of the last event that had it.
    seen: Vec<u32>,
    event: u32,
    marks: Vec<Mark>,
    /// Map fields of this event: the node of their object.
    maps: Vec<(u16, usize)>,
    /// Names of unknown members of this event.
    unknown: Vec<usize>,
    /// Entries of the map in the making: the nodes of their keys.
    entries: Vec<usize>,
    members: usize,
    /// Whether the event's time is more than [`LATE_EVENT`] past.
    is_late: bool,
    /// Members dropped because the schema does not know them.
    pub dropped: u64,
    /// As it was before the current event.
    dropped_before: u64,
}

impl<'s> RowWriter<'s> {
    /// A writer for one request.
    #[must_use]
    pub fn new(schema: &'s Schema, now_ms: u64) -> Self {
        Self {
            schema,
            now_ms,
            order: Vec::new(),
            seen: vec![0; schema.fields.len()],
            event: 0,
            marks: vec![0; schema.fields.len()],
            maps: Vec::new(),
            unknown: Vec::new(),
            entries: Vec::new(),
            members: 0,
            is_late: false,
            dropped: 0,
            dropped_before: 0,
        }
    }

    /// Writes the event as the next row of `columns` and says how many bytes it took.
    ///
    /// # Errors
    /// The first [`RowFault`] found; the columns are then as they were.
    pub fn write(&mut self, nodes: &[Node<'_>], columns: &mut [Column]) -> Result<usize, RowFault> {
        let rows = columns.first().map_or(0, Column::rows);
        for (mark, column) in self.marks.iter_mut().zip(columns.iter()) {
            *mark = column.mark();
        }
        self.dropped_before = self.dropped;
        let written = self.write_parts(nodes, columns);
        if written.is_err() {
            self.take_back(columns, rows);
        }
        written
    }

    /// Whether the event that was written last came late.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.is_late
    }

    /// Takes back the row that [`Self::write`] wrote last.
    pub fn take_back(&mut self, columns: &mut [Column], rows: usize) {
        self.dropped = self.dropped_before;
        for (column, mark) in columns.iter_mut().zip(&self.marks) {
            column.truncate(rows, *mark);
        }
    }

    fn write_parts(&mut self, nodes: &[Node<'_>], columns: &mut [Column]) -> Result<usize, RowFault> {
        self.begin();
        let mut bytes = self.schema.fixed_row_bytes;
        bytes += self.write_members(nodes, columns)?;
        bytes += self.write_maps(nodes, columns);
        bytes += self.write_absent(columns)?;
        if bytes > self.schema.max_row_bytes {
            return Err(Fault::RowTooLarge.of_row());
        }
        Ok(bytes)
    }

    fn begin(&mut self) {
        self.event += 1;
        self.maps.clear();
        self.unknown.clear();
        self.members = 0;
        self.is_late = false;
    }

    fn write_members(&mut self, nodes: &[Node<'_>], columns: &mut [Column]) -> Result<usize, RowFault> {
        let Some(Node::Object { len, .. }) = nodes.first() else {
            return Err(RowFault {
                node: Some(0),
                ..Fault::NotAnObject.of_row()
            });
        };
        self.count_members(*len)?;
        let (mut at, mut bytes) = (1, 0);
        for place in 0..*len {
            let Node::String(name) = nodes[at] else {
                return Err(Fault::NotAnObject.of_row());
            };
            match self.slot_of(place, name) {
                Some(slot) => bytes += self.write_member(slot, at + 1, nodes, columns)?,
                None => self.take_unknown(at)?,
            }
            at += 1 + json::width(&nodes[at + 1]);
        }
        Ok(bytes)
    }

    fn count_members(&mut self, more: usize) -> Result<(), RowFault> {
        self.members += more;
        if self.members > MAX_EVENT_MEMBERS {
            return Err(Fault::TooManyMembers.of_row());
        }
        Ok(())
    }

    fn slot_of(&mut self, place: usize, name: &str) -> Option<u16> {
        let schema = self.schema;
        if let Some(guess) = self.order.get(place)
            && let Some(member) = schema.member_of(*guess)
            && member == name
        {
            return Some(*guess);
        }
        let slot = schema.members.get(name).copied();
        if place >= self.order.len() {
            self.order.resize(place + 1, UNKNOWN);
        }
        self.order[place] = slot.unwrap_or(UNKNOWN);
        slot
    }

    fn take_unknown(&mut self, name: usize) -> Result<(), RowFault> {
        match self.schema.unknown {
            UnknownPlan::Into(_) => self.unknown.push(name),
            UnknownPlan::Drop => self.dropped += 1,
            UnknownPlan::Reject => {
                return Err(RowFault {
                    node: Some(name),
                    ..Fault::UnknownField.of_row()
                });
            }
        }
        Ok(())
    }

    fn write_member(
        &mut self,
        slot: u16,
        at: usize,
        nodes: &[Node<'_>],
        columns: &mut [Column],
    ) -> Result<usize, RowFault> {
        let schema = self.schema;
        let (field, place) = (&schema.fields[usize::from(slot)], usize::from(slot));
        if json::is_null(&nodes[at]) && !field.nullable {
            // As if it had not been sent.
            return if field.required {
                Err(Fault::NullNotAllowed.of_field(slot, Some(at)))
            } else {
                Ok(0)
            };
        }
        if std::mem::replace(&mut self.seen[place], self.event) == self.event {
            return Err(Fault::DuplicateField.of_field(slot, Some(at)));
        }
        if matches!(field.kind, Kind::MapStringString) {
            let Node::Object { len, .. } = nodes[at] else {
                return Err(Fault::WrongType.of_field(slot, Some(at)));
            };
            self.count_members(len)?;
            self.maps.push((slot, at));
            return Ok(0);
        }
        if json::is_null(&nodes[at]) {
            return Ok(columns[place].push(Cell::Null));
        }
        if !field.kind.is_scalar() {
            return self.write_nested((slot, field), (nodes, at), &mut columns[place]);
        }
        let cell = convert::cell(field, &nodes[at], self.now_ms);
        let cell = cell.map_err(|fault| fault.of_field(slot, Some(at)))?;
        if let (Some(_), Cell::Time(time)) = (field.bounds, cell) {
            self.is_late = is_late(time, self.now_ms);
        }
        Ok(columns[place].push(cell))
    }

    fn write_nested(
        &mut self,
        (slot, field): (u16, &FieldPlan),
        (nodes, at): (&[Node<'_>], usize),
        column: &mut Column,
    ) -> Result<usize, RowFault> {
        let mut allowance = Allowance {
            now_ms: self.now_ms,
            members: self.members,
            bytes: self.schema.max_row_bytes,
        };
        let bytes = if matches!(field.kind, Kind::Json) {
            let checked = nested::check_json((nodes, at), &mut allowance);
            checked.map_err(|fault| {
                if matches!(fault, Fault::TooManyMembers) {
                    fault.of_row()
                } else {
                    fault.of_field(slot, Some(at))
                }
            })?;
            column.push_text(|out| {
                json::write_json(&nodes[at..], out);
            })
        } else {
            nested::write((slot, field), (nodes, at), column, &mut allowance)?
        };
        self.members = allowance.members;
        Ok(bytes)
    }

    /// Fields that were not sent, maps apart.
    fn write_absent(&mut self, columns: &mut [Column]) -> Result<usize, RowFault> {
        let mut bytes = 0;
        for ((slot, field), column) in (0u16..).zip(&self.schema.fields).zip(columns) {
            if self.seen[usize::from(slot)] == self.event || matches!(field.kind, Kind::MapStringString) {
                continue;
            }
            if field.required {
                return Err(Fault::MissingField.of_field(slot, None));
            }
            bytes += match &field.default {
                Some(default) => nested::write_default(field, default, column),
                None if field.nullable => column.push(Cell::Null),
                None => column.push(zero(&field.kind)),
            };
        }
        Ok(bytes)
    }

    fn write_maps(&mut self, nodes: &[Node<'_>], columns: &mut [Column]) -> usize {
        let mut bytes = 0;
        for slot in &self.schema.maps {
            let sent = self.maps.iter().find(|(sent, _)| sent == slot).map(|(_, at)| *at);
            self.collect_entries(*slot, sent, nodes);
            let column = &mut columns[usize::from(*slot)];
            if let Some(maps) = column.maps() {
                bytes += match &self.schema.fields[usize::from(*slot)].default {
                    Some(FieldDefault::Map(entries)) if sent.is_none() && self.entries.is_empty() => entries
                        .iter()
                        .map(|(key, value)| maps.add(key, |out| out.extend_from_slice(value.as_bytes())))
                        .sum(),
                    Some(_) | None => add_entries(&self.entries, nodes, maps),
                };
            }
            column.push(Cell::Bool(true));
        }
        bytes
    }

    /// Unknown members first, the field's own entries last: the last one wins.
    fn collect_entries(&mut self, slot: u16, sent: Option<usize>, nodes: &[Node<'_>]) {
        self.entries.clear();
        if self.schema.unknown == UnknownPlan::Into(slot) {
            let entries = self
                .unknown
                .iter()
                .filter(|name| !json::is_null(&nodes[**name + 1]));
            self.entries.extend(entries);
        }
        if let Some(at) = sent
            && let Node::Object { len, .. } = nodes[at]
        {
            let mut name = at + 1;
            for _ in 0..len {
                if !json::is_null(&nodes[name + 1]) {
                    self.entries.push(name);
                }
                name += 1 + json::width(&nodes[name + 1]);
            }
        }
        keep_last(&mut self.entries, nodes);
    }
}

/// The value of a field that is neither sent nor nullable, as ClickHouse has it: empty, false, zero.
fn zero(kind: &Kind) -> Cell<'_> {
    match kind {
        Kind::String | Kind::LowCardinalityString | Kind::FixedString(_) => Cell::Text(""),
        Kind::Enum(values) => Cell::Text(values.first()),
        Kind::Json => Cell::Text("{}"),
        Kind::Bool => Cell::Bool(false),
        Kind::Float32 | Kind::Float64 => Cell::Float(0.0),
        Kind::DateTime(_) | Kind::DateTime64(..) => Cell::Time(Moment::default()),
        Kind::Int8 | Kind::Int16 | Kind::Int32 | Kind::Int64 => Cell::Int(0),
        Kind::UInt8 | Kind::UInt16 | Kind::UInt32 | Kind::UInt64 => Cell::Int(0),
        Kind::Decimal { .. } => Cell::Decimal(i256::ZERO),
        Kind::Date | Kind::Date32 => Cell::Date(0),
        Kind::Uuid => Cell::Uuid([0; 16]),
        Kind::Ipv4 => Cell::Address(Ipv4Addr::UNSPECIFIED.into()),
        Kind::Ipv6 => Cell::Address(Ipv6Addr::UNSPECIFIED.into()),
        // Nothing lies in it.
        Kind::MapStringString | Kind::Map(_) | Kind::Array(_) => Cell::Bool(true),
    }
}

/// Whether an event that is within its bounds came late.
fn is_late(time: Moment, now_ms: u64) -> bool {
    i128::from(time.unix_ms()) + i128::try_from(LATE_EVENT.as_millis()).unwrap_or(i128::MAX)
        < i128::from(now_ms)
}

fn add_entries(entries: &[usize], nodes: &[Node<'_>], maps: &mut Maps) -> usize {
    let add = |name: &usize| {
        maps.add(name_at(nodes, *name), |out| {
            json::write_text(&nodes[*name + 1..], out)
        })
    };
    entries.iter().map(add).sum()
}

/// Of entries with one name, only the last stays, at its own place.
pub fn keep_last(entries: &mut Vec<usize>, nodes: &[Node<'_>]) {
    if entries.len() > FEW_ENTRIES {
        let mut last = HashMap::with_capacity(entries.len());
        for name in entries.iter() {
            last.insert(name_at(nodes, *name), *name);
        }
        return entries.retain(|name| last.get(name_at(nodes, *name)) == Some(name));
    }
    let mut at = 0;
    while at < entries.len() {
        let name = name_at(nodes, entries[at]);
        if entries[at + 1..]
            .iter()
            .any(|later| name_at(nodes, *later) == name)
        {
            entries.remove(at);
        } else {
            at += 1;
        }
    }
}

/// The name at `nodes[at]`.
pub fn name_at<'t>(nodes: &[Node<'t>], at: usize) -> &'t str {
    if let Node::String(name) = nodes[at] {
        name
    } else {
        ""
    }
}
