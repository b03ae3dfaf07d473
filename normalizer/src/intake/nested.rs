//! Arrays, maps of other things than strings, and JSON: values that hold values.
//!
//! - Each element is converted as a field of its type would be; the first one that does not fit
//!   rejects the row, and the fault names its place.
//! - A null within is taken where its type is nullable. Elsewhere an array refuses it, and a map leaves
//!   it out, as every map does. Of a key sent twice the last value counts.
//! - Bytes are counted while they are written, so a value of more than a row may take stops there.
//!   Members of objects count as members of the event.
//! - JSON is an object, kept as compact text. ClickHouse knows its values by path and refuses a whole
//!   block for one path that is there twice, so such an event is refused here.

use super::arrow::fixed_bytes;
use super::column::Column;
use super::convert::{self, Cell};
use super::entries::{keep_last, name_at};
use super::fault::{Fault, RowFault};
use super::json;
use super::schema::{Default as FieldDefault, FieldPlan};
use simd_json::Node;
use sluice_common::config::Kind;
use sluice_common::limits::MAX_EVENT_MEMBERS;

/// What the values within one event may still take, and what they have taken.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    pub now_ms: u64,
    /// Members of the event so far.
    pub members: usize,
    /// Bytes that its columns may still take.
    pub bytes: usize,
}

impl Allowance {
    fn take_members(&mut self, more: usize) -> Result<(), Fault> {
        self.members += more;
        if self.members > MAX_EVENT_MEMBERS {
            return Err(Fault::TooManyMembers);
        }
        Ok(())
    }

    fn take_bytes(&mut self, more: usize) -> Result<usize, Fault> {
        self.bytes = self.bytes.checked_sub(more).ok_or(Fault::RowTooLarge)?;
        Ok(more)
    }
}

/// Where a fault was found: the node that is to blame.
type Found = (Fault, usize);

