//! From the tree to typed values, with every fault and not only the first.
//!
//! Serde stops at the first fault. So a fault's value is taken out of the tree and the tree is read
//! again, until nothing is wrong any more; what then is missing only because it was taken out is not
//! told. This works for whatever types the config has, and a value of a wrong type costs one more reading.
//!
//! Texts may hold `${NAME}`, which stands for an environment variable, and `$${` for `${` itself. This
//! is done here, for every text of the file but those of type [`super::Text`], whose references are
//! resolved late, so that nothing can show what they lead to.

use super::place::{Place, Step, remove};
use super::text;
use super::tree::{Entry, Item, Node, Value};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor, value::MapAccessDeserializer,
};
use std::fmt;

/// Most faults told of one file: each costs a reading.
const MAX_FAULTS: usize = 100;

/// One thing that is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub place: Place,
    /// 0 until a node on the way up says its line.
    pub line: u32,
    pub message: String,
    /// The member that is missing.
    missing: Option<&'static str>,
}

/// Reads the tree as a `T`, taking out what is wrong. None where nothing usable is left.
pub fn read<T: DeserializeOwned>(tree: &mut Node) -> (Option<T>, Vec<Fault>) {
    let (mut faults, mut removed): (Vec<Fault>, Vec<Place>) = (Vec::new(), Vec::new());
    loop {
        let mut fault = match T::deserialize(&*tree) {
            Ok(value) => return (Some(value), faults),
            Err(fault) => fault,
        };
        fault.place.0.reverse();
        let place = fault.place.clone();
        let taken_out = |name: &str| {
            let mut member = place.clone();
            member.0.push(Step::Key(name.to_owned()));
            removed.contains(&member)
        };
        if !fault.missing.is_some_and(taken_out) {
            faults.push(fault);
        }
        if faults.len() >= MAX_FAULTS || !remove(tree, &place.0) {
            return (None, faults);
        }
        removed.push(place);
    }
}

impl Fault {
    fn new(message: impl fmt::Display) -> Self {
        Self {
            place: Place::default(),
            line: 0,
            message: message.to_string(),
            missing: None,
        }
    }

    /// Seen by the node that holds the value: the innermost one's line counts.
    fn at(mut self, line: u32) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }

    /// On the way up; steps are gathered innermost first.
    fn below(mut self, step: Step) -> Self {
        self.place.0.push(step);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message)
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            missing: Some(field),
            ..Self::new(format!("`{field}` is missing"))
        }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!(
            "`{field}` is not a key here: known are {}",
            expected.join(", ")
        ))
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("{} was found, {expected} is expected", named(unexpected)))
    }
}

/// What was found, as a person calls it; texts are not quoted, they may be secrets.
fn named(unexpected: Unexpected<'_>) -> &'static str {
    match unexpected {
        Unexpected::Bool(_) => "true or false",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => "a number",
        Unexpected::Char(_) | Unexpected::Str(_) | Unexpected::Bytes(_) => "a text",
        Unexpected::Unit | Unexpected::Option => "nothing",
        Unexpected::Seq => "a list",
        Unexpected::Map => "a map",
        Unexpected::NewtypeStruct | Unexpected::Enum | Unexpected::UnitVariant => "another value",
        Unexpected::NewtypeVariant | Unexpected::TupleVariant | Unexpected::StructVariant => "another value",
        Unexpected::Other(_) => "another value",
    }
}

impl Node {
    fn unexpected(&self) -> Unexpected<'_> {
        match &self.value {
            Value::Null => Unexpected::Unit,
            Value::Bool(value, _) => Unexpected::Bool(*value),
            Value::Number(..) => Unexpected::Float(0.0),
            Value::Text(text) => Unexpected::Str(text),
            Value::List(_) => Unexpected::Seq,
            Value::Map(_) => Unexpected::Map,
        }
    }

    fn expanded(&self) -> Result<Option<String>, Fault> {
        let expand = |text| text::expand(text).map_err(|error| Fault::new(error).at(self.line));
        self.text().map(expand).transpose()
    }

    /// Has a number, or a text that is one, visited.
    fn number<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Fault> {
        let number = match &self.value {
            Value::Number(number, _) => Some(number.clone()),
            Value::Text(text) => serde_json::from_str(text::expand(text).map_err(Fault::new)?.trim()).ok(),
            Value::Null | Value::Bool(..) | Value::List(_) | Value::Map(_) => None,
        };
        match number {
            Some(number) => Self::visit_number(&number, visitor),
            None => Err(de::Error::invalid_type(self.unexpected(), &visitor)),
        }
    }

    fn visit_number<'de, V: Visitor<'de>>(
        number: &serde_json::Number,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match (number.as_u64(), number.as_i64()) {
            (Some(value), _) => visitor.visit_u64(value),
            (None, Some(value)) => visitor.visit_i64(value),
            (None, None) => visitor.visit_f64(number.as_f64().unwrap_or_default()),
        }
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.number(visitor).map_err(|fault: Fault| fault.at(self.line))
        }
    )*};
}

