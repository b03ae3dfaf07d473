//! Why a row is rejected: one variant a fact, one frozen code each, and a message that says what was
//! got, what is expected and what to do. Faults carry no text: it is made for those that are told.

use super::schema::FieldPlan;
use super::units::seen::UnitPlan;
use super::{convert, json};
use simd_json::{Node, StaticNode};
use sluice_common::config::{EnumValues, Kind};
use sluice_common::limits::{MAX_EVENT_BYTES, MAX_EVENT_MEMBERS, MAX_JSON_DEPTH, MAX_QUOTED_BYTES};
use sluice_common::wire::intake::RowError;
use std::borrow::Cow;

/// What is wrong with a row. The codes are listed in [`super`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    MissingField,
    NullNotAllowed,
    WrongType,
    /// A fraction for an integer field.
    NotWhole,
    OutOfRange,
    /// Any number that JSON can write and 64 bits cannot hold.
    NumberTooLarge,
    /// With what is wrong, as the end of a sentence.
    BadTimestamp(&'static str),
    EpochWithoutUnit,
    /// A text that is no decimal number.
    BadDecimal,
    /// Digits behind the point that the decimal has no place for.
    TooManyDigits,
    /// A JSON number of more digits than a double surely keeps.
    DigitsLost,
    /// With what is wrong, as the end of a sentence.
    BadDate(&'static str),
    BadUuid,
    BadAddress,
    NotInEnum,
    /// More bytes than a fixed string has.
    OverFixedLength,
    TooOld,
    TooNew,
    /// Required by the value of another field.
    RequiredIf,
    BelowMin,
    AboveMax,
    TooShort,
    TooLong,
    PatternMismatch,
    ValueNotAllowed,
    /// The event names a unit that there is not, or that measures something else.
    UnknownUnit,
    MissingUnit,
    UnknownField,
    DuplicateField,
    /// Two members of a JSON value that are one path to ClickHouse.
    DuplicatePath,
    TooDeep,
    TooManyMembers,
    /// More bytes of JSON than an event may have.
    JsonTooLarge,
    /// More bytes of columns than a record may have.
    RowTooLarge,
    /// With the byte of the event at which it breaks, where the parser knows it.
    MalformedJson {
        at: usize,
    },
    NotUtf8,
    NotAnObject,
}

/// A fault, and where in the event it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowFault {
    pub fault: Fault,
    /// The field, by its place in the schema.
    pub slot: Option<u16>,
    /// The node of the event that is meant: the value, or the name of an unknown member.
    pub node: Option<usize>,
    /// Where `node` lies within an array or map: the node of the whole value.
    pub within: Option<usize>,
}

impl Fault {
    /// The code that clients see. Frozen.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::MissingField | Self::RequiredIf => "missing_field",
            Self::NullNotAllowed => "null_not_allowed",
            Self::WrongType | Self::NotWhole => "wrong_type",
            Self::OutOfRange | Self::NumberTooLarge => "out_of_range",
            Self::BadTimestamp(_) => "bad_timestamp",
            Self::EpochWithoutUnit => "epoch_without_unit",
            Self::BadDecimal => "bad_decimal",
            Self::TooManyDigits | Self::DigitsLost => "too_many_digits",
            Self::BadDate(_) => "bad_date",
            Self::BadUuid => "bad_uuid",
            Self::BadAddress => "bad_address",
            Self::NotInEnum => "not_in_enum",
            Self::OverFixedLength => "over_fixed_length",
            Self::TooOld => "too_old",
            Self::TooNew => "too_new",
            Self::BelowMin => "below_min",
            Self::AboveMax => "above_max",
            Self::TooShort => "too_short",
            Self::TooLong => "too_long",
            Self::PatternMismatch => "pattern_mismatch",
            Self::ValueNotAllowed => "value_not_allowed",
            Self::UnknownUnit => "unknown_unit",
            Self::MissingUnit => "missing_unit",
            Self::UnknownField => "unknown_field",
            Self::DuplicateField | Self::DuplicatePath => "duplicate_field",
            Self::TooDeep => "too_deep",
            Self::TooManyMembers => "too_many_members",
            Self::JsonTooLarge | Self::RowTooLarge => "event_too_large",
            Self::MalformedJson { .. } => "malformed_json",
            Self::NotUtf8 => "not_utf8",
            Self::NotAnObject => "not_an_object",
        }
    }

    /// As a fault of the whole row.
    #[must_use]
    pub fn of_row(self) -> RowFault {
        RowFault {
            fault: self,
            slot: None,
            node: None,
            within: None,
        }
    }

    /// As a fault of one field.
    #[must_use]
    pub fn of_field(self, slot: u16, node: Option<usize>) -> RowFault {
        RowFault {
            fault: self,
            slot: Some(slot),
            node,
            within: None,
        }
    }
}

