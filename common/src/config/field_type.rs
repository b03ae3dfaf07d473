//! The types of fields: `string`, `nullable(uint16)`, `datetime64(3)`, `array(decimal(18,4))`, …
//!
//! A type is a tree with one branch: only arrays and maps hold another type, and only one each. How
//! it is written stands in [`super::type_text`].

use super::zone::Zone;
use std::fmt;
use std::sync::Arc;

/// Most digits of a decimal: ClickHouse's `Decimal256`.
pub const MAX_DECIMAL_DIGITS: u8 = 76;
/// Longest fixed string, in bytes.
pub const MAX_FIXED_STRING: u16 = 4_096;
/// Most values of one enum.
pub const MAX_ENUM_VALUES: usize = 1_000;
/// Longest name of an enum's value, in bytes.
pub const MAX_ENUM_NAME: usize = 255;
/// Deepest type: arrays and maps in each other, the innermost value included.
pub const MAX_TYPE_DEPTH: usize = 8;

/// What a field holds, apart from whether it may be null.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Kind {
    String,
    LowCardinalityString,
    /// Bytes, 1 to [`MAX_FIXED_STRING`].
    FixedString(u16),
    Bool,
    Int8,
    Int16,
    Int32,
    Int64,
    UInt8,
    UInt16,
    UInt32,
    UInt64,
    Float32,
    Float64,
    /// `scale` of the `precision` digits stand behind the point.
    Decimal {
        precision: u8,
        scale: u8,
    },
    /// Days since 1970, 16 bits.
    Date,
    /// Days from 1900 to 2299.
    Date32,
    /// Seconds since 1970, 32 bits; shown in the zone.
    DateTime(Zone),
    /// Fractions of a second since 1970: the number of digits, 0 to 9; shown in the zone.
    DateTime64(u8, Zone),
    Uuid,
    Ipv4,
    Ipv6,
    Enum(Arc<EnumValues>),
    /// A JSON object.
    Json,
    MapStringString,
    /// From strings to anything but plain strings.
    Map(Arc<FieldType>),
    Array(Arc<FieldType>),
}

/// A field's type.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FieldType {
    pub kind: Kind,
    pub nullable: bool,
}

/// The names and numbers of an enum, by number.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct EnumValues {
    values: Vec<(Box<str>, i16)>,
    /// Places in `values`, by name.
    by_name: Vec<u16>,
}

impl Kind {
    /// Whether it is a point in time.
    #[must_use]
    pub fn is_time(&self) -> bool {
        matches!(self, Self::DateTime(_) | Self::DateTime64(..))
    }

    /// The zone in which a time is shown.
    #[must_use]
    pub fn zone(&self) -> Option<&Zone> {
        if let Self::DateTime(zone) | Self::DateTime64(_, zone) = self {
            Some(zone)
        } else {
            None
        }
    }

    /// What the values of an array or map are.
    #[must_use]
    pub fn inner(&self) -> Option<&FieldType> {
        if let Self::Array(inner) | Self::Map(inner) = self {
            Some(inner)
        } else {
            None
        }
    }

    /// The kind itself, or that of the innermost values.
    #[must_use]
    pub fn innermost(&self) -> &Self {
        self.inner().map_or(self, |inner| inner.kind.innermost())
    }

    /// Whether one value is one thing: no map, no array, no JSON.
    #[must_use]
    pub fn is_scalar(&self) -> bool {
        !matches!(self, Self::MapStringString | Self::Json) && self.inner().is_none()
    }

    /// Whether ClickHouse has `Nullable` of it.
    #[must_use]
    pub fn can_be_null(&self) -> bool {
        self.is_scalar()
    }

    /// Whether ClickHouse sorts a table by it: not by JSON, and not where a null lies within.
    #[must_use]
    pub fn can_sort(&self) -> bool {
        match self.inner() {
            Some(inner) => !inner.nullable && inner.kind.can_sort(),
            None => *self != Self::Json,
        }
    }

    fn depth(&self) -> usize {
        1 + self.inner().map_or(0, |inner| inner.kind.depth())
    }
}

impl FieldType {
    /// A type, where ClickHouse has it.
    ///
    /// # Errors
    /// A sentence that says what it has not.
    pub fn new(kind: Kind, nullable: bool) -> Result<Self, String> {
        if nullable && !kind.can_be_null() {
            return Err(format!(
                "ClickHouse has no nullable {kind}; an absent one is empty, so leave `nullable` out"
            ));
        }
        if kind.inner().is_some_and(|inner| inner.kind == Kind::Json) {
            return Err("json stands alone: it can hold arrays and objects itself".into());
        }
        if kind.depth() > MAX_TYPE_DEPTH {
            return Err(format!("it is nested deeper than {MAX_TYPE_DEPTH}"));
        }
        Ok(Self { kind, nullable })
    }
}

