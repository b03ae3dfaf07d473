//! Checks of values: ranges, lengths, patterns, allowed values. Compiled once; a field without checks
//! costs one look at an empty option.
//!
//! They see what will be stored: the converted value, in its column's type. Null is never checked, and
//! what is not sent only when the config is read: its default, or the zero that would stand in.

use super::column::Column;
use super::convert::{self, Cell, zero};
use super::fault::Fault;
use super::json::Parser;
use super::schema::{Default as FieldDefault, FieldPlan, slot_of};
use hashbrown::HashSet;
use regex::{Regex, RegexBuilder};
use serde_json::Value;
use sluice_common::config::{Dataset, Field, Kind};
use sluice_common::limits::{MAX_PATTERN_BYTES, MAX_QUOTED_BYTES};
use std::cmp::Ordering;

/// The checks of one field.
#[derive(Debug)]
pub struct Checks {
    min: Option<Limit>,
    max: Option<Limit>,
    /// In bytes of a string, or entries of an array or map.
    min_length: Option<usize>,
    max_length: Option<usize>,
    pattern: Option<Regex>,
    values: Option<Values>,
}

#[derive(Debug)]
struct Limit {
    cell: Cell<'static>,
    /// As the config has it.
    text: Box<str>,
}

/// A set of values, each in the form in which its column hashes it.
#[derive(Debug)]
pub struct Values {
    hashed: HashSet<Box<[u8]>>,
    text: Box<str>,
}

/// What checks can be made of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// Ranges and values.
    Order,
    /// Lengths, patterns and values.
    Text,
    /// Lengths.
    Entries,
    /// Values.
    Plain,
    Json,
}

fn subject(kind: &Kind) -> Subject {
    match kind {
        Kind::Int8 | Kind::Int16 | Kind::Int32 | Kind::Int64 => Subject::Order,
        Kind::UInt8 | Kind::UInt16 | Kind::UInt32 | Kind::UInt64 => Subject::Order,
        Kind::Float32 | Kind::Float64 | Kind::Decimal { .. } => Subject::Order,
        Kind::DateTime(_) | Kind::DateTime64(..) | Kind::Date | Kind::Date32 => Subject::Order,
        Kind::String | Kind::LowCardinalityString | Kind::FixedString(_) => Subject::Text,
        Kind::MapStringString | Kind::Map(_) | Kind::Array(_) => Subject::Entries,
        Kind::Bool | Kind::Enum(_) | Kind::Uuid | Kind::Ipv4 | Kind::Ipv6 => Subject::Plain,
        Kind::Json => Subject::Json,
    }
}

/// A field that is required where another has one of some values.
#[derive(Debug)]
pub struct Rule {
    pub field: u16,
    pub other: u16,
    pub values: Values,
}

/// Compiles the rules of a dataset.
///
/// # Errors
/// A sentence that names the field.
pub fn rules(dataset: &Dataset, fields: &[FieldPlan]) -> Result<Vec<Rule>, String> {
    let mut rules = Vec::new();
    for (field, slot) in dataset.fields.iter().zip(0u16..) {
        let Some(rule) = &field.required_if else { continue };
        let wrong = |text: String| format!("field `{}`: required_if: {text}", field.name);
        if field.required || rule.field == field.name {
            return Err(wrong("it is `required` anyway, or names itself".to_owned()));
        }
        let other = slot_of(fields, rule.field.as_str());
        let other = other.ok_or_else(|| wrong(format!("{} is not a field", rule.field)))?;
        let values = Values::compile(&fields[usize::from(other)], &rule.is).map_err(wrong)?;
        rules.push(Rule {
            field: slot,
            other,
            values,
        });
    }
    Ok(rules)
}

impl Checks {
    /// Compiles the checks of a field, whose default is compiled already.
    ///
    /// # Errors
    /// A sentence: a check that the type has not, or checks that contradict each other or what is
    /// stored of an event without the field.
    pub fn compile(plan: &FieldPlan, field: &Field) -> Result<Option<Box<Self>>, String> {
        refuse_other_checks(plan, field)?;
        let values = field.values.as_deref();
        let checks = Self {
            min: limit(plan, "min", field.min.as_ref())?,
            max: limit(plan, "max", field.max.as_ref())?,
            min_length: field.min_length.map(|length| length.0 as usize),
            max_length: field.max_length.map(|length| length.0 as usize),
            pattern: field.pattern.as_deref().map(pattern).transpose()?,
            values: values.map(|values| Values::compile(plan, values)).transpose()?,
        };
        if checks.is_empty() {
            return Ok(None);
        }
        checks.agree(plan, values.unwrap_or_default())?;
        Ok(Some(Box::new(checks)))
    }

    fn is_empty(&self) -> bool {
        let range = self.min.is_none() && self.max.is_none();
        let length = self.min_length.is_none() && self.max_length.is_none();
        range && length && self.pattern.is_none() && self.values.is_none()
    }

