//! The types of fields: `string`, `nullable(uint16)`, `datetime64(3)`, `map(string, string)`, …

use serde::de::{Deserialize, Deserializer, Error};
use std::fmt;

/// What a field holds, apart from whether it may be null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    String,
    LowCardinalityString,
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
    /// Seconds since 1970, 32 bits.
    DateTime,
    /// Fractions of a second since 1970: the number of digits, 0 to 9.
    DateTime64(u8),
    MapStringString,
}

/// A field's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FieldType {
    pub kind: Kind,
    pub nullable: bool,
}

const PLAIN: &[(&str, Kind)] = &[
    ("string", Kind::String),
    ("low_cardinality(string)", Kind::LowCardinalityString),
    ("bool", Kind::Bool),
    ("int8", Kind::Int8),
    ("int16", Kind::Int16),
    ("int32", Kind::Int32),
    ("int64", Kind::Int64),
    ("uint8", Kind::UInt8),
    ("uint16", Kind::UInt16),
    ("uint32", Kind::UInt32),
    ("uint64", Kind::UInt64),
    ("float32", Kind::Float32),
    ("float64", Kind::Float64),
    ("datetime", Kind::DateTime),
    ("map(string,string)", Kind::MapStringString),
];
const LATER: &[&str] = &[
    "decimal",
    "date",
    "uuid",
    "ipv4",
    "ipv6",
    "enum",
    "array",
    "json",
    "fixed_string",
    "map",
];

impl FieldType {
    /// Reads a type's text.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what is known.
    pub fn parse(text: &str) -> Result<Self, String> {
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let lower = compact.to_ascii_lowercase();
        if let Some(inner) = lower
            .strip_prefix("nullable(")
            .and_then(|rest| rest.strip_suffix(')'))
        {
            return nullable(inner, text);
        }
        Ok(Self {
            kind: kind(&lower, text)?,
            nullable: false,
        })
    }
}

fn nullable(inner: &str, text: &str) -> Result<FieldType, String> {
    let kind = kind(inner, text)?;
    if kind == Kind::MapStringString {
        return Err(format!(
            "type {text:?}: ClickHouse has no nullable map; an absent map is empty"
        ));
    }
    Ok(FieldType { kind, nullable: true })
}

fn kind(lower: &str, text: &str) -> Result<Kind, String> {
    if let Some((_, kind)) = PLAIN.iter().find(|(name, _)| *name == lower) {
        return Ok(*kind);
    }
    if let Some(digits) = lower
        .strip_prefix("datetime64(")
        .and_then(|rest| rest.strip_suffix(')'))
    {
        return match digits.parse::<u8>() {
            Ok(digits @ 0..=9) => Ok(Kind::DateTime64(digits)),
            _ => Err(format!("type {text:?}: datetime64 takes 0 to 9 digits")),
        };
    }
    if LATER.iter().any(|name| lower.starts_with(name)) {
        return Err(format!(
            "type {text:?} is not there yet in this release; {}",
            known()
        ));
    }
    Err(format!("type {text:?} is not known; {}", known()))
}

fn known() -> String {
    let names: Vec<_> = PLAIN.iter().map(|(name, _)| *name).collect();
    format!(
        "known are {}, datetime64(0..9), nullable(...) of each but map",
        names.join(", ")
    )
}

impl<'de> Deserialize<'de> for FieldType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl fmt::Display for FieldType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = PLAIN
            .iter()
            .find(|(_, kind)| *kind == self.kind)
            .map(|(name, _)| *name);
        let name = match (self.kind, plain) {
            (Kind::DateTime64(digits), _) => format!("datetime64({digits})"),
            (_, plain) => plain.unwrap_or("?").to_owned(),
        };
        if self.nullable {
            write!(f, "nullable({name})")
        } else {
            f.write_str(&name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_read_back_as_they_are_written() {
        let texts = PLAIN.iter().map(|(name, _)| (*name).to_owned());
        for text in texts.chain(["datetime64(9)".into(), "nullable(uint16)".into()]) {
            let parsed = FieldType::parse(&text).expect("known");
            assert_eq!(parsed.to_string(), text);
        }
        assert!(FieldType::parse("map(string, string)").is_ok());
    }

    #[test]
    fn what_is_not_there_says_so() {
        assert!(FieldType::parse("decimal(10,2)").is_err_and(|e| e.contains("not there yet")));
        assert!(FieldType::parse("strng").is_err_and(|e| e.contains("not known")));
        assert!(FieldType::parse("nullable(map(string,string))").is_err());
        assert!(FieldType::parse("datetime64(10)").is_err());
    }
}