impl RowFault {
    /// The fault in words.
    #[must_use]
    pub fn describe(&self, index: u32, fields: &[FieldPlan], nodes: &[Node<'_>]) -> RowError {
        let field = self.slot.and_then(|slot| fields.get(usize::from(slot)));
        let node = self.node.and_then(|at| nodes.get(at));
        let name = match (field, node) {
            (Some(field), _) => field.name.as_str().to_owned(),
            (None, Some(Node::String(member))) if self.fault == Fault::UnknownField => cut(member).to_owned(),
            (None, _) => String::new(),
        };
        let mut path = String::new();
        let inner = field.zip(self.within.zip(self.node));
        let inner = inner.and_then(|(field, (root, node))| {
            path.push_str(field.name.as_str());
            locate(field, nodes, (root, node), &mut path)
        });
        let message = match inner {
            Some(inner) => format!("at {path}: {}", self.message(Some(inner), node)),
            None => self.message(field, node),
        };
        RowError {
            index,
            field: name,
            code: Cow::Borrowed(self.fault.code()),
            message,
        }
    }

    fn message(&self, field: Option<&FieldPlan>, node: Option<&Node<'_>>) -> String {
        let got = node.map_or_else(|| "nothing".to_owned(), quoted);
        let expected = field.map_or_else(|| "a value of the schema".to_owned(), expected);
        match self.fault {
            Fault::MissingField => format!("the field is required and was not sent; send {expected}"),
            Fault::NullNotAllowed => format!("got null, expected {expected}; send a value"),
            Fault::WrongType => format!("got {got}, expected {expected}"),
            Fault::NotWhole => {
                format!("got {got}, which is not whole, expected {expected}; round it before sending")
            }
            Fault::OutOfRange => format!("got {got}, which is out of range, expected {expected}"),
            Fault::BadTimestamp(why) => format!("got {got}, which {why}; send {expected}"),
            Fault::EpochWithoutUnit => format!(
                "got {got}, a time as a number, and the field states no epoch unit; send {expected}, or set `epoch` \
                 in the config"
            ),
            Fault::BadDecimal => format!("got {got}, which is no decimal number; send {expected}"),
            Fault::TooManyDigits => format!(
                "got {got}, which has more digits behind the point than the column; round it before sending, to {expected}"
            ),
            Fault::DigitsLost => format!(
                "got the number {got}, of whose digits JSON readers keep 15; send it as a string: {expected}"
            ),
            Fault::BadDate(why) => format!("got {got}, which {why}; send {expected}"),
            Fault::BadUuid => format!("got {got}, which is no UUID; send {expected}"),
            Fault::BadAddress => format!("got {got}, which is no such address; send {expected}"),
            Fault::NotInEnum => format!("got {got}, which the enum does not list; send {expected}"),
            Fault::OverFixedLength => format!("got {got}, which is too long; send {expected}"),
            Fault::TooOld => format!(
                "got {got}, which is more than {} s old (time.max_past); such late events are not taken",
                field
                    .and_then(|field| field.bounds)
                    .map_or(0, |bounds| bounds.past_ms / 1_000)
            ),
            Fault::TooNew => format!(
                "got {got}, which is more than {} s ahead of our clock (time.max_future); check the sender's clock",
                field
                    .and_then(|field| field.bounds)
                    .map_or(0, |bounds| bounds.future_ms / 1_000)
            ),
            Fault::BelowMin
            | Fault::AboveMax
            | Fault::TooShort
            | Fault::TooLong
            | Fault::PatternMismatch
            | Fault::ValueNotAllowed
            | Fault::RequiredIf
            | Fault::UnknownUnit
            | Fault::MissingUnit => demanded(self.fault, field, (&got, &expected)),
            Fault::UnknownField => {
                "the dataset has no such field and rejects unknown ones; leave it out or correct its name"
                    .to_owned()
            }
            Fault::DuplicateField => "the field was sent twice in one event; send it once".to_owned(),
            Fault::DuplicatePath => {
                "a path of its JSON is there twice (`a.b` and `b` within `a` are one path); send it once"
                    .to_owned()
            }
            Fault::TooDeep => format!("it is nested deeper than {MAX_JSON_DEPTH}; flatten it"),
            Fault::TooManyMembers => format!("it has more than {MAX_EVENT_MEMBERS} members; send fewer"),
            Fault::JsonTooLarge => format!("it is larger than {MAX_EVENT_BYTES} bytes; send smaller events"),
            Fault::RowTooLarge => {
                "its columns do not fit one record (900 KiB less overhead); send smaller events".to_owned()
            }
            Fault::NumberTooLarge => {
                "a number in it does not fit 64 bits, nor a double; send it as a string".to_owned()
            }
            Fault::MalformedJson { at } => format!("it is not JSON (at byte {at} of the event); correct it"),
            Fault::NotUtf8 => "it is not UTF-8; encode it as UTF-8".to_owned(),
            Fault::NotAnObject => format!("got {got}, expected a JSON object with the fields of the event"),
        }
    }
}

fn expected(field: &FieldPlan) -> String {
    if let Some((low, high)) = convert::bounds(&field.kind) {
        let unit = if field.unit.is_some() {
            " after the unit's conversion"
        } else {
            ""
        };
        return format!("a whole number from {low} to {high}{unit}");
    }
    match &field.kind {
        Kind::Bool => "true or false".to_owned(),
        Kind::Float32 => "a number of 32-bit range (up to 3.4e38)".to_owned(),
        Kind::Float64 => "a number".to_owned(),
        Kind::DateTime(_) => time_expected(field, "from 1970 to 2106-02-07"),
        Kind::DateTime64(7.., _) => time_expected(field, "from 1900 to 2262-04-11"),
        Kind::DateTime64(..) => time_expected(field, "from 1900 to 2299"),
        Kind::Decimal { precision, scale } => decimal_expected(*precision, *scale),
        Kind::Date => "a date like \"2026-11-21\", from 1970-01-01 to 2149-06-06".to_owned(),
        Kind::Date32 => "a date like \"2026-11-21\", from 1900-01-01 to 2299-12-31".to_owned(),
        Kind::Uuid => "a UUID like \"f47ac10b-58cc-4372-a567-0e02b2c3d479\"".to_owned(),
        Kind::Ipv4 => "an IPv4 address like \"192.0.2.1\"".to_owned(),
        Kind::Ipv6 => "an IPv6 address like \"2001:db8::1\", or an IPv4 address".to_owned(),
        Kind::Enum(values) => enum_expected(values),
        Kind::FixedString(bytes) => format!("a string of at most {bytes} bytes"),
        Kind::MapStringString | Kind::Map(_) | Kind::Json => "an object".to_owned(),
        Kind::Array(_) => "an array".to_owned(),
        Kind::String | Kind::LowCardinalityString => "a string".to_owned(),
        Kind::Int8 | Kind::Int16 | Kind::Int32 | Kind::Int64 => "a whole number".to_owned(),
        Kind::UInt8 | Kind::UInt16 | Kind::UInt32 | Kind::UInt64 => "a whole number".to_owned(),
    }
}

/// Faults against a unit, a check or another field's demand.
fn demanded(fault: Fault, field: Option<&FieldPlan>, (got, expected): (&str, &str)) -> String {
    let (member, to) = unit_of(field);
    if fault == Fault::RequiredIf {
        let other = field.and_then(|field| field.required_if.as_ref());
        let other = other.map_or("", |other| other.as_str());
        format!("the field is required by the value of `{other}` and was not sent; send {expected}")
    } else if fault == Fault::UnknownUnit {
        format!("`{member}` is {got}, expected a UCUM unit that converts into {to}, like \"{to}\"")
    } else if fault == Fault::MissingUnit {
        format!("`{member}` names no unit; send a UCUM unit that converts into {to}, like \"{to}\"")
    } else {
        check_failed(fault, field, got)
    }
}

fn check_failed(fault: Fault, field: Option<&FieldPlan>, got: &str) -> String {
    let checks = field.and_then(|field| field.checks.as_ref());
    let why = checks.map_or_else(String::new, |checks| checks.describe(fault));
    let unit = if field.is_some_and(|field| field.unit.is_some()) {
        " after the unit's conversion"
    } else {
        ""
    };
    format!("got {got}, which{unit} {why}")
}

/// The member that names the field's unit, and the unit of its column.
fn unit_of(field: Option<&FieldPlan>) -> (&str, &str) {
    match field.and_then(|field| field.unit.as_ref()) {
        Some(UnitPlan::Named(named)) => (cut(&named.member), named.to()),
        Some(UnitPlan::Fixed(_)) | None => ("", ""),
    }
}

fn decimal_expected(precision: u8, scale: u8) -> String {
    format!(
        "a decimal number like \"-12.5\" of at most {} digits before and {scale} behind the point",
        precision - scale
    )
}

fn enum_expected(values: &EnumValues) -> String {
    let names: Vec<_> = values
        .values()
        .iter()
        .map(|(name, _)| format!("{name:?}"))
        .collect();
    let all = names.join(", ");
    let listed = cut(&all);
    let more = if listed.len() < all.len() { "…" } else { "" };
    format!("one of {listed}{more}")
}

/// The plan of the value at `node`, which lies within the value at `root`; its way goes into `path`.
fn locate<'p>(
    field: &'p FieldPlan,
    nodes: &[Node<'_>],
    (root, node): (usize, usize),
    path: &mut String,
) -> Option<&'p FieldPlan> {
    if root == node {
        return Some(field);
    }
    let inner = field.inner.as_deref()?;
    let (len, is_map) = match nodes.get(root)? {
        Node::Array { len, .. } => (*len, false),
        Node::Object { len, .. } => (*len, true),
        Node::String(_) | Node::Static(_) => return None,
    };
    let mut at = root + 1;
    for place in 0..len {
        let value = at + usize::from(is_map);
        let end = value + json::width(nodes.get(value)?);
        if node < end {
            match nodes.get(at) {
                Some(Node::String(key)) if is_map => path.push_str(&format!("[{:?}]", cut(key))),
                Some(_) | None => path.push_str(&format!("[{place}]")),
            }
            return locate(inner, nodes, (value, node), path);
        }
        at = end;
    }
    None
}

fn time_expected(field: &FieldPlan, range: &str) -> String {
    let epoch = field.epoch.map_or_else(String::new, |unit| {
        format!(
            " or a number of {} since 1970",
            format!("{unit:?}").to_lowercase()
        )
    });
    let local = field.zone.as_ref().map_or_else(String::new, |zone| {
        format!(
            " (without an offset: local time of {})",
            zone.iana_name().unwrap_or("UTC")
        )
    });
    format!("an RFC 3339 time like \"2026-11-21T03:30:30.123Z\"{local}{epoch}, {range}")
}

fn quoted(node: &Node<'_>) -> String {
    match node {
        Node::String(text) => format!("the string {:?}", cut(text)),
        Node::Object { .. } => "an object".to_owned(),
        Node::Array { .. } => "an array".to_owned(),
        Node::Static(StaticNode::Null) => "null".to_owned(),
        Node::Static(value) => format!("{value}"),
    }
}

/// The beginning of a client's text: at most [`MAX_QUOTED_BYTES`], whole characters.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_QUOTED_BYTES)]
}