    /// Range, length and pattern of a value.
    ///
    /// # Errors
    /// [`Fault`] naming the check.
    pub fn cell(&self, cell: Cell<'_>) -> Result<(), Fault> {
        let beyond = |limit: &Option<Limit>, side| {
            let limit = limit.as_ref().and_then(|limit| order(cell, limit.cell));
            limit == Some(side)
        };
        if beyond(&self.min, Ordering::Less) {
            return Err(Fault::BelowMin);
        }
        if beyond(&self.max, Ordering::Greater) {
            return Err(Fault::AboveMax);
        }
        let Cell::Text(text) = cell else { return Ok(()) };
        self.length(text.len())?;
        match &self.pattern {
            Some(pattern) if !pattern.is_match(text) => Err(Fault::PatternMismatch),
            Some(_) | None => Ok(()),
        }
    }

    /// A length, in bytes of a string or entries of an array or map.
    ///
    /// # Errors
    /// [`Fault`] naming the check.
    pub fn length(&self, length: usize) -> Result<(), Fault> {
        if self.min_length.is_some_and(|least| length < least) {
            return Err(Fault::TooShort);
        }
        if self.max_length.is_some_and(|most| length > most) {
            return Err(Fault::TooLong);
        }
        Ok(())
    }

    /// Whether the value of `row` is one of the allowed ones; `scratch` is overwritten.
    ///
    /// # Errors
    /// [`Fault::ValueNotAllowed`].
    pub fn allowed(&self, column: &Column, row: usize, scratch: &mut Vec<u8>) -> Result<(), Fault> {
        match &self.values {
            Some(values) if !values.have(column, row, scratch) => Err(Fault::ValueNotAllowed),
            Some(_) | None => Ok(()),
        }
    }

    /// The check that a fault names, with its limit, as the end of a sentence about the value.
    #[must_use]
    pub fn describe(&self, fault: Fault) -> String {
        let text = |limit: &Option<Limit>| {
            limit
                .as_ref()
                .map_or_else(String::new, |one| one.text.to_string())
        };
        let length = |length: Option<usize>| length.unwrap_or_default();
        if fault == Fault::BelowMin {
            format!("is below the minimum of {}", text(&self.min))
        } else if fault == Fault::AboveMax {
            format!("is above the maximum of {}", text(&self.max))
        } else if fault == Fault::TooShort {
            format!("is shorter than {} bytes or entries", length(self.min_length))
        } else if fault == Fault::TooLong {
            format!("is longer than {} bytes or entries", length(self.max_length))
        } else if fault == Fault::PatternMismatch {
            let pattern = self.pattern.as_ref().map_or("", Regex::as_str);
            format!("does not match the pattern {:?}", cut(pattern))
        } else {
            let values = self.values.as_ref().map_or("", |values| &*values.text);
            format!("is none of the allowed values {}", cut(values))
        }
    }

    fn agree(&self, plan: &FieldPlan, values: &[Value]) -> Result<(), String> {
        if let (Some(min), Some(max)) = (&self.min, &self.max)
            && order(min.cell, max.cell) == Some(Ordering::Greater)
        {
            return Err(format!("its min {} is above its max {}", min.text, max.text));
        }
        if let (Some(least), Some(most)) = (self.min_length, self.max_length)
            && least > most
        {
            return Err(format!("its min_length {least} is above its max_length {most}"));
        }
        for value in values {
            let checked = with_cell(plan, value, |cell| self.cell(cell))?;
            checked.map_err(|fault| format!("its value {value} {}", self.describe(fault)))?;
        }
        self.absent(plan)
    }

    fn default_length(&self, length: usize) -> Result<(), String> {
        let checked = self.length(length);
        checked.map_err(|fault| format!("its default {}", self.describe(fault)))
    }

    /// What is stored of an event without the field must pass, too.
    fn absent(&self, plan: &FieldPlan) -> Result<(), String> {
        let (what, stored) = match &plan.default {
            Some(FieldDefault::Cell(cell)) => ("default", *cell),
            Some(FieldDefault::Text(text)) => ("default", Cell::Text(text)),
            Some(FieldDefault::Map(entries)) => return self.default_length(entries.len()),
            Some(FieldDefault::List(items)) => return self.default_length(items.len()),
            Some(FieldDefault::Entries(entries)) => return self.default_length(entries.len()),
            None if plan.required || plan.nullable => return Ok(()),
            None => (
                "value where an event has none, its type's zero,",
                zero(&plan.kind),
            ),
        };
        if stored == Cell::Null {
            return Ok(());
        }
        let mut column = Column::new(&plan.kind, Some(&[0; 16]));
        column.push(stored);
        let is_map = subject(&plan.kind) == Subject::Entries;
        let checked = if is_map { self.length(0) } else { self.cell(stored) };
        let checked = checked.and_then(|()| self.allowed(&column, 0, &mut Vec::new()));
        checked.map_err(|fault| {
            format!(
                "its {what} {}; make it `required` or nullable, or give it another `default`",
                self.describe(fault)
            )
        })
    }
}

