//! How a field's type is written: words and parentheses, in any case and spacing; names in quotes
//! are kept as they are. `Display` of [`FieldType`] writes what is read here.

use super::field_type::{EnumValues, FieldType, Kind, MAX_DECIMAL_DIGITS, MAX_FIXED_STRING, MAX_TYPE_DEPTH};
use super::zone::Zone;
use serde::de::{Deserialize, Deserializer, Error};
use std::sync::Arc;

/// Longest text of a type: room for every value of the largest sensible enum.
const MAX_TYPE_BYTES: usize = 64 * 1024;
/// Most bytes of a type's text that an error quotes.
const QUOTED_BYTES: usize = 80;

const PLAIN: &[(&str, Kind)] = &[
    ("string", Kind::String),
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
    ("date", Kind::Date),
    ("date32", Kind::Date32),
    ("uuid", Kind::Uuid),
    ("ipv4", Kind::Ipv4),
    ("ipv6", Kind::Ipv6),
    ("json", Kind::Json),
];

impl FieldType {
    /// Reads a type's text.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what is known.
    pub fn parse(text: &str) -> Result<Self, String> {
        let quoted = &text[..text.floor_char_boundary(QUOTED_BYTES)];
        if text.len() > MAX_TYPE_BYTES {
            return Err(format!(
                "type {quoted:?}…: its text is over {MAX_TYPE_BYTES} bytes"
            ));
        }
        let mut reader = Reader { rest: text, depth: 0 };
        let read = reader.field_type().and_then(|read| {
            let rest = reader.rest.trim();
            if rest.is_empty() {
                Ok(read)
            } else {
                Err(format!("{rest:.40?} follows behind its end"))
            }
        });
        read.map_err(|why| format!("type {quoted:?}: {why}"))
    }
}

fn known() -> String {
    let names: Vec<_> = PLAIN.iter().map(|(name, _)| *name).collect();
    format!(
        "known are {}, low_cardinality(string), fixed_string(N), decimal(P,S), datetime, datetime('Zone'), \
         datetime64(0..9), datetime64(0..9,'Zone'), enum('a','b'), enum('a'=1,'b'=2), array(T), \
         map(string,T), and nullable(T) of each but map, array and json",
        names.join(", ")
    )
}

/// Reads from the front of what is left.
struct Reader<'t> {
    rest: &'t str,
    depth: usize,
}

