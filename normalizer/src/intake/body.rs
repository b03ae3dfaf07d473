//! A body into the texts of its events, without parsing them: the lines of NDJSON, the elements of
//! an array, the one object, or messages of Kafka.
//!
//! Splitting first keeps the parser's memory to one event's. An array is split at the commas of its
//! own level by counting brackets outside of strings; whatever else may be wrong with an element is
//! found when it is parsed. Linear in time, constant in memory and stack.
//!
//! Decisions: one UTF-8 byte order mark at the body's beginning is skipped (RFC 8259 allows that);
//! lines end in `\n` or `\r\n`; lines of white space only are no rows and are not counted.

use memchr::{memchr, memchr2};
use sluice_common::wire::intake::BodyFormat;
use sluice_common::wire::messages::message;

/// The texts of one body's events.
pub struct Events<'b> {
    body: &'b [u8],
    at: usize,
    shape: Shape,
}

/// How the events stand in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One a line. A broken one is a rejected row.
    Lines,
    /// The elements of an array. A broken one breaks the whole body.
    Elements,
    /// The whole body is one value; if it is broken, so is the body.
    Single,
    /// Messages with their places. A broken one is a rejected row.
    Messages,
    /// All has been handed out.
    Done,
}

impl Shape {
    /// Whether what is broken in one event says nothing of the others.
    #[must_use]
    pub fn stands_alone(self) -> bool {
        match self {
            Self::Lines | Self::Messages => true,
            Self::Elements | Self::Single | Self::Done => false,
        }
    }
}

/// One event's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventText<'b> {
    pub text: &'b [u8],
    /// Where it begins in the body.
    pub at: usize,
    /// Its place, where the body says so; else it is how many came before it.
    pub place: Option<u32>,
}

/// The array's brackets or commas are wrong, at this byte of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokenArray {
    pub at: usize,
}

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

impl<'b> Events<'b> {
    /// Looks at the body's beginning.
    #[must_use]
    pub fn new(body: &'b [u8], format: BodyFormat) -> Self {
        if format == BodyFormat::Messages {
            let shape = Shape::Messages;
            return Self { body, at: 0, shape };
        }
        let start = if body.starts_with(BYTE_ORDER_MARK) {
            BYTE_ORDER_MARK.len()
        } else {
            0
        };
        let first = skip_space(body, start);
        let is_array = body.get(first) == Some(&b'[');
        let (shape, at) = match format {
            BodyFormat::Json | BodyFormat::Auto if is_array => (Shape::Elements, first + 1),
            BodyFormat::Json => (Shape::Single, first),
            BodyFormat::Ndjson | BodyFormat::Auto | BodyFormat::Messages => (Shape::Lines, start),
        };
        let mut events = Self { body, at, shape };
        if shape == Shape::Elements {
            events.skip_empty_array();
        }
        events
    }

    /// The body's shape, before the first event is taken.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Whether the next byte to be handed out opens an object.
    #[must_use]
    pub fn begins_object(&self) -> bool {
        self.body.get(self.at) == Some(&b'{')
    }

    /// `[ ]` has no elements, unlike `[,]`; what follows it is looked at like any array's end.
    fn skip_empty_array(&mut self) {
        let first = skip_space(self.body, self.at);
        if self.body.get(first) == Some(&b']') && skip_space(self.body, first + 1) == self.body.len() {
            self.shape = Shape::Done;
        }
    }

