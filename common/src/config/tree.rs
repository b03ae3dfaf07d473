//! The file as a tree whose every node knows its line: what [`super::read`] takes values from, and what
//! finds the line of a problem.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::fmt;

/// One value of the file.
pub struct Node {
    /// From 1; 0 where the parser does not know.
    pub line: u32,
    pub value: Value,
}

/// What a node holds.
pub enum Value {
    Null,
    /// Written without quotes and understood as true or false.
    Bool(bool, String),
    /// Written without quotes and understood as a number, with its text: `sha256: 12e4` is a text too.
    Number(serde_json::Number, String),
    Text(String),
    List(Vec<Item>),
    Map(Vec<Entry>),
}

/// An element of a list, with the place that it has in the file.
pub struct Item {
    pub index: usize,
    pub node: Node,
}

/// A member of a map.
pub struct Entry {
    pub key: String,
    /// The key's line.
    pub line: u32,
    pub node: Node,
}

/// The file is no YAML: nothing of it can be read.
#[derive(Debug)]
pub struct Malformed {
    pub line: Option<u32>,
    pub message: String,
}

impl Node {
    /// Reads a file's text. An empty one is an empty map.
    ///
    /// # Errors
    /// [`Malformed`] with the line where the parser gave up.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        // As in YAML 1.2: `y`, `no` and `on` are texts.
        let options = serde_saphyr::options! { strict_booleans: true };
        let read: Result<Spanned<Raw>, _> = serde_saphyr::from_str_with_options(text, options);
        match read {
            Ok(raw) => Ok(node(raw, text)),
            Err(error) => Err(Malformed {
                line: error
                    .location()
                    .and_then(|place| u32::try_from(place.line()).ok()),
                message: error.without_snippet().to_string(),
            }),
        }
    }

    /// The member `key` of a map.
    #[must_use]
    pub fn member(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            Value::Null | Value::Bool(..) | Value::Number(..) | Value::Text(_) | Value::List(_) => None,
        }
    }

    /// The elements of a list; none of anything else.
    #[must_use]
    pub fn items(&self) -> &[Item] {
        match &self.value {
            Value::List(items) => items,
            Value::Null | Value::Bool(..) | Value::Number(..) | Value::Text(_) | Value::Map(_) => &[],
        }
    }

    /// The text as it was written, of anything but lists, maps and nothing.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Bool(_, text) | Value::Number(_, text) | Value::Text(text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }
}

/// A config holds secrets: nothing of it is shown.
impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node(line {})", self.line)
    }
}

fn node(raw: Spanned<Raw>, source: &str) -> Node {
    let line = u32::try_from(raw.referenced.line()).unwrap_or(0);
    let written = || {
        let span = raw.defined.span();
        let from = usize::try_from(span.byte_offset()?).ok()?;
        let to = from + usize::try_from(span.byte_len()?).ok()?;
        source.get(from..to).map(|text| text.trim().to_owned())
    };
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Bool(value) => Value::Bool(value, written().unwrap_or_else(|| value.to_string())),
        Raw::Number(number) => {
            let text = written().unwrap_or_else(|| number.to_string());
            Value::Number(number, text)
        }
        Raw::Text(text) => Value::Text(text),
        Raw::List(items) => Value::List(
            items
                .into_iter()
                .enumerate()
                .map(|(index, item)| Item {
                    index,
                    node: node(item, source),
                })
                .collect(),
        ),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| Entry {
                    line: u32::try_from(key.referenced.line()).unwrap_or(line),
                    key: key.value,
                    node: node(value, source),
                })
                .collect(),
        ),
    };
    Node { line, value }
}

/// A value as the parser hands it over.
enum Raw {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        let number = serde_json::Number::from_f64(value);
        Ok(number.map_or_else(|| Raw::Text(value.to_string()), Raw::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(node: &Node) -> String {
        match &node.value {
            Value::Null => format!("{}:null", node.line),
            Value::Bool(value, text) => format!("{}:{value}({text})", node.line),
            Value::Number(number, text) => format!("{}:{number}({text})", node.line),
            Value::Text(text) => format!("{}:{text:?}", node.line),
            Value::List(items) => {
                let items: Vec<String> = items.iter().map(|item| show(&item.node)).collect();
                format!("[{}]", items.join(" "))
            }
            Value::Map(entries) => {
                let entry = |entry: &Entry| format!("{}@{}={}", entry.key, entry.line, show(&entry.node));
                let entries: Vec<String> = entries.iter().map(entry).collect();
                format!("{{{}}}", entries.join(" "))
            }
        }
    }

    #[test]
    fn every_node_knows_its_line_and_what_was_written() {
        let text = "a: 1\nb:\n  - 64MiB\n  - {c: \"5\", d: 0x10,\n     e: yes}\n# ünï\nf: 12e4 # x\ng: ~\nh: &x {i: 'j'}\nk: *x\nl: 007\n";
        let tree = Node::parse(text).expect("YAML");
        assert_eq!(
            show(&tree),
            "{a@1=1:1(1) b@2=[3:\"64MiB\" {c@4=4:\"5\" d@4=4:16(0x10) e@5=5:\"yes\"}] f@7=7:120000.0(12e4) \
             g@8=8:null h@9={i@9=9:\"j\"} k@10={i@10=10:\"j\"} l@11=11:7.0(007)}"
        );
    }

    #[test]
    fn what_is_no_yaml_names_its_line() {
        let error = Node::parse("a: 1\nb: [1\nc: 2\n").expect_err("broken");
        assert!(error.line.is_some_and(|line| line >= 2), "{error:?}");
        let twice = Node::parse("a: 1\nb: 2\na: 3\n").expect_err("a key twice");
        assert_eq!(twice.line, Some(3), "{twice:?}");
    }
}