impl EnumValues {
    /// Values by name and number.
    ///
    /// # Errors
    /// A sentence: none, too many, one twice, or one too long.
    pub fn new(mut values: Vec<(Box<str>, i16)>) -> Result<Self, String> {
        if values.is_empty() || values.len() > MAX_ENUM_VALUES {
            return Err(format!("an enum has 1 to {MAX_ENUM_VALUES} values"));
        }
        if let Some((name, _)) = values.iter().find(|(name, _)| name.len() > MAX_ENUM_NAME) {
            return Err(format!(
                "an enum's value has at most {MAX_ENUM_NAME} bytes, not the {} of {name:.40?}",
                name.len()
            ));
        }
        values.sort_by_key(|(_, number)| *number);
        if let Some(pair) = values.windows(2).find(|pair| pair[0].1 == pair[1].1) {
            return Err(format!(
                "{:?} and {:?} have the same number {}",
                pair[0].0, pair[1].0, pair[0].1
            ));
        }
        let mut by_name: Vec<u16> = (0..).take(values.len()).collect();
        by_name.sort_by_key(|at| &values[usize::from(*at)].0);
        let name = |at: &u16| &values[usize::from(*at)].0;
        if let Some(pair) = by_name.windows(2).find(|pair| name(&pair[0]) == name(&pair[1])) {
            return Err(format!("{:?} is there twice", name(&pair[0])));
        }
        Ok(Self { values, by_name })
    }

    /// Names and numbers, by number.
    #[must_use]
    pub fn values(&self) -> &[(Box<str>, i16)] {
        &self.values
    }

    /// Whether `name` is one of them.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        let found = self
            .by_name
            .binary_search_by(|at| self.values[usize::from(*at)].0.as_ref().cmp(name));
        found.is_ok()
    }

    /// The name of the lowest number, ClickHouse's default.
    #[must_use]
    pub fn first(&self) -> &str {
        self.values.first().map_or("", |(name, _)| name)
    }

    /// Whether its numbers need 16 bits.
    #[must_use]
    pub fn is_wide(&self) -> bool {
        self.values
            .iter()
            .any(|(_, number)| i8::try_from(*number).is_err())
    }

    /// `'a' = 1, 'b' = 2`, with what stands around the equals sign.
    #[must_use]
    pub fn listed(&self, equals: &str, comma: &str) -> String {
        let quoted = |name: &str| name.replace('\\', "\\\\").replace('\'', "\\'");
        let values = self.values.iter();
        let texts = values.map(|(name, number)| format!("'{}'{equals}{number}", quoted(name)));
        texts.collect::<Vec<_>>().join(comma)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String => f.write_str("string"),
            Self::LowCardinalityString => f.write_str("low_cardinality(string)"),
            Self::FixedString(bytes) => write!(f, "fixed_string({bytes})"),
            Self::Bool => f.write_str("bool"),
            Self::Int8 => f.write_str("int8"),
            Self::Int16 => f.write_str("int16"),
            Self::Int32 => f.write_str("int32"),
            Self::Int64 => f.write_str("int64"),
            Self::UInt8 => f.write_str("uint8"),
            Self::UInt16 => f.write_str("uint16"),
            Self::UInt32 => f.write_str("uint32"),
            Self::UInt64 => f.write_str("uint64"),
            Self::Float32 => f.write_str("float32"),
            Self::Float64 => f.write_str("float64"),
            Self::Decimal { precision, scale } => write!(f, "decimal({precision},{scale})"),
            Self::Date => f.write_str("date"),
            Self::Date32 => f.write_str("date32"),
            Self::DateTime(zone) if zone.is_utc() => f.write_str("datetime"),
            Self::DateTime(zone) => write!(f, "datetime('{zone}')"),
            Self::DateTime64(digits, zone) if zone.is_utc() => write!(f, "datetime64({digits})"),
            Self::DateTime64(digits, zone) => write!(f, "datetime64({digits},'{zone}')"),
            Self::Uuid => f.write_str("uuid"),
            Self::Ipv4 => f.write_str("ipv4"),
            Self::Ipv6 => f.write_str("ipv6"),
            Self::Enum(values) => write!(f, "enum({})", values.listed("=", ",")),
            Self::Json => f.write_str("json"),
            Self::MapStringString => f.write_str("map(string,string)"),
            Self::Map(inner) => write!(f, "map(string,{inner})"),
            Self::Array(inner) => write!(f, "array({inner})"),
        }
    }
}

impl fmt::Display for FieldType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nullable {
            write!(f, "nullable({})", self.kind)
        } else {
            self.kind.fmt(f)
        }
    }
}
