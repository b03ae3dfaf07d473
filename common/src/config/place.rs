//! Where in the file something stands: `datasets[1].fields[3].type`, and its line.

use super::tree::{Node, Value};
use std::fmt;

/// One step down the tree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Key(String),
    Index(usize),
}

/// The way from the file's top to a value.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(pub Vec<Step>);

impl Place {
    /// Whether one of both lies within the other, or both are the same.
    #[must_use]
    pub fn touches(&self, other: &Self) -> bool {
        let shared = self.0.len().min(other.0.len());
        self.0[..shared] == other.0[..shared]
    }

    /// Whether the way begins with these keys, whatever the indices between them.
    #[must_use]
    pub fn is_below(&self, keys: &[&str]) -> bool {
        let mut own = self.0.iter().filter_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        });
        keys.iter().all(|key| own.next() == Some(key))
    }

    fn at(mut self, step: Step) -> Self {
        self.0.push(step);
        self
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if nth == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// A problem whose place was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    pub place: Place,
    pub line: u32,
    /// The sentence, without what the place already says.
    pub message: String,
}

/// Finds the place of a sentence that begins with it, as all problems of configs do:
/// `datasets: NAME: field `x`: …`, `datasets: NAME: dedup.key: …`, `tenants: ID: …`,
/// `edge.listen is empty: …`. What cannot be followed further stands at the last place that could.
#[must_use]
pub fn locate(tree: &Node, sentence: &str) -> Located {
    for list in ["datasets", "tenants"] {
        if let Some(rest) = sentence
            .strip_prefix(list)
            .and_then(|rest| rest.strip_prefix(": "))
        {
            return in_list(tree, list, rest);
        }
    }
    let walk = Walk {
        node: tree,
        place: Place::default(),
        line: tree.line,
    };
    walk.keys(first_word(sentence)).says(sentence)
}

struct Walk<'a> {
    node: &'a Node,
    place: Place,
    line: u32,
}

impl<'a> Walk<'a> {
    /// Follows `a.b[1].c` as far as it leads.
    fn keys(mut self, dotted: &str) -> Self {
        for key in dotted.split('.') {
            let (key, nth) = match key.strip_suffix(']').and_then(|key| key.split_once('[')) {
                Some((key, nth)) => (key, nth.parse::<usize>().ok()),
                None => (key, None),
            };
            let Some(entry) = self.node.member(key) else { break };
            self = Self {
                node: &entry.node,
                place: self.place.at(Step::Key(key.to_owned())),
                line: entry.line,
            };
            let item = nth.and_then(|nth| self.node.items().iter().find(|item| item.index == nth));
            if let Some(item) = item {
                self = Self {
                    node: &item.node,
                    place: self.place.at(Step::Index(item.index)),
                    line: item.node.line,
                };
            }
        }
        self
    }

    /// The element of a list whose member `key` is `name`; the last one where it is there twice.
    fn element(&self, key: &str, name: &str) -> Option<Self> {
        let named = |node: &'a Node| node.member(key).and_then(|entry| entry.node.text()) == Some(name);
        let item = self.node.items().iter().rev().find(|item| named(&item.node))?;
        Some(Self {
            node: &item.node,
            place: self.place.clone().at(Step::Index(item.index)),
            line: item.node.line,
        })
    }

    fn says(self, message: &str) -> Located {
        Located {
            place: self.place,
            line: self.line,
            message: message.to_owned(),
        }
    }
}

fn in_list(tree: &Node, list: &str, rest: &str) -> Located {
    let top = Walk {
        node: tree,
        place: Place::default(),
        line: tree.line,
    };
    let top = top.keys(list);
    let name = first_word(rest).trim_end_matches(':');
    let id = if list == "tenants" { "id" } else { "name" };
    let Some(found) = top.element(id, name) else {
        return top.says(rest);
    };
    let Some(what) = rest.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")) else {
        return found.says(rest);
    };
    if let Some((field, _)) = what.strip_prefix("field `").and_then(|rest| rest.split_once('`')) {
        let fields = found.keys("fields");
        return fields.element("name", field).unwrap_or(fields).says(what);
    }
    found.keys(first_word(what)).says(what)
}

/// The first word without the punctuation that ends or quotes it.
fn first_word(text: &str) -> &str {
    let word = text.split_whitespace().next().unwrap_or_default();
    word.trim_end_matches([':', ',']).trim_matches('`')
}

/// Takes the value at `place` out of the tree; false where there is none.
pub(super) fn remove(node: &mut Node, place: &[Step]) -> bool {
    let [step, rest @ ..] = place else { return false };
    match (&mut node.value, step) {
        (Value::Map(entries), Step::Key(key)) => {
            let Some(at) = entries.iter().position(|entry| entry.key == *key) else {
                return false;
            };
            if rest.is_empty() {
                entries.remove(at);
                return true;
            }
            remove(&mut entries[at].node, rest)
        }
        (Value::List(items), Step::Index(index)) => {
            let Some(at) = items.iter().position(|item| item.index == *index) else {
                return false;
            };
            if rest.is_empty() {
                items.remove(at);
                return true;
            }
            remove(&mut items[at].node, rest)
        }
        (
            Value::Null
            | Value::Bool(..)
            | Value::Number(..)
            | Value::Text(_)
            | Value::List(_)
            | Value::Map(_),
            Step::Key(_) | Step::Index(_),
        ) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_leads_to_its_line() {
        let tree = Node::parse(
            "edge:\n  listen: []\ntenants:\n- id: acme\n  keys: []\n- id: acme\n  keys: []\ndatasets:\n- name: a\n  fields:\n  - {name: x}\n  - {name: y}\n  dedup:\n    key: [z]\n- name: b\n",
        )
        .expect("YAML");
        for (sentence, place, line) in [
            ("edge.listen is empty: name one", "edge.listen", 2),
            ("edge.admin 0.0.0.0:1 is wide", "edge", 1),
            ("datasets: a: field `y`: no unit", "datasets[0].fields[1]", 12),
            ("datasets: a: field `q` reads", "datasets[0].fields", 10),
            (
                "datasets: a: dedup.key: z is not a field",
                "datasets[0].dedup.key",
                14,
            ),
            ("datasets: a: dedup.window must be", "datasets[0].dedup", 13),
            ("datasets: b: `fields` must be 1", "datasets[1]", 15),
            ("datasets: a: table x has another", "datasets[0]", 9),
            ("tenants: acme is listed twice", "tenants[1]", 6),
            ("tenants: acme: dataset q is not defined", "tenants[1]", 6),
            ("something else", "", 1),
        ] {
            let found = locate(&tree, sentence);
            assert_eq!(
                (found.place.to_string().as_str(), found.line),
                (place, line),
                "{sentence}"
            );
        }
    }
}