impl Reader<'_> {
    fn field_type(&mut self) -> Result<FieldType, String> {
        let word = self.word().to_ascii_lowercase();
        if let Some((_, kind)) = PLAIN.iter().find(|(name, _)| *name == word) {
            return FieldType::new(kind.clone(), false);
        }
        if word == "datetime" && !self.peeks('(') {
            return FieldType::new(Kind::DateTime(Zone::default()), false);
        }
        match word.as_str() {
            "nullable" => self.within(Self::nullable),
            "low_cardinality" => self.within(Self::low_cardinality),
            other => {
                let kind = self.within(|reader| reader.kind(other))?;
                FieldType::new(kind, false)
            }
        }
    }

    /// The arguments of a type that has some.
    fn kind(&mut self, word: &str) -> Result<Kind, String> {
        match word {
            "fixed_string" => {
                let bytes = self.number(
                    1,
                    i64::from(MAX_FIXED_STRING),
                    "fixed_string takes a number of bytes",
                )?;
                Ok(Kind::FixedString(
                    u16::try_from(bytes).unwrap_or(MAX_FIXED_STRING),
                ))
            }
            "decimal" => self.decimal(),
            "datetime" => Ok(Kind::DateTime(self.zone()?)),
            "datetime64" => {
                let digits = self.number(0, 9, "datetime64 takes a number of digits")?;
                let digits = u8::try_from(digits).unwrap_or(9);
                let zone = if self.takes(',') {
                    self.zone()?
                } else {
                    Zone::default()
                };
                Ok(Kind::DateTime64(digits, zone))
            }
            "enum" => Ok(Kind::Enum(Arc::new(self.enum_values()?))),
            "array" => Ok(Kind::Array(Arc::new(self.field_type()?))),
            "map" => self.map(),
            _ => Err(format!("it is not known; {}", known())),
        }
    }

    fn within<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<T, String> {
        self.depth += 1;
        // Each level of nesting may be wrapped in `nullable` or `low_cardinality` once.
        if self.depth > 2 * MAX_TYPE_DEPTH {
            return Err(format!("it is nested deeper than {MAX_TYPE_DEPTH}"));
        }
        if !self.takes('(') {
            return Err(format!("it is not known; {}", known()));
        }
        let read = read(self)?;
        if !self.takes(')') {
            return Err(format!("a `)` is missing before {:.40?}", self.rest));
        }
        self.depth -= 1;
        Ok(read)
    }

    fn nullable(&mut self) -> Result<FieldType, String> {
        let inner = self.field_type()?;
        if inner.nullable {
            return Err("it is nullable twice".into());
        }
        FieldType::new(inner.kind, true)
    }

    fn low_cardinality(&mut self) -> Result<FieldType, String> {
        let inner = self.field_type()?;
        if inner.kind != Kind::String {
            return Err("low_cardinality takes string or nullable(string)".into());
        }
        FieldType::new(Kind::LowCardinalityString, inner.nullable)
    }

    fn decimal(&mut self) -> Result<Kind, String> {
        let most = i64::from(MAX_DECIMAL_DIGITS);
        let precision = self.number(1, most, "decimal takes its digits")?;
        if !self.takes(',') {
            return Err(
                "decimal takes its digits, and how many of them stand behind the point: decimal(18,4)".into(),
            );
        }
        let scale = self.number(0, precision, "decimal takes its digits behind the point")?;
        Ok(Kind::Decimal {
            precision: u8::try_from(precision).unwrap_or(MAX_DECIMAL_DIGITS),
            scale: u8::try_from(scale).unwrap_or(0),
        })
    }

    fn map(&mut self) -> Result<Kind, String> {
        let key = self.field_type()?;
        if key.kind != Kind::String || key.nullable {
            return Err("a map's keys are string, as JSON's are".into());
        }
        if !self.takes(',') {
            return Err("map takes two types: map(string, T)".into());
        }
        let value = self.field_type()?;
        if value.kind == Kind::String && !value.nullable {
            return Ok(Kind::MapStringString);
        }
        Ok(Kind::Map(Arc::new(value)))
    }

    /// Values without a number get one more than the value before, the first one 1.
    fn enum_values(&mut self) -> Result<EnumValues, String> {
        let (mut values, mut next) = (Vec::new(), 1i64);
        loop {
            let name = self.name()?;
            if self.takes('=') {
                next = self.number(
                    i64::from(i16::MIN),
                    i64::from(i16::MAX),
                    "an enum's value has a number",
                )?;
            }
            let number = i16::try_from(next).map_err(|_| format!("{name:?} has a number past 32767"))?;
            values.push((name.into_boxed_str(), number));
            next += 1;
            if !self.takes(',') {
                return EnumValues::new(values);
            }
        }
    }

    fn zone(&mut self) -> Result<Zone, String> {
        Zone::new(&self.name()?)
    }

    /// A quoted name, or one of letters, digits and `_ - . / :`.
    fn name(&mut self) -> Result<String, String> {
        self.rest = self.rest.trim_start();
        let quote = ['\'', '"']
            .into_iter()
            .find(|quote| self.rest.starts_with(*quote));
        let Some(quote) = quote else {
            let plain = |c: char| c.is_alphanumeric() || "_-./:".contains(c);
            let end = self.rest.find(|c| !plain(c)).unwrap_or(self.rest.len());
            let (name, rest) = self.rest.split_at(end);
            self.rest = rest;
            return if name.is_empty() {
                Err(format!("a name is missing before {rest:.40?}"))
            } else {
                Ok(name.to_owned())
            };
        };
        let mut name = String::new();
        let mut letters = self.rest.char_indices().skip(1);
        while let Some((at, c)) = letters.next() {
            match c {
                '\\' => name.extend(letters.next().map(|(_, escaped)| escaped)),
                c if c == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(name);
                }
                c => name.push(c),
            }
        }
        Err(format!("a closing {quote} is missing"))
    }

    fn word(&mut self) -> &str {
        let text = self.rest.trim_start();
        let end = text
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        self.rest = rest;
        word
    }

    fn number(&mut self, low: i64, high: i64, what: &str) -> Result<i64, String> {
        let text = self.rest.trim_start();
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '-')
            .unwrap_or(text.len());
        let (digits, rest) = text.split_at(end);
        self.rest = rest;
        let number = digits.parse().ok().filter(|number| (low..=high).contains(number));
        number.ok_or_else(|| format!("{what}, {low} to {high}, not {digits:.40?}"))
    }

    fn peeks(&self, c: char) -> bool {
        self.rest.trim_start().starts_with(c)
    }

    fn takes(&mut self, c: char) -> bool {
        if let Some(rest) = self.rest.trim_start().strip_prefix(c) {
            self.rest = rest;
            return true;
        }
        false
    }
}

