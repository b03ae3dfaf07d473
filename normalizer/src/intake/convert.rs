//! One JSON value into one typed cell of a column: strict, but friendly where nothing is lost.
//!
//! - Strings take strings only, bools `true` and `false` only.
//! - Integers take whole numbers, `3.0` and `3e2` among them; 64-bit ones also as strings, because
//!   JavaScript cannot write them as numbers. With a unit, fractions are converted and rounded.
//! - Floats take any number. A number that overflows the type is out of range, never infinite.
//! - Times: see [`super::time`]; a number only where the field states its epoch unit.
//! - Decimals, dates, UUIDs and addresses: see [`super::literal`].
//! - A fixed string takes what has no more bytes; zeros at its end are left out, because ClickHouse
//!   fills it up with zeros. An enum takes the names that it lists.
//!
//! Arrays, maps and JSON are not cells: see [`super::nested`].

use super::arrow::time_unit;
use super::fault::Fault;
use super::literal::{self, DATE_DAYS, DATE32_DAYS};
use super::schema::{AgeBounds, FieldPlan};
use super::time::Moment;
use super::units::Factor;
use super::units::seen::UnitPlan;
use arrow_buffer::i256;
use arrow_schema::TimeUnit;
use simd_json::{Node, StaticNode};
use sluice_common::config::{EnumValues, EpochUnit, Kind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A value that fits its column.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell<'t> {
    Null,
    Text(&'t str),
    Bool(bool),
    Int(i128),
    Float(f64),
    Time(Moment),
    /// In units of the column's last digit.
    Decimal(i256),
    /// Days since 1970.
    Date(i32),
    Uuid([u8; 16]),
    Address(IpAddr),
}

/// Largest magnitude that a double may have to be taken as a whole number: past any 64-bit type.
const WHOLE_LIMIT: f64 = 1e30;

/// Converts `node`, which is not null, for `field`, which is a scalar.
///
/// # Errors
/// [`Fault`] saying why the value does not fit.
pub fn cell<'t>(field: &FieldPlan, node: &Node<'t>, now_ms: u64) -> Result<Cell<'t>, Fault> {
    let factor = field.unit.as_ref().and_then(UnitPlan::fixed);
    cell_with(field, factor, node, now_ms)
}

/// As [`cell`], with a unit's conversion that the event itself decides.
///
/// # Errors
/// As [`cell`].
pub fn cell_with<'t>(
    field: &FieldPlan,
    factor: Option<Factor>,
    node: &Node<'t>,
    now_ms: u64,
) -> Result<Cell<'t>, Fault> {
    match &field.kind {
        Kind::String | Kind::LowCardinalityString => Ok(Cell::Text(text(node)?)),
        Kind::Bool => match node {
            Node::Static(StaticNode::Bool(value)) => Ok(Cell::Bool(*value)),
            Node::Object { .. } | Node::Array { .. } | Node::Static(_) | Node::String(_) => {
                Err(Fault::WrongType)
            }
        },
        Kind::Int8 | Kind::Int16 | Kind::Int32 | Kind::Int64 => integer(field, factor, node),
        Kind::UInt8 | Kind::UInt16 | Kind::UInt32 | Kind::UInt64 => integer(field, factor, node),
        Kind::Float32 | Kind::Float64 => float(field, factor, node),
        Kind::DateTime(_) | Kind::DateTime64(..) => moment(field, node, now_ms),
        Kind::Decimal { precision, scale } => literal::decimal(node, *precision, *scale).map(Cell::Decimal),
        Kind::Date => literal::date(text(node)?, DATE_DAYS).map(Cell::Date),
        Kind::Date32 => literal::date(text(node)?, DATE32_DAYS).map(Cell::Date),
        Kind::Uuid => literal::uuid(text(node)?).map(Cell::Uuid),
        Kind::Ipv4 => literal::ipv4(text(node)?).map(|address| Cell::Address(address.into())),
        Kind::Ipv6 => literal::ipv6(text(node)?).map(|address| Cell::Address(address.into())),
        Kind::Enum(values) => listed(values, text(node)?),
        Kind::FixedString(bytes) => fixed(*bytes, text(node)?),
        Kind::MapStringString | Kind::Map(_) | Kind::Array(_) | Kind::Json => Err(Fault::WrongType),
    }
}