impl Values {
    /// Compiles a list of values, written as the column holds them.
    ///
    /// # Errors
    /// A sentence: an empty list, or a value that is not of the type.
    pub fn compile(plan: &FieldPlan, values: &[Value]) -> Result<Self, String> {
        if values.is_empty() {
            return Err("its list of values is empty".to_owned());
        }
        let hashed = values.iter().map(|value| hashed(plan, value));
        Ok(Self {
            hashed: hashed.collect::<Result<_, _>>()?,
            text: Value::from(values.to_vec()).to_string().into(),
        })
    }

    /// Whether the value of `row` is among them; `scratch` is overwritten.
    #[must_use]
    pub fn have(&self, column: &Column, row: usize, scratch: &mut Vec<u8>) -> bool {
        scratch.clear();
        column.write_hashed(row, scratch);
        self.hashed.contains(scratch.as_slice())
    }
}

fn hashed(plan: &FieldPlan, value: &Value) -> Result<Box<[u8]>, String> {
    let mut column = Column::new(&plan.kind, Some(&[0; 16]));
    if value.is_null() && plan.nullable {
        column.push(Cell::Null);
    } else {
        with_cell(plan, value, |cell| column.push(cell))?;
    }
    let mut hashed = Vec::new();
    column.write_hashed(0, &mut hashed);
    Ok(hashed.into())
}

fn limit(plan: &FieldPlan, key: &str, value: Option<&Value>) -> Result<Option<Limit>, String> {
    let Some(value) = value else { return Ok(None) };
    let cell = with_cell(plan, value, |cell| match cell {
        Cell::Int(value) => Some(Cell::Int(value)),
        Cell::Float(value) => Some(Cell::Float(value)),
        Cell::Time(value) => Some(Cell::Time(value)),
        Cell::Decimal(value) => Some(Cell::Decimal(value)),
        Cell::Date(value) => Some(Cell::Date(value)),
        Cell::Null | Cell::Bool(_) | Cell::Text(_) | Cell::Uuid(_) | Cell::Address(_) => None,
    });
    let cell = cell?.ok_or_else(|| format!("`{key}` is for numbers and times"))?;
    let text = value.to_string().into();
    Ok(Some(Limit { cell, text }))
}

/// Converts a value of the config, which is in the column's unit already.
fn with_cell<T>(plan: &FieldPlan, value: &Value, then: impl FnOnce(Cell<'_>) -> T) -> Result<T, String> {
    let text = value.to_string();
    let wrong = |fault: Fault| format!("its value {} is not of its type: {}", cut(&text), fault.code());
    let parsed = Parser::default().parse(text.as_bytes(), |nodes| {
        convert::cell_with(plan, None, &nodes[0], 0).map(then)
    });
    parsed.map_err(wrong)?.map_err(wrong)
}

fn pattern(text: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(text)
        .size_limit(MAX_PATTERN_BYTES)
        .dfa_size_limit(MAX_PATTERN_BYTES)
        .build();
    built.map_err(|error| format!("its pattern cannot be used: {error}"))
}

fn refuse_other_checks(plan: &FieldPlan, field: &Field) -> Result<(), String> {
    let subject = subject(&plan.kind);
    let range = field.min.is_some() || field.max.is_some();
    let length = field.min_length.is_some() || field.max_length.is_some();
    if range && subject != Subject::Order {
        return Err("`min` and `max` are for numbers and times".to_owned());
    }
    if length && !matches!(subject, Subject::Text | Subject::Entries) {
        return Err("`min_length` and `max_length` are for strings, arrays and maps".to_owned());
    }
    if field.pattern.is_some() && subject != Subject::Text {
        return Err("`pattern` is for strings".to_owned());
    }
    if field.values.is_some() && matches!(subject, Subject::Entries | Subject::Json) {
        return Err("`values` is not for arrays, maps and JSON".to_owned());
    }
    Ok(())
}

fn order(a: Cell<'_>, b: Cell<'_>) -> Option<Ordering> {
    if let (Cell::Int(a), Cell::Int(b)) = (a, b) {
        return Some(a.cmp(&b));
    }
    if let (Cell::Float(a), Cell::Float(b)) = (a, b) {
        return a.partial_cmp(&b);
    }
    if let (Cell::Decimal(a), Cell::Decimal(b)) = (a, b) {
        return Some(a.cmp(&b));
    }
    if let (Cell::Date(a), Cell::Date(b)) = (a, b) {
        return Some(a.cmp(&b));
    }
    if let (Cell::Time(a), Cell::Time(b)) = (a, b) {
        return Some(a.cmp(&b));
    }
    None
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_QUOTED_BYTES)]
}