macro_rules! texts {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            match self.expanded()? {
                Some(text) => visitor.visit_string(text),
                None => Err(de::Error::invalid_type(self.unexpected(), &visitor)),
            }
            .map_err(|fault: Fault| fault.at(self.line))
        }
    )*};
}

impl<'de> Deserializer<'de> for &Node {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value, _) => visitor.visit_bool(*value),
            Value::Number(number, _) => Node::visit_number(number, visitor),
            Value::Text(text) => visitor.visit_string(text::expand(text).map_err(Fault::new)?),
            Value::List(items) => visitor.visit_seq(Items(items.iter())),
            Value::Map(entries) => visitor.visit_map(Entries(entries.iter(), None)),
        }
        .map_err(|fault: Fault| fault.at(self.line))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let text = self.expanded()?;
        match (&self.value, text.as_deref()) {
            (Value::Bool(value, _), _) => visitor.visit_bool(*value),
            (_, Some("true")) => visitor.visit_bool(true),
            (_, Some("false")) => visitor.visit_bool(false),
            (_, _) => Err(de::Error::invalid_type(self.unexpected(), &visitor)),
        }
        .map_err(|fault: Fault| fault.at(self.line))
    }

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64
    }

    texts! { deserialize_str deserialize_string deserialize_char deserialize_identifier }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if matches!(self.value, Value::Null) {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.text() {
            Some(text) if name == text::UNRESOLVED => visitor.visit_str(text),
            None if name == text::UNRESOLVED => Err(de::Error::invalid_type(self.unexpected(), &visitor)),
            Some(_) | None => visitor.visit_newtype_struct(self),
        }
        .map_err(|fault: Fault| fault.at(self.line))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match (&self.value, self.expanded()?) {
            (Value::Map(entries), _) => {
                visitor.visit_enum(MapAccessDeserializer::new(Entries(entries.iter(), None)))
            }
            (_, Some(text)) => visitor.visit_enum(text.into_deserializer()),
            (_, None) => Err(de::Error::invalid_type(self.unexpected(), &visitor)),
        }
        .map_err(|fault: Fault| fault.at(self.line))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    /// A map; a section of which nothing is written is an empty one.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.value {
            Value::Map(entries) => visitor.visit_map(Entries(entries.iter(), None)),
            Value::Null => visitor.visit_map(Entries([].iter(), None)),
            Value::Bool(..) | Value::Number(..) | Value::Text(_) | Value::List(_) => {
                Err(de::Error::invalid_type(self.unexpected(), &visitor))
            }
        }
        .map_err(|fault: Fault| fault.at(self.line))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_map(visitor)
    }

    serde::forward_to_deserialize_any! {
        bytes byte_buf unit unit_struct seq tuple tuple_struct
    }
}

struct Items<'a>(std::slice::Iter<'a, Item>);

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(item) = self.0.next() else {
            return Ok(None);
        };
        let read = seed.deserialize(&item.node).map(Some);
        read.map_err(|fault| fault.at(item.node.line).below(Step::Index(item.index)))
    }
}

struct Entries<'a>(std::slice::Iter<'a, Entry>, Option<&'a Entry>);

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.1 = self.0.next();
        let Some(entry) = self.1 else { return Ok(None) };
        let read = seed.deserialize(entry.key.as_str().into_deserializer()).map(Some);
        read.map_err(|fault: Fault| fault.at(entry.line).below(Step::Key(entry.key.clone())))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let entry = self
            .1
            .ok_or_else(|| Fault::new("a value was asked for before its key"))?;
        let read = seed.deserialize(&entry.node);
        read.map_err(|fault| fault.at(entry.line).below(Step::Key(entry.key.clone())))
    }
}
