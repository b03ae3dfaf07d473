//! One event, as tape nodes, into one row of columns: all or nothing.
//!
//! - A member is looked up by the place that it had in the event before, and by name only where that
//!   fails: senders repeat themselves.
//! - `null` for a nullable field is null; for any other it is as if it had not been sent, so a
//!   required one is refused. What was not sent is the default, else null, else the type's zero.
//! - A value whose unit the event itself names is converted once all members are read.
//! - A top-level member sent twice is rejected; within a map the last one wins.
//! - A map takes strings as they are, all else as compact JSON, and leaves out nulls. Members that the
//!   schema does not know go into the same map as the field's own entries, which win where both name
//!   one key.

use super::column::{Column, Mark};
use super::convert::{self, Cell, zero};
use super::entries::{add_entries, keep_last, name_at};
use super::fault::{Fault, RowFault};
use super::json;
use super::nested::{self, Allowance};
use super::observed::Observed;
use super::schema::{Default as FieldDefault, FieldPlan, Schema, UnknownPlan};
use super::time::Moment;
use super::units::Factor;
use super::units::seen::UnitPlan;
use simd_json::Node;
use sluice_common::config::Kind;
use sluice_common::ids::Name;
use sluice_common::limits::{LATE_EVENT, MAX_EVENT_MEMBERS};

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
    /// Per slot: the node of the unit's name that this event has there.
    unit_names: Vec<Option<usize>>,
    /// Fields of this event whose unit is still to be looked up, with their nodes.
    unread: Vec<(u16, usize)>,
    /// Fields of this event that were converted from one unit into another.
    converted: Vec<u16>,
    /// A value in the form in which it is hashed.
    scratch: Vec<u8>,
    /// Per field: conversions of the rows before.
    conversions: Vec<u64>,
    /// What the drift report counts.
    pub observed: Observed,
    /// The event is written a second time, into the next record.
    is_again: bool,
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
            seen: vec![0; schema.members.len()],
            event: 0,
            marks: vec![0; schema.fields.len()],
            maps: Vec::new(),
            unknown: Vec::new(),
            entries: Vec::new(),
            members: 0,
            unit_names: vec![None; schema.units.is_name.len()],
            unread: Vec::new(),
            converted: Vec::new(),
            scratch: Vec::new(),
            conversions: vec![0; schema.fields.len()],
            observed: Observed::default(),
            is_again: false,
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
        self.count_conversions();
        let written = self.write_parts(nodes, columns);
        self.is_again = false;
        if written.is_err() {
            self.undo(columns, rows);
        }
        written
    }

    /// Whether the event that was written last came late.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.is_late
    }

    /// Takes back the row that [`Self::write`] wrote last; it is written again next.
    pub fn take_back(&mut self, columns: &mut [Column], rows: usize) {
        self.undo(columns, rows);
        self.is_again = true;
    }

    fn undo(&mut self, columns: &mut [Column], rows: usize) {
        self.dropped = self.dropped_before;
        self.converted.clear();
        for (column, mark) in columns.iter_mut().zip(&self.marks) {
            column.truncate(rows, *mark);
        }
    }

    /// The fields whose values were converted from one unit into another, and how often.
    pub fn conversions(&mut self) -> Vec<(Name, u64)> {
        self.count_conversions();
        let counted = self.schema.fields.iter().zip(&self.conversions);
        counted
            .filter(|(_, count)| **count > 0)
            .map(|(field, count)| (field.name.clone(), *count))
            .collect()
    }

    fn count_conversions(&mut self) {
        for slot in self.converted.drain(..) {
            self.conversions[usize::from(slot)] += 1;
        }
    }

    fn write_parts(&mut self, nodes: &[Node<'_>], columns: &mut [Column]) -> Result<usize, RowFault> {
        self.begin();
        let mut bytes = self.schema.fixed_row_bytes;
        bytes += self.write_members(nodes, columns)?;
        bytes += self.write_unread(nodes, columns)?;
        bytes += self.write_maps(nodes, columns)?;
        bytes += self.write_absent(columns)?;
        self.check_required(columns)?;
        if bytes > self.schema.max_row_bytes {
            return Err(Fault::RowTooLarge.of_row());
        }
        Ok(bytes)
    }

    fn begin(&mut self) {
        self.event += 1;
        self.maps.clear();
        self.unknown.clear();
        self.unit_names.fill(None);
        self.unread.clear();
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
                Some(slot) => {
                    if self.take_unit_name(slot, at + 1, nodes)? {
                        bytes += self.write_member(slot, at + 1, nodes, columns)?;
                    }
                }
                None => self.take_unknown(at, nodes)?,
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

    fn take_unknown(&mut self, name: usize, nodes: &[Node<'_>]) -> Result<(), RowFault> {
        if !self.is_again {
            self.observed.unknown(name_at(nodes, name), &nodes[name + 1]);
        }
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

    /// Remembers the name of a unit. Says whether a field reads the member, too.
    fn take_unit_name(&mut self, slot: u16, at: usize, nodes: &[Node<'_>]) -> Result<bool, RowFault> {
        let place = usize::from(slot);
        if !self.schema.units.is_name.get(place).is_some_and(|is| *is) {
            return Ok(true);
        }
        self.unit_names[place] = Some(at).filter(|at| !json::is_null(&nodes[*at]));
        let is_field = place < self.schema.fields.len();
        if !is_field && std::mem::replace(&mut self.seen[place], self.event) == self.event {
            return Err(Fault::DuplicateField.of_row());
        }
        Ok(is_field)
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
        let factor = match &field.unit {
            None => None,
            Some(UnitPlan::Fixed(factor)) => Some(*factor),
            Some(UnitPlan::Named(_)) => {
                self.unread.push((slot, at));
                return Ok(0);
            }
        };
        self.write_value(slot, (factor, at), nodes, columns)
    }

    /// Fields whose unit the event names.
    fn write_unread(&mut self, nodes: &[Node<'_>], columns: &mut [Column]) -> Result<usize, RowFault> {
        let mut bytes = 0;
        for entry in 0..self.unread.len() {
            let (slot, at) = self.unread[entry];
            let factor = self.named_factor(slot, nodes)?;
            bytes += self.write_value(slot, (factor, at), nodes, columns)?;
        }
        Ok(bytes)
    }

    fn named_factor(&self, slot: u16, nodes: &[Node<'_>]) -> Result<Option<Factor>, RowFault> {
        let place = usize::from(slot);
        let Some(UnitPlan::Named(named)) = &self.schema.fields[place].unit else {
            return Ok(None);
        };
        let source = self.schema.units.of_field[place];
        let name = source.and_then(|source| self.unit_names[usize::from(source)]);
        let Some(at) = name else {
            let default = named
                .default
                .ok_or_else(|| Fault::MissingUnit.of_field(slot, None));
            return default.map(Some);
        };
        let factor = if let Node::String(name) = nodes[at] {
            named.factor(name)
        } else {
            None
        };
        let unknown = || Fault::UnknownUnit.of_field(slot, Some(at));
        factor.map(Some).ok_or_else(unknown)
    }

    fn write_value(
        &mut self,
        slot: u16,
        (factor, at): (Option<Factor>, usize),
        nodes: &[Node<'_>],
        columns: &mut [Column],
    ) -> Result<usize, RowFault> {
        let field = &self.schema.fields[usize::from(slot)];
        let cell = convert::cell_with(field, factor, &nodes[at], self.now_ms);
        let cell = cell.map_err(|fault| fault.of_field(slot, Some(at)))?;
        if factor.is_some() {
            self.converted.push(slot);
        }
        if let (Some(_), Cell::Time(time)) = (field.bounds, cell) {
            self.is_late = is_late(time, self.now_ms);
        }
        let column = &mut columns[usize::from(slot)];
        let Some(checks) = &field.checks else {
            return Ok(column.push(cell));
        };
        let refused = |fault: Fault| fault.of_field(slot, Some(at));
        checks.cell(cell).map_err(refused)?;
        let bytes = column.push(cell);
        let row = column.rows() - 1;
        checks.allowed(column, row, &mut self.scratch).map_err(refused)?;
        Ok(bytes)
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
        if let Some(checks) = &field.checks {
            let checked = checks.length(column.last_length());
            checked.map_err(|fault| fault.of_field(slot, Some(at)))?;
        }
        Ok(bytes)
    }

    /// Fields that were not sent; the row's maps are written already.
    fn write_absent(&mut self, columns: &mut [Column]) -> Result<usize, RowFault> {
        let mut bytes = 0;
        for ((slot, field), column) in (0u16..).zip(&self.schema.fields).zip(columns) {
            if self.seen[usize::from(slot)] == self.event {
                continue;
            }
            if field.required {
                return Err(Fault::MissingField.of_field(slot, None));
            }
            if matches!(field.kind, Kind::MapStringString) {
                continue;
            }
            bytes += match &field.default {
                Some(default) => nested::write_default(field, default, column),
                None if field.nullable => column.push(Cell::Null),
                None => column.push(zero(&field.kind)),
            };
        }
        Ok(bytes)
    }

    /// Fields that others make required; all columns have the row by now.
    fn check_required(&mut self, columns: &[Column]) -> Result<(), RowFault> {
        for rule in &self.schema.required_if {
            if self.seen[usize::from(rule.field)] == self.event {
                continue;
            }
            let other = &columns[usize::from(rule.other)];
            if rule.values.have(other, other.rows() - 1, &mut self.scratch) {
                return Err(Fault::RequiredIf.of_field(rule.field, None));
            }
        }
        Ok(())
    }

    fn write_maps(&mut self, nodes: &[Node<'_>], columns: &mut [Column]) -> Result<usize, RowFault> {
        let mut bytes = 0;
        for slot in &self.schema.maps {
            let sent = self.maps.iter().find(|(sent, _)| sent == slot).map(|(_, at)| *at);
            self.collect_entries(*slot, sent, nodes);
            if let (Some(checks), true) = (
                &self.schema.fields[usize::from(*slot)].checks,
                sent.is_some() || !self.entries.is_empty(),
            ) {
                let checked = checks.length(self.entries.len());
                checked.map_err(|fault| fault.of_field(*slot, sent))?;
            }
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
        Ok(bytes)
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

/// Whether an event that is within its bounds came late.
fn is_late(time: Moment, now_ms: u64) -> bool {
    i128::from(time.unix_ms()) + i128::try_from(LATE_EVENT.as_millis()).unwrap_or(i128::MAX)
        < i128::from(now_ms)
}
