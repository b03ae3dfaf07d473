//! What one request showed that its schema does not have: members that no field reads, and why rows were
//! rejected. Made only where there is such a thing, and handed over once a request.

use super::fault::RowFault;
use super::time::Moment;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use simd_json::{Node, StaticNode};
use sluice_common::limits::{MAX_DRIFT_NAME_BYTES, MAX_DRIFT_NAMES};

/// What the values of an unknown member look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    Null,
    Bool,
    /// Whole numbers of 64 bits with a sign.
    Whole,
    /// Whole numbers, some past the largest with a sign.
    LargeWhole,
    Number,
    /// Strings that are RFC 3339 times.
    Time,
    Text,
    Object,
    Array,
    /// Values of several kinds.
    Mixed,
}

impl Shape {
    /// Of one value.
    #[must_use]
    pub fn of(node: &Node<'_>) -> Self {
        match node {
            Node::Object { .. } => Self::Object,
            Node::Array { .. } => Self::Array,
            Node::String(text) if looks_like_time(text) => Self::Time,
            Node::String(_) => Self::Text,
            Node::Static(StaticNode::Null) => Self::Null,
            Node::Static(StaticNode::Bool(_)) => Self::Bool,
            Node::Static(StaticNode::I64(_)) => Self::Whole,
            Node::Static(StaticNode::U64(value)) if i64::try_from(*value).is_ok() => Self::Whole,
            Node::Static(StaticNode::U64(_)) => Self::LargeWhole,
            Node::Static(StaticNode::F64(_)) => Self::Number,
        }
    }

    /// Of values of both shapes.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let is_number = |shape| matches!(shape, Self::Whole | Self::LargeWhole | Self::Number);
        let is_string = |shape| matches!(shape, Self::Time | Self::Text);
        if self == other || other == Self::Null {
            self
        } else if self == Self::Null {
            other
        } else if is_number(self) && is_number(other) {
            if self == Self::Number || other == Self::Number {
                Self::Number
            } else {
                Self::LargeWhole
            }
        } else if is_string(self) && is_string(other) {
            Self::Text
        } else {
            Self::Mixed
        }
    }
}

fn looks_like_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_like = (20..=35).contains(&bytes.len()) && bytes[4] == b'-' && bytes[13] == b':';
    is_like && Moment::parse(text).is_ok()
}

/// What one request showed.
#[derive(Debug, Default)]
pub struct Observed {
    pub(super) unknown: HashMap<Box<str>, (Shape, u64)>,
    /// Unknown members whose names are too long or too many to be kept.
    pub(super) other: u64,
    /// Rejected rows by field and code.
    pub(super) rejected: Vec<(Option<u16>, &'static str, u64)>,
}

impl Observed {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.unknown.is_empty() && self.other == 0 && self.rejected.is_empty()
    }

    /// An unknown member and its value.
    pub fn unknown(&mut self, name: &str, value: &Node<'_>) {
        if let Some((shape, count)) = self.unknown.get_mut(name) {
            *count += 1;
            *shape = shape.and(Shape::of(value));
        } else if name.len() <= MAX_DRIFT_NAME_BYTES && self.unknown.len() < MAX_DRIFT_NAMES {
            self.unknown.insert(name.into(), (Shape::of(value), 1));
        } else {
            self.other += 1;
        }
    }

    /// A rejected row. There are as many entries as pairs of fields and codes, at most.
    pub fn rejected(&mut self, fault: &RowFault) {
        let (slot, code) = (fault.slot, fault.fault.code());
        let known = self
            .rejected
            .iter_mut()
            .find(|one| one.0 == slot && one.1 == code);
        match known {
            Some((_, _, count)) => *count += 1,
            None => self.rejected.push((slot, code, 1)),
        }
    }
}