impl<'de> Deserialize<'de> for FieldType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> FieldType {
        FieldType::parse(text).unwrap_or_else(|why| panic!("{why}"))
    }

    #[test]
    fn types_read_back_as_they_are_written() {
        let plain = PLAIN.iter().map(|(name, _)| (*name).to_owned());
        let others = [
            "low_cardinality(string)",
            "nullable(low_cardinality(string))",
            "nullable(uint16)",
            "fixed_string(16)",
            "decimal(76,76)",
            "datetime",
            "datetime('Europe/Berlin')",
            "datetime64(9)",
            "datetime64(3,'America/St_Johns')",
            "enum('a'=1,'b'=2)",
            "enum('it\\'s \\\\ (b), ü'=-32768,'B'=32767)",
            "map(string,string)",
            "map(string,nullable(float64))",
            "map(string,map(string,map(string,string)))",
            "array(array(nullable(decimal(18,4))))",
            "array(map(string,array(enum('x'=1))))",
        ];
        for text in plain.chain(others.map(str::to_owned)) {
            assert_eq!(parse(&text).to_string(), text);
            assert_eq!(parse(&parse(&text).to_string()), parse(&text));
        }
    }

    #[test]
    fn case_and_space_mean_nothing_outside_of_names() {
        assert_eq!(parse(" Map( STRING ,String ) ").kind, Kind::MapStringString);
        assert_eq!(
            parse("Nullable(Decimal( 10 , 2 ))").to_string(),
            "nullable(decimal(10,2))"
        );
        assert_eq!(
            parse("enum(a, B ,\"c d\")").to_string(),
            "enum('a'=1,'B'=2,'c d'=3)"
        );
        assert_eq!(parse("enum(a=5,b,c=-1)").to_string(), "enum('c'=-1,'a'=5,'b'=6)");
        assert_eq!(parse("datetime('utc')"), parse("datetime"));
        assert_eq!(
            parse("datetime64(3, 'europe/berlin')").to_string(),
            "datetime64(3,'Europe/Berlin')"
        );
        assert_eq!(
            parse("low_cardinality(nullable(string))"),
            parse("nullable(low_cardinality(string))")
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        let nine = format!("{}string{}", "array(".repeat(9), ")".repeat(9));
        for (text, why) in [
            ("strng", "known are string"),
            ("", "known are"),
            ("tuple(string)", "known are"),
            ("array", "known are"),
            ("string(3)", "follows behind"),
            ("array(string", "`)` is missing"),
            ("array(string))", "follows behind"),
            ("nullable(map(string,string))", "no nullable map"),
            ("nullable(array(string))", "no nullable array"),
            ("nullable(nullable(string))", "twice"),
            ("array(nullable(array(string)))", "no nullable array"),
            ("nullable(json)", "no nullable json"),
            ("array(json)", "json stands alone"),
            ("map(uint8,string)", "keys are string"),
            ("map(string)", "two types"),
            ("low_cardinality(uint8)", "low_cardinality takes string"),
            ("datetime64(10)", "0 to 9"),
            ("datetime64", "known are"),
            ("datetime('Mars/Olympus')", "not known"),
            ("decimal(77,0)", "1 to 76"),
            ("decimal(10,11)", "0 to 10"),
            ("decimal(10)", "behind the point"),
            ("decimal(10,-1)", "0 to 10"),
            ("fixed_string(0)", "1 to 4096"),
            ("fixed_string(4097)", "1 to 4096"),
            ("enum()", "a name is missing"),
            ("enum(a,)", "a name is missing"),
            ("enum(a,a)", "twice"),
            ("enum(a=1,b=1)", "the same number"),
            ("enum(a=32768)", "-32768 to 32767"),
            ("enum(a=32767,b)", "past 32767"),
            ("enum('a)", "closing '"),
            (&nine, "deeper than 8"),
        ] {
            let error = FieldType::parse(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
        let long = format!("enum('{}')", "x".repeat(MAX_TYPE_BYTES));
        assert!(FieldType::parse(&long).is_err_and(|why| why.contains("over 65536 bytes")));
        let deep = "nullable(".repeat(5_000);
        assert!(FieldType::parse(&deep).is_err_and(|why| why.contains("deeper")));
    }
}