fn text<'t>(node: &Node<'t>) -> Result<&'t str, Fault> {
    match node {
        Node::String(text) => Ok(text),
        Node::Object { .. } | Node::Array { .. } | Node::Static(_) => Err(Fault::WrongType),
    }
}

fn listed<'t>(values: &EnumValues, name: &'t str) -> Result<Cell<'t>, Fault> {
    if values.contains(name) {
        Ok(Cell::Text(name))
    } else {
        Err(Fault::NotInEnum)
    }
}

fn fixed(bytes: u16, text: &str) -> Result<Cell<'_>, Fault> {
    let text = text.trim_end_matches('\0');
    if text.len() > usize::from(bytes) {
        return Err(Fault::OverFixedLength);
    }
    Ok(Cell::Text(text))
}

/// The bounds of an integer type.
#[must_use]
pub fn bounds(kind: &Kind) -> Option<(i128, i128)> {
    Some(match kind {
        Kind::Int8 => (i8::MIN.into(), i8::MAX.into()),
        Kind::Int16 => (i16::MIN.into(), i16::MAX.into()),
        Kind::Int32 => (i32::MIN.into(), i32::MAX.into()),
        Kind::Int64 => (i64::MIN.into(), i64::MAX.into()),
        Kind::UInt8 => (0, u8::MAX.into()),
        Kind::UInt16 => (0, u16::MAX.into()),
        Kind::UInt32 => (0, u32::MAX.into()),
        Kind::UInt64 => (0, u64::MAX.into()),
        Kind::String | Kind::LowCardinalityString | Kind::FixedString(_) | Kind::Bool => return None,
        Kind::Float32 | Kind::Float64 | Kind::DateTime(_) | Kind::DateTime64(..) => return None,
        Kind::Decimal { .. } | Kind::Date | Kind::Date32 | Kind::Enum(_) => return None,
        Kind::Uuid | Kind::Ipv4 | Kind::Ipv6 | Kind::Json => return None,
        Kind::MapStringString | Kind::Map(_) | Kind::Array(_) => return None,
    })
}

fn integer<'t>(field: &FieldPlan, factor: Option<Factor>, node: &Node<'t>) -> Result<Cell<'t>, Fault> {
    let is_wide = matches!(field.kind, Kind::Int64 | Kind::UInt64);
    let whole = match node {
        Node::Static(StaticNode::I64(value)) => i128::from(*value),
        Node::Static(StaticNode::U64(value)) => i128::from(*value),
        Node::Static(StaticNode::F64(value)) => return float_to_integer(field, factor, *value),
        Node::String(text) if is_wide => digits(text)?,
        Node::Static(StaticNode::Bool(_) | StaticNode::Null) => return Err(Fault::WrongType),
        Node::Object { .. } | Node::Array { .. } | Node::String(_) => return Err(Fault::WrongType),
    };
    let whole = factor.map_or(Some(whole), |factor| factor.of_whole(whole));
    in_bounds(&field.kind, whole.ok_or(Fault::OutOfRange)?)
}

fn float_to_integer(field: &FieldPlan, factor: Option<Factor>, value: f64) -> Result<Cell<'static>, Fault> {
    let value = match factor {
        Some(factor) => factor.of_float(value).round(),
        None if value.fract() == 0.0 => value,
        None => return Err(Fault::NotWhole),
    };
    if value.abs() > WHOLE_LIMIT {
        return Err(Fault::OutOfRange);
    }
    in_bounds(&field.kind, value as i128)
}

fn in_bounds(kind: &Kind, value: i128) -> Result<Cell<'static>, Fault> {
    match bounds(kind) {
        Some((low, high)) if (low..=high).contains(&value) => Ok(Cell::Int(value)),
        Some(_) | None => Err(Fault::OutOfRange),
    }
}

/// A whole number written as a string: digits with at most a minus before them.
fn digits(text: &str) -> Result<i128, Fault> {
    let magnitude = text.strip_prefix('-').unwrap_or(text);
    if magnitude.is_empty() || !magnitude.bytes().all(|c| c.is_ascii_digit()) {
        return Err(Fault::WrongType);
    }
    if magnitude.len() > 20 {
        return Err(Fault::OutOfRange);
    }
    text.parse().map_err(|_| Fault::OutOfRange)
}