/// Writes the array or map at `nodes[at]` as the next row of `column`, and says how many bytes it took.
///
/// # Errors
/// [`RowFault`] of the field; the column must then be truncated.
pub fn write(
    (slot, field): (u16, &FieldPlan),
    (nodes, at): (&[Node<'_>], usize),
    column: &mut Column,
    allowance: &mut Allowance,
) -> Result<usize, RowFault> {
    value(field, (nodes, at), column, allowance).map_err(|(fault, node)| {
        if matches!(fault, Fault::TooManyMembers | Fault::RowTooLarge) {
            return fault.of_row();
        }
        RowFault {
            within: Some(at),
            ..fault.of_field(slot, Some(node))
        }
    })
}

fn value(
    field: &FieldPlan,
    (nodes, at): (&[Node<'_>], usize),
    column: &mut Column,
    allowance: &mut Allowance,
) -> Result<usize, Found> {
    let here = |fault| (fault, at);
    if json::is_null(&nodes[at]) {
        return if field.nullable {
            Ok(column.push(Cell::Null))
        } else {
            Err(here(Fault::NullNotAllowed))
        };
    }
    if matches!(field.kind, Kind::MapStringString) {
        return texts((nodes, at), column, allowance);
    }
    let Some(inner) = field.inner.as_deref() else {
        let cell = convert::cell(field, &nodes[at], allowance.now_ms).map_err(here)?;
        return allowance.take_bytes(column.push(cell)).map_err(here);
    };
    let bytes = match (&field.kind, &nodes[at]) {
        (Kind::Array(_), Node::Array { len, .. }) => elements(inner, (nodes, at, *len), column, allowance)?,
        (Kind::Map(_), Node::Object { len, .. }) => {
            allowance.take_members(*len).map_err(here)?;
            entries(inner, (nodes, at, *len), column, allowance)?
        }
        _ => return Err(here(Fault::WrongType)),
    };
    column.push(Cell::Bool(true));
    Ok(bytes)
}

/// A map of strings, as fields of that type are read.
fn texts(
    (nodes, at): (&[Node<'_>], usize),
    column: &mut Column,
    allowance: &mut Allowance,
) -> Result<usize, Found> {
    let (Node::Object { len, .. }, Some(maps)) = (&nodes[at], column.maps()) else {
        return Err((Fault::WrongType, at));
    };
    allowance.take_members(*len).map_err(|fault| (fault, at))?;
    let mut bytes = 0;
    for name in names((nodes, at, *len), false) {
        bytes += maps.add(name_at(nodes, name), |out| {
            json::write_text(&nodes[name + 1..], out)
        });
    }
    column.push(Cell::Bool(true));
    allowance.take_bytes(bytes).map_err(|fault| (fault, at))
}

/// The nodes of an object's names: of equal ones the last, and those of nulls only where `keeps_null`.
fn names((nodes, at, len): (&[Node<'_>], usize, usize), keeps_null: bool) -> Vec<usize> {
    let mut names = Vec::with_capacity(len);
    let mut name = at + 1;
    for _ in 0..len {
        if keeps_null || !json::is_null(&nodes[name + 1]) {
            names.push(name);
        }
        name += 1 + json::width(&nodes[name + 1]);
    }
    keep_last(&mut names, nodes);
    names
}

fn elements(
    inner: &FieldPlan,
    (nodes, at, len): (&[Node<'_>], usize, usize),
    column: &mut Column,
    allowance: &mut Allowance,
) -> Result<usize, Found> {
    let Some(items) = column.inner() else {
        return Err((Fault::WrongType, at));
    };
    let (mut element, mut bytes) = (at + 1, 0);
    for _ in 0..len {
        bytes += allowance
            .take_bytes(fixed_bytes(&inner.kind))
            .map_err(|fault| (fault, element))?;
        bytes += value(inner, (nodes, element), items, allowance)?;
        element += json::width(&nodes[element]);
    }
    Ok(bytes)
}

fn entries(
    inner: &FieldPlan,
    (nodes, at, len): (&[Node<'_>], usize, usize),
    column: &mut Column,
    allowance: &mut Allowance,
) -> Result<usize, Found> {
    let mut bytes = 0;
    for name in names((nodes, at, len), inner.nullable) {
        let taken = column.push_key(name_at(nodes, name)) + fixed_bytes(&inner.kind);
        bytes += allowance.take_bytes(taken).map_err(|fault| (fault, name))?;
        let Some(values) = column.inner() else {
            return Err((Fault::WrongType, name));
        };
        bytes += value(inner, (nodes, name + 1), values, allowance)?;
    }
    Ok(bytes)
}

/// Writes a default as the next row of `column`, and says how many bytes it took besides its fixed part.
pub fn write_default(field: &FieldPlan, default: &FieldDefault, column: &mut Column) -> usize {
    let mut bytes = 0;
    let inner = field.inner.as_deref();
    match default {
        FieldDefault::Cell(cell) => return column.push(*cell),
        FieldDefault::Text(text) => return column.push(Cell::Text(text)),
        FieldDefault::Map(entries) => {
            if let Some(maps) = column.maps() {
                let add = |(key, value): &(Box<str>, Box<str>)| {
                    maps.add(key, |out| out.extend_from_slice(value.as_bytes()))
                };
                bytes = entries.iter().map(add).sum();
            }
        }
        FieldDefault::List(items) => {
            for item in items {
                if let (Some(inner), Some(column)) = (inner, column.inner()) {
                    bytes += fixed_bytes(&inner.kind) + write_default(inner, item, column);
                }
            }
        }
        FieldDefault::Entries(entries) => {
            for (key, value) in entries {
                bytes += column.push_key(key);
                if let (Some(inner), Some(column)) = (inner, column.inner()) {
                    bytes += fixed_bytes(&inner.kind) + write_default(inner, value, column);
                }
            }
        }
    }
    column.push(Cell::Bool(true));
    bytes
}

/// Checks that the JSON value at `nodes[at]` is an object that ClickHouse takes.
///
/// # Errors
/// [`Fault`]: no object, too many members, or a path that is there twice.
pub fn check_json((nodes, at): (&[Node<'_>], usize), allowance: &mut Allowance) -> Result<(), Fault> {
    if !matches!(nodes[at], Node::Object { .. }) {
        return Err(Fault::WrongType);
    }
    let mut objects = Objects {
        nodes,
        path: Vec::new(),
        found: Vec::new(),
    };
    objects.enter(at, allowance)?;
    objects.unique(0)
}

/// The paths of objects: those in an array begin anew, as ClickHouse has it.
struct Objects<'n, 't> {
    nodes: &'n [Node<'t>],
    path: Vec<u8>,
    /// Hashes of the paths of all objects that are open.
    found: Vec<u128>,
}

impl Objects<'_, '_> {
    fn enter(&mut self, at: usize, allowance: &mut Allowance) -> Result<(), Fault> {
        match &self.nodes[at] {
            Node::Object { len, .. } => self.members(at, *len, allowance),
            Node::Array { len, .. } => self.elements(at, *len, allowance),
            Node::String(_) | Node::Static(_) => Ok(()),
        }
    }

    fn members(&mut self, at: usize, len: usize, allowance: &mut Allowance) -> Result<(), Fault> {
        allowance.take_members(len)?;
        let (mut name, outer) = (at + 1, self.path.len());
        for _ in 0..len {
            self.path.extend_from_slice(name_at(self.nodes, name).as_bytes());
            self.found.push(xxhash_rust::xxh3::xxh3_128(&self.path));
            self.path.push(b'.');
            self.enter(name + 1, allowance)?;
            self.path.truncate(outer);
            name += 1 + json::width(&self.nodes[name + 1]);
        }
        Ok(())
    }

    fn elements(&mut self, at: usize, len: usize, allowance: &mut Allowance) -> Result<(), Fault> {
        let (mut element, outer) = (at + 1, self.found.len());
        let path = std::mem::take(&mut self.path);
        for _ in 0..len {
            self.enter(element, allowance)?;
            self.unique(outer)?;
            element += json::width(&self.nodes[element]);
        }
        self.path = path;
        Ok(())
    }

    /// Takes the paths from `outer` on; each must be there once.
    fn unique(&mut self, outer: usize) -> Result<(), Fault> {
        let paths = &mut self.found[outer..];
        paths.sort_unstable();
        let is_twice = paths.windows(2).any(|pair| pair[0] == pair[1]);
        self.found.truncate(outer);
        if is_twice {
            Err(Fault::DuplicatePath)
        } else {
            Ok(())
        }
    }
}