    fn next_line(&mut self) -> Option<EventText<'b>> {
        // Over blank lines at once: a body of nothing else must not cost a search each.
        let start = skip_space(self.body, self.at);
        let rest = self.body.get(start..).filter(|rest| !rest.is_empty());
        let Some(rest) = rest else {
            self.shape = Shape::Done;
            return None;
        };
        let length = memchr(b'\n', rest).unwrap_or(rest.len());
        self.at = start + length;
        Some(EventText {
            text: &rest[..length],
            at: start,
            place: None,
        })
    }

    fn next_message(&mut self) -> Option<EventText<'b>> {
        let Some((place, range)) = message(self.body, self.at) else {
            self.shape = Shape::Done;
            return None;
        };
        self.at = range.end;
        Some(EventText {
            at: range.start,
            text: &self.body[range],
            place: Some(place),
        })
    }

    fn next_element(&mut self) -> Result<EventText<'b>, BrokenArray> {
        let start = self.at;
        let broken = BrokenArray { at: self.body.len() };
        let end = element_end(self.body, start).ok_or(broken)?;
        match self.body[end] {
            b',' => self.at = end + 1,
            b']' => {
                let rest = skip_space(self.body, end + 1);
                if rest < self.body.len() {
                    return Err(BrokenArray { at: rest });
                }
                self.shape = Shape::Done;
            }
            _ => return Err(BrokenArray { at: end }),
        }
        Ok(EventText {
            text: &self.body[start..end],
            at: start,
            place: None,
        })
    }
}

impl<'b> Iterator for Events<'b> {
    type Item = Result<EventText<'b>, BrokenArray>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.shape {
            Shape::Lines => self.next_line().map(Ok),
            Shape::Messages => self.next_message().map(Ok),
            Shape::Elements => Some(self.next_element()),
            Shape::Single => {
                self.shape = Shape::Done;
                Some(Ok(EventText {
                    text: &self.body[self.at..],
                    at: self.at,
                    place: None,
                }))
            }
            Shape::Done => None,
        }
    }
}

fn skip_space(text: &[u8], from: usize) -> usize {
    let is_space = |c: &u8| matches!(c, b' ' | b'\t' | b'\n' | b'\r');
    from + text[from.min(text.len())..]
        .iter()
        .take_while(|c| is_space(c))
        .count()
}

/// Where the element that begins at `at` ends: at a comma or a closing bracket of its level.
fn element_end(body: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0usize;
    loop {
        match body.get(at)? {
            b'"' => at = string_end(body, at + 1)?,
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return Some(at),
            b'}' | b']' => depth -= 1,
            b',' if depth == 0 => return Some(at),
            _ => {}
        }
        at += 1;
    }
}

/// Where the closing quote of a string stands.
fn string_end(body: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += memchr2(b'"', b'\\', body.get(at..)?)?;
        if body[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(body: &str, format: BodyFormat) -> Result<Vec<&str>, BrokenArray> {
        let events = Events::new(body.as_bytes(), format);
        let texts = events.map(|event| event.map(|event| std::str::from_utf8(event.text).expect("UTF-8")));
        texts.collect()
    }

    #[test]
    fn lines_are_split_and_blank_ones_are_none() {
        let lines = split("{}\n\r\n  \n{\"a\":1}\r\n\n{}", BodyFormat::Ndjson).expect("lines");
        assert_eq!(lines, ["{}", "{\"a\":1}\r", "{}"]);
        assert_eq!(split("", BodyFormat::Ndjson), Ok(vec![]));
        assert_eq!(split("\u{feff}{}", BodyFormat::Auto), Ok(vec!["{}"]));
    }

    #[test]
    fn elements_are_split_at_their_own_level_only() {
        let body = r#" [ {"a":[1,"],}\""]} , 2,"\\" ] "#;
        for format in [BodyFormat::Json, BodyFormat::Auto] {
            assert_eq!(
                split(body, format),
                Ok(vec![r#" {"a":[1,"],}\""]} "#, " 2", r#""\\" "#])
            );
        }
        assert_eq!(split("[ ]\n", BodyFormat::Json), Ok(vec![]));
    }

    #[test]
    fn an_array_that_does_not_end_well_is_broken() {
        for (body, at) in [
            ("[1", 2),
            ("[1}", 2),
            ("[1] 2", 4),
            ("[\"a]", 4),
            ("[[1]", 4),
            ("[\"\\", 3),
        ] {
            assert_eq!(split(body, BodyFormat::Json), Err(BrokenArray { at }), "{body}");
        }
    }
}