fn float<'t>(field: &FieldPlan, factor: Option<Factor>, node: &Node<'t>) -> Result<Cell<'t>, Fault> {
    let value = number(node).ok_or(Fault::WrongType)?;
    let value = factor.map_or(value, |factor| factor.of_float(value));
    let fits = if field.kind == Kind::Float32 {
        (value as f32).is_finite()
    } else {
        value.is_finite()
    };
    if fits {
        Ok(Cell::Float(value))
    } else {
        Err(Fault::OutOfRange)
    }
}

fn number(node: &Node<'_>) -> Option<f64> {
    match node {
        Node::Static(StaticNode::I64(value)) => Some(*value as f64),
        Node::Static(StaticNode::U64(value)) => Some(*value as f64),
        Node::Static(StaticNode::F64(value)) => Some(*value),
        Node::Static(StaticNode::Bool(_) | StaticNode::Null) => None,
        Node::Object { .. } | Node::Array { .. } | Node::String(_) => None,
    }
}

fn moment<'t>(field: &FieldPlan, node: &Node<'t>, now_ms: u64) -> Result<Cell<'t>, Fault> {
    let time = match node {
        Node::String(text) => match &field.zone {
            Some(zone) => Moment::parse_local(text, zone),
            None => Moment::parse(text),
        }
        .map_err(Fault::BadTimestamp)?,
        Node::Static(StaticNode::I64(value)) => Moment::from_epoch(*value, epoch(field)?),
        Node::Static(StaticNode::U64(value)) => {
            let value = i64::try_from(*value).map_err(|_| Fault::OutOfRange)?;
            Moment::from_epoch(value, epoch(field)?)
        }
        Node::Static(StaticNode::F64(value)) => fractional(*value, epoch(field)?)?,
        Node::Static(StaticNode::Bool(_) | StaticNode::Null) => return Err(Fault::WrongType),
        Node::Object { .. } | Node::Array { .. } => return Err(Fault::WrongType),
    };
    let (first, last) = seconds_bounds(&field.kind);
    if !(first..=last).contains(&time.seconds) {
        return Err(Fault::OutOfRange);
    }
    let digits = if let Kind::DateTime64(digits, _) = &field.kind {
        *digits
    } else {
        0
    };
    let time = time.cut_to(digits);
    field
        .bounds
        .map_or(Ok(()), |bounds| check_age(time, bounds, now_ms))?;
    Ok(Cell::Time(time))
}

fn epoch(field: &FieldPlan) -> Result<EpochUnit, Fault> {
    field.epoch.ok_or(Fault::EpochWithoutUnit)
}

fn fractional(value: f64, unit: EpochUnit) -> Result<Moment, Fault> {
    if unit == EpochUnit::S {
        return Moment::from_fractional_seconds(value).ok_or(Fault::OutOfRange);
    }
    if value.fract() != 0.0 {
        return Err(Fault::BadTimestamp("has a fraction, which only seconds may have"));
    }
    if value.abs() > 9e18 {
        return Err(Fault::OutOfRange);
    }
    Ok(Moment::from_epoch(value as i64, unit))
}

/// First and last second that ClickHouse's type holds, and Arrow's between us and it.
fn seconds_bounds(kind: &Kind) -> (i64, i64) {
    const Y1900: i64 = -2_208_988_800;
    const Y2299_LAST: i64 = 10_413_791_999;
    // The last whole second of 64 bits of nanoseconds: 2262-04-11T23:47:15Z.
    const NANOS_LAST: i64 = i64::MAX / 1_000_000_000 - 1;
    match time_unit(kind) {
        _ if matches!(kind, Kind::DateTime(_)) => (0, i64::from(u32::MAX)),
        TimeUnit::Nanosecond => (Y1900, NANOS_LAST),
        TimeUnit::Second | TimeUnit::Millisecond | TimeUnit::Microsecond => (Y1900, Y2299_LAST),
    }
}

fn check_age(time: Moment, bounds: AgeBounds, now_ms: u64) -> Result<(), Fault> {
    let (at, now) = (i128::from(time.unix_ms()), i128::from(now_ms));
    if at < now - i128::from(bounds.past_ms) {
        return Err(Fault::TooOld);
    }
    if at > now + i128::from(bounds.future_ms) {
        return Err(Fault::TooNew);
    }
    Ok(())
}

/// The value of a field that is neither sent nor nullable, as ClickHouse has it: empty, false, zero.
#[must_use]
pub fn zero(kind: &Kind) -> Cell<'_> {
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
